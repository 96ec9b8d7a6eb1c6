"""Change a small private file as a whole, such as one with passwords.

The file is read and replaced through one open descriptor of its directory, see :mod:`.path`. The replacement
is a file beside it that is private from its first byte (mode 0600). A lock on the directory keeps other
processes of this package out meanwhile, so that no change is lost if two are made at the same time.

All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Final

from .path import Spot, find
from .temporary import lock, open_temporary, remove_stale

__all__ = ["change_private"]

_LOCK_LIMIT: Final = 10.0
"""Seconds to wait for the lock; each process holds it only for a few fsyncs."""
_LOCK_POLL: Final = 0.05
"""Seconds between two attempts to lock: a lock can only be polled if the wait is to have a limit."""


def change_private(path: str, change: Callable[[bytes], bytes | None], *, limit: int) -> bool:
    """Replace the content of a private file; return whether it was replaced.

    Args:
        path: The file. It need not exist, but its directory must.
        change: Takes the content, empty for a missing file; returns the new content, or None to keep the old.
        limit: The largest file that is read, in bytes.

    Raises:
        PermissionError: The file is another user's, or another user may have tampered with the path.
        OSError: The file is not regular, is too large, or cannot be read or replaced.
    """
    with find(path) as spot:
        try:
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=spot.directory)
        except OSError as exc:
            exc.filename = spot.folder
            raise
        try:
            _lock(directory, spot)
            old = _read(directory, spot, limit)
            new = change(old or b"")
            if new is None:
                return False
            _replace(directory, spot, new)
        except OSError as exc:
            exc.filename = spot.path  # name the file itself, not the one beside it
            raise
        finally:
            os.close(directory)
    return True


def _lock(directory: int, spot: Spot) -> None:
    give_up = time.monotonic() + _LOCK_LIMIT
    while not _try_lock(directory):
        if time.monotonic() > give_up:
            raise OSError(errno.EAGAIN, "another process is changing it; try again", spot.path)
        time.sleep(_LOCK_POLL)


def _try_lock(directory: int) -> bool:
    try:
        return lock(directory)
    except OSError:
        return True  # the file system has no locks


def _read(directory: int, spot: Spot, limit: int) -> bytes | None:
    """Return the content; None for no file."""
    try:
        # `find` has followed all links that may be followed; O_NONBLOCK keeps a FIFO from blocking the open.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(spot.name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        there = os.fstat(fd)
        if not stat.S_ISREG(there.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", spot.path)
        # Content that another user wrote must not be taken over into a file of this user.
        if there.st_uid != os.geteuid():
            raise PermissionError(
                errno.EPERM,
                f"it is another user's (uid {there.st_uid}); name another file, or let that user do it",
                spot.path,
            )
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", spot.path)
    return content


def _replace(directory: int, spot: Spot, content: bytes) -> None:
    fd, temporary = open_temporary(directory, spot.name)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
            os.replace(temporary, spot.name, src_dir_fd=directory, dst_dir_fd=directory)
            with contextlib.suppress(OSError):  # if the directory cannot be listed, the files stay
                remove_stale(directory, spot.name, fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)
