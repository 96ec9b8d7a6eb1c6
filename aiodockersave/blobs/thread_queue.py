"""Work that the loop hands to a thread, in order: single calls, or chunks that a thread takes a bounded number of bytes behind.

The thread does not wake the loop for each chunk: a wake-up takes a tenth of a millisecond, and there are thousands of chunks.
The loop waits only if the thread has a limit of bytes or more to take. The thread then wakes the loop once, when half of that
is left, or on an error.

Nothing here is a task: what is under way are blocking calls, which have ended when ``close()`` returns.
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
"""So many bytes are hashed on the loop, which takes less than handing them to a thread; the rest is not."""
BEHIND = 2 << 20
"""Bytes that a thread may have to take: several batches, so that neither side waits for the other at each of them."""


class Lane:
    """Makes calls in order: the first bytes at once, what comes after them in a thread."""

    def __init__(self, worker: Worker, *, inline: int | None = None) -> None:
        self._worker = worker
        self._held = ExitStack()
        self._inline = INLINE_SIZE if inline is None else inline
        self._is_held = False
        self._last: asyncio.Future[Any] | None = None

    def spend(self, cost: int) -> bool:
        """Tell whether work of ``cost`` bytes is done at once; from the first that is not, all goes to the thread."""
        if self._inline < cost:
            self._inline = -1
            return False
        self._inline -= cost
        return True

    def start(self, cost: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call that is worth ``cost`` bytes of hashing. Its future is waited for, here or in close()."""
        if self.spend(cost):
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            future.set_result(call(*args, **kwargs))
            return future
        return self.submit(call, *args, **kwargs)

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call in the thread; as :meth:`start`."""
        self._hold()
        self._last = future = self._worker.submit(call, *args, **kwargs)
        return future

    def post(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a call in the thread. The call must not raise, and has no future: to wait for its end, submit a later one."""
        self._hold()
        self._worker.post(call, *args, **kwargs)

    async def close(self) -> None:
        """Wait until no call runs; the thread ends. What a call raised is dropped with its result.

        Cancel: is raised when no call runs any more.
        """
        try:
            if self._last is not None and not self._last.done():
                with contextlib.suppress(Exception):
                    await wait_out(self._last)
        finally:
            self._held.close()
            if self._last is not None and self._last.done():  # it is not where this coroutine is closed
                self._last.exception()

    def abandon(self) -> None:
        """Let the thread end by itself, when the calls that it has are made."""
        self._held.close()
        if self._last is not None:
            forget(self._last)

    def _hold(self) -> None:
        if not self._is_held:
            self._is_held = True
            self._held.enter_context(self._worker.held())


class ThreadQueue:
    """Chunks on their way to a thread, which takes them in order.

    Args:
        take: Takes chunks; blocks.
        worker: The thread.
        least: Bytes that are worth handing over; fewer are gathered first. By default those of a batch.
        limit: Bytes that the thread may have to take before :meth:`room` waits; :data:`BEHIND` by default.
        inline: Bytes that are taken on the loop, before there is a thread; :data:`INLINE_SIZE` by default.
        stop: Lets a call of ``take`` end soon, when nothing of it is wanted any more.
    """

    # There is no lock: an interrupt between two lines could leave it locked. Each number is written by one side only.

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
        self._taken = 0  # by the thread
        self._expected: list[_Progress] = []
        self._error: BaseException | None = None  # what ``take`` has raised in the thread
        self._failure: str | None = None  # the same in words: the error holds frames that hold this object
        self._is_over = False

    async def room(self) -> None:
        """Wait until the thread has fewer bytes to take than the limit.

        Raises:
            BaseException: What ``take`` has raised.

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
        """Hand over a chunk; return the number of bytes that went with it: none where it is gathered.

        Raises:
            BaseException: What ``take`` raises, where it is called at once.
        """
        self._gathered.append(chunk)
        self._gathered_size += len(chunk)
        return self._hand_over() if self._gathered_size >= self._least else 0

    async def put(self, chunk: Batch) -> None:
        """Wait for room, and hand over a chunk.

        Cancel: the chunk is not taken.
        """
        await self.room()
        self.give(chunk)

    async def drain(self) -> int:
        """Hand over the rest, and wait until all is taken; return the number of bytes that were the rest.

        Raises:
            ClosedResourceError: It was closed, before or meanwhile.
            BaseException: What ``take`` has raised.

        Cancel: is raised when the thread has taken what it was given; a second call goes on.
        """
        rest = self._hand_over()
        if not self._has_taken_all():
            await wait_out(self._expect(self._has_taken_all))
        if self._error is not None:
            raise self._error
        if self._is_over:  # some were not taken
            from anyio import ClosedResourceError  # noqa: PLC0415 - `_aio` says why anyio is not loaded before

            raise ClosedResourceError("it was closed meanwhile")
        return rest

    async def close(self) -> None:
        """Wait until the thread takes nothing more; what waits is dropped, and so is what ``take`` raised.

        Cancel: is raised after that.
        """
        self._end()
        try:
            if not self._has_taken_all():
                await wait_out(self._expect(self._has_taken_all))
        finally:
            self._expected = []  # they hold this object
            self._lane.abandon()
            self._forget_error()

    def abandon(self) -> None:
        """Let the thread end what it does at the moment, and take nothing more."""
        self._end()
        self._lane.abandon()
        self._forget_error()

    def note_on(self, fault: BaseException) -> None:
        """Note on a cancel, or another fault, what ``take`` raised meanwhile; once it is closed."""
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
            self._given = given  # no thread can be started, or an interrupt came: nobody may wait for these
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
        """Return a future of what the thread makes true."""
        progress = _Progress(has_come, asyncio.get_running_loop())
        self._expected = [*(each for each in self._expected if not each.done()), progress]
        progress.catch_up()  # looked at after the thread can know that it is waited for
        return progress

    def _has_room(self) -> bool:
        """Tell whether it is worth going on: not for each chunk that was taken, but at once where one was not."""
        return self._given - self._taken <= self._limit // 2 or self._error is not None

    def _has_taken_all(self) -> bool:
        return self._taken >= self._given

    # ── in the thread ──

    def _take_in_thread(self, chunks: Sequence[Batch], size: int, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if not self._is_over and self._error is None:
                self._take(chunks)
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        finally:
            self._taken += size
        for progress in self._expected:
            if not progress.is_told and progress.has_come():
                progress.is_told = True
                with contextlib.suppress(
                    RuntimeError
                ):  # the loop was closed under us, so nobody waits any more
                    loop.call_soon_threadsafe(progress.catch_up)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _Progress(LateFuture[None]):
    """Something that the thread makes true.

    Attributes:
        has_come: Tells whether it has.
        is_told: Whether the thread has told the loop. That may be lost where a signal handler raises, so who waits looks again.
    """

    def __init__(self, has_come: Callable[[], bool], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.has_come = has_come
        self.is_told = False

    def catch_up(self) -> None:
        """Resolve it if it has come; on the loop."""
        if not self.done() and self.has_come():
            self.set_result(None)
