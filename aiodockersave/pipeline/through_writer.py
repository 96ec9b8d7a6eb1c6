"""Write decompressed layers through an archive writer, image after image, with the next blobs read ahead.

::

    into a file       blob ─▶ plain tar, its header last
                      next ─▶ buffer in memory
    into a stream     blob ─▶ stage ─▶ plain tar             a stage is memory, then a file
                      next ─▶ stage ─▶ (its turn)

**Turns** keep the order. Each step, a layer or an image, has a turn, which comes when the step before is
done. A staged layer is read first and waits for its turn at its end; any other layer waits before it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from aiodockersave._aio import run_together
from aiodockersave.blobs.content import Batch, BlobContent
from aiodockersave.blobs.read_ahead import ReadAhead, close_together

from .resolve import Prepared, PreparedImage, naming

if TYPE_CHECKING:
    from aiodockersave.archive.writer import ArchiveWriter
    from aiodockersave.blobs.space import Space
    from aiodockersave.core.model import Descriptor, Digest
    from aiodockersave.core.plan import Report

    from .progress import Blob, Books, Meter

__all__ = ["stream_images"]

_BUFFER: Final = 8 << 20
"""Bytes to read ahead, of all blobs together; bounds the memory for them."""
_STAGES: Final = 2
"""Layers that are staged at once: the one whose turn it is, and the next."""

Step = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Puts one layer or image into the archive; waits for its turn, the given event."""


def check_space(space: Space, books: Books) -> None:
    """Check that there is room for the plain tars of all blobs, as far as that is known ahead. Blocks.

    Raises:
        InsufficientSpaceError: There is not enough room.
    """
    # A plain tar is smallest if deflate only stored it: 5 bytes more for each 65,535, and gzip's frame of 18.
    stored: dict[Digest, int] = {}
    again = 0  # for a second blob with the same plain tar: it is written, found to be in already, and rewound
    for blob in books.blobs:
        least = max(0, int(0.99 * (blob.layer.size or 0)) - 64)
        if blob.diff_id in stored:
            again = max(again, least)
        else:
            stored[blob.diff_id] = least
    space.check(sum(stored.values()) + again, space.look())


async def stream_images(
    archive: ArchiveWriter,
    prepared: Prepared,
    books: Books,
    *,
    jobs: int,
    read: Callable[[int], None] = lambda _: None,
    before_end: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> Report:
    """Put images into an archive, and close it; errors and cancel as :func:`~aiodockersave.save`.

    Args:
        archive: The writer, on any sink.
        prepared: The images.
        books: Their blobs.
        jobs: The number of blobs that are read at once; all but one of them are read ahead.
        read: Called with the number of bytes of each chunk that the writer takes.
        before_end: Awaited before the archive's end is written; an error of it ends the save, and the archive
            gets no end.
    """
    async with archive:
        books.begin()
        async with _Feeds() as feeds:
            await _Stream(archive, prepared, books, jobs, feeds, read).run()
        if before_end is not None:
            await before_end()
    if archive.report is None:
        raise AssertionError("the archive was left without being closed")
    return archive.report


class _Stream:
    """One save through a writer."""

    def __init__(
        self,
        archive: ArchiveWriter,
        prepared: Prepared,
        books: Books,
        jobs: int,
        opened: _Feeds,
        read: Callable[[int], None],
    ) -> None:
        self._archive = archive
        self._prepared = prepared
        self._books = books
        self._jobs = jobs
        self._opened = opened
        self._read = read
        self._feeds: dict[Digest, _Feed] = {}
        self._unread = list(reversed(books.blobs))
        self._being_put = 0
        self._last_turn = asyncio.Event()
        self._last_turn.set()

    async def run(self) -> None:
        """Put all layers and images into the archive, in order."""
        steps = iter(self._steps())

        async def run() -> None:
            for step in steps:
                turn, done = self._last_turn, asyncio.Event()
                self._last_turn = done
                await step(turn)
                done.set()

        is_staged = any(self._archive.stages(blob.layer) for blob in self._books.blobs)
        await run_together(*[run] * (min(_STAGES, self._jobs) if is_staged else 1))

    def _steps(self) -> list[Step]:
        steps: list[Step] = []
        for image in self._prepared.images:
            steps += [partial(self._put_layer, blob) for blob in self._books.blobs if blob.image is image]
            steps.append(partial(self._put_image, image))
        return steps

    async def _put_layer(self, blob: Blob, turn: asyncio.Event) -> None:
        if not self._archive.stages(blob.layer):
            await turn.wait()
        feed = self._feed(blob)
        content = _Layer(
            feed, self._opened, blob.layer, self._books.meter, turn, self._read_ahead, self._read
        )
        self._being_put += 1
        with naming(blob.image.request):
            await self._archive.put_layer(content.open, blob.layer, diff_id=blob.diff_id)
        self._being_put -= 1
        # Closed here, since the writer never opens a blob that it has already as another blob's plain tar.
        await feed.aclose()
        self._books.meter.started(blob.layer)
        self._books.finished(blob.layer)

    async def _put_image(self, image: PreparedImage, turn: asyncio.Event) -> None:
        await turn.wait()
        tags = [str(tag) for tag in image.image.repo_tags]
        with naming(image.request):
            await self._archive.put_image(
                image.resolved.config, image.resolved.manifest, tags, index=image.resolved.index
            )

    def _feed(self, blob: Blob) -> _Feed:
        """Return the reader of a blob; it may have been started to read ahead."""
        feed = self._feeds.pop(blob.layer.digest, None)
        if feed is None:
            self._unread.remove(blob)
            feed = self._new_feed(blob)
        return feed

    def _new_feed(self, blob: Blob) -> _Feed:
        content = BlobContent(blob.open, blob.layer)
        feed = _Feed(content, limit=_BUFFER // self._jobs)
        self._opened.append(feed)
        return feed

    def _read_ahead(self) -> None:
        """Start to read the next blobs, until ``jobs`` blobs are being read."""
        while self._unread and self._being_put + len(self._feeds) < self._jobs:
            blob = self._unread.pop()
            self._feeds[blob.layer.digest] = feed = self._new_feed(blob)
            feed.start()


class _Feed(ReadAhead):
    """A blob that is read ahead.

    Attributes:
        content: The blob's content, which counts its retries.
    """

    def __init__(self, content: BlobContent, *, limit: int) -> None:
        super().__init__(content, limit=limit)
        self.content = content


class _Feeds(list[_Feed]):
    """All blobs that were opened. The end of an ``async with`` block closes those that are still open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        if isinstance(fault, GeneratorExit):  # the coroutine is being closed: nothing can be awaited any more
            for feed in self:
                feed.cancel()
        else:
            await close_together(self)


class _Layer:
    """A blob as content for a writer; reports how much was read, and waits for its turn at its end."""

    def __init__(
        self,
        feed: _Feed,
        feeds: _Feeds,
        layer: Descriptor,
        meter: Meter,
        turn: asyncio.Event,
        began: Callable[[], None],
        read: Callable[[int], None],
    ) -> None:
        self._feed = feed
        self._feeds = feeds
        self._layer = layer
        self._meter = meter
        self._turn = turn
        self._began = began
        self._position = 0
        self._retries = 0
        self._read = read

    def open(self) -> Self:
        """Return the content itself, as the callable that a writer takes."""
        return self

    async def __aenter__(self) -> Self:
        self._feed.start()
        self._meter.started(self._layer)
        self._began()
        return self

    async def read(self, _: int) -> Batch:
        chunk = await self._feed.read()
        if not chunk:
            await self._turn.wait()
        self._retries = self._meter.retried_since(self._layer, self._retries, self._feed.content.retries)
        self._position += len(chunk)
        self._read(len(chunk))
        self._meter.advanced(self._layer, self._position)
        return chunk

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        # A cancel ends the whole save: all blobs are closed together, so that a second cancel reaches each.
        await close_together(self._feeds if isinstance(fault, asyncio.CancelledError) else [self._feed])
