"""``save --resume``, killed again and again: are the bytes the same, and how often is one fetched?

Each run is killed by SIGKILL as soon as it has received its share; the shares are what random moments cut the image into. A run
that fetches again what was there needs its share for that, and the last run, which nobody kills, pays for it.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from pathlib import Path

from .figures import Figure, Settings, print_table
from .images import MB, Stored, stored_images
from .processes import TIME_LIMIT, Observed, supports

BAR = 1.15
POLL = 0.0005  # seconds between two looks at what was received
OPTIONS = ("--layers=keep", "--no-fsync", "--quiet")


def shares(size: int, kills: int, seed: int) -> list[int]:
    """Cut `size` bytes at as many random places, and leave out what follows the last of them: a twentieth and more."""
    moments = sorted(random.Random(seed).sample(range(size * 19 // 20), kills))
    return [stop - start for start, stop in zip([0, *moments], moments, strict=False)]


def kill_after(run: Observed, size: int) -> bool:
    """Kill a run that has received `size` bytes; return whether it was still there."""
    deadline = time.monotonic() + TIME_LIMIT
    while run.received < size and run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL)
    was_running = run.process.poll() is None
    run.kill()
    return was_running


def measure(image: Stored, settings: Settings, folder: Path) -> list[Figure]:
    """Kill and resume; compare with a save that nobody interrupts."""
    whole, resumed = folder / "whole.tar", folder / "resumed.tar"
    with Observed(image.reference, whole, *OPTIONS, *settings.save_options) as run:
        seconds = run.finish()
        once = run.received
    table: list[tuple[object, ...]] = [("uninterrupted", seconds, once / MB)]
    fetched, killed = 0, 0
    for number, share in enumerate(shares(once, settings.kills, settings.seed), 1):
        with Observed(image.reference, resumed, *OPTIONS, "--resume", *settings.save_options) as run:
            start = time.perf_counter()
            killed += kill_after(run, share)
            table.append((f"kill {number}", time.perf_counter() - start, run.received / MB))
            fetched += run.received
        if resumed.exists():  # the kill came too late, and nothing is left to resume
            break
    else:
        with Observed(image.reference, resumed, *OPTIONS, "--resume", *settings.save_options) as run:
            table.append(("to the end", run.finish(), run.received / MB))
            fetched += run.received
    print_table(("", "seconds", "MB received"), table)
    print(f"killed {killed} times; {fetched / MB:,.0f} MB received for layers of {image.size / MB:,.0f} MB")
    return [
        Figure(f"resume: bytes fetched ÷ the image's, {killed} kills", fetched / image.size, BAR),
        Figure("resume: archives that differ from the uninterrupted one", float(_differ(whole, resumed)), 0),
    ]


def _differ(one: Path, other: Path) -> bool:
    digests = set()
    for path in (one, other):
        with path.open("rb") as file:
            digests.add(hashlib.file_digest(file, "sha256").digest())
    return len(digests) > 1


def main(settings: Settings) -> list[Figure]:
    """Measure the image of one layer."""
    if not supports("--resume"):
        print("--resume is not there: not measured")
        return []
    with (
        stored_images("huge", scale=settings.scale) as (image,),
        tempfile.TemporaryDirectory(dir=settings.folder) as folder,
    ):
        return measure(image, settings, Path(folder))
