"""Registries, mirrors and proxies that fail in unusual places: in framing, in names, after the end."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest
import trustme
from aiohttp import http_parser, web
from aiohttp.abc import AbstractResolver, ResolveResult

from aiodockersave import (
    BlobNotFoundError,
    ImageNotFoundError,
    InvalidReferenceError,
    Platform,
    RegistryError,
    RegistrySource,
)
from aiodockersave.core.model import OCI_INDEX
from aiodockersave.sources.credentials import StaticCredentials
from aiodockersave.sources.registry.addresses import AddressClass, DialGuard, resolve_by_system
from aiodockersave.sources.registry.answers import InterruptedTransfer
from aiodockersave.sources.registry.endpoint import Retries, Turns
from aiodockersave.sources.registry.session_pool import Proxies, Settings
from aiodockersave.sources.registry.timeouts import Timeouts
from aiodockersave.sources.registry.transport import Request, Transport
from aiodockersave.sources.waits import Waits
from tests.support.clock import LoopClock
from tests.support.faulty_registry import (
    PASSWORD,
    QUIET,
    SECRETS,
    USER,
    Fault,
    FaultyRegistry,
    drop_at_once,
    redirect,
    refuse,
)
from tests.support.images import make_image, make_layer, to_document, to_json

AMD64 = Platform("linux", "amd64")
IMAGE = make_image(make_layer({"noise": random.Random(1).randbytes(60_000)}))
LAYER, BLOB = IMAGE.layers[0].descriptor, IMAGE.layers[0].blob
PATIENT = Timeouts(connect=60, silence=60)
NO_CONNECTION = Timeouts(connect=0.3, silence=60)  # not a verdict: for what never comes about
SILENCE = 10.0  # seconds of a clock that is put forward where somebody falls silent


async def no_sleep(seconds: float) -> None:
    """Replace sleep: return at once."""


def source_of(*mirrors: FaultyRegistry, **options: Any) -> RegistrySource:
    options.setdefault("plain_http", True)
    return RegistrySource(mirrors=[each.here.url for each in mirrors], sleep=no_sleep, **options)


async def read(source: RegistrySource) -> bytes:
    async with source.open_blob(LAYER) as chunks:
        return b"".join([chunk async for chunk in chunks])


# ── framing ──


class Teller:
    """Answers with some bytes, with more when it is told to, and then says nothing until the client leaves.

    Args:
        first: What it answers at once.
        rest: What it answers then.
        on_silence: Is called when it says nothing any more.

    Attributes:
        go_on: Set it for the rest.
        address: Where it listens.
    """

    def __init__(
        self, first: bytes, rest: bytes = b"", on_silence: Callable[[], object] = lambda: None
    ) -> None:
        self.go_on = asyncio.Event()
        self.address = ""
        self._pieces = first, rest
        self._on_silence = on_silence
        self._talks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.go_on.set()
        await asyncio.gather(*self._talks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._talks.append(asyncio.create_task(self._talk(reader, writer)))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, rest = self._pieces
        with closing(writer), suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            await self.go_on.wait()
            writer.write(rest)
            leaving = asyncio.ensure_future(reader.read())
            for _ in range(QUIET):  # what was sent is read meanwhile, and may be enough
                await asyncio.sleep(0.005)
            if not leaving.done():
                self._on_silence()
            await leaving


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NO_FRAME = b"zz\r\n"
PARSERS = {"compiled": http_parser.HttpResponseParser, "in Python": http_parser.HttpResponseParserPy}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(params=PARSERS.values(), ids=list(PARSERS))
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let aiohttp read with each of its parsers."""
    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", request.param)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("size", [1000, len(BLOB)], ids=["inside", "behind the last byte"])
async def test_a_body_with_broken_framing_is_resumed(size: int) -> None:
    """aiohttp's compiled parser never wakes the reader of such a body; the other one raises no ``ClientError``."""
    data = b""
    clock = LoopClock()
    async with (
        asyncio.timeout(100),
        Teller(CHUNKED + chunk(BLOB[:size]), NO_FRAME, lambda: clock.put_forward(SILENCE + 1)) as broken,
        FaultyRegistry({"team/app:1": IMAGE}, [redirect(f"http://{broken.address}/").often(1)]) as registry,
        source_of(timeouts=Timeouts(connect=60, silence=SILENCE)) as source,
    ):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
        async with source.open_blob(LAYER) as chunks:
            async for each in chunks:
                data += each
                if len(data) == size:
                    broken.go_on.set()
        ranges = [ask.headers.get("Range") for ask in registry.asks if ask.kind == "blob"]
    assert data == BLOB
    assert ranges == ([None, f"bytes={size}-{len(BLOB) - 1}"] if size < len(BLOB) else [None])


# ── proxies ──


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["nothing", "half an answer"])
async def test_a_proxy_that_falls_silent_is_not_waited_for(said: bytes) -> None:
    async with asyncio.timeout(60), Teller(said) as proxy:
        settings = Settings(
            accepting_all, NO_CONNECTION, proxies=Proxies.read({"HTTPS_PROXY": proxy.address})
        )
        transport = Transport("registry.example", 443, settings)
        try:
            with pytest.raises(InterruptedTransfer, match=r"no connection within 0\.3 s"):
                await transport.open(Request("blob", "https://registry.example/"))
        finally:
            await transport.dialler.aclose()


async def accepting_all(host_port: str, is_named: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# ── redirects ──


@asynccontextmanager
async def leading(to: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Answer everything with a redirect; give the server's port."""

    async def lead(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": to})

    runner = web.ServerRunner(web.Server(lead), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_from_https_to_http_however_it_is_written() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    outside = DialGuard(classify=lambda _: AddressClass.PUBLIC)
    async with (
        leading("http://127.0.0.1/", tls) as secure,
        leading(f"HTTPS://127.0.0.1:{secure}/") as plain,
    ):
        transport = Transport("127.0.0.1", plain, Settings(accepting_all, PATIENT, guard=outside))
        try:
            with pytest.raises(RegistryError, match="from https to http"):
                await transport.open(Request("blob", f"http://127.0.0.1:{plain}/"))
        finally:
            await transport.dialler.aclose()


# ── names ──


@pytest.mark.parametrize(
    "registry",
    ["localhost:0", "localhost:65536", "registry.example:" + "9" * 5000, "[1]:5000", "[1::2::3]", "[:::::]"],
    ids=lambda name: name[:24],
)
async def test_impossible_registry_names(registry: str) -> None:
    async with source_of(plain_http=False) as source:
        with pytest.raises(InvalidReferenceError, match=re.escape(registry[:20])):
            await source.resolve(f"{registry}/app:1", AMD64)


async def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse_to(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_FAMILY, "Address family for hostname not supported")

    # As the system does for ::1, where it has no other address of IPv6.
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse_to)
    assert await resolve_by_system("::1", 5000) == ["::1"]


# ── mirrors ──


@pytest.mark.parametrize("fault", [drop_at_once(), refuse(503), refuse(429)], ids=str)
async def test_the_registrys_404_wins_over_a_broken_mirror(fault: Fault) -> None:
    wanted = f"team/app@{IMAGE.manifest.digest}"
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault.of("manifest", "blob")]) as mirror:
        async with FaultyRegistry() as empty, source_of(mirror) as source:
            with pytest.raises(ImageNotFoundError, match=re.escape(f"http://{empty.address}/")):
                await source.resolve(f"{empty.address}/{wanted}", AMD64)
        async with FaultyRegistry({"team/app:1": IMAGE}) as registry, source_of(mirror) as source:
            await source.resolve(f"{registry.address}/{wanted}", AMD64)
            registry.blobs.clear()
            with pytest.raises(BlobNotFoundError, match=re.escape(f"http://{registry.address}/")):
                await read(source)


def test_the_registrys_refusal_counts_whoever_refuses_last() -> None:
    turns = Turns("blob", ["mirror", "registry"], Retries(), Waits(no_sleep))
    turns.next_turn(InterruptedTransfer(RegistryError("blob", "broke", url="https://m.example")))
    turns.next_turn(RegistryError("blob", "gone", url="https://r.example", status=404))
    with pytest.raises(RegistryError, match="gone"):
        turns.next_turn(RegistryError("blob", "denied", url="https://m.example", status=403))


# ── what is kept, and for how long ──


@pytest.mark.parametrize("is_known", [False, True], ids=["", "known"])
async def test_a_manifest_of_another_size_than_its_index_says_is_taken(
    is_known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest tells that these are the right bytes; skopeo and Docker take it, too."""
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry, source_of() as source:
        child = to_document(IMAGE.manifest.descriptor) | {"size": 7}
        registry.add_document("team/app:lie", to_json({"schemaVersion": 2, "manifests": [child]}), OCI_INDEX)
        if is_known:
            await source.resolve(f"{registry.address}/team/app:1", AMD64)
        found = await source.resolve(f"{registry.address}/team/app:lie", AMD64)
    assert found.manifest == IMAGE.manifest
    size = len(IMAGE.manifest_bytes)
    assert f"has {size} bytes, not 7 as its index says; its digest is right" in caplog.text


async def test_a_source_that_was_closed_connects_nowhere() -> None:
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        unused = source_of()
        await unused.aclose()
        with pytest.raises(RuntimeError, match="the source is closed"):
            await unused.resolve(f"{registry.address}/team/app:1", AMD64)
        assert registry.asks == []


async def test_a_closed_source_answers_nothing_from_its_cache() -> None:
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry, source_of() as source:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
        await source.aclose()
        with pytest.raises(RuntimeError, match="the source is closed"):
            await source.resolve(f"{registry.address}/team/app@{IMAGE.manifest.digest}", AMD64)
        with pytest.raises(RuntimeError, match="the source is closed"):
            await read(source)


# ── a session of the caller's ──


class OwnResolver(AbstractResolver):
    """A resolver with a name that the system's does not have."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing is kept open."""


async def test_a_lent_session_may_know_names_that_the_system_does_not() -> None:
    async with (
        FaultyRegistry({"team/app:1": IMAGE}) as registry,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=OwnResolver())) as session,
        source_of(session=session) as source,
    ):
        name = f"registry.invalid:{registry.here.port}/team/app:1"
        assert (await source.resolve(name, AMD64)).manifest == IMAGE.manifest


async def test_traces_of_a_lent_session_see_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    async def log(
        session: aiohttp.ClientSession, context: SimpleNamespace, started: aiohttp.TraceRequestStartParams
    ) -> None:
        logging.getLogger("caller").info("%s %s", started.url, dict(started.headers))

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(log)
    caplog.set_level(logging.DEBUG)
    async with (
        FaultyRegistry({"team/app:1": IMAGE}, auth="bearer") as registry,
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        source_of(session=session, credentials=StaticCredentials(USER, PASSWORD)) as source,
    ):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
        assert await read(source) == BLOB
        async with session.get(f"{registry.here.url}/v2/"):
            pass
    assert "/v2/" in caplog.text
    assert not [secret for secret in SECRETS if secret in caplog.text]


@pytest.mark.parametrize("is_lent", [True, False], ids=["lent", "own"])
async def test_after_many_cancels_the_pool_is_whole(is_lent: bool) -> None:
    """The pool is used to its limit, and requests are cancelled while they wait, connect, log in and read."""
    layers = [make_layer({f"{number}": random.Random(number).randbytes(100_000)}) for number in range(12)]
    choose = random.Random(5)
    async with (
        asyncio.timeout(60),
        FaultyRegistry({"team/app:1": make_image(*layers)}, auth="bearer", token_uses=30) as registry,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=3)) as session,
        source_of(
            session=session if is_lent else None, credentials=StaticCredentials(USER, PASSWORD)
        ) as source,
    ):
        image = await source.resolve(f"{registry.address}/team/app:1", AMD64)

        async def read_one(number: int) -> bool:
            async with source.open_blob(image.manifest.layers[number]) as chunks:
                return b"".join([chunk async for chunk in chunks]) == layers[number].blob

        for _ in range(15):
            tasks = [asyncio.create_task(read_one(number)) for number in range(12)]
            for _ in range(choose.randrange(60)):
                await asyncio.sleep(0)
            for task in choose.sample(tasks, 6):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert all(await asyncio.gather(*map(read_one, range(12))))
