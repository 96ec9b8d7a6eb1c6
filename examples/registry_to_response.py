"""Stream an image into an HTTP response, from a registry that is asked by a client of some thirty lines.

It shows how little a client needs to do. It does not log in, choose a platform or try again: ``RegistrySource`` does, in
``stream_to_client.py``. Needs aiohttp, and a registry such as Debian's docker-registry. Run it::

    python examples/registry_to_response.py http://127.0.0.1:5000 8080
    curl -s http://127.0.0.1:8080/app:1.0 | podman load

curl begins to receive as soon as the manifest is known. Each blob goes from the registry through the writer to the
client, chunk by chunk: the client's pace is the registry's. Stop curl, and the transfer ends with the next chunk.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import ClientSession, web

from aiodockersave import ArchiveWriter, Descriptor, ImageManifest

MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
REGISTRY, SESSION = web.AppKey("registry", str), web.AppKey("session", ClientSession)


class Repository:
    """One repository of a registry: about all that the distribution protocol needs for reading."""

    def __init__(self, session: ClientSession, registry: str, name: str) -> None:
        self._session = session
        self._url = f"{registry}/v2/{name}"

    async def manifest(self, reference: str) -> ImageManifest:
        """Return the manifest of a tag or digest."""
        url = f"{self._url}/manifests/{reference}"
        async with self._session.get(url, headers={"Accept": MANIFESTS}, raise_for_status=True) as response:
            return ImageManifest.parse(await response.read(), response.content_type)

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give a blob's chunks as they arrive. Nothing is checked here: the writer checks digest and size."""
        url = f"{self._url}/blobs/{descriptor.digest}"
        headers = {"Accept-Encoding": "identity"}
        async with self._session.get(url, headers=headers, raise_for_status=True) as response:
            yield response.content.iter_any()

    async def config(self, manifest: ImageManifest) -> bytes:
        """Return the config of an image; it is checked where it is used."""
        async with self.open_blob(manifest.config) as chunks:
            return b"".join([chunk async for chunk in chunks])


async def archive(request: web.Request) -> web.StreamResponse:
    """Answer ``GET /name:tag`` with the image as an archive.

    A fault in the middle leaves the archive without an end, and aiohttp closes the connection: no client takes it for
    complete.
    """
    name, tag = request.match_info["name"], request.match_info["tag"]
    repository = Repository(request.app[SESSION], request.app[REGISTRY], name)
    image = await repository.manifest(tag)
    config = await repository.config(image)

    response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
    await response.prepare(request)
    async with ArchiveWriter(response) as writer:
        for layer in image.layers:
            await writer.put_layer(partial(repository.open_blob, layer), layer)
        await writer.put_image(config, image, [f"{name}:{tag}"])
    return response


def make_app(registry: str) -> web.Application:
    """Return an application that serves the images of ``registry`` (scheme, host, port)."""

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(auto_decompress=False) as app[SESSION]:
            yield

    app = web.Application()
    app[REGISTRY] = registry
    app.cleanup_ctx.append(session)
    app.router.add_get("/{name:[a-z0-9/._-]+}:{tag:[A-Za-z0-9._-]+}", archive)
    return app


if __name__ == "__main__":
    web.run_app(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
