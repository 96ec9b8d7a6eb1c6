"""Another user of this machine: things that are his, and saves that he makes. Both need root.

A save by another user is a process: ``python -m tests.support.strangers UID DIRECTORY TARGET [resume]``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from aiodockersave import save
from tests.support.images import make_image, make_layer
from tests.support.stores import Store

STRANGER = 65534
"""The user nobody: on every system, and nothing is his."""
THIRD = 65533
LIMIT = 30.0  # seconds for a process
IMAGE = make_image(make_layer(b"layer " * 1000, None), repo_tags=["example.com/app:1.0"])

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user too")


def give(path: Path, owner: int = STRANGER) -> None:
    """Make a file, a directory or a link another user's."""
    os.chown(path, owner, owner, follow_symlinks=False)


class Ended(NamedTuple):
    """The end of a save by another user.

    Attributes:
        error: The class of what was raised; "" for nothing.
        text: What it says.
        path: The file that it names.
    """

    error: str
    text: str
    path: str


def save_as(user: int, folder: Path, target: str, *, resume: bool = False) -> Ended:
    """Save :data:`IMAGE` as another user, to a target that is relative to a folder."""
    options = ["resume"] if resume else []
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.strangers", str(user), str(folder), target, *options],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return Ended(*json.loads(ended.stdout))


def _save(target: str, *, resume: bool) -> list[str]:
    try:
        asyncio.run(save(Store({"image": IMAGE}).requests(), target, resume=resume))
    except Exception as error:
        path = getattr(error, "path", None) or getattr(error, "filename", None)
        return [type(error).__name__, str(error), str(path)]
    return ["", "", ""]


def main(user: str, folder: str, target: str, *options: str) -> None:
    """Become another user, and save."""
    resume = "resume" in options
    # Whatever a save loads is loaded as root: another user may not be allowed to read where Python is.
    with tempfile.TemporaryDirectory() as scratch:
        assert _save(f"{scratch}/a.tar", resume=resume) == ["", "", ""]
        assert _save(f"{scratch}/missing/a.tar", resume=resume)[0]
    os.chdir(folder)
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    sys.stdout.write(json.dumps(_save(target, resume=resume)))


if __name__ == "__main__":
    main(*sys.argv[1:])
