"""A blob read ahead in a task of its own: bounded, told apart from its reader, closed whoever is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import traceback
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import ClosedResourceError

from aiodockersave import ContentError, _aio
from aiodockersave.blobs.content import OpenContent
from aiodockersave.blobs.read_ahead import ReadAhead
from tests.support.interruption import (
    WAYS,
    Driver,
    Way,
    by_cancel_scope,
    by_task_cancel,
    outcome_of,
    running_task,
    suspend,
    suspend_until_ready,
)

PATIENCE = 60.0  # seconds that something which must happen may take
SUSPENSIONS_AFTER = 12  # so many may follow a cancel: what absorbs one delivery after the other has more
CHUNKS = [bytes([number]) * 100 for number in range(10)]


class Blob:
    """A blob that counts who opens and closes it.

    Attributes:
        given: How many chunks were given.
        tasks: Every task that opened, iterated or closed it.
        closed_in_peace: How often nothing interrupted its closing once it had heard of the cancels.
        cancels: How many cancels reached its closing.
        closing: Set when it is being closed.
    """

    def __init__(
        self,
        chunks: list[Any] | None = None,
        *,
        hangs_at_end: bool = False,
        closing_suspensions: int = 1,
        hangs_when_closed: int = 0,
    ) -> None:
        self.given = 0
        self.opened = 0
        self.closed = 0
        self.tasks: set[object] = set()
        self.closed_in_peace = 0
        self.cancels = 0
        self.closing = asyncio.Event()
        self._chunks = CHUNKS if chunks is None else chunks
        self._hangs_at_end = hangs_at_end
        self._closing_suspensions = closing_suspensions
        self._hangs_when_closed = hangs_when_closed

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Any]]:
        self.tasks.add(running_task())
        self.opened += 1
        try:
            await suspend_until_ready()
            yield self._iterate()
        finally:
            await self._close()

    async def _iterate(self) -> AsyncIterator[Any]:
        for chunk in self._chunks:
            self.tasks.add(running_task())
            await suspend()
            if isinstance(chunk, BaseException):
                raise chunk
            self.given += 1
            yield chunk
        if self._hangs_at_end:
            await asyncio.get_running_loop().create_future()

    async def _close(self) -> None:
        self.tasks.add(running_task())
        self.closing.set()
        try:
            for _ in range(self._hangs_when_closed):
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    self.cancels += 1
            for _ in range(self._closing_suspensions):
                await suspend()
            self.closed_in_peace += 1
        finally:
            self.closed += 1


def read_ahead(content: Any, *, limit: int) -> ReadAhead:
    return ReadAhead(OpenContent(content), limit=limit)


async def read_all(ahead: ReadAhead) -> list[bytes]:
    chunks = []
    while chunk := await ahead.read():
        chunks.append(chunk)
    return chunks


async def turns(count: int = 50) -> None:
    """Give everything that is ready its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


# ── reading ──


async def test_chunks_come_as_they_are_and_the_end_is_empty_again_and_again() -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=250)
    ahead.start()
    assert await read_all(ahead) == CHUNKS
    assert (blob.opened, blob.closed) == (1, 1), "it is closed before its end is told"
    assert await ahead.read() == await ahead.read() == b""
    await ahead.aclose()


async def test_reading_starts_it() -> None:
    ahead = read_ahead(Blob().open, limit=250)
    assert await read_all(ahead) == CHUNKS


# limit, chunks read before the task waits: those that fit, the one that exceeds, the one in its hand
BOUNDS = [(1, 2), (200, 3), (1000, 8), (1 << 20, 10)]


@pytest.mark.parametrize(("limit", "given"), BOUNDS)
async def test_what_is_read_ahead_is_bounded(limit: int, given: int) -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=limit)
    ahead.start()
    await turns()
    assert blob.given == given
    assert blob.closed == (given == len(CHUNKS))
    for taken in range(1, len(CHUNKS) + 1):
        await ahead.read()
        await turns()
        assert blob.given == min(given + taken, len(CHUNKS)), "goes on when there is room"
    await ahead.aclose()


async def test_a_large_chunk_that_waits_leaves_no_room() -> None:
    blob = Blob([b"x" * 50, b"y" * 1000, b"z"])
    ahead = read_ahead(blob.open, limit=500)
    ahead.start()
    await turns()
    assert blob.given == 3, "one in its hand"
    await ahead.read()
    await turns()
    assert blob.closed == 0
    await ahead.read()
    await turns()
    assert blob.closed == 1
    assert await read_all(ahead) == [b"z"]


async def test_many_tiny_chunks_do_not_take_more_memory_than_large_ones() -> None:
    blob = Blob([b"x"] * 1000)
    ahead = read_ahead(blob.open, limit=1000)
    ahead.start()
    await turns(3000)
    assert blob.given < 20
    assert b"".join(await read_all(ahead)) == b"x" * 1000


async def test_a_source_that_never_suspends_leaves_the_loop_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aio, "YIELD_BYTES", 3 * (100 + _aio._CHUNK_COST))
    given = 0

    async def iterate() -> AsyncGenerator[bytes, None]:
        nonlocal given
        for chunk in CHUNKS:
            given += 1
            yield chunk

    ahead = read_ahead(lambda: contextlib.aclosing(iterate()), limit=1 << 20)
    ahead.start()
    await asyncio.sleep(0)
    assert given == 3
    await ahead.aclose()


# What a source may give for bytes: nobody else may change it, and no chunk is larger than a mebibyte.
ODD_CHUNKS: dict[str, tuple[list[Any], list[bytes]]] = {
    "bytearray": ([bytearray(b"abc")], [b"abc"]),
    "memoryview": ([memoryview(b"abc")], [b"abc"]),
    "empty-ones": ([b"", b"abc", b"", b"d"], [b"abc", b"d"]),
    "huge": ([bytes((1 << 20) + 1)], [bytes(1 << 20), b"\0"]),
}


@pytest.mark.parametrize(("given", "expected"), ODD_CHUNKS.values(), ids=ODD_CHUNKS)
async def test_odd_chunks(given: list[Any], expected: list[bytes]) -> None:
    chunks = await read_all(read_ahead(Blob(given).open, limit=1000))
    assert chunks == expected
    assert {type(chunk) for chunk in chunks} == {bytes}


async def test_it_opens_iterates_and_closes_in_one_task_whoever_reads() -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=150)
    for _ in CHUNKS:
        await asyncio.create_task(ahead.read())
    assert await ahead.read() == b""
    assert len(blob.tasks) == 1
    assert running_task() not in blob.tasks


async def test_a_source_may_hold_scopes_open_while_it_gives() -> None:
    @contextlib.asynccontextmanager
    async def scoped() -> AsyncIterator[AsyncIterator[bytes]]:
        async with asyncio.timeout(PATIENCE), anyio.create_task_group():
            with anyio.fail_after(PATIENCE):
                async with Blob().open() as chunks:
                    yield chunks

    ahead = read_ahead(scoped, limit=150)
    assert await asyncio.create_task(read_all(ahead)) == CHUNKS
    ahead = read_ahead(scoped, limit=150)
    await asyncio.create_task(ahead.read())
    await asyncio.create_task(ahead.aclose())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
async def test_eager_tasks() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - mypy knows 3.11
    try:
        assert await read_all(read_ahead(Blob().open, limit=150)) == CHUNKS
        assert await read_ahead(lambda: contextlib.nullcontext(b"data"), limit=150).read() == b"data"
    finally:
        loop.set_task_factory(None)


# ── faults ──


async def test_what_the_source_raises_comes_behind_its_chunks_with_its_traceback_each_time() -> None:
    error = LookupError("not there any more")
    blob = Blob([*CHUNKS[:3], error])
    ahead = read_ahead(blob.open, limit=1 << 20)
    ahead.start()
    await turns()
    assert [await ahead.read() for _ in range(3)] == CHUNKS[:3]
    depths = set()
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            await ahead.read()
        assert caught.value is error
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert frames[-1] == "_iterate"
        depths.add(len(frames))
    assert len(depths) == 1, "its traceback does not grow"
    assert blob.closed == 1
    await ahead.aclose()


async def test_what_the_source_raises_when_it_is_closed_comes_in_place_of_the_end() -> None:
    @contextlib.asynccontextmanager
    async def fails_to_close() -> AsyncIterator[AsyncIterator[bytes]]:
        async with Blob(CHUNKS[:1]).open() as chunks:
            yield chunks
        raise ConnectionResetError

    ahead = read_ahead(fails_to_close, limit=1000)
    assert await ahead.read() == CHUNKS[0]
    with pytest.raises(ConnectionResetError):
        await ahead.read()


async def test_a_cancel_that_nobody_sent_is_an_error() -> None:
    ahead = read_ahead(Blob([asyncio.CancelledError()]).open, limit=1000)
    with pytest.raises(ContentError, match="cancelled its reader"):
        await ahead.read()


async def test_a_cancel_of_its_task_by_others_reaches_the_reader() -> None:
    blob = Blob(hangs_at_end=True)
    ahead = read_ahead(blob.open, limit=1 << 20)
    ahead.start()
    (task,) = asyncio.all_tasks() - {running_task()}
    task.cancel()  # before its first step
    with pytest.raises(asyncio.CancelledError):
        await ahead.read()
    assert blob.opened == 0


async def test_something_else_than_bytes_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="where bytes were expected"):
        await read_ahead(Blob(["text"]).open, limit=1000).read()


# ── closing ──


async def test_what_was_never_started_leaves_nothing() -> None:
    blob = Blob()
    read_ahead(blob.open, limit=1000)
    ahead = read_ahead(blob.open, limit=1000)
    await ahead.aclose()
    ahead.start()
    with pytest.raises(ClosedResourceError):
        await ahead.read()
    assert blob.opened == 0


@pytest.mark.parametrize("taken", [0, 1, 5, 10, 11])
async def test_closing_ends_the_task_and_drops_what_was_read(taken: int) -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=250)
    for _ in range(taken):
        await ahead.read()
    for _ in range(2):
        await ahead.aclose()
        assert blob.closed == blob.opened
        with pytest.raises(ClosedResourceError):
            await ahead.read()


async def test_closing_as_soon_as_it_was_started_opens_nothing() -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=250)
    ahead.start()
    await ahead.aclose()
    assert blob.opened == 0


async def test_closing_while_a_read_waits() -> None:
    blob = Blob([], hangs_at_end=True)
    ahead = read_ahead(blob.open, limit=250)
    reading = asyncio.create_task(ahead.read())
    await turns()
    await ahead.aclose()
    assert blob.closed == 1
    with pytest.raises(ClosedResourceError):
        await reading


async def test_closing_in_the_turn_in_which_a_chunk_arrives() -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=250)
    reading = asyncio.create_task(ahead.read())
    while not blob.given:
        await asyncio.sleep(0)
    await ahead.aclose()
    assert await outcome_of(reading) is None or isinstance(reading.exception(), ClosedResourceError)
    assert blob.closed == 1


async def test_closing_after_a_failure_forgets_it() -> None:
    ahead = read_ahead(Blob([LookupError()]).open, limit=250)
    with pytest.raises(LookupError):
        await ahead.read()
    await ahead.aclose()
    with pytest.raises(ClosedResourceError):
        await ahead.read()


async def test_what_failed_and_was_closed_keeps_nothing_of_its_source() -> None:
    class Witness:
        """Lives in a frame of the source."""

    witnesses: list[weakref.ref[Witness]] = []

    def fails() -> Any:
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        raise LookupError

    ahead = read_ahead(fails, limit=250)
    assert isinstance(await outcome_of(ahead.read()), LookupError)
    gc.collect()
    assert witnesses[0]() is not None
    await ahead.aclose()
    gc.collect()
    assert witnesses[0]() is None


async def test_two_that_close_at_once_both_wait_for_the_end() -> None:
    blob = Blob(closing_suspensions=10)
    ahead = read_ahead(blob.open, limit=250)
    await ahead.read()
    first = asyncio.create_task(ahead.aclose())
    await asyncio.sleep(0)
    await ahead.aclose()
    assert blob.closed == 1
    await first


async def test_what_closing_raises_is_dropped() -> None:
    @contextlib.asynccontextmanager
    async def fails_to_close() -> AsyncIterator[AsyncIterator[bytes]]:
        async with Blob().open() as chunks:
            try:
                yield chunks
            finally:
                raise ConnectionResetError

    ahead = read_ahead(fails_to_close, limit=250)
    await ahead.read()
    await ahead.aclose()


async def test_a_second_cancel_interrupts_what_is_being_closed_and_waits_for_its_end() -> None:
    blob = Blob(hangs_when_closed=2)
    ahead = read_ahead(blob.open, limit=250)
    await ahead.read()
    closing = asyncio.create_task(ahead.aclose())
    await blob.closing.wait()
    for sent in (1, 2):
        assert not closing.done()
        closing.cancel()
        await turns()
        assert blob.cancels == sent
    assert blob.closed == 1
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_cancelled_scope_says_it_once_to_what_is_being_closed() -> None:
    blob = Blob(hangs_when_closed=1, closing_suspensions=50)
    ahead = read_ahead(blob.open, limit=250)
    await ahead.read()
    driver = Driver()

    async def cancel() -> None:
        await blob.closing.wait()
        scope.cancel()

    cancelling = asyncio.create_task(cancel())
    with anyio.CancelScope() as scope:
        await driver.drive(ahead.aclose())
    await cancelling
    assert scope.cancelled_caught
    assert (blob.cancels, blob.closed, blob.closed_in_peace) == (1, 1, 1)
    assert driver.suspensions < SUSPENSIONS_AFTER


async def test_a_coroutine_that_is_closed_while_it_closes_has_cancelled_the_task() -> None:
    blob = Blob()
    ahead = read_ahead(blob.open, limit=250)
    await ahead.read()
    closing = ahead.aclose()
    closing.send(None)
    closing.close()
    await turns()
    assert blob.closed == 1


@pytest.mark.parametrize("call", ["read", "aclose"])
async def test_what_is_read_must_not_wait_for_itself(call: str) -> None:
    @contextlib.asynccontextmanager
    async def entangled() -> AsyncIterator[AsyncIterator[bytes]]:
        await getattr(ahead, call)()
        yield Blob()._iterate()

    ahead = read_ahead(entangled, limit=250)
    with pytest.raises(RuntimeError, match="wait for itself"):
        await ahead.read()


# ── interrupted ──


async def read_then_close(blob: Blob, chunks: list[bytes]) -> None:
    ahead = read_ahead(blob.open, limit=150)
    try:
        while chunk := await ahead.read():
            chunks.append(chunk)
    finally:
        await ahead.aclose()
        assert blob.closed == blob.opened, "a task without an owner"


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS)
async def test_every_suspension_interrupted(way: Way, twice: bool) -> None:
    counting = Driver()
    await counting.drive(read_then_close(Blob(), []))
    for at in range(1, counting.suspensions + 1):
        blob, driver, chunks = Blob(), Driver(at, twice=twice), list[bytes]()
        await asyncio.create_task(way(driver, partial(read_then_close, blob, chunks)))
        assert chunks == CHUNKS[: len(chunks)]
        assert driver.thrown or at == counting.suspensions
        assert driver.suspensions_after < SUSPENSIONS_AFTER


@pytest.mark.parametrize("way", [by_task_cancel, by_cancel_scope])
async def test_a_cancelled_read_loses_nothing(way: Way) -> None:
    counting = Driver()
    await counting.drive(read_all(read_ahead(Blob().open, limit=150)))
    for at in range(1, counting.suspensions + 1):
        ahead, chunks = read_ahead(Blob().open, limit=150), list[bytes]()
        await asyncio.create_task(way(Driver(at), partial(collect, ahead, chunks)))
        await collect(ahead, chunks)
        assert chunks == CHUNKS


async def collect(ahead: ReadAhead, chunks: list[bytes]) -> None:
    while chunk := await ahead.read():
        chunks.append(chunk)


async def test_closed_from_another_task_at_every_suspension() -> None:
    counting = Driver()
    await counting.drive(read_all(read_ahead(Blob().open, limit=150)))
    for at in range(1, counting.suspensions + 1):
        blob, driver = Blob(), Driver(at)
        ahead = read_ahead(blob.open, limit=150)
        closing: list[asyncio.Task[None]] = []
        driver.fire = partial(close_elsewhere, ahead, closing)
        outcome = await outcome_of(driver.drive(read_all(ahead)))
        assert isinstance(outcome, ClosedResourceError | None)
        await closing[0]
        assert blob.closed == blob.opened


def close_elsewhere(ahead: ReadAhead, closing: list[asyncio.Task[None]]) -> None:
    closing.append(asyncio.create_task(ahead.aclose()))
