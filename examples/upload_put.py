"""Upload an image to an HTTP server by PUT, as an archive that need not exist before.

Needs aiohttp. Run it with the address of whatever stores what is put there: Artifactory, Nexus, WebDAV, a presigned URL of
S3::

    python examples/upload_put.py https://files.example.com/images/hello.tar

``Content-Length`` is known before the first byte, which S3 insists on, and the archive goes straight from the source to the
server: nothing is written to the disk. The pace is the server's. However the request ends, whatever the body has open is
closed behind it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp

from aiodockersave import ImageSpec, OciLayoutSource, Plan, Platform, Source, plan_archive, stream_plan

HELLO = Path(__file__).parent / "hello"
TAGS = ["example.com/hello:1.0"]


async def upload(session: aiohttp.ClientSession, url: str, plan: Plan, source: Source) -> int:
    """Put a planned archive; return the status.

    With httpx2 it is the same: ``await client.put(url, content=body, headers=headers)``.
    """
    headers = {
        "Content-Type": "application/x-tar",
        "Content-Length": str(plan.size),  # else it would be sent in chunks, which few servers store
    }
    # The block closes the body on every way out; a client does not, where a server refuses early or the source fails.
    async with (
        stream_plan(plan, source.open_blob) as body,
        session.put(url, data=body, headers=headers, raise_for_status=True) as response,
    ):
        return response.status


async def main(url: str) -> None:
    """Upload the small image that lies beside this file."""
    source = OciLayoutSource(HELLO)
    image = await source.resolve("latest", Platform("linux", "amd64"))
    plan = plan_archive([ImageSpec(image.config, image.manifest, TAGS)])
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)  # of large images too
    async with aiohttp.ClientSession(timeout=timeout) as session:
        status = await upload(session, url, plan, source)
    print(f"{plan.size} bytes, status {status}")


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
