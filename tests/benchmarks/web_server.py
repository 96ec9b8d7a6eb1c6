"""A server of one image, with a way through it that verifies nothing beside ours.

    python -m tests.benchmarks.web_server 127.0.0.1:5000/large:v1-100

``/plan``  the archive, by ``plan_response``
``/pass``  the same blobs one after the other, as a bare handler passes them on: aiohttp's client to aiohttp's server
``/ping``  a second handler
``/peak``  this process's VmHWM in bytes

It says its port in one line on standard output, and ends by SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import aiohttp
from aiohttp import web

from aiodockersave import ImageSpec, Plan, Platform, Reference, RegistrySource, ResolvedImage, plan_archive
from aiodockersave.sources.credentials import MappingCredentials
from aiodockersave.web.aiohttp import plan_response

from .observed import peak

NAME = "example.com/measured:1"


class Site:
    """The handlers."""

    def __init__(self, source: RegistrySource, image: ResolvedImage, session: aiohttp.ClientSession) -> None:
        self._source = source
        self._session = session
        self._plan: Plan = plan_archive([ImageSpec(image.config, image.manifest, [NAME])])
        self._layers = image.manifest.layers
        name = Reference.parse(image.reference)
        self._blobs = f"http://{name.registry}/v2/{name.repository}/blobs"

    async def plan(self, request: web.Request) -> web.StreamResponse:
        return await plan_response(request, self._plan, self._source.open_blob, filename="image.tar")

    async def pass_through(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = sum(layer.size or 0 for layer in self._layers)
        await response.prepare(request)
        for layer in self._layers:
            async with self._session.get(f"{self._blobs}/{layer.digest}") as blob:
                async for chunk in blob.content.iter_any():
                    await response.write(chunk)
        return response

    async def ping(self, _: web.Request) -> web.Response:
        return web.Response(text="pong")

    async def peak(self, _: web.Request) -> web.Response:
        return web.Response(text=str(peak()))


async def run(reference: str) -> None:
    """Serve until SIGTERM comes."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with (
        RegistrySource(plain_http=True, credentials=MappingCredentials({})) as source,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
    ):
        site = Site(source, await source.resolve(reference, Platform("linux", "amd64")), session)
        app = web.Application()
        app.router.add_get("/plan", site.plan)
        app.router.add_get("/pass", site.pass_through)
        app.router.add_get("/ping", site.ping)
        app.router.add_get("/peak", site.peak)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            print(runner.addresses[0][1], flush=True)
            await ended.wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
