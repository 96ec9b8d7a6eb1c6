"""Every sink that callers have: its adapter, its powers, and the bytes that are left after each fault."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import tty
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiofiles
import aiohttp
import anyio
import pytest
from aiohttp import web

from aiodockersave import (
    ArchiveWriter,
    ContentError,
    SinkError,
    WriterBrokenError,
    as_sink,
    open_archive,
    plan_archive,
)
from aiodockersave.blobs.content import BATCH_SIZE, MAX_BATCH_SIZE
from aiodockersave.sinks import adapters
from aiodockersave.sinks import pipes as _pipes
from aiodockersave.sinks.adapters import (
    Sink,
    SupportsPatch,
    SupportsRead,
    SupportsRewind,
    descriptor_sink,
    write_some,
)
from tests.support.contents import generate
from tests.support.http import serving
from tests.support.images import Image, ListSink, MemorySink, archive_of, make_image, make_layer, put
from tests.support.places import PLACES, ByteStream, Drain, Place

TIME_LIMIT = 60.0  # seconds; nothing here takes one, but on a machine that stalls
RANDOM = random.Random(1)
ROOT = Path(__file__).parents[2]

SMALL = make_layer(b"small", None)
LARGE = make_layer(RANDOM.randbytes(2_500_000), None)  # several batches, and more than a pipe holds
IMAGE = make_image(SMALL, LARGE, repo_tags=["example.com/app:1.0"])

every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)


def powers(sink: object) -> tuple[str, ...]:
    known: dict[str, type] = {"patch": SupportsPatch, "read": SupportsRead, "rewind": SupportsRewind}
    return tuple(name for name, protocol in known.items() if isinstance(sink, protocol))


def is_open(archive: ArchiveWriter) -> bool:
    """Tell whether the writer is OPEN, as its next call would find it."""
    try:
        archive._turns.check_open()
    except WriterBrokenError:
        return False
    return True


async def eventually(condition: Callable[[], bool]) -> None:
    """Give the loop its turns until something is so."""
    async with asyncio.timeout(TIME_LIMIT):
        while not condition():
            await asyncio.sleep(0.001)


# ── every place ──


@every_place
async def test_an_object_gets_its_adapter_and_powers(place: Place, tmp_path: Path) -> None:
    async with place.at(tmp_path) as (target, read):
        sink = as_sink(target)
        assert type(sink).__name__ == (place.adapter or type(target).__name__)
        assert powers(sink) == place.powers
        assert as_sink(sink) is sink
        await read()


@every_place
@pytest.mark.parametrize(
    "options", [{}, {"layers": "decompress", "checksum": True}], ids=["keep", "decompress"]
)
async def test_every_sink_gets_the_same_bytes(place: Place, options: dict[str, Any], tmp_path: Path) -> None:
    async with place.at(tmp_path) as (target, read):
        async with ArchiveWriter(target, **options) as archive:
            await put(archive, IMAGE)
        assert await read() == await archive_of([IMAGE])


@every_place
async def test_a_fault_after_the_first_byte_rewinds_or_breaks(place: Place, tmp_path: Path) -> None:
    async with place.at(tmp_path) as (target, read):
        archive = ArchiveWriter(target)
        await archive.put_layer(SMALL.blob, SMALL.descriptor)
        with pytest.raises(ContentError):
            await archive.put_layer(LARGE.blob[:-1], LARGE.descriptor)
        assert is_open(archive) == ("rewind" in place.powers)
        if is_open(archive):
            await archive.put_layer(LARGE.blob, LARGE.descriptor)
            await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)
            await archive.close()
            assert await read() == await archive_of([IMAGE])
        else:
            with pytest.raises(WriterBrokenError):
                await archive.close()
            assert not (await read()).endswith(bytes(1024))


@every_place
async def test_a_fault_before_the_first_byte_leaves_every_sink_open(place: Place, tmp_path: Path) -> None:
    async with place.at(tmp_path) as (target, read):
        async with ArchiveWriter(target) as archive:
            with pytest.raises(ContentError):
                await archive.put_layer(b"wrong", SMALL.descriptor)
            with pytest.raises(ContentError):
                await archive.put_layer(LARGE.blob[:-1], LARGE.descriptor, stage=True)
            await put(archive, IMAGE)
        assert await read() == await archive_of([IMAGE])


# ── refused ──


@contextlib.contextmanager
def _socket_file(mode: Any, **options: Any) -> Iterator[Any]:
    one, other = socket.socketpair()
    with one, other, one.makefile(mode, **options) as file:
        yield file


class SyncSink:
    """A file of somebody else's making, whose write blocks."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "str": (
        lambda path: contextlib.nullcontext("app.tar"),
        r"cannot write to str: for a path use open_archive\(\)",
    ),
    "path": (contextlib.nullcontext, r"PosixPath: for a path use open_archive\(\)"),
    "None": (lambda path: contextlib.nullcontext(), "cannot write to None: pass a binary file"),
    "int": (lambda path: contextlib.nullcontext(1), "cannot write to int"),
    "class": (lambda path: contextlib.nullcontext(ListSink), "cannot write to the class ListSink"),
    "def": (lambda path: contextlib.nullcontext(print), "cannot write to builtin_function_or_method"),
    "text file": (lambda path: path.open("w"), "text file: open it in binary mode"),
    "reading": (lambda path: path.open("rb"), "open for reading: open it with 'wb'"),
    "reading, raw": (lambda path: path.open("rb", buffering=0), "open for reading: open it with 'wb'"),
    "temporary text": (lambda path: tempfile.NamedTemporaryFile("w+"), "text file"),  # noqa: SIM115
    "spooled text": (lambda path: tempfile.SpooledTemporaryFile(mode="w+"), "text file"),  # noqa: SIM115
    "file of a socket": (lambda path: _socket_file("wb"), "file of a socket: use asyncio.open_connection"),
    "raw file of a socket": (lambda path: _socket_file("wb", buffering=0), "file of a socket"),
    "both ways of a socket": (lambda path: _socket_file("rwb"), "file of a socket"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
async def test_an_object_that_cannot_be_written_to_is_refused(
    make: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    path.touch()
    with make(path) as target, pytest.raises(TypeError, match=message):
        ArchiveWriter(target)


async def test_a_write_that_blocks_is_refused() -> None:
    archive = ArchiveWriter(SyncSink())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the write\(\) of SyncSink is not async: pass a file"):
        await archive.put_layer(SMALL.blob, SMALL.descriptor)
    assert not is_open(archive)  # who knows what it wrote


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (0, SinkError, "took 0 of .* bytes: it must take at least one"),
        (-1, SinkError, "took -1 of"),
        (1 << 40, SinkError, "took 1099511627776 of .* and no more than it was given"),
        (True, TypeError, "returned True: return None, or how many bytes it took"),
        ("5", TypeError, "returned '5'"),
    ],
)
@pytest.mark.parametrize("base", [ListSink, MemorySink], ids=["cannot rewind", "can rewind"])
async def test_a_sink_that_breaks_its_protocol(
    returned: Any, error: type[Exception], message: str, base: type[Any]
) -> None:
    class Sink(base):  # type: ignore[misc]
        breaks = True

        async def write(self, data: bytes, /) -> Any:
            await super().write(data)
            return returned if self.breaks else None

    sink = Sink()
    archive = ArchiveWriter(sink)
    with pytest.raises(error, match=message):
        await archive.put_layer(SMALL.blob, SMALL.descriptor)
    assert is_open(archive) == (base is MemorySink)
    if is_open(archive):
        sink.breaks = False
        await put(archive, IMAGE)
        await archive.close()
        assert sink.getvalue() == await archive_of([IMAGE])


async def test_write_some_says_how_much_was_taken() -> None:
    class Half(ListSink):
        async def write(self, data: bytes, /) -> int:  # type: ignore[override]
            return len(data) // 2

    assert await write_some(Half(), b"1234") == 2
    assert await write_some(ListSink(), b"1234") == 4


# ── files ──


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("stage", [None, LARGE.descriptor], ids=["header last", "header first"])
async def test_an_archive_in_the_middle_of_a_file(buffering: int, stage: Any, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"." * 5_000_000)
    expected = await archive_of([IMAGE])
    with path.open("r+b", buffering) as file:
        file.seek(1000)
        file.write(b"before")
        async with ArchiveWriter(file, checksum=True) as archive:
            await archive.put_layer(SMALL.blob, SMALL.descriptor)
            await archive.put_layer(LARGE.blob, stage)
            await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)
        assert file.tell() == 1006 + len(expected)
        file.write(b"after")
    data = path.read_bytes()
    assert data[:1006] == b"." * 1000 + b"before"
    assert data[1006:][: len(expected)] == expected
    assert data[1006 + len(expected) :].startswith(b"after.")
    assert len(data) == 5_000_000
    assert archive.report is not None
    assert str(archive.report.sha256) == str(SMALL.descriptor.digest.of(expected))


async def test_bytes_that_a_buffer_has_read_ahead_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"0123456789" * 1000)
    with path.open("r+b") as file:
        assert file.read(3) == b"012"  # the buffer has read on
        async with ArchiveWriter(file):
            pass
    assert path.read_bytes().startswith(b"012manifest.json\0")


async def test_a_rewind_goes_to_where_the_archive_is(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with path.open("wb") as file:
        file.write(b"before")
        archive = ArchiveWriter(file)
        with pytest.raises(ContentError):
            await archive.put_layer(LARGE.blob[:-1], LARGE.descriptor)
        assert path.read_bytes() == b"before"
        assert file.tell() == 6


async def test_several_archives_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "archives"
    async with aiofiles.open(path, "wb") as file:
        for _ in range(3):
            async with ArchiveWriter(file) as archive:
                await put(archive, IMAGE)
    assert path.read_bytes() == await archive_of([IMAGE]) * 3


@pytest.mark.parametrize("mode", ["wb", "w+b"])
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["small steps", "large steps"])
async def test_a_move_within_a_file(
    mode: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_MOVE_SIZE", step)
    path = tmp_path / "file"
    with path.open(mode, buffering=0) as file:
        file.write(b"before")
        sink = as_sink(file)
        await sink.write(b"0123456789")
        assert isinstance(sink, SupportsPatch)
        await asyncio.to_thread(sink.move, 2, 5, 8)
        await sink.write(b"end")
        await asyncio.to_thread(sink.patch, 1, b"ab")
        await sink.write(b".")
    assert path.read_bytes() == b"before0ab3423456789end."


async def test_a_file_that_somebody_else_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        sink = as_sink(file)
        await sink.write(b"0123456789")
        os.truncate(path, 4)
        assert isinstance(sink, SupportsPatch)
        with pytest.raises(SinkError, match="the file is shorter than what was written to it, at byte 4"):
            await asyncio.to_thread(sink.move, 0, 5, 10)


async def test_reading_fails_as_it_fails(tmp_path: Path) -> None:
    """Only a descriptor without the right to read is opened anew."""
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        sink = as_sink(file)
        await sink.write(b"0123456789")
        assert isinstance(sink, SupportsRead)
        with pytest.raises(OSError, match="Invalid argument"):
            await asyncio.to_thread(sink.read, -20, 1)


async def test_a_file_that_cannot_be_read_is_not_patched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of unknown size are staged for it: a header that becomes larger would need a move."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with (tmp_path / "archive").open("wb") as file:
        assert powers(as_sink(file)) == ("rewind",)
        async with ArchiveWriter(file, layers="decompress", checksum=True) as archive:
            await put(archive, IMAGE)
    assert (tmp_path / "archive").read_bytes() == await archive_of([IMAGE])


async def test_buffered_bytes_that_cannot_be_written_leave_the_archive_open() -> None:
    """They are the caller's, and stand in front of the archive."""
    fails = True

    class Buffer(io.BufferedWriter):
        def flush(self) -> None:
            if fails:
                raise OSError("full")
            super().flush()

    with tempfile.TemporaryFile(buffering=0) as file, Buffer(file) as buffer:
        buffer.write(b"before")
        archive = ArchiveWriter(buffer)
        with pytest.raises(OSError, match="full"):
            await archive.put_layer(SMALL.blob, SMALL.descriptor)
        fails = False
        await put(archive, IMAGE)
        await archive.close()
        file.seek(0)
        assert file.read() == b"before" + await archive_of([IMAGE])


async def test_devices() -> None:
    with Path("/dev/null").open("wb") as null:
        async with ArchiveWriter(null) as archive:
            await put(archive, IMAGE)
    with Path("/dev/full").open("wb", buffering=0) as full:
        archive = ArchiveWriter(full)
        with pytest.raises(OSError, match="No space left on device"):
            await put(archive, IMAGE)
        assert not is_open(archive)


# ── a full disk ──

FULL_DISK = """
import asyncio, json, sys
import aiofiles
from aiodockersave import ArchiveWriter, Descriptor, Digest, open_archive

path, kind = sys.argv[1:]
LAYER = "application/vnd.oci.image.layer.v1.tar"

def layer(size):
    data = bytes([size % 251 + 1]) * size
    return data, Descriptor(LAYER, Digest.of(data), size)

async def write(archive):
    small, large = layer(1000), layer(300_000)
    await archive.put_layer(*small)
    try:
        await archive.put_layer(*large)
    except OSError as exc:
        print(exc.strerror)
    await archive.put_layer(*layer(2000))

async def main():
    if kind == "open_archive":
        async with open_archive(path) as archive:
            await write(archive)
    elif kind == "aiofiles":
        async with aiofiles.open(path, "wb") as file, ArchiveWriter(file) as archive:
            await write(archive)
    else:
        with open(path, "wb", buffering=int(kind)) as file:
            async with ArchiveWriter(file) as archive:
                await write(archive)
    print(json.dumps([[member.name[-8:], member.size] for member in archive.report.members]))

asyncio.run(main())
print(open(path, "rb").read().hex())
"""


@pytest.mark.parametrize("kind", ["-1", "0", "aiofiles", "open_archive"])
@pytest.mark.parametrize("limit", ["tmpfs", "RLIMIT_FSIZE"])
def test_a_full_disk_is_rewound(kind: str, limit: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "archive"), kind]
    if limit == "tmpfs":
        command = [*on_small_disk(tmp_path), *command]
    else:
        command = ["sh", "-c", 'ulimit -f 128 && exec "$@"', "sh", *command]  # in blocks of 512 bytes
    out = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, timeout=TIME_LIMIT, check=True, text=True
    ).stdout
    error, members, data = out.splitlines()
    assert error == ("No space left on device" if limit == "tmpfs" else "File too large")
    assert ", 1000]" in members
    assert ", 2000]" in members
    with tarfile.open(fileobj=io.BytesIO(bytes.fromhex(data))) as archive:
        assert [member.size for member in archive][:2] == [1000, 2000]
        assert archive.getnames()[2:] == ["manifest.json", "repositories"]


def on_small_disk(folder: Path) -> list[str]:
    """Return the words before a command that is to see ``folder`` as a disk of 64 KiB, or skip the test."""
    words = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', str(folder)]
    try:
        tried = subprocess.run([*words, "true"], capture_output=True, timeout=TIME_LIMIT, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare to make a small disk")
    if tried.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {tried.stderr.decode().strip()}")
    return words


# ── pipes, and other files that the loop writes ──


async def test_a_master_of_a_terminal_is_not_opened_anew() -> None:
    """Each opening of it makes another terminal, where nobody would look for the bytes."""
    master, terminal = os.openpty()
    tty.setraw(terminal)
    expected = await archive_of([IMAGE])
    received = bytearray()
    with os.fdopen(master, "wb", buffering=0) as file, os.fdopen(terminal, "rb", buffering=0) as reader:
        os.set_blocking(terminal, False)
        loop = asyncio.get_running_loop()
        loop.add_reader(terminal, lambda: received.extend(reader.read(1 << 16)))
        try:
            async with asyncio.timeout(TIME_LIMIT), ArchiveWriter(file) as archive:
                await put(archive, IMAGE)
            await eventually(lambda: len(received) >= len(expected))
        finally:
            loop.remove_reader(terminal)
    assert received == expected


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, Any]]:
    """Give a pipe: the descriptor to read, the file to write."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb", buffering=0) as file:
            yield reading, file
    finally:
        with contextlib.suppress(OSError):
            os.close(reading)


async def test_a_full_pipe_can_be_cancelled() -> None:
    with pipe() as (_, file):
        archive = ArchiveWriter(file)
        sink: Any = archive._output.sink
        writing = asyncio.create_task(put(archive, IMAGE))
        await eventually(lambda: sink.handed_over > 60_000)  # the pipe is full
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(writing, TIME_LIMIT)
        assert not is_open(archive)


async def test_a_full_pipe_that_took_nothing_leaves_the_archive_open() -> None:
    with pipe() as (reading, file):
        os.set_blocking(file.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while os.write(file.fileno(), bytes(4096)):
                pass
        archive = ArchiveWriter(file)
        writing = asyncio.create_task(put(archive, IMAGE))
        for _ in range(20):
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(writing, TIME_LIMIT)
        assert is_open(archive)
        drain = Drain(reading)
        await put(archive, IMAGE)
        await archive.close()
        file.close()
        assert (await drain.result()).lstrip(b"\0") == (await archive_of([IMAGE]))


@pytest.mark.parametrize("at", ["start", "middle"])
async def test_a_reader_that_left(at: str) -> None:
    with pipe() as (reading, file):
        archive = ArchiveWriter(file)
        if at == "middle":
            await archive.put_layer(SMALL.blob, SMALL.descriptor)
            writing = asyncio.create_task(archive.put_layer(LARGE.blob, LARGE.descriptor))
            sink: Any = archive._output.sink
            await eventually(lambda: sink.handed_over > 60_000)
            os.close(reading)
        else:
            os.close(reading)
            writing = asyncio.create_task(archive.put_layer(LARGE.blob, LARGE.descriptor))
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(writing, TIME_LIMIT)
        assert is_open(archive) == (at == "start")


async def test_a_fifo_that_nobody_reads_any_more(tmp_path: Path) -> None:
    """It cannot even be opened: nothing was written, and a new reader may come."""
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with (tmp_path / "fifo").open("wb", buffering=0) as file:
        os.close(reading)
        archive = ArchiveWriter(file)
        with pytest.raises(BrokenPipeError):
            await archive.put_layer(SMALL.blob, SMALL.descriptor)
        receiving = asyncio.create_task(asyncio.to_thread((tmp_path / "fifo").read_bytes))
        async with asyncio.timeout(TIME_LIMIT):
            while not is_read(tmp_path / "fifo"):
                await asyncio.sleep(0.001)
            await put(archive, IMAGE)
            await archive.close()
            file.close()
            assert await receiving == await archive_of([IMAGE])


def is_read(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


async def test_a_descriptor_need_not_be_held() -> None:
    with pipe() as (reading, file):
        sink = as_sink(file)
        await sink.write(b"data")
        await sink.write(b"more")
        assert os.read(reading, 100) == b"datamore"


async def test_a_full_socket_is_waited_for() -> None:
    one, other = socket.socketpair()
    with one, other, os.fdopen(os.dup(one.fileno()), "wb", buffering=0) as file:
        archive = ArchiveWriter(file)
        writing = asyncio.create_task(put(archive, IMAGE))
        sink: Any = archive._output.sink
        await eventually(lambda: sink.handed_over > 10_000)
        drain = Drain(other.fileno())
        await asyncio.wait_for(writing, TIME_LIMIT)
        await archive.close()
        assert one.getblocking()
        one.shutdown(socket.SHUT_WR)
        assert await drain.result() == await archive_of([IMAGE])


def _no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipes, "reopening_path", lambda fd: f"/nowhere/{fd}")


@pytest.mark.parametrize("proc", [True, False], ids=["with /proc", "without /proc"])
@pytest.mark.parametrize("outcome", ["success", "fault", "cancel"])
async def test_the_mode_of_a_pipe_stays_its_owners(
    proc: bool, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_NONBLOCK belongs to the open pipe: another process that has it would fail with EAGAIN."""
    if not proc:
        _no_proc(monkeypatch)
    with pipe() as (reading, file):
        seen: list[bool] = []

        async def content() -> AsyncIterator[bytes]:
            yield LARGE.blob[: 2 * BATCH_SIZE]
            seen.append(os.get_blocking(file.fileno()))
            yield LARGE.blob[2 * BATCH_SIZE :]
            if outcome == "fault":
                yield b"too long"

        archive = ArchiveWriter(file)
        writing = asyncio.create_task(archive.put_layer(content, LARGE.descriptor))
        if outcome == "cancel":
            sink: Any = archive._output.sink
            await eventually(lambda: sink.handed_over > 60_000)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(writing, TIME_LIMIT)
        else:
            drain = Drain(reading)
            with contextlib.nullcontext() if outcome == "success" else pytest.raises(ContentError):
                await asyncio.wait_for(writing, TIME_LIMIT)
            assert seen == [proc]
            file_was_blocking = os.get_blocking(file.fileno())
            file.close()
            assert await drain.result()
            assert file_was_blocking
            return
        assert os.get_blocking(file.fileno())


async def test_an_error_of_opening_anew_comes_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_pipes, "reopening_path", lambda fd: str(tmp_path))
    with pipe() as (_, file):
        archive = ArchiveWriter(file)
        with pytest.raises(IsADirectoryError):
            await archive.put_layer(SMALL.blob, SMALL.descriptor)
        assert is_open(archive)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a pipe to another user")
def test_a_pipe_of_another_user() -> None:
    """``sudo -u nobody … | cat``: the pipe is root's, and cannot be opened anew."""
    script = textwrap.dedent("""
        import asyncio, os, sys
        from aiodockersave import ArchiveWriter

        async def main():
            async with ArchiveWriter(open(os.devnull, "wb")):
                pass  # everything is imported now, while it may be read
            os.setuid(65534)
            try:
                os.close(os.open("/proc/self/fd/1", os.O_WRONLY))
            except PermissionError:
                async with ArchiveWriter(sys.stdout.buffer):
                    pass
            else:
                print("could be opened", end="")

        asyncio.run(main())
    """)
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, timeout=TIME_LIMIT, check=True
    )
    if run.stdout == b"could be opened":
        pytest.skip("this system lets another user open a pipe anew")
    assert run.stdout.startswith(b"manifest.json\0")
    assert run.stdout.endswith(bytes(1024))


# ── streams ──


@contextlib.asynccontextmanager
async def connection(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[asyncio.StreamWriter]:
    """Connect to a peer that does as it is told."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Peer:
    """The other side of a connection: reads when it may, leaves when it must."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.may_leave = asyncio.Event()
        self.received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in (self.may_read, self.may_leave)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self.may_read.is_set():
                self.received.set_result(await reader.read())
        finally:
            for task in waiting:
                task.cancel()
            # Resets the connection, as a program that was killed: an orderly end would only be an end of file.
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            writer.transport.abort()


async def test_a_stalled_peer_that_took_nothing_leaves_the_archive_open() -> None:
    peer = Peer()
    async with connection(peer) as writer:
        stalling = bytes(8 << 20)
        writer.write(stalling)  # more than the buffers of both sides hold
        archive = ArchiveWriter(writer)
        writing = asyncio.create_task(put(archive, IMAGE))
        for _ in range(20):
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(writing, TIME_LIMIT)
        assert is_open(archive)
        peer.may_read.set()
        async with asyncio.timeout(TIME_LIMIT):
            await put(archive, IMAGE)
            await archive.close()
            writer.write_eof()
            assert await peer.received == stalling + await archive_of([IMAGE])


async def test_a_peer_that_stalls_in_the_middle() -> None:
    peer = Peer()
    async with connection(peer) as writer:
        layer = make_layer(bytes(16 << 20), None)
        archive = ArchiveWriter(writer)
        sink: Any = archive._output.sink
        writing = asyncio.create_task(archive.put_layer(layer.blob, layer.descriptor))
        await eventually(lambda: writer.transport.get_write_buffer_size() > 0 and sink.handed_over > 1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(writing, TIME_LIMIT)
        assert not is_open(archive)
        peer.may_leave.set()


@pytest.mark.parametrize("at", ["start", "middle"])
async def test_a_peer_that_leaves(at: str) -> None:
    peer = Peer()
    async with connection(peer) as writer:
        layer = make_layer(bytes(16 << 20), None)
        archive = ArchiveWriter(writer)
        sink: Any = archive._output.sink
        if at == "start":
            peer.may_leave.set()
            await eventually(writer.transport.is_closing)
        writing = asyncio.create_task(archive.put_layer(layer.blob, layer.descriptor))
        if at == "middle":
            await eventually(lambda: bool(sink.handed_over))
            peer.may_leave.set()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(writing, TIME_LIMIT)
        assert is_open(archive) == (at == "start")


async def test_close_waits_until_the_stream_has_room() -> None:
    """A peer that left is noticed before the archive is called whole, as far as it can be."""
    peer = Peer()
    async with connection(peer) as writer:
        archive = ArchiveWriter(writer)
        peer.may_leave.set()
        await eventually(writer.transport.is_closing)
        with pytest.raises(ConnectionResetError, match="the other side has left"):
            await archive.close()


async def test_an_anyio_stream_that_breaks() -> None:
    class Broken(ByteStream):
        async def send(self, item: bytes) -> None:
            raise anyio.BrokenResourceError

    archive = ArchiveWriter(Broken())
    with pytest.raises(anyio.BrokenResourceError):
        await archive.put_layer(SMALL.blob, SMALL.descriptor)
    with pytest.raises(WriterBrokenError) as caught:
        await archive.close()
    assert isinstance(caught.value.__cause__, anyio.BrokenResourceError)


# ── aiohttp's response ──


class Served:
    """The records of a handler that wrote an archive into its response."""

    def __init__(self, image: Image, content_length: int | None) -> None:
        self._image = image
        self._content_length = content_length
        self.fault: BaseException | None = None
        self.is_open = False
        self.done = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = self._content_length
        await response.prepare(request)
        archive = ArchiveWriter(response)
        try:
            await put(archive, self._image)
            await archive.close()
        except Exception as exc:
            self.fault = exc
            self.is_open = is_open(archive)
            assert request.transport is not None or isinstance(exc, ConnectionError)
            if request.transport is not None:
                request.transport.close()
        finally:
            self.done.set()
        return response


SIZE = plan_archive([IMAGE.spec]).size


async def test_a_response_with_the_right_length() -> None:
    served = Served(IMAGE, SIZE)
    async with serving(served.handle) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.content_length == SIZE
        assert await answer.read() == await archive_of([IMAGE])
    assert served.fault is None


@pytest.mark.parametrize("difference", [512, 1, -1, -1024, -2_000_000])
async def test_a_response_with_a_wrong_length_is_never_complete(difference: int) -> None:
    """aiohttp would cut off bytes beyond the length: the client would take a torn archive for a whole one."""
    served = Served(IMAGE, SIZE + difference)
    async with serving(served.handle) as url, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(url) as answer:
                await answer.read()
    assert isinstance(served.fault, SinkError)
    assert str(SIZE + difference) in str(served.fault)
    if difference > -2000:
        assert served.is_open  # found before the end was written


async def test_a_client_that_leaves_breaks_the_archive() -> None:
    served = Served(make_image(*(make_layer(RANDOM.randbytes(1 << 20), None) for _ in range(16))), None)
    async with serving(served.handle) as url:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            await answer.content.readexactly(1000)
            answer.close()
        await asyncio.wait_for(served.done.wait(), TIME_LIMIT)
    assert isinstance(served.fault, ConnectionError)
    assert not served.is_open


# ── data that a sink sees ──


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [700, 64 << 10, BATCH_SIZE + 1, 1 << 20, 5 << 20])
@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("base", [ListSink, MemorySink], ids=["cannot rewind", "can patch"])
async def test_a_sink_sees_writes_of_a_useful_size(size: int, layers: Any, base: type[Any]) -> None:
    """And each is ``bytes`` that stay as they were."""

    class Recorder(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[bytes] = []
            self.copies: list[bytes] = []

        async def write(self, data: bytes, /) -> None:
            assert type(data) is bytes
            self.kept.append(data)
            self.copies.append(bytes(bytearray(data)))
            await super().write(data)

    big = make_layer(RANDOM.randbytes(5_000_000), "gzip")
    image = make_image(big, SMALL)
    sink = Recorder()
    async with ArchiveWriter(sink, layers=layers) as archive:
        for layer in image.layers:
            content = generate([bytearray(chunk) for chunk in cut(layer.blob, size)])
            await archive.put_layer(content, layer.descriptor, diff_id=layer.diff_id)
        await archive.put_image(image.config, image.manifest)
    assert sink.kept == sink.copies
    assert sink.getvalue() == await archive_of([image], layers=layers)
    # the last batch, the padding of a header written last, the small layer, the image, the end
    *large, _, _, _, _, _ = (len(data) for data in sink.kept)
    assert large
    assert all(BATCH_SIZE <= size <= 1.5 * MAX_BATCH_SIZE + 1536 for size in large)


async def test_nothing_that_never_suspends_starves_the_loop() -> None:
    beats = 0
    seen: list[int] = []

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def write(data: bytes) -> None:
        seen.append(beats)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(len(layer.blob) // 4096):
            yield bytes(4096)

    layer = make_layer(bytes(32 << 20), None)
    heart = asyncio.create_task(beat())
    async with ArchiveWriter(write) as archive:
        await archive.put_layer(source(), layer.descriptor)
        await archive.put_layer(b"x" + layer.blob, make_layer(b"x" + layer.blob, None).descriptor)
    heart.cancel()
    assert len(seen) > 60
    # Writes that saw the same beat follow each other without a turn of the loop.
    assert max(seen.count(beat) for beat in set(seen)) <= 5


async def test_a_sink_that_never_suspends_can_be_cancelled() -> None:
    written = 0

    async def write(data: bytes) -> None:
        nonlocal written
        written += len(data)
        if written > 3 << 20:
            task.cancel()

    layer = make_layer(bytes(32 << 20), None)
    archive = ArchiveWriter(write)
    task = asyncio.create_task(archive.put_layer(layer.blob, layer.descriptor))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert written < 6 << 20


async def test_a_layer_of_several_batches_is_open_until_its_end(tmp_path: Path) -> None:
    """The sink's thread is there for the time of a call, and the sink stays the caller's."""
    async with open_archive(tmp_path / "app.tar") as archive:
        await put(archive, IMAGE)
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".tmp"]
    assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE])


def test_the_protocol_can_be_asked_for() -> None:
    assert isinstance(ListSink(), Sink)
    assert not isinstance(object(), Sink)


@pytest.mark.parametrize("power", ["rewind", "patch", "move"])
def test_an_async_power_is_refused(power: str) -> None:
    async def do(*_: object) -> None: ...

    async def write(_: object, data: bytes) -> None: ...

    sink = type("Sink", (), {"write": write, power: do})()
    with pytest.raises(TypeError, match=rf"the {power}\(\) of Sink is async"):
        as_sink(sink)


def test_bytes_behind_the_archive_are_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    with path.open("r+b") as file:
        file.seek(1000)
        assert not isinstance(as_sink(file), SupportsRewind)
        file.seek(5000)
        assert isinstance(as_sink(file), SupportsRewind)


async def test_a_default_timeout_of_sockets_changes_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.setdefaulttimeout(60)
        try:
            sink = descriptor_sink(ours.fileno())
            await sink.write(b"sent")
        finally:
            socket.setdefaulttimeout(None)
        assert theirs.recv(10) == b"sent"
        assert ours.getblocking()


# ── files that end in a pipe ──


def _gzip(file: Any) -> Any:
    return gzip.GzipFile(fileobj=file, mode="wb")


def _zip_member(file: Any) -> Any:
    return zipfile.ZipFile(file, "w").open("archive.tar", "w")


def _bzip2(file: Any) -> Any:
    return bz2.BZ2File(file, "w")


def _xz(file: Any) -> Any:
    return lzma.LZMAFile(file, "w")


def _buffered(file: Any) -> Any:
    return io.BufferedWriter(_gzip(file))


def _shut(wrapped: Any) -> None:
    wrapped.close()
    getattr(wrapped, "_zipfile", wrapped).close()


@pytest.mark.parametrize("wrap", [_gzip, _bzip2, _xz, _zip_member, _buffered])
def test_a_file_that_ends_in_a_pipe_is_refused(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    """A thread would wait in it until somebody reads, and a cancel for the thread."""
    with (tmp_path / "file").open("wb") as file:
        wrapped = wrap(file)
        assert type(as_sink(wrapped)).__name__ == "BlockingSink"
        _shut(wrapped)
    with pipe() as (_, file):
        wrapped = wrap(file)
        with pytest.raises(TypeError, match="ends in a pipe, socket or device: a thread would wait in it"):
            as_sink(wrapped)
        _shut(wrapped)  # the pipe has room for that


def test_a_member_of_a_zip_in_memory_is_written_in_a_thread() -> None:
    with zipfile.ZipFile(io.BytesIO(), "w") as file, file.open("archive.tar", "w") as member:
        assert type(as_sink(member)).__name__ == "BlockingSink"


def test_a_file_in_memory_that_may_go_to_the_disk_is_not_moved_there() -> None:
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as file:
        as_sink(file)
        assert not file._rolled  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_that_has_no_queue_is_written_in_a_thread(path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"there is no {path}")
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123 - a device
        assert type(as_sink(file)).__name__ == "PlainDescriptorSink"


async def test_a_device_that_has_a_queue_is_written_by_the_loop() -> None:
    try:
        file = open("/dev/random", "wb", buffering=0)  # noqa: PTH123, SIM115 - a device
    except OSError as exc:
        pytest.skip(f"/dev/random: {exc.strerror}")
    with file, select.epoll() as poll:
        try:
            poll.register(file.fileno(), select.EPOLLOUT)
        except PermissionError:
            pytest.skip("/dev/random has no queue here")
        sink = as_sink(file)
        assert type(sink).__name__ == "DescriptorSink"
        await asyncio.wait_for(sink.write(b"a few bytes"), TIME_LIMIT)
        assert os.get_blocking(file.fileno())
