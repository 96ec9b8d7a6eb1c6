"""Tell by a blob's first bytes whether it is a layer; nothing is decompressed for it."""

from __future__ import annotations

from typing import Literal

from .tar import BLOCK_SIZE

__all__ = ["Compression", "is_like_a_layer", "sniff"]

Compression = Literal["gzip", "zstd"]

_GZIP_MAGIC = b"\x1f\x8b"
# A frame, and the sixteen kinds of frames that a reader skips.
_ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", *(bytes((n,)) + b"\x2a\x4d\x18" for n in range(0x50, 0x60)))

_CHECKSUM = slice(148, 156)


def sniff(prefix: bytes) -> Compression | None:
    """Tell the compression of content from its first four bytes.

    Returns:
        The compression, or None where it is neither gzip nor zstd: a plain tar, as far as we know.
    """
    if prefix.startswith(_GZIP_MAGIC):
        return "gzip"
    return "zstd" if prefix.startswith(_ZSTD_MAGICS) else None


def is_like_a_layer(prefix: bytes) -> bool:
    """Tell whether content that begins so can be a layer: compressed, a tar of any kind, or an empty one.

    Args:
        prefix: Its first 512 bytes, or all of it where there are fewer.
    """
    if not prefix or sniff(prefix) is not None:
        return True
    block = prefix[:BLOCK_SIZE]
    return len(block) == BLOCK_SIZE and (not any(block) or _is_header(block))


def _is_header(block: bytes) -> bool:
    """Tell whether a block is the header of a tar's member.

    Not all kinds have a magic number, but all have the sum of their bytes (POSIX.1-1988, ustar), which some old programs
    took of signed ones. Go's archive/tar, by which Docker reads layers, takes both.
    """
    digits = block[_CHECKSUM].strip(b" \0")
    if not digits or digits.translate(None, b"01234567"):
        return False
    rest = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    unsigned = sum(rest)
    return int(digits, 8) in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))
