"""Each file in ``examples/`` runs as it is, and does what its first comment says."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

from .interop.programs import run

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, *arguments: str | Path) -> str:
    """Run an example and return its standard output."""
    return run(sys.executable, EXAMPLES / name, *arguments, env=environment()).decode()


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONWARNINGS": "error"}


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_every_example_is_run_here() -> None:
    here = Path(__file__)
    text = here.read_text() + (here.parent / "interop" / here.name).read_text()
    missing = [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text]
    assert missing == []


def test_write_file(tmp_path: Path) -> None:
    archive = tmp_path / "greeting.tar"
    said = example("write_file.py", archive)
    assert members(archive) == re.findall(r"^ *\d+ +\d+ (.+)$", said, re.MULTILINE)
    assert said.splitlines()[-1].split() == [str(archive.stat().st_size), str(archive)]


def test_cancel_and_go_on(tmp_path: Path) -> None:
    archive = tmp_path / "patient.tar"
    first, second, summary = example("cancel_and_go_on.py", archive).splitlines()
    assert first.endswith("False")
    assert second.endswith("True")
    assert f"{archive.stat().st_size} bytes, {len(members(archive))} members" in summary


def test_pipe_to_program_lists_the_archive() -> None:
    said = example("pipe_to_program.py")
    assert "manifest.json" in said


def test_pipe_to_program_that_leaves_early() -> None:
    """The reader's exit is no traceback."""
    said = example("pipe_to_program.py", "head", "-c", "100")
    assert len(said) == 100
