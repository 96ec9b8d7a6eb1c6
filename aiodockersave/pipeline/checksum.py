"""The SHA-256 of a file that is written in no order: hashed from its start on, behind those who write it.

::

    segments   header │ blob ………… │ padding, header │ blob …… │ …
    in place          │ ████████░░│                 │ █████░░ │
    hashed     ███████│ ██████    │

What is known (headers, metadata) is hashed from memory, blobs from the file as far as they are in their place. Sizes that
were only guessed are compared at the end with what they are: where one was wrong, all is read once more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from aiodockersave._aio import Beside
from aiodockersave.core.errors import SinkError
from aiodockersave.core.model import Digest

if TYPE_CHECKING:
    from aiodockersave.blobs.open_file import OpenFile
    from aiodockersave.core.plan import Segment

__all__ = ["Follower"]

_LEAST: Final = 4 << 20
"""Bytes that are worth a hop to the thread while blobs are being received."""
_MOST: Final = 16 << 20
"""Bytes that are hashed by one blocking call: how long a cancel may have to wait."""
_PIECE: Final = 1 << 20

Piece = bytes | tuple[int, int]
"""Bytes, or an offset in the file and a size."""


class Placed(Protocol):
    """A blob that is being brought into its place.

    Attributes:
        position: How many bytes of the place are filled, from its start on.
    """

    position: int


class Follower(Beside):
    """Hashes a file while it is written. Without :meth:`watch` it hashes all at the end.

    Args:
        file: The file.
    """

    def __init__(self, file: OpenFile) -> None:
        super().__init__("aiodockersave-checksum")
        self._file = file
        self._placed: dict[Digest, Placed] = {}
        self._has_repeats = False
        self._begin()

    def _begin(self) -> None:
        self._hash = hashlib.sha256()
        self._passed: list[Segment] = []
        self._inside = 0  # of the segment behind those

    def watch(self, digest: Digest, placed: Placed) -> None:
        """Follow a blob that is being written where its segment is.

        One that is written once more was given up, and need not have been the right bytes until then: all is read again
        at the end.
        """
        self._has_repeats = self._has_repeats or digest in self._placed
        self._placed[digest] = placed

    def advance(self, segments: Sequence[Segment]) -> None:
        """Hash some of what is in its place, unless it is too little, or the thread is at it.

        Args:
            segments: The file's segments, as far as they are known.
        """
        if self.is_free():
            before = len(self._passed), self._inside
            pieces, size = self._next(segments, self._filled)
            if size < _LEAST:  # not worth it yet: they are told anew
                del self._passed[before[0] :]
                self._inside = before[1]
            else:
                self.start(self._take, pieces)

    async def finish(self, segments: Sequence[Segment]) -> Digest:
        """Hash the rest of a whole file, and return its SHA-256.

        Raises:
            OSError: It cannot be read.

        Cancel: nothing goes on.
        """
        await self.wait()
        if self._has_repeats or self._passed != list(segments[: len(self._passed)]):
            self._begin()
        with self._worker.held():
            while len(self._passed) < len(segments):
                pieces, _ = self._next(segments, lambda segment: segment.size)
                await self._worker.run(self._take, pieces)
        return Digest("sha256", self._hash.hexdigest())

    def _filled(self, segment: Segment) -> int:
        placed = None if segment.descriptor is None else self._placed.get(segment.descriptor.digest)
        return min(placed.position, segment.size) if placed is not None else 0

    def _next(self, segments: Sequence[Segment], filled: Callable[[Segment], int]) -> tuple[list[Piece], int]:
        """Return what comes next, and how many bytes that is."""
        pieces: list[Piece] = []
        size = 0
        while len(self._passed) < len(segments) and size < _MOST:
            segment = segments[len(self._passed)]
            if segment.data is not None:
                pieces.append(segment.data)
                size += segment.size
                self._passed.append(segment)
                continue
            step = min(filled(segment) - self._inside, _MOST - size)
            if step > 0:
                pieces.append((segment.offset + self._inside, step))
                size += step
                self._inside += step
            if self._inside < segment.size:
                break
            self._passed.append(segment)
            self._inside = 0
        return pieces, size

    def _take(self, pieces: Sequence[Piece]) -> None:
        with self._file as fd:
            for piece in pieces:
                if isinstance(piece, bytes):
                    self._hash.update(piece)
                else:
                    self._take_back(fd, *piece)

    def _take_back(self, fd: int, offset: int, size: int) -> None:
        while size:
            data = os.pread(fd, min(_PIECE, size), offset)
            if not data:
                raise SinkError(f"the file is shorter than what was written to it, at byte {offset}")
            self._hash.update(data)
            offset += len(data)
            size -= len(data)
