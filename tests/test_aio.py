"""The promises of the one room with a shield, each fact measured."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from aiodockersave import ArchiveWriter, Descriptor, Digest, EventLoopError
from aiodockersave._aio import YIELD_BYTES, Fairness, Worker, running_task, wait_out
from aiodockersave.core.model import OCI_LAYER
from tests.support.images import MemorySink
from tests.support.interruption import outcome_of, step

PATIENCE = 60.0  # seconds that something which must happen may take
WORKER = "test-worker"


class Gate:
    """A blocking call that ends when it is let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.ended = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self._open.wait(PATIENCE)
        self.ended.set()
        return "through"

    def open(self) -> None:
        self._open.set()


class FailingGate(Gate):
    def __call__(self) -> str:
        super().__call__()
        raise OSError("input/output error")


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture(params=["anyio is loaded", "anyio is not loaded"])
def anyio_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "anyio is not loaded":
        monkeypatch.delitem(sys.modules, "anyio")


def worker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == WORKER]


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, PATIENCE)


async def turns(count: int) -> None:
    """Let everything happen that is ready, ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


# ── the task ──


async def test_the_running_task() -> None:
    assert running_task() is asyncio.current_task()


def test_no_loop_is_an_error_of_ours() -> None:
    with pytest.raises(EventLoopError):
        running_task()


async def test_no_task_is_an_error_of_ours() -> None:
    seen: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def outside() -> None:  # as under another event loop, which has no asyncio tasks
        try:
            running_task()
        except EventLoopError as exc:
            seen.set_result(exc)

    asyncio.get_running_loop().call_soon(outside)
    assert isinstance(await asyncio.wait_for(seen, PATIENCE), EventLoopError)


def test_a_loop_that_is_not_asyncio_is_refused_before_anything_is_written() -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink)
    for call in (archive.put_layer(b"data"), archive.close(), archive.abort(), archive.__aenter__()):
        with pytest.raises(EventLoopError):
            step(call)
    assert not sink.data


# ── the worker ──


async def test_results_and_errors_come_back() -> None:
    worker = Worker(WORKER)
    assert await worker.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0)


async def test_an_exit_of_a_thread_belongs_to_who_waits() -> None:
    def leave() -> None:
        raise SystemExit(3)

    worker = Worker(WORKER)
    future = worker.submit(leave)
    await until(future.done)
    assert isinstance(future.exception(), SystemExit)


async def test_calls_run_in_order_in_one_thread() -> None:
    worker = Worker(WORKER)
    with worker.held():
        futures = [worker.submit(threading.get_ident) for _ in range(50)]
        order: list[int] = []
        more = [worker.submit(order.append, number) for number in range(50)]
        await asyncio.gather(*futures, *more)
    assert len({future.result() for future in futures}) == 1
    assert order == list(range(50))


async def test_a_worker_that_is_not_in_use_is_no_thread() -> None:
    worker = Worker(WORKER)
    with worker.held(), worker.held():
        assert not worker_threads()
        await worker.run(int)
        (thread,) = worker_threads()
        await worker.run(int)
        assert worker_threads() == [thread]
    await until(lambda: not worker_threads())
    await worker.run(int)
    await until(lambda: not worker_threads())


async def test_a_thread_ends_though_its_call_failed_and_nobody_waits(gate: Gate) -> None:
    worker = Worker(WORKER)
    future = worker.submit(gate)
    await entered(gate)
    future.cancel()
    gate.open()
    await until(lambda: not worker_threads())


@pytest.mark.parametrize("is_held", [False, True])
def test_a_thread_ends_though_its_loop_is_closed(gate: Gate, is_held: bool) -> None:
    """A coroutine that holds it is closed with the loop's other things."""
    worker = Worker(WORKER)

    async def leave_it() -> None:
        if is_held:
            holding = worker.held()
            holding.__enter__()
        worker.submit(gate)
        await entered(gate)

    asyncio.run(leave_it())
    (thread,) = worker_threads()
    assert thread.daemon
    gate.open()
    thread.join(PATIENCE)
    assert gate.ended.is_set()
    assert not thread.is_alive()


async def test_a_result_of_which_nobody_has_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C raises in whatever runs: the loop may have taken it from its queue, and not got to it."""
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", lambda *_: None)
    worker = Worker(WORKER)
    assert await asyncio.wait_for(worker.run(divmod, 7, 2), PATIENCE) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(worker.run(divmod, 7, 0), PATIENCE)


async def test_what_is_left_to_a_thread_is_done_behind_its_calls(gate: Gate) -> None:
    worker = Worker(WORKER)
    done: list[str] = []
    with worker.held():
        future = worker.submit(gate)
        await entered(gate)
        worker.leave(done.append, "behind it")
        worker.leave(divmod, 1, 0)  # what it raises is dropped
    assert not done
    gate.open()
    await future
    await until(lambda: not worker_threads())
    assert done == ["behind it"]
    worker.leave(done.append, "at once, where no thread works")
    assert len(done) == 2


async def test_a_thread_ends_with_its_worker() -> None:
    """As where an interrupt came before what would have ended it."""
    worker = Worker(WORKER)
    holding = worker.held()
    holding.__enter__()
    await worker.run(int)
    assert worker_threads()
    worker._holds += 1  # so that what leaves the block does not end it
    del worker, holding
    await until(lambda: not worker_threads())


async def test_calls_of_a_worker_that_is_not_held_run_in_order(gate: Gate) -> None:
    worker = Worker(WORKER)
    order: list[int] = []
    first = worker.submit(gate)
    others = [worker.submit(order.append, number) for number in range(5)]
    await entered(gate)
    assert not order
    gate.open()
    await asyncio.gather(first, *others)
    assert order == list(range(5))


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("has_begun", [False, True], ids=["before", "behind"])
async def test_the_start_of_a_thread_that_is_interrupted(
    has_begun: bool, is_held: bool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may run all the same: what comes then runs behind its call, and the worker is of use."""
    worker, done = Worker("test"), list[str]()
    start = threading.Thread.start

    def first() -> None:
        gate()
        done.append("first")

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        if has_begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with worker.held() if is_held else contextlib.nullcontext():
        with pytest.raises(KeyboardInterrupt):
            worker.submit(first)
        second = asyncio.ensure_future(worker.run(done.append, "second"))
        await turns(5)
        assert not has_begun or not done
        gate.open()
        await asyncio.wait_for(second, 60)
        await worker.run(done.append, "third")
    assert done == [*(["first"] if has_begun else []), "second", "third"]
    await until(lambda: not worker_threads())


async def test_a_call_that_is_waited_for_by_blocking(gate: Gate) -> None:
    worker = Worker(WORKER)
    worker.finish()  # there is none
    future = worker.submit(gate)
    await entered(gate)
    threading.Timer(0.05, gate.open).start()
    worker.finish()
    assert gate.ended.is_set()
    await future


async def test_the_data_of_a_call_do_not_outlive_it() -> None:
    class Data:
        """An object that a weak reference can point at."""

    worker = Worker(WORKER)
    with worker.held():
        data = Data()
        reference = weakref.ref(data)
        await worker.run(lambda _: None, data)
        del data
        await worker.run(int)
        assert reference() is None


# ── waiting out ──


@pytest.mark.usefixtures("anyio_or_not")
async def test_three_cancels_do_not_end_the_wait(gate: Gate) -> None:
    cancelling: list[int] = []

    async def work() -> BaseException | None:
        outcome = await outcome_of(Worker(WORKER).run(gate))
        cancelling.append(running_task().cancelling())
        return outcome

    task = asyncio.create_task(work())
    await entered(gate)
    for number in range(3):
        task.cancel(f"cancel {number}")
        await turns(3)
        assert not task.done()
    gate.open()
    error = await asyncio.wait_for(task, PATIENCE)
    assert gate.ended.is_set()
    assert isinstance(error, asyncio.CancelledError)
    assert error.args == ("cancel 0",), "the first cancel is the one that is raised"
    assert cancelling == [3], "task.cancelling() is left alone"


@pytest.mark.usefixtures("anyio_or_not")
def test_the_shutdown_of_the_loop_waits_too(gate: Gate) -> None:
    ended: list[bool] = []
    kept: list[asyncio.Task[None]] = []

    async def work() -> None:
        try:
            await Worker(WORKER).run(gate)
        finally:
            ended.append(gate.ended.is_set())

    async def main() -> None:
        kept.append(asyncio.create_task(work()))
        await entered(gate)
        asyncio.get_running_loop().call_later(0.02, gate.open)

    asyncio.run(main())  # cancels what is left, and waits for it
    assert ended == [True]


@pytest.mark.usefixtures("anyio_or_not")
async def test_a_time_out_stays_a_time_out(gate: Gate) -> None:
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                waiting = Worker(WORKER).submit(gate)
                limit.reschedule(asyncio.get_running_loop().time())
                asyncio.get_running_loop().call_later(0.02, gate.open)
                await wait_out(waiting)
    assert gate.ended.is_set()
    assert running_task().cancelling() == 0


class CountingTask(asyncio.Task[Any]):
    """Counts the cancels that are delivered to it."""

    delivered = 0

    def cancel(self, msg: Any = None) -> bool:
        self.delivered += 1
        return super().cancel(msg)


async def test_a_cancel_scope_does_not_deliver_its_cancel_over_and_over(gate: Gate) -> None:
    scope = anyio.CancelScope()
    returned: list[str] = []

    async def work() -> None:
        with scope:
            returned.append(await Worker(WORKER).run(gate))
            await asyncio.sleep(0)
            returned.append("the cancel was lost")

    task = CountingTask(work(), loop=asyncio.get_running_loop())
    await entered(gate)
    scope.cancel()
    await turns(100)
    assert task.delivered == 0
    assert not task.done()
    gate.open()
    await asyncio.wait_for(task, PATIENCE)
    assert returned == ["through"], "the call counts, and the cancel comes at the next await"
    assert scope.cancelled_caught


async def test_a_cancel_scope_and_a_cancel_together(gate: Gate) -> None:
    scope = anyio.CancelScope()

    async def work() -> None:
        with scope:
            await Worker(WORKER).run(gate)

    task = CountingTask(work(), loop=asyncio.get_running_loop())
    await entered(gate)
    scope.cancel()
    task.cancel()
    await turns(100)
    assert task.delivered <= 2
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE)
    assert gate.ended.is_set()


async def test_a_call_is_not_started_where_the_scope_is_cancelled() -> None:
    called: list[str] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await Worker(WORKER).run(called.append, "run")
    assert scope.cancelled_caught
    with anyio.CancelScope() as scope:
        scope.cancel()
        await Worker(WORKER).run_always(called.append, "always")
    assert called == ["always"]


@pytest.mark.usefixtures("anyio_or_not")
async def test_the_error_of_a_call_is_a_note_of_the_cancel() -> None:
    gate = FailingGate()
    task = asyncio.create_task(Worker(WORKER).run(gate))
    await entered(gate)
    task.cancel()
    await turns(2)
    gate.open()
    outcome = await outcome_of(asyncio.wait_for(task, PATIENCE))
    assert isinstance(outcome, asyncio.CancelledError)
    assert outcome.__notes__ == ["while cancelled: OSError: input/output error"]


@pytest.mark.usefixtures("anyio_or_not")
async def test_a_cancel_in_the_tick_in_which_the_call_has_ended() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait_out(future))
    await turns(1)
    future.set_result("done")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE)


async def test_a_future_that_is_done_needs_no_wait() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    future.set_result("done")
    assert step(wait_out(future)) == "done"


# ── fairness ──


async def test_fairness_suspends_once_per_so_many_bytes() -> None:
    fairness = Fairness()
    step(fairness.passed(YIELD_BYTES // 2))
    with pytest.raises(AssertionError, match="suspended"):
        step(fairness.passed(YIELD_BYTES // 2))
    step(fairness.passed(YIELD_BYTES // 2))


async def test_fairness_counts_tiny_chunks_too() -> None:
    fairness = Fairness()
    with pytest.raises(AssertionError, match="suspended"):
        for _ in range(YIELD_BYTES // 1024):
            step(fairness.passed(1))


LARGE = 50 << 20


async def _chunks_that_never_suspend() -> AsyncIterator[bytes]:
    chunk = bytes(64 << 10)
    for _ in range(LARGE // len(chunk)):
        yield chunk


@pytest.mark.parametrize(
    "make_content", [lambda: bytes(LARGE), _chunks_that_never_suspend], ids=["bytes", "generator"]
)
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_what_never_suspends_lets_a_cancel_through(
    make_content: Callable[[], Any], stage: bool
) -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink, stage_memory=2 * LARGE)
    descriptor = Descriptor(OCI_LAYER, Digest.of(bytes(LARGE)), LARGE)
    task = asyncio.create_task(archive.put_layer(make_content(), descriptor, stage=stage))
    await turns(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not sink.data
    await archive.close()
