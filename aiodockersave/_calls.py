"""A public call of a writer while it runs: who may interrupt it, and in which order its faults are dealt with.

The order after a fault is the point of this room: first what was written is taken back, then the content is told
the fault, so that a time-out it holds can turn its own cancel into ``TimeoutError``, and only then is decided
what the caller sees. A cancel of the caller comes first, then what the content raised, then the fault.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import Any, TypeVar

from ._aio import run_up_to_wait, running_task
from .content import OpenContent
from .errors import ContentError, WriterClosedError

T = TypeVar("T")


class Call:
    """One public call.

    Attributes:
        staging: Whether it receives content before its turn.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.staging = False
        self._task = task
        self._cancelling = task.cancelling()
        self._interruption: WriterClosedError | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether the task was cancelled since the call began, by whomever; a swallowed cancel counts."""
        return self._task.cancelling() > self._cancelling

    def interrupt(self, error: WriterClosedError) -> None:
        """Make the call raise ``error``, as ``asyncio.timeout`` makes its body raise ``TimeoutError``."""
        if self._interruption is None:
            self._interruption = error
            self._task.cancel()

    def end(self, exc: BaseException | None) -> None:
        """Take back the cancel of an interruption, and raise its error instead, unless others cancel too."""
        if self._interruption is None:
            return
        remaining = self._task.uncancel()
        if remaining <= self._cancelling and isinstance(exc, asyncio.CancelledError):
            raise self._interruption from exc

    async def settle(
        self,
        work: Callable[[], Awaitable[Callable[[], T]]],
        *,
        content: OpenContent,
        undo: Callable[[BaseException], Awaitable[None]] | None = None,
        closing: Iterable[Callable[[], Coroutine[Any, Any, None]]] = (),
    ) -> T:
        """Run ``work``, then the commit that it returns; where it fails, ``undo``. Then close ``content``.

        Args:
            work: Does everything that awaits.
            content: Is told of a fault, and closed.
            undo: Takes back what ``work`` has done, where something is to be. It is not interrupted, and does not raise.
            closing: What else has to be waited for.

        Raises:
            CancelledError: The task was cancelled, even where the content swallowed that.
            ContentError: The content cancelled itself, and said nothing more.
            BaseException: What the content raised, else the fault.
        """
        fault: BaseException | None = None
        raised: BaseException | None = None
        result: list[T] = []
        try:
            try:
                commit = await work()
                if self.is_cancelled:
                    raise asyncio.CancelledError
                result.append(commit())  # no await since the check
            except GeneratorExit:
                raise
            except BaseException as exc:  # noqa: BLE001 - raised below
                fault = exc
                if undo is not None:
                    await undo(exc)
            raised = await content.close(fault)
            for close in closing:
                try:
                    await close()
                except GeneratorExit:
                    raise
                except BaseException as exc:  # noqa: BLE001 - raised below
                    raised = raised or exc
            self._raise(fault, raised)
            return result[0]
        except GeneratorExit as exc:  # the coroutine is being closed: nothing can be awaited any more
            closers: list[Callable[[], Coroutine[Any, Any, object]]] = [partial(content.close, exc), *closing]
            for closer in closers:
                run_up_to_wait(closer())
            raise
        finally:
            del fault, raised  # they hold this frame

    def _raise(self, fault: BaseException | None, raised: BaseException | None) -> None:
        try:
            if self.is_cancelled:
                for cancel in (fault, raised):
                    if isinstance(cancel, asyncio.CancelledError):
                        raise cancel
                raise asyncio.CancelledError from raised or fault
            if raised is not None:
                raise raised
            if isinstance(fault, asyncio.CancelledError) and not self._task.cancelling():
                # Nobody cancelled the task. Raised as it is, it would end the task silently, and lose the layer.
                raise ContentError("the content cancelled its reader and gave no reason") from fault
            if fault is not None:
                raise fault
        finally:
            del fault, raised  # they hold this frame


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
        call = self._running[task] = Call(task)
        try:
            yield call
        except BaseException as exc:
            call.end(exc)
            raise
        else:
            call.end(None)
        finally:
            del self._running[task]
            if not self._running:
                self._wake()

    def check_entry(self) -> asyncio.Task[Any]:
        """Return the running task, which must not be in a call of this writer already."""
        task = running_task()
        if task in self._running:
            raise RuntimeError("a content must not call the writer that reads it")
        return task

    def interrupt(self, *, aborted: bool, only_staging: bool = False) -> None:
        """Make running calls raise :class:`WriterClosedError`."""
        for call in self._running.values():
            if call.staging or not only_staging:
                call.interrupt(WriterClosedError(aborted=aborted))

    async def wait(self) -> None:
        """Wait until none runs."""
        while self._running:
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    def _wake(self) -> None:
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()
