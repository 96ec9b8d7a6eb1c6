"""Hand work from the loop to a thread, in order: single calls, or chunks in a bounded queue.

The idea to know first: the thread does not wake the loop for each chunk, since a wake-up takes a tenth of a
millisecond and there are thousands of chunks. The loop waits only if the bytes in the queue have reached a
limit. The thread then wakes the loop once, when half of the limit is left, or on an error.

This module starts no tasks, only blocking calls, which have ended when ``close()`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar

from aiodockersave._aio import LateFuture, Worker, done_or_later, forget, wait_out

from . import content as _content
from .content import Batch

__all__ = ["BEHIND", "INLINE_SIZE", "Lane", "ThreadQueue"]

P = ParamSpec("P")
T = TypeVar("T")

INLINE_SIZE = 256 << 10
"""The number of first bytes to hash on the loop, which takes less time than handing them to a thread."""
BEHIND = 2 << 20
"""The bytes that may wait for a thread: several batches, so that neither side waits for the other at each."""


class Lane:
    """Make calls in order: on the loop up to a number of bytes, then in a thread."""

    def __init__(self, worker: Worker, *, inline: int | None = None) -> None:
        self._worker = worker
        self._held = ExitStack()
        self._inline = INLINE_SIZE if inline is None else inline
        self._is_held = False
        self._last: asyncio.Future[Any] | None = None

    def spend(self, cost: int) -> bool:
        """Return whether to do work of ``cost`` bytes on the loop; after one False, always return False."""
        if self._inline < cost:
            self._inline = -1
            return False
        self._inline -= cost
        return True

    def start(self, cost: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call that takes as long as hashing ``cost`` bytes; await its future, or :meth:`close`."""
        if self.spend(cost):
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            future.set_result(call(*args, **kwargs))
            return future
        return self.submit(call, *args, **kwargs)

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call in the thread; await its future, or :meth:`close`."""
        self._hold()
        self._last = future = self._worker.submit(call, *args, **kwargs)
        return future

    def post(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a call in the thread, without a future; the call must not raise.

        To wait for its end, submit another call after it.
        """
        self._hold()
        self._worker.post(call, *args, **kwargs)

    async def close(self) -> None:
        """Wait until no call runs, and let the thread end. Results and errors of the calls are dropped.

        Cancel: is raised when no call runs any more.
        """
        try:
            if self._last is not None and not self._last.done():
                with contextlib.suppress(Exception):
                    await wait_out(self._last)
        finally:
            self._held.close()
            if self._last is not None and self._last.done():  # not if this coroutine is being closed
                self._last.exception()

    def abandon(self) -> None:
        """Let the thread end by itself, after the calls that it already has."""
        self._held.close()
        if self._last is not None:
            forget(self._last)

    def _hold(self) -> None:
        if not self._is_held:
            self._is_held = True
            self._held.enter_context(self._worker.held())


class ThreadQueue:
    """Queue chunks for a thread, which takes them in order.

    Args:
        take: Takes chunks; blocks.
        worker: The thread.
        least: The bytes to gather before they are handed over; a batch by default.
        limit: The bytes in the queue at which :meth:`room` waits; :data:`BEHIND` by default.
        inline: The first bytes, which ``take`` gets on the loop; :data:`INLINE_SIZE` by default.
        stop: Makes a running call of ``take`` end soon, once its result is not wanted any more.
    """

    # There is no lock: an interrupt between two lines could leave it locked. Each number has one writer.

    def __init__(
        self,
        take: Callable[[Sequence[Batch]], object],
        worker: Worker,
        *,
        least: int | None = None,
        limit: int | None = None,
        inline: int | None = None,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._take = take
        self._stop = stop
        self._least = _content.BATCH_SIZE if least is None else least
        self._limit = BEHIND if limit is None else limit
        self._lane = Lane(worker, inline=inline)
        self._gathered: list[Batch] = []
        self._gathered_size = 0
        self._given = 0
        self._taken = 0  # written by the thread
        self._expected: list[_Progress] = []
        self._error: BaseException | None = None  # raised by ``take`` in the thread
        self._failure: str | None = None  # its text: the error itself holds frames that hold this object
        self._is_over = False

    async def room(self) -> None:
        """Wait until fewer bytes than the limit are in the queue.

        Raises:
            BaseException: The error of ``take``.

        Cancel: nothing is lost.
        """
        if self._given - self._taken >= self._limit:
            progress = self._expect(self._has_room)
            while not progress.done():
                await done_or_later(progress)
                progress.catch_up()
        if self._error is not None:
            raise self._error

    def give(self, chunk: Batch) -> int:
        """Gather a chunk; hand over the gathered chunks once they are enough. Return the bytes handed over.

        Raises:
            BaseException: The error of ``take``, if it is called on the loop.
        """
        self._gathered.append(chunk)
        self._gathered_size += len(chunk)
        return self._hand_over() if self._gathered_size >= self._least else 0

    async def put(self, chunk: Batch) -> None:
        """Wait for room, then :meth:`give` a chunk.

        Cancel: the chunk is not taken.
        """
        await self.room()
        self.give(chunk)

    async def drain(self) -> int:
        """Hand over the gathered chunks, and wait until all are taken; return the bytes handed over.

        Raises:
            ClosedResourceError: The queue was closed, before or during the call.
            BaseException: The error of ``take``.

        Cancel: is raised when the thread has taken the chunks that it was given; a second call resumes.
        """
        rest = self._hand_over()
        if not self._has_taken_all():
            await wait_out(self._expect(self._has_taken_all))
        if self._error is not None:
            raise self._error
        if self._is_over:  # the thread skipped some chunks
            from anyio import ClosedResourceError  # noqa: PLC0415 - `_aio` says why anyio is not loaded before

            raise ClosedResourceError("it was closed meanwhile")
        return rest

    async def close(self) -> None:
        """Wait until the thread takes nothing more; drop the waiting chunks and the error of ``take``.

        Cancel: is raised after that.
        """
        self._end()
        try:
            if not self._has_taken_all():
                await wait_out(self._expect(self._has_taken_all))
        finally:
            self._expected = []  # these futures hold this object
            self._lane.abandon()
            self._forget_error()

    def abandon(self) -> None:
        """Let the thread finish its running call, and take nothing more."""
        self._end()
        self._lane.abandon()
        self._forget_error()

    def note_on(self, fault: BaseException) -> None:
        """Add the error of ``take`` to a cancel or another fault as a note; call it after closing."""
        if self._failure not in (None, _in_words(fault)):
            when = "while cancelled" if isinstance(fault, asyncio.CancelledError) else "meanwhile"
            fault.add_note(f"{when}: {self._failure}")

    def _hand_over(self) -> int:
        size, chunks = self._gathered_size, self._gathered
        self._gathered, self._gathered_size = [], 0
        if not chunks:
            return 0
        if self._lane.spend(size):
            self._take(chunks)
            return size
        given = self._given
        try:
            self._given = given + size
            self._lane.post(self._take_in_thread, chunks, size, asyncio.get_running_loop())
        except BaseException:
            self._given = given  # no thread can start, or an interrupt came: nobody may wait for these chunks
            raise
        return size

    def _end(self) -> None:
        self._is_over = True
        self._gathered = []
        self._stop()

    def _forget_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self._failure = _in_words(error)

    def _expect(self, has_come: Callable[[], bool]) -> _Progress:
        """Return a future that resolves when the thread has made ``has_come`` true."""
        progress = _Progress(has_come, asyncio.get_running_loop())
        self._expected = [*(each for each in self._expected if not each.done()), progress]
        progress.catch_up()  # check after adding it to the list, or a change in between would be missed
        return progress

    def _has_room(self) -> bool:
        """Return whether to wake the loop: when half of the limit is free, or at once on an error."""
        return self._given - self._taken <= self._limit // 2 or self._error is not None

    def _has_taken_all(self) -> bool:
        return self._taken >= self._given

    # ── in the thread ──

    def _take_in_thread(self, chunks: Sequence[Batch], size: int, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if not self._is_over and self._error is None:
                self._take(chunks)
        except BaseException as exc:  # noqa: BLE001 - room and drain raise it
            self._error = exc
        finally:
            self._taken += size
        for progress in self._expected:
            if not progress.is_told and progress.has_come():
                progress.is_told = True
                with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                    loop.call_soon_threadsafe(progress.catch_up)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _Progress(LateFuture[None]):
    """A future of a condition that the thread makes true.

    Attributes:
        has_come: Returns whether the condition is true.
        is_told: Whether the thread has told the loop. A signal handler that raises may lose that call, so the
            waiting side checks the condition again.
    """

    def __init__(self, has_come: Callable[[], bool], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.has_come = has_come
        self.is_told = False

    def catch_up(self) -> None:
        """Resolve the future if its condition is true; call it on the loop."""
        if not self.done() and self.has_come():
            self.set_result(None)
