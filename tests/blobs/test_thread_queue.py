"""Work that the loop hands to a thread: order, back-pressure, and the end of everything when it is over."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aiodockersave._aio import Worker
from aiodockersave.blobs.content import Batch
from aiodockersave.blobs.thread_queue import INLINE_SIZE, Lane, ThreadQueue
from tests.support.interruption import outcome_of

TIME_LIMIT = 60.0  # seconds; nothing here takes one, but on a machine that stalls


class Taker:
    """Takes chunks, as the thread is told to.

    Attributes:
        taken: The chunks, in order.
        threads: The threads that took them.
        gate: Is waited for before each hand-over is taken.
        faults: The hand-overs that fail, by number.
    """

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.threads: set[threading.Thread] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.faults: dict[int, BaseException] = {}
        self._calls = 0

    def take(self, chunks: Sequence[Batch]) -> None:
        assert self.gate.wait(TIME_LIMIT)
        self.threads.add(threading.current_thread())
        self._calls += 1
        if fault := self.faults.get(self._calls - 1):
            raise fault
        self.taken += map(bytes, chunks)


def make_queue(taker: Taker, *, least: int = 1, limit: int = 4, inline: int = 0) -> ThreadQueue:
    return ThreadQueue(taker.take, Worker("test"), least=least, limit=limit, inline=inline)


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait without a suspension."""
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        assert time.monotonic() < deadline


# ── calls ──


async def test_a_lane_runs_in_order_and_ends() -> None:
    lane = Lane(Worker("aiodockersave-test"))
    order: list[int] = []
    futures = [lane.start(INLINE_SIZE // 2, order.append, number) for number in range(6)]
    assert [future.done() for future in futures[:3]] == [True, True, False]
    await asyncio.gather(*futures)
    assert order == list(range(6))
    await lane.close()


async def test_an_unused_lane_has_nothing_to_end() -> None:
    await Lane(Worker("aiodockersave-test")).close()


async def test_a_closing_lane_drops_what_its_last_call_raised() -> None:
    """The fault that made somebody close it is the one to be seen."""
    lane = Lane(Worker("aiodockersave-test"))
    may_fail = threading.Event()

    def fail() -> None:
        may_fail.wait(TIME_LIMIT)
        raise LookupError

    lane.start(2 * INLINE_SIZE, fail)
    closing = asyncio.create_task(lane.close())
    await asyncio.sleep(0)
    assert not closing.done()
    may_fail.set()
    await asyncio.wait_for(closing, TIME_LIMIT)


async def test_a_cancelled_close_waits_for_the_thread() -> None:
    lane = Lane(Worker("aiodockersave-test"))
    may_end = threading.Event()
    ended: list[bool] = []
    lane.start(2 * INLINE_SIZE, lambda: ended.append(may_end.wait(TIME_LIMIT)))
    closing = asyncio.create_task(lane.close())
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    assert not ended
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended == [True]


# ── chunks ──


@pytest.mark.parametrize("least", [1, 2, 3, 100])
@pytest.mark.parametrize("inline", [0, 1, 2, 5, 100])
async def test_all_chunks_are_taken_in_order(least: int, inline: int) -> None:
    taker = Taker()
    queue = make_queue(taker, least=least, inline=inline)
    chunks = [b"ab", b"c", b"defg", b"h", b"ij"]
    handed_over = 0
    for chunk in chunks:
        await queue.room()
        handed_over += queue.give(chunk)
    handed_over += await queue.drain()
    assert taker.taken == chunks
    assert handed_over == 10
    assert len(taker.threads) <= 2
    assert (threading.current_thread() in taker.threads) == (inline >= min(10, max(least, 2)))
    await queue.close()


async def test_a_thread_that_is_slow_is_waited_for() -> None:
    taker = Taker()
    taker.gate.clear()
    queue = make_queue(taker, limit=4)
    for _ in range(4):
        await queue.put(b"x")
    fifth = asyncio.ensure_future(queue.put(b"y"))
    await turns()
    assert not fifth.done()
    taker.gate.set()
    await asyncio.wait_for(fifth, TIME_LIMIT)
    await queue.drain()
    assert taker.taken == [b"x"] * 4 + [b"y"]
    await queue.close()


async def test_a_cancelled_wait_for_room_loses_nothing() -> None:
    taker = Taker()
    taker.gate.clear()
    queue = make_queue(taker, limit=2)
    await queue.put(b"xx")
    waiting = asyncio.ensure_future(queue.room())
    await turns()
    waiting.cancel()
    assert isinstance(await outcome_of(waiting), asyncio.CancelledError)
    taker.gate.set()
    await queue.put(b"y")
    await queue.drain()
    assert taker.taken == [b"xx", b"y"]
    await queue.close()


async def test_the_loop_is_woken_once_when_half_of_the_bytes_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken: list[object] = []
    loop = asyncio.get_running_loop()
    call_soon_threadsafe = loop.call_soon_threadsafe

    def noting(*args: Any, **options: Any) -> asyncio.Handle:
        woken.append(args)
        return call_soon_threadsafe(*args, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", noting)
    gates = [threading.Event() for _ in range(5)]
    taken = 0

    def take(_: Sequence[Batch]) -> None:
        nonlocal taken
        assert gates[taken].wait(TIME_LIMIT)
        taken += 1

    queue = ThreadQueue(take, Worker("test"), least=1, limit=4, inline=0)
    for _ in range(4):
        await queue.put(b"x")
    fifth = asyncio.ensure_future(queue.put(b"x"))
    await asyncio.sleep(0)
    gates[0].set()
    wait_until(lambda: taken == 1)
    await turns()
    assert not fifth.done()
    for gate in gates:
        gate.set()
    await asyncio.wait_for(fifth, TIME_LIMIT)
    assert len(woken) == 1
    await queue.drain()
    assert taken == 5
    await queue.close()


@pytest.mark.parametrize("number", range(4))
async def test_behind_a_hand_over_that_failed_nothing_is_taken(number: int) -> None:
    taker, error = Taker(), OSError("full")
    taker.faults[number] = error
    queue = make_queue(taker)

    async def give_all() -> None:
        for _ in range(6):
            await queue.put(b"x")
        await queue.drain()

    assert await outcome_of(give_all()) is error
    assert len(taker.taken) == number
    assert await outcome_of(queue.drain()) is error  # each time
    await queue.close()
    assert len(taker.taken) == number


async def test_a_fault_wakes_who_waits_for_room() -> None:
    """Nobody frees room then."""
    taker, error = Taker(), OSError("full")
    taker.gate.clear()
    taker.faults[0] = error
    queue = make_queue(taker, limit=2)
    await queue.put(b"xx")
    waiting = asyncio.ensure_future(outcome_of(queue.put(b"y")))
    await turns()
    taker.gate.set()
    assert await asyncio.wait_for(waiting, TIME_LIMIT) is error
    await queue.close()


async def test_a_fault_in_the_moment_in_which_room_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came after the looking and before the waiting, so the thread has told nobody."""
    taker, error = Taker(), OSError("full")
    taker.gate.clear()
    taker.faults[0] = error
    queue = make_queue(taker, limit=2)
    await queue.put(b"xx")
    get_running_loop = asyncio.get_running_loop

    def fail_now() -> asyncio.AbstractEventLoop:
        monkeypatch.undo()
        taker.gate.set()
        wait_until(lambda: queue._taken > 0)
        return get_running_loop()

    monkeypatch.setattr(asyncio, "get_running_loop", fail_now)
    assert await asyncio.wait_for(outcome_of(queue.put(b"y")), TIME_LIMIT) is error
    await queue.close()


async def test_an_error_keeps_no_chunks() -> None:
    given: list[weakref.ref[Batch]] = []
    taker = Taker()
    taker.gate.clear()
    taker.faults[0] = OSError("full")
    queue = make_queue(taker, limit=100)
    for _ in range(3):
        chunk = memoryview(b"x")
        given.append(weakref.ref(chunk))
        await queue.put(chunk)
        del chunk
    taker.gate.set()
    with pytest.raises(OSError, match="full") as caught:
        await queue.drain()
    await queue.close()
    # The first is in the error's traceback. The thread may be about to drop the last.
    wait_until(lambda: [ref() for ref in given[1:]] == [None] * 2)
    assert caught.value.__traceback__ is not None


@pytest.mark.parametrize("is_abandoned", [False, True], ids=["closed", "abandoned"])
async def test_closed_under_what_waits(is_abandoned: bool) -> None:
    """What is being taken comes to its end; what waits is dropped."""
    taker, stopped = Taker(), threading.Event()
    taker.gate.clear()
    worker = Worker("test")
    queue = ThreadQueue(taker.take, worker, least=1, limit=100, inline=0, stop=stopped.set)
    for _ in range(3):
        await queue.put(b"x")
    if is_abandoned:
        queue.abandon()
        taker.gate.set()
        worker.finish()
    else:
        closing = asyncio.ensure_future(queue.close())
        await turns()
        assert not closing.done()
        taker.gate.set()
        await asyncio.wait_for(closing, TIME_LIMIT)
    assert stopped.is_set()
    assert len(taker.taken) <= 1


async def test_a_fault_while_cancelled_is_noted() -> None:
    taker = Taker()
    taker.faults[0] = OSError("full")
    queue = make_queue(taker)
    cancelled = asyncio.CancelledError()
    queue.note_on(cancelled)
    await queue.put(b"x")
    await queue.close()
    queue.note_on(cancelled)
    other = ConnectionError()
    queue.note_on(other)
    assert other.__notes__ == ["meanwhile: OSError: full"]
    queue.note_on(taker.faults[0])
    assert not hasattr(taker.faults[0], "__notes__")
    assert cancelled.__notes__ == ["while cancelled: OSError: full"]


async def test_a_wake_up_that_is_lost_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may raise in the loop just when it was told."""
    taker = Taker()
    taker.gate.clear()
    queue = make_queue(taker, limit=2)
    await queue.put(b"xx")
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", lambda *_, **__: None)
    waiting = asyncio.ensure_future(queue.put(b"y"))
    await turns()
    taker.gate.set()
    await asyncio.wait_for(waiting, TIME_LIMIT)
    assert await asyncio.wait_for(queue.drain(), TIME_LIMIT) == 0
    await asyncio.wait_for(queue.close(), TIME_LIMIT)
    assert taker.taken == [b"xx", b"y"]


async def test_an_error_that_cannot_be_put_into_words_is_raised_all_the_same() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise LookupError("no words")

    taker, error = Taker(), SpeechlessError()
    taker.faults[0] = error
    queue = make_queue(taker)
    await queue.put(b"x")
    assert await asyncio.wait_for(outcome_of(queue.drain()), TIME_LIMIT) is error
    await asyncio.wait_for(outcome_of(queue.close()), TIME_LIMIT)


async def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing needs none, and waits for nothing that was not taken."""
    taker = Taker()
    queue = make_queue(taker)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            await queue.put(b"x")
        await asyncio.wait_for(queue.close(), TIME_LIMIT)
    other = make_queue(taker)
    taker.gate.clear()
    await other.put(b"y")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    other.abandon()
    closing = asyncio.ensure_future(other.close())
    await turns()
    taker.gate.set()
    await asyncio.wait_for(closing, TIME_LIMIT)
