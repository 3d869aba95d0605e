"""Records of the container, and how their fields are packed (little endian)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX = range(1, 8)
CHUNK_INDEX, ATTACHMENT, ATTACHMENT_INDEX, STATISTICS = 8, 9, 10, 11
METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = 12, 13, 14, 15
#: Chunks are closed once they hold this many bytes before compression.
CHUNK_BYTES = 1 << 20
#: Larger chunks (before compression) are taken for corrupt.
MAX_CHUNK_BYTES = 1 << 32
NO_TIME = (1 << 64) - 1


@dataclass(frozen=True)
class Schema:
    """Message definition; ``encoding`` is ``ros2msg`` or ``ros2idl``."""

    id: int
    name: str
    encoding: str
    data: bytes


@dataclass(frozen=True)
class Channel:
    """Topic with its schema and the string pairs that the recorder stored with it (QoS)."""

    id: int
    schema_id: int
    topic: str
    message_encoding: str
    metadata: Mapping[str, str]


class Message(NamedTuple):
    """One message as it lies in the file; times in ns."""

    channel_id: int
    sequence: int
    log_time: int
    publish_time: int
    data: memoryview


class DamageError(Exception):
    """The file, chunk or record ends before it should, or contains nonsense."""


class FieldReader:
    """Cursor over the content of one record."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.position = 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise DamageError(f"a field of {count} bytes at {self.position} ends after its record")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        try:
            return bytes(self.take(self.number(4))).decode()
        except UnicodeDecodeError as error:
            raise DamageError("a text is not UTF-8") from error

    def pairs(self) -> dict[str, str]:
        inner = FieldReader(self.take(self.number(4)))
        out = {}
        while inner.position < len(inner.data):
            key = inner.text()
            out[key] = inner.text()
        return out

    def rest(self) -> memoryview:
        return self.data[self.position :]


def append_record(stream: BinaryIO, op: int, content: bytes) -> None:
    """Write one record: type, length, content."""
    stream.write(struct.pack("<BQ", op, len(content)))
    stream.write(content)


def pack_text(value: str) -> bytes:
    """A text with its length."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def pack_pairs(pairs: Mapping[str, str]) -> bytes:
    """A map of texts with its length in bytes."""
    data = b"".join(pack_text(k) + pack_text(v) for k, v in pairs.items())
    return struct.pack("<I", len(data)) + data
