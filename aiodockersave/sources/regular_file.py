"""Open and read regular files, as plain blocking code for a thread.

A file may be anything that somebody put there, or linked to: a device without an end, a pipe that nobody writes to, a file of
the kernel that says of itself what is not so. What is no regular file is not even opened; of what is one, no more is read
than is wanted, and less than it says is an error. A file system that itself hangs (a server that is gone) holds up the
thread that reads it: nothing in a process can end that.
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
_SURROGATE = re.compile("[\ud800-\udfff]")


def open_regular(path: str) -> tuple[int, int]:
    """Open a regular file for reading; return descriptor and size in bytes.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    _check_regular(os.stat(path), path)  # some devices do something already when they are opened
    # It may be another file by now: a FIFO is opened, and refused, at once.
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
    """Return all of a regular file. One that says that it is empty, as the kernel's do, is read to its end.

    Raises:
        ContentTooLargeError: It has more than ``limit`` bytes; not more are read.
        OSError: It cannot be read, is something else, or has less in it than it says.
    """
    fd, size = open_regular(path)
    data = bytearray()
    try:
        while len(data) <= limit:
            chunk = os.read(fd, min(_CHUNK_SIZE, limit + 1 - len(data)))
            if not chunk:
                break
            data += chunk
    except OSError as exc:  # also where it gives nothing for now, as some of the kernel's do
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
    """Return the error that a file is which ends before its size: cut while it was read, or never as long as it said."""
    return OSError(errno.EIO, f"the file ends after {actual} bytes, though it says that it has {size}", path)


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value read from JSON is text that can be sent, without halves of surrogate pairs."""
    return isinstance(value, str) and _SURROGATE.search(value) is None
