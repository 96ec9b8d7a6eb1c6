"""Make an image out of nothing and write it to a file that ``docker load`` takes.

Run it::

    python examples/write_file.py greeting.tar
    docker load -i greeting.tar        # or: podman load -i greeting.tar

You will see the members of the archive with their offsets. The file appears under its name when it is
whole: stop the program at any moment, and an older ``greeting.tar`` is still what it was.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import tarfile

from aiodockersave import Descriptor, Digest, open_archive

LAYER = "application/vnd.oci.image.layer.v1.tar"


def make_layer(files: dict[str, bytes]) -> bytes:
    """Return a plain tar with ``files``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


async def main(path: str) -> None:
    """Write the archive, then say what is in it."""
    layer = make_layer({"greeting.txt": b"Hello from an image made of nothing.\n"})
    descriptor = Descriptor(LAYER, Digest.of(layer), len(layer))
    rootfs = {"type": "layers", "diff_ids": [str(descriptor.digest)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()

    async with open_archive(path) as archive:
        await archive.put_layer(layer, descriptor)
        await archive.put_image(config, [descriptor], ["example.com/greeting:1.0"])

    if archive.report is not None:
        for member in archive.report.members:
            print(f"{member.offset:>8} {member.size:>8} {member.name}")
        print(f"{archive.report.size:>8}          {path}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "greeting.tar"))
