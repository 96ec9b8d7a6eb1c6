"""A source of whole images in memory, which starts inside blobs, and keeps what was asked of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from aiodockersave import Descriptor, Digest, ImageManifest, ImageRequest, Platform, ResolvedImage
from tests.support.images import Image


class StoreFailedError(Exception):
    """The error of a store that was told to fail."""


class Store:
    """Images by name; only what it is told to be is out of the ordinary.

    Attributes:
        images: What it has, by reference.
        blobs: The bytes of their layers.
        chunk_size: Bytes that are given at once.
        starts_inside: Whether a blob can be had without its beginning.
        fails_at: Behind so many bytes of a blob an error is raised; -1 for when it is opened.
        on_chunk: Is awaited before each chunk, with the blob and the position.
        openings: What was opened, in order: the blob, and where it was started.
        given: How many bytes of a blob were given.
        open_now: How many blobs are open.
        most_open: How many were open at once.
    """

    def __init__(self, images: Mapping[str, Image], *, chunk_size: int = 300) -> None:
        self.images = dict(images)
        self.blobs = {
            layer.descriptor.digest: layer.blob for image in images.values() for layer in image.layers
        }
        self.chunk_size = chunk_size
        self.starts_inside = True
        self.fails_at: dict[Digest, int] = {}
        self.on_chunk: Callable[[Digest, int], object] | None = None
        self.openings: list[tuple[Digest, int]] = []
        self.given: Counter[Digest] = Counter()
        self.open_now = 0
        self.most_open = 0

    def requests(self, *names: str) -> list[ImageRequest]:
        """Ask for images, all of them if none is named, with the tags that they were made with."""
        return [ImageRequest(self, name, self.images[name].repo_tags) for name in names or self.images]

    @property
    def size(self) -> int:
        """The bytes of all blobs."""
        return sum(map(len, self.blobs.values()))

    async def resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        """Find an image."""
        await asyncio.sleep(0)
        image = self.images[reference]
        return ResolvedImage(reference, image.manifest, image.config)

    @contextlib.asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a blob."""
        if not self.starts_inside and (start or stop is not None):
            raise NotImplementedError("gives blobs as a whole")
        self.openings.append((descriptor.digest, start))
        if self.fails_at.get(descriptor.digest) == -1:
            raise StoreFailedError
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await asyncio.sleep(0)
            yield self._chunks(descriptor.digest, start)
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self.open_now -= 1

    async def _chunks(self, digest: Digest, start: int) -> AsyncIterator[bytes]:
        blob = self.blobs[digest]
        stop = self.fails_at.get(digest, len(blob))
        for position in range(start, stop, self.chunk_size):
            waiting = self.on_chunk and self.on_chunk(digest, position)
            if asyncio.iscoroutine(waiting):
                await waiting
            else:
                await asyncio.sleep(0)
            chunk = blob[position : min(stop, position + self.chunk_size)]
            self.given[digest] += len(chunk)
            yield chunk
        if digest in self.fails_at:
            raise StoreFailedError


class EarlyStore(Store):
    """A store that tells an image's manifest before its config is there.

    Attributes:
        rounds: How often the loop turns while the config is on the way.
        config_error: Is raised in the place of the config.
        asked_early: The blobs that were opened by then, in order.
        given_early: How many bytes of them were given by then.
    """

    def __init__(self, images: Mapping[str, Image], *, chunk_size: int = 300, rounds: int = 10) -> None:
        super().__init__(images, chunk_size=chunk_size)
        self.rounds = rounds
        self.config_error: BaseException | None = None
        self.asked_early: list[Digest] = []
        self.given_early = 0

    async def resolve_early(
        self, reference: str, platform: Platform, found: Callable[[ImageManifest], None]
    ) -> ResolvedImage:
        """Find an image."""
        await asyncio.sleep(0)
        found(self.images[reference].manifest)
        for _ in range(self.rounds):
            await asyncio.sleep(0)
        self.asked_early = [digest for digest, _ in self.openings]
        self.given_early = self.given.total()
        if self.config_error is not None:
            raise self.config_error
        return await self.resolve(reference, platform)
