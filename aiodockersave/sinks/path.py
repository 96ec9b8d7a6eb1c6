"""Follow a path to its target directory by directory; refuse files that an untrusted user may have planted.

An untrusted user who may write to a directory on the path can put a link there, or replace a file after it
was checked. So each directory is opened below the one before, each name is looked at once, and from then on
only the last directory, which stays open, and a name in it are used::

    /tmp/latest  ─▶  /  ─▶  tmp  ─▶  latest, a link to app.tar  ─▶  app.tar
                                     its owner is checked, since others may write to tmp

All functions block.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque
from typing import Final, NamedTuple, Self

__all__ = ["Spot", "find", "is_safe"]

_LINKS: Final = 40
"""Links to follow for one path: as many as Linux follows."""
# Passing through a directory needs no permission to list it, so it is opened without reading where possible.
_PASS: Final = getattr(os, "O_PATH", getattr(os, "O_SEARCH", os.O_RDONLY)) | os.O_DIRECTORY


def is_safe(there: os.stat_result, directory: os.stat_result, trusted: frozenset[int]) -> bool:
    """Return whether a file may be used: only trusted users can have put it there, or its origin is harmless.

    ::

                                  only trusted users may    others may write
                                  write to its directory    to its directory
        a regular file            yes: it is replaced, and never written into
        a link                    yes: it is followed       if a trusted user owns it
        a FIFO, device, socket    yes: it is written into   if a trusted user owns it, and it
                                                            is the same file after opening
    """
    return stat.S_ISREG(there.st_mode) or there.st_uid in trusted or not _others_may_write(directory, trusted)


def _others_may_write(directory: os.stat_result, trusted: frozenset[int]) -> bool:
    # The sticky bit does not help: it keeps others from removing a file, but not from making it first.
    return bool(directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or directory.st_uid not in trusted


def _trusted_users() -> frozenset[int]:
    # In a user namespace the real root may appear as another user, the one who owns "/".
    return frozenset({0, os.geteuid(), os.stat("/").st_uid})


class Spot(NamedTuple):
    """The end of a path: a name in an open directory. The caller closes it.

    Attributes:
        directory: The directory's descriptor; it may be good only for opening files below it (O_PATH).
        folder: The directory's path, for messages.
        name: The name in the directory.
        there: The status of the file with that name; None for no file. Never a link or a directory.
        is_shared: Whether others may write to the directory.
        is_magic: Whether the name is a kernel link to an open file, such as ``/proc/self/fd/1``, whose text
            is no path.
    """

    directory: int
    folder: str
    name: str
    there: os.stat_result | None
    is_shared: bool
    is_magic: bool

    @property
    def path(self) -> str:
        """The whole path, without links."""
        return os.path.join(self.folder, self.name)

    def open(self, flags: int) -> int:
        """Open the file if it is still the one that was found.

        Raises:
            PermissionError: Another file has replaced it, in a directory that others may write to.
            OSError: The file cannot be opened.
        """
        try:
            fd = os.open(self.name, flags if self.is_magic else flags | os.O_NOFOLLOW, dir_fd=self.directory)
        except OSError as exc:
            if exc.errno == errno.ELOOP and self.is_shared:
                raise self._replaced() from None
            exc.filename = self.path
            raise
        try:
            if self.is_shared and not self._is_same(os.fstat(fd)):
                raise self._replaced()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_same(self, opened: os.stat_result) -> bool:
        # Owner and file type are compared too, since a new file may get the inode of a removed one.
        there = self.there
        return (
            there is not None
            and os.path.samestat(there, opened)
            and there.st_uid == opened.st_uid
            and stat.S_IFMT(there.st_mode) == stat.S_IFMT(opened.st_mode)
        )

    def _replaced(self) -> PermissionError:
        return PermissionError(
            errno.EACCES, "somebody has replaced it meanwhile; write to another place", self.path
        )

    def close(self) -> None:
        """Close the directory."""
        os.close(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find(path: str) -> Spot:
    """Follow a path to its end, and return the spot there.

    Raises:
        PermissionError: An untrusted user may have put a file or link on the path; see :func:`is_safe`.
        IsADirectoryError: The path leads to a directory, or names one.
        OSError: The path leads nowhere.
    """
    way = _Way(path)
    try:
        return way.go()
    except BaseException:
        os.close(way.directory)
        raise


class _Way:
    """A walk along a path: the directory that is open now, and the names that are still to follow."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names = deque(_names(path))
        self._links = 0
        self._trusted = _trusted_users()
        is_absolute = path.startswith("/")
        self._folder = "/" if is_absolute else os.getcwd()
        self.directory = os.open("/" if is_absolute else ".", _PASS)

    def go(self) -> Spot:
        """Walk to the end of the path; the caller closes the spot."""
        spot = None
        while spot is None:
            name = self._names.popleft()
            try:
                if not self._names:
                    spot = self._look(name)
                elif name != ".":  # "." is the directory itself
                    self._enter(name)
            except OSError as exc:
                if exc.filename in (name, ""):  # "" stands for an open link
                    # ENOTDIR means that the path is wrong, not the file that is no directory.
                    exc.filename = self._path if exc.errno == errno.ENOTDIR else self._at(name)
                raise
        return spot

    def _at(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _enter(self, name: str) -> None:
        """Enter a directory, or follow a link."""
        try:
            below = os.open(name, _PASS | os.O_NOFOLLOW, dir_fd=self.directory)
        except FileNotFoundError:
            if set(self._names) == {"."}:  # "new/" asks for a directory, even if there is none
                raise self._is_a_directory() from None
            raise
        except OSError as exc:
            # Opening a link fails with one of these, depending on the system.
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP) or not stat.S_ISLNK(self._stat(name).st_mode):
                raise
            self._follow(name)
            return
        self._go_to(below, os.path.dirname(self._folder) if name == ".." else self._at(name))

    def _go_to(self, directory: int, folder: str) -> None:
        before = self.directory
        self.directory, self._folder = directory, folder
        os.close(before)

    def _look(self, name: str) -> Spot | None:
        """Return the spot of the last name; follow the name and return None if it is a link."""
        if name == ".":
            raise self._is_a_directory()
        is_magic = False
        there: os.stat_result | None
        try:
            there = self._stat(name)
        except FileNotFoundError:
            there = None
        else:
            if stat.S_ISLNK(there.st_mode):
                opened = self._what_is_open(name, there)
                if opened is None:
                    self._follow(name)
                    return None
                self._check(there, name)
                is_magic, there = True, opened
            if stat.S_ISDIR(there.st_mode):
                raise self._is_a_directory()
            self._check(there, name)
        is_shared = _others_may_write(os.fstat(self.directory), self._trusted)
        return Spot(self.directory, self._folder, name, there, is_shared, is_magic)

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.directory, follow_symlinks=False)

    def _what_is_open(self, name: str, link: os.stat_result) -> os.stat_result | None:
        """Return the status of a file without a path that a ``/proc`` link leads to; None for other links."""
        try:
            if link.st_dev != os.stat("/proc/self/fd").st_dev:
                return None
        except OSError:
            return None
        there = os.stat(name, dir_fd=self.directory)
        return None if stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode) else there

    def _follow(self, name: str) -> None:
        """Put the names in a link's text in front of the remaining names."""
        link, text = _read_link(name, self.directory)
        self._check(link, name)
        self._links += 1
        if self._links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._path)
        self._names.extendleft(reversed(_names(text)))
        if text.startswith("/"):
            self._go_to(os.open("/", _PASS), "/")

    def _check(self, there: os.stat_result, name: str) -> None:
        if not is_safe(there, os.fstat(self.directory), self._trusted):
            what = "a link" if stat.S_ISLNK(there.st_mode) else "no regular file"
            raise PermissionError(
                errno.EACCES,
                f"it is {what}, and of another user (uid {there.st_uid}), in a directory that others may write to; "
                "remove it, or write to another place",
                self._at(name),
            )

    def _is_a_directory(self) -> IsADirectoryError:
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)


def _names(path: str) -> list[str]:
    """Return the names of a path in order, with a "." at the end if the path must lead to a directory."""
    names = path.split("/")
    must_be_directory = names[-1] in ("", ".", "..")
    return [name for name in names if name not in ("", ".")] + ["."] * must_be_directory


def _read_link(name: str, directory: int) -> tuple[os.stat_result, str]:
    """Return the status and the text of a link, and make sure that both are of the same link."""
    if sys.platform == "linux":
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        try:
            return os.fstat(fd), os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)
    else:  # here an open link cannot be read, so the link's status is compared before and after reading it
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
        text = os.readlink(name, dir_fd=directory)
        after = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not os.path.samestat(before, after) or before.st_ctime_ns != after.st_ctime_ns:
            raise PermissionError(
                errno.EACCES, "somebody has replaced it meanwhile; write to another place", name
            )
        return after, text
