"""One request and its redirects against real servers: headers for each host, and errors for faults of a connection."""

from __future__ import annotations

import asyncio
import base64
import itertools
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from aiodockersave import (
    ContentTooLargeError,
    DockerSaveError,
    InvalidInputError,
    MissingDependencyError,
    RegistryError,
)
from aiodockersave.sources.registry.addresses import AddressClass, DialGuard, classify
from aiodockersave.sources.registry.answers import InterruptedTransfer
from aiodockersave.sources.registry.session_pool import Proxies, Settings
from aiodockersave.sources.registry.timeouts import Timeouts
from aiodockersave.sources.registry.transport import MAX_REDIRECTS, Request, Response, Transport

PATIENT = Timeouts(connect=60, silence=60)
SILENCE = Timeouts(connect=60, silence=0.3)  # not a verdict: for what says nothing, however long one waits
NO_CONNECTION = Timeouts(connect=0.3, silence=60)  # not a verdict: for what never comes about
NOTHING = Timeouts(connect=0.3, silence=0.3)  # not a verdict: for what does neither
AUTHORIZATION = "Bearer the-token"


@dataclass
class Server:
    """A server with given answers that records its requests.

    Attributes:
        answer: What is answered.
        asks: Every request.
    """

    answer: Callable[[web.BaseRequest], web.StreamResponse] = field(default=lambda _: web.Response(text="ok"))
    asks: list[web.BaseRequest] = field(default_factory=list)
    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        self.asks.append(request)
        return self.answer(request)


@asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, server.host, server.port, ssl_context=tls).start()
    server.scheme = "https" if tls else "http"
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering_raw(answer: bytes, *, then_wait: bool = False) -> AsyncIterator[str]:
    """Answer the first bytes of a client with ``answer``, whatever they are, and close or fall silent."""
    done = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(answer)
        if then_wait:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        done.set()
        server.close()
        await server.wait_closed()


def trusting(ca: trustme.CA | None = None) -> Callable[[str, bool], Any]:
    async def tls(host_port: str, is_named: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if ca is not None:
            ca.configure_trust(context)
        return context

    return tls


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


Connect = Callable[..., Transport]


@pytest.fixture
def connect(stack: AsyncExitStack) -> Connect:
    """Make a transport for a registry, closed at the end."""

    def make(url: str, **settings: Any) -> Transport:
        host, _, port = url.rpartition("://")[2].rpartition(":")
        for_tests: dict[str, Any] = {"tls": trusting(), "timeouts": PATIENT}
        transport = Transport(host, int(port), Settings(**for_tests | settings))
        stack.push_async_callback(transport.dialler.aclose)
        return transport

    return make


async def fetch(transport: Transport, url: str, **options: Any) -> bytes:
    response = await transport.open(Request("blob", url, **options))
    try:
        return await response.read(1 << 20)
    finally:
        response.close()


def redirect(location: str, status: int = 307) -> Callable[[web.BaseRequest], web.StreamResponse]:
    return lambda _: web.Response(status=status, headers={"Location": location})


def sequence(
    *answers: Callable[[web.BaseRequest], web.StreamResponse],
) -> Callable[[web.BaseRequest], web.StreamResponse]:
    left = list(answers)

    def answer(request: web.BaseRequest) -> web.StreamResponse:
        return left.pop(0)(request)

    return answer


# ── what is sent ──


async def test_headers(stack: AsyncExitStack, connect: Connect) -> None:
    server = await stack.enter_async_context(serving(Server()))
    url = f"{server.url}/v2/a%2Fb/?x=%20&y=+"
    assert (
        await fetch(connect(server.url), url, headers={"Range": "bytes=1-"}, authorization=AUTHORIZATION)
        == b"ok"
    )
    (ask,) = server.asks
    assert ask.raw_path == "/v2/a%2Fb/?x=%20&y=+"
    assert ask.headers["Accept-Encoding"] == "identity"
    assert ask.headers["Authorization"] == AUTHORIZATION
    assert ask.headers["Range"] == "bytes=1-"
    assert ask.headers["User-Agent"].startswith("aiodockersave/")
    assert "Cookie" not in ask.headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_credentials_stay_at_their_origin(stack: AsyncExitStack, connect: Connect, status: int) -> None:
    other = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(serving(Server()))
    server.answer = sequence(
        redirect("/same", status), redirect(f"{other.url}/other?signature=a%2Fb", status)
    )
    transport = connect(server.url)
    response = await transport.open(Request("blob", f"{server.url}/x", {"Range": "bytes=1-"}, AUTHORIZATION))
    assert (await response.read(10), response.is_own) == (b"ok", False)
    assert [ask.headers["Authorization"] for ask in server.asks] == [AUTHORIZATION] * 2
    (ask,) = other.asks
    assert (ask.method, ask.raw_path) == ("GET", "/other?signature=a%2Fb")
    assert not {"Authorization", "Cookie", "Referer"} & set(ask.headers)
    assert ask.headers["Range"] == "bytes=1-"
    response.close()


@pytest.mark.parametrize("hops", [1, 2], ids=["away and back", "twice"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_credentials_are_gone_once_their_origin_was_left(
    stack: AsyncExitStack, connect: Connect, status: int, hops: int
) -> None:
    """A host that leads back chooses the URL that is asked there."""
    other = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(serving(Server()))
    away = redirect(f"{other.url}/x", status)
    server.answer = sequence(redirect("/same", status), *[away] * hops, lambda _: web.Response(text="ok"))
    other.answer = redirect(f"{server.url}/chosen", status)
    response = await connect(server.url).open(Request("blob", f"{server.url}/x", {}, AUTHORIZATION))
    assert (await response.read(10), response.is_own, response.url) == (b"ok", False, f"{server.url}/chosen")
    response.close()
    given = [ask.headers.get("Authorization") for ask in server.asks]
    assert given == [AUTHORIZATION] * 2 + [None] * hops
    assert not [ask for ask in other.asks if "Authorization" in ask.headers]


async def test_cookies_are_not_kept(stack: AsyncExitStack, connect: Connect) -> None:
    server = await stack.enter_async_context(serving(Server()))
    server.answer = lambda _: web.Response(headers={"Set-Cookie": "a=b; Path=/"})
    transport = connect("127.0.0.1:1")
    for _ in range(2):
        await fetch(transport, server.url)
    assert "Cookie" not in server.asks[1].headers


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "redirects to a text that is not a proper URL"),
        ("ftp://127.0.0.1/", "redirects to a text that is not a proper URL"),
        ("http://user:pw@127.0.0.1/", "redirects to a text that is not a proper URL"),
        ("http://8.8.8.8:0/", "redirects to a text that is not a proper URL"),
        ("/again?token=abc", "more than 10 redirects"),
        ("http://10.0.0.1/", "the private address 10.0.0.1 is not dialled"),
        ("http://169.254.169.254/latest", "the link-local address 169.254.169.254 is not dialled"),
        ("http://0.0.0.0:80/", "the reserved address 0.0.0.0 is not dialled"),
        ("http://[fd00::1]/", "the private address fd00::1 is not dialled"),
        ("http://167772161/", "10.0.0.1 is not dialled|cannot be used"),
    ],
)
async def test_redirects_that_are_not_followed(
    stack: AsyncExitStack, connect: Connect, location: str, message: str
) -> None:
    server = await stack.enter_async_context(serving(Server(redirect(location))))
    with pytest.raises(RegistryError, match=message) as caught:
        await fetch(connect(server.url), f"{server.url}/x?secret=1")
    assert len(server.asks) == (MAX_REDIRECTS + 1 if location.startswith("/") else 1)
    assert not {"secret", "token", "pw"} & set(str(caught.value).replace("=", " ").replace("?", " ").split())
    assert caught.value.__context__ is None


async def test_a_redirect_without_location(stack: AsyncExitStack, connect: Connect) -> None:
    server = await stack.enter_async_context(serving(Server(lambda _: web.Response(status=302))))
    with pytest.raises(RegistryError, match="not a proper URL"):
        await fetch(connect(server.url), server.url)


# ── what is dialled ──


def small_world(*public: str, table: dict[str, Sequence[str]] | None = None) -> DialGuard:
    """Make some loopback addresses count as public, and some names resolve."""
    names = table or {}

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host not in names and not host[0].isdigit():
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return names.get(host, [host])

    return DialGuard(lambda each: AddressClass.PUBLIC if each in public else classify(each), resolve)


@pytest.mark.parametrize("is_lent", [False, True], ids=["own session", "lent session"])
@pytest.mark.parametrize("target", ["127.0.0.1", "localhost", "rebound.example"])
async def test_a_public_registry_does_not_lead_into_this_machine(
    stack: AsyncExitStack, connect: Connect, target: str, is_lent: bool
) -> None:
    inner = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(
        serving(Server(redirect(f"http://{target}:{inner.port}/")), None)
    )
    server.host = "127.0.0.2"
    outer = await stack.enter_async_context(
        serving(Server(redirect(f"http://{target}:{inner.port}/"), host="127.0.0.2"))
    )
    guard = small_world("127.0.0.2", table={"rebound.example": ["127.0.0.1"], "localhost": ["127.0.0.1"]})
    session = await stack.enter_async_context(aiohttp.ClientSession()) if is_lent else None
    with pytest.raises(RegistryError, match=r"the loopback address 127.0.0.1 is not dialled"):
        await fetch(connect(outer.url, guard=guard, session=session), f"{outer.url}/")
    assert (len(outer.asks), len(inner.asks)) == (1, 0)


async def test_of_several_addresses_the_allowed_one_is_dialled(
    stack: AsyncExitStack, connect: Connect
) -> None:
    other = await stack.enter_async_context(serving(Server(host="127.0.0.3")))
    server = await stack.enter_async_context(
        serving(Server(redirect(f"http://both.example:{other.port}/"), host="127.0.0.2"))
    )
    guard = small_world("127.0.0.2", "127.0.0.3", table={"both.example": ["127.0.0.1", "127.0.0.3"]})
    assert await fetch(connect(server.url, guard=guard), server.url) == b"ok"


async def test_a_connection_of_the_registry_is_not_used_for_a_redirect(
    stack: AsyncExitStack, connect: Connect
) -> None:
    """Two registries on one host: each may be named, and neither may lead to the other where it could not dial it."""
    named = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(serving(Server(redirect(named.url), host="127.0.0.2")))
    guard = small_world("127.0.0.2")
    one, two = connect(named.url, guard=guard), connect(server.url, guard=guard)
    assert await fetch(one, named.url) == b"ok"
    with pytest.raises(RegistryError, match="not dialled"):
        await fetch(two, server.url)
    assert len(named.asks) == 1


async def test_a_registry_leads_to_itself_whatever_its_address(
    stack: AsyncExitStack, connect: Connect
) -> None:
    server = await stack.enter_async_context(serving(Server()))
    server.answer = sequence(redirect(f"{server.url}/same"), lambda _: web.Response(text="ok"))

    def classify_oddly(address: str) -> AddressClass:
        return AddressClass.RESERVED

    assert await fetch(connect(server.url, guard=DialGuard(classify_oddly)), server.url) == b"ok"


# ── whose class it is that decides ──


@dataclass
class Held(Server):
    """A server that answers only when the test lets it.

    Attributes:
        is_asked: Set when a request has come.
        let: Set it to let requests be answered.
    """

    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    let: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.is_asked.set()
        await self.let.wait()
        return await super().handle(request)


async def serve_at_one_port(stack: AsyncExitStack, *servers: Server) -> None:
    """Start servers at different addresses, at the same port."""
    for _ in range(20):
        async with AsyncExitStack() as attempt:
            port = 0
            try:
                for server in servers:
                    server.port = port
                    port = (await attempt.enter_async_context(serving(server))).port
            except OSError:  # somebody has it at one of the addresses
                continue
            stack.push_async_callback(attempt.pop_all().aclose)
            return
    raise AssertionError("no port is free at all addresses")


def in_turn(*answers: Sequence[str]) -> DialGuard:
    """Make names resolve to something else each time, at last to the last; 127.0.0.2 and .5 count as public."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host[0].isdigit():
            return [host]
        return left.pop(0) if len(left) > 1 else left[0]

    def kind(address: str) -> AddressClass:
        return AddressClass.PUBLIC if address in ("127.0.0.2", "127.0.0.5") else classify(address)

    return DialGuard(kind, resolve)


NOT_DIALLED = r"the loopback address 127\.0\.0\.1 is not dialled"


@pytest.mark.parametrize("is_public_last", [False, True], ids=["loopback is dialled last", "public last"])
async def test_each_answer_is_judged_by_its_own_connection(
    stack: AsyncExitStack, connect: Connect, is_public_last: bool
) -> None:
    """A name has a public address and one in this machine: only an answer from this machine may point into it."""
    inner = await stack.enter_async_context(serving(Server()))
    public, loopback = Held(host="127.0.0.2"), Held(host="127.0.0.3")
    await serve_at_one_port(stack, public, loopback)
    public.answer = loopback.answer = redirect(inner.url)
    dialled = [loopback, public] if is_public_last else [public, loopback]
    url = f"http://registry.example:{public.port}/"
    transport = connect(url.rstrip("/"), guard=in_turn(*([server.host] for server in dialled)))
    fetches: dict[str, asyncio.Task[bytes]] = {}
    for server in dialled:  # nothing is answered before both are asked
        fetches[server.host] = asyncio.create_task(fetch(transport, url))
        await server.is_asked.wait()
    for server in dialled:
        server.let.set()
        await asyncio.wait([fetches[server.host]])
    assert fetches[loopback.host].result() == b"ok"
    with pytest.raises(RegistryError, match=NOT_DIALLED):
        fetches[public.host].result()
    # Their connections are kept, and used again in this order.
    outcomes = await asyncio.gather(*(fetch(transport, url) for _ in dialled), return_exceptions=True)
    assert [isinstance(each, RegistryError) for each in outcomes] == [each is public for each in dialled]
    assert {len({ask.transport for ask in server.asks}) for server in dialled} == {1}, "they were kept"


# Who redirects to whom, the registry first, and whether the last is asked.
CHAINS = {
    "inside": (["127.0.0.3", "127.0.0.4", "127.0.0.1"], True),
    "outside": (["127.0.0.2", "127.0.0.5"], True),
    "from inside to outside": (["127.0.0.3", "127.0.0.2"], True),
    "from outside to inside": (["127.0.0.2", "127.0.0.1"], False),
    "out and in": (["127.0.0.3", "127.0.0.2", "127.0.0.1"], False),
    "from outside to outside to inside": (["127.0.0.2", "127.0.0.5", "127.0.0.1"], False),
}


@pytest.mark.parametrize(("hosts", "works"), CHAINS.values(), ids=CHAINS)
async def test_chains_of_redirects(
    stack: AsyncExitStack, connect: Connect, hosts: Sequence[str], works: bool
) -> None:
    """Each host may point where all hosts before it may."""
    servers = [await stack.enter_async_context(serving(Server(host=host))) for host in hosts]
    for server, following in itertools.pairwise(servers):
        server.answer = redirect(following.url)
    transport = connect(servers[0].url, guard=in_turn([]))
    if works:
        assert await fetch(transport, servers[0].url) == b"ok"
    else:
        with pytest.raises(RegistryError, match=NOT_DIALLED):
            await fetch(transport, servers[0].url)
        assert servers[-1].asks == []


async def test_a_registry_that_moves_inside_does_not_point_inside(
    stack: AsyncExitStack, connect: Connect
) -> None:
    """The registry redirects to its own name, which now resolves to this machine: that answer counts as public too."""
    inner = await stack.enter_async_context(serving(Server()))
    outside, inside = Server(host="127.0.0.2"), Server(host="127.0.0.3")
    await serve_at_one_port(stack, outside, inside)
    closing = {"Location": "/again", "Connection": "close"}
    outside.answer = lambda _: web.Response(status=307, headers=closing)
    inside.answer = redirect(inner.url)
    url = f"http://registry.example:{outside.port}/"
    with pytest.raises(RegistryError, match=NOT_DIALLED):
        await fetch(connect(url.rstrip("/"), guard=in_turn([outside.host], [inside.host])), url)
    assert (len(outside.asks), len(inside.asks), len(inner.asks)) == (1, 1, 0)


class TableResolver(AbstractResolver):
    """A caller's resolver that gives every name the same addresses."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=self._address, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing is open."""


class OwnConnector(aiohttp.TCPConnector):
    """A caller's connector, which might go through a proxy of its own."""


# What our resolver says of the registry's name, what the caller's connector dials, and whether it may point inside.
LENT: dict[str, tuple[str, str, type[aiohttp.TCPConnector], bool]] = {
    "both inside": ("127.0.0.3", "127.0.0.3", aiohttp.TCPConnector, True),
    "we are told inside": ("127.0.0.3", "127.0.0.2", aiohttp.TCPConnector, False),
    "the connector is told inside": ("127.0.0.2", "127.0.0.3", aiohttp.TCPConnector, False),
    "both outside": ("127.0.0.2", "127.0.0.2", aiohttp.TCPConnector, False),
    "it is not sure whom the connector dials": ("127.0.0.3", "127.0.0.3", OwnConnector, False),
}


@pytest.mark.parametrize(("ours", "theirs", "kind", "works"), LENT.values(), ids=LENT)
async def test_where_a_registry_may_point_over_a_lent_session(
    stack: AsyncExitStack,
    connect: Connect,
    ours: str,
    theirs: str,
    kind: type[aiohttp.TCPConnector],
    works: bool,
) -> None:
    """A resolver may give us one address, and the caller's connector another."""
    inner = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(serving(Server(redirect(inner.url), host=theirs)))
    session = aiohttp.ClientSession(connector=kind(resolver=TableResolver(theirs)))
    await stack.enter_async_context(session)
    url = f"http://registry.example:{server.port}"
    transport = connect(url, guard=in_turn([ours]), session=session)
    if works:
        assert await fetch(transport, url) == b"ok"
        return
    with pytest.raises(RegistryError, match=NOT_DIALLED):
        await fetch(transport, url)
    assert (len(server.asks), len(inner.asks)) == (1, 0)


async def test_a_literal_address_has_its_class_over_any_connector(
    stack: AsyncExitStack, connect: Connect
) -> None:
    inner = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(serving(Server(redirect(inner.url), host="127.0.0.3")))
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=OwnConnector()))
    assert await fetch(connect(server.url, guard=in_turn([]), session=session), server.url) == b"ok"


async def test_over_a_lent_session_nothing_is_sent_to_where_a_name_has_moved(
    stack: AsyncExitStack, connect: Connect
) -> None:
    """The name was public when it was checked. The caller's connector resolves it again, and dials."""
    inner = await stack.enter_async_context(serving(Server()))
    server = await stack.enter_async_context(serving(Server(host="127.0.0.2")))
    server.answer = redirect(f"http://rebound.example:{inner.port}/")
    connector = aiohttp.TCPConnector(resolver=TableResolver(inner.host))
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
    transport = connect(server.url, guard=in_turn(["127.0.0.5"]), session=session)
    with pytest.raises(RegistryError, match=NOT_DIALLED):
        await fetch(transport, server.url)
    assert inner.asks == []


async def test_a_proxy_is_not_the_registry(stack: AsyncExitStack, connect: Connect) -> None:
    """The proxy is in this machine, and so is the registry by its name; but the answer comes from behind the proxy."""
    inner = await stack.enter_async_context(serving(Server()))
    proxy = await stack.enter_async_context(serving(Server(redirect(inner.url))))
    url = "http://registry.example:80"
    for session in (None, await stack.enter_async_context(aiohttp.ClientSession())):
        transport = connect(
            url,
            guard=in_turn(["127.0.0.1"]),
            session=session,
            proxies=Proxies.read({"HTTP_PROXY": proxy.url}),
        )
        with pytest.raises(RegistryError, match=NOT_DIALLED):
            await fetch(transport, url)
    assert (len(proxy.asks), len(inner.asks)) == (2, 0)


# ── a lent session ──


async def test_nothing_of_a_lent_session_is_used_but_its_connections(
    stack: AsyncExitStack, connect: Connect
) -> None:
    server = await stack.enter_async_context(serving(Server()))
    server.answer = lambda _: web.Response(headers={"Set-Cookie": "a=b; Path=/"})
    session = aiohttp.ClientSession(
        headers={"Authorization": "Basic mine", "X-Mine": "1"},
        cookies={"mine": "1"},
        cookie_jar=aiohttp.CookieJar(unsafe=True),
        raise_for_status=True,
    )
    async with session:
        transport = connect(server.url, session=session)
        await fetch(transport, server.url)
        await transport.dialler.aclose()
        assert not {"Authorization", "X-Mine", "Cookie"} & set(server.asks[0].headers)
        assert not session.closed
        assert [cookie.key for cookie in session.cookie_jar] == ["mine"]
        async with session.get(server.url) as response:
            assert response.status == 200
        assert server.asks[1].transport is server.asks[0].transport
        assert server.asks[1].headers["X-Mine"] == "1"


@pytest.mark.parametrize("is_lent", [False, True])
async def test_small_bodies_come_in_small_portions(
    stack: AsyncExitStack, connect: Connect, is_lent: bool
) -> None:
    """Also when a connection is used again; never on a caller's connection."""
    server = await stack.enter_async_context(serving(Server()))
    session = await stack.enter_async_context(aiohttp.ClientSession()) if is_lent else None
    transport = connect(server.url, session=session)
    portions = []
    for size, is_said in ((4 << 20, True), (17 << 20, True), (4 << 20, True), (4 << 20, False)):

        def answer(_: object, size: int = size, is_said: bool = is_said) -> web.Response:
            found = web.Response(body=bytes(size))
            if not is_said:
                found.enable_chunked_encoding()
            return found

        server.answer = answer
        response = await transport.open(Request("it", f"{server.url}/", {}))
        portions.append(response._raw.connection.transport.max_size >> 10)  # type: ignore[union-attr]
        assert len(await response.read(size)) == size
    assert portions == ([256] * 4 if is_lent else [128, 256, 128, 256])
    assert len({ask.transport for ask in server.asks}) == 1


async def test_a_transport_that_has_no_portions(connect: Connect) -> None:
    """Other loops' transports take no attributes."""
    connection: Any = SimpleNamespace(transport=object())
    connect("http://127.0.0.1:1").dialler.set_portion(connection, 1)


async def test_a_lent_session_that_is_closed(connect: Connect) -> None:
    session = aiohttp.ClientSession()
    await session.close()
    with pytest.raises(RuntimeError, match="session that the source was given is closed"):
        await fetch(connect("http://127.0.0.1:1", session=session), "http://127.0.0.1:1/")


async def test_a_closed_transport(connect: Connect) -> None:
    transport = connect("http://127.0.0.1:1")
    await transport.dialler.aclose()
    with pytest.raises(RuntimeError, match="the source is closed"):
        await fetch(transport, "http://127.0.0.1:1/")


# ── proxies ──


async def test_the_login_at_a_proxy_goes_to_the_proxy(stack: AsyncExitStack, connect: Connect) -> None:
    proxy = await stack.enter_async_context(serving(Server()))
    login = f"http://user:p%40ss@{proxy.url.removeprefix('http://')}"
    transport = connect("http://registry.example:80", proxies=Proxies.read({"HTTP_PROXY": login}))
    for _ in range(2):  # the second time over the same connection
        assert await fetch(transport, "http://registry.example/v2/", authorization=AUTHORIZATION) == b"ok"
    for ask in proxy.asks:
        assert ask.raw_path == "http://registry.example/v2/"
        assert ask.headers["Proxy-Authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"
        assert ask.headers["Authorization"] == AUTHORIZATION


async def test_a_proxy_resolves_the_names_of_redirects(stack: AsyncExitStack, connect: Connect) -> None:
    proxy = await stack.enter_async_context(serving(Server()))
    proxy.answer = sequence(redirect("http://other.example/"), lambda _: web.Response(text="ok"))
    transport = connect("http://registry.example:80", proxies=Proxies.read({"HTTP_PROXY": proxy.url}))
    assert await fetch(transport, "http://registry.example/", authorization=AUTHORIZATION) == b"ok"
    assert [ask.raw_path for ask in proxy.asks] == ["http://registry.example/", "http://other.example/"]
    assert "Authorization" not in proxy.asks[1].headers


@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.169.254"])
async def test_a_proxy_is_not_asked_to_dial_refused_addresses(
    stack: AsyncExitStack, connect: Connect, host: str
) -> None:
    proxy = await stack.enter_async_context(serving(Server(redirect(f"http://{host}/"))))
    transport = connect("http://registry.example:80", proxies=Proxies.read({"HTTP_PROXY": proxy.url}))
    with pytest.raises(RegistryError, match=f"address {host} is not dialled"):
        await fetch(transport, "http://registry.example/")
    assert len(proxy.asks) == 1


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (407, RegistryError, "the proxy refuses with status 407"),
        (502, InterruptedTransfer, "the proxy fails with status 502"),
    ],
)
async def test_a_proxy_that_does_not_connect(
    stack: AsyncExitStack, connect: Connect, status: int, error: type[Exception], message: str
) -> None:
    answer = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()
    url = await stack.enter_async_context(answering_raw(answer))
    proxies = Proxies.read({"HTTPS_PROXY": url.replace("http://", "http://user:pw@")})
    with pytest.raises(error, match=message) as caught:
        await fetch(connect("https://registry.example:443", proxies=proxies), "https://registry.example/")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "error", "message"),
    [
        ("http://127.0.0.1:1", InterruptedTransfer, "the proxy cannot be reached"),
        ("HTTP://127.0.0.1:1", InterruptedTransfer, "the proxy cannot be reached"),
        ("socks5://127.0.0.1:1", InvalidInputError, "only proxies by http and https"),
        ("http://[::1", InvalidInputError, "a proxy by a text that is not a URL$"),
    ],
)
async def test_invalid_proxies(connect: Connect, proxy: str, error: type[Exception], message: str) -> None:
    transport = connect("https://registry.example:443", proxies=Proxies.read({"HTTPS_PROXY": proxy}))
    with pytest.raises(error, match=message):
        await fetch(transport, "https://registry.example/")


# ── TLS ──


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def certified(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


async def test_certificates_are_checked(stack: AsyncExitStack, connect: Connect, ca: trustme.CA) -> None:
    server = await stack.enter_async_context(serving(Server(), certified(ca, "127.0.0.1")))
    assert await fetch(connect(server.url, tls=trusting(ca)), server.url) == b"ok"
    with pytest.raises(
        RegistryError, match="its certificate is not valid: unable to get local issuer certificate"
    ):
        await fetch(connect(server.url), server.url)
    other = await stack.enter_async_context(serving(Server(), certified(ca, "other.example")))
    with pytest.raises(RegistryError, match="certificate is not valid: IP address mismatch"):
        await fetch(connect(other.url, tls=trusting(ca)), other.url)


async def test_speaks_tls(stack: AsyncExitStack, connect: Connect, ca: trustme.CA) -> None:
    secure = await stack.enter_async_context(serving(Server(), certified(ca, "127.0.0.1")))
    plain = await stack.enter_async_context(serving(Server()))
    closing = await stack.enter_async_context(answering_raw(b""))
    for url, speaks in ((secure.url, True), (plain.url, False), (closing, None)):
        request = Request("probe", url.replace("http://", "https://"))
        assert await connect(url, tls=trusting(ca)).speaks_tls(request) is speaks
    with pytest.raises(RegistryError, match="it does not speak TLS"):
        await fetch(connect(plain.url), plain.url.replace("http", "https"))


async def test_speaks_tls_with_an_alert(stack: AsyncExitStack, connect: Connect) -> None:
    alert = bytes([0x15, 3, 3, 0, 2, 2, 70])  # fatal: protocol version
    url = (await stack.enter_async_context(answering_raw(alert, then_wait=True))).replace("http", "https")
    assert await connect(url).speaks_tls(Request("probe", url))
    with pytest.raises(RegistryError, match=r"TLS failed: .*ALERT"):
        await fetch(connect(url), url)


async def test_speaks_tls_of_an_unreachable_host(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"https://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(InterruptedTransfer, match=r"cannot be reached: .*(refused|Connect call failed)"):
        await connect(url).speaks_tls(Request("probe", url))


async def test_speaks_tls_of_a_silent_host(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InterruptedTransfer, match=r"no connection within 0\.3 s"):
            await connect(url, timeouts=NO_CONNECTION).speaks_tls(Request("probe", url))


async def test_from_https_to_http(stack: AsyncExitStack, connect: Connect, ca: trustme.CA) -> None:
    plain = await stack.enter_async_context(serving(Server()))
    secure = await stack.enter_async_context(
        serving(Server(redirect(f"{plain.url}/?signature=1")), certified(ca, "127.0.0.1"))
    )
    assert await fetch(connect(secure.url, tls=trusting(ca)), secure.url) == b"ok"  # all inside this machine
    guard = small_world("127.0.0.1")
    with pytest.raises(RegistryError, match=r"it redirects from https to http, at 127.0.0.1"):
        await fetch(connect(secure.url, tls=trusting(ca), guard=guard), secure.url)


async def test_certificates_are_for_the_host_that_is_asked(
    stack: AsyncExitStack, connect: Connect, ca: trustme.CA
) -> None:
    other = await stack.enter_async_context(serving(Server(host="127.0.0.2"), certified(ca, "127.0.0.2")))
    server = await stack.enter_async_context(serving(Server(redirect(other.url)), certified(ca, "127.0.0.1")))
    asked = []

    async def tls(host_port: str, is_named: bool) -> ssl.SSLContext:
        asked.append((host_port, is_named))
        context: ssl.SSLContext = await trusting(ca)(host_port, is_named)
        return context

    assert await fetch(connect(server.url, tls=tls), server.url) == b"ok"
    assert asked == [(f"127.0.0.1:{server.port}", True), (f"127.0.0.2:{other.port}", False)]

    # A client certificate is a credential: it is not shown to what the other host leads to, be it the registry.
    asked.clear()
    server.answer = sequence(redirect(other.url), lambda _: web.Response(text="ok"))
    other.answer = redirect(server.url)
    assert await fetch(connect(server.url, tls=tls), server.url) == b"ok"
    names = [f"127.0.0.1:{server.port}", f"127.0.0.2:{other.port}", f"127.0.0.1:{server.port}"]
    assert asked == list(zip(names, (True, False, False), strict=True))


# ── faults of a connection ──

FAULTS: dict[str, tuple[bytes, bool, type[Exception], str]] = {
    "closed": (b"", False, InterruptedTransfer, "closed before the answer was whole"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", False, RegistryError, "does not answer in HTTP"),
    "long header": (
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        False,
        RegistryError,
        "headers that are too long",
    ),
    "header flood": (
        b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 2000 + b"\r\n",
        False,
        RegistryError,
        "headers that are too long",
    ),
    "silent": (b"", True, InterruptedTransfer, "nothing came for 0.3 s"),
    "silent in the body": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        True,
        InterruptedTransfer,
        "nothing came",
    ),
    "short body": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        False,
        InterruptedTransfer,
        "before the answer was whole",
    ),
    "bad chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        False,
        RegistryError,
        "does not answer in HTTP",
    ),
}


@pytest.mark.parametrize(("answer", "waits", "error", "message"), FAULTS.values(), ids=FAULTS)
async def test_faults(
    stack: AsyncExitStack, connect: Connect, answer: bytes, waits: bool, error: type[Exception], message: str
) -> None:
    url = await stack.enter_async_context(answering_raw(answer, then_wait=waits))
    with pytest.raises(error, match=message) as caught:
        await fetch(connect(url, timeouts=SILENCE if waits else PATIENT), f"{url}/v2/?secret=1")
    assert url in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None, "aiohttp's errors hold whole URLs"


async def test_connection_refused(connect: Connect) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(InterruptedTransfer, match="it cannot be reached: Connect"):
            await fetch(connect(url), url)


async def test_connection_times_out(connect: Connect) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        with socket.create_connection(sock.getsockname()):  # the only place in the queue
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with pytest.raises(
                InterruptedTransfer, match=r"no connection within 0.3 s|nothing came for 0.3 s"
            ):
                await fetch(connect(url, timeouts=NOTHING), url)


async def test_unknown_host(connect: Connect) -> None:
    with pytest.raises(RegistryError, match="there is no such host"):
        await fetch(connect("http://gone.example:80", guard=small_world()), "http://gone.example/")


@pytest.mark.parametrize("is_lent", [False, True], ids=["own session", "lent session"])
async def test_silent_resolver(stack: AsyncExitStack, connect: Connect, is_lent: bool) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    session = await stack.enter_async_context(aiohttp.ClientSession()) if is_lent else None
    guard = DialGuard(resolve=resolve)
    transport = connect("http://slow.example:80", guard=guard, session=session, timeouts=NO_CONNECTION)
    with pytest.raises(InterruptedTransfer, match="the resolver does not answer"):
        await fetch(transport, "http://slow.example/")


async def test_configuration_errors_are_passed_on(connect: Connect) -> None:
    class SettingsError(DockerSaveError):
        """Certificates cannot be read."""

    async def tls(host_port: str, is_named: bool) -> ssl.SSLContext:
        raise SettingsError(host_port)

    with pytest.raises(SettingsError):
        await fetch(connect("https://registry.example:443", tls=tls), "https://registry.example/")
    with pytest.raises(RegistryError, match="not a proper URL"):
        await fetch(connect("https://registry.example:443"), "https://user@registry.example/")


async def test_without_aiohttp_the_error_names_the_extra(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingDependencyError, match=r"aiodockersave\[registry\]"):
        await fetch(connect("http://127.0.0.1:1"), "http://127.0.0.1:1/")


# ── bodies ──


async def opened(stack: AsyncExitStack, connect: Connect, answer: web.Response) -> tuple[Response, Server]:
    server = await stack.enter_async_context(serving(Server(lambda _: answer)))
    response = await connect(server.url).open(Request("blob", server.url))
    stack.callback(response.close)
    return response, server


async def test_bodies_are_counted(stack: AsyncExitStack, connect: Connect) -> None:
    body = web.Response(body=bytes(1001))
    response, _ = await opened(stack, connect, body)
    with pytest.raises(ContentTooLargeError, match="larger than the limit of 1000"):
        await response.read(1000)


async def test_discard_reads_small_bodies(stack: AsyncExitStack, connect: Connect) -> None:
    server = await stack.enter_async_context(serving(Server(lambda _: web.Response(body=bytes(1000)))))
    transport = connect(server.url)
    for _ in range(2):
        await (await transport.open(Request("blob", server.url))).discard()
    assert server.asks[0].transport is server.asks[1].transport
    server.answer = lambda _: web.Response(body=bytes(100_000))
    for _ in range(2):
        await (await transport.open(Request("blob", server.url))).discard()
    assert server.asks[2].transport is not server.asks[3].transport


async def test_discard_ignores_a_body_that_breaks_off(stack: AsyncExitStack, connect: Connect) -> None:
    url = await stack.enter_async_context(answering_raw(b"HTTP/1.1 401 No\r\nContent-Length: 9\r\n\r\nabc"))
    response = await connect(url).open(Request("blob", url))
    await response.discard()
    response = await connect(url).open(Request("blob", url))
    failure = await response.failure()
    assert "access is not granted; log in, or check the name (status 401)" in str(failure)
