"""Places where an archive can be written: every kind of sink, with what is open around it, and how to read it back.

:data:`PLACES` is the table: ``async with place.at(folder) as (sink, read)`` gives what is passed to
``ArchiveWriter``, and a coroutine function that says, once nothing more is written, what came out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import socket
import subprocess
import tempfile
import threading
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import aiofiles
import aiofiles.tempfile
import aiohttp
import anyio
from aiohttp import web
from anyio.abc import ByteSendStream

from tests.support.http import serving
from tests.support.images import ListSink, MemorySink

Read: TypeAlias = Callable[[], Awaitable[bytes]]
Opened: TypeAlias = AsyncIterator[tuple[Any, Read]]


@dataclass(frozen=True)
class Place:
    """A kind of sink.

    Attributes:
        name: The test's id.
        adapter: What ``as_sink`` makes of it; None where it is a sink itself.
        powers: Which of ``rewind``, ``patch`` and ``read`` it has.
        at: Opens it, given a folder.
    """

    name: str
    adapter: str | None
    powers: tuple[str, ...]
    at: Callable[[Path], AbstractAsyncContextManager[tuple[Any, Read]]]


class Drain:
    """A thread that reads a descriptor to its end, as another process would.

    Args:
        fd: The descriptor.
        mark: What is taken for the end besides, and is no part of what came.
    """

    def __init__(self, fd: int, mark: bytes | None = None) -> None:
        self._fd = fd
        self._mark = mark
        self._data = bytearray()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while data := os.read(self._fd, 1 << 16):
            self._data += data
            if self._mark is not None and self._data.endswith(self._mark):
                del self._data[-len(self._mark) :]
                break

    async def result(self) -> bytes:
        """Wait for the end and return what came."""
        await asyncio.to_thread(self._thread.join, 10)
        assert not self._thread.is_alive(), "no end came"
        return bytes(self._data)


# ── files ──


def _file(mode: str, opener: Callable[[Path, str], Any]) -> Callable[[Path], Any]:
    """Open a file whose name says where it is afterwards."""

    @contextlib.asynccontextmanager
    async def at(folder: Path) -> Opened:
        path = folder / "archive"
        if "r" in mode:
            path.touch()
        with contextlib.closing(opener(path, mode)) as file:
            yield file, lambda: _closed_and_read(file, path)

    return at


async def _closed_and_read(file: BinaryIO, path: Path) -> bytes:
    file.close()
    return path.read_bytes()


@contextlib.asynccontextmanager
async def _aiofiles(folder: Path, mode: str = "wb") -> Opened:
    async with aiofiles.open(folder / "archive", mode) as file:  # type: ignore[call-overload]
        yield file, lambda: _read_path(folder / "archive")


@contextlib.asynccontextmanager
async def _anyio(folder: Path, mode: Any = "wb") -> Opened:
    async with await anyio.open_file(folder / "archive", mode) as file:
        yield file, lambda: _read_path(folder / "archive")


async def _read_path(path: Path) -> bytes:
    return path.read_bytes()


def _seekable(make: Callable[[], Any]) -> Callable[[Path], Any]:
    """Open a file that is read back through itself, by the buffer that the caller has."""

    @contextlib.asynccontextmanager
    async def at(folder: Path) -> Opened:
        with make() as file:
            yield file, lambda: _rewound_and_read(file)

    return at


async def _rewound_and_read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


@contextlib.asynccontextmanager
async def _aiofiles_temporary(folder: Path, make: Any = None) -> Opened:
    async with make(dir=folder) as file:

        async def read() -> bytes:
            await file.seek(0)
            data: bytes = await file.read()
            return data

        yield file, read


@contextlib.asynccontextmanager
async def _bytesio(folder: Path) -> Opened:
    file = io.BytesIO()
    yield file, lambda: _value(file.getvalue())


async def _value(data: bytes) -> bytes:
    return data


@contextlib.asynccontextmanager
async def _gzip(folder: Path) -> Opened:
    with gzip.GzipFile(folder / "archive", "wb") as file:

        async def read() -> bytes:
            file.close()
            return gzip.decompress((folder / "archive").read_bytes())

        yield file, read


# ── what the loop writes ──


def _drained(open_both: Callable[[Path], tuple[int, int]], *, buffering: int = -1) -> Callable[[Path], Any]:
    """Write to one descriptor while a thread reads another."""

    @contextlib.asynccontextmanager
    async def at(folder: Path) -> Opened:
        reading, writing = open_both(folder)
        drain = Drain(reading)
        file = os.fdopen(writing, "wb", buffering)

        async def read() -> bytes:
            file.close()
            return await drain.result()

        try:
            yield file, read
        finally:
            file.close()
            await drain.result()
            os.close(reading)

    return at


def _pipe(folder: Path) -> tuple[int, int]:
    return os.pipe()


def _nonblocking_pipe(folder: Path) -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    return reading, writing


def _fifo(folder: Path) -> tuple[int, int]:
    os.mkfifo(folder / "fifo")
    reading = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    return reading, os.open(folder / "fifo", os.O_WRONLY)


def _sockets(folder: Path) -> tuple[int, int]:
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


@contextlib.asynccontextmanager
async def _terminal(folder: Path) -> Opened:
    """Have a terminal whose reader waits for a mark: it stays open until then.

    Where all close it at once, Linux may drop what was not read yet: it did so in 2 of 130,000 tries, without this package.
    """
    master, terminal = os.openpty()
    tty.setraw(terminal)
    mark = b"\0the end of what is written\0"
    drain = Drain(master, mark)
    with (
        os.fdopen(master, "rb", 0),
        os.fdopen(terminal, "wb", 0) as held,
        os.fdopen(os.dup(terminal), "wb") as file,
    ):

        async def read() -> bytes:
            if not file.closed:
                file.close()
                held.write(mark)
            return await drain.result()

        try:
            yield file, read
        finally:
            await read()


@contextlib.asynccontextmanager
async def _cat_of_asyncio(folder: Path) -> Opened:
    process = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    output = asyncio.create_task(process.stdout.read())
    try:

        async def read() -> bytes:
            assert process.stdin is not None
            process.stdin.close()
            return await output

        yield process.stdin, read
    finally:
        process.stdin.close()
        await output
        await process.wait()


@contextlib.asynccontextmanager
async def _cat_of_anyio(folder: Path) -> Opened:
    async with await anyio.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        output = asyncio.create_task(_read_stream(process.stdout))

        async def read() -> bytes:
            assert process.stdin is not None
            await process.stdin.aclose()
            return await output

        yield process.stdin, read


async def _read_stream(stream: Any) -> bytes:
    return b"".join([chunk async for chunk in stream])


@contextlib.asynccontextmanager
async def _connection(folder: Path) -> Opened:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:

            async def read() -> bytes:
                writer.close()
                return await received

            yield writer, read
        finally:
            writer.close()
            await received
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def _response(folder: Path) -> Opened:
    opened: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
    written = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        opened.set_result(response)
        await written.wait()
        return response

    async with serving(handle) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        body = asyncio.create_task(answer.read())

        async def read() -> bytes:
            written.set()
            return await body

        yield await opened, read


# ── sinks by protocol ──


class ByteStream(ByteSendStream):
    """A byte stream as anyio's sockets are."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def send(self, item: bytes) -> None:
        self.data += item

    async def aclose(self) -> None:
        raise AssertionError("the sink is the caller's")


class CallableObject:
    """An object that is called with what is written."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def __call__(self, data: bytes) -> None:
        self.data += data


class ShortSink:
    """Takes at most a few thousand bytes at once."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes, /) -> int:
        taken = data[:4099]
        self.data += taken
        return len(taken)


def _holding(make: Callable[[], Any]) -> Callable[[Path], Any]:
    """Use an object that holds what it was given as ``data``."""

    @contextlib.asynccontextmanager
    async def at(folder: Path) -> Opened:
        sink = make()
        yield sink, lambda: _value(bytes(sink.data))

    return at


@contextlib.asynccontextmanager
async def _function(folder: Path) -> Opened:
    kept: list[bytes] = []

    async def write(data: bytes) -> None:
        kept.append(data)

    yield write, lambda: _value(b"".join(kept))


@contextlib.asynccontextmanager
async def _list_sink(folder: Path) -> Opened:
    sink = ListSink()
    yield sink, lambda: _value(sink.getvalue())


@contextlib.asynccontextmanager
async def _object_stream(folder: Path) -> Opened:
    send, receive = anyio.create_memory_object_stream[bytes](2)
    with send, receive:
        output = asyncio.create_task(_read_stream(receive))

        async def read() -> bytes:
            send.close()
            return await output

        yield send, read


# ── the table ──

_ALL = ("patch", "read", "rewind")
_FILE = "PatchableFileSink"


def _open(path: Path, mode: str) -> Any:
    return path.open(mode)


def _open_unbuffered(path: Path, mode: str) -> Any:
    return path.open(mode, buffering=0)


PLACES: Sequence[Place] = (
    Place("file wb", _FILE, _ALL, _file("wb", _open)),
    Place("file w+b", _FILE, _ALL, _file("w+b", _open)),
    Place("file r+b", _FILE, _ALL, _file("r+b", _open)),
    Place("file xb, unbuffered", _FILE, _ALL, _file("xb", _open_unbuffered)),
    Place("file r+b, unbuffered", _FILE, _ALL, _file("r+b", _open_unbuffered)),
    Place("file ab", "PlainDescriptorSink", (), _file("ab", _open)),
    Place("file a+b, unbuffered", "PlainDescriptorSink", (), _file("a+b", _open_unbuffered)),
    Place("aiofiles wb", _FILE, _ALL, _aiofiles),
    Place("aiofiles r+b", _FILE, _ALL, lambda folder: _aiofiles(_touched(folder), "r+b")),
    Place("aiofiles ab", "PlainDescriptorSink", (), lambda folder: _aiofiles(folder, "ab")),
    Place("anyio wb", _FILE, _ALL, _anyio),
    Place("anyio w+b", _FILE, _ALL, lambda folder: _anyio(folder, "w+b")),
    Place("anyio ab", "PlainDescriptorSink", (), lambda folder: _anyio(folder, "ab")),
    Place("NamedTemporaryFile", _FILE, _ALL, _seekable(tempfile.NamedTemporaryFile)),
    Place("TemporaryFile", _FILE, _ALL, _seekable(tempfile.TemporaryFile)),
    Place("SpooledTemporaryFile", "BlockingSink", (), _seekable(tempfile.SpooledTemporaryFile)),
    Place(
        "SpooledTemporaryFile, small",
        "BlockingSink",
        (),
        _seekable(partial(tempfile.SpooledTemporaryFile, max_size=1)),
    ),
    Place(
        "aiofiles NamedTemporaryFile",
        _FILE,
        _ALL,
        lambda folder: _aiofiles_temporary(folder, aiofiles.tempfile.NamedTemporaryFile),
    ),
    Place(
        "aiofiles SpooledTemporaryFile",
        "BlockingSink",
        (),
        lambda folder: _aiofiles_temporary(folder, aiofiles.tempfile.SpooledTemporaryFile),
    ),
    Place("BytesIO", "BytesIOSink", ("rewind",), _bytesio),
    Place("GzipFile", "BlockingSink", (), _gzip),
    Place("pipe", "DescriptorSink", (), _drained(_pipe)),
    Place("pipe, unbuffered", "DescriptorSink", (), _drained(_pipe, buffering=0)),
    Place("pipe, non-blocking", "DescriptorSink", (), _drained(_nonblocking_pipe)),
    Place("FIFO", "DescriptorSink", (), _drained(_fifo)),
    Place("socket", "DescriptorSink", (), _drained(_sockets, buffering=0)),
    Place("terminal", "DescriptorSink", (), _terminal),
    Place("stdin of asyncio's process", "StreamWriterSink", (), _cat_of_asyncio),
    Place("stdin of anyio's process", "CallableSink", (), _cat_of_anyio),
    Place("StreamWriter", "StreamWriterSink", (), _connection),
    Place("StreamResponse", "ResponseSink", (), _response),
    Place("anyio byte stream", "CallableSink", (), _holding(ByteStream)),
    Place("anyio object stream", "CallableSink", (), _object_stream),
    Place("async def", "CallableSink", (), _function),
    Place("callable object", "CallableSink", (), _holding(CallableObject)),
    Place("sink", None, (), _list_sink),
    Place("sink that takes less", None, (), _holding(ShortSink)),
    Place("sink with powers", None, _ALL, _holding(MemorySink)),
)


def _touched(folder: Path) -> Path:
    (folder / "archive").touch()
    return folder
