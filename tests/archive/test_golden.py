"""The command writes what containers/image writes, byte for byte (``data/golden/README.md``)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aiodockersave.cli import main
from tests.interop.programs import run

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LAYOUTS = GOLDEN / "layouts"

MULTI = [
    f"oci:{LAYOUTS}/two-images-shared-base:one=example.com/golden/a:1,example.com/golden/a:latest",
    f"oci:{LAYOUTS}/two-images-shared-base:two=b:2",
    f"oci:{LAYOUTS}/small:latest=",
]
SINGLE = [
    (f"{layout}.{ref}", [f"oci:{LAYOUTS}/{layout}:{ref}=example.com/golden/{layout}:{ref}"])
    for layout, ref in (
        path.name.removesuffix(".tar").split(".")
        for path in sorted(GOLDEN.glob("expected/*.tar"))
        if path.name != "multi.tar"
    )
]
CASES = [*SINGLE, ("multi", MULTI)]


def test_every_archive_and_every_layout_is_a_case() -> None:
    assert {f"{name}.tar" for name, _ in CASES} == {path.name for path in GOLDEN.glob("expected/*")}
    assert {name.partition(".")[0] for name, _ in SINGLE} == {path.name for path in LAYOUTS.iterdir()}


@pytest.mark.parametrize(("name", "images"), CASES, ids=[name for name, _ in CASES])
def test_bytes(name: str, images: list[str], tmp_path: Path) -> None:
    expected = (GOLDEN / "expected" / f"{name}.tar").read_bytes()
    for name_of_run in ("first", "second"):
        archive = tmp_path / name_of_run
        assert main(["save", *images, "--output", str(archive), "--layers", "decompress", "--quiet"]) == 0
        assert archive.read_bytes() == expected


@pytest.mark.parametrize(("name", "images"), CASES, ids=[name for name, _ in CASES])
def test_bytes_through_a_pipe(name: str, images: list[str]) -> None:
    """A pipe cannot be written over, so layers are staged: the same bytes."""
    piped = run(sys.executable, "-m", "aiodockersave", "save", *images, "-o", "-", "--layers", "decompress")
    assert piped == (GOLDEN / "expected" / f"{name}.tar").read_bytes()


@pytest.mark.parametrize(("name", "images"), CASES, ids=[name for name, _ in CASES])
def test_two_runs_that_keep_layers_give_the_same_bytes(name: str, images: list[str], tmp_path: Path) -> None:
    archives = [tmp_path / run for run in ("first", "second")]
    for archive in archives:
        assert main(["save", *images, "--output", str(archive), "--quiet"]) == 0
    assert archives[0].read_bytes() == archives[1].read_bytes()
