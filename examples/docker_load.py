"""Load an image into Docker through its API: no file, no ``docker`` command, no Docker library.

Needs aiohttp. Run it where Docker runs, or podman with its socket, and it loads the small image that lies beside this file::

    python examples/docker_load.py                               # unix:///var/run/docker.sock
    python examples/docker_load.py /run/user/1000/podman/podman.sock
    docker run --rm example.com/hello:1.0

You will see what the daemon says of it. The archive goes straight from the source to the daemon, at the daemon's pace, with its
size told ahead. Whatever breaks, the daemon or the source or you by Ctrl-C, what is open is closed, and the daemon,
which then has less than was told, keeps nothing under the image's name.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp

from aiodockersave import ImageSpec, OciLayoutSource, Plan, Platform, Source, plan_archive, stream_plan

HELLO = Path(__file__).parent / "hello"
TAGS = ["example.com/hello:1.0"]
DOCKER = "/var/run/docker.sock"


class LoadError(Exception):
    """The daemon refused the archive, and says why."""


async def load(socket: str, plan: Plan, source: Source, say: Callable[[str], object] = print) -> None:
    """Load a planned archive into the daemon behind a socket.

    Args:
        socket: The path of the daemon's socket.
        plan: The archive.
        source: Gives the blobs.
        say: Takes what the daemon says, line by line.

    Raises:
        LoadError: The daemon refuses it.
        aiohttp.ClientError: The daemon cannot be reached, or leaves; or the source failed: that is its cause.

    Cancel: nothing stays open.
    """
    headers = {
        "Content-Type": "application/x-tar",
        "Content-Length": str(plan.size),  # so that an end which comes too early is none
    }
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)  # unpacking a large layer may take minutes
    # The first block closes the body on every way out; a client does not, where a server refuses early.
    async with (
        stream_plan(plan, source.open_blob) as body,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket), timeout=timeout) as session,
        session.post("http://docker/images/load", data=body, headers=headers) as response,
    ):
        if response.status != 200:
            said = await response.content.read(1000)  # it may be anybody who answers there
            raise LoadError(f"status {response.status}: {said.decode(errors='replace')!r}")
        # Status 200 comes before the daemon has read much; how it went is in the lines that follow.
        async for line in response.content:
            message = json.loads(line)
            if "error" in message:
                raise LoadError(message["error"])
            if text := message.get("stream", "").strip():
                say(text)


async def main(socket: str) -> None:
    """Load the small image."""
    source = OciLayoutSource(HELLO)
    image = await source.resolve("latest", Platform("linux", "amd64"))
    plan = plan_archive([ImageSpec(image.config, image.manifest, TAGS)])
    await load(socket, plan, source)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:] or [DOCKER]))
    except (LoadError, aiohttp.ClientError) as error:
        sys.exit(f"not loaded: {error}")
