"""A build as a stream: what it writes is pulled, piece by piece, and nothing of it outlives its consumer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from anyio import ClosedResourceError
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodockersave import (
    ArchiveWriter,
    ContentError,
    DigestMismatchError,
    EventLoopError,
    ImageConflictError,
    InvalidInputError,
    WriterBrokenError,
    WriterClosedError,
    archive_stream,
    plan_archive,
)
from aiodockersave.archive.stream import ArchiveStream, ByteStream
from tests.support.blobs import FakeSource
from tests.support.images import Image, archive_of, image_lists, make_image, make_layer, put
from tests.support.interruption import (
    WAYS,
    Way,
    by_cancel_scope,
    by_task_cancel,
    by_task_cancel_when_ready,
    outcome_of,
    running_task,
    suspend,
)
from tests.support.pulls import (
    Pull,
    cancel_a_read_everywhere,
    close_elsewhere_everywhere,
    interrupt_closing_everywhere,
    interrupt_everywhere,
)
from tests.support.scenario import use_small_limits

Build = Callable[[ArchiveWriter], Awaitable[object]]

SUSPENSIONS_AFTER = 40  # so many may follow a cancel; what absorbs one delivery after the other has thousands
IMAGES = [
    make_image(make_layer(bytes(range(256)) * 20, None), make_layer({"app": b"app"}), repo_tags=["a:1"]),
    make_image(make_layer({"app": b"app"}), repo_tags=["a:2"]),
]


@pytest.fixture
def source() -> FakeSource:
    return FakeSource(IMAGES)


def build_from(source: FakeSource, images: list[Image] = IMAGES) -> Build:
    """Return a build of these images."""

    async def build(archive: ArchiveWriter) -> None:
        for image in images:
            for layer in image.layers:
                content = partial(source.open_blob, layer.descriptor)
                await archive.put_layer(content, layer.descriptor, diff_id=layer.diff_id)
            await archive.put_image(image.config, image.manifest, image.repo_tags)

    return build


async def read_all(stream: ByteStream) -> bytes:
    async with stream as chunks:
        return b"".join([chunk async for chunk in chunks])


async def turns(count: int = 60) -> None:
    """Give everything that is ready its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


# ── the archive ──


@settings(max_examples=50)
@given(images=image_lists(), layers=st.sampled_from(["keep", "decompress"]), format=st.just("docker"))
async def test_it_is_the_archive_that_the_writer_writes(images: list[Image], **options: Any) -> None:
    async def build(archive: ArchiveWriter) -> None:
        for image in images:
            await put(archive, image)

    stream = archive_stream(build, **options)
    assert await read_all(stream) == await archive_of(images, **options)


async def test_at_the_end_there_is_the_report(source: FakeSource) -> None:
    stream = archive_stream(build_from(source), checksum=True)
    found = bytearray()
    async for piece in stream:
        assert stream.report is None
        assert type(piece) is bytes
        found += piece
    plan = plan_archive(image.spec for image in IMAGES)
    assert stream.report is not None
    assert (stream.report.size, stream.report.members) == (len(found), plan.members)
    assert stream.report.sha256 is not None
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.aclose()
    assert asyncio.all_tasks() == {running_task()}


async def test_large_layers_come_in_pieces_as_the_writer_writes_them() -> None:
    image = make_image(make_layer(bytes(5 << 20), None))
    stream = archive_stream(lambda archive: put(archive, image))
    sizes = [len(piece) async for piece in stream]
    assert max(sizes) <= 2 << 20
    assert sizes[0] > 512, "a header does not come alone"


async def test_a_build_that_puts_nothing() -> None:
    async def build(archive: ArchiveWriter) -> None:
        await suspend()

    assert await read_all(archive_stream(build)) == await archive_of([])


async def test_a_build_of_several_tasks() -> None:
    async def build(archive: ArchiveWriter) -> None:
        async with asyncio.TaskGroup() as group:
            for layer in IMAGES[0].layers:
                group.create_task(archive.put_layer(layer.blob, layer.descriptor, stage=True))
        await archive.put_image(IMAGES[0].config, IMAGES[0].manifest, IMAGES[0].repo_tags)

    assert len(await read_all(archive_stream(build))) == plan_archive([IMAGES[0].spec]).size


async def test_each_piece_in_another_task(source: FakeSource) -> None:
    stream = archive_stream(build_from(source))
    found = b""
    while piece := await asyncio.create_task(anext(stream, b"")):
        found += piece
    assert found == await archive_of(IMAGES)


# ── back-pressure ──


async def test_a_build_is_at_most_one_piece_ahead() -> None:
    put_layers = 0

    async def build(archive: ArchiveWriter) -> None:
        nonlocal put_layers
        for number in range(5):
            layer = make_layer(bytes([number]) * 2000, None)
            await archive.put_layer(layer.blob, layer.descriptor)
            put_layers += 1

    async with archive_stream(build) as stream:
        await turns()
        assert put_layers == 0, "it starts with the first read"
        for taken in range(1, 5):
            await anext(stream)
            await turns()
            assert put_layers == taken + 1


async def test_a_write_that_is_interrupted_while_it_waits_gave_nothing() -> None:
    layers = [make_layer(bytes([number]) * 2000, None) for number in range(3)]

    async def build(archive: ArchiveWriter) -> None:
        await archive.put_layer(layers[0].blob, layers[0].descriptor)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await archive.put_layer(layers[1].blob, layers[1].descriptor)  # its turn has not come
        await archive.put_layer(layers[2].blob, layers[2].descriptor)

    stream = archive_stream(build)
    first = await anext(stream)
    await turns()
    rest = await read_all(stream)
    image = [layers[0], layers[2]]
    report = stream.report
    assert report is not None
    digests = [layer.descriptor.digest for layer in image]
    assert [member.digest for member in report.members][:2] in (
        digests,
        [digests[0], layers[1].descriptor.digest],
    )
    assert len(first + rest) == report.size


# ── faults ──


class BuildError(Exception):
    """What a build raises."""


async def failing(stream: ByteStream) -> tuple[bytes, Exception]:
    """Read until it fails; return what it gave before, and the error."""
    found = bytearray()
    try:
        async for piece in stream:
            found += piece
    except Exception as exc:
        return bytes(found), exc
    raise AssertionError("it came to an end")


async def fail_at_once(archive: ArchiveWriter) -> None:
    raise BuildError


async def fail_at_the_end(archive: ArchiveWriter) -> None:
    await put(archive, IMAGES[0])
    raise BuildError


async def put_wrong_layer(archive: ArchiveWriter) -> None:
    layer = IMAGES[0].layers[0]
    await archive.put_layer(layer.blob[:-1] + b"+", layer.descriptor)


async def swallow_a_broken_archive(archive: ArchiveWriter) -> None:
    layer = make_layer(bytes(range(256)) * 4096, None)

    async def wrong() -> AsyncIterator[bytes]:
        yield layer.blob[:-1]
        yield b"+"

    with pytest.raises(DigestMismatchError):
        await archive.put_layer(wrong, layer.descriptor)


async def abort(archive: ArchiveWriter) -> None:
    await put(archive, IMAGES[0])
    await archive.abort()


async def cancel_itself(archive: ArchiveWriter) -> None:
    raise asyncio.CancelledError


async def put_conflict(archive: ArchiveWriter) -> None:
    await put(archive, IMAGES[1])
    layer = make_layer({"other": b""})
    await archive.put_layer(layer.blob, layer.descriptor)
    await archive.put_image(IMAGES[1].config, [layer.descriptor])


def no_coroutine(archive: ArchiveWriter) -> Any:
    return None


FAULTS: dict[str, tuple[Build, type[Exception]]] = {
    "at-once": (fail_at_once, BuildError),
    "at-the-end": (fail_at_the_end, BuildError),
    "wrong-layer": (put_wrong_layer, DigestMismatchError),
    "broken-archive": (swallow_a_broken_archive, WriterBrokenError),
    "aborted": (abort, WriterClosedError),
    "cancels-itself": (cancel_itself, ContentError),
    "conflict": (put_conflict, ImageConflictError),
    "not-async": (no_coroutine, TypeError),
}


@pytest.mark.parametrize(("build", "error"), FAULTS.values(), ids=FAULTS)
async def test_what_the_build_raises_comes_behind_its_pieces(build: Build, error: type[Exception]) -> None:
    stream = archive_stream(build)
    found, exc = await failing(stream)
    assert type(exc) is error
    assert not found.endswith(bytes(1024)), "it has no end"
    assert stream.report is None
    assert asyncio.all_tasks() == {running_task()}
    assert await failing(stream) == (b"", exc)
    await stream.aclose()
    _, exc = await failing(stream)
    assert isinstance(exc, ClosedResourceError)


def test_options_are_the_writers_and_refused_at_once() -> None:
    with pytest.raises(InvalidInputError):
        archive_stream(fail_at_once, layers="squash")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        archive_stream(fail_at_once, colour="red")  # type: ignore[call-arg]


@pytest.mark.parametrize("call", ["__anext__", "aclose"])
async def test_a_build_must_not_wait_for_itself(call: str) -> None:
    async def build(archive: ArchiveWriter) -> None:
        await getattr(stream, call)()

    stream = archive_stream(build)
    _, exc = await failing(stream)
    assert isinstance(exc, RuntimeError | ClosedResourceError)
    await stream.aclose()
    assert asyncio.all_tasks() == {running_task()}


def test_trio_is_refused() -> None:
    async def read() -> None:
        await anext(archive_stream(fail_at_once))

    with pytest.raises(EventLoopError):
        trio.run(read)


# ── closing ──


async def test_what_was_never_read_never_ran() -> None:
    async with archive_stream(fail_at_once):
        pass
    archive_stream(fail_at_once)


@pytest.mark.parametrize("taken", [1, 2])
async def test_closing_cancels_the_build_at_its_await(source: FakeSource, taken: int) -> None:
    cancels: list[BaseException] = []

    async def build(archive: ArchiveWriter) -> None:
        try:
            await build_from(source)(archive)
        except asyncio.CancelledError as exc:
            cancels.append(exc)
            raise

    stream = archive_stream(build)
    for _ in range(taken):
        await anext(stream)
    await turns()
    assert not cancels
    await asyncio.create_task(stream.aclose())
    assert len(cancels) == 1
    assert source.open_now == 0
    assert asyncio.all_tasks() == {running_task()}


async def test_closing_while_a_read_waits() -> None:
    async def build(archive: ArchiveWriter) -> None:
        await asyncio.get_running_loop().create_future()

    stream = archive_stream(build)
    reading = asyncio.create_task(anext(stream))
    await turns()
    await stream.aclose()
    assert isinstance(await outcome_of(reading), ClosedResourceError)


async def test_a_build_that_swallows_the_cancel_writes_to_nobody() -> None:
    errors: list[BaseException | None] = []

    async def build(archive: ArchiveWriter) -> None:
        for number in range(4):
            layer = make_layer(bytes([number]) * 2000, None)
            errors.append(await outcome_of(archive.put_layer(layer.blob, layer.descriptor)))

    stream = archive_stream(build)
    await anext(stream)
    await turns()
    await stream.aclose()
    assert [type(error) for error in errors] == [
        *(type(None), type(None)),
        *(asyncio.CancelledError, ConnectionResetError),
    ]


async def test_a_build_that_spawned_tasks_ends_with_them() -> None:
    ended = []

    async def build(archive: ArchiveWriter) -> None:
        async def work(number: int) -> None:
            try:
                layer = make_layer(bytes([number]) * 2000, None)
                await archive.put_layer(layer.blob, layer.descriptor)
            finally:
                ended.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(work(number))

    stream = archive_stream(build)
    await anext(stream)
    await stream.aclose()
    assert sorted(ended) == list(range(10))


async def test_threads_of_the_writer_end_with_the_stream() -> None:
    image = make_image(*(make_layer(bytes([number]) * (3 << 20), "gzip") for number in range(3)))
    stream = archive_stream(lambda archive: put(archive, image), layers="decompress")
    for _ in range(4):
        await anext(stream)
    await stream.aclose()
    for thread in threading.enumerate():
        if thread.name.startswith("aiodockersave"):
            thread.join(60)
            assert not thread.is_alive()


# ── interrupted ──


OPTIONS: dict[str, dict[str, Any]] = {"keep": {}, "decompress": {"layers": "decompress", "checksum": True}}


@pytest.fixture(params=list(OPTIONS))
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    use_small_limits(monkeypatch)
    return OPTIONS[request.param]


def pull(options: dict[str, Any]) -> Pull:
    source = FakeSource(IMAGES)
    return Pull(source, archive_stream(build_from(source), **options))


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", [*WAYS, by_task_cancel_when_ready])
async def test_every_suspension_interrupted(way: Way, twice: bool, options: dict[str, Any]) -> None:
    whole = await archive_of(IMAGES, **options)
    await interrupt_everywhere(
        partial(pull, options), way, whole, twice=twice, least=8, most_after=SUSPENSIONS_AFTER
    )


@pytest.mark.parametrize("way", [by_task_cancel, by_cancel_scope, by_task_cancel_when_ready])
async def test_a_cancelled_read_loses_nothing(way: Way, options: dict[str, Any]) -> None:
    pulls: list[Pull] = []

    def make() -> Pull:
        pulls.append(pull(options))
        return pulls[-1]

    await cancel_a_read_everywhere(make, way, await archive_of(IMAGES, **options))
    assert all(isinstance(each.stream, ArchiveStream) and each.stream.report for each in pulls)


async def test_closed_from_another_task_at_every_suspension(options: dict[str, Any]) -> None:
    await close_elsewhere_everywhere(partial(pull, options), await archive_of(IMAGES, **options))


@pytest.mark.parametrize("way", [by_task_cancel, by_cancel_scope])
async def test_closing_interrupted_at_every_suspension(way: Way, options: dict[str, Any]) -> None:
    for taken in (1, 3, 5):
        await interrupt_closing_everywhere(partial(pull, options), way, taken)
