"""A public call of a writer while it runs: who may interrupt it, and in which order its faults are dealt with.

The order after a fault is the point of this room: first what was written is taken back, then the content is told
the fault, so that a time-out it holds can turn its own cancel into ``TimeoutError``, and only then is decided
what the caller sees. A cancel of the caller comes first, then what the content raised, then the fault.
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
"""Times that a commit is begun: once, once more if it is interrupted, and once more for bad luck."""


class Call:
    """One public call.

    Attributes:
        staging: Whether it receives content before its turn.
        has_ended: Whether it is over, though an interrupt may have kept it from being struck off.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.staging = False
        self.has_ended = False
        self._task = task
        self._cancelling = task.cancelling()
        self._interruption: WriterError | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled since the call began, by whomever; a swallowed cancel counts."""
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
        """Run ``work``, then the commit that it returns; where it fails, ``undo``. Then close ``content``.

        Args:
            work: Does everything that awaits. The commit that it returns changes nothing if it is run once more.
            content: Is told of a fault, and closed, where there is one.
            undo: Takes back what ``work`` has done, where something is to be. It is not interrupted, and does not raise.
            closing: What else has to be waited for.

        Raises:
            CancelledError: The task was cancelled, even where the content swallowed that.
            ContentError: The content cancelled itself, and said nothing more.
            BaseException: What the content raised, else the fault.
        """
        fault: BaseException | None = None
        raised: BaseException | None = None
        seen: BaseException | None = None
        result: list[T] = []
        is_closed = False
        content = content or OpenContent(b"")
        try:
            # 1. All that awaits. Until its end a fault takes everything back.
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
                # 2. No await since the check, and no way back from here on.
                raised = _roll_forward(commit, result)
            # 3. The content is told the fault, and may have one of its own.
            raised = weightier(await content.close(fault), raised)
            raised = await _close_rest(closing, raised)
            is_closed = True
            # 4. What the caller sees.
            seen = self._seen_of(fault, raised)
            if seen is not None:
                raise seen
            return result[0]
        except BaseException as exc:
            # The coroutine is closed, or an interrupt came between two lines: what is not closed by now ends by itself.
            if not is_closed:
                content.abandon(exc)
                for each in closing:
                    each.abandon()
            raise
        finally:
            fault = raised = seen = None  # they hold this frame

    def _seen_of(self, fault: BaseException | None, raised: BaseException | None) -> BaseException | None:
        """Return what the caller sees: what ends the loop, else a cancel, else what closing raised, else the fault."""
        if (exit_ := _find(EXITS, raised, fault)) is not None:
            return exit_
        if self.is_cancelled:
            return _find(asyncio.CancelledError, fault, raised) or _caused(
                asyncio.CancelledError(), raised or fault
            )
        if raised is None and isinstance(fault, asyncio.CancelledError) and not self._task.cancelling():
            # Nobody cancelled the task. Raised as it is, it would end the task silently, and lose the layer.
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
    """Close what a call has besides its content; return what was raised first."""
    try:
        await close_all(each.close for each in closing)
    except GeneratorExit:
        raise
    except BaseException as exc:  # noqa: BLE001 - given to the caller, who raises it
        return weightier(raised, exc)
    return raised


def _roll_forward(commit: Callable[[], T], result: list[T]) -> BaseException | None:
    """Run a commit to its end, and return what interrupted it meanwhile: a signal handler may raise between any two lines.

    Raises:
        BaseException: It fails each time, and is done by half.
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
    """The public calls of one writer that run now."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], Call] = {}
        self._idle: list[asyncio.Future[None]] = []

    @contextlib.contextmanager
    def enter(self) -> Generator[Call, None, None]:
        """Run one call.

        Raises:
            EventLoopError: Not under asyncio.
            RuntimeError: The content of a call calls the writer that reads it, which would wait for itself.
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
        """Return the running task, which must not be in a call of this writer already."""
        task = running_task()
        call = self._running.get(task)
        if call is not None and not call.has_ended:
            raise RuntimeError("a content must not call the writer that reads it")
        return task

    def interrupt(self, error: Callable[[], WriterError], *, only_staging: bool = False) -> None:
        """Make running calls raise an error."""
        for call in self._running.values():
            if not call.has_ended and (call.staging or not only_staging):
                call.interrupt(error())

    async def wait(self) -> None:
        """Wait until none runs.

        Cancel: the wait ends; the calls go on.
        """
        # Again and again: an interrupt between two lines may have kept the last call from waking anybody.
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
