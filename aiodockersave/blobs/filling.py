"""Reading a blob into its place: from a source on the loop, to a thread that hashes and writes.

::

    source ──chunks──▶ batches ──▶ thread: placement.take ──▶ … ──▶ placement.finish
             loop                  one batch runs, some wait

The loop only moves bytes on. It is not told of each batch while there are others, only where it waits: waking it takes a
tenth of a millisecond, and there are thousands. Everything of a blob is over when :func:`fill` has returned or raised: its
connection is closed, and no thread works for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiodockersave._aio import Fairness, Worker, forget, running_task, wait_out
from aiodockersave.core.errors import SizeMismatchError

from .calls import Call
from .content import BlobContent, OpenBlob

if TYPE_CHECKING:
    from aiodockersave.core.model import Descriptor

    from .content import Batch
    from .placing import Placement

__all__ = ["Meter", "fill"]

BATCH_SIZE: Final = 1 << 18
"""Bytes that are worth a hop to a thread."""
_LEAST_BATCH: Final = 1 << 17
_BATCHES: Final = 64
"""The number of batches that a blob is cut into at least, as long as they are no smaller than that."""
_GIVEN: Final = 8
"""Batches that the threads of all blobs have been given: one of each runs, the others wait."""
_LEAST_GIVEN: Final = 2
"""The batches that the thread of each blob may have been given, however many blobs there are."""


class Meter(Protocol):
    """Counts how much of each blob was received."""

    def advanced(self, layer: Descriptor, done: int, /) -> None:
        """Count that the first ``done`` bytes of a blob were received."""

    def retried_since(self, layer: Descriptor, before: int, now: int, /) -> int:
        """Count the retries of a source beyond ``before``; return ``now``."""
        ...


async def fill(
    placement: Placement,
    open_blob: OpenBlob,
    layer: Descriptor,
    *,
    worker: Worker,
    meter: Meter,
    readers: int = 1,
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
        readers: How many blobs are read at once: what may wait in memory is shared by them.
        start: How many bytes the placement has already.
        written: Is called with a number of bytes that the thread was given.

    Returns:
        What ``placement.finish`` returns.

    Raises:
        ContentError: The blob is not what was promised.
        BaseException: What the source or the placement raises.

    Cancel: nothing goes on; what was taken until then is in its place, and nothing of it is verified.
    """
    content = BlobContent(open_blob, layer, start=start)
    feeder = _Feeder(placement, worker, max(_LEAST_GIVEN, _GIVEN // readers), written)

    async def work() -> Callable[[], int]:
        await content.open()
        await _pass_on(content, feeder.feed, layer, start, meter)
        stored = await feeder.finish()
        return lambda: stored

    try:
        return await Call(running_task()).settle(work, content=content, closing=[feeder])
    except asyncio.CancelledError as exc:
        feeder.note_on(exc)
        raise


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
    enough = min(BATCH_SIZE, max(_LEAST_BATCH, (layer.size or 0) // _BATCHES))
    while chunk := await content.read():
        position += len(chunk)
        retries = meter.retried_since(layer, retries, content.retries)
        _check_size(layer, position, at_end=False)
        batch.append(chunk)
        size += len(chunk)
        if size >= enough:
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
    """Gives batches to a placement, in a thread, and waits while that has enough.

    Args:
        placement: Takes them.
        worker: The thread.
        limit: How many batches it may have.
        written: Is called with a number of bytes that it was given.
    """

    def __init__(
        self, placement: Placement, worker: Worker, limit: int, written: Callable[[int], None]
    ) -> None:
        self._placement = placement
        self._worker = worker
        self._limit = limit
        self._written = written
        self._lock = threading.Lock()  # for the next two
        self._batches: deque[Sequence[Batch]] = deque()
        self._is_taking = False
        self._calls: deque[asyncio.Future[None]] = deque()
        self._given = 0
        self._taken = 0  # counted by the thread
        self._room: asyncio.Future[None] | None = None  # what is waited for
        self._let_in: asyncio.Future[None] | None = None  # by the thread, last
        self._has_failed = False
        self._failure: str | None = None
        self._is_given_up = False

    async def feed(self, batch: Sequence[Batch], size: int) -> None:
        """Take a batch; waits while the thread has enough. Raises what an earlier one raised."""
        if self._given - self._taken >= self._limit:
            self._room = asyncio.get_running_loop().create_future()
            # Looked at after the thread can know that it is waited for.
            if not (self._has_room() or self._has_failed):
                await self._room
        if self._has_failed:
            await self._wait_for_calls()
        self._given += 1
        with self._lock:
            self._batches.append(batch)
            is_taking, self._is_taking = self._is_taking, True
        if not is_taking:
            while self._calls and self._calls[0].done():  # behind one that failed, none is begun
                self._calls.popleft()
            self._calls.append(self._worker.submit(self._take, asyncio.get_running_loop()))
        self._written(size)

    async def finish(self) -> int:
        """Wait for all batches, and verify."""
        await self._wait_for_calls()
        return await self._worker.run(self._placement.finish)

    async def close(self) -> None:
        """Wait until the thread does nothing more for the placement."""
        self._placement.stop()
        self._is_given_up = True
        try:
            await self._worker.run_always(self._placement.close)  # behind all that was given
        finally:
            for call in self._calls:
                if call.done() and (error := call.exception()):  # not done where this coroutine is closed
                    self._failure = f"while cancelled: {type(error).__name__}: {error}"
            self._calls.clear()  # an error that is there holds this object
            self._batches.clear()

    def abandon(self) -> None:
        """Let the thread drop what it has for the placement; what it does at the moment it ends."""
        self._placement.stop()
        self._is_given_up = True
        self._worker.leave(self._placement.close)
        for call in self._calls:
            forget(call)

    def note_on(self, cancelled: asyncio.CancelledError) -> None:
        """Note on a cancel what the thread raised meanwhile, unless it was waited for, which has noted it."""
        if self._failure is not None:
            cancelled.add_note(self._failure)

    async def _wait_for_calls(self) -> None:
        while self._calls:
            await wait_out(self._calls.popleft())

    def _has_room(self) -> bool:
        """Tell whether it is worth going on: not for each batch that was taken."""
        return self._given - self._taken <= self._limit // 2

    # ── in the thread ──

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what waits, until nothing does."""
        while (batch := self._next()) is not None:
            try:
                if not self._is_given_up:
                    self._placement.take(batch)
            except BaseException:
                self._has_failed = True
                raise
            finally:
                del batch  # its bytes must not live on while the next one is looked for
                self._taken += 1
                self._tell(loop)

    def _next(self) -> Sequence[Batch] | None:
        with self._lock:
            if self._batches:
                return self._batches.popleft()
            self._is_taking = False
            return None

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        room = self._room
        if room is not None and room is not self._let_in and (self._has_room() or self._has_failed):
            self._let_in = room
            with contextlib.suppress(RuntimeError):  # the loop was closed under us, so nobody waits any more
                loop.call_soon_threadsafe(_let_in, room)


def _let_in(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
