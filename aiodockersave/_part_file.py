"""The part file: what an interrupted save leaves beside its target, so that another one can go on.

``.NAME.<first 16 of the plan's ETag>.part``. The ETag stands for every byte of the archive, so a part file is gone on
with by the save of the same archive only; one of another archive beside the same target is told of, and never mixed in.
A lock keeps a second process out.

All functions block.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Final

from .errors import PartFileError, PartFileLockedError

__all__ = ["OPEN_BESIDE", "is_still", "name_beside", "open_part", "part_name"]

OPEN_BESIDE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a file beside a target is opened: not where a link leads that somebody has put there."""

_SUFFIX: Final = ".part"
_ETAG_DIGITS: Final = 16
_NAME_MAX: Final = 255
_TRIES: Final = 16


def name_beside(name: str, suffix: str) -> str:
    """Return a hidden name beside ``name``, cut to what file systems take."""
    kept = os.fsencode(name)[: _NAME_MAX - len(suffix) - 1]
    return f".{os.fsdecode(kept)}{suffix}"


def part_name(name: str, etag: str) -> str:
    """Return the name of the part file beside the target ``name``."""
    return name_beside(name, f".{etag[:_ETAG_DIGITS]}{_SUFFIX}")


def open_part(directory: int, part: str, name: str, *, folder: str) -> int:
    """Open or make a part file and lock it; the lock ends with its descriptor.

    Args:
        directory: A descriptor of its directory.
        part: Its name.
        name: The name of the target.
        folder: What the directory is called in messages.

    Raises:
        PartFileLockedError: Another save is writing it.
        PartFileError: One of another archive is there, or it is no file.
        OSError: It cannot be made.
    """
    for other in _others(directory, part, name):
        raise PartFileError(
            os.path.join(folder, other),
            "it is of another archive: a tag has moved, or this was another command; remove it, or save without it",
        )
    for _ in range(_TRIES):
        fd = os.open(part, OPEN_BESIDE | os.O_NONBLOCK, 0o666, dir_fd=directory)  # a FIFO must not block
        try:
            there = os.fstat(fd)
            # What has another name too is somebody's own, and not to be written to.
            if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
                raise PartFileError(
                    os.path.join(folder, part), "it is no regular file of one name; remove it"
                )
            if not _lock(fd, part):
                raise PartFileLockedError(os.path.join(folder, part))
            if is_still(fd, directory, part):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever had locked it has just put it under the target's name, or removed it
    raise PartFileLockedError(os.path.join(folder, part))


def _others(directory: int, part: str, name: str) -> list[str]:
    """Return the part files of other archives beside a target."""
    beginning = part_name(name, "?" * _ETAG_DIGITS).removesuffix("?" * _ETAG_DIGITS + _SUFFIX)
    pattern = f"{re.escape(beginning)}[0-9a-f]{{{_ETAG_DIGITS}}}{re.escape(_SUFFIX)}"
    return sorted(each for each in os.listdir(directory) if each != part and re.fullmatch(pattern, each))


def _lock(fd: int, part: str) -> bool:
    """Lock a file; tell whether that was possible."""
    import fcntl  # noqa: PLC0415 - only where a save is to go on, and not on every system

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        exc.filename = part
        raise
    return True


def is_still(fd: int, directory: int, part: str) -> bool:
    """Tell whether a name is still that of an open file."""
    try:
        named = os.stat(part, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
