"""Whatever ends a coroutine: it is closed, its loop is closed, or a signal handler raises between two of our lines.

Nothing can be awaited then, so threads end by themselves. The promise: no byte goes outside of our own files, no thread stays,
and a writer whose sink has bytes that are nobody's is broken.

Each ending is tried at every place where it can come: each suspension of the coroutine, each turn of the loop, each line of
the package that the thread of the loop executes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import os
import random
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from blockbuster import BlockBuster

from aiodockersave import (
    ArchiveWriter,
    Descriptor,
    ImageRequest,
    OciLayoutSource,
    WriterBrokenError,
    WriterClosedError,
    open_archive,
    plan_archive,
    save,
    stream_plan,
)
from aiodockersave.archive import transaction
from aiodockersave.blobs import content, file_region, staging, thread_queue
from aiodockersave.core.model import Layers
from aiodockersave.sinks.atomic_file import Target, opened
from tests.support.images import (
    Image,
    ListSink,
    MemorySink,
    RewindSink,
    archive_of,
    make_image,
    make_layer,
    put,
    write_layout,
)
from tests.support.interruption import Interrupt, Interrupting, forward, outcome_of
from tests.support.stores import Store

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, object]]

LIMIT = 60.0  # seconds for what must happen
CANARIES = 24  # files that take the numbers of descriptors that were closed


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


SMALL = make_image(make_layer(noise(4, 9_000), "gzip"), make_layer(noise(5, 300), None), repo_tags=["a:1"])
IMAGE = make_image(
    make_layer(noise(1, 40_000), "gzip"),
    make_layer(noise(2, 9_000), "gzip"),
    make_layer(noise(3, 300), None),
    repo_tags=["example.com/app:1.0"],
)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small data take the ways of large ones: threads, many batches."""
    monkeypatch.setattr(content, "BATCH_SIZE", 4096)
    for room in (content, transaction, staging):
        monkeypatch.setattr(room, "MAX_BATCH_SIZE", 8192)
    monkeypatch.setattr(thread_queue, "INLINE_SIZE", 1024)
    monkeypatch.setattr(file_region, "BATCH_SIZE", 4096)
    monkeypatch.setattr(file_region, "_LEAST_BATCH", 4096)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Let asyncio not complain of tasks that these tests leave on purpose."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _the_collector_closes(nothing_blocks: BlockBuster) -> None:
    """Let a target that an interrupt has kept its owner from closing be closed by the collector, wherever that comes in."""
    for function in nothing_blocks.functions.values():
        function.can_block_in("aiodockersave/sinks/atomic_file.py", "__del__")


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """Keep the collector from looking at all that pytest has, each of some hundred times."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ── what must hold ──


def threads_of_ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("aiodockersave")]


def wait_for_threads() -> None:
    """Wait until no thread of ours is left, nor what the last one has held."""
    deadline = time.monotonic() + LIMIT
    while left := threads_of_ours():
        assert time.monotonic() < deadline, f"threads stay: {left}"
        time.sleep(0.001)
        gc.collect()
    gc.collect()
    if threads_of_ours():  # which close what is left
        wait_for_threads()


class Canaries:
    """Files that are opened as soon as a coroutine has ended: they get the numbers of the descriptors that it has closed."""

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / f"canary-{number}").open("w+b", buffering=0) for number in range(CANARIES)]

    def check(self) -> None:
        """See that nobody has written to them, and close them."""
        for file in self._files:
            size = os.fstat(file.fileno()).st_size
            file.close()
            Path(file.name).unlink()
            assert size == 0, "bytes went to another file"


class Closing:
    """Runs a coroutine in a task, and closes it at its n-th suspension.

    Attributes:
        suspensions: How many there were.
    """

    def __init__(self, at: int) -> None:
        self.suspensions = 0
        self._at = at

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T | None]:
        return (yield from forward(coroutine, suspending=self._is_its_end))

    def _is_its_end(self, waited_for: Any) -> bool:
        self.suspensions += 1
        if self.suspensions == self._at and waited_for is not None:
            waited_for._asyncio_future_blocking = False  # it is not awaited after all
        return self.suspensions == self._at


async def settle() -> None:
    """Give what was left to itself its time: the tasks of a coroutine that was closed end on the loop."""
    deadline = time.monotonic() + LIMIT
    mine = asyncio.current_task()
    while threads_of_ours() or asyncio.all_tasks() - {mine}:
        assert time.monotonic() < deadline, f"left: {threads_of_ours()} {asyncio.all_tasks()}"
        await asyncio.sleep(0.001)


async def check_writer(archive: ArchiveWriter, sink: Any, layers: Layers) -> bool:
    """See that a writer is broken, or goes on as if nothing had been; tell which."""
    try:
        await put(archive, IMAGE)
        await archive.close()
    except WriterBrokenError:
        return True
    except WriterClosedError:
        pass
    assert sink.getvalue() == await archive_of([IMAGE], layers=layers)
    return False


class Reader:
    """A content without an async generator, so that Python itself closes nothing.

    Attributes:
        is_closed: Whether it was.
    """

    def __init__(self, data: bytes, size: int = 5000) -> None:
        self.is_closed = False
        self._file = io.BytesIO(data)
        self._size = size

    async def read(self, size: int) -> bytes:
        await asyncio.sleep(0)
        return self._file.read(min(size, self._size))

    async def aclose(self) -> None:
        self.is_closed = True


def _given(reader: Reader) -> Reader:
    return reader


class Source:
    """Gives a store's images by objects, where the store has async generators: nothing waits where it is closed.

    Attributes:
        open_now: How many blobs are open.
    """

    def __init__(self, image: Image) -> None:
        self.open_now = 0
        self._store = Store({"one": image})
        self.resolve = self._store.resolve

    def requests(self) -> list[ImageRequest]:
        return [ImageRequest(self, "one", self._store.images["one"].repo_tags)]

    def open_blob(self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None) -> Any:
        return _Blob(self, self._store.blobs[descriptor.digest][start:stop])


class _Blob:
    def __init__(self, source: Source, data: bytes) -> None:
        self._source = source
        self._file = io.BytesIO(data)

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        self._source.open_now += 1
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        if not (chunk := self._file.read(3000)):
            raise StopAsyncIteration
        return chunk

    async def __aexit__(self, *_: object) -> None:
        self._source.open_now -= 1


class FileSink:
    """A file of the caller's, closed as soon as the call has ended."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sink"
        self.file = self.path.open("w+b", buffering=0)

    def getvalue(self) -> bytes:
        return self.path.read_bytes()


# ── a coroutine is closed ──


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("make_sink", [ListSink, RewindSink, MemorySink])
@pytest.mark.parametrize("checksum", [False, True], ids=["", "checksum"])
async def test_a_writer_s_calls(make_sink: Callable[[], Any], layers: Layers, checksum: bool) -> None:
    at = 0
    broken = 0
    while True:
        at += 1
        sink = make_sink()
        archive = ArchiveWriter(sink, layers=layers, checksum=checksum, stage_memory=3000)
        readers = [Reader(layer.blob) for layer in IMAGE.layers]

        async def work(archive: ArchiveWriter = archive, readers: list[Reader] = readers) -> None:
            for layer, reader in zip(IMAGE.layers, readers, strict=True):
                await archive.put_layer(partial(_given, reader), layer.descriptor, diff_id=layer.diff_id)
            await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)
            await archive.close()

        closing = Closing(at)
        await closing.drive(work())
        if closing.suspensions < at:
            break
        await settle()
        assert all(reader.is_closed for reader in readers if reader._file.tell())
        broken += await check_writer(archive, sink, layers)
    assert at > 15
    assert broken


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_file_of_the_caller_s(layers: Layers, tmp_path: Path) -> None:
    """He may close it at once, and another file may have its number: nothing is written there."""
    at = 0
    while True:
        at += 1
        sink = FileSink(tmp_path)
        archive = ArchiveWriter(sink.file, layers=layers)

        async def work(archive: ArchiveWriter = archive) -> None:
            for layer in IMAGE.layers:
                await archive.put_layer(Reader(layer.blob), layer.descriptor, diff_id=layer.diff_id)
            await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)
            await archive.close()

        closing = Closing(at)
        await closing.drive(work())
        sink.file.close()
        canaries = Canaries(tmp_path)
        await settle()
        canaries.check()
        if closing.suspensions < at:
            break
    assert at > 20


class SlowFile(io.RawIOBase):
    """A file object of the caller's that takes its time.

    Attributes:
        is_writing: Whether a thread is in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_writing = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.is_writing = True
        time.sleep(0.02)
        self.is_writing = False
        return len(data)


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_file_object_of_the_caller_s(layers: Layers) -> None:
    """It may be closed at once, and what is below it be somebody else's: no thread is in it when the call has ended."""
    at = 0
    while True:
        at += 1
        file: Any = SlowFile()
        archive = ArchiveWriter(file, layers=layers)
        closing = Closing(at)
        await closing.drive(put(archive, SMALL))
        assert not file.is_writing
        file.close()
        await settle()
        if closing.suspensions < at:
            break
    assert at > 3


CASES: dict[str, dict[str, Any]] = {
    "keep": {},
    "keep, one job": {"jobs": 1},
    "resume": {"resume": True},
    "decompress": {"layers": "decompress"},
    "decompress, one job": {"layers": "decompress", "jobs": 1},
    "checksum": {"checksum": True},
    "decompress, checksum": {"layers": "decompress", "checksum": True},
}


async def check_target(path: Path, options: dict[str, Any]) -> None:
    """See that a target is not there, or is whole, and that beside it is a part file at most."""
    if path.exists():
        layers = options.get("layers", "keep")
        assert path.read_bytes() == await archive_of([IMAGE], layers=layers)
    left = [entry.name for entry in path.parent.iterdir() if entry != path]
    assert not left or ("resume" in options and left[0].endswith(".part")), left
    for entry in path.parent.iterdir():
        entry.unlink()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
async def test_a_save_to_a_file(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "app.tar"
    at = 0
    while True:
        at += 1
        store = Source(IMAGE)
        closing = Closing(at)
        await closing.drive(save(store.requests(), path, **options))
        canaries = Canaries(tmp_path)
        await settle()
        canaries.check()
        assert store.open_now == 0
        await check_target(path, options)
        if closing.suspensions < at:
            break
    assert at > 3


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_save_into_a_sink(layers: Layers) -> None:
    at = 0
    while True:
        at += 1
        store, sink = Source(IMAGE), ListSink()
        closing = Closing(at)
        await closing.drive(save(store.requests(), sink, layers=layers))
        written = len(sink.writes)
        await settle()
        assert len(sink.writes) == written
        assert store.open_now == 0
        if closing.suspensions < at:
            break
    assert at > 3


async def test_an_archive_at_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "app.tar"
    at = 0

    async def work() -> None:
        async with open_archive(path) as archive:
            await put(archive, IMAGE)

    while True:
        at += 1
        closing = Closing(at)
        await closing.drive(work())
        canaries = Canaries(tmp_path)
        await settle()
        canaries.check()
        await check_target(path, {})
        if closing.suspensions < at:
            break
    assert at > 3


@pytest.mark.parametrize("how", ["saved", "read"])
async def test_a_layout_s_blobs(how: str, tmp_path: Path) -> None:
    source = OciLayoutSource(write_layout(tmp_path / "layout", {"one": IMAGE}))

    async def work() -> None:
        if how == "saved":
            await save([ImageRequest(source, "one")], ListSink())
            return
        for layer in IMAGE.manifest.layers:
            async with source.open_blob(layer) as chunks:
                async for _ in chunks:
                    pass

    at = 0
    while True:
        at += 1
        closing = Closing(at)
        await closing.drive(work())
        await settle()
        if closing.suspensions < at:
            break
    assert at > 3


async def test_a_plan_that_is_streamed() -> None:
    """It waits for what it has open, as an async generator that is closed may do; a coroutine may not, and Python says so."""
    plan = plan_archive([IMAGE.spec])
    at = 0
    while True:
        at += 1
        store = Source(IMAGE)

        async def work(store: Source = store) -> None:
            async with stream_plan(plan, store.open_blob) as chunks:
                async for _ in chunks:
                    pass

        closing = Closing(at)
        with contextlib.suppress(RuntimeError):
            await closing.drive(work())
        gc.collect()
        await settle()
        assert store.open_now == 0
        if closing.suspensions < at:
            break
    assert at > 3


# ── the loop is closed ──


class Loop:
    """A loop that is turned by hand."""

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[object] | None = self._loop.create_task(coroutine)

    def turn(self, count: int) -> bool:
        """Turn so often; tell whether the task has ended by then."""
        for _ in range(count):
            if self._task is None or self._task.done():
                return True
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()
        return False

    def close(self) -> None:
        """Close it, as who knows nothing of tasks does, and drop all that was on it."""
        self._loop.close()
        self._task = None
        gc.collect()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # what Python says of such a loop
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_loop_that_is_closed_under_a_save(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "app.tar"
    turns = 0
    is_over = False
    while not is_over:
        turns += 1
        store = Source(IMAGE)
        loop = Loop(save(store.requests(), path, **options))
        is_over = loop.turn(turns)
        loop.close()
        canaries = Canaries(tmp_path)
        wait_for_threads()
        canaries.check()
        asyncio.run(check_target(path, options))
    assert turns > 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("layers", ["keep", "decompress"])
def test_a_loop_that_is_closed_under_a_save_into_a_sink(layers: Layers) -> None:
    turns = 0
    is_over = False
    while not is_over:
        turns += 1
        loop = Loop(save(Source(IMAGE).requests(), ListSink(), layers=layers))
        is_over = loop.turn(turns)
        loop.close()
        wait_for_threads()
    assert turns > 5


def test_a_target_that_is_left_by_another_fault_when_no_loop_runs(tmp_path: Path) -> None:
    """What is cleaned up before it may fail, as the loop is closed, and take the place of GeneratorExit."""
    target = Target(tmp_path / "app.tar", fsync=False)
    leaving = opened(target)
    asyncio.run(leaving.__aenter__())
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StopIteration):
        leaving.__aexit__(None, RuntimeError("Event loop is closed"), None).send(None)
    wait_for_threads()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("layers", ["keep", "decompress"])
def test_a_loop_that_is_closed_under_a_writer(layers: Layers, tmp_path: Path) -> None:
    turns = 0
    is_over = False
    while not is_over:
        turns += 1
        sink = FileSink(tmp_path)
        archive = ArchiveWriter(sink.file, layers=layers)
        loop = Loop(put(archive, IMAGE))
        is_over = loop.turn(turns)
        loop.close()
        sink.file.close()
        canaries = Canaries(tmp_path)
        del archive
        gc.collect()
        wait_for_threads()
        canaries.check()
    assert turns > 5


# ── a signal handler raises ──


async def put_again(archive: ArchiveWriter, image: Image) -> None:
    """Put an image as a caller does who catches the interrupt, and goes on."""
    await put(archive, image)
    await archive.close()


# What Python says of coroutines that were never awaited, and of what is raised where nobody can be told.
_of_interrupts = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@_of_interrupts
@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("make_sink", [io.BytesIO, ListSink])
async def test_a_handler_that_raises_in_a_writer_s_call(make_sink: Callable[[], Any], layers: Layers) -> None:
    """Who catches it and goes on has the right archive, or is told that there is none."""
    expected = await archive_of([SMALL], layers=layers)
    at, tried = 0, 0
    while True:
        at += 1
        sink = make_sink()
        archive = ArchiveWriter(sink, layers=layers)
        interrupting = Interrupting(at)
        outcome = await interrupting.run(partial(put_again, archive, SMALL))
        if interrupting.where is None:
            assert outcome is None
            break
        tried += 1
        assert isinstance(outcome, Interrupt), (interrupting.where, outcome)
        del outcome  # its frames hold what they were interrupted in
        # As another task: the one that was interrupted may be taken for one that is still in its call.
        again = await outcome_of(asyncio.create_task(put_again(archive, SMALL)))
        if again is None or isinstance(again, WriterClosedError):
            assert sink.getvalue() == expected, interrupting.where
        else:
            assert isinstance(again, WriterBrokenError), (interrupting.where, again)
        del archive, again
    assert tried > 300
    gc.collect()
    await settle()


@_of_interrupts
@pytest.mark.parametrize("is_slow", [False, True], ids=["", "slow"])
async def test_a_handler_that_raises_in_an_archive_at_a_path(
    is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the old one or the whole new one, also where it gets its name meanwhile."""
    publish = Target.publish

    def slow(target: Target) -> None:
        time.sleep(0.02)
        publish(target)

    if is_slow:
        monkeypatch.setattr(Target, "publish", slow)
    expected = await archive_of([SMALL])
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "app.tar"
    at, ends = 0, set[bytes]()

    async def work() -> None:
        async with open_archive(path, fsync=False) as archive:
            await put(archive, SMALL)

    while True:
        at += 23 if is_slow else 17
        path.write_bytes(b"old")
        interrupting = Interrupting(at)
        outcome = await interrupting.run(work)
        if interrupting.where is None:
            assert outcome is None
            break
        assert isinstance(outcome, Interrupt), (interrupting.where, outcome)
        del outcome
        ends.add(path.read_bytes())
        assert ends <= {b"old", expected}, interrupting.where
    assert len(ends) == 2
    gc.collect()
    await settle()


def open_below(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open; none where there is no ``/proc``."""
    descriptors = Path("/proc/self/fd")
    links = []
    for entry in descriptors.iterdir() if descriptors.exists() else ():
        with contextlib.suppress(OSError):  # the listing's own
            links.append(str(entry.readlink()))
    return [link for link in links if link.startswith(f"{folder}/")]


@_of_interrupts
@pytest.mark.parametrize("options", [CASES["keep"], CASES["decompress"], CASES["resume"]], ids=str)
def test_a_handler_that_raises_in_a_save(options: dict[str, Any], tmp_path: Path) -> None:
    """As ``asyncio.run`` sees it: what is left is cancelled, and comes to its end."""
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "app.tar"
    at = random.Random(repr(options)).randrange(1, 12)
    tried = 0
    while True:
        store = Source(SMALL)
        interrupting = Interrupting(at)

        async def work(store: Source = store, interrupting: Interrupting = interrupting) -> None:
            outcome = await interrupting.run(lambda: save(store.requests(), path, **options))
            if outcome is not None:
                raise outcome

        with contextlib.suppress(Interrupt):
            asyncio.run(asyncio.wait_for(work(), LIMIT))
        gc.collect()
        canaries = Canaries(tmp_path)
        wait_for_threads()
        canaries.check()
        if path.exists():
            layers = options.get("layers", "keep")
            assert path.read_bytes() == asyncio.run(archive_of([SMALL], layers=layers)), interrupting.where
        assert not open_below(folder), interrupting.where
        for entry in folder.iterdir():
            entry.unlink()
        if interrupting.where is None:
            break
        tried += 1
        at += 12
    assert tried > 20
