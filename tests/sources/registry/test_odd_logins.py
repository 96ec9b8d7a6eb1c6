"""Logins and connections where the other side behaves correctly, but not as expected."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.registry.answers import InterruptedTransfer
from aiodockersave.sources.registry.auth import Authorizer, Challenge
from aiodockersave.sources.registry.certificates import tls_context
from aiodockersave.sources.registry.session_pool import Proxies, Settings
from aiodockersave.sources.registry.timeouts import Timeouts
from aiodockersave.sources.registry.transport import Request, Transport
from tests.support.http import serving

NO_PROXIES = Proxies()


class Nobody:
    """A store without credentials."""

    async def get(self, registry: str, repository: str) -> Credentials | None:
        return None


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def trusting_nobody(host_port: str, is_named: bool) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@asynccontextmanager
async def transport_to(host: str, port: int, proxies: Proxies = NO_PROXIES) -> AsyncIterator[Transport]:
    transport = Transport(host, port, Settings(trusting_nobody, Timeouts(30, 30), proxies=proxies))
    try:
        yield transport
    finally:
        await transport.dialler.aclose()


@asynccontextmanager
async def authorizer(clock: Clock) -> AsyncIterator[Authorizer]:
    async with transport_to("127.0.0.1", 5000) as transport:
        yield Authorizer("127.0.0.1:5000", transport, Nobody(), clock)


ASK = Request("manifest app", "http://127.0.0.1:5000/v2/app/manifests/1")


# ── token servers ──


async def test_a_token_server_may_give_the_same_token_again() -> None:
    """The token lives longer than its stated lifetime, and no registry has refused it."""
    asks = []

    async def give(request: web.Request) -> web.Response:
        asks.append(request.path_qs)
        return web.json_response({"token": "the-same"})

    clock = Clock()
    async with serving(give) as realm, authorizer(clock) as auth:
        await auth.answer(ASK, "app", [Challenge("bearer", {"realm": realm})], refused=None)
        clock.now += 61
        assert await auth.header(ASK, "app") == "Bearer the-same"
    assert len(asks) == 2


async def test_a_service_is_sent_back_byte_by_byte() -> None:
    asks = []

    async def give(request: web.Request) -> web.Response:
        asks.append(request.rel_url.raw_query_string)
        return web.json_response({"token": "one"})

    async with serving(give) as realm, authorizer(Clock()) as auth:
        service = b"caf\xe9".decode(errors="surrogateescape")  # as aiohttp reads a header that is Latin-1
        await auth.answer(
            ASK, "app", [Challenge("bearer", {"realm": realm, "service": service})], refused=None
        )
    assert asks == ["service=caf%E9&scope=repository%3Aapp%3Apull"]


# ── connections ──


@asynccontextmanager
async def closing_after(answer: bytes) -> AsyncIterator[int]:
    """Take what a client says first, answer, and close at what it says next; give the port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        if answer:
            writer.write(answer)
            await reader.read(1 << 16)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_handshake_that_breaks_off_is_worth_another_attempt() -> None:
    async with closing_after(b"") as port, transport_to("127.0.0.1", port) as transport:
        with pytest.raises(InterruptedTransfer, match=r"it cannot be reached: .*[Cc]onnection"):
            await transport.open(Request("blob", f"https://127.0.0.1:{port}/"))


async def test_a_tunnel_that_breaks_off_is_worth_another_attempt() -> None:
    async with closing_after(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        proxies = Proxies.read({"HTTPS_PROXY": f"http://127.0.0.1:{port}"})
        async with transport_to("registry.example", 443, proxies) as transport:
            with pytest.raises(InterruptedTransfer, match=r"it cannot be reached: .*[Cc]onnection"):
                await transport.open(Request("blob", "https://registry.example/"))


@pytest.mark.parametrize("host", ["[::1%lo]", "[::1%25lo]:5000", "[::ffff:192.0.2.1]"])
async def test_certificates_for_whatever_address_a_registry_may_point_at(host: str) -> None:
    assert (await tls_context(host)).check_hostname


# ── proxies ──


@pytest.mark.parametrize(
    "user", ["us%E9r", b"us\xe9r".decode(errors="surrogateescape")], ids=["encoded", "raw"]
)
def test_a_proxys_login_need_not_be_utf_8(user: str) -> None:
    proxy = Proxies.read({"HTTPS_PROXY": f"http://{user}:pw@p:3128"}).find(("https", "registry.example", 443))
    assert proxy is not None
    assert proxy.authorization == f"Basic {base64.b64encode(b'us' + bytes([0xE9]) + b'r:pw').decode()}"
