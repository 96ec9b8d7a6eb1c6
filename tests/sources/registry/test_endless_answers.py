"""Answers that never end, though bytes keep coming: heads and documents have limits, layers have none.

The servers here send often enough for every limit on silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from asyncio import selector_events
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import http_parser
from aiohttp.abc import AbstractResolver, ResolveResult

from aiodockersave import DockerSaveError, Platform, RegistryError, RegistrySource, TransferError
from aiodockersave.sources.credentials import StaticCredentials
from aiodockersave.sources.registry import DialGuard, Retries, Timeouts
from tests.support.attempts import challenge
from tests.support.clock import LoopClock
from tests.support.faulty_registry import PASSWORD, USER, FaultyRegistry, Kind, redirect
from tests.support.images import make_image, make_layer

AMD64 = Platform("linux", "amd64")
IMAGE = make_image(make_layer({"data": b"data\n" * 500}))
MANIFEST = IMAGE.manifest_bytes
TIMEOUTS = Timeouts(connect=60, silence=30, head=60, document=90, document_rate=33)
TIME_LIMIT = 36_000.0  # seconds, of a clock that runs ahead
OFTEN = 6.0  # seconds between two drops
ONE_ATTEMPT = Retries(attempts=1)


@pytest.fixture(autouse=True)
async def _time_that_flies() -> AsyncIterator[None]:
    """Put the loop's clock forward all the while, for servers and source alike: a busy machine does not tell them apart."""
    clock = LoopClock()
    over = asyncio.get_running_loop().create_future()
    flying = asyncio.create_task(clock.put_forward_until(over, 0.5))
    yield
    over.set_result(None)
    await flying


@dataclass(frozen=True)
class Drip:
    """The answer of a server: something at once, and then the same drop again and again.

    Attributes:
        first: What comes at once.
        drop: What comes then.
        pause: Seconds between two drops.
        drops: How many; None for ever.
    """

    first: bytes
    drop: bytes = b""
    pause: float = OFTEN
    drops: int | None = None

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        """Answer a request."""
        writer.write(self.first)
        await writer.drain()
        left = self.drops
        while left is None or left > 0:
            left = None if left is None else left - 1
            writer.write(self.drop)
            await writer.drain()
            await asyncio.sleep(self.pause)


Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def dripping(answer: Answering, *, until: bytes = b"\r\n\r\n") -> AsyncIterator[str]:
    """Answer so whatever ends with ``until``, a request by default; give ``ip:port``."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                await reader.readuntil(until)
                await answer(writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for each in talks:
            each.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


Led = Callable[..., Any]


@pytest.fixture
def led(stack: AsyncExitStack) -> Led:
    """Make a registry and a source that is led to a server that drips, for one kind of request."""

    async def led(drip: Answering, kind: Kind, **options: Any) -> tuple[FaultyRegistry, RegistrySource]:
        address = await stack.enter_async_context(dripping(drip))
        if kind == "token":
            fault = challenge(f'Bearer realm="http://{address}/token",service="s"')
        else:
            fault = redirect(f"http://{address}/").of(kind)
        registry = FaultyRegistry(
            {"team/app:1": IMAGE}, [fault], auth="bearer" if kind == "token" else "none"
        )
        await stack.enter_async_context(registry)
        by_default: dict[str, Any] = {"timeouts": TIMEOUTS, "retries": ONE_ATTEMPT, "plain_http": True}
        source = RegistrySource(credentials=StaticCredentials(USER, PASSWORD), **by_default | options)
        return registry, await stack.enter_async_context(source)

    return led


async def error_of(source: RegistrySource, registry: FaultyRegistry) -> DockerSaveError:
    async with asyncio.timeout(TIME_LIMIT):
        with pytest.raises(DockerSaveError) as caught:
            await source.resolve(f"{registry.address}/team/app:1", AMD64)
    return caught.value


# ── heads ──

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
TOO_LATE = r"status and headers were not whole within 60 s"
HEADS: dict[str, tuple[Drip, str]] = {
    "interim answers": (Drip(b"", EARLY), TOO_LATE),
    "100 Continue": (Drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), TOO_LATE),
    "interim answers, then a head that does not end": (Drip(EARLY * 3 + OK, b"X"), TOO_LATE),
    "a header": (Drip(OK + b"X: ", b"x"), TOO_LATE),
    "headers": (Drip(OK, b"X: x\r\n", pause=3), TOO_LATE),
    "the status": (Drip(b"HTTP/1.1 200 ", b"O"), TOO_LATE),
    "empty lines": (Drip(b"", b"\r\n"), TOO_LATE),
    "a flood of interim answers": (Drip(b"", EARLY * 1000, pause=0), "more than 16 interim answers"),
}


@pytest.mark.parametrize("is_lent", [False, True], ids=["own session", "lent session"])
@pytest.mark.parametrize(("drip", "message"), HEADS.values(), ids=HEADS)
async def test_a_head_ends(stack: AsyncExitStack, led: Led, drip: Drip, message: str, is_lent: bool) -> None:
    session = await stack.enter_async_context(aiohttp.ClientSession()) if is_lent else None
    registry, source = await led(drip, "manifest", session=session)
    assert message in str(await error_of(source, registry))


@pytest.mark.parametrize("kind", ["config", "token"])
async def test_a_head_ends_whatever_was_asked_for(led: Led, kind: Kind) -> None:
    registry, source = await led(Drip(b"", EARLY), kind)
    assert TOO_LATE in str(await error_of(source, registry))


async def test_a_head_ends_where_nothing_else_was_asked_for(led: Led) -> None:
    """A source with documents in its cache asks by HEAD."""
    registry, source = await led(Drip(b"", EARLY), "manifest")
    leading, registry.faults = registry.faults, []
    await source.resolve(f"{registry.address}/team/app:1", AMD64)
    registry.faults = leading
    assert TOO_LATE in str(await error_of(source, registry))
    assert registry.asks[-1].method == "HEAD"


async def test_a_layers_head_ends(led: Led) -> None:
    registry, source = await led(Drip(OK, b"X: x\r\n"), "blob")
    image = await source.resolve(f"{registry.address}/team/app:1", AMD64)
    async with asyncio.timeout(TIME_LIMIT):
        with pytest.raises(TransferError, match=TOO_LATE):
            async with source.open_blob(image.manifest.layers[0]):
                pass


async def test_a_few_interim_answers_are_allowed(led: Led) -> None:
    answer = OK + b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n" % (
        IMAGE.manifest.media_type.encode(),
        len(MANIFEST),
    )
    registry, source = await led(Drip(EARLY * 16 + answer + MANIFEST, drops=0), "manifest")
    async with asyncio.timeout(TIME_LIMIT):
        image = await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert image.manifest == IMAGE.manifest


async def test_a_longer_limit_on_silence_raises_that_on_heads(led: Led) -> None:
    """A limit on silence that was set higher than the default one on heads counts for both."""
    answer = b"200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (
        IMAGE.manifest.media_type.encode(),
        len(MANIFEST),
    )

    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 ")
        await asyncio.sleep(24)
        writer.write(answer + MANIFEST)

    registry, source = await led(late, "manifest", timeouts=TIMEOUTS._replace(silence=600, head=12))
    async with asyncio.timeout(TIME_LIMIT):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)


@pytest.mark.parametrize("parser", ["HttpResponseParser", "HttpResponseParserPy"])
@pytest.mark.parametrize(
    "answer",
    [
        OK + b"X: x\r\n" * 100_000 + b"\r\n",
        OK + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
        OK + b"X: x\r\n" + b" folded\r\n" * 100_000 + b"\r\n",
        EARLY.replace(b"Link", b"X: x\r\n" * 100 + b"Link") * 1000,
    ],
    ids=["headers", "one header", "lines of one header", "interim answers with headers"],
)
async def test_large_heads_are_refused_at_once(
    led: Led, monkeypatch: pytest.MonkeyPatch, answer: bytes, parser: str
) -> None:
    monkeypatch.setattr("aiohttp.client_proto.HttpResponseParser", getattr(http_parser, parser))
    registry, source = await led(Drip(answer, drops=0), "manifest", timeouts=Timeouts(600, 600))
    begun = time.monotonic()
    error = await error_of(source, registry)
    assert isinstance(error, RegistryError)
    assert "headers that are too long" in str(error) or "interim answers" in str(error)
    assert time.monotonic() - begun < 10


# ── documents ──

LONG = b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_SLOW = "is too slow"
BODIES: dict[str, Drip] = {
    "slower than the lowest rate": Drip(OK + LONG, b"x"),
    "without a length": Drip(OK + b"\r\n", b"x"),
    "in chunks": Drip(OK + CHUNKED, b"1\r\nx\r\n"),
    "longer than the limit": Drip(OK + LONG, b"x" * 200, pause=3),
    "a chunk's extension": Drip(OK + CHUNKED + b"1;", b"a=b;"),
    "what follows the last chunk": Drip(OK + CHUNKED + b"1\r\nx\r\n0\r\n", b"X: x\r\n", pause=6),
}
DOCUMENTS: list[Kind] = ["manifest", "config", "token"]


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("drip", BODIES.values(), ids=BODIES)
async def test_a_document_ends(led: Led, drip: Drip, kind: Kind) -> None:
    registry, source = await led(drip, kind)
    begun = time.monotonic()
    error = await error_of(source, registry)
    assert TOO_SLOW in str(error) or "nothing came" in str(error)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_a_document_has_a_lowest_rate(led: Led, kind: Kind) -> None:
    """The limit on the whole time does not matter then."""
    registry, source = await led(Drip(OK + LONG, b"x"), kind, timeouts=TIMEOUTS._replace(document=1000))
    assert TOO_SLOW in str(await error_of(source, registry))


async def test_a_document_needs_no_rate(led: Led) -> None:
    timeouts = TIMEOUTS._replace(document_rate=0)
    registry, source = await led(Drip(OK + LONG, b"x"), "manifest", timeouts=timeouts)
    clock = asyncio.get_running_loop().time
    begun = clock()
    assert TOO_SLOW in str(await error_of(source, registry))
    assert clock() - begun > timeouts.document - 0.1


async def test_how_slow_a_document_may_be(led: Led) -> None:
    """A body that is slower than the lowest rate may still come within the time that silence may last."""
    head = OK + b"Content-Length: %d\r\n\r\n" % len(MANIFEST)
    rate = TIMEOUTS.document_rate

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await asyncio.sleep(18)
        for at in range(0, len(MANIFEST), 100):
            writer.write(MANIFEST[at : at + 100])
            await asyncio.sleep(50 / rate)  # twice as fast as it must be

    registry, source = await led(slow, "manifest", timeouts=TIMEOUTS._replace(silence=300, document=600))
    async with asyncio.timeout(TIME_LIMIT):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_the_body_of_an_error_ends(led: Led, kind: Kind, status: int) -> None:
    """The status alone makes the error."""
    registry, source = await led(Drip(b"HTTP/1.1 %d No\r\n" % status + LONG, b"x"), kind)
    said = f"status {status}" if (kind, status) != ("config", 404) else "not found"
    assert said in str(await error_of(source, registry))


async def test_the_body_of_a_redirect_is_not_waited_for(stack: AsyncExitStack, led: Led) -> None:
    registry = await stack.enter_async_context(FaultyRegistry({"team/app:1": IMAGE}))
    location = f"Location: http://{registry.address}/v2/team/app/manifests/1"
    moved = b"HTTP/1.1 307 Moved\r\n%b\r\nContent-Length: 1000\r\n\r\n" % location.encode()
    # No limit but that on connections ends this soon.
    timeouts = Timeouts(connect=30, silence=3600, head=3600, document=3600, document_rate=0)
    leading, source = await led(Drip(moved, b"x"), "manifest", timeouts=timeouts)
    async with asyncio.timeout(TIME_LIMIT):
        assert (
            await source.resolve(f"{leading.address}/team/app:1", AMD64)
        ).manifest.digest == IMAGE.manifest.digest
    assert registry.asks


async def test_tiny_chunks_do_not_block_the_loop(led: Led) -> None:
    """A body may be cut into as many chunks as it has bytes, and all may be there at once."""

    async def tiny(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + CHUNKED)
        for _ in range(80):
            writer.write(b"1\r\nx\r\n" * 5000)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    gaps = [0.0]

    async def beat() -> None:
        last = time.thread_time()  # of the processor: other programs do not count
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            gaps.append(now - last)
            last = now

    registry, source = await led(tiny, "manifest", timeouts=Timeouts(600, 600))
    beating = asyncio.create_task(beat())
    try:
        assert "manifest" in str(await error_of(source, registry))  # it is no JSON
    finally:
        beating.cancel()
    assert max(gaps) < 0.2


# ── layers ──


async def test_a_layer_may_take_as_long_as_it_likes(stack: AsyncExitStack, led: Led) -> None:
    """A layer is read for as long as bytes come."""
    layer = IMAGE.layers[0]
    piece = len(layer.blob) // 12 + 1

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(layer.blob))
        for at in range(0, len(layer.blob), piece):
            writer.write(layer.blob[at : at + piece])
            await asyncio.sleep(6)

    timeouts = Timeouts(connect=300, silence=36, head=300, document=12, document_rate=1e9)
    registry, source = await led(slow, "blob", timeouts=timeouts)
    image = await source.resolve(f"{registry.address}/team/app:1", AMD64)
    async with asyncio.timeout(TIME_LIMIT), source.open_blob(image.manifest.layers[0]) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == layer.blob


# ── before there is a connection ──


@pytest.mark.parametrize("has_authority", [False, True], ids=["is TLS spoken?", "a request"])
async def test_a_handshake_ends(tmp_path: Path, has_authority: bool) -> None:
    """The server sends the head of a long TLS record, and then its bytes one by one."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    async with (
        asyncio.timeout(TIME_LIMIT),
        dripping(Drip(b"\x16\x03\x03\x40\x00", b"\x02"), until=b"\x16") as address,
        RegistrySource(
            ca_file=ca if has_authority else None, timeouts=Timeouts(connect=30), retries=ONE_ATTEMPT
        ) as source,
    ):
        with pytest.raises(TransferError, match=r"no connection within 30 s"):
            await source.resolve(f"{address}/app:1", AMD64)


async def test_a_name_with_very_many_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address answers, and the attempts on all of them together have a limit."""
    connect = selector_events.BaseSelectorEventLoop.sock_connect

    async def connect_or_not(loop: Any, sock: Any, address: Any) -> None:
        if address[0].startswith("127.3."):
            await asyncio.Event().wait()
        await connect(loop, sock, address)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [f"127.3.0.{number}" for number in range(250)]

    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_connect", connect_or_not)
    async with (
        asyncio.timeout(TIME_LIMIT),
        RegistrySource(
            plain_http=True,
            guard=DialGuard(resolve=resolve),
            timeouts=Timeouts(connect=12),
            retries=ONE_ATTEMPT,
        ) as source,
    ):
        with pytest.raises(TransferError, match="no connection within"):
            await source.resolve("many.example/app:1", AMD64)


class Mute(AbstractResolver):
    """A caller's resolver that never answers."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    "drip",
    [Drip(b"", b""), Drip(b"", EARLY), Drip(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n")],
    ids=["silent", "interim", "head"],
)
@pytest.mark.parametrize("is_lent", [False, True], ids=["own session", "lent session"])
async def test_a_proxy_that_does_not_connect_is_not_waited_for(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, drip: Drip, is_lent: bool
) -> None:
    proxy = await stack.enter_async_context(dripping(drip))
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
    session = await stack.enter_async_context(aiohttp.ClientSession()) if is_lent else None
    source = RegistrySource(session=session, timeouts=Timeouts(connect=12), retries=ONE_ATTEMPT)
    await stack.enter_async_context(source)
    async with asyncio.timeout(TIME_LIMIT):
        with pytest.raises(TransferError, match=r"no connection (within|in time)"):
            await source.resolve("registry.example/app:1", AMD64)


async def test_a_lent_connector_whose_resolver_does_not_answer() -> None:
    async with (
        asyncio.timeout(TIME_LIMIT),
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=Mute(), use_dns_cache=False)
        ) as session,
        RegistrySource(
            session=session, plain_http=True, timeouts=Timeouts(connect=12), retries=ONE_ATTEMPT
        ) as source,
    ):
        with pytest.raises(TransferError, match="no connection in time"):
            await source.resolve("registry.invalid/app:1", AMD64)


async def test_the_wait_for_a_lent_connection_is_not_timed(stack: AsyncExitStack) -> None:
    """A caller's pool may be as small and as busy as the caller likes."""
    busy = await stack.enter_async_context(dripping(Drip(OK + CHUNKED, b"1\r\nx\r\n")))
    registry = await stack.enter_async_context(FaultyRegistry({"team/app:1": IMAGE}))
    connector = aiohttp.TCPConnector(limit=1)
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
    timeouts = Timeouts(connect=30, silence=30, head=30)
    source = RegistrySource(session=session, plain_http=True, timeouts=timeouts, retries=ONE_ATTEMPT)
    await stack.enter_async_context(source)
    response = await session.get(f"http://{busy}/")
    async with asyncio.timeout(TIME_LIMIT):
        resolving = asyncio.create_task(source.resolve(f"{registry.address}/team/app:1", AMD64))
        await asyncio.sleep(120)
        assert not resolving.done()
        response.close()
        assert (await resolving).manifest == IMAGE.manifest
