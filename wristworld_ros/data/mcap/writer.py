"""Deterministic writer: chunks with checksums, and an index at the end."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from wristworld_ros.data.mcap.compression import compress
from wristworld_ros.data.mcap.records import (
    ATTACHMENT,
    ATTACHMENT_INDEX,
    CHANNEL,
    CHUNK,
    CHUNK_BYTES,
    CHUNK_INDEX,
    DATA_END,
    FOOTER,
    HEADER,
    MAGIC,
    MESSAGE,
    MESSAGE_INDEX,
    METADATA,
    METADATA_INDEX,
    NO_TIME,
    SCHEMA,
    STATISTICS,
    SUMMARY_OFFSET,
    Channel,
    FieldReader,
    Message,
    Schema,
    append_record,
    pack_pairs,
    pack_text,
)
from wristworld_ros.errors import BagError


@dataclass
class _OpenChunk:
    records: io.BytesIO = field(default_factory=io.BytesIO)
    start: int = NO_TIME
    end: int = 0
    index: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


class McapWriter:
    """Writes chunked MCAP with checksums and an index; the same calls give the same bytes.

    Args:
        path: file to write; must not exist.
        library: name of the writing software, stored in the header.
        compression: ``zstd`` or ``none``.
    """

    def __init__(self, path: Path, library: str, compression: str = "zstd") -> None:
        if compression not in ("zstd", "none"):
            raise BagError(f"compression '{compression}' is not one of zstd, none.")
        self._compression = "" if compression == "none" else compression
        self._file = path.open("xb")
        self._schemas: dict[int, bytes] = {}
        self._channels: dict[int, bytes] = {}
        self._counts: dict[int, int] = {}
        self._chunk = _OpenChunk()
        self._summary: dict[int, list[bytes]] = {
            CHUNK_INDEX: [],
            ATTACHMENT_INDEX: [],
            METADATA_INDEX: [],
        }
        self._start, self._end = NO_TIME, 0
        self._file.write(MAGIC)
        self._record(HEADER, pack_text("ros2") + pack_text(library))

    def add_schema(self, schema: Schema) -> None:
        """Write a schema; ids must be unique and not 0."""
        content = struct.pack("<H", schema.id) + pack_text(schema.name) + pack_text(schema.encoding)
        self._schemas[schema.id] = content + struct.pack("<I", len(schema.data)) + schema.data
        append_record(self._chunk.records, SCHEMA, self._schemas[schema.id])

    def add_channel(self, channel: Channel) -> None:
        """Write a channel whose schema has been added."""
        content = struct.pack("<HH", channel.id, channel.schema_id)
        content += (
            pack_text(channel.topic)
            + pack_text(channel.message_encoding)
            + pack_pairs(channel.metadata)
        )
        self._channels[channel.id] = content
        self._counts[channel.id] = 0
        append_record(self._chunk.records, CHANNEL, content)

    def write(self, message: Message) -> None:
        """Append one message of a channel that has been added."""
        chunk, offset = self._chunk, self._chunk.records.tell()
        head = struct.pack(
            "<HIQQ", message.channel_id, message.sequence, message.log_time, message.publish_time
        )
        chunk.records.write(struct.pack("<BQ", MESSAGE, len(head) + len(message.data)))
        chunk.records.write(head)
        chunk.records.write(message.data)
        chunk.index.setdefault(message.channel_id, []).append((message.log_time, offset))
        chunk.start = min(chunk.start, message.log_time)
        chunk.end = max(chunk.end, message.log_time)
        self._counts[message.channel_id] += 1
        if chunk.records.tell() >= CHUNK_BYTES:
            self._close_chunk()

    def add_metadata(self, name: str, pairs: Mapping[str, str]) -> None:
        """Write a metadata record."""
        self._close_chunk()
        offset = self._file.tell()
        self._record(METADATA, pack_text(name) + pack_pairs(pairs))
        self._summary[METADATA_INDEX].append(
            struct.pack("<QQ", offset, self._file.tell() - offset) + pack_text(name)
        )

    def add_attachment(self, content: bytes) -> None:
        """Write an attachment record as it was read."""
        self._close_chunk()
        offset = self._file.tell()
        self._record(ATTACHMENT, content)
        f = FieldReader(content)
        log_time, create_time, name, media_type = (f.number(8), f.number(8), f.text(), f.text())
        self._summary[ATTACHMENT_INDEX].append(
            struct.pack("<QQ", offset, self._file.tell() - offset)
            + struct.pack("<QQQ", log_time, create_time, f.number(8))
            + pack_text(name)
            + pack_text(media_type)
        )

    @property
    def counts(self) -> dict[int, int]:
        """Channel id -> messages written."""
        return dict(self._counts)

    @property
    def time_range(self) -> tuple[int, int]:
        """Smallest and largest log time written so far [ns]; (0, 0) when there is none."""
        start, end = (min(self._start, self._chunk.start), max(self._end, self._chunk.end))
        return (0, 0) if start == NO_TIME else (start, end)

    def abort(self) -> None:
        """Close the file as it is: readable as a truncated one."""
        self._close_chunk()
        self._file.close()

    def close(self) -> None:
        """Write the index and close."""
        self._close_chunk()
        self._record(DATA_END, struct.pack("<I", 0))
        summary_start = self._file.tell()
        start, end = self.time_range
        counts = b"".join(struct.pack("<HQ", i, n) for i, n in sorted(self._counts.items()))
        statistics = struct.pack(
            "<QHIIIIQQI",
            sum(self._counts.values()),
            len(self._schemas),
            len(self._channels),
            len(self._summary[ATTACHMENT_INDEX]),
            len(self._summary[METADATA_INDEX]),
            len(self._summary[CHUNK_INDEX]),
            start,
            end,
            len(counts),
        )
        groups = [
            (SCHEMA, list(self._schemas.values())),
            (CHANNEL, list(self._channels.values())),
            *self._summary.items(),
            (STATISTICS, [statistics + counts]),
        ]
        summary, offsets = io.BytesIO(), []
        for op, records in groups:
            group_start = summary.tell()
            for record in records:
                append_record(summary, op, record)
            if records:
                offsets.append((op, summary_start + group_start, summary.tell() - group_start))
        offset_start = summary_start + summary.tell()
        for op, position, length in offsets:
            append_record(summary, SUMMARY_OFFSET, struct.pack("<BQQ", op, position, length))
        footer = struct.pack("<QQ", summary_start, offset_start)
        checksum = crc32(summary.getvalue() + struct.pack("<BQ", FOOTER, 20) + footer)
        self._file.write(summary.getvalue())
        self._record(FOOTER, footer + struct.pack("<I", checksum))
        self._file.write(MAGIC)
        self._file.close()

    def _close_chunk(self) -> None:
        chunk, self._chunk = self._chunk, _OpenChunk()
        records = chunk.records.getvalue()
        if not records:
            return
        data = compress(records, self._compression)
        start = 0 if chunk.start == NO_TIME else chunk.start
        self._start, self._end = (min(self._start, chunk.start), max(self._end, chunk.end))
        offset = self._file.tell()
        self._record(
            CHUNK,
            struct.pack("<QQQI", start, chunk.end, len(records), crc32(records))
            + pack_text(self._compression)
            + struct.pack("<Q", len(data)),
            data,
        )
        length, index_start = self._file.tell() - offset, self._file.tell()
        places = b""
        for channel_id, entries in chunk.index.items():
            places += struct.pack("<HQ", channel_id, self._file.tell())
            packed = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            self._record(MESSAGE_INDEX, struct.pack("<HI", channel_id, len(packed)), packed)
        self._summary[CHUNK_INDEX].append(
            struct.pack("<QQQQI", start, chunk.end, offset, length, len(places))
            + places
            + struct.pack("<Q", self._file.tell() - index_start)
            + pack_text(self._compression)
            + struct.pack("<QQ", len(data), len(records))
        )

    def _record(self, op: int, *parts: bytes) -> None:
        self._file.write(struct.pack("<BQ", op, sum(len(p) for p in parts)))
        for part in parts:
            self._file.write(part)
