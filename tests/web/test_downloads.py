"""Downloads from every server: whole ones are right, broken ones look broken, and a client that leaves leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import AsyncIterator

import aiohttp
import pytest

from aiodockersave import DigestMismatchError
from tests.support.clock import LoopClock
from tests.support.images import archive_of

from .servers import KEEP_STALLED, LIMIT, SERVERS, Server, open_sockets
from .site import Caller, Depot, DepotError, Site, own_tasks, random_image, until

IMAGE = random_image(3_000_000)
MIB = 1 << 20


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, granian_is_warm: None) -> Server:
    return SERVERS[request.param]


@pytest.fixture
def is_aiohttp(request: pytest.FixtureRequest) -> bool:
    return "aiohttp" in request.node.name


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        yield session


@pytest.fixture(params=[True, False], ids=["plan", "build"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(IMAGE, Depot(IMAGE), is_planned=request.param)


@pytest.fixture
def planned() -> Site:
    return Site(IMAGE, Depot(IMAGE))


@pytest.fixture
async def expected() -> bytes:
    return await archive_of([IMAGE])


async def read_all(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """Return the bytes that come of a body, and whether it was whole."""
    received = bytearray()
    try:
        async for chunk in response.content.iter_any():
            received += chunk
    except aiohttp.ClientError:
        return bytes(received), False
    return bytes(received), True


# ── whole archives ──


async def test_the_whole_archive(
    server: Server, site: Site, session: aiohttp.ClientSession, expected: bytes
) -> None:
    async with server(site.app) as address, session.get(address.url) as response:
        assert response.status == 200
        assert await response.read() == expected
        assert response.headers["Content-Type"] == "application/x-tar"
        assert response.headers["Content-Disposition"] == 'attachment; filename="app.tar"'
        if site.is_planned:
            assert response.headers["Content-Length"] == str(len(expected))
            assert response.headers["ETag"] == f'"{site.plan.etag}"'
            assert response.headers["Accept-Ranges"] == "bytes"
        else:
            assert "Content-Length" not in response.headers
            assert response.headers["Accept-Ranges"] == "none"
    assert site.failures == []
    assert own_tasks() == []


async def test_parts(server: Server, planned: Site, session: aiohttp.ClientSession, expected: bytes) -> None:
    borders = sorted({0, *random.Random(5).sample(range(len(expected)), 4), len(expected)})
    async with server(planned.app) as address:
        for start, stop in itertools.pairwise(borders):
            headers = {"Range": f"bytes={start}-{stop - 1}"}
            async with session.get(address.url, headers=headers) as response:
                assert response.status == 206
                assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(expected)}"
                assert await response.read() == expected[start:stop]


async def test_a_part_opens_only_what_it_needs(
    server: Server, planned: Site, session: aiohttp.ClientSession, expected: bytes
) -> None:
    layer = IMAGE.layers[1].descriptor
    (start,) = (s.offset for s in planned.plan.segments if s.descriptor == layer)
    async with server(planned.app) as address:
        headers = {"Range": f"bytes={start + 1000}-{start + 2999}"}
        async with session.get(address.url, headers=headers) as response:
            assert await response.read() == expected[start + 1000 : start + 3000]
    assert planned.depot.opened == [(layer.digest, 1000, 3000)]
    assert planned.depot.given == 2000


async def test_answers_without_a_body(
    server: Server, planned: Site, session: aiohttp.ClientSession, expected: bytes
) -> None:
    etag = f'"{planned.plan.etag}"'
    rows = [
        ("HEAD", {}, 200, str(len(expected))),
        ("HEAD", {"Range": "bytes=5-"}, 200, str(len(expected))),
        ("GET", {"If-None-Match": etag}, 304, None),
        ("GET", {"If-Match": '"another"'}, 412, "0"),
        ("GET", {"Range": f"bytes={len(expected)}-"}, 416, "0"),
    ]
    async with server(planned.app) as address:
        for method, headers, status, length in rows:
            async with session.request(method, address.url, headers=headers) as response:
                assert (response.status, await response.read()) == (status, b"")
                assert response.headers.get("Content-Length") == length
                assert response.headers["ETag"] == etag
    assert planned.depot.opened == []


async def test_a_request_with_a_body(
    server: Server, planned: Site, session: aiohttp.ClientSession, expected: bytes
) -> None:
    """The body of a request is ignored, and a range of a POST, too."""
    headers = {"Range": "bytes=0-4"}
    async with (
        server(planned.app) as address,
        session.post(address.url, data=bytes(50_000), headers=headers) as response,
    ):
        assert (response.status, await response.read()) == (200, expected)


async def test_head_builds_nothing(server: Server, session: aiohttp.ClientSession) -> None:
    site = Site(IMAGE, Depot(IMAGE), is_planned=False)
    async with server(site.app) as address, session.head(address.url) as response:
        assert response.status == 200
        assert "Content-Length" not in response.headers
    assert site.depot.opened == []


async def test_options_of_the_writer(server: Server, session: aiohttp.ClientSession) -> None:
    site = Site(IMAGE, Depot(IMAGE), is_planned=False, options={"layers": "decompress"})
    async with server(site.app) as address, session.get(address.url) as response:
        assert await response.read() == await archive_of([IMAGE], layers="decompress")


# ── broken downloads ──


async def test_a_source_that_fails_in_the_middle(
    server: Server, site: Site, session: aiohttp.ClientSession, expected: bytes, is_aiohttp: bool
) -> None:
    """No client takes its part for complete; the next client gets all of it, and one that comes back gets the rest."""
    site.depot.fails_at = 1_000_000
    async with server(site.app) as address:
        async with session.get(address.url) as response:
            received, is_whole = await read_all(response)
        assert not is_whole
        assert expected.startswith(received)
        if not is_aiohttp:
            assert site.failures == [DepotError]
        headers = {"Range": f"bytes={len(received)}-"} if site.is_planned else {}
        async with session.get(address.url, headers=headers) as response:
            rest = await response.read()
        assert (received + rest if site.is_planned else rest) == expected
    assert site.depot.open == 0
    assert own_tasks() == []


async def test_a_blob_that_is_wrong_at_its_last_byte(
    server: Server, site: Site, session: aiohttp.ClientSession, expected: bytes, is_aiohttp: bool
) -> None:
    site.depot.flips = True
    async with server(site.app) as address, session.get(address.url) as response:
        received, is_whole = await read_all(response)
    assert not is_whole
    assert expected.startswith(received)
    if not is_aiohttp:
        assert site.failures == [DigestMismatchError]
    assert own_tasks() == []


async def test_a_tag_that_moves_during_a_download(
    server: Server, planned: Site, session: aiohttp.ClientSession, expected: bytes
) -> None:
    moved = random_image(2_000_000, seed=8)
    planned.depot = Depot(IMAGE, moved)
    planned.depot.fails_at = 1_000_000
    async with server(planned.app) as address:
        async with session.get(address.url) as response:
            received, is_whole = await read_all(response)
            etag = response.headers["ETag"]
        assert not is_whole
        planned.image = moved
        headers = {"Range": f"bytes={len(received)}-", "If-Range": etag}
        async with session.get(address.url, headers=headers) as response:
            assert response.status == 200
            assert await response.read() == await archive_of([moved])


async def test_broken_and_resumed_again_and_again(
    server: Server, planned: Site, session: aiohttp.ClientSession, expected: bytes
) -> None:
    received, noise = bytearray(), random.Random(9)
    async with server(planned.app) as address:
        while len(received) < len(expected):
            headers = {"Range": f"bytes={len(received)}-", "If-Range": f'"{planned.plan.etag}"'}
            async with session.get(address.url, headers=headers) as response:
                assert response.status == 206
                received += await response.content.read(noise.randrange(1, 500_000))
                response.close()
    assert bytes(received) == expected


# ── clients that leave ──

LARGE = random_image(8 * MIB, seed=3)


async def check_nothing_left(site: Site, sockets: int) -> None:
    """Check that tasks, blobs and connections are as before, at last."""
    try:
        await until(lambda: site.depot.open == 0 and not own_tasks() and len(open_sockets()) <= sockets)
    except TimeoutError:
        pytest.fail(
            f"left: {site.depot.open} blobs, tasks {own_tasks()}, {len(open_sockets()) - sockets} connections"
        )


@pytest.mark.parametrize("is_planned", [True, False], ids=["plan", "build"])
async def test_fifty_clients_that_leave(
    server: Server, session: aiohttp.ClientSession, is_planned: bool, request: pytest.FixtureRequest
) -> None:
    site = Site(LARGE, Depot(LARGE), is_planned=is_planned, options={"send_timeout": 0.5})
    noise = random.Random(11)
    async with server(site.app) as address:
        before = len(open_sockets())
        stalled: list[Caller] = []

        async def visit(number: int) -> None:
            caller = Caller(address)
            await caller.ask()
            with contextlib.suppress(ConnectionResetError):  # a busy machine makes some more of them stall
                await caller.read(noise.randrange(3 * MIB))
            if number % 3 == 2:
                stalled.append(caller)
            elif number % 3:
                caller.close()
            else:
                caller.reset()

        await asyncio.gather(*(visit(number) for number in range(50)))
        assert len(stalled) == 16
        kept = len(stalled) if request.node.callspec.params["server"] in KEEP_STALLED else 0
        await check_nothing_left(site, before + len(stalled) + kept)
        for caller in stalled:
            caller.close()
        await check_nothing_left(site, before)
        async with session.get(address.url) as response:
            assert await response.read() == await archive_of([LARGE])


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_little_is_fetched_for_a_client_that_has_left(server: Server, site: Site, way: str) -> None:
    site.image = random_image(24 * MIB, seed=2)
    site.depot = Depot(site.image)
    async with server(site.app) as address:
        caller = Caller(address)
        await caller.ask()
        await caller.read(MIB)
        given = await at_rest(site.depot)
        getattr(caller, way)()
        await until(lambda: site.depot.open == 0 and not own_tasks())
        assert site.depot.given - given <= 4 * MIB


async def at_rest(depot: Depot) -> int:
    """Wait until the buffers on the way are full, so that nothing more is fetched; return how much was."""
    given = -1
    async with asyncio.timeout(LIMIT):
        while depot.given > given:
            given = depot.given
            await asyncio.sleep(0.3)
    return given


async def test_a_client_that_leaves_a_silent_source(server: Server, site: Site) -> None:
    """Nothing is sent while the source says nothing, and that the client has left is noticed all the same."""
    site.depot.silent_at = 500_000
    async with server(site.app) as address:
        caller = Caller(address)
        await caller.ask()
        await site.depot.is_silent.wait()
        await caller.read(1000)
        caller.close()
        await until(lambda: site.depot.open == 0 and not own_tasks())
    assert site.failures == []


async def test_a_client_that_leaves_before_the_first_byte(server: Server) -> None:
    site = Site(IMAGE, Depot(IMAGE), is_planned=False)
    site.depot.silent_at = 0
    async with server(site.app) as address:
        caller = Caller(address)
        await caller.ask()
        await site.depot.is_silent.wait()
        caller.close()
        await until(lambda: site.depot.open == 0 and not own_tasks())
    assert site.failures == []


async def test_a_client_that_is_only_slow(server: Server, planned: Site, expected: bytes) -> None:
    """Each piece is in time, though the whole takes longer than the limit for one."""
    clock = LoopClock()
    planned.options["send_timeout"] = 40
    async with server(planned.app) as address:
        caller = Caller(address)
        await caller.ask("Connection: close")
        received = b""
        while chunk := await caller.read(300_000):
            received += chunk
            await asyncio.sleep(0.01)  # all that can be sent meanwhile is
            clock.put_forward(10)
        caller.close()
    assert received.endswith(expected)
    assert planned.failures == []


async def test_a_break_is_logged(
    planned: Site, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, in which nothing of the source's text can do anything."""
    planned.depot.fails_at = 1_000_000
    caplog.set_level(logging.INFO)
    async with SERVERS["aiohttp"](planned.app) as address, session.get(address.url) as response:
        received, _ = await read_all(response)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("aiodockersave", "ERROR")
    assert record.getMessage().startswith("a response broke off after ")
    assert record.getMessage().endswith(r"bytes: DepotError: no more of this \x1b[31mblob")
    assert int(record.getMessage().split()[5]) >= len(received)
    assert not record.exc_info
