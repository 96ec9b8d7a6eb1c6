"""Make, lock and remove the hidden files beside a target, which stay private until they are complete.

A process locks its file while it works on it. So a file that nobody has locked was left by a killed process.

All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from typing import Final

__all__ = [
    "OPEN_BESIDE",
    "PRIVATE",
    "is_still",
    "lock",
    "mode_of_new",
    "name_beside",
    "named_by_acl",
    "names_beside",
    "open_temporary",
    "remove_stale",
    "stat_of_new",
]

OPEN_BESIDE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags to open a file beside a target without following a link of its name."""
PRIVATE: Final = 0o600
"""The mode of an unfinished file: nobody but its owner can read a private image, or write to it."""

_NAME_MAX: Final = 255
"""Bytes that a file's name may have: NAME_MAX of Linux and most file systems."""
_TRIES: Final = 16
"""Names to try: a name can be taken, or another save may remove the file before it is locked."""
_TOKEN_DIGITS: Final = 8
_SUFFIX: Final = ".tmp"
_ACL_OF_OTHERS: Final = frozenset({2, 4, 8})
"""Tags of ACL entries: a user, the file's group, another group (Linux, include/uapi/linux/posix_acl.h)."""
_NEW: Final = 0o666
"""The mode of an ordinary new file, before the umask or the directory's default ACL reduces it."""


def name_beside(name: str, suffix: str) -> str:
    """Return a hidden name derived from ``name``, cut to the length that file systems allow."""
    kept = os.fsencode(name)[: _NAME_MAX - len(suffix) - 1]
    return f".{os.fsdecode(kept)}{suffix}"


def names_beside(directory: int, name: str, digits: int, suffix: str) -> list[str]:
    """Return the names in a directory that :func:`name_beside` makes of ``name``, hex digits and a suffix.

    Raises:
        OSError: The directory cannot be listed.
    """
    ending = "?" * digits + suffix  # a stand-in of the same length, which decides where a long name is cut
    beginning = name_beside(name, f".{ending}").removesuffix(ending)
    pattern = re.compile(f"{re.escape(beginning)}[0-9a-f]{{{digits}}}{re.escape(suffix)}")
    return [each for each in os.listdir(directory) if pattern.fullmatch(each)]


def is_still(fd: int, directory: int, name: str) -> bool:
    """Return whether a name in a directory still leads to an open file."""
    try:
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def lock(fd: int) -> bool:
    """Lock a file until its descriptor is closed; return False if another process has it locked.

    Raises:
        OSError: The file system has no locks.
    """
    import fcntl  # noqa: PLC0415 - not on Windows

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


# ── temporary files ──


def _temporary_name(name: str) -> str:
    return name_beside(name, f".{secrets.token_hex(_TOKEN_DIGITS // 2)}{_SUFFIX}")


def open_temporary(directory: int, name: str) -> tuple[int, str]:
    """Make a temporary file beside the target ``name`` and lock it; return its descriptor and name.

    If the file system has no locks, the file stays unlocked, and :func:`remove_stale` removes no file there.
    """
    for _ in range(_TRIES):
        temporary = _temporary_name(name)
        try:
            fd = _make(directory, temporary, PRIVATE)
        except FileExistsError:
            continue
        try:
            # Before the lock, another save may have taken the file for a stale one and removed it.
            if _lock_if_possible(fd) and is_still(fd, directory, temporary):
                return fd, temporary
        except BaseException:
            _remove(directory, temporary)
            os.close(fd)
            raise
        os.close(fd)
    raise FileExistsError(errno.EEXIST, "no free name for a temporary file", name)


def _make(directory: int, name: str, mode: int) -> int:
    return os.open(name, OPEN_BESIDE | os.O_CREAT | os.O_EXCL, mode, dir_fd=directory)


def _lock_if_possible(fd: int) -> bool:
    try:
        return lock(fd)
    except OSError:
        return True


def _remove(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def remove_stale(
    directory: int, name: str, fd: int, *, digits: int = _TOKEN_DIGITS, suffix: str = _SUFFIX
) -> None:
    """Remove the temporary files beside the target ``name`` that no process works on, such as a killed one's.

    ::

        removed   a regular file of this user that can be locked, whose only name is exactly like ours
        kept      a file that another process has locked, or has just made and is about to lock
                  a file of another user, one with a second name, one that is not regular
                  all files, if the file system has no locks

    Args:
        directory: A descriptor of the directory.
        name: The name of the target.
        fd: The caller's own file. It stays; its owner shows how this file system reports the user.
        digits: The number of hex digits in the names.
        suffix: The end of the names.

    Raises:
        OSError: The directory cannot be listed.
    """
    own = os.fstat(fd)
    for each in names_beside(directory, name, digits, suffix):
        with contextlib.suppress(OSError):  # the file cannot be removed, or another process has removed it
            _remove_if_stale(directory, each, own)


def _remove_if_stale(directory: int, name: str, own: os.stat_result) -> None:
    if not _may_be_stale(os.stat(name, dir_fd=directory, follow_symlinks=False), own):
        return  # a foreign file is not even opened
    fd = os.open(name, OPEN_BESIDE | os.O_NONBLOCK, dir_fd=directory)
    try:
        # Checked again, since the name may lead to another file by now. If a save has just made this file and
        # not locked it yet, that save finds after locking that the name is gone, and makes another file.
        if _may_be_stale(os.fstat(fd), own) and lock(fd) and is_still(fd, directory, name):
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(fd)


def _may_be_stale(there: os.stat_result, own: os.stat_result) -> bool:
    is_another = not os.path.samestat(there, own)
    return is_another and there.st_uid == own.st_uid and stat.S_ISREG(there.st_mode) and there.st_nlink == 1


# ── modes ──


def mode_of_new(directory: int, name: str) -> int:
    """Return the mode that an ordinary new file beside the target ``name`` gets."""
    umask = None if _has_default_acl(directory) else _umask()
    if umask is not None:
        return _NEW & ~umask
    return stat.S_IMODE(stat_of_new(directory, name, _NEW).st_mode) & _NEW


def _umask() -> int | None:
    """Return this process's umask; None if the kernel does not show it.

    Reading it with ``os.umask()`` would change it for a moment, in all threads.
    """
    try:
        with open("/proc/thread-self/status", "rb") as file:
            found = re.search(rb"^Umask:\s*([0-7]+)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1], 8) if found else None


def _has_default_acl(directory: int) -> bool:
    """Return whether a directory has a default ACL, which replaces the umask."""
    try:
        return bool(os.getxattr(directory, "system.posix_acl_default"))
    except (OSError, AttributeError):  # no ACL, a file system without ACLs, or not Linux
        return False


def named_by_acl(fd: int, name: str | None = None) -> frozenset[bytes]:
    """Return a file's ACL entries for its group, other users and other groups; empty if the file has no ACL.

    Linux' binary form is a version of 4 bytes, then entries of a tag (2 bytes), permissions (2) and an ID
    (4).

    Args:
        fd: The file; or its directory, if ``name`` is given.
        name: The file's name in the directory.
    """
    try:
        # getxattr takes no `dir_fd`, so the name is reached through /proc; without /proc the result is empty.
        path = fd if name is None else f"/proc/self/fd/{fd}/{name}"
        acl = os.getxattr(path, "system.posix_acl_access", follow_symlinks=name is None)
    except (OSError, AttributeError):  # no ACL, a file system without ACLs, or not Linux
        return frozenset()
    entries = [acl[at : at + 8] for at in range(4, len(acl), 8)]
    return frozenset(each for each in entries if each[0] in _ACL_OF_OTHERS)


def stat_of_new(directory: int, name: str, mode: int) -> os.stat_result:
    """Make an empty file beside the target ``name``, remove it, and return its status, for owner and mode."""
    for _ in range(_TRIES):
        temporary = _temporary_name(name)
        with contextlib.suppress(FileExistsError):
            fd = _make(directory, temporary, mode)
            try:
                _remove(directory, temporary)
                return os.fstat(fd)
            finally:
                os.close(fd)
    raise FileExistsError(errno.EEXIST, "no free name for a temporary file", name)
