"""Recognise an archive that an earlier save has left under the target's name, without reading its blobs.

All functions block.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiodockersave.blobs.open_file import OpenFile

from .part_file import remove_parts
from .path import Spot, find
from .temporary import mode_of_new

if TYPE_CHECKING:
    from aiodockersave.core.plan import Segment

__all__ = ["open_finished"]


def open_finished(path: str | os.PathLike[str], segments: Iterable[Segment], size: int) -> OpenFile | None:
    """Open the file at a path if it is the archive of a plan by its size and by all bytes that are no blob's.

    Headers, configs and metadata name every blob by its digest. The blobs are not read, since that takes long.
    So the file has to be one that only this user, or root, can have written. Part files beside it are removed.

    Returns:
        The file, to be closed; None for another file, or none.

    Raises:
        PermissionError: A stranger has prepared something on the path.
        OSError: The path leads nowhere, or reading fails.
    """
    with find(os.fsdecode(path)) as spot:
        if spot.there is None or not stat.S_ISREG(spot.there.st_mode) or not _is_own(spot):
            return None
        try:
            file = OpenFile(spot.open(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except PermissionError:  # it can be replaced nevertheless
            return None
        try:
            with file as fd:
                if os.fstat(fd).st_size == size and all(_has(fd, segment) for segment in segments):
                    _tidy(spot, fd)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()
        return None


def _is_own(spot: Spot) -> bool:
    there = spot.there
    if there is None or there.st_uid not in (0, os.geteuid()):
        return False
    others = stat.S_IMODE(there.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    # With some umasks every new file can be written by the user's group.
    return not others & ~mode_of_new(spot.directory, spot.name)


def _tidy(spot: Spot, fd: int) -> None:
    with contextlib.suppress(OSError):  # files stay that cannot be listed
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=spot.directory)
        try:
            remove_parts(directory, spot.name, fd)
        finally:
            os.close(directory)


def _has(fd: int, segment: Segment) -> bool:
    return segment.data is None or os.pread(fd, segment.size, segment.offset) == segment.data
