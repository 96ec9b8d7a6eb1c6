"""Offer an image for download, from a FastAPI application: a download that breaks off goes on where it was.

Needs FastAPI and an ASGI server; uvicorn, hypercorn and granian do. Run it, and download the small image that lies beside
this file::

    python examples/download_fastapi.py 8080
    curl -f -C - -OJ http://127.0.0.1:8080/hello.tar
    docker load -i hello.tar

The archive is never made as a whole, neither on the disk nor in memory. Its size and its ETag are known before its first
byte, so curl shows how far it is, and browsers, curl and wget resume. ``/plain.tar`` has the layers decompressed, as
``docker save`` writes them: its size is not known ahead, so it is sent in chunks, as a whole.

For images of a registry, put a ``RegistrySource`` in the place of the layout, opened by the application's lifespan.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from aiodockersave import ArchiveWriter, ImageSpec, OciLayoutSource, Platform, plan_archive
from aiodockersave.web.asgi import ArchiveResponse, PlanResponse

PLATFORM = Platform("linux", "amd64")  # not this machine's: every server answers the same
TAGS = ["example.com/hello:1.0"]
SOURCE = OciLayoutSource(Path(__file__).parent / "hello")

app = FastAPI()


@app.get("/hello.tar")
@app.head("/hello.tar")
async def hello() -> PlanResponse:
    """Answer with the image, or with the part of it that is asked for."""
    image = await SOURCE.resolve("latest", PLATFORM)
    plan = plan_archive([ImageSpec(image.config, image.manifest, TAGS)])
    return PlanResponse(plan, SOURCE.open_blob, filename="hello.tar")


@app.get("/plain.tar")
async def plain() -> ArchiveResponse:
    """Answer with the image, its layers decompressed."""
    image = await SOURCE.resolve("latest", PLATFORM)

    async def build(archive: ArchiveWriter) -> None:
        for layer in image.manifest.layers:
            await archive.put_layer(partial(SOURCE.open_blob, layer), layer)
        await archive.put_image(image.config, image.manifest, TAGS)

    return ArchiveResponse(build, filename="plain.tar", layers="decompress")


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
