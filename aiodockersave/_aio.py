"""Run blocking calls in threads, and wait for their ends even when the waiting task is cancelled.

The package promises that nothing of a call runs any more when the call has returned or raised. A thread cannot be
interrupted, so a cancelled task waits until its blocking call is done, and is cancelled then. This is the only module with
a shield, and the shield has two parts: a future of the waiting task's own, which is all that ``Task.cancel`` can reach, and
an anyio scope against the cancel scopes around, which would otherwise deliver their cancel over and over.

Only calls that end by themselves are waited for (regular files, hashing), never a pipe or a connection.

Where nothing can be awaited any more (a coroutine is closed, the loop has stopped) a thread is left to end by itself: it
makes its remaining calls, the last of which close the files that it works on. For the same reason a context manager that
waits at its end is a class and no ``@asynccontextmanager``: up to Python 3.12 a waiting async generator does not notice
that its coroutine is closed.

anyio takes some 30 ms to load, and before somebody has loaded it there is no cancel scope to be shielded against: so it is
used where it is there already.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, Self, TypeVar

from .core.errors import EventLoopError

P = ParamSpec("P")
T = TypeVar("T")

_Calls = SimpleQueue[Callable[[], object] | None]
"""Calls for a thread, and None to end it."""

EXITS = (KeyboardInterrupt, SystemExit)
"""The errors that end a loop."""
YIELD_BYTES = 1 << 20
"""After this many bytes without a suspension the loop gets its turn: about 1 ms of memory traffic."""
_CHUNK_COST = 1 << 12
"""The cost of a chunk besides its bytes, so that tiny ones count too."""
LOOK_AGAIN = 0.2
"""Seconds after which a waiting task checks whether its call has ended without a message to the loop."""


def running_task() -> asyncio.Task[Any]:
    """Return the running asyncio task.

    Raises:
        EventLoopError: There is none: another event loop, or no loop at all.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        raise EventLoopError from None
    if task is None:
        raise EventLoopError
    return task


def _is_in_scope() -> bool:
    """Tell whether there are cancel scopes of anyio's around."""
    backend = sys.modules.get("anyio._backends._asyncio")
    if backend is None:
        return False  # it is loaded with the first of them
    # anyio says it nowhere in public; where this has another name one day, there may always be some.
    states = getattr(backend, "_task_states", None)
    if states is None:
        return True
    return getattr(states.get(asyncio.current_task()), "cancel_scope", None) is not None


@contextlib.contextmanager
def _shield() -> Generator[None, None, None]:
    """Shield against the cancel scopes around, where there are some.

    anyio keeps a task inside of a scope for ever, where the loop was closed under it: so no task is put into one needlessly.
    """
    if not _is_in_scope():
        yield
        return
    from anyio import CancelScope  # noqa: PLC0415 - see above

    scope = CancelScope(shield=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(scope)
        try:
            yield
        except GeneratorExit:
            # Whoever closes the coroutine need not be its task; the scope would raise an error in the place of this.
            stack.pop_all()
            with contextlib.suppress(RuntimeError):
                scope.__exit__(None, None, None)
            raise


async def check_cancel_scopes() -> None:
    """Raise the cancel of a scope around that is cancelled already."""
    if "anyio" in sys.modules:
        from anyio.lowlevel import checkpoint_if_cancelled  # noqa: PLC0415 - see above

        await checkpoint_if_cancelled()


class Worker:
    """One thread that runs blocking calls in the order in which they were submitted.

    The thread starts with a call and ends when no call is left, or, inside :meth:`held`, when that is left: a
    worker that is not in use is no thread. The thread needs nobody to be told so: it ends also where the loop has
    stopped, where a coroutine that waited is closed, and where the worker itself is gone.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: _Calls | None = None  # of the thread that takes further ones
        self._thread: threading.Thread | None = None
        self._last_resort: weakref.finalize[..., Any] | None = None
        self._holds = 0

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call that ends by itself; the caller owns the future and waits for it.

        Raises:
            RuntimeError: No thread can be started.
        """
        future: _ThreadFuture[T] = _ThreadFuture(lambda: call(*args, **kwargs), asyncio.get_running_loop())
        self._put(future.run)
        return future

    def post(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a call that ends by itself and never raises; nobody is told of its end, and the loop is not woken.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._put(lambda: call(*args, **kwargs))

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one call and wait for its end.

        Cancel: is raised when the call has ended; its result is lost.
        """
        await check_cancel_scopes()
        return await wait_out(self.submit(call, *args, **kwargs))

    async def run_always(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call as :meth:`run` does, even if a cancel scope is cancelled already.

        Cancel: as :meth:`run`.
        """
        return await wait_out(self.submit_always(call, *args, **kwargs))

    def submit_always(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """As :meth:`submit`, for clean-up: where no thread can be started, it is done at once, on the loop."""
        try:
            return self.submit(call, *args, **kwargs)
        except RuntimeError:
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            try:
                future.set_result(call(*args, **kwargs))
            except Exception as exc:  # noqa: BLE001 - it belongs to the waiting task
                future.set_exception(exc)
            return future

    def leave(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a call after all others without waiting for its end: for places where nothing can be awaited any more.

        An error of the call is dropped. The call needs no loop; if no thread works, it is made at once.
        """
        quietly = partial(_run_quietly, lambda: call(*args, **kwargs))
        if self._thread is None or not self._thread.is_alive():
            quietly()
            return
        try:
            self._put(quietly)
        except RuntimeError:  # no thread can be started any more
            quietly()

    def finish(self) -> None:
        """Block until the calls that the thread has been given have ended: for where nothing can be awaited any more.

        Inside of one of them (the garbage collector may close a coroutine anywhere) it does not wait for itself.
        """
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            ended = threading.Event()
            self.leave(ended.set)
            while not ended.wait(LOOK_AGAIN) and thread.is_alive():
                pass

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """Keep the thread between calls."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds and self._calls is not None:  # also behind a call that runs
                # In this order: an interrupt between two lines must not leave a thread that has ended to be given calls.
                calls, self._calls = self._calls, None
                calls.put(None)
                if self._last_resort is not None:
                    self._last_resort.detach()
                    self._last_resort = None

    def _put(self, call: Callable[[], object]) -> None:
        """Hand a call to the thread, or to a new one, which begins when the one before has ended.

        Whatever interrupts this (a signal handler may raise between any two lines) leaves no thread that nobody ends: a
        thread is given its first call, and how to end, before it starts.
        """
        # If the worker is being collected while its owner is closed, its thread has the order to end already.
        is_gone = self._last_resort is not None and not self._last_resort.alive
        if self._calls is not None and not is_gone and _has_begun(self._thread):
            self._calls.put(call)
            return
        calls: _Calls = SimpleQueue()
        calls.put(call)
        is_kept = self._holds > 0 and not is_gone
        if is_kept:  # until it is told to end, or at the latest until the worker is gone
            self._last_resort = weakref.finalize(self, calls.put, None)
            self._last_resort.atexit = False
        else:
            calls.put(None)
        # A daemon: an idle thread must not keep a dying interpreter alive.
        before = self._thread
        thread = threading.Thread(target=_serve, args=(calls, before), name=self._name, daemon=True)
        # Recorded before the start: a thread whose start is interrupted may run all the same, and the next one waits for it.
        self._thread, self._calls = thread, calls if is_kept else None
        try:
            thread.start()
        except RuntimeError:
            self._thread, self._calls = before, None
            raise


def _has_begun(thread: threading.Thread | None) -> bool:
    """Tell whether a thread runs or has run: an interrupt may keep one from it."""
    return thread is not None and thread.ident is not None


def _serve(calls: _Calls, before: threading.Thread | None) -> None:
    if before is not None and _has_begun(before):
        before.join()  # so that calls run in order
    del before
    while (call := calls.get()) is not None:
        call()
        del call  # its data must not live on while the next one is waited for


def _run_quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(BaseException):  # nobody is left to receive it
        call()


class LateFuture(asyncio.Future[T]):
    """A future for a thread's result, which the loop can also resolve by itself if the thread's message was lost."""

    @abc.abstractmethod
    def catch_up(self) -> None:
        """Resolve the future if its result is there; on the loop."""


class _ThreadFuture(LateFuture[T]):
    """The result of a call in a thread.

    The thread stores the result here first, and asks the loop to resolve the future then. That request may be lost: Ctrl-C
    raises KeyboardInterrupt in the running code, which may be the loop between taking the request from its queue and
    running it. So the waiting task can resolve the future too, by :meth:`catch_up`.
    """

    def __init__(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._call: Callable[[], T] | None = call
        self._outcome: tuple[T] | BaseException | None = None

    def run(self) -> None:
        """Make the call; in the thread."""
        call, self._call = self._call, None  # its data must not live as long as the result
        if call is not None:
            try:
                self._outcome = (call(),)
            except BaseException as exc:  # noqa: BLE001 - any error belongs to the waiting task
                self._outcome = exc
        # RuntimeError: the loop was closed under us, so nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self.get_loop().call_soon_threadsafe(self._resolve)
        del self  # a traceback holds this frame

    def catch_up(self) -> None:
        """Resolve the future if the call has ended; on the loop."""
        if self._outcome is not None:
            self._resolve()

    def _resolve(self) -> None:
        outcome = self._outcome
        if outcome is not None and not self.done():
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome[0])
        self._outcome = None


class Beside:
    """Make one blocking call at a time, in a thread, while the loop goes on. Leave it with ``async with``."""

    def __init__(self, name: str) -> None:
        self._worker = Worker(name)
        self._running: asyncio.Future[None] | None = None

    def is_free(self) -> bool:
        """Return whether no call runs; raise the error of the last one."""
        if self._running is None or not self._running.done():
            return self._running is None
        self._running.result()
        return True

    def start(self, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a call that ends by itself, where none runs."""
        self._running = self._worker.submit(call, *args, **kwargs)

    async def wait(self) -> None:
        """Wait until no call runs; raise the error of the last one.

        Cancel: is raised after that.
        """
        if self._running is not None:
            await wait_out(self._running)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        """Wait until no call runs; raise the error of the last one, or note it on a fault."""
        if isinstance(fault, GeneratorExit):
            return  # the coroutine is being closed: nothing can be awaited any more
        try:
            await self.wait()
        except Exception as exc:
            if fault is None:
                raise
            if fault is not exc:
                fault.add_note(f"while cleaning up: {exc}")


async def wait_out(future: asyncio.Future[T]) -> T:
    """Wait until a future of a plain blocking call is done, whatever is cancelled meanwhile.

    Raises:
        CancelledError: The very one that was delivered, once the call has ended; ``task.cancelling()`` stays as
            it is, so that time-outs and task groups recognise it. An error of the call is added as a note.
    """
    cancelled: asyncio.CancelledError | None = None
    with _shield():
        while not future.done():
            try:
                await done_or_later(future)
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
            except BaseException:  # the coroutine is being closed, or an interrupt came between two lines
                forget(future)
                raise
            if isinstance(future, LateFuture):
                future.catch_up()
    try:
        if cancelled is None:
            return future.result()
        error = future.exception()
        if error is not None:
            cancelled.add_note(f"while cancelled: {type(error).__name__}: {error}")
        raise cancelled
    finally:
        del cancelled, future  # what is raised holds this frame


async def done_or_later(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, or for some time. As ``asyncio.wait``, in half the time.

    Cancel: the future is left alone.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()

    def wake(*_: object) -> None:
        if not waiting.done():
            waiting.set_result(None)

    later = loop.call_later(LOOK_AGAIN, wake)
    future.add_done_callback(wake)
    try:
        await waiting
    finally:
        later.cancel()
        if not future.done():
            future.remove_done_callback(wake)


async def run_together(*calls: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run coroutines side by side, each as a task. When one fails or this is cancelled, the others are cancelled.

    A single one runs in the caller's own task.

    Raises:
        BaseException: The error of the coroutine that failed; of the first in order if several failed at once.

    Cancel: is raised when all have ended.
    """
    if len(calls) == 1:
        return await calls[0]()
    tasks = [asyncio.ensure_future(call()) for call in calls]
    running = set(tasks)
    failed: list[asyncio.Task[None]] = []
    async with ending(lambda: tasks):
        while running and not failed:
            # Not FIRST_EXCEPTION, for which a task that was cancelled from within has not failed.
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in tasks if task in done and (task.cancelled() or task.exception())]
    return failed[0].result() if failed else None


class ending:  # noqa: N801 - read as a verb
    """End the running tasks of ``tasks()`` when the block is left, as :func:`end_tasks` does."""

    def __init__(self, tasks: Callable[[], Iterable[asyncio.Task[Any]]]) -> None:
        self._tasks = tasks

    async def __aenter__(self) -> None:
        """Begin."""

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        if isinstance(fault, GeneratorExit):  # the coroutine is being closed: nothing can be awaited any more
            drop_tasks(self._tasks())
        else:
            await end_tasks(self._tasks())


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that still run, and wait until all have ended; as :func:`wait_for_ends`."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await wait_for_ends(tasks)


def drop_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that still run, where their ends cannot be awaited; their errors are dropped."""
    for task in tasks:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs there any more
            task.cancel()
        forget(task)


def forget(future: asyncio.Future[Any]) -> None:
    """Drop the result of a future, so that asyncio does not report an error that nobody has retrieved."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        future.add_done_callback(_look_at)


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def wait_for_ends(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until tasks that were cancelled have ended. Their errors stay in the tasks.

    Such a task may be closing a foreign object, which need not end by itself. So a cancel is passed on to the tasks: each
    ``Task.cancel`` anew, and that of a cancel scope around once.

    Cancel: is raised after that.
    """
    tasks = list(tasks)
    waiting = [task for task in tasks if not task.done()]
    cancelled: asyncio.CancelledError | None = None
    try:
        with contextlib.ExitStack() as shield:
            while waiting:
                try:
                    await asyncio.wait(waiting)
                except asyncio.CancelledError as exc:
                    if cancelled is None:
                        cancelled = exc
                        shield.enter_context(_shield())  # a scope would say it over and over
                    for task in waiting:
                        task.cancel()
                waiting = [task for task in waiting if not task.done()]
        for task in tasks:
            _look_at(task)
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled


class Closable(Protocol):
    """Something that threads work for."""

    async def close(self) -> None:
        """Wait until no thread works for it any more.

        Cancel: is raised after that.
        """
        ...

    def abandon(self) -> None:
        """Let it end by itself, for where nothing can be awaited any more. Does nothing where it was closed."""
        ...


class closing:  # noqa: N801 - as `contextlib.closing`
    """Close something when the block is left, or abandon it where nothing can be awaited any more."""

    def __init__(self, each: Closable) -> None:
        self._each = each

    async def __aenter__(self) -> None:
        """Begin."""

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        if isinstance(fault, GeneratorExit):
            self._each.abandon()
            return
        try:
            await self._each.close()
        except GeneratorExit:
            self._each.abandon()
            raise


def weightier(first: BaseException | None, other: BaseException | None) -> BaseException | None:
    """Return the error to raise of two: the one that ends the loop, else the first."""
    return other if isinstance(other, EXITS) and not isinstance(first, EXITS) else first or other


async def close_all(closers: Iterable[Callable[[], Coroutine[Any, Any, object]]]) -> None:
    """Await each coroutine in turn, whatever the others raise; raise the first error.

    An error that ends the loop comes before all others. If this coroutine is closed, the remaining ones are run up to
    their first wait.

    Cancel: is raised when all were awaited.
    """
    raised: BaseException | None = None
    closers = iter(closers)
    try:
        for close in closers:
            try:
                await close()
            except GeneratorExit:  # nothing can be awaited any more
                for rest in closers:
                    run_up_to_wait(rest())
                raise
            except BaseException as exc:  # noqa: BLE001 - raised below
                raised = weightier(raised, exc)
        if raised is not None:
            raise raised
    finally:
        del raised  # it holds this frame


def run_up_to_wait(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine up to its first wait, where nothing can be awaited any more. Its error is dropped."""
    # Also an interrupt: a content that is told of it raises it again.
    with contextlib.suppress(BaseException):
        coroutine.send(None)
    with contextlib.suppress(BaseException):  # it may want to wait while it is closed, too
        coroutine.close()


class Fairness:
    """Give the loop its turn by bytes: a source and a sink that never suspend would starve it."""

    def __init__(self) -> None:
        self._bytes = 0

    async def passed(self, size: int) -> None:
        """Count a chunk of ``size`` bytes; suspend once per :data:`YIELD_BYTES`.

        Cancel: comes where it suspends; the chunk is counted.
        """
        self._bytes += size + _CHUNK_COST
        if self._bytes >= YIELD_BYTES:
            self._bytes = 0
            await asyncio.sleep(0)
