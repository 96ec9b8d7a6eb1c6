"""Read small files of a user's configuration, as plain blocking code for a thread."""

from __future__ import annotations

import errno
import os
import stat

from aiodockersave.errors import ConfigurationError

__all__ = ["read_file", "shown"]


def read_file(path: str, limit: int) -> bytes:
    """Return all of a regular file.

    Raises:
        ConfigurationError: It has more than ``limit`` bytes; not more are read.
        OSError: It cannot be read, or is something else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a FIFO is opened, and refused, at once
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise ConfigurationError(path, f"it is larger than {limit} bytes")
    return data


def shown(text: str) -> str:
    """Return a path or name as it may stand in a message of one line."""
    return text if text.isprintable() else ascii(text)
