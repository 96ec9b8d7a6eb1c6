"""What a caller may pass: every kind is read, closed once and told of faults; everything else is refused."""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import inspect
import io
import itertools
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import aiofiles
import aiohttp
import anyio
import pytest

from aiodockersave import ArchiveWriter, ContentError, Descriptor, SizeMismatchError, WriterBrokenError
from aiodockersave.blobs import content as content_module
from aiodockersave.blobs.content import MAX_BATCH_SIZE, OpenContent
from tests.support.contents import (
    CUTS,
    KINDS,
    ClosableReader,
    Iterable,
    Kind,
    PlainIterator,
    Reader,
    bytewise,
    entering,
    generate,
    promise,
)
from tests.support.http import answer, serving
from tests.support.images import Layer, ListSink, MemorySink, make_image, make_layer

PLAIN = bytes(range(11, 256)) * 3  # no newline, and not one valid UTF-8 sequence
LAYER = make_layer(PLAIN, None)
TIME_LIMIT = 60.0  # seconds; nothing here takes one, but on a machine that stalls


@pytest.fixture
def collected() -> Iterator[None]:
    """Have the collector say at once what nobody closed; pytest makes an error of it."""
    yield
    gc.collect()


async def read_all(content: object) -> list[bytes]:
    """Open, read to the end and close, as the writer does it."""
    opened = OpenContent(content)
    chunks: list[bytes] = []
    fault: BaseException | None = None
    try:
        await opened.open()
        while chunk := await opened.read():
            owner = chunk.obj if isinstance(chunk, memoryview) else chunk
            assert type(owner) is bytes, "nobody can change it"
            assert len(chunk) <= MAX_BATCH_SIZE
            chunks.append(bytes(chunk))
        assert await opened.read() == b""
    except Exception as exc:
        fault = exc
    raised = await opened.close(fault)
    if raised or fault:
        raise raised or fault  # type: ignore[misc]
    return chunks


async def put(content: object, descriptor: Descriptor | None = LAYER.descriptor, **options: Any) -> bytes:
    """Put one layer and close; return the archive."""
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await archive.put_layer(content, descriptor, **options)  # type: ignore[arg-type]
    return sink.getvalue()


# ── every kind, cut in every way ──

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@every_kind
async def test_every_kind_is_read_whole(kind: Kind, tmp_path: Path) -> None:
    for cut in CUTS:
        async with kind.of(cut(PLAIN), tmp_path) as content:
            assert b"".join(await read_all(content)) == PLAIN


@every_kind
async def test_every_kind_becomes_a_layer(kind: Kind, tmp_path: Path) -> None:
    expected = await put(PLAIN)
    for cut in CUTS:
        async with kind.of(cut(PLAIN), tmp_path) as content:
            assert await put(content) == expected


@every_kind
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_every_kind_is_held_to_its_size(kind: Kind, stage: bool, tmp_path: Path) -> None:
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        for wrong in (PLAIN + b"tail", PLAIN[:-1], b""):
            async with kind.of(bytewise(wrong), tmp_path) as content:
                with pytest.raises(SizeMismatchError, match=str(LAYER.descriptor.digest)):
                    await archive.put_layer(content, LAYER.descriptor, stage=stage)
        assert not sink.writes
        await archive.put_layer(PLAIN, LAYER.descriptor)
    assert sink.getvalue() == await put(PLAIN)


@pytest.mark.parametrize(
    "chunks",
    [[], [b""], [b"", b"", b"a"], [b"a", b"", b"b"], [b"a", bytearray(), memoryview(b""), b"b", b""]],
    ids=["none", "one empty", "empty first", "empty between", "other empty ones"],
)
@pytest.mark.parametrize("make", [generate, Iterable], ids=["generator", "iterable"])
async def test_empty_chunks_of_an_iterable_are_skipped(
    make: Callable[[Any], object], chunks: list[bytes]
) -> None:
    assert b"".join(await read_all(make(chunks))) == b"".join(chunks)


async def test_an_empty_read_is_the_end() -> None:
    reader = Reader([b"a", b"", b"b"])
    opened = OpenContent(reader)
    await opened.open()
    assert [await opened.read(), await opened.read(), await opened.read()] == [b"a", b"", b""]
    assert await reader.read(1) == b"b"  # left where it was: the stream is the caller's


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "make", [lambda data: data, lambda data: generate([data]), lambda data: Reader([data])]
)
async def test_large_chunks_are_cut(kind: Callable[[bytes], Any], make: Callable[[Any], object]) -> None:
    data = bytes(range(256)) * (5 << 11) + b"end"  # 2.5 MiB
    chunks = await read_all(make(kind(data)))
    assert [len(chunk) for chunk in chunks] == [MAX_BATCH_SIZE, MAX_BATCH_SIZE, MAX_BATCH_SIZE // 2 + 3]
    assert b"".join(chunks) == data


async def test_other_buffers_are_read_as_bytes() -> None:
    numbers = array.array("I", [1, 2, 3])
    assert b"".join(await read_all(generate([numbers, memoryview(numbers)]))) == numbers.tobytes() * 2


@pytest.mark.parametrize("size", [10, 3 << 20], ids=["small", "cut"])
async def test_a_source_may_use_its_buffer_again(size: int) -> None:
    async def source() -> AsyncGenerator[bytearray, None]:
        buffer = bytearray()
        for number in range(3):
            buffer[:] = bytes([number]) * (size + number)  # resized: BufferError if somebody still has a view
            yield buffer

    layer = make_layer(b"".join(bytes([number]) * (size + number) for number in range(3)), None)
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await archive.put_layer(source(), layer.descriptor)
    assert layer.blob in sink.getvalue()


# ── what is refused ──


def _endless() -> object:
    return _endless


class _Response:
    """A response as aiohttp's is: its ``read()`` gives the whole body, also of an error page."""

    async def read(self) -> bytes:
        return b"error page"

    async def __aenter__(self) -> Self:
        raise AssertionError("entered")

    async def __aexit__(self, *exc_info: object) -> None:
        raise AssertionError("left")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "str": (lambda: "layer.tar", "cannot read from str: pass bytes"),
    "None": (lambda: None, "cannot read from None: pass bytes"),
    "int": (lambda: 7, "cannot read from int"),
    "list": (lambda: [b"a"], "cannot read from list"),
    "sync generator": (lambda: (b"" for _ in ()), "cannot read from generator"),
    "path": (lambda: Path("layer.tar"), "cannot read from PosixPath"),
    "callable of None": (lambda: lambda: None, "cannot read from None"),
    "coroutine of a str": (lambda: promise("layer"), "cannot read from str"),
    "context manager of a list": (lambda: entering([b"a"]), "cannot read from list"),
    "class without read": (lambda: object, "cannot read from object"),
    "callable of itself": (lambda: _endless, "cannot read from function"),
    "sync read": (lambda: io.BytesIO(b"a"), "the read() of BytesIO is not async: open files with aiofiles"),
    "read that takes no size": (
        _Response,
        "the read() of _Response takes no size: pass its stream",
    ),
    "str chunks": (lambda: generate(["a"]), "the content gave str where bytes were expected"),
    "str from read": (lambda: Reader(["a"]), "the content gave str where bytes were expected"),
    "empty str from read": (lambda: Reader([""]), "the content gave str where bytes were expected"),
    "None from read": (lambda: Reader([None]), "the content gave None where bytes were expected"),
    "None from an iterator": (lambda: generate([None]), "the content gave None where bytes were expected"),
    "int from an iterator": (lambda: Iterable([5]), "the content gave int where bytes were expected"),
    "memoryview with gaps": (lambda: memoryview(b"abcdef")[::2], "the content gave a memoryview with gaps"),
    "chunk with gaps": (
        lambda: generate([memoryview(b"abcdef")[::2]]),
        "the content gave a memoryview with gaps",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_what_cannot_be_read_is_refused(make: Callable[[], Any], message: str, stage: bool) -> None:
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        with pytest.raises(TypeError) as caught:
            await archive.put_layer(make(), LAYER.descriptor, stage=stage)
        assert message in str(caught.value)
        assert not sink.writes
        await archive.put_layer(PLAIN, LAYER.descriptor)


async def test_an_open_response_is_refused() -> None:
    async with (
        serving(answer([PLAIN])) as url,
        aiohttp.ClientSession() as session,
        session.get(url) as response,
    ):
        with pytest.raises(
            TypeError, match=r"ClientResponse takes no size: pass its stream, .*response\.content"
        ):
            await put(response)
        assert await put(response.content) == await put(PLAIN)


class _HttpxResponse:
    """What httpx gives: nothing of the body may be asked for by name before it was read."""

    status_code = 200

    @property
    def content(self) -> bytes:
        raise RuntimeError("ResponseNotRead")

    def read(self) -> bytes:
        raise RuntimeError("ResponseNotRead")

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        yield PLAIN


@pytest.mark.parametrize(
    "make", [_HttpxResponse, partial(entering, _HttpxResponse())], ids=["bare", "entered"]
)
async def test_a_response_of_httpx_is_refused_and_its_stream_is_read(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"pass its stream, .*aiter_raw\(\) of httpx"):
        await put(make())
    assert await put(_HttpxResponse().aiter_raw()) == await put(PLAIN)


@pytest.mark.parametrize("status", [204, 301, 404, 500])
async def test_an_answer_without_success_never_becomes_a_layer(status: int) -> None:
    async with serving(answer([], status)) as url, aiohttp.ClientSession() as session:
        sink = ListSink()
        async with ArchiveWriter(sink) as archive:
            request = session.get(url, allow_redirects=False)
            if status == 204:  # a success, and empty
                assert (await archive.put_layer(request)).size == 0
            else:
                with pytest.raises(ContentError, match=f"answered with status {status}"):
                    await archive.put_layer(request)
                assert not sink.writes
        assert session.connector is not None
        assert not session.connector._acquired


# ── who closes what ──


async def test_what_the_caller_passes_open_stays_open() -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(PLAIN)
    stream.feed_eof()
    reader = Reader(bytewise(PLAIN))
    for content in (stream, reader):
        await put(content)
    assert not reader.closed


@pytest.mark.parametrize(
    "make",
    [ClosableReader, PlainIterator, Iterable],
    ids=["reader", "iterator", "iterable"],
)
@pytest.mark.parametrize("chunks", [[PLAIN], [b"wrong"]], ids=["success", "fault"])
async def test_what_has_aclose_is_closed_once(
    make: Callable[[list[bytes]], Any], chunks: list[bytes]
) -> None:
    content = make(chunks)
    with contextlib.suppress(ContentError):
        await put(content)
    assert getattr(content, "iterator", content).closed == 1


async def test_what_a_context_manager_gives_is_closed_by_it() -> None:
    """Closing it as well would close a file that the caller shares between several contents."""
    reader = ClosableReader([PLAIN])
    await put(entering(reader))
    assert reader.closed == 0


async def test_layers_of_one_file_are_put_one_after_the_other(tmp_path: Path) -> None:
    layers = [make_layer(bytes([number]) * 50, None) for number in range(3)]
    path = tmp_path / "layers"
    path.write_bytes(b"".join(layer.blob for layer in layers))

    async def part(layer: Layer) -> bytes:
        return await file.read(len(layer.blob))

    sink = ListSink()
    async with aiofiles.open(path, "rb") as file, ArchiveWriter(sink) as archive:
        for layer in layers:
            await archive.put_layer(partial(part, layer), layer.descriptor)
    assert [member.digest for member in _report(archive).members[:3]] == [layer.diff_id for layer in layers]


def _report(archive: ArchiveWriter) -> Any:
    assert archive.report is not None
    return archive.report


class Diary:
    """A content that writes down what is done with it, and in which task."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.events: list[str] = []
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self._chunks = chunks

    def note(self, event: str) -> None:
        self.events.append(event)
        self.tasks.add(asyncio.current_task())

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncGenerator[AsyncIterator[bytes], None]:
        self.note("open")
        try:
            yield self.chunks()
        except BaseException as exc:
            self.note(type(exc).__name__)
            raise
        finally:
            self.note("close")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self._chunks:
                self.note("chunk")
                await asyncio.sleep(0)
                yield chunk
        except BaseException as exc:
            self.note(f"{type(exc).__name__} inside")
            raise
        finally:
            self.note("end")


@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_open_read_and_close_happen_in_the_task_of_the_call(stage: bool) -> None:
    diary = Diary([PLAIN])
    await put(diary.opened, stage=stage)
    assert diary.events == ["open", "chunk", "end", "close"]
    assert diary.tasks == {asyncio.current_task()}


@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_a_fault_is_told_to_the_content(stage: bool) -> None:
    diary = Diary([b"much", b"too long" * 200, b"never asked for"])
    with pytest.raises(SizeMismatchError):
        await put(diary.opened, stage=stage)
    assert diary.events == [
        *("open", "chunk", "chunk"),
        *("SizeMismatchError inside", "end"),
        *("SizeMismatchError", "close"),
    ]
    assert diary.tasks == {asyncio.current_task()}


async def test_a_cancel_is_told_to_the_content() -> None:
    diary = Diary([PLAIN])
    started = asyncio.Event()

    async def hanging() -> AsyncGenerator[bytes, None]:
        async with diary.opened() as chunks:
            async for chunk in chunks:
                yield chunk
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(put(hanging()))
    await asyncio.wait_for(started.wait(), TIME_LIMIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.events == ["open", "chunk", "end", "CancelledError", "close"]
    assert diary.tasks == {task}


async def test_a_failing_sink_is_told_to_the_content() -> None:
    async def full(data: bytes) -> None:
        raise OSError("full")

    diary = Diary([PLAIN])
    archive = ArchiveWriter(full)
    with pytest.raises(OSError, match="full"):
        await archive.put_layer(diary.opened, LAYER.descriptor)
    assert diary.events[-2:] == ["OSError", "close"]
    with pytest.raises(WriterBrokenError):
        await archive.close()


@pytest.mark.parametrize(
    "answers", ["swallows", "goes on", "raises another", "raises while closing"], ids=lambda answer: answer
)
async def test_what_a_generator_does_with_a_fault(answers: str) -> None:
    async def content() -> AsyncGenerator[bytes, None]:
        try:
            yield PLAIN + b"a tail"
        except ContentError:
            if answers == "goes on":
                yield b"more"
            if answers == "raises another":
                raise LookupError("the content's own") from None
        finally:
            if answers == "raises while closing":
                raise LookupError("the content's own")

    expected = LookupError if answers.startswith("raises") else ContentError
    with pytest.raises(expected):
        await put(content())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: generate_then_fail(LookupError("the source's")), "the source's"),
        (lambda: partial(fail, LookupError("no such blob")), "no such blob"),
        (lambda: promise_failure(LookupError("refused")), "refused"),
        (lambda: FailingContext("enter"), "enter"),
        (lambda: FailingContext("leave"), "leave"),
    ],
    ids=["while reading", "while calling", "while awaiting", "while entering", "while leaving"],
)
async def test_errors_of_the_content_come_out_as_they_are(
    content: Callable[[], object], message: str
) -> None:
    with pytest.raises(LookupError, match=message) as caught:
        await put(content())
    assert type(caught.value) is LookupError


async def generate_then_fail(error: Exception) -> AsyncGenerator[bytes, None]:
    yield b"some"
    raise error


def fail(error: Exception) -> bytes:
    raise error


async def promise_failure(error: Exception) -> bytes:
    raise error


class FailingContext:
    """A context manager that fails where it is told to."""

    def __init__(self, where: str) -> None:
        self._where = where

    async def __aenter__(self) -> bytes:
        if self._where == "enter":
            raise LookupError("enter")
        return PLAIN

    async def __aexit__(self, *exc_info: object) -> None:
        raise LookupError("leave")


async def test_everything_is_closed_innermost_first_and_told_the_newest_fault() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def level(name: str, inner: object) -> AsyncGenerator[object, None]:
        try:
            yield inner
        except Exception as exc:
            events.append(f"{name}: {exc}")
            raise LookupError(f"from {name}") from exc

    with pytest.raises(LookupError, match="from outer"):
        await put(level("outer", level("inner", generate_then_fail(LookupError("first")))))
    assert events == ["inner: first", "outer: from inner"]


async def test_a_content_that_opens_halfway_is_closed() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def outer() -> AsyncGenerator[object, None]:
        try:
            yield 7
        finally:
            events.append("left")

    with pytest.raises(TypeError):
        await put(outer)
    assert events == ["left"]


# ── opened late, or never ──


async def test_queued_contents_are_not_open() -> None:
    opened: list[int] = []
    may_end = asyncio.Event()
    begun = asyncio.Event()

    async def first() -> AsyncGenerator[bytes, None]:
        begun.set()
        await may_end.wait()
        yield PLAIN

    def source(number: int) -> bytes:
        opened.append(number)
        return layers[number].blob

    layers = [make_layer(b"%d" % number, None) for number in range(100)]
    sink = ListSink()
    async with ArchiveWriter(sink) as archive, asyncio.TaskGroup() as tasks:
        tasks.create_task(archive.put_layer(first(), LAYER.descriptor))
        await asyncio.wait_for(begun.wait(), TIME_LIMIT)
        for number, layer in enumerate(layers):
            tasks.create_task(archive.put_layer(partial(source, number), layer.descriptor))
        for _ in range(5):  # each task has come to where it waits
            await asyncio.sleep(0)
        assert opened == []
        may_end.set()
    assert opened == list(range(100))


NEVER_OPENED: dict[str, Callable[[Path], Any]] = {
    "coroutine": lambda path: promise(PLAIN),
    "generator": lambda path: generate([PLAIN]),
    "context manager": lambda path: entering(PLAIN),
    "opener": lambda path: partial(entering, PLAIN),
    "bytes": lambda path: PLAIN,
    "aiofiles.open(…)": lambda path: aiofiles.open(path, "rb"),
    "anyio.open_file(…)": lambda path: anyio.open_file(path, "rb"),
    "future": lambda path: asyncio.get_running_loop().create_future(),
}


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("make", NEVER_OPENED.values(), ids=NEVER_OPENED)
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_a_content_that_is_not_needed_leaves_nothing(
    make: Callable[[Path], Any], stage: bool, tmp_path: Path
) -> None:
    async with ArchiveWriter(ListSink()) as archive:
        await archive.put_layer(PLAIN, LAYER.descriptor)
        stored = await archive.put_layer(make(tmp_path / "missing"), LAYER.descriptor, stage=stage)
        assert stored == LAYER.descriptor


async def test_a_request_that_is_not_needed_is_not_sent() -> None:
    asked: list[str] = []

    async def count(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        asked.append(request.path)
        return aiohttp.web.Response(body=PLAIN)

    async with (
        serving(count) as url,
        aiohttp.ClientSession() as session,
        ArchiveWriter(ListSink()) as archive,
    ):
        for _ in range(2):
            await archive.put_layer(session.get(url), LAYER.descriptor)
    assert asked == ["/"]


async def test_a_started_generator_that_is_not_needed_is_closed() -> None:
    events: list[str] = []

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            yield b"header"
            yield PLAIN
        finally:
            events.append("closed")

    generator = source()
    assert await anext(generator) == b"header"
    async with ArchiveWriter(ListSink()) as archive:
        await archive.put_layer(PLAIN, LAYER.descriptor)
        await archive.put_layer(generator, LAYER.descriptor)
        assert events == ["closed"]


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("make", NEVER_OPENED.values(), ids=NEVER_OPENED)
async def test_a_cancelled_wait_leaves_nothing_of_a_content(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    begun = asyncio.Event()

    async def hanging() -> bytes:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    archive = ArchiveWriter(ListSink())
    first = asyncio.create_task(archive.put_layer(hanging, LAYER.descriptor))
    await asyncio.wait_for(begun.wait(), TIME_LIMIT)
    waiting = asyncio.create_task(archive.put_layer(make(tmp_path / "missing"), LAYER.descriptor))
    await asyncio.sleep(0)
    for task in (waiting, first):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# ── time-outs that a content holds ──


async def slow(scope: Callable[[], Any], *, first: bytes = b"") -> AsyncGenerator[bytes, None]:
    """Hold a time-out open while yielding, and never give the rest."""
    with_scope = scope()
    if hasattr(with_scope, "__aenter__"):
        async with with_scope:
            yield first
            await asyncio.Event().wait()
    else:
        with with_scope:
            yield first
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    "scope",
    [partial(asyncio.timeout, 0.02), partial(anyio.fail_after, 0.02)],
    ids=["asyncio.timeout", "anyio.fail_after"],
)
@pytest.mark.parametrize("first", [b"", b"x" * (300 << 10)], ids=["before the first byte", "after it"])
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_the_time_out_of_a_content_comes_out(
    scope: Callable[[], Any], first: bytes, stage: bool
) -> None:
    layer = make_layer(b"x" * (600 << 10), None)
    sink = MemorySink()
    async with ArchiveWriter(sink) as archive:
        with pytest.raises(TimeoutError):
            await archive.put_layer(slow(scope, first=first), layer.descriptor, stage=stage)
        assert not sink.data
        assert not archive.has_blob(layer.descriptor.digest)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await archive.put_layer(layer.blob, layer.descriptor)


async def test_a_scope_of_the_content_that_only_cancels_loses_no_layer() -> None:
    """``move_on_after`` ends the generator early: the layer is short, and that is said."""
    with pytest.raises(ContentError):
        await put(slow(partial(anyio.move_on_after, 0.02), first=PLAIN[:10]))


# ── from end to end ──


async def test_the_core_joins_tiny_chunks() -> None:
    sink = ListSink()
    layer = make_layer(bytes(itertools.islice(itertools.cycle(range(256)), 100_000)), None)
    async with ArchiveWriter(sink) as archive:
        await archive.put_layer(generate(bytewise(layer.blob)), layer.descriptor)
        await archive.put_image(make_image(layer).config, make_image(layer).manifest)
    assert len(sink.writes) == 3  # layer, image, end


async def test_many_awaitables_give_up_at_last() -> None:
    content: Awaitable[Any] = promise(PLAIN)
    for _ in range(content_module._MAX_STEPS - 2):
        content = promise(content)
    assert await put(content) == await put(PLAIN)


async def test_a_content_is_opened_before_it_is_read() -> None:
    with pytest.raises(AssertionError, match="not open"):
        await OpenContent(PLAIN).read()


def test_a_read_written_in_c_may_hide_what_it_takes() -> None:
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(max)
    assert content_module._reads(types.SimpleNamespace(read=max))
