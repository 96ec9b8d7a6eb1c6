"""Give a slow layer a time limit, and go on with the same archive when it is missed.

Run it::

    python examples/cancel_and_go_on.py [FILE]

You will see a layer that does not arrive in time, that the archive is as it was before, and that it was finished with the
layer from another mirror. On a file the writer takes a torn member back; on a pipe or a connection it cannot, and would refuse
every later call instead of writing an archive that looks whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

from aiodockersave import Descriptor, Digest, open_archive

LAYER = os.urandom(3_000_000)  # not a tar: nobody is going to unpack it
DESCRIPTOR = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(LAYER), len(LAYER))
CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(DESCRIPTOR.digest)]},
    }
).encode()


async def mirror(pause: float) -> AsyncIterator[bytes]:
    """Give the layer in pieces, with a pause after each."""
    for start in range(0, len(LAYER), 500_000):
        yield LAYER[start : start + 500_000]
        await asyncio.sleep(pause)


async def main(path: str) -> None:
    """Write an archive whose first source is too slow."""
    async with open_archive(path) as archive:
        try:
            async with asyncio.timeout(0.5):
                await archive.put_layer(mirror(pause=0.2), DESCRIPTOR)
        except TimeoutError:
            print("the first mirror is too slow; is the layer in?", archive.has_blob(DESCRIPTOR.digest))
        await archive.put_layer(mirror(pause=0), DESCRIPTOR)
        print("from the second mirror; is the layer in?", archive.has_blob(DESCRIPTOR.digest))
        await archive.put_image(CONFIG, [DESCRIPTOR], ["example.com/patient:1.0"])
    if archive.report is not None:
        print(f"{path}: {archive.report.size} bytes, {len(archive.report.members)} members")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "patient.tar"))
