"""Write a tar member's header as Go's archive/tar does, the padding behind a member, and the end of an archive.

A member is one header (one block, or three where PAX is needed), its data, and zeros up to the next
block. An archive ends with two blocks of zeros. Every member here is a regular file, a directory or a
symbolic link, owned by 0:0, dated 1970-01-01: the same image gives the same bytes.

====================  ===  ===  =========================================================
field                 off  len  content
====================  ===  ===  =========================================================
name                    0  100  ASCII, NUL-terminated only if shorter
mode                  100    8  ``0000444`` NUL for most files, ``0000755`` for a directory, zeros for a link
uid, gid         108, 116    8  ``0000000`` NUL
size                  124   12  11 octal digits NUL; zeros where PAX holds the size
mtime                 136   12  zeros in octal, NUL
checksum              148    8  6 octal digits, NUL, space
typeflag              156    1  ``0`` file, ``2`` link, ``5`` directory, ``x`` PAX extended header
linkname              157  100  where the link points
magic, version        257    8  ``ustar`` NUL ``00``
uname, gname     265, 297   32  NUL
devmajor, minor  329, 337    8  ``0000000`` NUL; all NUL in an ``x`` header
prefix                345  155  directory of a long name that can be split at a slash
====================  ===  ===  =========================================================

Source: Go archive/tar, ``Header.allowedFormats`` and ``Writer.WriteHeader``; POSIX.1-2001 pax.
"""

from __future__ import annotations

import posixpath

BLOCK_SIZE = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_SIZE)
"""The end of an archive. Go writes these two blocks and no padding to a 10,240-byte record."""

MAX_OCTAL_SIZE = 0o77777777777
"""The largest size (bytes, 8 GiB - 1) that the header holds; beyond it PAX does."""

_NAME_SIZE = 100
_PREFIX_SIZE = 155
_DEVICE = b"0000000\0" * 2


def padding(size: int) -> bytes:
    """Return the zeros that follow ``size`` bytes of data up to the next block."""
    return bytes(-size % BLOCK_SIZE)


def member_header(name: str, size: int, mode: int = 0o444) -> bytes:
    """Return the header of a regular file of ``size`` bytes: 512 bytes, or 1,536 with PAX."""
    return _header(name, size=size, link="", mode=mode, typeflag=b"0")


def directory_header(name: str) -> bytes:
    """Return the header of a directory, whose name ends with a slash: 512 bytes."""
    return _header(name, size=0, link="", mode=0o755, typeflag=b"5")


def link_header(name: str, target: str) -> bytes:
    """Return the header of a symbolic link: 512 bytes, or 1,536 with PAX."""
    # Go takes the mode from FileMode(ModeSymlink), which has no permission bits.
    return _header(name, size=0, link=target, mode=0, typeflag=b"2")


def _header(name: str, *, size: int, link: str, mode: int, typeflag: bytes) -> bytes:
    if size < 0:
        raise AssertionError(f"negative size of member {name}")
    prefix, base = _split(name)
    needs_pax = len(base) > _NAME_SIZE or len(link) > _NAME_SIZE or size > MAX_OCTAL_SIZE
    if not needs_pax:
        return _block(base, mode, size, typeflag, link, prefix=prefix)
    records = _pax_records(name, size, link)
    stored_size = size if size <= MAX_OCTAL_SIZE else 0
    return (
        _block(_pax_name(name), 0, len(records), b"x", "", device=b"")
        + records
        + padding(len(records))
        + _block(name, mode, stored_size, typeflag, link)
    )


def _split(name: str) -> tuple[str, str]:
    """Split a name that is too long for its field into prefix and rest, as Go's splitUSTARPath."""
    if len(name) <= _NAME_SIZE:
        return "", name
    slash = name[: _PREFIX_SIZE + 1].rfind("/")
    rest = name[slash + 1 :]
    if slash <= 0 or len(rest) > _NAME_SIZE:
        return "", name
    return name[:slash], rest


def _pax_name(name: str) -> str:
    directory, base = posixpath.split(name)
    return posixpath.join(directory, "PaxHeaders.0", base)[:_NAME_SIZE].rstrip("/")


def _pax_records(name: str, size: int, link: str) -> bytes:
    values = {
        "linkpath": link if len(link) > _NAME_SIZE else "",
        "path": name if len(name) > _NAME_SIZE else "",
        "size": str(size) if size > MAX_OCTAL_SIZE else "",
    }
    return b"".join(_pax_record(key, value) for key, value in values.items() if value)


def _pax_record(key: str, value: str) -> bytes:
    r"""Return ``"<length> <key>=<value>\n"``, whose length counts its own digits."""
    rest = f" {key}={value}\n"
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length += 1
    return f"{length}{rest}".encode("ascii")


def _block(
    name: str,
    mode: int,
    size: int,
    typeflag: bytes,
    link: str,
    *,
    prefix: str = "",
    device: bytes = _DEVICE,
) -> bytes:
    before = (
        _text(name, _NAME_SIZE) + b"%07o\0" % mode + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
    )
    after = (
        typeflag
        + _text(link, _NAME_SIZE)
        + b"ustar\x0000"
        + bytes(64)
        + device.ljust(16, b"\0")
        + _text(prefix, _PREFIX_SIZE)
        + bytes(12)
    )
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after


def _text(text: str, width: int) -> bytes:
    """Return ``text`` cut to ``width`` bytes; Go drops a slash that a cut leaves at the very end."""
    field = text.encode("ascii")[:width]
    if len(text) > width:
        field = field.rstrip(b"/")
    return field.ljust(width, b"\0")
