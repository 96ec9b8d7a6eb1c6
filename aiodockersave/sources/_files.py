"""Open and read regular files, as plain blocking code for a thread."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TypeGuard

from aiodockersave._text import one_line
from aiodockersave.errors import ContentTooLargeError

__all__ = ["is_text", "open_regular", "read_file"]

_SURROGATE = re.compile("[\ud800-\udfff]")


def open_regular(path: str) -> tuple[int, int]:
    """Open a regular file for reading; return descriptor and size in bytes.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a FIFO is opened, and refused, at once
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def read_file(path: str, limit: int) -> bytes:
    """Return all of a regular file.

    Raises:
        ContentTooLargeError: It has more than ``limit`` bytes; not more are read.
        OSError: It cannot be read, or is something else.
    """
    fd, _ = open_regular(path)
    with open(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ContentTooLargeError(limit, what=one_line(path))
    return data


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value read from JSON is text that can be sent, without halves of surrogate pairs."""
    return isinstance(value, str) and _SURROGATE.search(value) is None
