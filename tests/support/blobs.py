"""A source of blobs in memory that suspends wherever a real one would, and keeps what was asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass

from aiodockersave import Descriptor, Digest
from tests.support.images import Image
from tests.support.interruption import suspend, suspend_until_ready


@dataclass(frozen=True)
class Opening:
    """A request that a source got."""

    digest: Digest
    start: int
    stop: int | None


class FakeSource:
    """Blobs of images, in chunks.

    Attributes:
        openings: What was opened, in order.
        refused: How often a part was refused.
        given: How many bytes were given, by digest.
        open_now: How many blobs are open.
        most_open: How many were open at once.
        closed: How many were closed.
    """

    def __init__(
        self,
        images: Iterable[Image],
        *,
        chunk_size: int = 700,
        parts: bool = True,
        quick: bool = False,
        spoil: Mapping[Digest, Callable[[bytes], bytes]] | None = None,
        faults: Mapping[Digest, BaseException] | None = None,
    ) -> None:
        """Hold the blobs.

        Args:
            images: Whose layers they are.
            chunk_size: The size of a chunk, in bytes.
            parts: Whether a blob can be opened inside.
            quick: Never suspends.
            spoil: Changes what is given of a blob.
            faults: What is raised behind the last chunk of a blob.
        """
        self.openings: list[Opening] = []
        self.refused = 0
        self.given: dict[Digest, int] = {}
        self.open_now = 0
        self.most_open = 0
        self.closed = 0
        self._blobs = {layer.descriptor.digest: layer.blob for image in images for layer in image.layers}
        for digest, change in (spoil or {}).items():
            self._blobs[digest] = change(self._blobs[digest])
        self._faults = faults or {}
        self._chunk_size = chunk_size
        self._parts = parts
        self._quick = quick

    @contextlib.asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a blob, as the source protocol has it."""
        if not self._parts and (start or stop is not None):
            self.refused += 1
            raise NotImplementedError("gives blobs as a whole")
        self.openings.append(Opening(descriptor.digest, start, stop))
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            if not self._quick:
                await suspend_until_ready()
            yield self._chunks(descriptor.digest, start, stop)
        finally:
            try:
                if not self._quick:
                    await suspend()
            finally:
                self.open_now -= 1
                self.closed += 1

    async def _chunks(self, digest: Digest, start: int, stop: int | None) -> AsyncIterator[bytes]:
        data = self._blobs[digest][start:stop]
        for at in range(0, len(data), self._chunk_size):
            if not self._quick:
                await suspend()
            chunk = data[at : at + self._chunk_size]
            self.given[digest] = self.given.get(digest, 0) + len(chunk)
            yield chunk
        if digest in self._faults:
            raise self._faults[digest]

    @property
    def order(self) -> list[Digest]:
        """Return the digests of what was opened, in order."""
        return [opening.digest for opening in self.openings]
