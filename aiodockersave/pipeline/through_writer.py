"""Saving into a stream: through a writer, in the order of the plan, with the next blobs read ahead.

::

    sizes known     blob ─▶ written
                    next ─▶ buffer in memory
    else, staged    blob ─▶ stage ─▶ written                 a stage is memory, then a file
                    next ─▶ stage ─▶ (its turn)

The order is held by **turns**: each step, a layer or an image, has one, which comes when the step before is done. A
layer that is staged waits for its turn at its end, any other before it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from aiodockersave._aio import close_all, run_together
from aiodockersave.blobs.blob_content import BlobContent
from aiodockersave.blobs.content import Batch
from aiodockersave.blobs.read_ahead import ReadAhead
from aiodockersave.core.first_bytes import is_like_a_layer
from aiodockersave.core.tar import BLOCK_SIZE

from .resolve import Prepared, PreparedImage, naming

if TYPE_CHECKING:
    from aiodockersave.archive.writer import ArchiveWriter
    from aiodockersave.core.model import Descriptor, Digest
    from aiodockersave.core.plan import Report

    from .progress import Meter
    from .tracker import Blob, Books

__all__ = ["stream_images"]

_BUFFER: Final = 8 << 20
"""Bytes of all blobs together that are read ahead."""
_STAGES: Final = 2
"""Layers that are staged at once: the one whose turn it is, and the next."""

Step = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Puts one thing into the archive, when the turn that it is given has come."""


async def stream_images(archive: ArchiveWriter, prepared: Prepared, books: Books, *, jobs: int) -> Report:
    """Put images into an archive, and close it; errors and cancel as :func:`~aiodockersave.save`.

    Args:
        archive: The writer, on any sink.
        prepared: The images.
        books: Their blobs.
        jobs: How many blobs are read at once; all but one of them ahead.
    """
    async with archive:
        books.begin()
        async with _Feeds() as feeds:
            await _Stream(archive, prepared, books, jobs, feeds).run()
    report, plan = archive.report, prepared.plan
    if report is None:
        raise AssertionError("the archive was left without being closed")
    if plan is not None and (report.size, report.members) != (plan.size, plan.members):
        raise AssertionError(f"the archive is not the planned one: {report.size} bytes, not {plan.size}")
    return report


class _Stream:
    """One save through a writer."""

    def __init__(
        self, archive: ArchiveWriter, prepared: Prepared, books: Books, jobs: int, opened: _Feeds
    ) -> None:
        self._archive = archive
        self._prepared = prepared
        self._books = books
        self._jobs = jobs
        self._opened = opened
        self._feeds: dict[Digest, _Feed] = {}
        self._unread = list(reversed(books.blobs))
        self._being_put = 0
        self._last_turn = asyncio.Event()
        self._last_turn.set()

    async def run(self) -> None:
        """Put everything in, in order."""
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
        content = _Layer(self._feed(blob), blob.layer, self._books.meter, turn, self._read_ahead)
        self._being_put += 1
        with naming(blob.image.request):
            await self._archive.put_layer(content.open, blob.layer, diff_id=blob.diff_id)
        self._being_put -= 1
        if self._prepared.plan is not None and not is_like_a_layer(bytes(content.head)):
            self._books.note_odd(blob)
        self._books.finished(blob.layer)

    async def _put_image(self, image: PreparedImage, turn: asyncio.Event) -> None:
        await turn.wait()
        tags = [str(tag) for tag in image.image.repo_tags]
        with naming(image.request):
            await self._archive.put_image(image.resolved.config, image.resolved.manifest, tags)

    def _feed(self, blob: Blob) -> _Feed:
        """Return the reader of a blob, which may be at it already."""
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
        """Open the next blobs, as many as may be ahead."""
        while self._unread and self._being_put + len(self._feeds) < self._jobs:
            blob = self._unread.pop()
            self._feeds[blob.layer.digest] = feed = self._new_feed(blob)
            feed.start()


class _Feed(ReadAhead):
    """A blob that is read ahead.

    Attributes:
        content: What is read.
    """

    def __init__(self, content: BlobContent, *, limit: int) -> None:
        super().__init__(content, limit=limit)
        self.content = content


class _Feeds(list[_Feed]):
    """The blobs that were opened. Leave it with ``async with``: then none is open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        for feed in self:
            feed.cancel()
        # Else the coroutine is being closed: nothing can be awaited any more.
        if not isinstance(fault, GeneratorExit):
            await close_all(feed.aclose for feed in self)


class _Layer:
    """A blob as content for a writer, which tells how far it was read, and waits for its turn at its end.

    Attributes:
        head: Its first bytes, as far as they were read.
    """

    def __init__(
        self,
        feed: _Feed,
        layer: Descriptor,
        meter: Meter,
        turn: asyncio.Event,
        began: Callable[[], None],
    ) -> None:
        self._feed = feed
        self._layer = layer
        self._meter = meter
        self._turn = turn
        self._began = began
        self._position = 0
        self._retries = 0
        self.head = bytearray()

    def open(self) -> Self:
        """Be the callable that a writer calls."""
        return self

    async def __aenter__(self) -> Self:
        self._feed.start()
        self._meter.started(self._layer)
        return self

    async def read(self, _: int) -> Batch:
        chunk = await self._feed.read()
        if not chunk:
            await self._turn.wait()
        elif not self._position:
            self._began()
        if len(self.head) < BLOCK_SIZE:
            self.head += chunk[: BLOCK_SIZE - len(self.head)]
        self._retries = self._meter.retried_since(self._layer, self._retries, self._feed.content.retries)
        self._position += len(chunk)
        self._meter.advanced(self._layer, self._position)
        return chunk

    async def __aexit__(self, *_: object) -> None:
        await self._feed.aclose()
