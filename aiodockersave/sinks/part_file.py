"""The part file: what an interrupted save leaves beside its target, so that another one can go on.

``.NAME.<first 16 of the plan's ETag>.part``. The ETag stands for every byte of the archive, so a part file is gone on
with by the save of the same archive only; one of another archive beside the same target is told of, and never mixed in.
A lock keeps a second process out.

All functions block.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from aiodockersave.core.errors import PartFileError, PartFileLockedError

from .temporary import OPEN_BESIDE, PRIVATE, is_still, lock, name_beside, names_beside, stat_of_new

__all__ = ["open_part", "part_name"]

_SUFFIX: Final = ".part"
_ETAG_DIGITS: Final = 16
_TRIES: Final = 16


def part_name(name: str, etag: str) -> str:
    """Return the name of the part file beside the target ``name``."""
    return name_beside(name, f".{etag[:_ETAG_DIGITS]}{_SUFFIX}")


def open_part(directory: int, part: str, name: str, *, folder: str) -> int:
    """Open or make a part file and lock it; the lock ends with its descriptor.

    What is in it becomes part of an archive, as far as its digests are right; what is beside the blobs is written anew. But
    whoever has made it, or may write to it, could change it behind the last look. So it has to be one's own, and is private
    from here on.

    Args:
        directory: A descriptor of its directory.
        part: Its name.
        name: The name of the target.
        folder: What the directory is called in messages.

    Raises:
        PartFileLockedError: Another save is writing it.
        PartFileError: One of another archive is there, it is no file, or others have made it or may write to it.
        OSError: It cannot be made.
    """
    for other in sorted(names_beside(directory, name, _ETAG_DIGITS, _SUFFIX)):
        if other != part:
            raise PartFileError(
                os.path.join(folder, other),
                "it is of another archive: a tag has moved, or this was another command; remove it, or save without it",
            )
    path = os.path.join(folder, part)
    for _ in range(_TRIES):
        fd = _open_or_make(directory, part, name, path)
        if fd is None:
            continue
        try:
            there = os.fstat(fd)
            _check_owner(there, directory, name, path)
            # What has another name too is somebody's own, and not to be written to.
            if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
                raise PartFileError(path, "it is no regular file of one name; remove it")
            if not _lock(fd, part):
                raise PartFileLockedError(path)
            if is_still(fd, directory, part):
                _make_private(fd, directory, name, path)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever had locked it has just put it under the target's name, or removed it
    raise PartFileLockedError(path)


def _open_or_make(directory: int, part: str, name: str, path: str) -> int | None:
    """Return a descriptor; None where another save has just made it, removed it or put it under the target's name."""
    try:
        there = os.stat(part, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return os.open(part, OPEN_BESIDE | os.O_CREAT | os.O_EXCL, PRIVATE, dir_fd=directory)
        return None
    _check_owner(there, directory, name, path)  # before it is opened, since another user's may not let us
    with contextlib.suppress(FileNotFoundError):
        return os.open(part, OPEN_BESIDE | os.O_NONBLOCK, dir_fd=directory)  # a FIFO must not block
    return None


def _check_owner(there: os.stat_result, directory: int, name: str, path: str) -> None:
    # Over a network one may be another user: whoever one's own new files belong to.
    if there.st_uid != os.geteuid() and there.st_uid != stat_of_new(directory, name, PRIVATE).st_uid:
        raise PartFileError(
            path,
            f"another user has made it (uid {there.st_uid}); remove it, or save to another place, or without it",
        )


def _make_private(fd: int, directory: int, name: str, path: str) -> None:
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    others = mode & (stat.S_IWGRP | stat.S_IWOTH)
    # A file system without modes shows one for all files, which says nothing of this one.
    if others and others & ~stat_of_new(directory, name, PRIVATE).st_mode:
        raise PartFileError(
            path,
            f"others may write to it (mode {mode:04o}), and may have done so; remove it, or save without it",
        )
    if mode != PRIVATE:  # as an earlier version has made them
        with contextlib.suppress(PermissionError):  # no modes again
            os.fchmod(fd, PRIVATE)


def _lock(fd: int, part: str) -> bool:
    """Lock a file; tell whether that was possible."""
    try:
        return lock(fd)
    except OSError as exc:
        exc.filename = part
        raise
