"""Recognise an archive that an earlier save has finished under the target's name, without reading its blobs.

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
    """Open the file at a path if its size and all bytes outside of its blobs are those of a plan's archive.

    Headers, configs and metadata name every blob by its digest. The blobs themselves are not read, since that
    would take long. So the file is accepted only if nobody but this user and root can have written it. If it
    is accepted, part files beside it are removed.

    Returns:
        The file, which the caller closes; None if there is no file, or another one.

    Raises:
        PermissionError: Another user may have tampered with the path.
        OSError: The path leads nowhere, or reading fails.
    """
    with find(os.fsdecode(path)) as spot:
        if spot.there is None or not stat.S_ISREG(spot.there.st_mode) or not _is_own(spot):
            return None
        try:
            file = OpenFile(spot.open(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except PermissionError:  # no error of the save, which can replace a file that it cannot read
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
    # Write bits that every new file of the user has are no suspicion: some umasks let the group write.
    return not others & ~mode_of_new(spot.directory, spot.name)


def _tidy(spot: Spot, fd: int) -> None:
    with contextlib.suppress(OSError):  # if the directory cannot be listed, the files stay
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=spot.directory)
        try:
            remove_parts(directory, spot.name, fd)
        finally:
            os.close(directory)


def _has(fd: int, segment: Segment) -> bool:
    return segment.data is None or os.pread(fd, segment.size, segment.offset) == segment.data
