"""Finish what was begun: blocking calls in a thread, waited for whatever is cancelled.

The promise of this package is that nothing of a call goes on when it has returned or raised. A thread
cannot be interrupted, so a cancelled call waits until its blocking call is done, and is cancelled then. This
is the only room with a shield, and it shields two ways at once: ``asyncio.shield`` against ``Task.cancel``, an
anyio scope against the cancel scopes around, which would otherwise deliver their cancel over and over.

Only calls that end by themselves are waited for (regular files, hashing), never a pipe or a connection.

anyio takes some 30 ms to load, and before somebody has loaded it there is no cancel scope to be shielded against: so it is
used where it is there already. A scope around a call was entered before it, so looking once per call is enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from .errors import EventLoopError

if TYPE_CHECKING:
    from anyio import CancelScope

P = ParamSpec("P")
T = TypeVar("T")

YIELD_BYTES = 1 << 20
"""After this many bytes without a suspension the loop gets its turn: about 1 ms of memory traffic."""
_CHUNK_COST = 1 << 12
"""What a chunk costs besides its bytes, so that tiny ones count too."""


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


def _cancel_scope(*, shield: bool = False) -> AbstractContextManager[CancelScope | None]:
    """Return a cancel scope, where there can be others around it."""
    if "anyio" not in sys.modules:
        return contextlib.nullcontext()
    from anyio import CancelScope  # noqa: PLC0415 - see above

    return CancelScope(shield=shield)


async def _check_cancel_scopes() -> None:
    """Raise the cancel of a scope around that is cancelled already."""
    if "anyio" in sys.modules:
        from anyio.lowlevel import checkpoint_if_cancelled  # noqa: PLC0415 - see above

        await checkpoint_if_cancelled()


class Worker:
    """One thread that runs blocking calls in the order in which they were submitted.

    The thread starts with a call and ends when no call is left, or, inside :meth:`held`, when that is left: a
    worker that is not in use is no thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] | None = None
        self._unfinished = 0
        self._holds = 0

    @property
    def is_busy(self) -> bool:
        """Whether a call has not ended, as far as the loop knows."""
        return self._unfinished > 0

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call that ends by itself; the caller owns the future and waits for it.

        Raises:
            RuntimeError: No thread can be started.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._jobs is None:
            jobs: SimpleQueue[_Job | None] = SimpleQueue()
            # A daemon: an idle thread must not keep a dying interpreter alive.
            threading.Thread(target=_serve, args=(jobs,), name=self._name, daemon=True).start()
            self._jobs = jobs
        self._unfinished += 1
        self._jobs.put(_Job(loop, future, lambda: call(*args, **kwargs), self._finished))
        return future

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one call and wait for its end. A cancel is raised after it; the result is lost then."""
        await _check_cancel_scopes()
        return await wait_out(self.submit(call, *args, **kwargs))

    async def run_always(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As :meth:`run`, for what must happen also where a cancel scope is cancelled already."""
        return await wait_out(self.submit_always(call, *args, **kwargs))

    def submit_always(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """As :meth:`submit`, for clean-up: where no thread can be started, it is done at once, on the loop."""
        try:
            return self.submit(call, *args, **kwargs)
        except RuntimeError:
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            try:
                future.set_result(call(*args, **kwargs))
            except Exception as exc:  # noqa: BLE001 - it belongs to who waits
                future.set_exception(exc)
            return future

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """Keep the thread between calls."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            # Also behind a call that runs, where its coroutine was closed and nobody is told of its end any more.
            self._stop_unless_held()

    def _finished(self) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            self._stop_unless_held()

    def _stop_unless_held(self) -> None:
        if self._jobs is not None and not self._holds:
            self._jobs.put(None)
            self._jobs = None


class _Job:
    __slots__ = ("call", "finished", "future", "loop")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        call: Callable[[], Any],
        finished: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.future = future
        self.call = call
        self.finished = finished

    def run(self) -> None:
        try:
            result, error = self.call(), None
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it belongs to who waits
            result, error = None, exc
        # RuntimeError: the loop was closed under us, so nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._resolve, result, error)

    def _resolve(self, result: object, error: BaseException | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        self.finished()


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # its data must not live on while the next one is waited for


class Beside:
    """One blocking call at a time, in a thread, beside what the loop does. Leave it with ``async with``."""

    def __init__(self, name: str) -> None:
        self._worker = Worker(name)
        self._running: asyncio.Future[None] | None = None

    def is_free(self) -> bool:
        """Tell whether no call runs. Raises what the last one has raised."""
        if self._running is None or not self._running.done():
            return self._running is None
        self._running.result()
        return True

    def start(self, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Start a call that ends by itself, where none runs."""
        self._running = self._worker.submit(call, *args, **kwargs)

    async def wait(self) -> None:
        """Wait until no call runs. Raises what the last one has raised.

        Cancel: is raised after that.
        """
        if self._running is not None:
            await wait_out(self._running)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        """Wait until no call runs. What the last one has raised is raised here, or noted on a fault."""
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
    with _cancel_scope(shield=True):
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
            except GeneratorExit:
                raise  # the coroutine is being closed: nothing can be awaited any more
            except BaseException:  # noqa: BLE001 - the future's own: it is read below
                break
    if cancelled is None:
        return future.result()
    try:
        error = future.exception()
        if error is not None:
            cancelled.add_note(f"while cancelled: {type(error).__name__}: {error}")
        raise cancelled
    finally:
        del cancelled, future


async def run_together(*calls: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run coroutines side by side, each as a task. When one fails or this is cancelled, the others are cancelled.

    A single one runs in the caller's own task.

    Raises:
        BaseException: What one that failed has raised, the first in order if several did at once.

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


@contextlib.asynccontextmanager
async def ending(tasks: Callable[[], Iterable[asyncio.Task[Any]]]) -> AsyncGenerator[None, None]:
    """End what still runs of ``tasks()`` when the block is left, as :func:`end_tasks` does."""
    try:
        yield
    except GeneratorExit:
        raise  # the coroutine is being closed: nothing can be awaited any more
    except BaseException:
        await end_tasks(tasks())
        raise
    else:
        await end_tasks(tasks())


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until all has ended; as :func:`wait_for_ends`."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await wait_for_ends(tasks)


async def wait_for_ends(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until tasks that were cancelled have ended. What was raised there is left to whoever looks at it.

    Something foreign may be closed there, which need not end by itself: so a cancel is passed on, each ``Task.cancel``
    anew, and that of a cancel scope around once.

    Cancel: is raised after that.
    """
    tasks = list(tasks)
    waiting = [task for task in tasks if not task.done()]
    cancelled: asyncio.CancelledError | None = None
    try:
        with _cancel_scope() as scope:
            while waiting:
                try:
                    await asyncio.wait(waiting)
                except asyncio.CancelledError as exc:
                    cancelled = cancelled or exc
                    if scope is not None:
                        scope.shield = True  # it would say it over and over
                    for task in waiting:
                        task.cancel()
                waiting = [task for task in waiting if not task.done()]
        for task in tasks:
            if not task.cancelled():
                task.exception()  # looked at, so that nobody complains that none did
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled


def run_up_to_wait(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine up to where it would wait, for where nothing can be awaited any more."""
    with contextlib.suppress(Exception, GeneratorExit):
        coroutine.send(None)
    coroutine.close()


class Fairness:
    """Give the loop its turn by bytes: a source and a sink that never suspend would starve it."""

    def __init__(self) -> None:
        self._bytes = 0

    async def passed(self, size: int) -> None:
        """Count a chunk of ``size`` bytes; suspend once per :data:`YIELD_BYTES`."""
        self._bytes += size + _CHUNK_COST
        if self._bytes >= YIELD_BYTES:
            self._bytes = 0
            await asyncio.sleep(0)
