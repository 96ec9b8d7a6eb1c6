"""Writing at offsets of a file, in no order; everything here blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiodockersave.core.errors import SinkError

if TYPE_CHECKING:
    from aiodockersave.core.plan import Segment

    from .content import Batch
    from .open_file import OpenFile

__all__ = ["move_back", "write_at", "write_literals"]


def write_at(fd: int, data: Batch, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def move_back(file: OpenFile, start: int, shift: int, size: int) -> None:
    """Copy ``size`` bytes at ``start`` to ``shift`` bytes further behind."""
    data = b""
    with file as fd:
        while len(data) < size:
            piece = os.pread(fd, size - len(data), start + len(data))
            if not piece:
                raise SinkError(
                    f"the file is shorter than what was written to it, at byte {start + len(data)}"
                )
            data += piece
        write_at(fd, data, start + shift)


def write_literals(file: OpenFile, segments: Iterable[Segment], size: int) -> None:
    """Write all of an archive that is no blob's, and cut the file to the archive's size."""
    with file as fd:
        for segment in segments:
            if segment.data is not None:
                write_at(fd, segment.data, segment.offset)
        os.ftruncate(fd, size)
