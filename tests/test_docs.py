"""The README and the documents: their code runs, and their options, links, codes and names are those of the package."""

from __future__ import annotations

import asyncio
import importlib
import inspect
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
import click
import pytest
from aiohttp.test_utils import RawTestServer

import aiodockersave
from aiodockersave import ImageRequest, Platform, Retries, Timeouts, save
from aiodockersave.cli import commands, exit_codes, json_lines
from aiodockersave.core.model import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    MAX_EXPANSION,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
)
from tests.interop.programs import TIME_LIMIT, run
from tests.interop.pushing import Entry, make_index
from tests.support.faulty_registry import FaultyRegistry
from tests.support.images import Image, archive_of, make_image, make_layer, read_layout

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# The documents that people read, by their path in the repository.
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
PROSE = "\n".join(DOCUMENTS.values())
COMMAND_LINE = DOCUMENTS["docs/command-line.md"]
API = DOCUMENTS["docs/api.md"]
MAX_WORDS = 1_500  # of the README: what a newcomer reads before trying it


def blocks(language: str, text: str = PROSE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a text: rows of cells, without the head."""
    found = re.findall(r"^\|.*\n\|(?: --- \|)+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
        for table in found
    ]


PYTHON = [(name, code) for name, text in DOCUMENTS.items() for code in blocks("python", text)]
(SIX_LINES,) = blocks("python", README)
TEN_LINES, OWN_SINK = blocks("python", DOCUMENTS["docs/sinks.md"])
(DOWNLOAD,) = blocks("python", DOCUMENTS["docs/web.md"])
(OWN_SOURCE,) = blocks("python", DOCUMENTS["docs/sources.md"])
CONSOLE = "".join(blocks("console"))
ALPINE = {
    name: make_image(make_layer({"app": name.encode()}), architecture=name) for name in ("amd64", "arm64")
}
DOCKER_TYPES = {OCI_MANIFEST: DOCKER_MANIFEST, OCI_CONFIG: DOCKER_CONFIG, OCI_LAYER_GZIP: DOCKER_LAYER_GZIP}
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


def test_all_code_is_run() -> None:
    assert {code for _, code in PYTHON} == {SIX_LINES, TEN_LINES, OWN_SINK, DOWNLOAD, OWN_SOURCE}


@pytest.mark.parametrize(("document", "code"), PYTHON, ids=[name for name, _ in PYTHON])
def test_code_compiles(document: str, code: str) -> None:
    compile(code, document, "exec")


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


@pytest.mark.parametrize(
    ("name", "tag", "image"),
    [
        ("hello", "1.0", HELLO),
        ("team/app", "1.0", ALPINE["amd64"]),
        ("team/app", "docker", ALPINE["amd64"]),
    ],
    ids=["manifest", "index", "Docker's manifest"],
)
async def test_a_source_of_your_own(
    registry: FaultyRegistry, tmp_path: Path, name: str, tag: str, image: Image
) -> None:
    docker = ALPINE["amd64"].manifest_bytes
    for oci_type, docker_type in DOCKER_TYPES.items():
        docker = docker.replace(oci_type.encode(), docker_type.encode())
    registry.add_document("team/app:docker", docker, DOCKER_MANIFEST)
    defined: dict[str, Any] = {}
    exec(OWN_SOURCE, defined)
    async with aiohttp.ClientSession() as session:
        source = defined["MySource"](session, f"{registry.here.url}/v2/{name}")
        request = ImageRequest(source, tag, ["example.com/app:1.0"])
        await save(request, tmp_path / "app.tar", platform=Platform("linux", "amd64"))
        with pytest.raises(NotImplementedError):
            async with source.open_blob(HELLO.layers[0].descriptor, start=1):
                pass
        with pytest.raises(aiohttp.ClientResponseError, match="404"):
            await save(ImageRequest(source, "none"), tmp_path / "none.tar")
    assert (tmp_path / "app.tar").read_bytes() == await archive_of([image.tagged("example.com/app:1.0")])


async def test_a_sink_of_your_own() -> None:
    defined: dict[str, Any] = {}
    exec(OWN_SINK, defined)
    async with defined["archive"] as archive:
        layer = await archive.put_layer(HELLO.layers[0].blob, HELLO.layers[0].descriptor)
        await archive.put_image(HELLO.config, [layer])
    assert archive.report.size == len(await archive_of([HELLO.tagged()]))


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


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text))


# Options of other programs, by the document that shows them.
FOREIGN_OPTIONS = {
    "README.md": {"--cache_path"},
    "docs/contributing.md": {"--slow"},
    "docs/performance.md": {"--plot", "--save-option"},
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_exist(document: str) -> None:
    foreign = FOREIGN_OPTIONS.get(document, set())
    shown_here = options_in(DOCUMENTS[document])
    assert shown_here - foreign <= set().union(*map(options_of, commands.command.commands))
    assert foreign <= shown_here


def test_options_are_documented() -> None:
    both, of_save, of_plan = tables(section(COMMAND_LINE, "Options"))
    shared = options_of("save") & options_of("plan")
    for table, wanted in (
        (both, shared),
        (of_save, options_of("save") - shared),
        (of_plan, options_of("plan") - shared),
    ):
        assert options_in("\n".join(row[0] for row in table)) == wanted


def test_options_of_logins_are_documented() -> None:
    text = section(COMMAND_LINE, "Log in")
    (of_login,) = tables(text)
    assert options_in("\n".join(row[0] for row in of_login)) == options_of("login")
    (of_logout,) = re.findall(r"^`logout` takes .+$", text, re.MULTILINE)
    assert options_in(of_logout) == options_of("logout")


def test_every_command_is_documented() -> None:
    synopsis, *_ = re.findall(r"^```\n(.*?)^```$", COMMAND_LINE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^aiodockersave (\w+) ", synopsis, re.MULTILINE) == list(commands.command.commands)


def section(text: str, heading: str) -> str:
    """Return a section of a document: from its heading to the next one of the second level."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_variables_are_those_of_options() -> None:
    known = {
        parameter.envvar
        for each in commands.command.commands.values()
        for parameter in each.params
        if parameter.envvar
    }
    of_tests = {"AIODOCKERSAVE_BENCHMARKS", "AIODOCKERSAVE_REQUIRE_INTEROP"}
    assert set(re.findall(r"\bAIODOCKERSAVE_[A-Z_]+", PROSE)) - of_tests <= known


def test_exit_codes_are_documented() -> None:
    (codes,) = tables(section(COMMAND_LINE, "Exit codes"))
    in_code = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    in_code |= {0} | {exit_codes.SIGNAL + number for number in exit_codes.ENDING}
    documented = [int(code) for code, _ in codes]
    assert documented == sorted(in_code - {exit_codes.SIGNAL})
    assert documented == [
        int(code) for code in re.findall(r"^(\d+) ", exit_codes.__doc__ or "", re.MULTILINE)
    ]
    assert click.UsageError.exit_code == exit_codes.WRONG_USE


def test_limits_are_documented() -> None:
    retries, timeouts = Retries(), Timeouts()
    faults = section(DOCUMENTS["docs/registries.md"], "Faults")
    for shown_limit in (
        f"nothing comes for {timeouts.silence:g} s",
        f"after {retries.min_delay:g} to {retries.max_delay:g} s",
        f"until {retries.attempts} attempts in a row",
        f"`Retry-After` is kept, up to {retries.retry_after_limit:g} s",
        f"`Retry-After` of more than {retries.retry_after_limit:g} s",
        f"headers take more than {timeouts.head:g} s",
        f"more than {timeouts.document:g} s, or comes with less than {timeouts.document_rate / 1024:g} KiB/s",
    ):
        assert shown_limit in faults
    memory = section(DOCUMENTS["docs/guarantees.md"], "Memory and disk")
    assert f"{MAX_EXPANSION:,} times" in memory
    options = inspect.signature(save).parameters
    assert f"{options['stage_memory'].default >> 20} MiB in memory" in memory
    assert f"from 1 to 64; by default {options['jobs'].default} |" in COMMAND_LINE


def test_json_events_are_documented() -> None:
    (events,) = tables(section(COMMAND_LINE, "Progress"))
    documented = [row[0].strip("`") for row in events]
    assert sorted(documented) == sorted([*json_lines._NAMES.values(), "message", "error"])


# ── the API ──

PUBLIC_MODULES = {
    "aiodockersave",
    "aiodockersave.documents",
    "aiodockersave.errors",
    "aiodockersave.model",
    "aiodockersave.sources.credentials",
    "aiodockersave.sources.registry",
    "aiodockersave.web.aiohttp",
    "aiodockersave.web.asgi",
}


def public_names(module: str) -> set[str]:
    found = importlib.import_module(module)
    return set(getattr(found, "__all__", [name for name in vars(found) if not name.startswith("_")]))


def documented_names() -> dict[str, list[str]]:
    """Return the names in tables and in the tree of errors, by the module under whose heading they stand."""
    found: dict[str, list[str]] = {}
    for heading, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", API, re.MULTILINE | re.DOTALL):
        module = heading.strip("`") if heading.startswith("`") else "aiodockersave"
        cells = [row[0] for table in tables(text) for row in table]
        cells += re.findall(r"^ *\* (`\w+`)", text, re.MULTILINE)
        found.setdefault(module, []).extend(name for cell in cells for name in re.findall(r"`(\w+)`", cell))
    return found


def mentioned_names(module: str) -> set[str]:
    """Return the names in the sentence that tells what a module has besides its table."""
    text = section(API, f"`{module}`")
    sentence = re.search(r"^(?:Also has|Has) (.+)\.$", text, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", sentence[1])) if sentence else set()


def test_the_api_has_every_public_name_once() -> None:
    documented = documented_names()
    assert {*documented, "aiodockersave.errors"} == PUBLIC_MODULES
    for module, names in documented.items():
        assert len(names) == len(set(names)), module
        also = mentioned_names(module) if module != "aiodockersave" else set()
        assert not also & set(names), module
        assert {*names, *also} == public_names(module), module


def test_errors_have_the_tree_of_the_api() -> None:
    lines = re.findall(r"^( *)\* `(\w+)`(?: \(`(\w+)`\))?", section(API, "Errors"), re.MULTILINE)
    public = public_names("aiodockersave.errors")
    assert {name for _, name, _ in lines} == public
    above = ["Exception"]
    for indent, name, builtin in lines:
        cls = getattr(aiodockersave, name)
        depth = len(indent) // 2 + 1
        # Classes in between that are not public do not stand in the tree.
        parent = next(each.__name__ for each in cls.__mro__[1:] if each.__name__ in {*public, "Exception"})
        assert parent == above[depth - 1], name
        builtins_of = {each.__name__ for each in cls.__bases__ if each.__module__ == "builtins"} - {
            "Exception"
        }
        assert builtins_of == ({builtin} if builtin else set()), name
        above[depth:] = [name]


def test_the_architecture_names_the_public_modules() -> None:
    paragraph = DOCUMENTS["docs/architecture.md"].rpartition("Public names are")[2]
    short = {f"aiodockersave{name}" for name in re.findall(r"`(\.[a-z.]+)`", paragraph)}
    full = set(re.findall(r"`(aiodockersave(?:\.\w+)*)`", paragraph))
    assert short | full == PUBLIC_MODULES


# Names of others: Python, and aiohttp.
FOREIGN_NAMES = {
    "ImportError", "LookupError", "NotImplementedError", "OSError", "RuntimeError", "StreamResponse", "ValueError",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`(\w+(?:Error|Credentials|Source|Response))\b", PROSE)))
)
def test_names_are_public(name: str) -> None:
    assert name in {name for module in PUBLIC_MODULES for name in public_names(module)} | FOREIGN_NAMES


# ── links ──


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = sorted(
    {
        (document, target)
        for document, text in DOCUMENTS.items()
        for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", text)
    }
)


@pytest.mark.parametrize(("document", "target"), LINKS)
def test_links_lead_somewhere(document: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (ROOT / document).parent / path if path else ROOT / document
    assert found.resolve().is_relative_to(ROOT)
    assert found.is_file()
    assert not anchor or anchor in anchors(found.read_text())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(\.?\w+/[\w./]+)`", PROSE))))
def test_paths_are_there(path: str) -> None:
    """Files of the repository, or modules as the architecture names them: from the package on."""
    assert (ROOT / path).exists() or (ROOT / "aiodockersave" / path).exists()


def test_every_document_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for document, target in LINKS if document == "README.md"}
    assert linked >= {name for name in DOCUMENTS if name != "README.md"}


# ── the rest ──


def test_the_readme_is_short() -> None:
    assert len(README.split()) < MAX_WORDS


@pytest.mark.parametrize("marker", ["first command", "test command"])
def test_the_readme_has_the_commands_that_ci_runs(marker: str) -> None:
    assert len(re.findall(rf"^<!-- {marker} -->\n\n```sh\n.+\n```$", README, re.MULTILINE)) == 1


def test_examples_are_listed() -> None:
    listed = set(re.findall(r"\(examples/(\w+\.py)\)", README))
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version = aiodockersave.__version__
    assert "## [Unreleased]" in changelog if "dev" in version else f"## [{version}]" in changelog
