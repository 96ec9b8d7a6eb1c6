"""Interrupt a coroutine at its n-th suspension, in every way that asyncio and anyio have.

::

    driver = Driver(at=17)                       # and twice=True for a second cancel at the next suspension
    await asyncio.create_task(by_timeout(driver, work))

A way runs ``work`` under what its name says, fires when the driver reaches its suspension, and checks what came
out: the right exception, and the task's count of cancels. The driver fires *before* it suspends, so that a
cancel hits exactly there, a bare ``sleep(0)`` too.

:class:`TickWorker` stands for a thread and is none: the same run twice is the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import anyio

import aiodockersave
from aiodockersave._aio import Worker

P = ParamSpec("P")
T = TypeVar("T")

PACKAGE = Path(aiodockersave.__file__).parent

Work = Callable[[], Coroutine[Any, Any, Any]]
Way = Callable[["Driver", Work], Coroutine[Any, Any, None]]


# ── ways to suspend ──


@types.coroutine
def suspend() -> Generator[None, None, None]:
    """Give the loop one turn, by a bare yield."""
    yield


async def suspend_until_ready() -> None:
    """Wait for a future that the loop's next turn makes ready."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.call_soon(_make_ready, future)
    await future


def _make_ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# ── the driver ──


@types.coroutine
def forward(
    coroutine: Coroutine[Any, Any, T],
    *,
    suspending: Callable[[Any], bool],
    thrown: Callable[[BaseException], None] = lambda _: None,
    resuming: Callable[[Callable[[Any], Any], Any], Any] = lambda resume, value: resume(value),
) -> Generator[Any, Any, T | None]:
    """Forward everything between a coroutine and its task.

    Args:
        coroutine: The coroutine.
        suspending: Is told what the coroutine waits for; where it returns True, the coroutine is closed there.
        thrown: Is told what the task throws in.
        resuming: Makes a step of the coroutine.

    Returns:
        The coroutine's result; None where it was closed.
    """
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            waited_for = resuming(resume, value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        if suspending(waited_for):
            coroutine.close()
            return None
        resume = coroutine.send
        try:
            value = yield waited_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as exc:
            thrown(exc)
            resume, value = coroutine.throw, exc


class Driver:
    """Runs a coroutine and fires at one of its suspensions.

    Attributes:
        at: The suspension to fire at, counted from 1; 0 for none.
        fire: What to do there; set by the way.
        cancelled_twice: Whether the second cancel was fired.
        suspensions: How many there were.
        thrown: What was thrown into the coroutine.
        suspensions_after: How many there were after the first of these.
    """

    def __init__(
        self, at: int = 0, *, twice: bool = False, on_hit: Callable[[], object] = lambda: None
    ) -> None:
        self.at = at
        self.fire: Callable[[], object] = lambda: None
        self.cancelled_twice = False
        self.suspensions = 0
        self.thrown: list[BaseException] = []
        self.suspensions_after = 0
        self._twice = twice
        self._on_hit = on_hit

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Forward everything between the coroutine and its task."""
        forwarding = forward(coroutine, suspending=self._suspending, thrown=self._note)
        return (yield from forwarding)  # type: ignore[return-value]  # it is not closed

    def _note(self, thrown: BaseException) -> None:
        if not self.thrown:
            self._on_hit()
        self.thrown.append(thrown)

    def _suspending(self, _: object) -> bool:
        self.suspensions += 1
        if self.thrown and self._is_callers():
            self.suspensions_after += 1
        if self.suspensions == self.at:
            self.fire()
        elif self._twice and self.suspensions == self.at + 1:
            self.cancelled_twice = self._caller().cancel()
        return False

    def _caller(self) -> asyncio.Task[Any]:
        return running_task()

    def _is_callers(self) -> bool:
        return running_task() is self._caller()


class TasksDriver(Driver):
    """Counts the suspensions of every task too that the package starts meanwhile, and fires at one of them."""

    def __init__(self, at: int = 0, *, twice: bool = False) -> None:
        super().__init__(at, twice=twice)
        self._driving: asyncio.Task[Any] | None = None

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Forward everything between the coroutine and its task, and between others and theirs."""
        loop = asyncio.get_running_loop()
        self._driving = running_task()
        loop.set_task_factory(self._new_task)
        try:
            return (yield from super().drive(coroutine))
        finally:
            loop.set_task_factory(None)

    def _new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        async def counted() -> Any:
            return await forward(coroutine, suspending=self._suspending)

        # Servers of a test have tasks of their own.
        is_ours = Path(coroutine.cr_code.co_filename).is_relative_to(PACKAGE)
        return asyncio.Task(counted() if is_ours else coroutine, loop=loop, **options)

    def _caller(self) -> asyncio.Task[Any]:
        assert self._driving is not None
        return self._driving


def running_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def outcome_of(waiting: Awaitable[object]) -> BaseException | None:
    """Return what an awaitable raised."""
    try:
        await waiting
    except BaseException as exc:
        return exc
    return None


# ── ways to interrupt ──


async def by_task_cancel(driver: Driver, work: Work) -> None:
    driver.fire = running_task().cancel
    with contextlib.suppress(asyncio.CancelledError):
        await _cancelled(driver, work)


async def by_task_cancel_when_ready(driver: Driver, work: Work) -> None:
    """Cancel in the loop's next turn, when what is waited for is ready, and the task not yet resumed."""
    loop = asyncio.get_running_loop()
    driver.fire = lambda: loop.call_soon(running.cancel)
    running = running_task()
    with contextlib.suppress(asyncio.CancelledError):
        await _cancelled(driver, work)


async def _cancelled(driver: Driver, work: Work) -> None:
    """Run the work; what a cancelled task must see is the cancel that was delivered to it."""
    try:
        await driver.drive(work())
    except asyncio.CancelledError as exc:
        assert exc in driver.thrown
        assert driver.cancelled_twice or exc is driver.thrown[0]
        assert running_task().cancelling() == 1 + driver.cancelled_twice
        raise
    else:
        assert not driver.thrown, "a cancel was swallowed"


async def by_timeout(driver: Driver, work: Work) -> None:
    loop = asyncio.get_running_loop()

    async def limited() -> None:
        async with asyncio.timeout(None) as limit:
            driver.fire = lambda: limit.reschedule(loop.time() - 1)
            await driver.drive(work())

    outcome = await outcome_of(limited())
    if driver.cancelled_twice:
        assert outcome in driver.thrown, "a cancel from elsewhere wins over the time-out"
    else:
        assert type(outcome) is (TimeoutError if driver.thrown else types.NoneType)
    assert running_task().cancelling() == driver.cancelled_twice


class SiblingError(Exception):
    """The failure of the other task of a group."""


async def by_task_group(driver: Driver, work: Work) -> None:
    sibling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    driver.fire = lambda: sibling.set_exception(SiblingError())

    async def wait_for_sibling() -> None:
        await sibling

    async def worker() -> None:
        try:
            await _cancelled(driver, work)
        finally:
            _make_ready(sibling)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait_for_sibling())
            tasks.create_task(worker())

    outcome = await outcome_of(group())
    if sibling.exception() is not None:
        assert isinstance(outcome, ExceptionGroup)
        (error,) = outcome.exceptions
        assert isinstance(error, SiblingError)
    else:
        assert outcome is None


async def by_cancel_scope(driver: Driver, work: Work) -> None:
    scope = anyio.CancelScope()
    driver.fire = scope.cancel

    async def scoped() -> None:
        with scope:
            await driver.drive(work())

    outcome = await outcome_of(scoped())
    if driver.cancelled_twice:
        assert outcome in driver.thrown, "a cancel from elsewhere leaves the scope"
    else:
        assert outcome is None
        assert scope.cancelled_caught is bool(driver.thrown)
    assert running_task().cancelling() == driver.cancelled_twice


WAYS: tuple[Way, ...] = (by_task_cancel, by_timeout, by_task_group, by_cancel_scope)


# ── threads that are none ──


class TickWorker(Worker):
    """Runs its calls in order, each after some turns of the loop: what a thread does, but always the same.

    Attributes:
        unfinished: How many calls of all workers are under way.
    """

    unfinished: ClassVar[int] = 0

    def __init__(self, name: str, ticks: int = 5) -> None:
        super().__init__(name)
        self._ticks = ticks
        self._queue: deque[Callable[[], None]] = deque()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        TickWorker.unfinished += 1
        self._queue.append(lambda: self._finish(future, lambda: call(*args, **kwargs)))
        if len(self._queue) == 1:
            loop.call_soon(self._tick, loop, self._ticks)
        return future

    def post(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        self.submit(call, *args, **kwargs)

    def leave(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make it behind the others, or at once, where no loop runs any more."""
        try:
            self.submit(call, *args, **kwargs)
        except RuntimeError:
            call(*args, **kwargs)

    def _tick(self, loop: asyncio.AbstractEventLoop, ticks: int) -> None:
        if ticks > 1:
            loop.call_soon(self._tick, loop, ticks - 1)
            return
        self._queue[0]()
        self._queue.popleft()
        if self._queue:
            loop.call_soon(self._tick, loop, self._ticks)

    def _finish(self, future: asyncio.Future[T], call: Callable[[], T]) -> None:
        outcome: list[T] = []
        error: list[BaseException] = []
        self._run(call, outcome, error)
        TickWorker.unfinished -= 1
        if future.done():
            return
        if error:
            future.set_exception(error[0])
        else:
            future.set_result(outcome[0])

    def _run(self, call: Callable[[], T], outcome: list[T], error: list[BaseException]) -> None:
        try:
            outcome.append(call())
        except BaseException as exc:
            error.append(exc)


class ThreadedTickWorker(TickWorker):
    """Blocks the loop while a real thread does the call: for calls that must not be made on the loop's thread."""

    def _run(self, call: Callable[[], T], outcome: list[T], error: list[BaseException]) -> None:
        thread = threading.Thread(target=super()._run, args=(call, outcome, error))
        thread.start()
        thread.join()


# ── by hand ──


def step(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that must not suspend to its end, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        coroutine.close()
    raise AssertionError("it suspended")


# ── a signal handler that raises ──


class Interrupt(KeyboardInterrupt):
    """The exception that the handler raises."""


class Interrupting:
    """Raises at the n-th line of the package that this thread executes: a signal may come between any two.

    Attributes:
        lines: How many there were.
        where: Where it was raised.
    """

    def __init__(self, at: int) -> None:
        self.lines = 0
        self.where: str | None = None
        self._at = at

    def __call__(self, frame: types.FrameType, event: str, _: object) -> Any:
        if event == "call":
            return self if frame.f_code.co_filename.startswith(str(PACKAGE)) else None
        if event == "line" and self.where is None:
            self.lines += 1
            if self.lines == self._at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise Interrupt
        return self

    async def run(self, work: Work) -> BaseException | None:
        """Run a coroutine under it, in the caller's task, and return what it raised."""
        before = sys.gettrace()
        forwarding = forward(work(), suspending=lambda _: False, resuming=self._traced)
        try:
            return await outcome_of(forwarding)
        finally:
            sys.settrace(before)

    def _traced(self, resume: Callable[[Any], Any], value: Any) -> Any:
        """Trace the coroutine alone, and not the loop between its steps."""
        sys.settrace(self)
        try:
            return resume(value)
        finally:
            sys.settrace(None)

    def is_passed_by(self, call: Callable[[], object]) -> bool:
        """Make a call under it, and return whether the call ended before that line."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except Interrupt:
            return False
        finally:
            sys.settrace(before)
        return self.where is None
