"""Run one public call of a writer: interrupt it, and handle its faults in a fixed order.

The idea to know first is the order after a fault. First, ``undo`` takes back the written bytes. Then the
fault is thrown into the content, so that a time-out inside the content can turn its own cancel into
``TimeoutError``. Only then does the call choose the error that the caller sees: a cancel of the caller comes
first, then the error that the content raised, then the fault. This module knows neither sink nor archive:
callers pass ``work`` and ``undo``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, TypeVar

from aiodockersave._aio import EXITS, LOOK_AGAIN, Closable, close_all, running_task, weightier
from aiodockersave.core.errors import ContentError, WriterError

from .content import OpenContent

T = TypeVar("T")

_COMMITS = 3
"""The most attempts at a commit: the first, one more if it is interrupted, and one in reserve."""


class Call:
    """One public call.

    Attributes:
        staging: Whether the call is receiving content before its turn.
        has_ended: Whether the call is over. An interrupt may have left a call that is over in the list.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.staging = False
        self.has_ended = False
        self._task = task
        self._cancelling = task.cancelling()
        self._interruption: WriterError | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether anybody has cancelled the task since the call began; a swallowed cancel counts."""
        return self._task.cancelling() > self._cancelling

    def interrupt(self, error: WriterError) -> None:
        """Make the call raise ``error``, as ``asyncio.timeout`` makes its body raise ``TimeoutError``."""
        if self._interruption is None:
            self._interruption = error
            self._task.cancel()

    def end(self, exc: BaseException | None) -> None:
        """Take back the cancel of an interruption, and raise its error instead, unless others cancel too."""
        self.has_ended = True
        if self._interruption is None:
            return
        remaining = self._task.uncancel()
        if remaining <= self._cancelling and isinstance(exc, asyncio.CancelledError):
            raise self._interruption from exc

    async def settle(
        self,
        work: Callable[[], Awaitable[Callable[[], T]]],
        *,
        content: OpenContent | None = None,
        undo: Callable[[BaseException], Awaitable[None]] | None = None,
        closing: Sequence[Closable] = (),
    ) -> T:
        """Run ``work``, then its commit; if ``work`` fails, run ``undo``. Then close ``content``.

        Args:
            work: Does everything that awaits. Running the commit that it returns a second time changes
                nothing.
            content: The content to close, if there is one; a fault is thrown into it.
            undo: Takes back the effects of ``work``, if there are any. It is not interrupted, and does not
                raise.
            closing: Other objects to close.

        Raises:
            CancelledError: The task was cancelled, even if the content swallowed the cancel.
            ContentError: The content cancelled itself, and gave no reason.
            BaseException: The error that the content raised, else the fault.
        """
        fault: BaseException | None = None
        raised: BaseException | None = None
        seen: BaseException | None = None
        result: list[T] = []
        is_closed = False
        content = content or OpenContent(b"")
        try:
            # 1. Run everything that awaits. A fault before its end takes everything back.
            try:
                commit = await work()
                if self.is_cancelled:
                    raise asyncio.CancelledError
            except GeneratorExit:
                raise
            except BaseException as exc:  # noqa: BLE001 - raised below
                fault = exc
                if undo is not None:
                    await undo(exc)
            else:
                # 2. Commit. Nothing was awaited since the check above; from here on nothing is taken back.
                raised = _roll_forward(commit, result)
            # 3. Throw the fault into the content, which may raise its own error.
            raised = weightier(await content.close(fault), raised)
            raised = await _close_rest(closing, raised)
            is_closed = True
            # 4. Raise the error that the caller sees, or return the result.
            seen = self._seen_of(fault, raised)
            if seen is not None:
                raise seen
            return result[0]
        except BaseException as exc:
            # The coroutine was closed, or an interrupt came between two lines: nothing may be awaited, so the
            # objects that are still open are abandoned and end by themselves.
            if not is_closed:
                content.abandon(exc)
                for each in closing:
                    each.abandon()
            raise
        finally:
            fault = raised = seen = None  # their tracebacks hold this frame: break the cycle

    def _seen_of(self, fault: BaseException | None, raised: BaseException | None) -> BaseException | None:
        """Return the error that the caller sees.

        An error that ends the loop comes first, then a cancel, then the error of closing, then the fault.
        """
        if (exit_ := _find(EXITS, raised, fault)) is not None:
            return exit_
        if self.is_cancelled:
            return _find(asyncio.CancelledError, fault, raised) or _caused(
                asyncio.CancelledError(), raised or fault
            )
        if raised is None and isinstance(fault, asyncio.CancelledError) and not self._task.cancelling():
            # Nobody cancelled the task. A bare CancelledError would end it silently, and lose the layer.
            return _caused(ContentError("the content cancelled its reader and gave no reason"), fault)
        return raised or fault


def _caused(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


def _find(
    kinds: type[BaseException] | tuple[type[BaseException], ...], *errors: BaseException | None
) -> BaseException | None:
    return next((error for error in errors if isinstance(error, kinds)), None)


async def _close_rest(closing: Sequence[Closable], raised: BaseException | None) -> BaseException | None:
    """Close the objects that a call has besides its content; return the first error."""
    try:
        await close_all(each.close for each in closing)
    except GeneratorExit:
        raise
    except BaseException as exc:  # noqa: BLE001 - given to the caller, who raises it
        return weightier(raised, exc)
    return raised


def _roll_forward(commit: Callable[[], T], result: list[T]) -> BaseException | None:
    """Run a commit to its end, and return the first exception that interrupted it.

    A signal handler may raise between any two lines, so an interrupted commit is run again.

    Raises:
        BaseException: Every attempt failed, and the commit is half done.
    """
    interrupt: BaseException | None = None
    for attempt in range(_COMMITS):
        try:
            result.append(commit())
            break
        except BaseException as exc:
            if attempt == _COMMITS - 1:
                raise
            interrupt = interrupt or exc
    return interrupt


class Calls:
    """The running public calls of one writer."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], Call] = {}
        self._idle: list[asyncio.Future[None]] = []

    @contextlib.contextmanager
    def enter(self) -> Generator[Call, None, None]:
        """Register one call while the block runs.

        Raises:
            EventLoopError: The caller does not run under asyncio.
            RuntimeError: The content of a call calls the writer that reads it; the writer would wait for
                itself.
        """
        task = self.check_entry()
        call = Call(task)
        try:
            self._running[task] = call
            yield call
        except BaseException as exc:
            call.end(exc)
            raise
        else:
            call.end(None)
        finally:
            self._running.pop(task, None)
            if not self._running:
                self._wake()

    def check_entry(self) -> asyncio.Task[Any]:
        """Return the running task; raise RuntimeError if it is in a call of this writer already."""
        task = running_task()
        call = self._running.get(task)
        if call is not None and not call.has_ended:
            raise RuntimeError("a content must not call the writer that reads it")
        return task

    def interrupt(self, error: Callable[[], WriterError], *, only_staging: bool = False) -> None:
        """Make the running calls raise an error; with ``only_staging`` only those that are staging."""
        for call in self._running.values():
            if not call.has_ended and (call.staging or not only_staging):
                call.interrupt(error())

    async def wait(self) -> None:
        """Wait until no call runs.

        Cancel: the wait ends; the calls keep running.
        """
        # Look again after each LOOK_AGAIN: an interrupt may have kept the last call from waking the waiters.
        while any(not (call.has_ended or task.done()) for task, call in self._running.items()):
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await asyncio.wait([idle], timeout=LOOK_AGAIN)
            idle.cancel()

    def _wake(self) -> None:
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()
