"""Writing at offsets of a file, in no order; everything here blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodockersave.core.plan import Segment

    from .content import Batch
    from .open_file import OpenFile

__all__ = ["write_at", "write_literals"]


def write_at(fd: int, data: Batch, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def write_literals(file: OpenFile, segments: Iterable[Segment], size: int) -> None:
    """Write all of an archive that is no blob's, and cut the file to the archive's size."""
    with file as fd:
        for segment in segments:
            if segment.data is not None:
                write_at(fd, segment.data, segment.offset)
        os.ftruncate(fd, size)
