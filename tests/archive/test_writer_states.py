"""Calls beside each other, contents that have a mind of their own, and ways to leave: the writer's states."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import select
import threading
import time
import types
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
import pytest

from aiodockersave import (
    ArchiveWriter,
    ContentError,
    Digest,
    SizeMismatchError,
    WriterBrokenError,
    WriterClosedError,
    open_archive,
)
from aiodockersave.blobs import content, thread_queue
from aiodockersave.core.tar import END_OF_ARCHIVE
from tests.support.images import Layer, ListSink, MemorySink, archive_of, make_image, make_layer
from tests.support.interruption import outcome_of, running_task, step

PATIENCE = 60.0  # seconds that something which must happen may take

MakeSink = Callable[[], Any]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "BATCH_SIZE", 100)


def layer_of(name: str, size: int = 500) -> Layer:
    return make_layer(random.Random(name).randbytes(size), None)


FIRST, SECOND, THIRD = layer_of("first"), layer_of("second"), layer_of("third")


class GatedContent:
    """Gives half of a layer, and the rest when it is let go on.

    Attributes:
        reading: Set when it waits in the middle.
        go_on: What it waits for.
        opened: How often it was opened.
        closed: How often it was closed.
        told: What it was told when it was closed.
    """

    def __init__(self, layer: Layer) -> None:
        self.reading = asyncio.Event()
        self.go_on = asyncio.Event()
        self.opened = 0
        self.closed = 0
        self.told: list[BaseException | None] = []
        self._layer = layer
        self._read = 0

    def open(self) -> GatedContent:
        """Return what is read; this method is what the writer is given."""
        return self

    async def __aenter__(self) -> Self:
        self.opened += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.closed += 1
        self.told.append(exc)

    async def read(self, size: int) -> bytes:
        half = len(self._layer.blob) // 2
        if self._read == half:
            self.reading.set()
            await self.go_on.wait()
        start, self._read = self._read, min(self._read + half // 2, len(self._layer.blob))
        return self._layer.blob[start : self._read]

    def put_into(self, archive: ArchiveWriter, **options: Any) -> asyncio.Task[Any]:
        """Start to put it."""
        return asyncio.create_task(archive.put_layer(self.open, self._layer.descriptor, **options))


async def put(archive: ArchiveWriter, *layers: Layer) -> None:
    for layer in layers:
        await archive.put_layer(layer.blob, layer.descriptor)


async def ended(*tasks: asyncio.Task[Any]) -> list[BaseException | None]:
    """Wait for tasks and return what each raised."""
    async with asyncio.timeout(PATIENCE):
        return [await outcome_of(task) for task in tasks]


async def soon(waiting: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(waiting, PATIENCE)


async def turns(count: int = 5) -> None:
    """Let everything happen that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def is_closed_error(exc: BaseException | None, *, aborted: bool) -> bool:
    return isinstance(exc, WriterClosedError) and exc.aborted is aborted


BOTH_SINKS = pytest.mark.parametrize("make_sink", [MemorySink, ListSink])


# ── abort ──


@BOTH_SINKS
async def test_abort_interrupts_the_running_put(make_sink: MakeSink) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink)
    await put(archive, FIRST)
    whole = sink.getvalue()
    running = GatedContent(SECOND)
    cancelling: list[int] = []

    async def work() -> None:
        try:
            await archive.put_layer(running.open, SECOND.descriptor)
        finally:
            cancelling.append(running_task().cancelling())

    task = asyncio.create_task(work())
    await soon(running.reading.wait())
    await soon(archive.abort())
    assert running.closed == 1, "abort() returns when no call runs"
    (error,) = await ended(task)
    assert is_closed_error(error, aborted=True)
    assert cancelling == [0], "the cancel of the interruption is taken back"
    assert (sink.getvalue() == whole) is isinstance(sink, MemorySink)
    assert sink.getvalue().startswith(whole)
    for call in (archive.close(), archive.put_layer(b""), archive.put_image(b"{}", [])):
        assert is_closed_error(await outcome_of(call), aborted=True)
    assert not sink.getvalue().endswith(END_OF_ARCHIVE)


async def test_abort_interrupts_queued_and_staging_puts() -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    running, staging = GatedContent(FIRST), GatedContent(SECOND)
    queued = [GatedContent(layer_of(f"queued {number}")) for number in range(5)]
    tasks = [running.put_into(archive), staging.put_into(archive, stage=True)]
    tasks += [each.put_into(archive) for each in queued]
    await soon(asyncio.gather(running.reading.wait(), staging.reading.wait()))
    await soon(archive.abort())
    assert all(is_closed_error(error, aborted=True) for error in await ended(*tasks))
    assert (running.closed, staging.closed) == (1, 1)
    assert not any(each.opened for each in queued)


async def test_a_cancel_from_elsewhere_wins_over_abort() -> None:
    archive = ArchiveWriter(MemorySink())
    running = GatedContent(FIRST)
    cancelling: list[int] = []

    async def work() -> None:
        try:
            await archive.put_layer(running.open, FIRST.descriptor)
        except asyncio.CancelledError:
            cancelling.append(running_task().cancelling())
            raise

    task = asyncio.create_task(work())
    await soon(running.reading.wait())
    task.cancel()
    await soon(archive.abort())
    (error,) = await ended(task)
    assert isinstance(error, asyncio.CancelledError)
    assert cancelling == [1]


async def test_a_time_out_from_elsewhere_wins_over_abort() -> None:
    archive = ArchiveWriter(MemorySink())
    running = GatedContent(FIRST)

    async def work() -> None:
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await archive.put_layer(running.open, FIRST.descriptor)

    limits: list[asyncio.Timeout] = []
    task = asyncio.create_task(work())
    await soon(running.reading.wait())
    limits[0].reschedule(0)
    await turns(1)
    await soon(archive.abort())
    (error,) = await ended(task)
    assert isinstance(error, TimeoutError)


async def test_abort_of_a_closed_writer_does_nothing() -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink)
    await archive.close()
    data, report = sink.getvalue(), archive.report
    step(archive.abort())
    step(archive.close())
    for call in (archive.put_layer(b""), archive.put_image(b"{}", [])):
        assert is_closed_error(await outcome_of(call), aborted=False)
    assert (sink.getvalue(), archive.report) == (data, report)


async def test_abort_of_a_broken_writer_does_nothing() -> None:
    archive = ArchiveWriter(ListSink())
    broken = GatedContent(FIRST)
    task = broken.put_into(archive)
    await soon(broken.reading.wait())
    task.cancel()
    await ended(task)
    step(archive.abort())
    assert isinstance(await outcome_of(archive.close()), WriterBrokenError)


async def test_a_cancelled_abort_has_given_the_archive_up() -> None:
    archive = ArchiveWriter(MemorySink())

    class SlowToClose(GatedContent):
        async def __aexit__(
            self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
        ) -> None:
            closing.set()
            await go_on.wait()
            await super().__aexit__(exc_type, exc, tb)

    closing, go_on = asyncio.Event(), asyncio.Event()
    running = SlowToClose(FIRST)
    task = running.put_into(archive)
    await soon(running.reading.wait())
    abort = asyncio.create_task(archive.abort())
    await soon(closing.wait())
    abort.cancel()
    assert isinstance((await ended(abort))[0], asyncio.CancelledError)
    assert is_closed_error(await outcome_of(archive.close()), aborted=True)
    go_on.set()
    assert is_closed_error((await ended(task))[0], aborted=True)
    await soon(archive.abort())


async def test_two_aborts_both_wait() -> None:
    archive = ArchiveWriter(MemorySink())
    running = GatedContent(FIRST)
    task = running.put_into(archive)
    await soon(running.reading.wait())
    await soon(asyncio.gather(archive.abort(), archive.abort()))
    assert running.closed == 1
    await ended(task)


# ── close ──


async def test_close_waits_for_the_puts_before_it_and_refuses_those_behind() -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink)
    running, queued, behind = GatedContent(FIRST), GatedContent(SECOND), GatedContent(THIRD)
    before = [running.put_into(archive), queued.put_into(archive)]
    await soon(running.reading.wait())
    close = asyncio.create_task(archive.close())
    await turns()
    late = behind.put_into(archive)
    await turns()
    running.go_on.set()
    queued.go_on.set()
    assert await ended(*before, close) == [None, None, None]
    assert is_closed_error((await ended(late))[0], aborted=False)
    assert behind.opened == 0
    assert archive.report is not None
    assert len(archive.report.members) == 4  # two layers, manifest.json, repositories
    assert sink.getvalue().endswith(END_OF_ARCHIVE)


class StuckSink(MemorySink):
    """Waits in a write that is to be stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = asyncio.Event()
        self.is_stuck = False

    async def write(self, data: bytes, /) -> None:
        await super().write(data)
        if self.is_stuck:
            self.stuck.set()
            await asyncio.Event().wait()


async def test_a_put_behind_a_close_that_was_rewound_goes_on() -> None:
    sink = StuckSink()
    archive = ArchiveWriter(sink)
    await put(archive, FIRST)
    sink.is_stuck = True
    close = asyncio.create_task(archive.close())
    await soon(sink.stuck.wait())
    late = GatedContent(SECOND)
    late.go_on.set()
    task = late.put_into(archive)
    await turns()
    sink.is_stuck = False
    close.cancel()
    assert isinstance((await ended(close))[0], asyncio.CancelledError)
    assert await ended(task) == [None]
    image = make_image(FIRST, SECOND, repo_tags=["example.com/app:1.0"])
    await archive.put_image(image.config, image.manifest, image.repo_tags)
    await archive.close()
    assert sink.getvalue() == await archive_of([image])


async def test_a_put_that_stages_when_close_has_succeeded() -> None:
    archive = ArchiveWriter(MemorySink())
    staging = GatedContent(FIRST)
    cancelling: list[int] = []

    async def work() -> None:
        try:
            await archive.put_layer(staging.open, FIRST.descriptor, stage=True)
        finally:
            cancelling.append(running_task().cancelling())

    task = asyncio.create_task(work())
    await soon(staging.reading.wait())
    await soon(archive.close())
    assert is_closed_error((await ended(task))[0], aborted=False)
    assert cancelling == [0]
    assert staging.closed == 1
    assert archive.report is not None


async def test_two_closes_at_once_write_one_end() -> None:
    class Suspending(ListSink):
        async def write(self, data: bytes, /) -> None:
            await turns()
            await super().write(data)

    sink = Suspending()
    archive = ArchiveWriter(sink)
    await put(archive, FIRST)
    await soon(asyncio.gather(archive.close(), archive.close()))
    await archive.close()
    assert sink.getvalue().count(END_OF_ARCHIVE) == 1
    assert archive.report is not None
    assert archive.report.size == len(sink.getvalue())


# ── leaving the block ──


@BOTH_SINKS
async def test_an_exception_in_the_block_aborts(make_sink: MakeSink) -> None:
    sink = make_sink()
    with pytest.raises(LookupError, match="elsewhere"):
        async with ArchiveWriter(sink) as archive:
            await put(archive, FIRST)
            raise LookupError("elsewhere")
    assert is_closed_error(await outcome_of(archive.close()), aborted=True)
    assert not sink.getvalue().endswith(END_OF_ARCHIVE)
    assert archive.report is None


async def test_an_interrupted_close_at_the_end_of_the_block_aborts() -> None:
    sink = StuckSink()
    made: list[ArchiveWriter] = []

    async def work() -> None:
        async with ArchiveWriter(sink) as archive:
            made.append(archive)
            await put(archive, FIRST)
            sink.is_stuck = True

    task = asyncio.create_task(work())
    await soon(sink.stuck.wait())
    task.cancel()
    assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert is_closed_error(await outcome_of(made[0].close()), aborted=True)
    assert not sink.getvalue().endswith(END_OF_ARCHIVE)


async def test_a_block_whose_archive_is_closed_or_aborted_ends_in_peace() -> None:
    async with ArchiveWriter(MemorySink()) as archive:
        await archive.close()
        report = archive.report
    assert archive.report is report is not None
    async with ArchiveWriter(MemorySink()) as archive:
        await archive.abort()
    assert archive.report is None


async def test_a_broken_archive_at_the_end_of_the_block_says_so() -> None:
    with pytest.raises(WriterBrokenError):
        async with ArchiveWriter(ListSink()) as archive:
            with pytest.raises(SizeMismatchError):
                await archive.put_layer(FIRST.blob[:-1], FIRST.descriptor)
            with pytest.raises(SizeMismatchError):
                await archive.put_layer(chunks_of(FIRST.blob[:-1]), FIRST.descriptor)


async def chunks_of(data: bytes, size: int = 60) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# ── content that calls its writer ──


@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
@pytest.mark.parametrize(
    "call",
    [
        lambda archive: archive.put_layer(b"inner"),
        lambda archive: archive.put_image(b"{}", []),
        lambda archive: archive.close(),
        lambda archive: archive.abort(),
    ],
    ids=["put_layer", "put_image", "close", "abort"],
)
async def test_a_content_that_calls_its_writer(
    call: Callable[[ArchiveWriter], Awaitable[object]], stage: bool
) -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink)

    async def calls_back() -> AsyncIterator[bytes]:
        assert not archive.has_blob(FIRST.descriptor.digest)
        await call(archive)
        yield FIRST.blob

    with pytest.raises(RuntimeError, match="must not call the writer"):
        await soon(archive.put_layer(calls_back(), FIRST.descriptor, stage=stage))
    assert not sink.data
    await put(archive, FIRST)
    await archive.close()


# ── many calls at once ──


async def test_a_queue_of_a_hundred_of_which_some_are_cancelled() -> None:
    chance = random.Random(7)
    sink = ListSink()
    archive = ArchiveWriter(sink)
    first = GatedContent(FIRST)
    running = first.put_into(archive)
    waiting = [GatedContent(layer_of(f"waiting {number}")) for number in range(100)]
    tasks = [each.put_into(archive) for each in waiting]
    await soon(first.reading.wait())
    await turns()
    assert not any(each.opened for each in waiting), "who waits has nothing open"
    cancelled = set(chance.sample(range(100), 37))
    early = set(chance.sample(sorted(cancelled), 20))
    for number in early:
        tasks[number].cancel()
    await turns(3)
    for each in waiting:
        each.go_on.set()
    first.go_on.set()
    for number in cancelled - early:  # some of them in the tick in which their turn comes
        await turns(1)
        tasks[number].cancel()
    outcomes = await ended(running, *tasks)
    assert outcomes[0] is None
    for number, (each, error) in enumerate(zip(waiting, outcomes[1:], strict=True)):
        if number in early:
            assert isinstance(error, asyncio.CancelledError)
            assert each.opened == 0
        elif number in cancelled:
            assert error is None or isinstance(error, asyncio.CancelledError | WriterBrokenError)
        assert each.opened == each.closed
    state = await outcome_of(archive.close())
    assert state is None or isinstance(state, WriterBrokenError)


async def test_a_queue_on_a_sink_that_rewinds_loses_nobody() -> None:
    chance = random.Random(8)
    sink = MemorySink()
    archive = ArchiveWriter(sink)
    layers = [layer_of(f"waiting {number}") for number in range(100)]
    contents = [GatedContent(layer) for layer in layers]
    tasks = [each.put_into(archive) for each in contents]
    for each in contents:
        each.go_on.set()
    cancelled = chance.sample(range(100), 37)
    for number in cancelled:
        await turns(chance.randrange(12))
        tasks[number].cancel()
    outcomes = await ended(*tasks)
    for number, error in enumerate(outcomes):
        assert error is None or number in cancelled
        assert archive.has_blob(layers[number].descriptor.digest) is (error is None)
    await soon(archive.close())
    assert archive.report is not None
    stored = [member.digest for member in archive.report.members[:-2]]
    assert len(stored) == len(set(stored)) == outcomes.count(None)


async def test_no_more_than_two_stage_at_once() -> None:
    archive = ArchiveWriter(ListSink())
    now: set[int] = set()
    most = 0

    async def counted(number: int, layer: Layer) -> AsyncIterator[bytes]:
        nonlocal most
        now.add(number)
        most = max(most, len(now))
        await turns(number % 3)
        yield layer.blob
        now.discard(number)

    layers = [layer_of(f"staged {number}") for number in range(12)]
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE):
        for number, layer in enumerate(layers):
            tasks.create_task(
                archive.put_layer(partial(counted, number, layer), layer.descriptor, stage=True)
            )
    assert most == 2
    assert all(archive.has_blob(layer.descriptor.digest) for layer in layers)


@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_two_tasks_that_put_one_digest_write_it_once(stage: bool) -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    first, second = GatedContent(FIRST), GatedContent(FIRST)
    tasks = [first.put_into(archive, stage=stage), second.put_into(archive)]
    await soon(first.reading.wait())
    await turns()
    second.go_on.set()
    first.go_on.set()
    assert await ended(*tasks) == [None, None]
    assert tasks[0].result() == tasks[1].result() == FIRST.descriptor
    await archive.close()
    assert archive.report is not None
    assert len(archive.report.members) == 3
    if not stage:
        assert second.opened == 0, "what is in is not read again"


async def test_the_second_put_of_a_digest_reads_it_where_the_first_failed() -> None:
    archive = ArchiveWriter(MemorySink())
    first, second = GatedContent(FIRST), GatedContent(FIRST)
    tasks = [first.put_into(archive), second.put_into(archive)]
    await soon(first.reading.wait())
    second.go_on.set()
    tasks[0].cancel()
    outcomes = await ended(*tasks)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1] is None
    assert second.opened == second.closed == 1


async def test_two_hundred_tasks_and_fifty_digests() -> None:
    chance = random.Random(9)
    layers = [layer_of(f"layer {number}", chance.randrange(1, 900)) for number in range(50)]
    sink = ListSink()
    archive = ArchiveWriter(sink)
    open_now = most = 0

    async def random_chunks(layer: Layer) -> AsyncIterator[bytes]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            async for chunk in chunks_of(layer.blob):
                await turns(chance.randrange(4))
                yield chunk
        finally:
            open_now -= 1

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE):
        for number in range(200):
            layer = layers[number % 50]
            stage = chance.random() < 0.3
            tasks.create_task(archive.put_layer(partial(random_chunks, layer), layer.descriptor, stage=stage))
    await archive.close()
    assert archive.report is not None
    stored = [member.digest for member in archive.report.members[:-2]]
    assert sorted(map(str, stored)) == sorted(str(layer.descriptor.digest) for layer in layers)
    assert most <= 3, "two that stage and one that writes"
    assert open_now == 0


# ── contents with a time-out of their own ──


@contextlib.asynccontextmanager
async def asyncio_timeout() -> AsyncGenerator[Callable[[], None], None]:
    async with asyncio.timeout(None) as limit:
        yield lambda: limit.reschedule(0)


@contextlib.asynccontextmanager
async def anyio_fail_after() -> AsyncGenerator[Callable[[], None], None]:
    with anyio.fail_after(None) as scope:
        yield lambda: setattr(scope, "deadline", 0)


@contextlib.asynccontextmanager
async def anyio_move_on_after() -> AsyncGenerator[Callable[[], None], None]:
    with anyio.move_on_after(None) as scope:
        yield lambda: setattr(scope, "deadline", 0)


Limit = Callable[[], contextlib.AbstractAsyncContextManager[Callable[[], None]]]
LIMITS = pytest.mark.parametrize(
    ("limit", "error"),
    [(asyncio_timeout, TimeoutError), (anyio_fail_after, TimeoutError), (anyio_move_on_after, ContentError)],
)


class ExpiringSink(MemorySink):
    """Lets the content's time expire while it takes the data, and waits then."""

    expire: Callable[[], None] = staticmethod(lambda: None)

    async def write(self, data: bytes, /) -> None:
        await super().write(data)
        self.expire()
        await turns(50)


@LIMITS
@pytest.mark.parametrize("kind", ["generator", "manager"])
@pytest.mark.parametrize("can_rewind", [True, False], ids=["rewinds", "cannot-rewind"])
async def test_a_time_out_of_the_content_while_the_sink_takes_data(
    limit: Limit, error: type[Exception], kind: str, can_rewind: bool
) -> None:
    sink = ExpiringSink()
    archive = ArchiveWriter(sink if can_rewind else sink.write)
    await put(archive, FIRST)
    whole = sink.getvalue()

    async def generate() -> AsyncIterator[bytes]:
        async with limit() as expire:
            sink.expire = expire
            async for chunk in chunks_of(SECOND.blob):
                yield chunk

    @contextlib.asynccontextmanager
    async def manage() -> AsyncGenerator[AsyncIterator[bytes], None]:
        async with limit() as expire:
            sink.expire = expire
            yield chunks_of(SECOND.blob)

    made = {"generator": generate, "manager": manage}[kind]
    with pytest.raises(error):
        await soon(archive.put_layer(made, SECOND.descriptor))
    assert running_task().cancelling() == 0
    assert not archive.has_blob(SECOND.descriptor.digest)
    sink.expire = lambda: None
    if can_rewind:
        assert sink.getvalue() == whole
        await put(archive, SECOND)
        await archive.close()
    else:
        broken = await outcome_of(archive.close())
        assert isinstance(broken, WriterBrokenError)
        assert isinstance(broken.__cause__, asyncio.CancelledError), "the first failure"


@LIMITS
async def test_a_time_out_of_the_content_while_it_is_read(limit: Limit, error: type[Exception]) -> None:
    archive = ArchiveWriter(MemorySink())

    async def slow() -> AsyncIterator[bytes]:
        async with limit() as expire:
            yield SECOND.blob[:300]
            expire()
            await asyncio.Event().wait()
        # move_on_after comes here: the content just ends, which is too early.

    with pytest.raises(error):
        await soon(archive.put_layer(slow, SECOND.descriptor))
    assert not archive.has_blob(SECOND.descriptor.digest)
    await put(archive, SECOND)
    await archive.close()


async def test_a_cancel_from_elsewhere_wins_over_the_content_s_time_out() -> None:
    sink = ExpiringSink()
    archive = ArchiveWriter(sink)

    async def generate() -> AsyncIterator[bytes]:
        async with asyncio.timeout(None) as limit:

            def expire_and_cancel() -> None:
                limit.reschedule(0)
                task.cancel()

            sink.expire = expire_and_cancel
            async for chunk in chunks_of(FIRST.blob):
                yield chunk

    task = asyncio.create_task(archive.put_layer(generate, FIRST.descriptor))
    assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert not sink.data


# ── contents that swallow, contents that fail while they are closed ──


class SwallowingContent:
    """A context manager that calls every fault handled."""

    def __init__(self, layer: Layer, at_the_end: BaseException | None = None) -> None:
        self._layer = layer
        self._at_the_end = at_the_end

    async def __aenter__(self) -> Self:
        self._chunks = self._generate()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        return True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def _generate(self) -> AsyncIterator[bytes]:
        async for chunk in chunks_of(self._layer.blob):
            yield chunk
        if self._at_the_end is not None:
            raise self._at_the_end


async def test_a_content_that_swallows_its_fault() -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink)
    with pytest.raises(LookupError, match="lost"):
        await archive.put_layer(lambda: SwallowingContent(FIRST, LookupError("lost")), FIRST.descriptor)
    assert not sink.data


@BOTH_SINKS
async def test_a_content_that_swallows_the_cancel_of_the_sink(make_sink: MakeSink) -> None:
    sink = StuckSink()
    sink.is_stuck = True
    archive = ArchiveWriter(sink if make_sink is MemorySink else sink.write)
    task = asyncio.create_task(archive.put_layer(lambda: SwallowingContent(FIRST), FIRST.descriptor))
    await soon(sink.stuck.wait())
    task.cancel()
    assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert not archive.has_blob(FIRST.descriptor.digest)
    sink.is_stuck = False
    state = await outcome_of(soon(archive.close()))
    assert isinstance(state, WriterBrokenError) is (make_sink is ListSink)


@pytest.mark.parametrize("rest", [b"", FIRST.blob[300:]], ids=["ends-early", "gives-all"])
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
@BOTH_SINKS
async def test_a_content_that_swallows_its_own_cancel(make_sink: MakeSink, rest: bytes, stage: bool) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink)
    waiting = asyncio.Event()

    async def stubborn() -> AsyncIterator[bytes]:
        async for chunk in chunks_of(FIRST.blob[:300]):
            yield chunk
        with contextlib.suppress(asyncio.CancelledError):
            waiting.set()
            await asyncio.Event().wait()
        yield rest

    task = asyncio.create_task(archive.put_layer(stubborn, FIRST.descriptor, stage=stage))
    await soon(waiting.wait())
    task.cancel()
    assert isinstance((await ended(task))[0], asyncio.CancelledError), "a cancel is never swallowed"
    assert not archive.has_blob(FIRST.descriptor.digest)
    state = await outcome_of(archive.close())
    if stage or make_sink is MemorySink:
        assert state is None
        assert sink.getvalue() == await archive_of([])
    else:
        assert isinstance(state, WriterBrokenError)


@contextlib.asynccontextmanager
async def fails_while_closing(
    layer: Layer, error: BaseException
) -> AsyncGenerator[AsyncIterator[bytes], None]:
    yield chunks_of(layer.blob)
    raise error


@BOTH_SINKS
async def test_a_content_that_fails_while_it_is_closed(make_sink: MakeSink) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink)
    with pytest.raises(LookupError, match="too late"):
        await archive.put_layer(
            partial(fails_while_closing, FIRST, LookupError("too late")), FIRST.descriptor
        )
    assert archive.has_blob(FIRST.descriptor.digest)
    image = make_image(FIRST)
    await archive.put_image(image.config, image.manifest)
    await archive.close()
    assert sink.getvalue() == await archive_of([image])


@BOTH_SINKS
async def test_a_content_that_is_cancelled_while_it_is_closed(make_sink: MakeSink) -> None:
    archive = ArchiveWriter(make_sink())
    closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow_to_close() -> AsyncGenerator[AsyncIterator[bytes], None]:
        yield chunks_of(FIRST.blob)
        closing.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(archive.put_layer(slow_to_close, FIRST.descriptor))
    await soon(closing.wait())
    task.cancel()
    assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert archive.has_blob(FIRST.descriptor.digest)
    await archive.close()


async def test_a_content_that_cancels_its_own_task() -> None:
    archive = ArchiveWriter(MemorySink())

    async def raises() -> AsyncIterator[bytes]:
        yield FIRST.blob[:300]
        raise asyncio.CancelledError

    with pytest.raises(ContentError, match="gave no reason") as caught:
        await archive.put_layer(raises, FIRST.descriptor)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


# ── rewinds ──


class SlowRewindSink(StuckSink):
    """Rewinds in its own time."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.rewinding = threading.Event()
        self.go_on = threading.Event()
        self._error = error

    def rewind(self, position: int, /) -> None:
        self.rewinding.set()
        assert self.go_on.wait(PATIENCE)
        if self._error is not None:
            raise self._error
        super().rewind(position)


async def test_more_cancels_do_not_interrupt_a_rewind() -> None:
    sink = SlowRewindSink()
    archive = ArchiveWriter(sink)
    await put(archive, FIRST)
    whole = sink.getvalue()
    sink.is_stuck = True
    told = GatedContent(SECOND)
    task = told.put_into(archive)
    await soon(sink.stuck.wait())
    task.cancel("the first")
    assert await asyncio.to_thread(sink.rewinding.wait, PATIENCE)
    for _ in range(3):
        task.cancel("another")
        await turns()
        assert not task.done()
        assert not told.told, "the archive is whole again before the content is told"
    sink.go_on.set()
    (error,) = await ended(task)
    assert isinstance(error, asyncio.CancelledError)
    assert error.args == ("the first",)
    assert sink.getvalue() == whole
    assert told.told == [error]
    sink.is_stuck = False
    await put(archive, SECOND)
    await archive.close()


async def test_a_rewind_that_fails_breaks_the_archive() -> None:
    sink = SlowRewindSink(OSError("input/output error"))
    sink.go_on.set()
    archive = ArchiveWriter(sink)
    first = LookupError("the first cause")
    with pytest.raises(LookupError) as caught:
        await archive.put_layer(lambda: SwallowingContent(FIRST, first), FIRST.descriptor)
    assert caught.value is first
    assert first.__notes__ == ["the archive could not be rewound: OSError: input/output error"]
    data = sink.getvalue()
    for call in (archive.close(), archive.put_layer(b"next"), archive.put_image(b"{}", [])):
        broken = await outcome_of(call)
        assert isinstance(broken, WriterBrokenError)
        assert broken.__cause__ is first
        assert broken.position == 0
        assert str(FIRST.descriptor.digest) in broken.member
    assert sink.getvalue() == data


async def test_a_broken_writer_does_not_keep_the_content_alive() -> None:
    """By no frame of ours, that is: those of a content that raises are in the first cause's traceback."""

    class Connection:
        """A content."""

        async def read(self, _: int) -> bytes:
            return b"not what was promised"

    archive = ArchiveWriter(ListSink())
    await archive.put_layer(FIRST.blob, FIRST.descriptor)
    alive: list[weakref.ref[Connection]] = []

    def connect() -> Connection:
        connection = Connection()
        alive.append(weakref.ref(connection))
        return connection

    first = await outcome_of(archive.put_layer(connect, SECOND.descriptor))
    assert isinstance(first, ContentError)
    gc.collect()
    assert alive[0]() is None


async def test_a_broken_writer_leaves_the_frames_of_others_alone() -> None:
    """Those who caught the first cause may still be at work: clearing their frames would end them."""
    failing = OSError("lost")

    class Failing(ListSink):
        async def write(self, data: bytes) -> None:
            raise failing

    archive = ArchiveWriter(Failing())
    caught, told = asyncio.Event(), asyncio.Event()

    async def handle() -> str:
        try:
            await archive.put_layer(FIRST.blob, FIRST.descriptor)
        except OSError:
            caught.set()
            await told.wait()
        return "went on"

    handling = asyncio.create_task(handle())
    await caught.wait()
    assert isinstance(await outcome_of(archive.close()), WriterBrokenError)
    await archive.abort()
    told.set()
    assert await handling == "went on"


# ── before the first step, and after the last ──


async def test_a_cancel_before_the_first_step() -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    first = GatedContent(FIRST)
    for start in (
        lambda: first.put_into(archive),
        lambda: first.put_into(archive, stage=True),
        lambda: asyncio.create_task(archive.put_image(b"{}", [])),
        lambda: asyncio.create_task(archive.close()),
    ):
        task = start()
        task.cancel()
        assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert first.opened == 0
    assert not sink.writes
    await archive.close()


@types.coroutine
def drive_until(coroutine: Coroutine[Any, Any, Any], event: asyncio.Event) -> Generator[Any, Any, None]:
    """Run a coroutine within this one, up to where it waits with the event set."""
    waited_for = coroutine.send(None)
    while not event.is_set():
        yield waited_for
        waited_for = coroutine.send(None)
    if waited_for is not None:
        waited_for._asyncio_future_blocking = False  # as its task would have done


@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
@BOTH_SINKS
async def test_a_coroutine_that_is_closed_in_the_middle(make_sink: MakeSink, stage: bool) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink)
    torn = GatedContent(FIRST)
    coroutine = archive.put_layer(torn.open, FIRST.descriptor, stage=stage)
    await soon(drive_until(coroutine, torn.reading))
    coroutine.close()
    state = await outcome_of(soon(archive.close()))
    if stage:
        assert state is None
        assert sink.getvalue() == await archive_of([])
    else:
        assert isinstance(state, WriterBrokenError), "nothing can be awaited, so nothing can be rewound"
        assert isinstance(state.__cause__, GeneratorExit)
    await soon(archive.abort())


async def test_a_coroutine_that_is_closed_while_its_stage_is_a_file() -> None:
    archive = ArchiveWriter(ListSink(), stage_memory=0)
    torn = GatedContent(FIRST)

    async def work() -> None:
        coroutine = archive.put_layer(torn.open, FIRST.descriptor, stage=True)
        try:
            await asyncio.wait_for(drive_until(coroutine, torn.reading), PATIENCE)
        finally:
            coroutine.close()

    await work()
    await soon(archive.close())


async def test_a_coroutine_that_is_closed_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_queue, "INLINE_SIZE", 0)
    archive = ArchiveWriter(ListSink(), checksum=True)
    torn = GatedContent(FIRST)
    coroutine = archive.put_layer(torn.open, FIRST.descriptor)
    await soon(drive_until(coroutine, torn.reading))
    assert any(thread.name == "aiodockersave-hash" for thread in threading.enumerate())
    coroutine.close()
    assert torn.closed == 1, "what closes without waiting is closed"
    # That the threads end is seen by the fixture that looks for what is left.


async def test_a_coroutine_that_is_closed_does_not_wait_for_its_content() -> None:
    archive = ArchiveWriter(ListSink())
    left: list[str] = []

    class NeverClosed(GatedContent):
        async def __aexit__(self, *_: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                left.append("left")

    class Outer:
        async def __aenter__(self) -> NeverClosed:
            return torn

        async def __aexit__(self, *_: object) -> None:
            left.append("what is around it, without waiting for it")

    torn = NeverClosed(FIRST)
    coroutine = archive.put_layer(Outer, FIRST.descriptor)
    await soon(drive_until(coroutine, torn.reading))
    coroutine.close()
    assert left == ["left", "what is around it, without waiting for it"]
    assert isinstance(await outcome_of(archive.close()), WriterBrokenError)


class SlowlyClosed(GatedContent):
    """Takes its time to close.

    Attributes:
        events: What happened, in order.
    """

    def __init__(self, layer: Layer, events: list[str]) -> None:
        super().__init__(layer)
        self.go_on.set()
        self.events = events
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()

    async def __aexit__(self, *args: object) -> None:
        self.events.append("begins to close")
        self.closing.set()
        await self.may_close.wait()
        self.events.append("is closed")


class FailingSink(ListSink):
    """Takes nothing."""

    async def write(self, data: bytes, /) -> None:
        raise OSError("the sink fails")


async def _leave_by_an_error(archive: ArchiveWriter) -> None:
    with pytest.raises(LookupError):
        async with archive:
            raise LookupError


async def _leave(archive: ArchiveWriter) -> None:
    async with archive:
        pass


async def _check_that_it_waits(
    end: Coroutine[Any, Any, None], content: SlowlyClosed, events: list[str]
) -> None:
    """See that the end of a writer comes behind that of a content which takes its time."""
    await soon(content.closing.wait())
    ending = asyncio.create_task(end)
    ending.add_done_callback(lambda _: events.append("ended"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ending.done()
    content.may_close.set()
    await soon(ending)
    await asyncio.sleep(0)
    assert events == ["begins to close", "is closed", "ended"]


@pytest.mark.parametrize("end", [ArchiveWriter.abort, _leave_by_an_error])
async def test_the_end_of_a_broken_writer_waits_for_who_still_closes(end: Any) -> None:
    events: list[str] = []
    archive = ArchiveWriter(FailingSink())
    content = SlowlyClosed(FIRST, events)
    putting = asyncio.create_task(archive.put_layer(content.open, FIRST.descriptor))
    await _check_that_it_waits(end(archive), content, events)
    assert isinstance(await outcome_of(putting), OSError)


@pytest.mark.parametrize("end", [_leave, ArchiveWriter.abort])
async def test_the_end_of_a_closed_writer_waits_for_who_still_closes(end: Any) -> None:
    """A layer of unknown digest is still staging when the archive is closed: it is told, and takes its time."""
    events: list[str] = []
    archive = ArchiveWriter(ListSink())
    content = SlowlyClosed(FIRST, events)
    content.go_on.clear()
    putting = asyncio.create_task(archive.put_layer(content.open))
    await soon(content.reading.wait())
    await soon(archive.close())
    await _check_that_it_waits(end(archive), content, events)
    assert is_closed_error(await outcome_of(putting), aborted=False)


async def test_a_broken_writer_tells_who_is_staging() -> None:
    archive = ArchiveWriter(FailingSink())
    staging = GatedContent(SECOND)
    putting = asyncio.create_task(archive.put_layer(staging.open))
    await soon(staging.reading.wait())
    assert isinstance(await outcome_of(archive.put_layer(FIRST.blob, FIRST.descriptor)), OSError)
    await soon(archive.abort())
    assert isinstance(await outcome_of(putting), WriterBrokenError)
    assert staging.closed == 1


# ── archives at a path ──


async def test_a_cancel_after_the_rename(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there and whole, the writer is closed, the cancel is raised all the same."""
    path = tmp_path / "app.tar"
    replace = os.replace
    loop = asyncio.get_running_loop()
    made: list[ArchiveWriter] = []

    def replace_and_cancel(*args: Any, **kwargs: Any) -> None:
        replace(*args, **kwargs)
        delivered = threading.Event()
        loop.call_soon_threadsafe(task.cancel)
        loop.call_soon_threadsafe(delivered.set)
        assert delivered.wait(PATIENCE)

    async def work() -> None:
        async with open_archive(path) as archive:
            made.append(archive)
            await put(archive, FIRST)

    monkeypatch.setattr(os, "replace", replace_and_cancel)
    task = asyncio.create_task(work())
    assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["app.tar"]
    assert path.read_bytes().endswith(END_OF_ARCHIVE)
    assert made[0].report is not None
    assert path.stat().st_size == made[0].report.size
    assert is_closed_error(await outcome_of(made[0].put_layer(b"")), aborted=False)
    step(made[0].close())


async def test_a_pipe_that_nobody_reads_is_left_at_once() -> None:
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            archive = ArchiveWriter(pipe)
            layer = layer_of("larger than a pipe", 1 << 20)
            task = asyncio.create_task(archive.put_layer(layer.blob, layer.descriptor))
            await asyncio.to_thread(_wait_until_full, writing)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=PATIENCE)
            assert task in done
            assert task.cancelled()
            assert isinstance(await outcome_of(archive.close()), WriterBrokenError)
    finally:
        os.close(reading)


def _wait_until_full(pipe: int) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    deadline = time.monotonic() + PATIENCE
    while poll.poll(0) and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_the_checksum_does_not_count_what_was_taken_back(known: bool) -> None:
    """A layer of unknown digest turns out to be in already: its second copy is cut off again."""
    sink = MemorySink()
    archive = ArchiveWriter(sink, checksum=True)
    await put(archive, FIRST)
    stored = await archive.put_layer(chunks_of(FIRST.blob), diff_id=None)
    assert stored == FIRST.descriptor
    if known:
        await put(archive, SECOND)
    await archive.close()
    assert archive.report is not None
    assert archive.report.sha256 == Digest.of(sink.getvalue())
