"""An archive as the body of a request: pulled by a client, closed on every way out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx2
import pytest

from aiodockersave import archive_stream, stream_plan
from aiodockersave.archive.stream import ByteStream
from tests.support.images import archive_of

from .servers import LIMIT
from .site import Depot, DepotError, Site, own_tasks, random_image, until

IMAGE = random_image(3_000_000)

Put = Callable[[str, ByteStream, dict[str, str]], Awaitable[int]]


async def put_by_aiohttp(url: str, body: ByteStream, headers: dict[str, str]) -> int:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as session,
        body as data,
        session.put(url, data=data, headers=headers) as response,
    ):
        return response.status


async def put_by_httpx2(url: str, body: ByteStream, headers: dict[str, str]) -> int:
    async with httpx2.AsyncClient(timeout=LIMIT) as client, body as data:
        return (await client.put(url, content=data, headers=headers)).status_code


@pytest.fixture(params=[put_by_aiohttp, put_by_httpx2], ids=["aiohttp", "httpx2"])
def put(request: pytest.FixtureRequest) -> Put:
    function: Put = request.param
    return function


@dataclass
class Store:
    """A server that takes uploads by PUT.

    Attributes:
        head: The head of the last request.
        body: What came behind it.
        ended: Whether the request broke off.
        reads: So many bytes of the body are read before it answers; all where it is None.
        status: The answer.
        is_deaf: Whether it closes the connection instead of answering.
    """

    reads: int | None = None
    status: str = "201 Created"
    is_deaf: bool = False
    head: bytes = b""
    body: bytes = b""
    broke_off: bool = False
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.head = await reader.readuntil(b"\r\n\r\n")
            await self._read(reader)
            if not self.broke_off and not self.is_deaf:
                writer.write(
                    f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.finished.set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            if self.reads is not None:
                self.body = await reader.readexactly(self.reads)
            elif (length := self.field("content-length")) is not None:
                self.body = await reader.readexactly(int(length))
            else:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    self.body += await reader.readexactly(size)
                    await reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broke_off = True

    def field(self, name: str) -> str | None:
        for line in self.head.decode().split("\r\n"):
            if line.lower().startswith(f"{name}:"):
                return line.partition(":")[2].strip()
        return None


@contextlib.asynccontextmanager
async def serving(store: Store) -> AsyncIterator[str]:
    server = await asyncio.start_server(store.handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/app.tar"
        async with asyncio.timeout(LIMIT):
            await store.finished.wait()


@pytest.fixture
def site() -> Site:
    return Site(IMAGE, Depot(IMAGE))


def planned(site: Site) -> tuple[ByteStream, dict[str, str]]:
    return stream_plan(site.plan, site.depot.open_blob), {"Content-Length": str(site.plan.size)}


def built(site: Site) -> tuple[ByteStream, dict[str, str]]:
    return archive_stream(site.build), {}


@pytest.fixture(params=[planned, built])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


async def check_closed(site: Site) -> None:
    await until(lambda: site.depot.open == 0 and not own_tasks())


async def test_all_arrives(put: Put, site: Site, make: Any) -> None:
    body, headers = make(site)
    async with serving(store := Store()) as url:
        assert await put(url, body, headers) == 201
    assert store.body == await archive_of([IMAGE])
    assert store.field("transfer-encoding") == (None if headers else "chunked")
    await check_closed(site)


async def test_a_server_that_refuses_at_once(put: Put, site: Site, make: Any) -> None:
    """It answers before it has read: the client may see the answer, or that it cannot go on."""
    body, headers = make(site)
    async with serving(Store(reads=1000, status="413 Content Too Large")) as url:
        with contextlib.suppress(aiohttp.ClientError, httpx2.HTTPError):
            assert await put(url, body, headers) == 413
    assert site.depot.given < IMAGE.layers[0].descriptor.size + IMAGE.layers[1].descriptor.size  # type: ignore[operator]
    await check_closed(site)


async def test_a_server_that_leaves(put: Put, site: Site, make: Any) -> None:
    body, headers = make(site)
    async with serving(Store(reads=1000, is_deaf=True)) as url:
        with pytest.raises((aiohttp.ClientError, httpx2.HTTPError)):
            await put(url, body, headers)
    await check_closed(site)


async def test_a_source_that_fails(put: Put, site: Site, make: Any) -> None:
    """The server does not get a body that looks whole."""
    site.depot.fails_at = 1_000_000
    body, headers = make(site)
    async with serving(store := Store()) as url:
        with pytest.raises((aiohttp.ClientError, httpx2.HTTPError, DepotError)):
            await put(url, body, headers)
    assert store.broke_off
    await check_closed(site)


async def test_cancel(put: Put, site: Site, make: Any) -> None:
    site.depot.silent_at = 1_000_000
    body, headers = make(site)
    async with serving(store := Store()) as url:
        task = asyncio.ensure_future(put(url, body, headers))
        async with asyncio.timeout(LIMIT):
            await site.depot.is_silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert store.broke_off
    await check_closed(site)
