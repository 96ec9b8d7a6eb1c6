"""What the README shows runs, and says the truth."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

import pytest

import aiodockersave
from tests.interop.programs import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_ten_lines_run(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "readme.py").write_text(code)
    run("env", "--chdir", tmp_path, sys.executable, "readme.py", env={"PYTHONPATH": str(ROOT)})
    with tarfile.open(tmp_path / "hello.tar") as tar:
        assert "manifest.json" in tar.getnames()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_examples_are_listed() -> None:
    listed = set(re.findall(r"\(examples/(\w+\.py)\)", README))
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version = aiodockersave.__version__
    assert "## [Unreleased]" in changelog if "dev" in version else f"## [{version}]" in changelog
