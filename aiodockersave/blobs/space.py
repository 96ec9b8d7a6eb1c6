"""Stop data of unknown size before it fills a disk.

The idea to know first: a full disk fails every program that writes to it, not only the save that fills it. So
a write that would leave too little room is refused early, while the data written so far can still be removed
in order.

The layers of one archive share the bytes by which they may exceed their expansion ratio; otherwise many
layers together could be a decompression bomb.
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
"""The most bytes to write before the free room is checked again: other programs write to the disk too."""
_RESERVE: Final = 64 << 20
"""The bytes to leave free for others; on a small disk one per cent of its size."""


class Free(NamedTuple):
    """The room in a file system, in bytes.

    Attributes:
        available: The bytes that are free.
        reserve: The part of them that must stay free.
    """

    available: int
    reserve: int


class Space:
    """Count the bytes that are written to a file system, and check from time to time whether it has room.

    Any thread may call the methods. The check does not see the piece that another thread is about to write;
    that piece is small compared with the reserve.

    Args:
        look_at: Returns the statistics of the file system.
        path: The name of the place in errors.
    """

    def __init__(self, look_at: Callable[[], os.statvfs_result], path: str) -> None:
        self._look_at = look_at
        self._path = path
        self._lock = threading.Lock()
        self._granted = 0

    def look(self) -> Free:
        """Return the free room; this may block."""
        there = self._look_at()
        if not there.f_blocks:  # some file systems report no size: do not limit them
            return Free(sys.maxsize, 0)
        size = there.f_blocks * there.f_frsize
        return Free(there.f_bavail * there.f_frsize, min(_RESERVE, size // 100))

    def check(self, size: int, free: Free) -> None:
        """Check that ``size`` bytes fit into the free room without its reserve.

        Raises:
            InsufficientSpaceError: They would leave too little.
        """
        if size > free.available - free.reserve:
            raise InsufficientSpaceError(self._path, size + free.reserve, free.available)

    def take(self, size: int) -> None:
        """Count ``size`` bytes that are about to be written; this may block. Errors as :meth:`check`."""
        if not self._take_granted(size):
            free = self.look()
            self.check(size, free)
            with self._lock:  # grant half of the room at most: check more often as the disk fills
                self._granted = min(_PORTION, (free.available - free.reserve - size) // 2)

    async def take_in(self, worker: Worker, size: int) -> None:
        """Do as :meth:`take`, in a thread if it may block. Cancel: is raised when that call has ended."""
        if not self._take_granted(size):
            await worker.run(self.take, size)

    def _take_granted(self, size: int) -> bool:
        with self._lock:
            if size > self._granted:
                return False
            self._granted -= size
            return True


_TOGETHER: Final = 1 << 30
"""The plain bytes by which all layers together may exceed their ratio: the allowance of sixteen layers."""


class SharedExpansion:
    """Count the plain bytes by which layers exceed their expansion ratio, from any thread.

    Each layer counts with the largest excess that was reported for it. So neither the order of the layers nor
    reading a layer twice changes the sum.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most: dict[object, int] = {}
        self._total = 0

    def __call__(self, layer: object, size: int) -> bool:
        """Record that a layer exceeds its ratio by ``size`` bytes; return whether the sum is allowed."""
        with self._lock:
            before = self._most.get(layer, 0)
            if size > before:
                self._most[layer] = size
                self._total += size - before
            return self._total <= _TOGETHER
