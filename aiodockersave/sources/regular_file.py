"""Open and read regular files, as plain blocking code for a thread.

A path may lead to anything: a device without an end, a pipe that nobody writes to, a file of the kernel that states a
wrong size. Only regular files are opened. No more of them is read than the caller's limit allows, and a file that ends
before its stated size is an error. A file system that hangs (its server is gone) blocks the thread that reads it; nothing
in a process can end that.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TypeGuard

from aiodockersave.core.errors import ContentTooLargeError
from aiodockersave.core.text import one_line

__all__ = ["is_text", "open_regular", "read_file", "shorter"]

_CHUNK_SIZE = 256 << 10
"""Bytes of one read; a usual manifest, config or file of certificates takes one."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def open_regular(path: str) -> tuple[int, int]:
    """Open a regular file for reading; return its file descriptor and its size in bytes.

    Raises:
        OSError: The file cannot be opened, or is not a regular one.
    """
    _check_regular(os.stat(path), path)  # checked before the open, which already acts on some devices
    # The path may lead to another file by now. With O_NONBLOCK the open of a FIFO does not wait, and it is refused below.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        _check_regular(status, path)
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _check_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def read_file(path: str, limit: int) -> bytes:
    """Return the content of a regular file. A file that states no size, as the kernel's do, is read to its end.

    Raises:
        ContentTooLargeError: The file has more than ``limit`` bytes; one byte more is read at most.
        OSError: The file cannot be read, is not a regular one, or ends before its stated size.
    """
    fd, size = open_regular(path)
    data = bytearray()
    try:
        while len(data) <= limit:
            chunk = os.read(fd, min(_CHUNK_SIZE, limit + 1 - len(data)))
            if not chunk:
                break
            data += chunk
    except OSError as exc:  # also EAGAIN, from files of the kernel that have nothing to give now
        exc.filename = path
        raise
    finally:
        os.close(fd)
    if len(data) > limit:
        raise ContentTooLargeError(limit, what=one_line(path))
    if len(data) < size:
        raise shorter(path, size, len(data))
    return bytes(data)


def shorter(path: str, size: int, actual: int) -> OSError:
    """Return the error for a file that ends before its size: cut while it was read, or never of the stated size."""
    return OSError(errno.EIO, f"the file ends after {actual} bytes, though it says that it has {size}", path)


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value from JSON is a text that can be sent: one without halves of surrogate pairs."""
    return isinstance(value, str) and _SURROGATE.search(value) is None
