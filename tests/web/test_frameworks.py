"""The ASGI responses in Starlette and FastAPI, as their users return them, and without either."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import fastapi
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

import aiodockersave
from aiodockersave import InvalidInputError
from aiodockersave.web.asgi import ArchiveResponse, PlanResponse
from tests.support.images import archive_of

from .servers import LIMIT, SERVERS, App
from .site import Caller, Depot, DepotError, Site, own_tasks, random_image, until

IMAGE = random_image(3_000_000)


@pytest.fixture
def site() -> Site:
    return Site(IMAGE, Depot(IMAGE))


@pytest.fixture(autouse=True)
async def no_middlewares_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Collect garbage: a middleware that fails leaves streams open, held by its error, held by a log record that pytest keeps."""
    for name in ("uvicorn.error", "hypercorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    yield
    gc.collect()
    await asyncio.sleep(0)  # generators are closed by the loop
    await asyncio.sleep(0)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        yield session


async def unused(_: web.Request) -> web.StreamResponse:
    raise NotImplementedError


def served(app: Any, server: str = "uvicorn-h11") -> Any:
    return SERVERS[server](App(unused, app))


def by_starlette(site: Site, **options: Any) -> Starlette:
    async def endpoint(_: Request) -> Response:
        return site.response()

    return Starlette(routes=[Route("/", endpoint)], **options)


def by_mounting(site: Site) -> Starlette:
    """A response is an application itself."""
    return Starlette(routes=[Mount("/", site.response())])


def by_annotated_endpoint(site: Site) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    async def endpoint() -> PlanResponse:
        response = site.response()
        assert isinstance(response, PlanResponse)
        return response

    endpoint.__annotations__["return"] = PlanResponse  # as in a module where it can be looked up
    app.add_api_route("/", endpoint, methods=["GET", "HEAD"])
    return app


def by_response_annotation(site: Site) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    @app.get("/")
    @app.head("/")
    async def endpoint() -> Response:
        return site.response()

    return app


def by_bare_endpoint(site: Site) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    async def endpoint():  # type: ignore[no-untyped-def] # noqa: ANN202
        return site.response()

    app.add_api_route("/", endpoint, methods=["GET", "HEAD"])
    return app


def by_thread(site: Site) -> fastapi.FastAPI:
    """An endpoint that is no coroutine is run in a thread; its response is not."""
    app = fastapi.FastAPI()

    @app.get("/")
    @app.head("/")
    def endpoint() -> Response:
        return site.response()

    return app


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


def behind_middleware(site: Site) -> Starlette:
    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Seen"] = "1"
        return response

    return by_starlette(site, middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])


WAYS = {
    "Starlette": by_starlette,
    "Starlette, mounted": by_mounting,
    "Starlette, behind middleware": behind_middleware,
    "FastAPI": by_annotated_endpoint,
    "FastAPI, as Response": by_response_annotation,
    "FastAPI, without annotation": by_bare_endpoint,
    "FastAPI, in a thread": by_thread,
}


@pytest.fixture(params=WAYS)
def app(request: pytest.FixtureRequest, site: Site) -> Any:
    return WAYS[request.param](site)


async def test_download(app: Any, site: Site, session: aiohttp.ClientSession) -> None:
    expected = await archive_of([IMAGE])
    async with served(app) as address:
        async with session.get(address.url) as response:
            assert response.headers["ETag"] == f'"{site.plan.etag}"'
            assert await response.read() == expected
        async with session.get(address.url, headers={"Range": "bytes=-5000"}) as response:
            assert (response.status, await response.read()) == (206, expected[-5000:])
        async with session.head(address.url) as response:
            assert response.headers["Content-Length"] == str(len(expected))
    assert site.depot.open == 0


async def test_a_source_that_fails_in_the_middle(
    app: Any, site: Site, session: aiohttp.ClientSession
) -> None:
    site.depot.fails_at = 1_000_000
    async with served(app) as address:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                await response.read()
    assert site.depot.open == 0
    assert own_tasks() == []


BETWEEN = {
    "one": 1 * [Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    "three": 3 * [Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    "compressing, then one": [Middleware(GZipMiddleware), Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    "one, then compressing": [Middleware(BaseHTTPMiddleware, dispatch=pass_on), Middleware(GZipMiddleware)],
}
"""Middlewares that end a body also after an error, the outermost first."""
ASGI_SERVERS = sorted(name for name in SERVERS if not name.startswith("aiohttp"))


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("is_planned", [True, False], ids=["plan", "build"])
@pytest.mark.parametrize("server", ASGI_SERVERS)
async def test_no_middleware_ends_what_broke_off(
    server: str,
    is_planned: bool,
    between: list[Middleware],
    session: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    granian_is_warm: None,
) -> None:
    """In chunks only the end tells a whole archive from a half. And the log has the reason, also if the server fails."""
    site = Site(IMAGE, Depot(IMAGE), is_planned=is_planned)
    site.depot.fails_at = 1_000_000
    async with served(by_starlette(site, middleware=between), server) as address:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                await response.read()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "aiodockersave"]
    assert line.endswith(r"bytes: DepotError: no more of this \x1b[31mblob")
    assert site.depot.open == 0
    assert own_tasks() == []


class SelfCancellingDepot(Depot):
    """Cancels the reader of the last layer."""

    async def _chunks(self, blob: bytes, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        if blob == IMAGE.layers[-1].blob:
            task = asyncio.current_task()
            assert task
            task.cancel()
            await asyncio.sleep(0)
        yield blob[start:stop]


async def test_no_middleware_ends_what_cancelled_itself(session: aiohttp.ClientSession) -> None:
    site = Site(IMAGE, SelfCancellingDepot(IMAGE), is_planned=False)
    async with served(behind_middleware(site)) as address:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                await response.read()
    assert site.depot.open == 0


@pytest.mark.parametrize("server", ASGI_SERVERS)
async def test_no_middleware_ends_what_stalled(server: str, granian_is_warm: None) -> None:
    """The client moves again after it was given up: the bytes that it gets then must not look complete."""
    image = random_image(16 << 20, seed=3)
    site = Site(image, Depot(image), is_planned=False, options={"send_timeout": 0.3})
    async with served(behind_middleware(site), server) as address:
        caller = Caller(address)
        await caller.ask("Connection: close")
        await caller.read(1000)
        await until(lambda: site.depot.given > 0)
        await until(lambda: site.depot.open == 0 and not own_tasks())
        received = await caller.read(1 << 30)
        assert len(received) < 16 << 20
        assert not received.endswith(b"\r\n0\r\n\r\n")
        caller.close()


async def test_a_client_that_leaves_a_silent_source(app: Any, site: Site) -> None:
    site.depot.silent_at = 1_000_000
    async with served(app) as address:
        caller = Caller(address)
        await caller.ask()
        await site.depot.is_silent.wait()
        caller.close()
        await until(lambda: site.depot.open == 0 and not own_tasks())


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"Starlette, behind middleware"}))
async def test_a_client_that_stalls_is_dropped(way: str) -> None:
    """Also where a framework stands between the response and the server; not behind a middleware that hides it."""
    image = random_image(8 << 20, seed=3)
    site = Site(image, Depot(image), options={"send_timeout": 0.3})
    async with served(WAYS[way](site)) as address:
        caller = Caller(address)
        await caller.ask()
        await caller.read(1000)
        await until(lambda: site.depot.given > 0)
        await until(lambda: site.depot.open == 0 and not own_tasks())
        received = await caller.read(1 << 30)  # it comes to an end: nobody keeps the connection
        assert len(received) < 8 << 20
        caller.close()


async def test_an_error_before_the_first_byte_is_the_applications(session: aiohttp.ClientSession) -> None:
    site = Site(IMAGE, Depot(IMAGE), is_planned=False)
    site.depot.fails_at = 0

    async def answer(_: Request, exc: Exception) -> Response:
        return PlainTextResponse("try later", status_code=503)

    app = by_starlette(site, exception_handlers={DepotError: answer})
    async with served(app) as address, session.get(address.url) as response:
        assert (response.status, await response.text()) == (503, "try later")


async def test_an_error_after_the_first_byte_is_not(site: Site, session: aiohttp.ClientSession) -> None:
    site.depot.fails_at = 1_000_000

    async def answer(_: Request, exc: Exception) -> Response:
        raise AssertionError("asked for an answer that cannot be given")

    app = by_starlette(site, exception_handlers={DepotError: answer})
    async with served(app) as address:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(address.url) as response:
                await response.read()


async def test_header_fields_and_cookies(site: Site, session: aiohttp.ClientSession) -> None:
    async def endpoint(_: Request) -> Response:
        response = PlanResponse(
            site.plan,
            site.depot.open_blob,
            filename="app.tar",
            headers={"Cache-Control": "public, immutable, no-transform"},
        )
        response.headers["X-Ours"] = "1"
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async with (
        served(Starlette(routes=[Route("/", endpoint)])) as address,
        session.get(address.url) as response,
    ):
        assert response.headers.getall("Cache-Control") == ["public, immutable, no-transform"]
        assert response.headers["X-Ours"] == "1"
        assert len(response.headers.getall("Set-Cookie")) == 2
        assert len(await response.read()) == site.plan.size


async def test_background_tasks(site: Site, session: aiohttp.ClientSession) -> None:
    done = asyncio.Event()
    app = fastapi.FastAPI()

    @app.get("/")
    async def endpoint(background: fastapi.BackgroundTasks) -> Response:
        background.add_task(done.set)
        return site.response()

    async with served(app) as address, session.get(address.url) as response:
        await response.read()
        async with asyncio.timeout(LIMIT):
            await done.wait()


async def test_a_background_task_of_its_own(site: Site, session: aiohttp.ClientSession) -> None:
    done = asyncio.Event()
    site.options["background"] = BackgroundTask(done.set)
    async with served(by_starlette(site)) as address, session.get(address.url) as response:
        await response.read()
        async with asyncio.timeout(LIMIT):
            await done.wait()


async def test_compressing_middleware_cannot_make_a_wrong_file(
    site: Site, session: aiohttp.ClientSession
) -> None:
    """If it compresses all the same, a header field says so, and the decompressed body is the archive."""
    app = by_starlette(site, middleware=[Middleware(GZipMiddleware)])
    async with served(app) as address, session.get(address.url) as response:
        assert await response.read() == await archive_of([IMAGE])


async def test_a_client_on_http_1_0_is_not_told_that_a_build_is_whole(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no chunk and no length: the connection is reset."""
    caplog.set_level(logging.CRITICAL)
    site = Site(IMAGE, Depot(IMAGE), is_planned=False)
    site.depot.fails_at = 1_000_000
    async with SERVERS["uvicorn-h11"](site.app) as address:
        with pytest.raises(ConnectionResetError):
            await read_by_http_1_0(address)


async def read_by_http_1_0(address: Any) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(LIMIT):
            return await reader.read()
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass


@pytest.mark.parametrize("response", [PlanResponse, ArchiveResponse])
def test_a_bad_name_shows_in_the_endpoint(response: Any) -> None:
    with pytest.raises(InvalidInputError):
        response(*[None] * (2 if response is PlanResponse else 1), filename="a\r\nb")


def test_without_starlette() -> None:
    """The whole of it: a server alone, and nothing of Starlette."""
    program = """
import asyncio, sys
sys.modules["starlette"] = None
from aiodockersave import ImageSpec, OciLayoutSource, Platform, plan_archive
from aiodockersave.web.asgi import PlanResponse

async def main():
    source = OciLayoutSource("examples/hello")
    image = await source.resolve("latest", Platform("linux", "amd64"))
    plan = plan_archive([ImageSpec(image.config, image.manifest, ["example.com/hello:1.0"])])
    sent = []
    async def send(message):
        sent.append(message)
    response = PlanResponse(plan, source.open_blob, filename="hello.tar", headers={"X-Ours": "1"})
    scope = {"type": "http", "method": "GET", "headers": [(b"range", b"bytes=-9")], "http_version": "1.1"}
    await response(scope, asyncio.get_running_loop().create_future, send)
    print(sent[0]["status"], dict(sent[0]["headers"])[b"x-ours"], sum(len(m.get("body", b"")) for m in sent))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(aiodockersave.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("206 b'1' 9\n", "")
