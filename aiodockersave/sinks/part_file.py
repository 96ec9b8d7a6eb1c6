"""Open, lock and remove part files, which interrupted saves leave beside their targets to be resumed.

A part file is called ``.NAME.<first 16 digits of the plan's ETag>.part``. The ETag stands for every byte of
the archive, so only a save of the same archive resumes a part file. A part file of another archive stays
until an archive has the target's name: if a tag has moved and moves back, that part file is resumed. A lock
keeps a second process out.

All functions block.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from typing import Final

from aiodockersave.core.errors import PartFileError, PartFileLockedError
from aiodockersave.core.text import one_line

from .temporary import (
    OPEN_BESIDE,
    PRIVATE,
    is_still,
    lock,
    name_beside,
    names_beside,
    remove_stale,
    stat_of_new,
)

__all__ = ["open_part", "part_name", "remove_parts"]

_SUFFIX: Final = ".part"
_ETAG_DIGITS: Final = 16
_TRIES: Final = 16
"""Attempts to open a part file while other saves keep removing or publishing it; then it is an error."""


def part_name(name: str, etag: str) -> str:
    """Return the name of the part file beside the target ``name``."""
    return name_beside(name, f".{etag[:_ETAG_DIGITS]}{_SUFFIX}")


logger = logging.getLogger("aiodockersave")


def open_part(directory: int, part: str, name: str, *, folder: str, begin_anew: bool = False) -> int:
    """Open or make a part file and lock it until its descriptor is closed.

    Bytes of the part file become part of the archive if their digests are right; all bytes outside of blobs
    are written anew. But the file's owner, or others who may write to it, could change it after the last
    check. So it must be the user's own, and it is made private here.

    Args:
        directory: A descriptor of the directory.
        part: The name of the part file.
        name: The name of the target.
        folder: The directory's path, for messages.
        begin_anew: Whether to drop the content of the part file.

    Raises:
        PartFileLockedError: Another save is writing the part file.
        PartFileError: It is no regular file, or others have made it or may write to it.
        OSError: The part file cannot be made.
    """
    # 1. Warn of part files that cannot be resumed.
    for other in sorted(names_beside(directory, name, _ETAG_DIGITS, _SUFFIX)):
        if other != part and _is_of_this_user(directory, other):
            logger.warning(
                "%s is of another archive: a tag has moved, or this was another command; nothing of it is used, and it is "
                "removed once the new archive is in place",
                one_line(os.path.join(folder, other)),
            )
    # 2. Open and lock the part file; try again if another save takes it away in between.
    path = os.path.join(folder, part)
    for _ in range(_TRIES):
        fd = _open_or_make(directory, part, name, path)
        if fd is None:
            continue
        try:
            _check_and_lock(fd, directory, part, name, path)
            if is_still(fd, directory, part):
                _make_private(fd, directory, name, path)
                if begin_anew:
                    os.ftruncate(fd, 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another save had it locked, and has just published or removed it
    raise PartFileLockedError(path)


def remove_parts(directory: int, name: str, fd: int) -> None:
    """Remove the part files beside a published archive, as :func:`.remove_stale` removes temporary files.

    ``fd`` is the archive's descriptor. Of a name that is cut in theirs, none is removed: it may be another target's.

    Raises:
        OSError: The directory cannot be listed.
    """
    if part_name(name, "0" * _ETAG_DIGITS).startswith(f".{name}."):
        remove_stale(directory, name, fd, digits=_ETAG_DIGITS, suffix=_SUFFIX)


def _is_of_this_user(directory: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid == os.geteuid()
    return False


def _check_and_lock(fd: int, directory: int, part: str, name: str, path: str) -> None:
    there = os.fstat(fd)
    _check_owner(there, directory, name, path)
    # A file that has a second name is in use elsewhere, and must not be written to.
    if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
        raise PartFileError(path, "it is no regular file of one name; remove it")
    try:
        is_locked = lock(fd)
    except OSError as exc:
        exc.filename = part
        raise
    if not is_locked:
        raise PartFileLockedError(path)


def _open_or_make(directory: int, part: str, name: str, path: str) -> int | None:
    """Return a descriptor; None if another save has just made, removed or published the file."""
    try:
        there = os.stat(part, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return os.open(part, OPEN_BESIDE | os.O_CREAT | os.O_EXCL, PRIVATE, dir_fd=directory)
        return None
    _check_owner(there, directory, name, path)  # first, since opening another user's file may fail
    with contextlib.suppress(FileNotFoundError):
        return os.open(part, OPEN_BESIDE | os.O_NONBLOCK, dir_fd=directory)  # opening a FIFO must not block
    return None


def _check_owner(there: os.stat_result, directory: int, name: str, path: str) -> None:
    # A network file system may show another user as the owner of all files that this user makes.
    if there.st_uid != os.geteuid() and there.st_uid != stat_of_new(directory, name, PRIVATE).st_uid:
        raise PartFileError(
            path,
            f"another user has made it (uid {there.st_uid}); remove it, or save to another place, or without it",
        )


def _make_private(fd: int, directory: int, name: str, path: str) -> None:
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    others = mode & (stat.S_IWGRP | stat.S_IWOTH)
    # A file system without modes shows the same mode for every file, which says nothing about this one.
    if others and others & ~stat_of_new(directory, name, PRIVATE).st_mode:
        raise PartFileError(
            path,
            f"others may write to it (mode {mode:04o}), and may have done so; remove it, or save without it",
        )
    if mode != PRIVATE:  # an earlier version of this package made it
        with contextlib.suppress(PermissionError):  # the file system has no modes
            os.fchmod(fd, PRIVATE)
