"""A blob from its source to its place: batches, back-pressure, and the end of everything when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from aiodockersave import (
    ContentError,
    Descriptor,
    DigestMismatchError,
    SinkError,
    SizeMismatchError,
    plan_archive,
)
from aiodockersave._aio import Worker
from aiodockersave.blobs import file_region
from aiodockersave.blobs.file_region import FileRegion, fill, write_at, write_literals
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.core.model import OCI_LAYER
from aiodockersave.core.verify import Verifier
from aiodockersave.pipeline.progress import Event, LayerAdvanced, LayerRetried, Meter
from tests.support.images import make_image, make_layer
from tests.support.interruption import outcome_of

LIMIT = 60.0  # seconds for anything that is waited for
BLOB = bytes(range(256)) * 20
LAYER = make_layer(BLOB, None).descriptor
GIVEN = 3  # batches that a thread may have


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_region, "BATCH_SIZE", 1000)
    monkeypatch.setattr(file_region, "BEHIND", GIVEN * 1000)
    monkeypatch.setattr(file_region, "_LEAST_BEHIND", 2 * 1000)
    monkeypatch.setattr(file_region, "PIECE", 300)
    monkeypatch.setattr(file_region, "_LAST_ZEROS", 50)


class Place:
    """Keeps what it is given, and does what it is told to with each batch.

    Attributes:
        position: How many bytes that is.
        batches: What it was given.
        calls: The names of what was called, in order.
        threads: Those that called.
        on_take: Is called with the number of each batch.
        fault: What ``finish`` raises.
    """

    def __init__(self) -> None:
        self.position = 0
        self.verifier = Verifier(LAYER)
        self.batches: list[bytes] = []
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.on_take: Callable[[int], object] = lambda _: None
        self.fault: BaseException | None = None

    def take(self, batch: Sequence[Any]) -> None:
        self.calls.append("take")
        self.threads.add(threading.current_thread())
        self.on_take(len(self.batches))
        self.batches.append(b"".join(batch))
        self.position += len(self.batches[-1])

    def finish(self) -> int:
        self.calls.append("finish")
        if self.fault is not None:
            raise self.fault
        return sum(map(len, self.batches))


class Source:
    """Gives chunks, and keeps what it was told.

    Attributes:
        is_open: Whether a blob is open.
        told: What it was told of a fault.
        retries: As a source that asks again counts it; it rises by one with each chunk that is an error.
    """

    def __init__(self, *chunks: bytes) -> None:
        self.is_open = False
        self.told: BaseException | None = None
        self.retries = 0
        self._chunks = chunks

    def open_blob(self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None) -> Any:
        assert descriptor == LAYER
        return _Opened(self, start)

    async def chunks(self, start: int) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            await asyncio.sleep(0)
            if chunk == b"retry":
                self.retries += 1
            elif start < len(chunk):
                yield chunk[start:]
                start = 0
            else:
                start -= len(chunk)


class _Opened:
    """One opening of a source's blob, and what it gives."""

    def __init__(self, source: Source, start: int) -> None:
        self._source = source
        self._start = start

    @property
    def retries(self) -> int:
        return self._source.retries

    async def __aenter__(self) -> Self:
        self._source.is_open = True
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._source.chunks(self._start)

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        self._source.is_open = False
        self._source.told = exc


def cut(size: int) -> list[bytes]:
    return [BLOB[at : at + size] for at in range(0, len(BLOB), size)]


async def fill_from(
    source: Source, place: Place, *, events: list[Event] | None = None, start: int = 0, **options: Any
) -> int:
    meter = Meter(None if events is None else events.append, [LAYER])
    meter.started(LAYER, start)
    worker = Worker("test")
    with worker.held():
        async with asyncio.timeout(LIMIT):
            return await fill(
                place, source.open_blob, LAYER, worker=worker, meter=meter, start=start, **options
            )


# ── what is given on ──


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2500, 5120])
async def test_chunks_are_joined(size: int) -> None:
    source, place = Source(*cut(size)), Place()
    written: list[int] = []
    assert await fill_from(source, place, written=written.append) == len(BLOB)
    assert b"".join(place.batches) == BLOB
    assert all(len(batch) >= 1000 for batch in place.batches[:-1])
    assert written == [len(batch) for batch in place.batches]
    assert place.calls == ["take"] * len(place.batches) + ["finish"]
    assert len(place.threads) == 1
    assert threading.current_thread() not in place.threads
    assert not source.is_open


@pytest.mark.parametrize("start", [1, 1000, 5119])
async def test_from_some_byte_on(start: int) -> None:
    source, place = Source(*cut(300)), Place()
    assert await fill_from(source, place, start=start) == len(BLOB) - start
    assert b"".join(place.batches) == BLOB[start:]


async def test_a_slow_thread_is_waited_for() -> None:
    """One batch runs, some wait, and the source is asked for no more than the next."""
    may_go_on = threading.Event()
    place, given = Place(), []
    place.on_take = lambda _: may_go_on.wait(LIMIT)

    class Counting(Source):
        async def chunks(self, start: int) -> AsyncIterator[bytes]:
            async for chunk in super().chunks(start):
                given.append(len(chunk))
                yield chunk

    filling_ = asyncio.ensure_future(fill_from(Counting(*cut(1000)), place))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(given) == GIVEN
    may_go_on.set()
    assert await filling_ == len(BLOB)


@pytest.mark.parametrize(("readers", "given"), [(1, 8), (2, 4), (3, 2), (64, 2)])
async def test_what_waits_is_shared(readers: int, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that waits for threads does not grow with the number of blobs, down to the two batches of each."""
    monkeypatch.setattr(file_region, "BATCH_SIZE", 500)
    monkeypatch.setattr(file_region, "BEHIND", 8 * 500)
    monkeypatch.setattr(file_region, "_LEAST_BEHIND", 2 * 500)
    may_go_on = threading.Event()
    place = Place()
    place.on_take = lambda _: may_go_on.wait(LIMIT)
    written: list[int] = []
    filling = asyncio.ensure_future(
        fill_from(Source(*cut(500)), place, readers=readers, written=written.append)
    )
    for _ in range(100):
        await asyncio.sleep(0)
    may_go_on.set()
    assert written == [500] * (3 if readers == 3 else given)
    assert await filling == len(BLOB)


@pytest.mark.parametrize(
    ("size", "smallest"), [(1 << 10, 1 << 10), (1 << 20, 1 << 17), (12 << 20, 12 << 14), (64 << 20, 1 << 18)]
)
async def test_a_small_blob_has_small_batches(
    size: int, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_region, "BATCH_SIZE", 1 << 18)
    layer = Descriptor(OCI_LAYER, LAYER.digest, size)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size >> 10):
            yield bytes(1 << 10)

    @contextlib.asynccontextmanager
    async def open_blob(*_: object, **__: object) -> AsyncIterator[AsyncIterator[bytes]]:
        yield chunks()

    meter = Meter(None, [layer])
    meter.started(layer)
    place = Place()
    place.verifier = Verifier(layer)
    assert await fill(place, open_blob, layer, worker=Worker("test"), meter=meter) == size
    assert {len(batch) for batch in place.batches[:-1]} <= {smallest}
    assert len(place.batches[0]) == smallest


async def test_a_fault_while_room_is_waited_for() -> None:
    """Nobody frees room then, so it is the fault that wakes."""
    may_fail = threading.Event()
    place = Place()

    def fail(_: int) -> None:
        assert may_fail.wait(LIMIT)
        raise OSError("full")

    place.on_take = fail
    filling_ = asyncio.ensure_future(outcome_of(fill_from(Source(*cut(1000)), place)))
    for _ in range(100):
        await asyncio.sleep(0)
    may_fail.set()
    assert str(await filling_) == "full"
    assert place.calls.count("take") == 1


async def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiodockersave.pipeline.progress.INTERVAL", 0)
    events: list[Event] = []
    await fill_from(
        Source(BLOB[:1000], b"retry", b"retry", BLOB[1000:2000], BLOB[2000:]), Place(), events=events
    )
    assert [event for event in events[1:] if isinstance(event, LayerRetried)] == [
        LayerRetried(LAYER, 1),
        LayerRetried(LAYER, 2),
    ]
    assert [event.done for event in events if isinstance(event, LayerAdvanced)] == [1000, 2000, 5120]


# ── what goes wrong ──


@pytest.mark.parametrize(
    ("chunks", "actual"),
    [([], 0), ([BLOB[:-1]], 5119), ([BLOB, b"x"], 5121), ([BLOB[:3000], BLOB], 8120)],
    ids=["nothing", "short", "one more", "much more"],
)
async def test_sizes(chunks: list[bytes], actual: int) -> None:
    source, place = Source(*chunks), Place()
    with pytest.raises(SizeMismatchError) as caught:
        await fill_from(source, place)
    assert (caught.value.expected, caught.value.actual) == (5120, actual)
    assert source.told is caught.value
    assert "finish" not in place.calls


@pytest.mark.parametrize("number", range(5))
async def test_a_batch_that_cannot_be_taken(number: int) -> None:
    """Those behind it are not begun, and the source is told."""
    source, place = Source(*cut(1000)), Place()

    def refuse(taken: int) -> None:
        if taken == number:
            raise OSError("full")

    place.on_take = refuse
    with pytest.raises(OSError, match="full") as caught:
        await fill_from(source, place)
    assert place.calls.count("take") == number + 1
    assert "finish" not in place.calls
    assert source.told is caught.value
    assert not source.is_open


async def test_what_does_not_verify() -> None:
    source, place = Source(*cut(1000)), Place()
    place.fault = DigestMismatchError(LAYER.digest, LAYER.digest)
    with pytest.raises(DigestMismatchError):
        await fill_from(source, place)
    assert source.told is place.fault


@pytest.mark.parametrize("error", [KeyError("gone"), OSError("reset")])
async def test_a_source_that_fails(error: Exception) -> None:
    class Failing(Source):
        async def chunks(self, start: int) -> AsyncIterator[bytes]:
            yield BLOB[:2000]
            raise error

    source, place = Failing(), Place()
    with pytest.raises(type(error)) as caught:
        await fill_from(source, place)
    assert caught.value is error
    assert source.told is error


async def test_a_source_that_cancels_its_reader() -> None:
    class Cancelling(Source):
        async def chunks(self, start: int) -> AsyncIterator[bytes]:
            yield BLOB[:10]
            raise asyncio.CancelledError

    with pytest.raises(ContentError, match="cancelled its reader"):
        await fill_from(Cancelling(), Place())


async def test_what_written_raises_ends_it() -> None:
    def refuse(_: int) -> None:
        raise OSError("the disk has refused an earlier portion")

    source, place = Source(*cut(1000)), Place()
    with pytest.raises(OSError, match="earlier portion"):
        await fill_from(source, place, written=refuse)
    assert source.told is not None


# ── a source that cannot start inside ──


class Whole(Source):
    """Gives blobs as a whole; what it is asked for besides is kept.

    Attributes:
        starts: Where it was asked to start.
    """

    def __init__(self, *chunks: bytes) -> None:
        super().__init__(*chunks)
        self.starts: list[int] = []

    def open_blob(self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None) -> Any:
        self.starts.append(start)
        if start:
            raise NotImplementedError("gives blobs as a whole")
        return super().open_blob(descriptor)


class WholeLater(Whole):
    """As :class:`Whole`, and says so only when it is entered."""

    def open_blob(self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None) -> Any:
        self.starts.append(start)

        @contextlib.asynccontextmanager
        async def opening() -> AsyncIterator[AsyncIterator[bytes]]:
            if start:
                raise NotImplementedError("gives blobs as a whole")
            yield self.chunks(0)

        return opening()


@pytest.mark.parametrize("kind", [Whole, WholeLater])
@pytest.mark.parametrize("start", [1, 299, 300, 301, 5119])
@pytest.mark.parametrize("size", [1, 300, 5120])
async def test_what_is_there_is_passed_over(kind: type[Whole], start: int, size: int) -> None:
    source, place = kind(*cut(size)), Place()
    assert await fill_from(source, place, start=start) == len(BLOB) - start
    assert b"".join(place.batches) == BLOB[start:]
    assert source.starts == [start, 0]


async def test_a_whole_that_is_shorter_than_what_is_there() -> None:
    with pytest.raises(SizeMismatchError):
        await fill_from(Whole(BLOB[:200]), Place(), start=300)


async def test_what_refuses_the_whole_is_an_error() -> None:
    class Nothing(Whole):
        def open_blob(self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None) -> Any:
            raise NotImplementedError(f"nothing from {start}")

    for start in (0, 300):
        with pytest.raises(NotImplementedError, match="nothing from 0"):
            await fill_from(Nothing(), Place(), start=start)


# ── cancelled ──


async def test_a_cancel_waits_for_what_the_thread_was_given() -> None:
    is_running, may_end = threading.Event(), threading.Event()
    source, place = Source(*cut(1000)), Place()

    def wait(_: int) -> None:
        is_running.set()
        assert may_end.wait(LIMIT)

    place.on_take = wait
    task = asyncio.ensure_future(outcome_of(fill_from(source, place)))
    await asyncio.to_thread(is_running.wait, LIMIT)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    assert isinstance(await task, asyncio.CancelledError)
    assert place.calls.count("take") == 1
    assert isinstance(source.told, asyncio.CancelledError)


@pytest.mark.parametrize("chunks", [cut(1000), [BLOB]], ids=["room is waited for", "the end is waited for"])
async def test_an_error_of_the_thread_while_cancelled_is_a_note(chunks: list[bytes]) -> None:
    is_running, may_end = threading.Event(), threading.Event()
    place = Place()

    def fail(_: int) -> None:
        is_running.set()
        assert may_end.wait(LIMIT)
        raise OSError("full")

    place.on_take = fail
    task = asyncio.ensure_future(outcome_of(fill_from(Source(*chunks), place)))
    await asyncio.to_thread(is_running.wait, LIMIT)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    may_end.set()
    error = await task
    assert isinstance(error, asyncio.CancelledError)
    assert error.__notes__ == ["while cancelled: OSError: full"]


async def test_a_coroutine_that_is_closed() -> None:
    """Nothing can be awaited any more; the thread ends what it has begun, and begins no more."""
    is_running, may_end = threading.Event(), threading.Event()

    class Hanging(Source):
        """Is its own iterator: an async generator could not be closed here."""

        def __init__(self) -> None:
            super().__init__()
            self._left = [BLOB[1000:2000], BLOB[:1000]]

        def chunks(self, start: int) -> Any:
            return self

        def __aiter__(self) -> Self:
            return self

        async def __anext__(self) -> bytes:
            if not self._left:
                await asyncio.Event().wait()
            return self._left.pop()

    place = Place()

    def wait(_: int) -> None:
        is_running.set()
        assert may_end.wait(LIMIT)

    place.on_take = wait
    source = Hanging()
    meter = Meter(None, [LAYER])
    meter.started(LAYER)
    worker = Worker("test")
    coroutine = fill(place, source.open_blob, LAYER, worker=worker, meter=meter)
    task: Any = asyncio.ensure_future(coroutine)
    await asyncio.to_thread(is_running.wait, LIMIT)
    for _ in range(20):
        await asyncio.sleep(0)
    coroutine.close()
    may_end.set()
    worker.finish()
    assert place.calls.count("take") == 1
    task.cancel()
    await outcome_of(task)


# ── the file ──

START = 100  # where the region is in the file


_shared: list[OpenFile] = []


def shared(fd: int) -> OpenFile:
    """Return a file for threads, which is closed with the test's own descriptor."""
    _shared.append(OpenFile(os.dup(fd)))
    return _shared[-1]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    while _shared:
        _shared.pop().close()
    os.close(fd)


def content_of(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# ── the file ──


def test_short_writes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    data = random_bytes(100)
    write_at(fd, data, START)
    write_at(fd, memoryview(data), START + 100)
    write_at(fd, b"", 1000)
    assert content_of(fd) == bytes(START) + data + data


def test_what_is_no_blobs(fd: int) -> None:
    image = make_image(make_layer(b"x" * 600, None))
    plan = plan_archive([image.spec])
    write_at(fd, b"x" * (plan.size + 10), 0)
    write_literals(shared(fd), plan.segments, plan.size)
    there = content_of(fd)
    assert len(there) == plan.size
    for segment in plan.segments:
        expected = segment.data if segment.data is not None else b"x" * 600
        assert there[segment.offset :][: segment.size] == expected


# ── a region ──


def region_of(fd: int, data: bytes) -> FileRegion:
    return FileRegion(shared(fd), START, make_layer(data, None).descriptor)


def test_a_kept_blob(fd: int) -> None:
    data = random_bytes(1001)
    region = region_of(fd, data)
    for at in range(0, len(data), 400):
        region.take([data[at : at + 200], data[at + 200 : at + 400]])
    assert region.finish() == region.position == 1001
    assert content_of(fd) == bytes(START) + data


def test_a_kept_blob_that_is_wrong(fd: int) -> None:
    region = region_of(fd, random_bytes(1001))
    region.take([random_bytes(1000)])
    with pytest.raises(DigestMismatchError, match="blob"):
        region.finish()


@pytest.mark.parametrize("zeros", [0, 1, 49, 50, 51, 299, 300, 301, 700])
@pytest.mark.parametrize("there", [0, 1, 299, 300, 301, 1001])
@pytest.mark.parametrize("behind", [0, 2000], ids=["its end", "more behind it"])
def test_what_is_found(fd: int, there: int, zeros: int, behind: int) -> None:
    """All up to the last byte that is not zero, and nothing of what is behind the blob."""
    data = b"x" * there + bytes(zeros)
    write_at(fd, data, START)
    if behind:
        write_at(fd, b"next", START + len(data))
    assert region_of(fd, data).find() == there


@pytest.mark.parametrize("size", [0, 50, START])
def test_a_file_that_ends_before_the_blob(fd: int, size: int) -> None:
    write_at(fd, b"x" * size, 0)
    assert region_of(fd, b"data").find() == 0


@pytest.mark.parametrize("zeros", [0, 1, 49, 50, 51])
def test_whether_it_is_whole(fd: int, zeros: int) -> None:
    """A few zeros at the end are taken for its own where the digest says so, and are there then."""
    data = random_bytes(700) + b"x" + bytes(zeros)
    write_at(fd, data[:701], START)
    region = region_of(fd, data)
    region.read_back(region.find())
    assert region.is_whole() == (zeros <= 50)
    if zeros <= 50:
        assert content_of(fd)[START:] == data
        assert region.finish() == len(data)
    else:  # and it can be gone on with
        region.take([bytes(zeros)])
        assert region.finish() == len(data)


def test_what_is_wrong_is_not_whole(fd: int) -> None:
    data = random_bytes(700) + b"x"
    write_at(fd, b"y" + data[1:], START)
    region = region_of(fd, data)
    region.read_back(701)
    assert not region.is_whole()


def test_a_file_that_is_cut_while_it_is_read(fd: int) -> None:
    write_at(fd, b"x" * 500, START)
    region = region_of(fd, b"x" * 1000)
    with pytest.raises(SinkError, match="cut while it was read"):
        region.read_back(501)


def test_a_descriptor_without_a_size(fd: int) -> None:
    descriptor = make_layer(b"", None).descriptor
    region = FileRegion(shared(fd), 0, Descriptor(descriptor.media_type, descriptor.digest, None))
    assert region.find() == 0
    assert region.is_whole()
