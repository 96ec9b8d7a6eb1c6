"""The delay of the event loop in a save: a heartbeat of 5 ms, and its lateness, beside that of an idle loop."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from functools import partial
from pathlib import Path

import aiohttp  # noqa: F401 - loaded before the loop runs, as in a service; inside it would be one stall of 100 ms

from aiodockersave import ImageRequest, RegistrySource, save
from aiodockersave.core.model import Layers

from .figures import Figure, Settings, print_table
from .images import stored_images
from .processes import NAME, clean_up
from .writer import with_heartbeat

IDLE = 2.0  # seconds
BAR = 5.0  # milliseconds more than idle
MODES: tuple[Layers, ...] = ("keep", "decompress")


async def save_image(reference: str, target: Path, layers: Layers) -> None:
    """Save as an application does."""
    async with RegistrySource() as source:
        await save([ImageRequest(source, reference, [NAME])], target, layers=layers, fsync=False)


def main(settings: Settings) -> list[Figure]:
    """Measure both images in both modes, idle before each."""
    rows, figures = [], []
    with (
        stored_images(*("large", "huge"), scale=settings.scale) as images,
        tempfile.TemporaryDirectory(dir=settings.folder) as folder,
    ):
        target = Path(folder, "image.tar")
        asyncio.run(save_image(images[0].reference, target, "keep"))  # a service has its modules loaded
        clean_up(target)
        for name, image in zip(("large", "huge"), images, strict=True):
            for mode in MODES:
                idle, busy, seconds = [], [], []
                work = partial(save_image, image.reference, target, mode)
                for _ in range(settings.runs):
                    idle.append(asyncio.run(with_heartbeat(partial(asyncio.sleep, IDLE)))[1] * 1000)
                    taken, delay = asyncio.run(with_heartbeat(work))
                    seconds.append(taken)
                    busy.append(delay * 1000)
                    clean_up(target)
                late, more = statistics.median(busy), statistics.median(busy) - statistics.median(idle)
                rows.append(
                    (f"{mode}, {name}", statistics.median(seconds), statistics.median(idle), late, more)
                )
                figures.append(Figure(f"{mode}, {name}: heartbeat's p99, more than idle", more, BAR, " ms"))
    print(f"medians of {settings.runs}; 99th percentiles in ms")
    print_table(("", "seconds", "idle", "saving", "more"), rows)
    return figures
