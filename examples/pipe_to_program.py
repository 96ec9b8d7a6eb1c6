"""Pipe an archive into a program: nothing is written to the disk.

Run it::

    python examples/pipe_to_program.py                    # lists the archive with tar
    python examples/pipe_to_program.py docker load        # or: podman load

You will see what the program prints. The archive flows at the program's pace; if it leaves early (try ``head -c 1000``), the
writer notices, and the message says so.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from functools import partial
from pathlib import Path

from aiodockersave import ArchiveWriter, OciLayoutSource, Platform

HELLO = Path(__file__).parent / "hello"


async def main(program: list[str]) -> int:
    """Run the program and write an archive to its standard input; return its exit code."""
    process = await asyncio.create_subprocess_exec(*program, stdin=PIPE)
    if process.stdin is None:
        raise AssertionError("it was asked for")
    source = OciLayoutSource(HELLO)
    image = await source.resolve("latest", Platform("linux", "amd64"))
    try:
        async with ArchiveWriter(process.stdin) as archive:
            for layer in image.manifest.layers:
                await archive.put_layer(partial(source.open_blob, layer), layer)
            await archive.put_image(image.config, image.manifest, ["example.com/hello:1.0"])
    except ConnectionError as error:
        print(f"{program[0]} left before the archive was complete: {error}", file=sys.stderr)
    finally:
        process.stdin.close()
    return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:] or ["tar", "-tvf", "-"])))
