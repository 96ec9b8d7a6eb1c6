"""Stream an image into an HTTP response, from a registry that is asked by a client of some forty lines.

It shows how little a client needs to do. It does not log in, choose a platform or try again: ``RegistrySource`` does, in
``stream_to_client.py``. Needs aiohttp, and a registry such as Debian's docker-registry. Run it::

    python examples/registry_to_response.py http://127.0.0.1:5000 8080
    curl -s http://127.0.0.1:8080/app:1.0 | podman load

What a client asks for is checked before it becomes a part of a URL, and what a registry answers is not read into memory without
a limit. curl begins to receive as soon as the manifest is known. Each blob goes from the registry through the writer to the
client, chunk by chunk: the client's pace is the registry's. Stop curl, and the transfer ends with the next chunk.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import ClientError, ClientResponse, ClientSession, web

from aiodockersave import (
    ArchiveWriter,
    ContentTooLargeError,
    Descriptor,
    DockerSaveError,
    ImageManifest,
    InvalidReferenceError,
    Reference,
)
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE

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
            return ImageManifest.parse(await read(response), response.content_type)

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give a blob's chunks as they arrive. Nothing is checked here: the writer checks digest and size."""
        url = f"{self._url}/blobs/{descriptor.digest}"
        headers = {"Accept-Encoding": "identity"}
        async with self._session.get(url, headers=headers, raise_for_status=True) as response:
            yield response.content.iter_any()

    async def config(self, manifest: ImageManifest) -> bytes:
        """Return the config of an image; it is checked where it is used."""
        url = f"{self._url}/blobs/{manifest.config.digest}"
        headers = {"Accept-Encoding": "identity"}
        async with self._session.get(url, headers=headers, raise_for_status=True) as response:
            return await read(response)


async def read(response: ClientResponse) -> bytes:
    """Read a document. Its bytes are counted: what headers and manifests say of its size may be wrong."""
    document = bytearray()
    async for chunk in response.content.iter_any():
        document += chunk
        if len(document) > MAX_DOCUMENT_SIZE:
            raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what="a document of the registry")
    return bytes(document)


async def archive(request: web.Request) -> web.StreamResponse:
    """Answer ``GET /name:tag`` with the image as an archive.

    A fault in the middle leaves the archive without an end, and aiohttp closes the connection: no client takes it for
    complete.
    """
    name, tag = request.match_info["name"], request.match_info["tag"]
    try:
        # ".." is no name, say: it would lead to other parts of the registry.
        Reference("registry.example", name, tag)
        repository = Repository(request.app[SESSION], request.app[REGISTRY], name)
        image = await repository.manifest(tag)
        config = await repository.config(image)
    except InvalidReferenceError as error:
        raise web.HTTPNotFound(text=str(error)) from error
    except (ClientError, DockerSaveError) as error:
        raise web.HTTPBadGateway(text="the registry does not give this image") from error

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
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    web.run_app(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
