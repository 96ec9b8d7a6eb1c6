"""Run the benchmarks and print their tables.

    python -m tests.benchmarks [writer] [startup] [memory]

Ratios are taken within one run, in alternating order, as medians: seconds of a shared machine mean little.
"""

from __future__ import annotations

import sys

from . import memory, startup, writer

BENCHMARKS = {"writer": writer.main, "startup": startup.main, "memory": memory.main}


def main(names: list[str]) -> None:
    for name in names or BENCHMARKS:
        print(f"── {name}")
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
