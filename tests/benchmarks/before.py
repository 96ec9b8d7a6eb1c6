"""The command beside itself as it was at an older commit, which is checked out elsewhere.

::

    git worktree add /tmp/before COMMIT
    python -m tests.benchmarks before --before /tmp/before --folder /dev/shm

Both are run by the same Python with the same libraries, in alternating order.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from .figures import Figure, Settings, print_table
from .images import stored_images
from .processes import NAME, Usage, clean_up, save_command, timed

ROOT = Path(__file__).parents[2]
TINY_ROUNDS = 8
"""Runs of a save that takes a fifth of a second for one run of a large save."""
BARS = {"large": 1.03, "huge": 1.03, "tiny": 1.05}
"""The part of the older one's time that ours may take."""


def main(settings: Settings) -> list[Figure]:
    """Measure five layers, one huge layer, and the image that lies in ``examples``."""
    if settings.before is None:
        print("not measured: --before names no checkout of an older commit")
        return []
    # Modules are compiled once, as where the package is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    codes = {"before": settings.before, "now": ROOT}
    figures: list[Figure] = []
    with (
        stored_images("large", "huge", scale=settings.scale) as images,
        tempfile.TemporaryDirectory(dir=settings.folder) as folder,
    ):
        target = Path(folder) / "target"
        cases = {
            **{name: image.reference for name, image in zip(("large", "huge"), images, strict=True)},
            "tiny": f"oci:{ROOT / 'examples' / 'hello'}",
        }
        table: list[tuple[object, ...]] = []
        for name, reference in cases.items():
            for mode in ("keep", "decompress"):
                command = save_command(reference, target, f"--layers={mode}", "--no-fsync", "--quiet")
                runs: dict[str, list[Usage]] = {code: [] for code in codes}
                for number in range(1 + settings.runs * (TINY_ROUNDS if name == "tiny" else 1)):
                    for code in codes if number % 2 else reversed(codes):
                        used = timed(command, env=environment | {"PYTHONPATH": str(codes[code])})
                        if number:  # the first one compiles
                            runs[code].append(used)
                        clean_up(target)
                ratios = {
                    what: statistics.median(getattr(run, what) for run in runs["now"])
                    / statistics.median(getattr(run, what) for run in runs["before"])
                    for what in ("seconds", "cpu")
                }
                figures.append(Figure(f"{name}, {mode}: now ÷ before", ratios["seconds"], BARS[name]))
                seconds = [statistics.median(run.seconds for run in runs[code]) for code in codes]
                fastest = [min(run.seconds for run in runs[code]) for code in codes]
                table.append((f"{name}, {mode}", *seconds, *fastest, ratios["seconds"], ratios["cpu"]))
    print(f"medians of {settings.runs}, of {settings.runs * TINY_ROUNDS} for tiny; called {NAME}")
    print_table(("seconds", "before", "now", "min before", "min now", "ratio", "CPU ratio"), table)
    return figures
