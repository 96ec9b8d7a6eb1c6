"""Reading a blob into its place: from a source on the loop, to a thread that hashes and writes.

::

    source ──chunks──▶ batches ──▶ thread: placement.take ──▶ … ──▶ placement.finish
             loop                  one batch runs, some wait

The loop only moves bytes on. Everything of a blob is over when :func:`fill` has returned or raised: its connection is
closed, and no thread works for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from ._aio import Fairness, Worker, running_task, wait_out
from ._calls import Call
from .blob_content import BlobContent, OpenBlob
from .errors import SizeMismatchError

if TYPE_CHECKING:
    import asyncio

    from .content import Batch
    from .model import Descriptor
    from .placing import Placement
    from .progress import Meter

__all__ = ["fetch", "fill"]

BATCH_SIZE: Final = 1 << 19
"""Bytes that are worth a hop to a thread."""
_DEPTH: Final = 3
"""Batches that a thread has been given: one runs, the others wait."""


async def fill(
    placement: Placement,
    open_blob: OpenBlob,
    layer: Descriptor,
    *,
    worker: Worker,
    meter: Meter,
    start: int = 0,
    written: Callable[[int], None] = lambda _: None,
) -> int:
    """Read a blob into its place, and verify it.

    Args:
        placement: Takes the bytes, in the thread of ``worker``.
        open_blob: Opens the blob, as a source's method does.
        layer: The blob, with its size.
        worker: The thread.
        meter: Is told how far it is.
        start: How many bytes the placement has already.
        written: Is called with a number of bytes that the thread was given.

    Returns:
        What ``placement.finish`` returns.

    Raises:
        ContentError: The blob is not what was promised.
        BaseException: What the source or the placement raises.
    """
    content = BlobContent(open_blob, layer, start=start)
    feeder = _Feeder(placement, worker, written)

    async def work() -> Callable[[], int]:
        await content.open()
        await _pass_on(content, feeder.feed, layer, start, meter)
        stored = await feeder.finish()
        return lambda: stored

    return await Call(running_task()).settle(work, content=content, closing=[feeder.close])


async def fetch(open_blob: OpenBlob, layer: Descriptor, *, meter: Meter) -> Sequence[Batch]:
    """Read a blob into memory; its digest is not verified yet. Arguments, errors and cancel as :func:`fill`."""
    content = BlobContent(open_blob, layer)
    received: list[Batch] = []

    async def keep(batch: Sequence[Batch], _: int) -> None:
        received.extend(batch)

    async def work() -> Callable[[], Sequence[Batch]]:
        await content.open()
        await _pass_on(content, keep, layer, 0, meter)
        return lambda: received

    return await Call(running_task()).settle(work, content=content)


async def _pass_on(
    content: BlobContent,
    feed: Callable[[Sequence[Batch], int], Coroutine[Any, Any, None]],
    layer: Descriptor,
    start: int,
    meter: Meter,
) -> None:
    fairness = Fairness()
    position = start
    retries = 0
    batch: list[Batch] = []
    size = 0
    while chunk := await content.read():
        position += len(chunk)
        retries = meter.retried_since(layer, retries, content.retries)
        _check_size(layer, position, at_end=False)
        batch.append(chunk)
        size += len(chunk)
        if size >= BATCH_SIZE:
            await feed(batch, size)
            batch, size = [], 0
            meter.advanced(layer, position)
        await fairness.passed(len(chunk))
    _check_size(layer, position, at_end=True)
    if batch:
        await feed(batch, size)


def _check_size(layer: Descriptor, position: int, *, at_end: bool) -> None:
    size = layer.size or 0
    if position > size or (at_end and position < size):
        raise SizeMismatchError(size, position, what=f"blob {layer.digest}")


class _Feeder:
    """Gives batches to a placement, in a thread, and waits while it has enough."""

    def __init__(self, placement: Placement, worker: Worker, written: Callable[[int], None]) -> None:
        self._placement = placement
        self._worker = worker
        self._written = written
        self._given: deque[asyncio.Future[None]] = deque()
        self._has_failed = False

    async def feed(self, batch: Sequence[Batch], size: int) -> None:
        """Take a batch; waits while the thread has enough. Raises what an earlier one raised."""
        while len(self._given) >= _DEPTH:
            await self._wait_for_one()
        self._given.append(self._worker.submit(self._take, batch))
        self._written(size)

    async def finish(self) -> int:
        """Wait for all batches, and verify."""
        while self._given:
            await self._wait_for_one()
        return await self._worker.run(self._placement.finish)

    async def close(self) -> None:
        """Wait until the thread does nothing more for the placement."""
        self._placement.stop()
        self._has_failed = True  # what waits is not begun
        try:
            await self._worker.run_always(self._placement.close)  # behind all that was given
        finally:
            for future in self._given:
                if future.done():  # it is not where this coroutine is closed
                    future.exception()

    async def _wait_for_one(self) -> None:
        future = self._given[0]
        try:
            await wait_out(future)
        finally:
            if future.done():
                self._given.popleft()

    def _take(self, batch: Sequence[Batch]) -> None:
        if self._has_failed:
            return
        try:
            self._placement.take(batch)
        except BaseException:
            self._has_failed = True
            raise
