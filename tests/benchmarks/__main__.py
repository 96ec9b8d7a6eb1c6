"""Run the benchmarks and print their tables.

    python -m tests.benchmarks                                          # every one of them
    python -m tests.benchmarks speed plot --plot examples/benchmark.svg
    python -m tests.benchmarks scaling memory --save-option=--jobs=4

Ratios are taken within one run, in alternating order, as medians: seconds of a shared machine mean little. Programs that are
needed: skopeo and docker-registry. ``plot`` needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from pathlib import Path

from .figures import Figure, Settings

BENCHMARKS = {
    "writer": "put_layer from memory, beside what the processor can do",
    "startup": "imports and --help",
    "speed": "whole processes beside skopeo's: five layers, one huge layer",
    "memory": "the command's peak memory; files that it leaves room for",
    "loop": "a heartbeat on the event loop during a save",
    "resume": "killed at random moments and resumed",
    "web": "a download from a server beside a bare handler's; twenty at once",
    "scaling": "sizes, numbers of layers, jobs, latency",
    "plot": "the picture of what speed measured last; needs --plot",
    "before": "the command beside itself at an older commit; needs --before",
}
"""Modules, in the order in which ``all`` runs them."""
PROGRAMS = {
    "speed": ("skopeo", "docker-registry"),
    "memory": ("skopeo", "docker-registry"),
    "loop": ("skopeo", "docker-registry"),
    "resume": ("skopeo", "docker-registry"),
    "web": ("skopeo", "docker-registry", "curl"),
    "before": ("docker-registry",),
}
"""The programs that they need besides Python."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description="Measure; print tables, and the bars that they are held against.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:9} {what}" for name, what in BENCHMARKS.items())
        + "\n\nImages are made once and kept in $AIODOCKERSAVE_BENCHMARKS (1.2 GB), or else in the temporary directory.",
    )
    defaults = Settings()
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all of them by default, or by 'all'")
    parser.add_argument("--runs", type=int, default=defaults.runs, help="of what is timed (%(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size of images, for trying out (%(default)s)"
    )
    parser.add_argument("--save-option", dest="save_options", action="append", default=[], metavar="OPTION")
    parser.add_argument("--kills", type=int, default=defaults.kills, help="in resume (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help="of the moments of kills (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where archives are written")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the picture to draw: .svg or .png")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of an older commit")
    found = parser.parse_args(arguments)
    if unknown := set(found.names) - {*BENCHMARKS, "all"}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    found.save_options = tuple(found.save_options)
    return found


def main(arguments: list[str]) -> None:
    """Run what is named, and end with all the bars."""
    found = parse(arguments)
    settings = Settings.of(found)
    names = list(BENCHMARKS) if not found.names or "all" in found.names else found.names
    figures: list[Figure] = []
    for name in names:
        print(f"── {name} (again: {_repeat(name, settings)})", flush=True)
        if missing := [program for program in PROGRAMS.get(name, ()) if shutil.which(program) is None]:
            print(f"not measured: {' and '.join(missing)} not installed")
        else:
            figures += importlib.import_module(f".{name}", __package__).main(settings)
        print(flush=True)
    if figures:
        print("── bars")
    for figure in figures:
        print(figure)


def _repeat(name: str, settings: Settings) -> str:
    """Return the command that runs one of them with the same settings."""
    defaults = Settings()
    options = [
        f"--{option}={value}"
        for option in ("runs", "scale", "kills", "seed", "folder", "plot", "before")
        if (value := getattr(settings, option)) != getattr(defaults, option)
    ]
    options += [f"--save-option={option}" for option in settings.save_options]
    return " ".join(("python -m tests.benchmarks", name, *options))


if __name__ == "__main__":
    main(sys.argv[1:])
