"""The servers that applications run on, on a loopback address, in the test's own loop: its tasks and descriptors are seen.

:data:`SERVERS` is the table: ``async with SERVERS[name](app) as address`` where ``app`` has a handler for aiohttp and an
application for ASGI, which answer alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import hypercorn.asyncio
import hypercorn.config
import uvicorn
from aiohttp import web
from granian.constants import Interfaces
from granian.server.embed import Server as Granian

from tests.support.ports import free_port

SEND_BUFFER = 64 << 10
"""Bytes that the kernel buffers for a client: few, so that a stalled client is noticed soon."""
LIMIT = 60.0
"""Seconds for anything that is waited for."""

Asgi: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class App:
    """One application, for every server.

    Attributes:
        handler: Answers a request of aiohttp.
        asgi: Answers one of ASGI.
    """

    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    asgi: Asgi


@dataclass(frozen=True)
class Address:
    """The address of a server."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/"


Server: TypeAlias = Callable[[App], AbstractAsyncContextManager[Address]]


def listening_socket() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # inherited by what is accepted
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


# ── aiohttp ──


def aiohttp_server(*, handler_cancellation: bool) -> Server:
    @asynccontextmanager
    async def serve(app: App) -> AsyncIterator[Address]:
        application = web.Application()
        application.router.add_route("*", "/", app.handler)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=handler_cancellation, shutdown_timeout=20
        )
        await runner.setup()
        sock = listening_socket()
        try:
            await web.SockSite(runner, sock).start()
            yield Address(*sock.getsockname())
        finally:
            await runner.cleanup()

    return serve


# ── ASGI ──


def uvicorn_server(http: Literal["h11", "httptools"]) -> Server:
    @asynccontextmanager
    async def serve(app: App) -> AsyncIterator[Address]:
        config = uvicorn.Config(
            app.asgi,
            http=http,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=20,
        )
        server = uvicorn.Server(config)
        with contextlib.closing(listening_socket()) as sock:
            async with running(server.serve([sock]), lambda: setattr(server, "should_exit", True)):
                yield Address(*sock.getsockname())

    return serve


@asynccontextmanager
async def hypercorn_server(app: App) -> AsyncIterator[Address]:
    config = hypercorn.config.Config()
    sock = listening_socket()
    address = Address(*sock.getsockname())
    config.bind = [f"fd://{sock.detach()}"]
    config.graceful_timeout = 20
    config.shutdown_timeout = 20
    config.errorlog = logging.getLogger("hypercorn.error")
    stop = asyncio.Event()
    async with running(
        hypercorn.asyncio.serve(app.asgi, config, shutdown_trigger=stop.wait, mode="asgi"), stop.set
    ):
        yield address


@asynccontextmanager
async def granian_server(app: App) -> AsyncIterator[Address]:
    address = Address("127.0.0.1", free_port())
    server = Granian(app.asgi, address.host, address.port, interface=Interfaces.ASGINL, log_enabled=False)
    log = logging.getLogger("_granian")
    log.disabled = True  # records of faults, which pytest keeps, hold the server's runtime
    try:
        async with running(server.serve(), server.stop):
            await reached(address)
            yield address
    finally:
        log.disabled = False
        gc.collect()  # what applications raised holds the runtime too
        close_listener(address)


def close_listener(address: Address) -> None:
    """Close the socket that granian has bound and leaves open."""
    for descriptor in open_sockets():
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.getsockname() != (address.host, address.port):
                continue
            try:
                sock.getpeername()
            except OSError:  # no connection
                os.close(descriptor)


def open_sockets() -> list[int]:
    """Return the descriptors of this process that are sockets; none where there is no ``/proc``."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):  # noqa: PTH115
                    found.append(int(number))
    return found


async def reached(address: Address) -> None:
    """Wait until a server accepts connections."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                _, writer = await asyncio.open_connection(address.host, address.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return


@asynccontextmanager
async def running(serving: Any, stop: Callable[[], None]) -> AsyncIterator[None]:
    """Run a server in a task; stop it at the end of the block, and wait until it has ended."""
    before = asyncio.all_tasks()
    task = asyncio.create_task(serving)
    try:
        yield
    finally:
        stop()
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([task])
            # Some servers do not wait for tasks that they have cancelled.
            while ending := [each for each in asyncio.all_tasks() - before if each.cancelling()]:
                await asyncio.wait(ending)
        await task


KEEP_STALLED = {"hypercorn", "granian"}
"""Servers that keep a connection, with their buffer, until the client moves: ASGI has no message to end it."""

SERVERS: dict[str, Server] = {
    "aiohttp": aiohttp_server(handler_cancellation=False),
    "aiohttp-cancellation": aiohttp_server(handler_cancellation=True),
    "uvicorn-h11": uvicorn_server("h11"),
    "uvicorn-httptools": uvicorn_server("httptools"),
    "hypercorn": hypercorn_server,
    "granian": granian_server,
}
