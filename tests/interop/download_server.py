"""A server of one image in a process of its own, behind a line that breaks where it is told to.

    python -m tests.interop.download_server oci:FOLDER example.com/app:1.0
    python -m tests.interop.download_server 127.0.0.1:5000/app:1.0 example.com/app:1.0 --cuts 30 --longest 1000000

It says its URL in one line on standard output, and ends by SIGTERM. Beside the archive there is ``/facts``, in JSON.

The line is a forwarder of TCP between client and server: neither of them knows when it breaks, which may be inside the head
of an answer, and what the client has then received is exact to the byte.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aiodockersave import (
    Descriptor,
    ImageSpec,
    OciLayoutSource,
    Plan,
    Platform,
    RegistrySource,
    Source,
    plan_archive,
)
from aiodockersave.sources.credentials import MappingCredentials
from aiodockersave.web.aiohttp import plan_response

from .programs import ProgramError, ended_at_last

FILENAME = "app.tar"
START_LIMIT = 60.0  # seconds
PIECE_SIZE = 64 << 10
RESET = struct.pack("ii", 1, 0)  # lingers for no time: what is closed is reset


# ── in the process ──


@dataclass
class Facts:
    """The requests and cuts that a server counted.

    Attributes:
        requests: Of each request for the archive: method, ``range``, ``if_range`` and status.
        upstream: Bytes that the source gave.
        cuts: How often the line broke.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    upstream: int = 0
    cuts: int = 0


class Site:
    """One image."""

    def __init__(self, source: Source, plan: Plan, facts: Facts) -> None:
        self._source = source
        self._plan = plan
        self._facts = facts

    async def archive(self, request: web.Request) -> web.StreamResponse:
        asked = {name: request.headers.get(name.replace("_", "-")) for name in ("range", "if_range")}
        noted: dict[str, Any] = {"method": request.method, **asked}
        self._facts.requests.append(noted)
        response = await plan_response(request, self._plan, self.open_blob, filename=FILENAME)
        noted["status"] = response.status
        return response

    async def facts(self, _: web.Request) -> web.Response:
        return web.json_response(vars(self._facts))

    @asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        async with (
            self._source.open_blob(descriptor, start=start, stop=stop) as chunks,
            contextlib.aclosing(self._counted(chunks)) as counted,
        ):
            yield counted

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            self._facts.upstream += len(chunk)
            yield chunk


class Line:
    """Forwards connections to a port, and breaks the first ones: by a reset, or by an orderly end that comes too early."""

    def __init__(self, port: int, facts: Facts, *, cuts: int, longest: int, seed: int, resets: bool) -> None:
        self._port = port
        self._facts = facts
        self._cuts = cuts
        self._longest = longest
        self._noise = random.Random(seed)
        self._resets = resets
        self._open: dict[asyncio.Task[None] | None, tuple[asyncio.StreamWriter, ...]] = {}

    async def aclose(self) -> None:
        """Break all connections, and wait until they are no more."""
        tasks = [task for task in self._open if task is not None]
        for writer in itertools.chain.from_iterable(self._open.values()):
            writer.transport.abort()
        await asyncio.gather(*tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = self._noise.randrange(1, self._longest) if self._facts.cuts < self._cuts else None
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        forward = asyncio.create_task(self._forward(reader, far_writer))
        self._open[asyncio.current_task()] = writer, far_writer
        try:
            if await self._forward(far_reader, writer, limit):
                self._facts.cuts += 1
                if self._resets and self._noise.random() < 0.5:
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        finally:
            forward.cancel()
            await asyncio.wait([forward])
            far_writer.transport.abort()
            writer.transport.abort()
            del self._open[asyncio.current_task()]

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None = None
    ) -> bool:
        """Forward up to so many bytes; tell whether they were reached."""
        left = sys.maxsize if limit is None else limit
        writer.transport.set_write_buffer_limits(high=0)  # what is drained has left
        with contextlib.suppress(ConnectionError):
            while left and (data := await reader.read(min(PIECE_SIZE, left))):
                writer.write(data)
                await writer.drain()
                left -= len(data)
        return not left


@asynccontextmanager
async def opened(image: str) -> AsyncGenerator[tuple[Source, str], None]:
    """Open the source of an image; give the reference that it has there."""
    if image.startswith("oci:"):
        yield OciLayoutSource(image.removeprefix("oci:")), ""
    else:
        async with RegistrySource(plain_http=True, credentials=MappingCredentials({})) as source:
            yield source, image


async def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM comes."""
    facts, ended = Facts(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with opened(options.image) as (source, reference):
        image = await source.resolve(reference, Platform("linux", "amd64"))
        plan = plan_archive([ImageSpec(image.config, image.manifest, [options.tag])])
        site = Site(source, plan, facts)
        app = web.Application()
        app.router.add_get(f"/{FILENAME}", site.archive)
        app.router.add_get("/facts", site.facts)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            breaks = {name: getattr(options, name) for name in ("cuts", "longest", "seed", "resets")}
            line = Line(port, facts, **breaks)
            async with await asyncio.start_server(line.serve, "127.0.0.1", 0) as server:
                ports = {"direct": port, "line": server.sockets[0].getsockname()[1]}
                print(json.dumps(ports), flush=True)  # noqa: T201 - who started it reads it
                await ended.wait()
                await line.aclose()
        finally:
            await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.interop.download_server")
    parser.add_argument("image", help="oci:FOLDER, or a reference of a registry that speaks http")
    parser.add_argument("tag", help="what the image is called in the archive")
    parser.add_argument("--cuts", type=int, default=0, help="how often the line breaks")
    parser.add_argument(
        "--longest", type=int, default=2, help="before it has carried so many bytes to a client"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resets", action="store_true", help="half of the breaks are resets")
    asyncio.run(run(parser.parse_args()))


# ── in the test ──


@dataclass(frozen=True)
class DownloadServer:
    """The server, as its clients see it.

    Attributes:
        url: Of the archive, over the line.
        direct_url: The same without the line.
    """

    url: str
    direct_url: str

    def facts(self) -> Facts:
        """Return what has happened so far."""
        with urllib.request.urlopen(
            f"{self.direct_url.rpartition('/')[0]}/facts", timeout=START_LIMIT
        ) as response:
            return Facts(**json.load(response))


@contextlib.contextmanager
def running_server(image: str, tag: str, *options: str) -> Iterator[DownloadServer]:
    """Run the server, until the block is left."""
    argv = [sys.executable, "-m", __name__, image, tag, *options]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        with ended_at_last(process):
            said = process.stdout.readline()
            if not said:
                raise ProgramError(argv, f"exit code {process.wait(START_LIMIT)}", b"")
            ports = json.loads(said)
            urls = {name: f"http://127.0.0.1:{port}/{FILENAME}" for name, port in ports.items()}
            yield DownloadServer(urls["line"] if "--cuts" in options else urls["direct"], urls["direct"])


if __name__ == "__main__":
    main()
