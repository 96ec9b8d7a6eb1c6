"""Save an image from a registry to a file that ``docker load`` takes.

Needs the extra ``registry``: pip install 'aiodockersave[registry]'. Run it::

    python examples/save_from_registry.py alpine:3.20 alpine.tar
    python examples/save_from_registry.py alpine:3.20 alpine.tar linux/arm64   # for another machine

You will see each layer as it comes in, then what was written. If you are logged in with docker or podman, so is this.
Connections that break are made again, and a layer goes on where it broke. The file appears under its name when
everything in it is verified: stop the program at any moment, and an older ``alpine.tar`` is still what it was.
"""

from __future__ import annotations

import asyncio
import sys

from aiodockersave import (
    DockerSaveError,
    Event,
    ImageRequest,
    LayerFinished,
    Platform,
    RegistrySource,
    SaveStarted,
    save,
)


class Progress:
    """Prints a line for each layer that is in. It is called on the event loop, so it must be quick."""

    def __init__(self) -> None:
        self._total = 0

    def __call__(self, event: Event) -> None:
        """Take what happened."""
        match event:
            case SaveStarted(_, total):
                self._total = total
            case LayerFinished(layer, total_done):
                print(f"{100 * total_done // max(1, self._total):>3}%  {layer.digest}")
            case _:
                pass


async def main(reference: str, path: str, platform: Platform | None) -> None:
    """Save the image for one platform; without one, for linux on this machine's architecture."""
    async with RegistrySource() as source:
        images = [ImageRequest(source, reference)]
        report = await save(images, path, platform=platform, progress=Progress(), checksum=True)
    print(f"{path}: {report.size} bytes, {report.sha256}")


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    name, target, *wanted = sys.argv[1:]
    try:
        asyncio.run(main(name, target, Platform.parse(wanted[0]) if wanted else None))
    except DockerSaveError as error:  # one line, which says what, where, and what to do
        sys.exit(str(error))
