"""The particulars of aiohttp: handlers that are cancelled, middlewares that answer, HTTP/1.0, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from aiodockersave import InvalidInputError
from tests.support.images import archive_of

from .servers import LIMIT, Address, listening_socket
from .site import Caller, Depot, DepotError, Site, own_tasks, random_image, receiving_socket, until
from .test_frameworks import read_by_http_1_0

IMAGE = random_image(3_000_000)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(params=[True, False], ids=["plan", "build"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(IMAGE, Depot(IMAGE), is_planned=request.param)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        yield session


@contextlib.asynccontextmanager
async def served(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """Serve with a middleware that makes an answer of every error, as applications have it."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as exc:
            return web.json_response({"error": type(exc).__name__}, status=503)

    app = web.Application(middlewares=[answer])
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=20)
    await runner.setup()
    sock = listening_socket()
    try:
        await web.SockSite(runner, sock, ssl_context=tls).start()
        yield Address(*sock.getsockname())
    finally:
        await runner.cleanup()


async def test_an_error_before_the_first_byte_is_the_applications(session: aiohttp.ClientSession) -> None:
    site = Site(IMAGE, Depot(IMAGE), is_planned=False)
    site.depot.fails_at = 0
    async with served(site.handle) as address, session.get(address.url) as response:
        assert (response.status, await response.json()) == (503, {"error": "DepotError"})


async def test_no_answer_follows_half_a_body(site: Site, session: aiohttp.ClientSession) -> None:
    """A time-out around the response is the application's, and is raised; its answer must not be taken for the rest."""
    site.depot.silent_at = 1_000_000
    raised: list[type[BaseException]] = []
    limits: list[asyncio.Timeout] = []
    has_begun = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                return await site.handle(request)
        except BaseException as exc:
            raised.append(type(exc))
            raise

    async def time_out() -> None:
        await has_begun.wait()
        await site.depot.is_silent.wait()
        limits[0].reschedule(asyncio.get_running_loop().time())

    async with served(handle) as address:
        received = bytearray()
        timing_out = asyncio.create_task(time_out())
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                async for chunk in response.content.iter_any():
                    received += chunk
                    has_begun.set()
        await timing_out
    assert raised == [TimeoutError]
    assert (await archive_of([IMAGE])).startswith(received)
    assert own_tasks() == []


async def test_a_break_is_not_raised(
    site: Site, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no answer any more that could be given, and nothing that aiohttp should say a second time."""
    site.depot.fails_at = 1_000_000
    returned: list[web.StreamResponse] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        returned.append(await site.handle(request))
        return returned[0]

    async with served(handle) as address:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                await response.read()
        await until(lambda: bool(returned))
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == [
        "aiodockersave"
    ]


async def test_a_break_with_its_traceback(
    site: Site, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="aiodockersave")
    site.depot.fails_at = 1_000_000
    async with served(site.handle) as address:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                await response.read()
    (record,) = (record for record in caplog.records if record.name == "aiodockersave")
    assert record.exc_info
    assert record.exc_info[0] is DepotError


async def test_a_client_that_stalls_is_named_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    image = random_image(8 << 20, seed=3)
    site = Site(image, Depot(image), options={"send_timeout": 0.2})
    async with served(site.handle) as address:
        caller = Caller(address)
        await caller.ask()
        await until(lambda: bool(caplog.records))
        caller.close()
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        "a client was dropped: it stalled for 0.2 s",
    )


async def test_a_client_that_stalls_at_the_end() -> None:
    """All is written, and the connection still holds a part of it: it is not kept for a client that takes nothing."""
    image = random_image(kernel_holds() + 20_000)
    site = Site(image, Depot(image), options={"send_timeout": 0.3})
    handled = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await site.handle(request)
        finally:
            handled.set()

    async with served(handle) as address:
        caller = Caller(address)
        await caller.ask()
        async with asyncio.timeout(LIMIT):
            await handled.wait()
        received = await caller.read(1 << 30)  # it comes to an end
        caller.close()
    assert 0 < len(received) < site.plan.size


def kernel_holds() -> int:
    """Return how many bytes the kernel takes for a client that reads nothing."""
    with listening_socket() as listening, receiving_socket() as client:
        client.connect(listening.getsockname())
        server, _ = listening.accept()
        with server:
            server.setblocking(False)
            size = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    size += server.send(bytes(1 << 16))
    return size


async def test_a_client_on_http_1_0(site: Site) -> None:
    async with served(site.handle) as address:
        assert (await read_by_http_1_0(address)).endswith(await archive_of([IMAGE]))


async def test_a_client_on_http_1_0_is_not_told_that_a_build_is_whole() -> None:
    """There is no chunk and no length: the connection is reset."""
    site = Site(IMAGE, Depot(IMAGE), is_planned=False)
    site.depot.fails_at = 1_000_000
    async with served(site.handle) as address:
        with pytest.raises(ConnectionResetError):
            await read_by_http_1_0(address)


async def test_over_tls(site: Site, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Whole, broken, and left while the source is silent."""
    ca, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    async with served(site.handle, tls) as address:
        url = address.url.replace("http:", "https:")
        async with session.get(url, ssl=trust) as response:
            assert await response.read() == await archive_of([IMAGE])
        site.depot.fails_at = 1_000_000
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(url, ssl=trust) as response:
                await response.read()
        site.depot.silent_at = 1_000_000
        async with session.get(url, ssl=trust) as response:
            await site.depot.is_silent.wait()
            response.close()
        await until(lambda: site.depot.open == 0 and not own_tasks())


async def test_many_requests_on_one_connection(session: aiohttp.ClientSession) -> None:
    """The wait at the end of a body leaves the connection as it was."""
    site = Site(IMAGE, Depot(IMAGE))
    expected = await archive_of([IMAGE])
    peers = set()

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport
        peers.add(request.transport.get_extra_info("peername"))
        assert request.transport.get_write_buffer_limits()[1] == 64 << 10
        return await site.handle(request)

    async with served(handle) as address:
        for _ in range(3):
            async with session.get(address.url) as response:
                assert await response.read() == expected
            async with session.get(address.url, headers={"If-None-Match": "*"}) as response:
                assert response.status == 304
    assert len(peers) == 1


@pytest.mark.parametrize(
    "options",
    [{"filename": "a\nb"}, {"headers": {"ETag": '"a"'}}, {"headers": {"X-Ours": "1\r\nX-Theirs: 2"}}],
)
async def test_header_fields_that_cannot_be_sent_are_raised(
    options: dict[str, object], session: aiohttp.ClientSession
) -> None:
    site = Site(IMAGE, Depot(IMAGE), options=options)
    async with served(site.handle) as address, session.get(address.url) as response:
        assert (response.status, await response.json()) == (503, {"error": InvalidInputError.__name__})
