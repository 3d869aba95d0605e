"""Tolerant reader: as far as a file can be read, and a list of what could not."""

from __future__ import annotations

import heapq
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from wristworld_ros.data.mcap.compression import decompress
from wristworld_ros.data.mcap.records import (
    ATTACHMENT,
    CHANNEL,
    CHUNK,
    CHUNK_INDEX,
    FOOTER,
    MAGIC,
    MAX_CHUNK_BYTES,
    MESSAGE,
    METADATA,
    NO_TIME,
    SCHEMA,
    STATISTICS,
    Channel,
    DamageError,
    FieldReader,
    Message,
    Schema,
)
from wristworld_ros.errors import BagError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """A chunk, or one message outside of chunks, at a place in the file."""

    start_time: int
    end_time: int
    offset: int
    length: int
    chunk: bool

    @property
    def span(self) -> str:
        """Its time, for messages to the user."""
        return f"{self.start_time / 1e9:.3f} s to {self.end_time / 1e9:.3f} s"


class McapReader:
    """Reads schemas, channels, and messages in the order of their log time.

    Attributes:
        schemas, channels: by id.
        counts: channel id -> number of messages.
        metadata: list of (name, string pairs).
        attachments: list of raw attachment records.
        damage: what could not be read, one sentence each; grows while messages are read.

    Raises:
        BagError: no such file, or not an MCAP file at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.schemas: dict[int, Schema] = {}
        self.channels: dict[int, Channel] = {}
        self.counts: dict[int, int] | None = None  # as stated, until checked
        self.metadata: list[tuple[str, dict[str, str]]] = []
        self.attachments: list[bytes] = []
        self.damage: list[str] = []
        self._blocks: list[_Block] = []
        self._reported: set[int] = set()
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise BagError(f"cannot open {path}: {error.strerror}. Check the path.") from error
        self._size = path.stat().st_size
        if self._file.read(8) != MAGIC:
            self._file.close()
            raise BagError(
                f"{path} ({self._size} bytes) is not an MCAP file: its first 8 bytes are not the "
                "MCAP magic. Give a bag recorded with storage mcap, or a .db3 file."
            )
        self._scan()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self) -> None:
        """Find all blocks by walking over the records, without loading chunks."""
        position, ended = len(MAGIC), False
        try:
            while not ended:
                position = self._file.seek(position)
                op, length = self._record_head(position)
                self._scan_record(op, position, length)
                ended = op == FOOTER
                position += 9 + length
            self._file.seek(position)
            if self._file.read(8) != MAGIC:
                self._note(position, "the end mark is missing")
        except DamageError as cut:
            recovered = self._recover(position)
            self._note(
                position,
                f"{cut}; {self._size - position} of {self._size} bytes follow"
                + (f", {recovered} chunks of them found by the index" if recovered else ""),
            )
        if self.damage or self.counts is None or set(self.counts) - set(self.channels):
            counts = Counter(m.channel_id for block in self._blocks for m in self._load(block))
            self.counts = {channel_id: counts[channel_id] for channel_id in self.channels}

    def _record_head(self, position: int) -> tuple[int, int]:
        head = self._file.read(9)
        if len(head) < 9:
            raise DamageError(
                "the file is truncated (the recorder was not closed, or a copy was cut)"
            )
        op, length = head[0], int.from_bytes(head[1:], "little")
        if op == 0:
            raise DamageError("a record of type 0, which does not exist")
        if position + 9 + length > self._size:
            if op == CHUNK:  # its first messages may still be there
                self._scan_record(op, position, self._size - position - 9)
            raise DamageError("the last record is cut off")
        return op, length

    def _scan_record(self, op: int, position: int, length: int) -> None:
        if op == CHUNK:
            head = FieldReader(self._file.read(min(length, 40)))
            self._blocks.append(_Block(head.number(8), head.number(8), position, length, True))
        elif op == MESSAGE:
            head = FieldReader(self._file.read(min(length, 22)))
            head.take(6)
            time = head.number(8)
            self._blocks.append(_Block(time, time, position, length, False))
        elif op in (SCHEMA, CHANNEL, STATISTICS, METADATA, ATTACHMENT):
            self._keep(op, self._file.read(length))

    def _keep(self, op: int, content: bytes | memoryview) -> None:
        """Remember a record that is not a message."""
        f = FieldReader(content)
        if op == SCHEMA:
            schema = Schema(f.number(2), f.text(), f.text(), bytes(f.take(f.number(4))))
            self.schemas.setdefault(schema.id, schema)
        elif op == CHANNEL:
            channel = Channel(f.number(2), f.number(2), f.text(), f.text(), f.pairs())
            self.channels.setdefault(channel.id, channel)
        elif op == STATISTICS:
            f.take(8 + 2 + 4 + 4 + 4 + 4 + 8 + 8)
            counts = FieldReader(f.take(f.number(4)))
            self.counts = {
                counts.number(2): counts.number(8) for _ in range(len(counts.data) // 10)
            }
        elif op == METADATA:
            self.metadata.append((f.text(), f.pairs()))
        elif op == ATTACHMENT:
            self.attachments.append(bytes(content))

    def _recover(self, broken: int) -> int:
        """Use the index at the end of the file to find the chunks after a broken record."""
        try:
            self._file.seek(max(self._size - 37, 0))
            tail = self._file.read(37)
            if len(tail) < 37 or tail[29:] != MAGIC or tail[0] != FOOTER:
                return 0
            position, found = int.from_bytes(tail[9:17], "little"), 0
            while broken < position < self._size - 37:
                self._file.seek(position)
                op, length = self._record_head(position)
                content = self._file.read(length)
                if op == CHUNK_INDEX:
                    f = FieldReader(content)
                    start, end, offset, size = (f.number(8) for _ in range(4))
                    if broken < offset and offset + size <= self._size:
                        self._blocks.append(_Block(start, end, offset, size - 9, True))
                        found += 1
                elif op in (SCHEMA, CHANNEL):
                    self._keep(op, content)
                position += 9 + length
            return found
        except DamageError:
            return 0

    def _note(self, position: int, what: str) -> None:
        if position in self._reported:
            return
        self._reported.add(position)
        self.damage.append(f"{self.path.name}: at byte {position}: {what}")
        logger.warning(self.damage[-1])

    def _load(self, block: _Block) -> list[Message]:
        """Messages of one block, in file order; what is broken is left out and noted."""
        self._file.seek(block.offset + 9)
        content = memoryview(self._file.read(block.length))
        if not block.chunk:
            try:
                return [_message(content)]
            except DamageError as cut:
                self._note(block.offset, f"message lost: {cut}")
                return []
        try:
            records, problem = _chunk_records(content)
        except DamageError as cut:
            self._note(block.offset, f"the messages from {block.span} are lost: {cut}")
            return []
        messages: list[Message] = []
        position = 0
        try:
            while position < len(records):
                if position + 9 > len(records):
                    raise DamageError("cut inside a record")
                op = records[position]
                length = int.from_bytes(records[position + 1 : position + 9], "little")
                inner = records[position + 9 : position + 9 + length]
                if len(inner) < length:
                    raise DamageError("cut inside a record")
                if op == MESSAGE:
                    messages.append(_message(inner))
                elif op in (SCHEMA, CHANNEL):
                    self._keep(op, inner)
                position += 9 + length
        except DamageError as cut:
            problem = problem or str(cut)
        if problem:
            self._note(
                block.offset,
                f"of the messages from {block.span} only {len(messages)} can be read: {problem}",
            )
        return messages

    def messages(
        self, channel_ids: Collection[int], start_ns: int = 0, stop_ns: int = NO_TIME
    ) -> Iterator[Message]:
        """Messages of some channels with start <= log time < stop, in the order of log time.

        Messages with equal log time keep their order in the file. Only chunks that overlap in time
        are in memory together.
        """
        wanted = set(channel_ids)
        blocks = sorted(self._blocks, key=lambda b: (b.start_time, b.offset))
        blocks = blocks[: bisect_left([b.start_time for b in blocks], stop_ns)]
        heap: list[tuple[int, int, int, Message]] = []
        next_block = 0
        while heap or next_block < len(blocks):
            while next_block < len(blocks) and (
                not heap or blocks[next_block].start_time <= heap[0][0]
            ):
                block = blocks[next_block]
                next_block += 1
                for i, m in enumerate(self._load(block)):
                    if m.channel_id in wanted and start_ns <= m.log_time < stop_ns:
                        heapq.heappush(heap, (m.log_time, block.offset, i, m))
            if heap:
                yield heapq.heappop(heap)[3]


def _message(content: memoryview) -> Message:
    f = FieldReader(content)
    return Message(f.number(2), f.number(4), f.number(8), f.number(8), f.rest())


def _chunk_records(content: memoryview) -> tuple[memoryview, str]:
    """Uncompressed records of a chunk, and what is wrong with them ('' when nothing)."""
    f = FieldReader(content)
    f.take(16)
    size, checksum, compression = f.number(8), f.number(4), f.text()
    if size > MAX_CHUNK_BYTES:
        raise DamageError(f"its size of {size} bytes is not believable")
    stored = f.number(8)
    data = decompress(f.rest()[:stored], compression, size)
    if len(data) != size:
        return data, f"{len(data)} of {size} bytes"
    if checksum and crc32(data) != checksum:
        return data[:0], "the checksum does not match, its bytes were altered"
    return data, ""
