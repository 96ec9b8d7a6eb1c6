"""A plan's bytes: any range of them, verified, from a source that is asked for no more than is needed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, ClassVar, ParamSpec, TypeVar

import anyio
import pytest
import trio
from anyio import ClosedResourceError
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodockersave import (
    ContentError,
    DigestMismatchError,
    EventLoopError,
    ImageSpec,
    InvalidInputError,
    Plan,
    SizeMismatchError,
    _aio,
    plan_archive,
    stream_plan,
)
from aiodockersave._aio import Worker, close_all
from aiodockersave.archive.stream import ByteStream, PlanStream, ReadingLimits
from aiodockersave.blobs import content, thread_queue, transfer
from tests.support.blobs import FakeSource, Opening
from tests.support.images import Image, archive_of, image_lists, make_config, make_image, make_layer
from tests.support.interruption import (
    WAYS,
    Driver,
    TickWorker,
    Way,
    by_cancel_scope,
    by_task_cancel,
    by_task_cancel_when_ready,
    outcome_of,
    running_task,
    step,
    suspend,
)
from tests.support.pulls import (
    Pull,
    cancel_a_read_everywhere,
    close_elsewhere_everywhere,
    interrupt_closing_everywhere,
    interrupt_everywhere,
)

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 60.0  # seconds that something which must happen may take
SUSPENSIONS_AFTER = 16  # so many may follow a cancel: what absorbs one delivery after the other has more


def noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


LONG = make_layer(noise("long", 5000), None)
SHORT = make_layer(noise("short", 300), None)
EMPTY = make_layer(b"", None)
LAST = make_layer(noise("last", 2100), "gzip", algorithm="sha512")
IMAGES = [
    make_image(LONG, EMPTY, SHORT, repo_tags=["example.com/app:1.0"]),
    make_image(LONG, LAST, repo_tags=["example.com/app:2.0"]),
]
PLAN = plan_archive(image.spec for image in IMAGES)
LAYERS = [layer.descriptor for layer in (LONG, SHORT, LAST)]  # those that are read, in order


def data_of(plan: Plan, digest: object) -> tuple[int, int]:
    """Return where the data of a member start and stop."""
    member = next(member for member in plan.members if member.digest == digest)
    return member.data_offset, member.data_offset + member.size


LONG_AT, LONG_TO = data_of(PLAN, LONG.descriptor.digest)
SHORT_AT, SHORT_TO = data_of(PLAN, SHORT.descriptor.digest)
LAST_AT, LAST_TO = data_of(PLAN, LAST.descriptor.digest)


@pytest.fixture
async def whole() -> bytes:
    return await archive_of(IMAGES)


async def chunks_of(stream: ByteStream) -> list[bytes]:
    async with stream as chunks:
        return [chunk async for chunk in chunks]


async def bytes_of(plan: Plan, source: FakeSource, start: int = 0, stop: int | None = None) -> bytes:
    stream = stream_plan(plan, source.open_blob, start=start, stop=stop)
    data = b"".join(await chunks_of(stream))
    assert len(data) == stream.size
    assert source.open_now == 0
    return data


# ── the same bytes ──


@settings(max_examples=100)
@given(images=image_lists(), data=st.data())
async def test_a_stream_is_what_the_writer_writes_in_any_split_and_order(
    images: list[Image], data: st.DataObject
) -> None:
    plan = plan_archive(image.spec for image in images)
    written = await archive_of(images)
    source = FakeSource(images, quick=True, parts=data.draw(st.booleans()))
    assert await bytes_of(plan, source) == written
    cuts = sorted(data.draw(st.sets(st.integers(0, plan.size), max_size=8)) | {0, plan.size})
    ranges = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    found = bytearray(plan.size)
    for start, stop in ranges:
        found[start:stop] = await bytes_of(plan, source, start, stop)
    assert found == written


def borders_of(plan: Plan) -> list[int]:
    """Return where something ends or begins: members, headers, data, padding, blocks."""
    borders = {0, plan.size, *range(0, plan.size, 512)}
    for member in plan.members:
        borders |= {member.offset, member.data_offset, member.data_offset + member.size}
    return sorted(borders)


@pytest.mark.parametrize("parts", [True, False], ids=["source-with-parts", "source-of-wholes"])
async def test_ten_thousand_ranges(whole: bytes, parts: bool) -> None:
    source = FakeSource(IMAGES, quick=True, parts=parts)
    chance = random.Random("ranges")
    borders = borders_of(PLAN)

    def place() -> int:
        at = chance.choice(borders) if chance.random() < 0.8 else chance.randrange(PLAN.size)
        return min(max(at + chance.choice([-1, 0, 1]), 0), PLAN.size)

    for _ in range(5000):
        start, stop = sorted([place(), place()])
        if await bytes_of(PLAN, source, start, stop) != whole[start:stop]:
            pytest.fail(f"other bytes from {start} to {stop}")


async def test_every_byte_alone(whole: bytes) -> None:
    source = FakeSource(IMAGES, quick=True)
    for at in range(PLAN.size):
        if await bytes_of(PLAN, source, at, at + 1) != whole[at : at + 1]:
            pytest.fail(f"another byte at {at}")


async def test_both_sides_of_every_border(whole: bytes) -> None:
    source = FakeSource(IMAGES, quick=True, chunk_size=1000)
    for at in borders_of(PLAN):
        assert await bytes_of(PLAN, source, 0, at) + await bytes_of(PLAN, source, at) == whole


async def test_an_archive_without_images() -> None:
    plan = plan_archive([])
    assert await bytes_of(plan, FakeSource([])) == await archive_of([])


async def test_chunks_are_given_out_as_they_come() -> None:
    chunks = await chunks_of(stream_plan(PLAN, FakeSource(IMAGES, chunk_size=2000).open_blob))
    sizes = [len(chunk) for chunk in chunks]
    known = [segment.size for segment in PLAN.segments if segment.data is not None]
    # A blob of no bytes stands between two runs of known bytes.
    assert sizes == [
        known[0],
        *(2000, 2000, 1000),
        known[1],
        known[2],
        300,
        known[3],
        *sizes[8:-1],
        known[-1],
    ]
    assert {type(chunk) for chunk in chunks} == {bytes}


# ── ranges ──


NO_RANGES = [(-1, None), (0, -1), (PLAN.size + 1, None), (0, PLAN.size + 1), (5, 4), (PLAN.size, 0)]


@pytest.mark.parametrize(("start", "stop"), NO_RANGES)
def test_what_is_no_range_is_refused_at_once(start: int, stop: int | None) -> None:
    with pytest.raises(InvalidInputError, match=f"start={start}"):
        stream_plan(PLAN, FakeSource(IMAGES).open_blob, start=start, stop=stop)
    with pytest.raises(InvalidInputError):
        PLAN.parts(start, stop)


@pytest.mark.parametrize("at", [0, 1, LONG_AT, LONG_AT + 1, PLAN.size])
async def test_an_empty_range_opens_nothing(at: int) -> None:
    source = FakeSource(IMAGES)
    assert await bytes_of(PLAN, source, at, at) == b""
    assert PLAN.parts(at, at) == ()
    assert source.openings == []


def test_the_parts_of_the_whole_are_the_segments() -> None:
    assert tuple(part.segment for part in PLAN.parts()) == PLAN.segments
    assert all(part.is_whole and part.size == part.segment.size for part in PLAN.parts())
    assert stream_plan(PLAN, FakeSource([]).open_blob).size == PLAN.size


# ── what is asked of the source ──

# start, stop, what is opened
ASKED: dict[str, tuple[int, int | None, list[Opening]]] = {
    "whole": (0, None, [Opening(layer.digest, 0, None) for layer in LAYERS]),
    "header": (0, LONG_AT, []),
    "first-byte": (0, LONG_AT + 1, [Opening(LAYERS[0].digest, 0, 1)]),
    "last-byte": (LONG_TO - 1, LONG_TO, [Opening(LAYERS[0].digest, 4999, None)]),
    "inside": (LONG_AT + 7, LONG_AT + 9, [Opening(LAYERS[0].digest, 7, 9)]),
    "one-blob": (LONG_AT, LONG_TO, [Opening(LAYERS[0].digest, 0, None)]),
    "padding": (LONG_TO, SHORT_AT, []),
    "two-cut": (
        LONG_AT + 4000,
        SHORT_AT + 10,
        [Opening(LAYERS[0].digest, 4000, None), Opening(LAYERS[1].digest, 0, 10)],
    ),
    "from-the-middle": (
        SHORT_AT + 1,
        None,
        [Opening(LAYERS[1].digest, 1, None), Opening(LAYERS[2].digest, 0, None)],
    ),
    "end": (PLAN.size - 1, None, []),
}


@pytest.mark.parametrize(("start", "stop", "openings"), ASKED.values(), ids=ASKED)
async def test_only_what_is_needed_is_opened(start: int, stop: int | None, openings: list[Opening]) -> None:
    source = FakeSource(IMAGES, chunk_size=1)
    await bytes_of(PLAN, source, start, stop)
    assert source.openings == openings
    sizes = {layer.digest: layer.size or 0 for layer in LAYERS}
    needed = {each.digest: (each.stop or sizes[each.digest]) - each.start for each in openings}
    assert source.given == needed, "and no byte more is read"


async def test_a_source_of_wholes_is_read_and_skipped_and_not_read_on() -> None:
    source = FakeSource(IMAGES, parts=False, chunk_size=100)
    await bytes_of(PLAN, source, LONG_AT + 1250, LONG_AT + 1251)
    assert (source.refused, source.given) == (1, {LAYERS[0].digest: 1300})
    source = FakeSource(IMAGES, parts=False, chunk_size=100)
    await bytes_of(PLAN, source, LONG_AT + 4950, LONG_TO)
    assert source.given == {LAYERS[0].digest: 5000}, "to its end, so that a surplus is seen"


async def test_what_was_entered_before_a_part_was_refused_is_left_before_the_whole_is_opened() -> None:
    source = FakeSource(IMAGES, parts=False)
    connections = [0]

    @contextlib.asynccontextmanager
    async def connect(descriptor: Any, **options: Any) -> AsyncIterator[Any]:
        assert connections.pop() == 0
        connections.append(1)
        try:
            yield source.open_blob(descriptor, **options)
        finally:
            connections[0] -= 1

    await chunks_of(stream_plan(PLAN, connect, start=LONG_TO - 1, stop=LONG_TO))
    assert (connections, source.refused) == ([0], 1)


async def test_skipping_leaves_the_loop_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aio, "YIELD_BYTES", 10 * (100 + _aio._CHUNK_COST))
    source = FakeSource(IMAGES, parts=False, quick=True, chunk_size=100)
    driver = Driver()
    await driver.drive(bytes_of(PLAN, source, LONG_TO - 1, LONG_TO))
    turn = 0
    stream = stream_plan(PLAN, source.open_blob, start=LONG_TO - 1, stop=LONG_TO)
    reading = asyncio.create_task(chunks_of(stream))
    while not reading.done():
        await asyncio.sleep(0)
        turn += 1
    assert turn >= 5


async def test_a_call_that_is_no_context_manager_of_an_iterator_will_do_too() -> None:
    """Whatever the writer takes as a content."""
    blobs = {layer.descriptor.digest: layer.blob for image in IMAGES for layer in image.layers}

    async def get(descriptor: Any, *, start: int = 0, stop: int | None = None) -> bytes:
        return blobs[descriptor.digest][start:stop]

    opener: Any = get
    assert b"".join(await chunks_of(stream_plan(PLAN, opener, start=700))) == (await archive_of(IMAGES))[700:]


# ── reading ahead ──


async def test_the_next_blob_is_opened_when_the_one_before_has_begun_to_leave() -> None:
    source = FakeSource(IMAGES, chunk_size=2000)
    async with stream_plan(PLAN, source.open_blob) as chunks:
        assert source.openings == []
        await anext(chunks)
        await turns()
        assert source.order == [LAYERS[0].digest], "the first, while its header leaves"
        assert len(await anext(chunks)) == 2000
        await turns()
        assert source.order == [layer.digest for layer in LAYERS[:2]]
        for _ in range(4):  # the rest of the first, and known bytes
            await anext(chunks)
            await turns()
        assert source.order == [layer.digest for layer in LAYERS[:2]]
        assert len(await anext(chunks)) == 300
        await turns()
        assert source.order == [layer.digest for layer in LAYERS]
    assert source.most_open <= 2


async def test_the_next_blob_waits_while_much_of_this_one_is_to_come() -> None:
    source = FakeSource(IMAGES, chunk_size=1000)
    async with PlanStream(PLAN.parts(), source.open_blob, limits=ReadingLimits(near_end=2000)) as chunks:
        await anext(chunks)
        for missing in (3000, 2000):  # the chunk that is held back was received
            assert len(await anext(chunks)) == 1000
            await turns()
            assert source.order == [layer.digest for layer in LAYERS[: 1 if missing > 2000 else 2]]


async def test_reading_ahead_is_bounded() -> None:
    source = FakeSource(IMAGES, chunk_size=100)
    async with PlanStream(PLAN.parts(), source.open_blob, limits=ReadingLimits(buffer=1000)) as chunks:
        taken = 0
        async for chunk in chunks:
            taken += len(chunk)
            await turns()
            assert sum(source.given.values()) <= taken + 2 * (1000 + 100) + 200


async def turns(count: int = 60) -> None:
    """Give everything that is ready its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


# ── wrong blobs ──


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda blob: (
        blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :] if at >= 0 else flip(len(blob) + at)(blob)
    )


WRONG: dict[str, tuple[Callable[[bytes], bytes], type[ContentError]]] = {
    "first-byte": (flip(0), DigestMismatchError),
    "last-byte": (flip(-1), DigestMismatchError),
    "one-byte-short": (lambda blob: blob[:-1], SizeMismatchError),
    "one-byte-long": (lambda blob: blob + b"+", SizeMismatchError),
    "twice": (lambda blob: blob + blob, SizeMismatchError),
    "empty": (lambda blob: b"", SizeMismatchError),
}


async def failing(stream: ByteStream) -> tuple[bytes, Exception]:
    """Read until it fails; return what it gave before, and the error."""
    found = bytearray()
    try:
        async for chunk in stream:
            found += chunk
    except Exception as exc:
        return bytes(found), exc
    raise AssertionError("it came to an end")


@pytest.mark.parametrize("chunk_size", [100, 5000, 1 << 20])
@pytest.mark.parametrize("layer", [LONG, LAST], ids=["sha256", "sha512"])
@pytest.mark.parametrize(("spoil", "error"), WRONG.values(), ids=WRONG)
async def test_the_last_chunk_of_a_wrong_blob_never_leaves(
    whole: bytes, spoil: Callable[[bytes], bytes], error: type[ContentError], layer: Any, chunk_size: int
) -> None:
    digest = layer.descriptor.digest
    source = FakeSource(IMAGES, chunk_size=chunk_size, spoil={digest: spoil})
    stream = stream_plan(PLAN, source.open_blob)
    found, exc = await failing(stream)
    assert type(exc) is error
    assert str(digest) in str(exc)
    start, stop = data_of(PLAN, digest)
    assert len(found) < stop
    assert found[:start] == whole[:start]
    assert source.open_now == 0, "it has closed everything by itself"
    assert asyncio.all_tasks() == {running_task()}
    assert (await failing(stream)) == (b"", exc), "it does not come to an end"
    await stream.aclose()


CUT = [(LONG_AT + 100, LONG_TO), (LONG_AT, LONG_TO - 100), (LONG_AT + 100, LONG_TO - 100)]


@pytest.mark.parametrize(("start", "stop"), CUT, ids=["tail", "head", "middle"])
@pytest.mark.parametrize("wrong", [b"", bytes(10), bytes(6000)], ids=["nothing", "short", "long"])
async def test_a_part_of_another_length_than_asked_for_is_an_error(
    start: int, stop: int, wrong: bytes
) -> None:
    @contextlib.asynccontextmanager
    async def open_blob(*args: Any, **options: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async def iterate() -> AsyncIterator[bytes]:
            for at in range(0, len(wrong), 100):
                yield wrong[at : at + 100]

        yield iterate()

    found, exc = await failing(stream_plan(PLAN, open_blob, start=start, stop=stop))
    assert isinstance(exc, SizeMismatchError)
    assert exc.expected == stop - start
    assert len(found) < stop - start
    assert str(LONG.descriptor.digest) in str(exc)


@pytest.mark.parametrize("parts", [True, False])
async def test_a_blob_that_is_too_short_for_the_range(parts: bool) -> None:
    source = FakeSource(IMAGES, parts=parts, spoil={LONG.descriptor.digest: lambda blob: blob[:4000]})
    found, exc = await failing(stream_plan(PLAN, source.open_blob, start=LONG_AT + 3900, stop=LONG_TO - 1))
    assert (type(exc), len(found)) == (SizeMismatchError, 0)


async def test_an_empty_blob_under_the_digest_of_another_is_an_error() -> None:
    layer = type(SHORT.descriptor)(SHORT.descriptor.media_type, SHORT.descriptor.digest, 0)
    plan = plan_archive([ImageSpec(make_config([SHORT.diff_id]), [layer])])
    source = FakeSource(IMAGES)
    found, exc = await failing(stream_plan(plan, source.open_blob))
    assert isinstance(exc, DigestMismatchError)
    assert len(found) == 512
    assert source.openings == []


# ── errors of the source ──


@pytest.mark.parametrize("chunk_size", [100, 5000])
async def test_what_the_source_raises_passes_through(chunk_size: int) -> None:
    error = ConnectionResetError("the registry has left")
    source = FakeSource(IMAGES, chunk_size=chunk_size, faults={SHORT.descriptor.digest: error})
    stream = stream_plan(PLAN, source.open_blob)
    found, exc = await failing(stream)
    assert exc is error
    assert not hasattr(exc, "__notes__")
    assert SHORT_AT <= len(found) < SHORT_TO, "not before its turn has come"
    assert source.open_now == 0
    assert (await failing(stream)) == (b"", error)
    await stream.aclose()
    _, exc = await failing(stream)
    assert isinstance(exc, ClosedResourceError)


@pytest.mark.parametrize("start", [0, LONG_AT + 1], ids=["whole", "cut"])
@pytest.mark.parametrize("error", [LookupError("no such blob"), NotImplementedError("nothing at all")])
async def test_what_opening_raises_passes_through(error: Exception, start: int) -> None:
    def open_blob(*args: Any, **options: Any) -> Any:
        raise error

    _, exc = await failing(stream_plan(PLAN, open_blob, start=start))
    assert exc is error


async def test_a_source_that_cancels_itself_is_an_error_that_names_the_blob() -> None:
    source = FakeSource(IMAGES, faults={LONG.descriptor.digest: asyncio.CancelledError()})
    _, exc = await failing(stream_plan(PLAN, source.open_blob))
    assert isinstance(exc, ContentError)
    assert any(str(LONG.descriptor.digest) in note for note in exc.__notes__)


async def test_what_a_cut_source_raises_when_it_is_closed_passes_through() -> None:
    @contextlib.asynccontextmanager
    async def open_blob(*args: Any, **options: Any) -> AsyncIterator[Any]:
        yield bytes(10)
        raise ConnectionResetError

    found, exc = await failing(stream_plan(PLAN, open_blob, start=LONG_AT, stop=LONG_AT + 10))
    assert (found, type(exc)) == (b"", ConnectionResetError)


# ── how it is used ──


async def test_behind_its_end_it_stays_at_its_end() -> None:
    stream = stream_plan(PLAN, FakeSource(IMAGES).open_blob)
    assert isinstance(stream, PlanStream)
    assert sum([len(chunk) async for chunk in stream]) == PLAN.size, "also bare"
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()
    assert asyncio.all_tasks() == {running_task()}


async def test_what_was_never_read_has_nothing_to_close() -> None:
    source = FakeSource(IMAGES)
    stream_plan(PLAN, source.open_blob)
    async with stream_plan(PLAN, source.open_blob) as stream:
        pass
    with pytest.raises(ClosedResourceError):
        await anext(stream)
    assert source.openings == []


async def test_an_early_end_does_not_look_like_one() -> None:
    stream = stream_plan(PLAN, FakeSource(IMAGES).open_blob)
    await anext(stream)
    await stream.aclose()
    for _ in range(2):
        with pytest.raises(ClosedResourceError):
            await anext(stream)


async def test_closed_from_another_task_while_a_read_waits() -> None:
    source = FakeSource(IMAGES)
    never = asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def open_blob(*args: Any, **options: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async with source.open_blob(*args, **options) as chunks:
            await never
            yield chunks

    stream = stream_plan(PLAN, open_blob, start=LONG_AT)
    reading = asyncio.create_task(anext(stream))
    await turns()
    assert source.open_now == 1
    await stream.aclose()
    assert source.open_now == 0
    with pytest.raises(ClosedResourceError):
        await reading


async def test_two_readers_at_once_are_refused() -> None:
    async with stream_plan(PLAN, FakeSource(IMAGES).open_blob, start=LONG_AT) as stream:
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="being read"):
            await anext(stream)
        assert len(await first) == 700
        assert len(await anext(stream)) == 700


async def test_an_async_generator_that_reads_it_may_be_closed() -> None:
    source = FakeSource(IMAGES)

    async def body() -> AsyncIterator[bytes]:
        async with stream_plan(PLAN, source.open_blob) as chunks:
            async for chunk in chunks:
                yield chunk

    generator: Any = body()
    await anext(generator)
    await anext(generator)
    assert source.open_now == 1
    await generator.aclose()
    assert source.open_now == 0


async def test_each_chunk_in_another_task(whole: bytes) -> None:
    stream = stream_plan(PLAN, FakeSource(IMAGES).open_blob)
    found = b""
    while chunk := await asyncio.create_task(anext(stream, b"")):
        found += chunk
    assert found == whole


def test_trio_is_refused() -> None:
    async def read() -> None:
        async with stream_plan(PLAN, FakeSource(IMAGES).open_blob):
            raise AssertionError

    async def read_bare() -> None:
        await anext(stream_plan(PLAN, FakeSource(IMAGES).open_blob))

    for main in (read, read_bare):
        with pytest.raises(EventLoopError):
            trio.run(main)


async def test_the_loop_gets_its_turn_while_nothing_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aio, "YIELD_BYTES", _aio._CHUNK_COST + 1)
    driver = Driver()
    await driver.drive(chunks_of(stream_plan(plan_archive([]), FakeSource([]).open_blob)))
    assert driver.suspensions == 1


# ── the thread that hashes ──


def hash_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiodockersave-hash"]


def join_hash_threads() -> None:
    """Wait until they have ended, which they do by themselves."""
    for thread in hash_threads():
        thread.join(PATIENCE)
    assert not hash_threads()


BIG = make_image(*(make_layer(noise(f"big {number}", 3 << 20), None) for number in range(3)))


async def test_big_blobs_are_hashed_in_one_thread_small_ones_in_none() -> None:
    source = FakeSource([BIG], chunk_size=64 << 10)
    most = 0
    async with stream_plan(plan_archive([BIG.spec]), source.open_blob) as chunks:
        async for _ in chunks:
            most = max(most, len(hash_threads()))
    assert 1 <= most <= 2, "that of the blob before may be about to end"
    join_hash_threads()
    async with stream_plan(PLAN, FakeSource(IMAGES).open_blob) as chunks:
        async for _ in chunks:
            assert not hash_threads()


@pytest.mark.parametrize("taken", [1, 5, 20, 45])
async def test_closing_ends_the_thread(taken: int) -> None:
    source = FakeSource([BIG], chunk_size=64 << 10)
    stream = stream_plan(plan_archive([BIG.spec]), source.open_blob)
    for _ in range(taken):
        await anext(stream)
    await stream.aclose()
    join_hash_threads()


@pytest.mark.parametrize("chunk_size", [1 << 10, 100_000, 1 << 20, 3 << 20])
async def test_big_blobs_are_verified_whatever_their_chunks(chunk_size: int) -> None:
    plan = plan_archive([BIG.spec])
    assert await bytes_of(plan, FakeSource([BIG], chunk_size=chunk_size, quick=True)) == await archive_of(
        [BIG]
    )
    digest = BIG.layers[1].descriptor.digest
    source = FakeSource([BIG], chunk_size=chunk_size, quick=True, spoil={digest: flip(-1)})
    found, exc = await failing(stream_plan(plan, source.open_blob))
    assert isinstance(exc, DigestMismatchError)
    assert len(found) < data_of(plan, digest)[1]


class StalledWorker(Worker):
    """A thread that does nothing until it is let go."""

    stalled: ClassVar[list[Callable[[], object]]] = []

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.stalled.append(lambda: future.set_result(call(*args, **kwargs)))
        return future

    def post(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        self.submit(call, *args, **kwargs)

    @classmethod
    def let_go(cls) -> None:
        for run in cls.stalled:
            run()
        cls.stalled.clear()


async def test_the_hash_is_a_bounded_number_of_bytes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_limits(monkeypatch)
    monkeypatch.setattr(transfer, "Worker", StalledWorker)
    stream = stream_plan(PLAN, FakeSource(IMAGES, chunk_size=100).open_blob, start=LONG_AT)
    reading = asyncio.create_task(anext(stream))
    given = 0
    while await is_done(reading) and given < 5000:
        given += len(await reading)
        reading = asyncio.create_task(anext(stream))
    assert 1500 <= given <= 3000
    while not await is_done(reading):
        StalledWorker.let_go()
    closing = asyncio.create_task(stream.aclose())
    while not await is_done(closing):  # what the thread has is waited for
        StalledWorker.let_go()


async def test_nothing_is_opened_any_more_once_it_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a read goes on, since what it waited for came in spite of that."""
    use_small_limits(monkeypatch)
    monkeypatch.setattr(transfer, "Worker", StalledWorker)
    monkeypatch.setattr(thread_queue, "BEHIND", 1 << 20)  # so that only the digest is waited for
    source = FakeSource(IMAGES, chunk_size=5000)
    stream = stream_plan(PLAN, source.open_blob, start=LONG_AT)
    reading = asyncio.create_task(anext(stream))
    assert not await is_done(reading), "it waits for the digest"
    closing = asyncio.create_task(stream.aclose())
    await turns()
    StalledWorker.let_go()
    await closing
    assert isinstance(await outcome_of(reading), ClosedResourceError)
    await turns()
    assert len(source.openings) == 1


async def test_closed_before_the_first_blob_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_aio, "YIELD_BYTES", 1)
    source = FakeSource(IMAGES)
    stream = stream_plan(PLAN, source.open_blob)
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    assert isinstance(await outcome_of(reading), ClosedResourceError)
    await turns()
    assert source.openings == []


async def test_a_source_that_is_slow_to_close_does_not_keep_the_others_open() -> None:
    source = FakeSource(IMAGES, chunk_size=100)
    gate = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open_blob(descriptor: Any, **options: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async with source.open_blob(descriptor, **options) as chunks:
            try:
                yield chunks
            finally:
                if descriptor.digest == LAYERS[0].digest:
                    await gate.wait()

    stream = PlanStream(PLAN.parts(), open_blob, limits=ReadingLimits(buffer=150))
    await anext(stream)
    await anext(stream)
    await turns()
    assert source.open_now == 2
    closing = asyncio.create_task(stream.aclose())
    await turns()
    assert source.open_now == 1
    gate.set()
    await closing
    assert source.open_now == 0


async def is_done(task: asyncio.Task[Any]) -> bool:
    await turns()
    return task.done()


# ── interrupted ──


SMALL = ReadingLimits(buffer=1500)


def use_small_limits(patch: pytest.MonkeyPatch) -> None:
    """Make small blobs take the ways of large ones, and let no thread make a run differ from another."""
    patch.setattr(content, "BATCH_SIZE", 1000)
    patch.setattr(thread_queue, "BEHIND", 1500)
    patch.setattr(thread_queue, "INLINE_SIZE", 500)
    patch.setattr(transfer, "Worker", TickWorker)
    patch.setattr(_aio, "YIELD_BYTES", 2 * _aio._CHUNK_COST)


@pytest.fixture
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_limits(monkeypatch)


# Ranges and sources whose reads suspend at different places.
SCENARIOS: dict[str, tuple[int, int | None, bool]] = {
    "whole": (0, None, True),
    "cut": (LONG_AT + 800, LAST_TO - 800, True),
    "source-of-wholes": (LONG_AT + 800, LAST_TO - 800, False),
}


def download(start: int, stop: int | None, parts: bool) -> Pull:
    source = FakeSource(IMAGES, parts=parts)
    return Pull(source, PlanStream(PLAN.parts(start, stop), source.open_blob, limits=SMALL))


@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", [*WAYS, by_task_cancel_when_ready])
async def test_every_suspension_interrupted(
    way: Way, twice: bool, scenario: tuple[int, int | None, bool], whole: bytes
) -> None:
    wanted = whole[scenario[0] : scenario[1]]
    await interrupt_everywhere(
        partial(download, *scenario), way, wanted, twice=twice, least=15, most_after=SUSPENSIONS_AFTER
    )


@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
@pytest.mark.parametrize("way", [by_task_cancel, by_cancel_scope, by_task_cancel_when_ready])
async def test_a_cancelled_read_loses_nothing(
    way: Way, scenario: tuple[int, int | None, bool], whole: bytes
) -> None:
    await cancel_a_read_everywhere(partial(download, *scenario), way, whole[scenario[0] : scenario[1]])


@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_closed_from_another_task_at_every_suspension(
    scenario: tuple[int, int | None, bool], whole: bytes
) -> None:
    await close_elsewhere_everywhere(partial(download, *scenario), whole[scenario[0] : scenario[1]])


@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize("way", [by_task_cancel, by_cancel_scope])
async def test_closing_interrupted_at_every_suspension(way: Way) -> None:
    for taken in (2, 3, 5):
        await interrupt_closing_everywhere(partial(download, 0, None, parts=True), way, taken)


@pytest.mark.usefixtures("_small_limits")
async def test_a_coroutine_that_is_closed_while_it_closes() -> None:
    pull = download(0, None, parts=True)
    for _ in range(5):
        await anext(pull.stream)
    closing = pull.stream.aclose()
    closing.send(None)
    closing.close()
    await turns()
    assert pull.source.open_now == 0


async def test_a_failure_while_another_closes() -> None:
    """What fails closes all, and may be closed meanwhile."""
    source = FakeSource(IMAGES, faults={LONG.descriptor.digest: LookupError()})
    stream = stream_plan(PLAN, source.open_blob)
    reading = asyncio.create_task(failing(stream))
    while not source.given:
        await asyncio.sleep(0)
    while not stream._failure:
        await asyncio.sleep(0)
    await stream.aclose()
    assert source.open_now == 0
    _, exc = await reading
    assert isinstance(exc, LookupError)


async def test_a_source_that_fails_to_close_does_not_keep_the_others_open() -> None:
    source = FakeSource(IMAGES, chunk_size=100)

    @contextlib.asynccontextmanager
    async def open_blob(*args: Any, **options: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async with source.open_blob(*args, **options) as chunks:
            try:
                yield chunks
            finally:
                await suspend()
                raise OSError

    stream = PlanStream(PLAN.parts(), open_blob, limits=ReadingLimits(buffer=150))
    await anext(stream)
    await anext(stream)
    await turns()
    assert source.open_now == 2
    await stream.aclose()
    assert source.open_now == 0


def test_closing_nothing_does_not_suspend() -> None:
    assert step(close_all([])) is None


async def test_a_time_limit_for_each_chunk() -> None:
    stream = stream_plan(PLAN, FakeSource(IMAGES).open_blob, start=LONG_AT)
    found = 0
    limits = 0
    while found < PLAN.size - LONG_AT:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(0)
                found += len(await anext(stream))
        except TimeoutError:
            limits += 1
            with anyio.fail_after(PATIENCE):
                found += len(await anext(stream))
    assert limits
    await stream.aclose()
