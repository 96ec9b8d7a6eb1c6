"""Recognise an archive that an earlier save has finished under the target's name, without reading its blobs.

All functions block.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Self

from aiodockersave.blobs.open_file import OpenFile

from .part_file import remove_parts
from .path import Spot, find
from .temporary import mode_of_new, named_by_acl

if TYPE_CHECKING:
    from aiodockersave.core.plan import Segment

__all__ = ["FinishedFile"]


class FinishedFile:
    """The file at a path, if it is an archive that is whole. Leave it with ``with``: then it is closed.

    Args:
        path: The path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._file: OpenFile | None = None
        self._is_left = False

    @property
    def file(self) -> OpenFile:
        """The file, once :meth:`open` has found it whole."""
        if self._file is None:
            raise AssertionError("the file is not open")
        return self._file

    def open(self, segments: Iterable[Segment], size: int) -> bool:
        """Open the file if it is the archive of a plan by its size and by all bytes that are no blob's; tell whether it is.

        Headers, configs and metadata name every blob by its digest. The blobs are not read, since that takes long. So the
        file has to be one that only this user, or root, can have written. Part files beside it are removed. Blocks.

        Raises:
            PermissionError: A stranger has prepared something on the path.
            OSError: The path leads nowhere, or reading fails.
        """
        with find(os.fsdecode(self._path)) as spot:
            if spot.there is None or not stat.S_ISREG(spot.there.st_mode):
                return False
            try:
                self._file = file = OpenFile(spot.open(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            except PermissionError:  # it can be replaced nevertheless
                return False
            if self._is_left:  # meanwhile, where nobody could wait for this call
                file.close()
            with file as fd:
                if os.fstat(fd).st_size != size or not _is_own(fd, spot):
                    return False
                if not all(_has(fd, segment) for segment in segments):
                    return False
                _tidy(spot, fd)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left = True
        if self._file is not None:
            self._file.close()  # at once: a file that was only read


def _is_own(fd: int, spot: Spot) -> bool:
    there = os.fstat(fd)
    if there.st_uid not in (0, os.geteuid()) or named_by_acl(fd):
        return False
    others = stat.S_IMODE(there.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    if not others:
        return True
    # With some umasks every new file can be written by the user's own group.
    with contextlib.suppress(OSError), _opened(spot) as directory:
        return there.st_gid == os.getegid() and not others & ~mode_of_new(directory, spot.name)
    return False


@contextlib.contextmanager
def _opened(spot: Spot) -> Iterator[int]:
    """Open the directory of a spot, whose own descriptor may serve for nothing but opening files below it."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=spot.directory)
    try:
        yield directory
    finally:
        os.close(directory)


def _tidy(spot: Spot, fd: int) -> None:
    with contextlib.suppress(OSError), _opened(spot) as directory:  # files stay that cannot be listed
        remove_parts(directory, spot.name, fd)


def _has(fd: int, segment: Segment) -> bool:
    return segment.data is None or os.pread(fd, segment.size, segment.offset) == segment.data
