"""The examples that serve and upload archives."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import io
import random
import tarfile

import pytest

from aiodockersave import ImageSpec, OciLayoutSource, Plan, Platform, plan_archive, stream_plan
from tests.interop.programs import ProgramError
from tests.test_examples import EXAMPLES, LIMIT, Server, example, serving

from .test_uploads import Store
from .test_uploads import serving as storing

DOWNLOADS = ("download_aiohttp.py", "download_fastapi.py")


async def hello() -> tuple[Plan, bytes]:
    """Return the plan of the image that the examples serve, and the archive."""
    source = OciLayoutSource(EXAMPLES / "hello")
    image = await source.resolve("latest", Platform("linux", "amd64"))
    plan = plan_archive([ImageSpec(image.config, image.manifest, ["example.com/hello:1.0"])])
    async with stream_plan(plan, source.open_blob) as chunks:
        return plan, b"".join([chunk async for chunk in chunks])


class ResumingClient:
    """A client that is cut off again and again, and goes on where it was.

    Attributes:
        received: What it has.
        requests: How often it asked.
    """

    def __init__(self, server: Server, path: str, noise: random.Random) -> None:
        self.received = b""
        self.requests = 0
        self._server = server
        self._path = path
        self._noise = noise
        self._etag: str | None = None

    def run(self) -> bytes:
        """Return the whole."""
        while not self._go_on():
            pass
        return self.received

    def _go_on(self) -> bool:
        """Ask for the missing bytes, read a part of them, and leave; return whether that was all."""
        headers = {"Range": f"bytes={len(self.received)}-"} if self.received else {}
        if self._etag:
            headers["If-Range"] = self._etag
        self.requests += 1
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=LIMIT)
        ) as asking:
            asking.request("GET", self._path, headers=headers)
            with asking.getresponse() as response:
                if response.status == 200:
                    self.received = b""
                self._etag = response.headers["ETag"]
                self.received += response.read(self._noise.randrange(1, 2000))
                return not response.length


@pytest.mark.parametrize("name", DOWNLOADS)
async def test_download(name: str) -> None:
    plan, expected = await hello()
    with serving(name) as server:
        client = ResumingClient(server, "/hello.tar", random.Random(3))
        assert await asyncio.to_thread(client.run) == expected
        assert client.requests > 3
        assert client._etag == f'"{plan.etag}"'


@pytest.mark.parametrize("name", DOWNLOADS)
def test_download_of_plain_layers(name: str) -> None:
    with serving(name) as server:
        body = server.get("/plain.tar")
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        layer, *others = tar.getnames()
        data = tar.extractfile(layer)
        assert data
        assert layer == f"{hashlib.sha256(data.read()).hexdigest()}.tar"
    assert others[-2:] == ["manifest.json", "repositories"]


async def test_upload_put() -> None:
    _, expected = await hello()
    async with storing(store := Store()) as url:
        said = await asyncio.to_thread(example, "upload_put.py", url)
    assert said == f"{len(expected)} bytes, status 201\n"
    assert store.body == expected
    assert store.field("content-length") == str(len(expected))


async def test_upload_put_that_is_refused() -> None:
    async with storing(Store(status="403 Forbidden")) as url:
        with pytest.raises(ProgramError, match="403"):
            await asyncio.to_thread(example, "upload_put.py", url)
