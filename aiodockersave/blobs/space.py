"""Room on a disk for what grows without its size being known ahead.

A disk that is filled to its last byte is a fault of all who write to it, not only of the save that fills it. So what expands
is stopped before, with something left over, while it can still be taken away in peace.

The layers of one archive share what they may expand to beyond their ratio: else their number would be the bomb.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from aiodockersave._aio import Worker
from aiodockersave.core.errors import InsufficientSpaceError

__all__ = ["Free", "SharedExpansion", "Space"]

_PORTION: Final = 64 << 20
"""Bytes after which it is looked again, at the latest: others write there, too."""
_RESERVE: Final = 64 << 20
"""Bytes that are left to others, or one in a hundred where the disk is small."""


class Free(NamedTuple):
    """The room in a file system, in bytes.

    Attributes:
        available: What is free.
        reserve: How much of that is to stay so.
    """

    available: int
    reserve: int


class Space:
    """Counts what is written to a file system, and looks now and then whether that has room.

    Its methods may be called from any thread. What another one is about to write is not seen: a piece, which is little
    beside what is left over.

    Args:
        look_at: Asks the file system.
        path: What it is called in errors.
    """

    def __init__(self, look_at: Callable[[], os.statvfs_result], path: str) -> None:
        self._look_at = look_at
        self._path = path
        self._lock = threading.Lock()
        self._granted = 0

    def look(self) -> Free:
        """Return what there is now; this may block."""
        there = self._look_at()
        if not there.f_blocks:  # some file systems say nothing of themselves
            return Free(sys.maxsize, 0)
        size = there.f_blocks * there.f_frsize
        return Free(there.f_bavail * there.f_frsize, min(_RESERVE, size // 100))

    def check(self, size: int, free: Free) -> None:
        """Find out whether so many bytes fit into what was free.

        Raises:
            InsufficientSpaceError: They would leave too little.
        """
        if size > free.available - free.reserve:
            raise InsufficientSpaceError(self._path, size + free.reserve, free.available)

    def take(self, size: int) -> None:
        """Count bytes that are to be written now; this may block. Errors as :meth:`check`."""
        if not self._take_granted(size):
            free = self.look()
            self.check(size, free)
            with self._lock:  # the nearer the end, the sooner it is looked again
                self._granted = min(_PORTION, (free.available - free.reserve - size) // 2)

    async def take_in(self, worker: Worker, size: int) -> None:
        """As :meth:`take`, by a thread where it may block. Cancel: is raised when that has ended."""
        if not self._take_granted(size):
            await worker.run(self.take, size)

    def _take_granted(self, size: int) -> bool:
        with self._lock:
            if size > self._granted:
                return False
            self._granted -= size
            return True


_TOGETHER: Final = 1 << 30
"""Plain bytes: as many as sixteen layers may have beyond what the ratio allows them."""


class SharedExpansion:
    """Counts the plain bytes by which layers exceed their expansion ratio, from any thread.

    Each layer counts with the largest excess that was reported of it. So neither the order of layers nor a second reading
    changes the sum.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most: dict[object, int] = {}
        self._total = 0

    def __call__(self, layer: object, size: int) -> bool:
        """Count that a layer is so many bytes ahead; tell whether all layers are within what they have together."""
        with self._lock:
            before = self._most.get(layer, 0)
            if size > before:
                self._most[layer] = size
                self._total += size - before
            return self._total <= _TOGETHER
