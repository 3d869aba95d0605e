"""Compression of chunks: none, zstd, lz4 (read only)."""

from __future__ import annotations

import sys

import lz4.frame

from wristworld_ros.data.mcap.records import DamageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_LEVEL = 1
#: What zstd raises on altered data.
ZstdError = zstd.ZstdError


def compress(data: bytes, name: str) -> bytes:
    """Compress by ``zstd``, or not at all (empty name)."""
    return zstd.compress(data, ZSTD_LEVEL) if name else data


def decompress(data: memoryview, name: str, size: int) -> memoryview:
    """Content of a chunk; shorter than ``size`` when ``data`` is cut off.

    Raises:
        DamageError: unknown compression, or altered data.
    """
    try:
        if name == "zstd":
            return memoryview(zstd.ZstdDecompressor().decompress(data, size + 1))
        if name == "lz4":
            return memoryview(lz4.frame.LZ4FrameDecompressor().decompress(data, size + 1))
    except (ZstdError, RuntimeError, EOFError, ValueError) as error:
        raise DamageError(f"it cannot be decompressed ({error})") from error
    if name:
        raise DamageError(f"its compression '{name}' is not known")
    return data
