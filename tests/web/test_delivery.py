"""One body for one client: every way in which it ends, with a client and a body of the test's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from aiodockersave import SizeMismatchError
from aiodockersave.archive.stream import ByteStream
from aiodockersave.web import delivery
from aiodockersave.web.delivery import PIECE_SIZE, Delivery, Outcome
from tests.support.interruption import WAYS, Driver, Way, suspend_until_ready

from .servers import LIMIT
from .site import own_tasks, until


class Body(ByteStream):
    """Chunks from a list; an exception in it is raised, a function is called and waited for.

    Attributes:
        closed: How often it was closed.
        fails_closing: What is raised when it is closed.
    """

    def __init__(self, *steps: bytes | BaseException | Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self.closed = 0
        self.fails_closing: Exception | None = None
        self._steps = list(steps)

    async def _next(self) -> bytes:
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, bytes):
                return step
            await step()
        return b""

    async def _close(self) -> None:
        self.closed += 1
        if self.fails_closing is not None:
            raise self.fails_closing


class Listener:
    """A client that takes all, until it is told otherwise.

    Attributes:
        events: What it was given: "start", each piece, "finish".
        on: What it does instead, by the name of the method.
        left: Set when it leaves.
    """

    def __init__(self, **on: Callable[[], Awaitable[object]]) -> None:
        self.events: list[str | bytes] = []
        self.on = on
        self.left = asyncio.Event()
        self.is_gone = True

    async def _do(self, name: str, event: str | bytes) -> None:
        self.events.append(event)
        if name in self.on:
            await self.on[name]()

    async def start(self) -> None:
        await self._do("start", "start")

    async def send(self, data: bytes | memoryview, /) -> None:
        await self._do("send", bytes(data))

    async def finish(self) -> None:
        await self._do("finish", "finish")

    async def departure(self) -> None:
        await self.left.wait()

    def has_left(self) -> bool:
        return self.is_gone


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def raising(error: BaseException) -> Callable[[], Awaitable[object]]:
    async def fail() -> None:
        raise error

    return fail


async def run(listener: Listener, body: Body, size: int | None = None, timeout: float = LIMIT) -> Outcome:
    return await Delivery(listener, size=size, send_timeout=timeout).run(body)


async def test_all_is_sent() -> None:
    listener, body = Listener(), Body(b"ab", b"c")
    assert await run(listener, body, 3) is Outcome.COMPLETE
    assert listener.events == ["start", b"ab", b"c", "finish"]
    assert body.closed
    assert own_tasks() == []


async def test_nothing_is_sent() -> None:
    listener = Listener()
    assert await run(listener, Body(), 0) is Outcome.COMPLETE
    assert listener.events == ["start", "finish"]


async def test_a_large_chunk_is_sent_in_pieces() -> None:
    listener, chunk = Listener(), bytes(range(256)) * (PIECE_SIZE // 100)
    await run(listener, Body(chunk))
    pieces = [event for event in listener.events if isinstance(event, bytes)]
    assert [len(piece) for piece in pieces] == [PIECE_SIZE, PIECE_SIZE, len(chunk) - 2 * PIECE_SIZE]
    assert b"".join(pieces) == chunk


SIZES = {
    "short": ([b"ab"], 3, ["start", b"ab"]),
    "empty": ([], 1, []),
    "long": ([b"ab", b"cd"], 3, ["start", b"ab"]),
    "long at once": ([b"abcd"], 3, []),
    "long by a chunk": ([b"abc", b"d"], 3, ["start", b"abc"]),
}


@pytest.mark.parametrize(("chunks", "size", "events"), SIZES.values(), ids=SIZES)
async def test_another_size_than_was_promised(
    chunks: list[bytes], size: int, events: list[str | bytes]
) -> None:
    listener, body = Listener(), Body(*chunks)
    with pytest.raises(SizeMismatchError) as caught:
        await run(listener, body, size)
    assert caught.value.expected == size
    assert listener.events == events
    assert body.closed


async def test_a_fault_before_the_first_chunk() -> None:
    """Nothing was sent, so the application can still answer."""
    delivery = Delivery(listener := Listener(), size=None, send_timeout=LIMIT)
    with pytest.raises(ZeroDivisionError):
        await delivery.run(Body(ZeroDivisionError()))
    assert (listener.events, delivery.is_started, delivery.sent) == ([], False, 0)


async def test_a_fault_in_the_middle() -> None:
    delivery = Delivery(listener := Listener(), size=None, send_timeout=LIMIT)
    with pytest.raises(ZeroDivisionError):
        await delivery.run(body := Body(b"abc", ZeroDivisionError()))
    assert (listener.events, delivery.is_started, delivery.sent) == (["start", b"abc"], True, 3)
    assert body.closed


@pytest.mark.parametrize("error", [TimeoutError("source"), ConnectionResetError("source")])
async def test_a_fault_of_the_source_is_none_of_the_client(error: Exception) -> None:
    with pytest.raises(type(error), match="source"):
        await run(Listener(), Body(b"abc", error))


@pytest.mark.parametrize("where", ["start", "send", "finish"])
async def test_a_client_that_is_gone_when_something_is_sent(where: str) -> None:
    body = Body(b"abc")
    assert await run(Listener(**{where: raising(ConnectionError())}), body) is Outcome.LEFT
    assert body.closed


@pytest.mark.parametrize("where", ["start", "send", "finish"])
@pytest.mark.parametrize("error", [PermissionError(), TimeoutError()])
async def test_another_fault_of_the_application(where: str, error: OSError) -> None:
    """A signal handler that cannot reach its database is no client that left."""
    listener = Listener(**{where: raising(error)})
    listener.is_gone = False
    with pytest.raises(type(error)):
        await run(listener, Body(b"abc"))


@pytest.mark.parametrize("where", ["start", "send", "finish"])
async def test_a_client_that_stalls(where: str) -> None:
    listener, body = Listener(**{where: forever}), Body(b"abc")
    outcome = await run(listener, body, timeout=0.01)  # not a verdict: nothing else can come of it
    assert outcome is Outcome.STALLED
    assert body.closed
    assert own_tasks() == []


async def test_a_client_that_leaves_a_silent_source() -> None:
    listener = Listener()

    async def leave() -> None:
        listener.left.set()
        await forever()

    body = Body(b"abc", leave)
    assert await run(listener, body) is Outcome.LEFT
    assert listener.events == ["start", b"abc"]
    assert body.closed
    assert own_tasks() == []


async def test_a_client_that_leaves_while_it_is_sent_to() -> None:
    listener = Listener()

    async def leave() -> None:
        listener.left.set()
        await forever()

    listener.on["send"] = leave
    assert await run(listener, Body(b"abc")) is Outcome.LEFT


async def test_a_client_that_is_gone_and_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As uvicorn's does: nothing waits, and it is noticed all the same, within 4 MiB."""
    listener = Listener()
    listener.left.set()
    assert await run(listener, Body(*[bytes(1 << 16)] * 1000)) is Outcome.LEFT
    assert sum(map(len, listener.events[1:])) <= 4 << 20


async def test_an_error_of_closing_a_body_after_the_client_left_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()

    async def leave() -> None:
        listener.left.set()
        await forever()

    body = Body(b"abc", leave)
    body.fails_closing = ValueError("not\r\nclosed")
    assert await run(listener, body) is Outcome.LEFT
    (record,) = caplog.records
    assert record.getMessage() == "closing a body whose client has left: ValueError: not closed"


async def test_a_wait_for_the_client_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A server that cannot say any more whether a client is there has none."""

    class Deaf(Listener):
        async def departure(self) -> None:
            raise RuntimeError("no longer here")

    assert await run(Deaf(), Body(b"abc", forever)) is Outcome.LEFT
    (record,) = caplog.records
    assert (record.levelno, "no longer here" in record.getMessage()) == (logging.WARNING, True)


@pytest.mark.parametrize("times", [1, 2])
async def test_cancel_while_the_source_is_silent(times: int) -> None:
    listener, body = Listener(), Body(b"abc", forever)
    task = asyncio.create_task(run(listener, body))
    await until(lambda: len(listener.events) == 2)
    for _ in range(times):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert listener.events == ["start", b"abc"]
    assert body.closed
    await until(lambda: own_tasks() == [])


async def test_cancel_wins_over_a_client_that_leaves() -> None:
    """Both in one tick: the cancel is raised."""
    listener, body = Listener(), Body(b"abc", forever)
    task = asyncio.create_task(run(listener, body))
    await until(lambda: len(listener.events) == 2)
    listener.left.set()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert body.closed


async def test_a_timeout_around_it_stays_one() -> None:
    body = Body(b"abc", forever)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):  # not a verdict: nothing else can come of it
            await run(Listener(), body)
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0
    assert body.closed


async def test_a_departure_leaves_no_cancel_behind() -> None:
    listener = Listener()

    async def leave() -> None:
        listener.left.set()
        await forever()

    await run(listener, Body(leave))
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0
    await asyncio.sleep(0)


# ── at every suspension ──


def world() -> tuple[Listener, Body]:
    """A client and a body that suspend wherever they can."""
    listener = Listener(start=suspend_until_ready, send=suspend_until_ready, finish=suspend_until_ready)
    return listener, Body(suspend_until_ready, b"ab", suspend_until_ready, b"cd", suspend_until_ready)


async def count() -> int:
    counting = Driver()
    assert await counting.drive(run(*world(), 4)) is Outcome.COMPLETE
    return counting.suspensions


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS)
async def test_every_suspension_interrupted(way: Way, twice: bool) -> None:
    suspensions = await count()
    assert suspensions >= 8
    for at in range(1, suspensions + 1):
        listener, body = world()
        driver = Driver(at, twice=twice)
        await asyncio.create_task(way(driver, partial(run, listener, body, 4)))
        assert driver.thrown or at == suspensions
        assert driver.suspensions_after < 12
        assert body.closed
        await until(lambda: own_tasks() == [])


async def test_a_client_that_leaves_at_every_suspension() -> None:
    outcomes = set()
    for at in range(1, await count() + 1):
        listener, body = world()
        driver = Driver(at)
        driver.fire = listener.left.set
        outcomes.add(await driver.drive(run(listener, body, 4)))
        assert body.closed
        assert own_tasks() == []
    assert outcomes == {Outcome.LEFT, Outcome.COMPLETE}  # the latter where all was sent


# ── the connection ──


class Wire:
    """A transport that counts its aborts."""

    def __init__(self, sock: Any = None) -> None:
        self.aborted = 0
        self._sock = sock

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self._sock}[name]

    def abort(self) -> None:
        self.aborted += 1


class Sock:
    """A socket that notes its options."""

    def __init__(self) -> None:
        self.options: list[tuple[Any, ...]] = []

    def setsockopt(self, *option: Any) -> None:
        self.options.append(option)
        raise OSError("closed")


@pytest.mark.parametrize("has_frame", [True, False])
def test_drop(has_frame: bool) -> None:
    """A connection is reset if its end alone ends the body."""
    sock = Sock()
    wire = Wire(sock)
    delivery.drop(wire, has_frame=has_frame)  # type: ignore[arg-type]
    assert (wire.aborted, len(sock.options)) == (1, 0 if has_frame else 1)


def test_drop_of_nothing() -> None:
    delivery.drop(None, has_frame=False)
    delivery.drop(wire := Wire(), has_frame=False)  # type: ignore[arg-type]
    assert wire.aborted == 1
