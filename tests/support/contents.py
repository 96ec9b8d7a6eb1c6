"""Contents of every kind, made of the same chunks; each with what has to be open around it.

:data:`KINDS` is the table: ``async with kind.of(chunks, folder) as content`` gives what is passed to
``put_layer``, made of the chunks (of bytes that are a file where the kind is a file's).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import aiofiles
import aiohttp
import anyio
from anyio.abc import ByteReceiveStream

from tests.support.http import answer, serving

Chunks: TypeAlias = list[bytes]


# ── ways to cut ──


def whole(data: bytes) -> Chunks:
    return [data]


def bytewise(data: bytes) -> Chunks:
    return [data[at : at + 1] for at in range(len(data))]


def odd(data: bytes) -> Chunks:
    def pieces() -> Iterator[bytes]:
        position = 0
        for size in itertools.cycle((3, 1, 251, 17, 99, 2)):
            if position >= len(data):
                return
            yield data[position : position + size]
            position += size

    return list(pieces())


CUTS = (whole, bytewise, odd)


# ── fakes ──


class Reader:
    """An object with ``async read(n)``, and an ``__aiter__`` by lines, which must not be used.

    It gives a chunk for each read, however large ``n`` is, and fails where it is read behind its end.
    """

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._chunks = list(chunks)
        self._ended = False
        self.closed = 0

    async def read(self, n: int) -> Any:
        assert n > 0
        assert not self._ended, "read behind the end"
        if self._chunks:
            return self._chunks.pop(0)
        self._ended = True
        return b""

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("iterates by lines")


class ClosableReader(Reader):
    """A reader with ``aclose``, as anyio's files have it."""

    async def aclose(self) -> None:
        self.closed += 1


class Iterable:
    """An async iterable with an iterator of its own."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self.iterator = PlainIterator(chunks)

    def __aiter__(self) -> PlainIterator:
        return self.iterator


class PlainIterator:
    """An async iterator that is no generator, and fails where it is asked behind its end."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._chunks = list(chunks)
        self._ended = False
        self.closed = 0

    def __aiter__(self) -> PlainIterator:
        return self

    async def __anext__(self) -> Any:
        assert not self._ended, "asked behind the end"
        if self._chunks:
            return self._chunks.pop(0)
        self._ended = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


class ByteStream(ByteReceiveStream):
    """A byte stream as anyio's sockets are."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = list(chunks)
        self.closed = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._chunks:
            raise anyio.EndOfStream
        return self._chunks.pop(0)

    async def aclose(self) -> None:
        self.closed += 1


async def generate(chunks: Sequence[Any]) -> AsyncGenerator[Any, None]:
    for chunk in chunks:
        yield chunk


async def promise(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@contextlib.asynccontextmanager
async def entering(value: Any) -> AsyncGenerator[Any, None]:
    yield value


def _file(folder: Path, chunks: Sequence[bytes]) -> Path:
    path = folder / "content"
    path.write_bytes(b"".join(chunks))
    return path


# ── kinds ──


@dataclass(frozen=True)
class Kind:
    """A kind of content.

    Attributes:
        name: The test's id.
        of: Makes it of chunks, given a folder for its file.
    """

    name: str
    of: Callable[[Chunks, Path], AbstractAsyncContextManager[Any]]


def _simple(make: Callable[[Chunks], Any]) -> Callable[[Chunks, Path], AbstractAsyncContextManager[Any]]:
    """Make a content that needs nothing open around it."""

    @contextlib.asynccontextmanager
    async def of(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
        yield make(chunks)

    return of


def _from_path(make: Callable[[Path], Any]) -> Callable[[Chunks, Path], AbstractAsyncContextManager[Any]]:
    @contextlib.asynccontextmanager
    async def of(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
        yield make(_file(folder, chunks))

    return of


@contextlib.asynccontextmanager
async def _open_aiofiles(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
    async with aiofiles.open(_file(folder, chunks), "rb") as file:
        yield file
        assert not file.closed  # who opened it closes it


@contextlib.asynccontextmanager
async def _open_anyio(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
    async with await anyio.open_file(_file(folder, chunks), "rb") as file:
        yield file


@contextlib.asynccontextmanager
async def _memory_stream(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
    send, receive = anyio.create_memory_object_stream[bytes](len(chunks) + 1)
    with send, receive:
        for chunk in chunks:
            send.send_nowait(chunk)
        send.close()
        yield receive


@contextlib.asynccontextmanager
async def _stream_reader(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
    reader = asyncio.StreamReader()
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    yield reader


def _http(
    make: Callable[[aiohttp.ClientSession, str], Any],
) -> Callable[[Chunks, Path], AbstractAsyncContextManager[Any]]:
    @contextlib.asynccontextmanager
    async def of(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
        async with serving(answer(chunks)) as url, aiohttp.ClientSession() as session:
            yield make(session, url)
            assert session.connector is not None
            assert not session.connector._acquired

    return of


@contextlib.asynccontextmanager
async def _response_stream(chunks: Chunks, folder: Path) -> AsyncIterator[Any]:
    async with (
        serving(answer(chunks)) as url,
        aiohttp.ClientSession() as session,
        session.get(url) as response,
    ):
        yield response.content


async def _open_response(session: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
    return await session.get(url)


def _reader_class(chunks: Chunks) -> type[Reader]:
    class Blob(Reader):
        def __init__(self) -> None:
            super().__init__(chunks)

    return Blob


def _later(value: Any) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


KINDS: Sequence[Kind] = (
    Kind("bytes", _simple(b"".join)),
    Kind("bytearray", _simple(lambda chunks: bytearray(b"".join(chunks)))),
    Kind("memoryview", _simple(lambda chunks: memoryview(b"".join(chunks)))),
    Kind("reader", _simple(Reader)),
    Kind("closable reader", _simple(ClosableReader)),
    Kind("async iterable", _simple(Iterable)),
    Kind("async iterator", _simple(PlainIterator)),
    Kind("async generator", _simple(generate)),
    Kind("anyio object stream", _memory_stream),
    Kind("anyio byte stream", _simple(ByteStream)),
    Kind("StreamReader", _stream_reader),
    Kind("aiofiles.open(…)", _from_path(lambda path: aiofiles.open(path, "rb"))),
    Kind("aiofiles opener", _from_path(lambda path: partial(aiofiles.open, path, "rb"))),
    Kind("aiofiles file", _open_aiofiles),
    Kind("anyio.open_file(…)", _from_path(lambda path: anyio.open_file(path, "rb"))),
    Kind("anyio opener", _from_path(lambda path: partial(anyio.open_file, path, "rb"))),
    Kind("anyio file", _open_anyio),
    Kind("session.get(…)", _http(lambda session, url: session.get(url))),
    Kind("session.get", _http(lambda session, url: partial(session.get, url))),
    Kind("coroutine of a response", _http(_open_response)),
    Kind("opener of a response", _http(lambda session, url: partial(_open_response, session, url))),
    Kind("response.content", _response_stream),
    Kind("callable of bytes", _simple(lambda chunks: lambda: b"".join(chunks))),
    Kind("callable of a generator", _simple(lambda chunks: partial(generate, chunks))),
    Kind("callable of a reader", _simple(lambda chunks: partial(Reader, chunks))),
    Kind("callable of an awaitable", _simple(lambda chunks: lambda: promise(Reader(chunks)))),
    Kind("callable of a callable", _simple(lambda chunks: lambda: partial(generate, chunks))),
    Kind("class", _simple(_reader_class)),
    Kind("coroutine", _simple(lambda chunks: promise(Iterable(chunks)))),
    Kind("coroutine of a coroutine", _simple(lambda chunks: promise(promise(b"".join(chunks))))),
    Kind("future", _simple(lambda chunks: _later(Reader(chunks)))),
    Kind("context manager", _simple(lambda chunks: entering(generate(chunks)))),
    Kind("context manager of bytes", _simple(lambda chunks: entering(b"".join(chunks)))),
    Kind("opener", _simple(lambda chunks: partial(entering, Reader(chunks)))),
    Kind("nested context managers", _simple(lambda chunks: entering(entering(PlainIterator(chunks))))),
    Kind("opener of an opener", _simple(lambda chunks: lambda: entering(partial(entering, Reader(chunks))))),
    Kind("coroutine of a context manager", _simple(lambda chunks: promise(entering(generate(chunks))))),
)
