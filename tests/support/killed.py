"""A save that kills itself: ``python -m tests.support.killed TARGET WAY CALL NUMBER before|after``.

CALL is a function of :mod:`os` or :mod:`fcntl`. The process ends with SIGKILL just before or after its so many'th call.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiodockersave import open_archive, save
from tests.support.images import make_image, make_layer, put
from tests.support.stores import Store

LIMIT = 30.0  # seconds for a process
IMAGE = make_image(
    *(make_layer(random.Random(number).randbytes(100_000), None) for number in range(3)),
    repo_tags=["example.com/app:1.0"],
)


async def by_open_archive(path: Path) -> None:
    """Write the image with a writer."""
    async with open_archive(path) as archive:
        await put(archive, IMAGE)


async def by_save(path: Path) -> None:
    """Save the image from a source."""
    await save(Store({"image": IMAGE}, chunk_size=10_000).requests(), path)


async def by_resumable_save(path: Path) -> None:
    """Save it so that it could go on."""
    await save(Store({"image": IMAGE}, chunk_size=10_000).requests(), path, resume=True)


WAYS = {"open_archive": by_open_archive, "save": by_save}


def run_killed(target: Path, way: str, call: str, number: int, when: str) -> int:
    """Run a save that kills itself; return how it ended, as :mod:`subprocess` does."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.killed", str(target), way, call, str(number), when],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        timeout=LIMIT,
        check=False,
    )
    return ended.returncode


def main(target: str, way: str, name: str, number: str, when: str) -> None:
    """Save, and be killed at that."""
    module = fcntl if name == "flock" else os
    original: Callable[..., Any] = getattr(module, name)
    left = int(number)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if not left and when == "before":
            die()
        result = original(*args, **kwargs)
        if not left:
            die()
        return result

    setattr(module, name, call)
    asyncio.run(WAYS[way](Path(target)))


if __name__ == "__main__":
    main(*sys.argv[1:])
