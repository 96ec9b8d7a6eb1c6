"""Stream images from a registry to HTTP clients that may leave at any moment.

Needs the extra ``registry``. Run it, and take an image of any repository that this registry gives to everybody::

    python examples/stream_to_client.py docker.io 8080
    curl -f http://127.0.0.1:8080/library/alpine:3.20 | docker load

curl shows how far it is: the size of the archive is known before its first byte. Nothing is written to the disk, and
what is on its way is no more than a few buffers: the client's pace is the registry's. Stop curl, and the transfer from
the registry stops in the same moment.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from aiohttp import web

from aiodockersave import (
    DockerSaveError,
    ImageNotFoundError,
    ImageSpec,
    InvalidReferenceError,
    MappingCredentials,
    Platform,
    RegistrySource,
    ResolvedImage,
    plan_archive,
)
from aiodockersave.web.aiohttp import plan_response

PLATFORM = Platform("linux", "amd64")  # not this machine's: every server answers the same
REGISTRY, SOURCE = web.AppKey("registry", str), web.AppKey("source", RegistrySource)


async def archive(request: web.Request) -> web.StreamResponse:
    """Answer ``GET /repository:tag`` with the image as an archive.

    A client that leaves stops the transfer from the registry. If the registry fails in the middle, the connection is
    closed before ``Content-Length`` is reached, so the client knows; asked for the rest, a new answer begins there.
    """
    source = request.app[SOURCE]
    image = await find(source, f"{request.app[REGISTRY]}/{request.match_info['image']}")
    plan = plan_archive([ImageSpec(image.config, image.manifest, image.default_tags)])
    return await plan_response(request, plan, source.open_blob, filename="image.tar")


async def find(source: RegistrySource, reference: str) -> ResolvedImage:
    """Find an image, or answer with an error while there still is a status to say it with."""
    try:
        return await source.resolve(reference, PLATFORM)
    except (ImageNotFoundError, InvalidReferenceError) as error:
        raise web.HTTPNotFound(text=str(error)) from error
    except DockerSaveError as error:
        raise web.HTTPBadGateway(text=str(error)) from error


def make_app(registry: str) -> web.Application:
    """Return an application that serves the images of one registry."""

    async def connect(app: web.Application) -> AsyncIterator[None]:
        # What this machine's user may see is not for everybody who asks: no credentials.
        async with RegistrySource(credentials=MappingCredentials({})) as app[SOURCE]:
            yield

    app = web.Application()
    app[REGISTRY] = registry
    app.cleanup_ctx.append(connect)
    app.router.add_get("/{image:[a-z0-9/._-]+:[A-Za-z0-9._-]+}", archive)
    return app


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    web.run_app(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
