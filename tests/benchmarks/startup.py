"""The cost of an import and of ``--help``, as whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from .figures import Figure, Settings

RUNS = 15

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import asyncio": ["-c", "import asyncio"],
    "from aiodockersave import ArchiveWriter": ["-c", "from aiodockersave import ArchiveWriter"],
    "aiodockersave --help": ["-m", "aiodockersave", "--help"],
}


def run(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(settings: Settings) -> list[Figure]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            times[name].append(run(arguments) * 1000)
    bare = statistics.median(times["python -c pass"])
    print(f"whole processes, medians of {RUNS}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:44} {median:7.1f} ms   {median / bare:4.1f} times a bare Python")
    return []
