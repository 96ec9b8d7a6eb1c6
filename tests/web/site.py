"""An application that serves one image, from a depot that counts and misbehaves as told; and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web

from aiodockersave import ArchiveWriter, Descriptor, Digest, Plan, plan_archive
from aiodockersave.web.aiohttp import archive_response, plan_response
from aiodockersave.web.asgi import ArchiveResponse, PlanResponse
from tests.support.images import Image, make_image, make_layer

from .servers import LIMIT, Address, App

CHUNK_SIZE = 64 << 10


@functools.cache
def random_image(size: int, seed: int = 7, repo_tag: str = "example.com/app:1.0") -> Image:
    """Return an image whose two layers have ``size`` bytes together."""
    noise = random.Random(seed)
    half = size // 2
    layers = (make_layer(noise.randbytes(half), None), make_layer(noise.randbytes(size - half), None))
    return make_image(*layers, repo_tags=[repo_tag])


class DepotError(Exception):
    """The depot fails, as it was told."""


class Depot:
    """A source of blobs in memory, which never waits unless it is told to.

    Attributes:
        opened: What was opened: digest, start, stop.
        open: How many blobs are open now.
        given: How many bytes were given in all.
        silent_at: From this byte of a blob on it says nothing any more.
        fails_at: From this byte of a blob on it fails; ``failures`` times.
        flips: Whether the last byte of each blob is wrong.
    """

    def __init__(self, *images: Image) -> None:
        self.opened: list[tuple[Digest, int, int | None]] = []
        self.open = 0
        self.given = 0
        self.silent_at: int | None = None
        self.fails_at: int | None = None
        self.failures = 1
        self.flips = False
        self.is_silent = asyncio.Event()
        self._blobs = {layer.descriptor.digest: layer.blob for image in images for layer in image.layers}

    @asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, /, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened.append((descriptor.digest, start, stop))
        blob = self._blobs[descriptor.digest]
        self.open += 1
        try:
            async with contextlib.aclosing(
                self._chunks(blob, start, len(blob) if stop is None else stop)
            ) as chunks:
                yield chunks
        finally:
            self.open -= 1

    async def _chunks(self, blob: bytes, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        for position in range(start, stop, CHUNK_SIZE):
            if self.silent_at is not None and position >= self.silent_at:
                self.is_silent.set()
                await asyncio.get_running_loop().create_future()
            if self.fails_at is not None and position >= self.fails_at and self.failures:
                self.failures -= 1
                raise DepotError("no more\r\nof this \x1b[31mblob")
            chunk = blob[position : min(position + CHUNK_SIZE, stop)]
            if self.flips and position + len(chunk) == len(blob):
                chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
            self.given += len(chunk)
            yield chunk


@dataclass
class Site:
    """An application that serves one image at ``/``.

    Attributes:
        image: What is served; it may change between two requests, as a tag moves.
        depot: Where its blobs are.
        is_planned: Whether size and ETag are known ahead; else the archive is built for each request.
        options: More arguments of the responses.
        failures: What the responses of ASGI raised: classes.
    """

    image: Image
    depot: Depot
    is_planned: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    failures: list[type[BaseException]] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        return plan_archive([self.image.spec])

    async def build(self, archive: ArchiveWriter) -> None:
        for layer in self.image.layers:
            await archive.put_layer(partial(self.depot.open_blob, layer.descriptor), layer.descriptor)
        await archive.put_image(self.image.config, self.image.manifest, self.image.repo_tags)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        options = {"filename": "app.tar", **self.options}
        if self.is_planned:
            return await plan_response(request, self.plan, self.depot.open_blob, **options)
        return await archive_response(request, self.build, **options)

    def response(self) -> PlanResponse | ArchiveResponse:
        options = {"filename": "app.tar", **self.options}
        if self.is_planned:
            return PlanResponse(self.plan, self.depot.open_blob, **options)
        return ArchiveResponse(self.build, **options)

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])  # no lifespan
        try:
            await self.response()(scope, receive, send)
        except BaseException as exc:
            self.failures.append(type(exc))  # not the error: its frames hold what the server has open
            raise

    @property
    def app(self) -> App:
        return App(self.handle, self.asgi)


# ── clients ──


def receiving_socket() -> socket.socket:
    """Return a socket that takes little before it is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
    return sock


class Caller:
    """A client that reads so much and then leaves, or stalls."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sock: socket.socket | None = None

    async def ask(self, *fields: str) -> None:
        loop = asyncio.get_running_loop()
        self._sock = receiving_socket()
        self._sock.setblocking(False)
        await loop.sock_connect(self._sock, (self._address.host, self._address.port))
        lines = ["GET / HTTP/1.1", "Host: here", *fields, "", ""]
        await loop.sock_sendall(self._sock, "\r\n".join(lines).encode())

    async def read(self, size: int) -> bytes:
        """Read so many bytes of head and body; fewer where the answer ends."""
        assert self._sock
        parts, loop = [], asyncio.get_running_loop()
        async with asyncio.timeout(LIMIT):
            while size and (data := await loop.sock_recv(self._sock, min(size, 1 << 16))):
                parts.append(data)
                size -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        assert self._sock
        self._sock.close()

    def reset(self) -> None:
        assert self._sock
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds.

    What is promised is sooner, some of it within a second; but without what brings it about it would be never, and a busy
    machine may take its time.
    """
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


def own_tasks() -> list[str]:
    """Name the tasks of the package that are left."""
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("aiodockersave")]
