"""What the README shows runs, and says the truth."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import RawTestServer

import aiodockersave
from aiodockersave import ImageRequest, save
from aiodockersave.cli import commands
from aiodockersave.core.model import OCI_INDEX
from tests.interop.programs import TIME_LIMIT, run
from tests.interop.pushing import Entry, make_index
from tests.support.faulty_registry import FaultyRegistry
from tests.support.images import archive_of, make_image, make_layer, read_layout

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


SIX_LINES, TEN_LINES, DOWNLOAD, OWN_SOURCE = blocks("python")
(CONSOLE,) = blocks("console")
ALPINE = {
    name: make_image(make_layer({"app": name.encode()}), architecture=name) for name in ("amd64", "arm64")
}
HELLO = read_layout(ROOT / "examples" / "hello", "latest")


@pytest.fixture
async def registry() -> AsyncIterator[FaultyRegistry]:
    """A registry with the images that the README names; it answers rightly."""
    registry = FaultyRegistry({"hello:1.0": HELLO})
    entries = []
    for architecture, image in ALPINE.items():
        registry.add(f"team/app:{architecture}", image)
        entries.append(Entry(image, {"os": "linux", "architecture": architecture}))
    for name in ("team/app:1.0", "library/alpine:3.20"):
        registry.add_document(name, make_index(*entries), OCI_INDEX)
    async with registry:
        yield registry


# ── code ──


async def execute(code: str, folder: Path) -> None:
    (folder / "readme.py").write_text(code)
    argv: list[str | Path] = ["env", "--chdir", folder, sys.executable, "readme.py"]
    await asyncio.to_thread(run, *argv, env={"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"})


async def test_the_six_lines_run(registry: FaultyRegistry, tmp_path: Path) -> None:
    name = f"{registry.address}/library/alpine:3.20"
    assert SIX_LINES.count("alpine:3.20") == 1
    await execute(SIX_LINES.replace("alpine:3.20", name), tmp_path)
    with tarfile.open(tmp_path / "alpine.tar") as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest
        assert name in manifest.read().decode()


async def test_the_ten_lines_run(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    await execute(TEN_LINES, tmp_path)
    assert (tmp_path / "hello.tar").read_bytes() == await archive_of([HELLO.tagged("example.com/hello:1.0")])


async def test_a_download(registry: FaultyRegistry) -> None:
    defined: dict[str, Any] = {}
    name = f"{registry.address}/library/alpine:3.20"
    exec(DOWNLOAD.replace("alpine:3.20", name), defined)
    async with (
        defined["source"],
        RawTestServer(defined["download"]) as server,
        aiohttp.ClientSession() as client,
    ):
        url = server.make_url("/")
        async with client.get(url) as response:
            whole = await response.read()
        async with client.get(url, headers={"Range": "bytes=1000-"}) as response:
            assert (response.status, await response.read()) == (206, whole[1000:])
    assert whole == await archive_of([ALPINE["amd64"].tagged(name)])


async def test_a_source_of_your_own(registry: FaultyRegistry, tmp_path: Path) -> None:
    defined: dict[str, Any] = {}
    exec(OWN_SOURCE, defined)
    async with aiohttp.ClientSession() as session:
        source = defined["MySource"](session, f"{registry.here.url}/v2/hello")
        await save([ImageRequest(source, "1.0", ["example.com/app:1.0"])], tmp_path / "app.tar")
        with pytest.raises(NotImplementedError):
            async with source.open_blob(HELLO.layers[0].descriptor, start=1):
                pass
    assert (tmp_path / "app.tar").read_bytes() == await archive_of([HELLO.tagged("example.com/app:1.0")])


# ── commands ──


def shown(text: str) -> list[tuple[str, str]]:
    """Return the commands of a block, each with what it prints."""
    found = re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
    assert "".join(f"$ {command}\n{output}" for command, output in found) == text
    return found


def execute_command(line: str, folder: Path) -> str:
    """Run a command line in a folder; return what it prints on both outputs."""
    program, *arguments = shlex.split(line)
    assert program == "aiodockersave"
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=TIME_LIMIT,
    )
    return done.stdout.decode()


@pytest.mark.parametrize(("command", "output"), shown(CONSOLE), ids=lambda text: text.split("\n")[0][:40])
async def test_the_output_is_real(
    registry: FaultyRegistry, tmp_path: Path, command: str, output: str
) -> None:
    said = await asyncio.to_thread(
        execute_command, command.replace("localhost:5000", registry.address), tmp_path
    )
    pattern = re.escape(output.replace("localhost:5000", registry.address)).replace("…", "[0-9a-f]+")
    assert re.fullmatch(pattern, said), said


def options_of(command: str) -> set[str]:
    found = {parameter for each in commands.command.commands[command].params for parameter in each.opts}
    return {name for name in found if name.startswith("--")}


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))))
def test_options_exist(option: str) -> None:
    foreign = {"--slow", "--help"}
    assert option in options_of("save") | options_of("plan") | foreign


# ── the rest ──


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+(?:Error|Credentials|Source))\b", README))))
def test_names_are_public(name: str) -> None:
    assert name in aiodockersave.__all__


def test_examples_are_listed() -> None:
    listed = set(re.findall(r"\(examples/(\w+\.py)\)", README))
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version = aiodockersave.__version__
    assert "## [Unreleased]" in changelog if "dev" in version else f"## [{version}]" in changelog
