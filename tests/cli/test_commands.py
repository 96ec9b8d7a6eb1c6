"""The command line inside this process: arguments, output on both streams, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
import pytest

from aiodockersave import Digest, OciLayoutSource, ResolvedImage, Wait, __version__, cli
from aiodockersave.cli.commands import command
from aiodockersave.cli.image_argument import LayoutImage, RegistryImage, parse_image, read_images
from aiodockersave.cli.printing import printable
from aiodockersave.cli.reporters import Reporter
from aiodockersave.core.errors import InvalidInputError, MissingDependencyError
from aiodockersave.core.model import Descriptor
from aiodockersave.pipeline import waiting
from tests.support.images import make_image, make_layer, write_layout

HEX = "0123456789abcdef" * 4
BASE = make_layer({"etc/name": b"base\n"})
IMAGE = make_image(BASE, make_layer({"app": b"app\n"}, "zstd"))
OTHER = make_image(BASE)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    folder = tmp_path / "layout"
    folder.mkdir()
    return write_layout(folder, {"one": IMAGE, "two": OTHER})


class Result:
    """The outcome of a command line.

    Attributes:
        code: The exit code.
        out: What was printed on standard output.
        lines: The lines on standard error.
    """

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.lines = err.splitlines()


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Result:
        code = cli.main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


# ── IMAGE ──


IMAGES: list[tuple[str, set[str], LayoutImage]] = [
    # argument, directories that are there, how it is read
    ("oci:dir", set(), LayoutImage("dir")),
    ("oci:dir", {"dir"}, LayoutImage("dir")),
    ("oci:/a/b.c/dir", set(), LayoutImage("/a/b.c/dir")),
    ("oci:.", {"."}, LayoutImage(".")),
    ("oci:dir:ref", set(), LayoutImage("dir", "ref")),
    ("oci:dir:", set(), LayoutImage("dir")),
    ("oci:./a/dir:1.0-rc_1", {"./a/dir"}, LayoutImage("./a/dir", "1.0-rc_1")),
    ("oci:/data/12:30/dir:ref", {"/data/12:30/dir"}, LayoutImage("/data/12:30/dir", "ref")),
    ("oci:/data/12:30/dir", {"/data/12:30/dir"}, LayoutImage("/data/12:30/dir")),
    ("oci:a:b:c", set(), LayoutImage("a:b", "c")),
    ("oci:a:b:c", {"a:b"}, LayoutImage("a:b", "c")),
    (f"oci:dir@sha256:{HEX}", {"dir"}, LayoutImage("dir", f"sha256:{HEX}")),
    (f"oci:dir:sha256:{HEX}", {"dir"}, LayoutImage("dir", f"sha256:{HEX}")),
    (f"oci:a@b/dir@sha512:{HEX}{HEX}", set(), LayoutImage("a@b/dir", f"sha512:{HEX}{HEX}")),
    ("oci:sha256:1/dir", {"sha256:1/dir"}, LayoutImage("sha256:1/dir")),
    # tags
    ("oci:dir=a", set(), LayoutImage("dir", "", ("a",))),
    ("oci:dir:ref=a/b:1", set(), LayoutImage("dir", "ref", ("a/b:1",))),
    ("oci:dir=a:1,localhost:5000/b:2", {"dir"}, LayoutImage("dir", "", ("a:1", "localhost:5000/b:2"))),
    ("oci:dir=", set(), LayoutImage("dir", "", ())),
    ("oci:dir:ref=", set(), LayoutImage("dir", "ref", ())),
    (f"oci:dir@sha256:{HEX}=a:1", {"dir"}, LayoutImage("dir", f"sha256:{HEX}", ("a:1",))),
    ("oci:a=b=c:1", set(), LayoutImage("a=b", "", ("c:1",))),
    ("oci:a=b=", {"a=b"}, LayoutImage("a=b", "", ())),
    ("oci:a=b:ref=c:1", {"a=b"}, LayoutImage("a=b", "ref", ("c:1",))),
    # written out, whatever directories there are
    ("oci:dir::ref", {"dir:", "dir", "dir::ref"}, LayoutImage("dir", "ref")),
    ("oci:dir::example.com/app:1.0", {"dir::example.com/app"}, LayoutImage("dir", "example.com/app:1.0")),
    ("oci:a:b::", {"a"}, LayoutImage("a:b")),
    ("oci:a::b::ref", {"a"}, LayoutImage("a::b", "ref")),
    ("oci:a::=b", {"a::=b", "a=b"}, LayoutImage("a", "", ("b",))),
    ("oci:a=b::ref=", {"a"}, LayoutImage("a=b", "ref", ())),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "directories", "expected"),
    IMAGES,
    ids=[f"{text}{sorted(directories) or ''}" for text, directories, _ in IMAGES],
)
def test_image(text: str, directories: set[str], expected: LayoutImage) -> None:
    image = parse_image(text, directories.__contains__)
    assert image == expected
    everything = parse_image(expected.written_out(), lambda _: True)
    assert isinstance(everything, LayoutImage)
    assert (everything.directory, everything.reference) == (expected.directory, expected.reference)
    assert everything.tags == (expected.tags if "=" not in expected.directory else expected.tags or ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpine", RegistryImage("alpine")),
        ("docker://alpine:3.20", RegistryImage("alpine:3.20")),
        ("localhost:5000/a/b:1", RegistryImage("localhost:5000/a/b:1")),
        ("alpine:3.20=x:1,y", RegistryImage("alpine:3.20", ("x:1", "y"))),
        ("alpine=", RegistryImage("alpine", ())),
        (f"app@sha256:{HEX}=app:1", RegistryImage(f"app@sha256:{HEX}", ("app:1",))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_image_in_a_registry(text: str, expected: RegistryImage) -> None:
    assert parse_image(text, lambda _: True) == expected


AMBIGUOUS = [
    # a name as skopeo's users put it, or a directory with a colon
    ("oci:dir:example.com/app:1.0", {"dir"}, ["oci:dir::example.com/app:1.0"]),
    ("oci:dir:app/x", {"dir"}, ["oci:dir::app/x"]),
    ("oci:dir:app/x", {"dir", "dir:app/x"}, ["oci:dir:app/x::", "oci:dir::app/x"]),
    ("oci:a:b", {"a", "a:b"}, ["oci:a::b", "oci:a:b::"]),
    ("oci:a:b", {"a:b"}, ["oci:a:b::"]),
    ("oci:a:b=c:1", {"a:b"}, ["oci:a:b::=c:1"]),
    # an equals sign in a directory, or a tag
    ("oci:a=b", {"a=b"}, ["oci:a=b::="]),
    ("oci:a=b", {"a", "a=b"}, ["oci:a::=b", "oci:a=b::="]),
    ("oci:a=b:1", {"a", "a=b"}, ["oci:a::=b:1", "oci:a=b::1="]),
    ("oci:a=B/layout", {"a=B/layout"}, ["oci:a=B/layout::="]),
]


@pytest.mark.parametrize(
    ("text", "directories", "ways"), AMBIGUOUS, ids=[f"{text}{sorted(names)}" for text, names, _ in AMBIGUOUS]
)
def test_an_image_that_can_be_read_in_several_ways(text: str, directories: set[str], ways: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_image(text, directories.__contains__)
    assert str(caught.value) == f"it can be read in several ways; write {' or '.join(ways)}"
    read = [parse_image(way, lambda _: True) for way in ways]
    assert {image.directory for image in read if isinstance(image, LayoutImage)} == directories


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("=a:1", "it is empty"),
        ("./layout", "an OCI image layout is written oci:./layout"),
        ("/layout", "an OCI image layout is written oci:/layout"),
        ("alpine:3.20=x:1=y:1", "invalid reference"),
        ("alpine=UPPER", "must be lowercase"),
        ("docker-archive:file.tar", "docker-archive: is not supported; use oci:DIR[:REF]"),
        ("docker-daemon:alpine:3.20", "docker-daemon: is not supported"),
        ("oci-archive:file.tar", "oci-archive: is not supported; unpack the tar"),
        ("oci:", "the directory is missing"),
        ("oci::ref", "the directory is missing"),
        ("oci:=a:1", "the directory is missing"),
        ("oci:dir=UPPER", "must be lowercase (if '=' belongs to the directory, write oci:dir=UPPER=)"),
        ("oci:dir=a:1,", "it is empty"),
        ("oci:dir=a:1,,b:2", "it is empty"),
        (f"oci:dir=a@sha256:{HEX}", "cannot have a digest"),
        ("oci:dir=a b", "white space"),
    ],
)
def test_no_image(text: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(reason)):
        parse_image(text, lambda _: False)


# ── usage ──


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Usage: aiodockersave [OPTIONS] COMMAND"),
        (["load"], "No such command 'load'"),
        (["save"], "Missing argument 'IMAGE...'"),
        (["save", "oci:x"], "Missing option '-o' / '--output'"),
        (["save", "oci:x", "-o", ""], "-o takes the name of a file"),
        (["save", "oci:x", "-o", "folder/"], "-o takes the name of a file"),
        (["save", "Alpine", "-o", "x"], "must be lowercase"),
        (["save", "alpine", "-o", "x", "--ca-file", "."], "'.' is a directory"),
        (["save", "oci:x", "-o", "x", "--layers", "squash"], "'squash' is not one of"),
        (["save", "oci:x", "-o", "x", "--format", "tar"], "'tar' is not"),
        (["save", "oci:x", "-o", "x", "--platform", "linux"], "write os/architecture[/variant]"),
        (["save", "oci:x", "-o", "x", "--fast"], "No such option"),
        (["save", "oci:x", "-o", "x", "--jobs", "0"], "0 is not in the range 1<=x<=64"),
        (["save", "oci:x", "-o", "-", "--resume"], "--resume is for a file"),
        (["save", "oci:x", "-o", "x", "--resume", "--layers", "decompress"], "--resume needs --layers keep"),
        (["save", "oci:x", "-o", "x", "--restart"], "--restart is for --resume"),
        (
            ["save", "oci:x", "-o", "x", "--format", "oci", "--layers", "decompress"],
            "--format oci keeps the manifest and its digest",
        ),
        (["save", "alpine", "-o", "x", "--mirror", "mirror.example"], "no URL of a mirror"),
        (["plan", "alpine", "--mirror", "https://me:s3cret@m"], "come from the credentials"),
        (["save", "oci:x=\x1b[31m", "-o", "x"], "oci:x=\\x1b[31m"),
        (["plan"], "Missing argument 'IMAGE...'"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_usage(run: Run, arguments: list[str], reason: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert reason in "\n".join(result.lines)
    assert all(printable(line) == line for line in result.lines)


LISTS: list[tuple[bytes, list[str] | str]] = [
    # the file, and the names of its images, or the reason why there are none
    (b"alpine:3.20\nteam/app:1=a:1,b:2\n", ["alpine:3.20", "team/app:1"]),
    (b"# all of them\n\n  alpine:3.20 \t\r\nteam/app:1 # the newest\n#end", ["alpine:3.20", "team/app:1"]),
    (b"\xef\xbb\xbfalpine:3.20", ["alpine:3.20"]),
    (b"oci:dir#1:ref\n", ["oci:dir#1:ref"]),
    (b"", "lists no image"),
    (b"# none\n\n", "lists no image"),
    (b"alpine\n\nUpper:1\n", ", line 3: "),
    (b"@other.txt\n", ", line 1: "),
    (b"\xff\xfe", "not text in UTF-8"),
    (b"a:1\n" * 300_000, "more than 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "expected"), LISTS, ids=[repr(content[:20]) for content, _ in LISTS])
def test_a_list_of_images(content: bytes, expected: list[str] | str, tmp_path: Path) -> None:
    path = tmp_path / "images.txt"
    path.write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(InvalidInputError) as caught:
            read_images([f"@{path}"])
        assert str(caught.value).startswith(str(path))
        assert expected in str(caught.value)
    else:
        around = ["debian:12", f"@{path}", "busybox"]
        assert [str(image) for image in read_images(around)] == ["debian:12", *expected, "busybox"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("@nowhere.txt", "nowhere.txt: No such file"),
        ("@.", ".: Is a dir"),
        ("@", "the name of the list is missing"),
    ],
)
def test_a_list_that_cannot_be_read(run: Run, argument: str, reason: str) -> None:
    result = run("plan", argument)
    assert (result.code, result.out) == (2, "")
    assert f"Error: Invalid value for 'IMAGE...': {reason}" in result.lines[-1]


def test_a_list_on_standard_input(layout: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "aiodockersave", "plan", "@-", "--json"],
        input=f"oci:{layout}:one=a:1\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(result.stdout)["images"][0]["repo_tags"] == ["docker.io/library/a:1"]


@pytest.mark.parametrize(
    "arguments", [["--progress", "json"], ["--progress=json"], []], ids=["two", "one", "variable"]
)
def test_wrong_use_is_json_where_progress_is(
    run: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not arguments:
        monkeypatch.setenv("AIODOCKERSAVE_PROGRESS", "json")
    result = run("save", *arguments, "a:1", "--jobs", "0", "-o", "a.tar")
    (line,) = result.lines
    error = json.loads(line)
    message = error.pop("message")
    assert (result.code, result.out) == (2, "")
    assert error == {"event": "error", "exit_code": 2, "traceback": None}
    assert "0 is not in the range 1<=x<=64" in message


def test_all_ways_to_ask_for_help(run: Run) -> None:
    whole, of_save = run("--help"), run("save", "--help")
    assert of_save.out.startswith("Usage: aiodockersave save")
    for arguments, expected in (
        (["-h"], whole),
        (["help"], whole),
        (["save", "-h"], of_save),
        (["help", "save"], of_save),
    ):
        assert run(*arguments).out == expected.out
    result = run("help", "sail")
    assert (result.code, result.out) == (2, "")
    assert "there is no command 'sail'" in result.lines[-1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "aiodockersave"],
        env=os.environ | {"_AIODOCKERSAVE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"_AIODOCKERSAVE_COMPLETE={shell}_complete" in script.stdout


def test_help_and_version(run: Run) -> None:
    result = run("--help")
    assert (result.code, result.lines) == (0, [])
    assert {"plan", "save"} < set(result.out.split())
    result = run("--version")
    assert (result.code, result.out, result.lines) == (0, f"aiodockersave {__version__}\n", [])


@pytest.mark.parametrize("name", sorted(command.commands))
def test_every_option_has_its_variable(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.code == 0
    options = [each for each in command.commands[name].params if isinstance(each, click.Option)]
    for option in options:
        long = next(each for each in option.opts if each.startswith("--"))
        assert option.envvar == "AIODOCKERSAVE_" + long[2:].upper().replace("-", "_")
        assert str(option.envvar) in result.out


def test_help_loads_no_library_but_click() -> None:
    code = (
        "import sys; sys.argv = ['aiodockersave', '--help']\n"
        "try:\n    from aiodockersave.__main__ import main; main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.startswith("Usage: aiodockersave")
    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert not loaded & {"asyncio", "anyio", "aiofiles", "rich", "aiohttp"}


def test_without_aiohttp_a_registry_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None; sys.argv = ['aiodockersave', 'plan', 'localhost:1/a']\n"
        "from aiodockersave.__main__ import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"aiodockersave: {MissingDependencyError('a registry as a source', 'registry')}\n"


# ── save ──


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_save_says_what_was_saved(run: Run, layout: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    result = run("save", f"oci:{layout}:one=a:1", f"oci:{layout}:two=b:2", "-o", path)
    assert (result.code, result.out) == (0, "")
    assert f"{IMAGE.image_id.encoded}.json" in members(path)
    reused, *progress, last = result.lines
    assert re.fullmatch(rf"{path}: {path.stat().st_size} bytes, image sha256:[0-9a-f]{{64}} .*", last)
    for image in (IMAGE, OTHER):
        assert f"image {image.image_id} (manifest {image.manifest.digest})" in last
    result = run("save", f"oci:{layout}:one=a:1", "-o", path, "--checksum")
    assert f": {path.stat().st_size} bytes, {Digest.of(path.read_bytes())}, image " in result.lines[-1]
    shown = [
        f"layer {i}/2  {layer.descriptor.digest!s:.19}  {len(layer.blob)} B"
        for i, layer in enumerate(IMAGE.layers, 1)
    ]
    assert (
        reused == f"  0%  layer 1/2  {BASE.descriptor.digest!s:.19}  is there more than once, and stored once"
    )
    assert sorted(line[6:] for line in progress) == shown  # two are read at once: which is in first is open
    assert progress[-1].startswith("100%")


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], 4),
        (["--progress", "plain"], 4),
        (["--progress", "none"], 2),
        (["--quiet"], 0),
        (["--quiet", "--progress", "plain"], 0),
    ],
    ids=["default", "plain", "none", "quiet", "quiet and plain"],
)
def test_options_decide_how_many_lines_are_printed(
    run: Run, layout: Path, tmp_path: Path, options: list[str], lines: int
) -> None:
    """The last two lines are the notice of a missing name, and the summary."""
    result = run("save", f"oci:{layout}:one", "-o", tmp_path / "a.tar", *options)
    assert (result.code, len(result.lines)) == (0, lines)
    if lines:
        assert f"write oci:{layout}:one=NAME:TAG" in result.lines[-2]


def test_no_name_on_purpose_is_not_noticed(run: Run, layout: Path, tmp_path: Path) -> None:
    result = run("save", f"oci:{layout}:one=", "-o", tmp_path / "a.tar", "--progress", "none")
    assert (result.code, len(result.lines)) == (0, 1)


def test_standard_output_carries_data_only(capfdbinary: pytest.CaptureFixture[bytes], layout: Path) -> None:
    assert cli.main(["save", f"oci:{layout}:one", "-o", "-"]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out.endswith(bytes(1024))
    assert captured.err.splitlines()[-1].startswith(b"standard output: %d bytes" % len(captured.out))


def test_options_by_variable(run: Run, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIODOCKERSAVE_OUTPUT", str(tmp_path / "a.tar"))
    monkeypatch.setenv("AIODOCKERSAVE_LAYERS", "decompress")
    monkeypatch.setenv("AIODOCKERSAVE_QUIET", "1")
    result = run("save", f"oci:{layout}:two")
    assert (result.code, result.lines) == (0, [])
    assert f"{BASE.diff_id.encoded}.tar" in members(tmp_path / "a.tar")


FOR_S390X = make_image(BASE, architecture="s390x")


def test_platform(run: Run, layout: Path) -> None:
    layout = write_layout(layout, {"one": IMAGE, "two": FOR_S390X})
    index = json.loads((layout / "index.json").read_bytes())
    for entry, architecture in zip(index["manifests"], ("amd64", "s390x"), strict=True):
        entry["platform"] = {"os": "linux", "architecture": architecture}
    inner = json.dumps(index).encode()
    digest = Digest.of(inner)
    (layout / "blobs" / "sha256" / digest.encoded).write_bytes(inner)
    index["manifests"] = [{"mediaType": index["mediaType"], "digest": str(digest), "size": len(inner)}]
    (layout / "index.json").write_text(json.dumps(index))
    for platform, image in (("linux/amd64", IMAGE), ("linux/s390x", FOR_S390X)):
        assert str(image.manifest.digest) in run("plan", f"oci:{layout}", "--platform", platform).out
    result = run("plan", f"oci:{layout}", "--platform", "linux/riscv64")
    assert (result.code, len(result.lines)) == (4, 1)
    reason = "no image for platform linux/riscv64; there are: linux/amd64, linux/s390x"
    assert result.lines[0] == f"aiodockersave: {reason} (image oci:{layout})"


@pytest.fixture
def on_riscv64(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname_result(("Linux", "host", "6", "#1", "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: name)
    monkeypatch.delenv("AIODOCKERSAVE_PLATFORM", raising=False)


@pytest.mark.parametrize("arguments", [["save", "-o", "{path}"], ["plan"]], ids=["save", "plan"])
def test_another_platform_than_was_asked_for(
    run: Run, layout: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    image = f"oci:{layout}:one=a:1"
    arguments = [*(word.format(path=path) for word in arguments), image, "--platform", "linux/riscv64"]
    result = run(*arguments, "--quiet")
    assert (result.code, result.out, len(result.lines)) == (4, "", 1)
    assert "no image for platform linux/riscv64; there are: linux/amd64; " in result.lines[0]
    assert "--allow-other-platform" in result.lines[0]
    assert not path.exists()
    warning = f"aiodockersave: image oci:{layout}:one is for linux/amd64, not for linux/riscv64; it is taken all the same"
    result = run(*arguments, "--allow-other-platform")
    assert (result.code, result.lines.count(warning)) == (0, 1)
    monkeypatch.setenv("AIODOCKERSAVE_ALLOW_OTHER_PLATFORM", "1")
    result = run(*arguments, "--quiet")
    assert (result.code, result.lines) == (0, [])


@pytest.mark.usefixtures("on_riscv64")
def test_another_platform_than_this_machines_is_said(run: Run, layout: Path, tmp_path: Path) -> None:
    save = ("save", f"oci:{layout}:one=a:1", "-o", tmp_path / "a.tar")
    message = (
        f"image oci:{layout}:one is for linux/amd64, not for linux/riscv64, which is this machine's platform; "
        "it is taken all the same"
    )
    result = run(*save)
    assert (result.code, result.lines[0]) == (0, f"aiodockersave: {message}")
    result = run(*save, "--progress", "json")
    assert json.loads(result.lines[0]) == {"event": "message", "level": "warning", "message": message}
    assert run(*save, "--quiet").lines == []
    assert (
        run(*save, "--platform", "linux/amd64", "--progress", "none")
        .lines[0]
        .startswith(f"{tmp_path}/a.tar: ")
    )
    result = run("plan", f"oci:{layout}:one=a:1")
    assert (result.code, result.lines) == (0, [f"aiodockersave: {message}"])


FAILURES = [
    ("oci:{layout}", "several, of which one must be named; there are: one, two"),
    ("oci:{layout}:three", "none of that name; there are: one, two"),
    ("oci:{layout}/nowhere", "no OCI image layout"),
]


@pytest.mark.parametrize(("image", "reason"), FAILURES, ids=[image for image, _ in FAILURES])
@pytest.mark.parametrize("verbose", [False, True], ids=["", "verbose"])
def test_failure_is_one_line(
    run: Run, layout: Path, tmp_path: Path, image: str, reason: str, verbose: bool
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    image = image.format(layout=layout)
    result = run("save", image, "-o", path, *(["--verbose"] if verbose else []))
    assert (result.code, result.out) == (4, "")
    assert result.lines[0].startswith(f"aiodockersave: image {image} not found: ")
    assert reason in result.lines[0]
    assert all(line.startswith("  caused by ") for line in result.lines[1:])
    assert verbose or len(result.lines) == 1
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("option", ["--authfile", "--ca-file", "--cert-dir"])
def test_a_file_that_is_not_there_is_found_at_once(run: Run, option: str) -> None:
    result = run("save", "127.0.0.1:1/a", "-o", "a.tar", option, "nowhere")
    assert (result.code, result.out) == (2, "")
    assert f"Invalid value for '{option}'" in result.lines[-1]
    assert result.lines[-1].endswith("'nowhere' does not exist.")


@pytest.mark.parametrize(
    ("name", "is_warned"), [("a.tar.gz", True), ("a.tzst", True), ("a.tar", False), ("gz", False)]
)
def test_a_name_that_promises_compression(
    run: Run, layout: Path, tmp_path: Path, name: str, is_warned: bool
) -> None:
    result = run("save", f"oci:{layout}:one=a:1", "-o", tmp_path / name)
    assert result.code == 0
    assert any("will not be compressed" in line for line in result.lines) == is_warned
    assert tarfile.is_tarfile(tmp_path / name)


@pytest.mark.parametrize("arguments", [["plan"], ["save", "--progress", "plain", "-o"]], ids=["plan", "save"])
def test_a_long_wait_is_told(
    run: Run, layout: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    resolve = OciLayoutSource.resolve

    def waits(_: OciLayoutSource) -> list[Wait]:
        looked.append(1)
        return [Wait("manifest a", "no answer yet", 2.0, 90.0)]

    async def slow(self: OciLayoutSource, *asked: Any) -> ResolvedImage:
        while not looked:
            await asyncio.sleep(0.001)
        return await resolve(self, *asked)

    monkeypatch.setattr(waiting, "INTERVAL", 0.001)
    monkeypatch.setattr(OciLayoutSource, "waits", waits, raising=False)
    monkeypatch.setattr(OciLayoutSource, "resolve", slow)
    target = [tmp_path / "a.tar"] if "save" in arguments else []
    result = run(*arguments, *target, f"oci:{layout}:one=a:1")
    assert result.code == 0
    assert result.lines[0] == "waiting, 2 s of at most 90 s: no answer yet (manifest a)"
    assert "waiting" not in result.out


@pytest.mark.parametrize("progress", ["plain", "json"])
def test_a_finished_file_is_left_as_it_is(run: Run, layout: Path, tmp_path: Path, progress: str) -> None:
    arguments = [
        "save",
        "-o",
        tmp_path / "a.tar",
        "--resume",
        "--progress",
        progress,
        f"oci:{layout}:one=a:1",
    ]
    assert run(*arguments).code == 0
    before = (tmp_path / "a.tar").stat()
    result = run(*arguments)
    assert result.code == 0
    left = ", left as it was: size and headers are right, blobs were not read"
    if progress == "json":
        *_, finished, message = map(json.loads, result.lines)
        assert finished["left_as_is"] is True
        assert finished["total_done"] == finished["total"]
        assert message["message"].endswith(left)
    else:
        assert result.lines[-1].endswith(left)
    after = (tmp_path / "a.tar").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    result = run(*arguments, "--restart")
    assert result.code == 0
    assert left not in result.lines[-1]
    assert (tmp_path / "a.tar").stat().st_ino != before.st_ino


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ([], f"; --resume would have kept the {len(BASE.blob)} B that were received"),
        (
            ["--resume"],
            " (the part that was received is kept in {part}; the same command with --resume resumes there)",
        ),
        (["--layers", "decompress"], ""),
    ],
    ids=["keep", "resume", "decompress"],
)
def test_an_interrupt_says_what_is_kept_or_could_have_been(
    run: Run, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], rest: str
) -> None:
    """It comes when the first layer is in, and the second one does not come."""
    open_blob = OciLayoutSource.open_blob

    def opened(self: OciLayoutSource, descriptor: Descriptor, **region: Any) -> Any:
        return open_blob(self, descriptor, **region) if descriptor == BASE.descriptor else interrupted()

    @contextlib.asynccontextmanager
    async def interrupted() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(OciLayoutSource, "open_blob", opened)
    target = tmp_path / "a.tar"
    result = run("save", "-o", target, *options, "--jobs", 1, "--progress", "none", f"oci:{layout}:one=a:1")
    parts = list(tmp_path.glob(".a.tar.*.part"))
    assert len(parts) == ("--resume" in options)
    assert result.code == 130
    assert result.lines == [f"aiodockersave: ended by SIGINT{rest.format(part=parts and parts[0])}"]
    for part in parts:
        part.unlink()


@pytest.mark.parametrize("is_received", [False, True])
def test_an_interrupt_of_what_could_not_have_been_kept(
    run: Run, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_received: bool
) -> None:
    """Nothing was received, or it goes into a FIFO."""
    target = tmp_path / "a.tar"
    if is_received:
        os.mkfifo(target)

    async def saving(*_: Any, progress: Reporter, **__: Any) -> None:
        progress.tally.total_done = 10 * is_received
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr("aiodockersave.cli.work.pipeline.save", saving)
    result = run("save", "-o", target, f"oci:{layout}:one=a:1")
    assert (result.code, result.lines) == (130, ["aiodockersave: ended by SIGINT"])


def test_a_damaged_layer_names_layer_and_image(run: Run, layout: Path, tmp_path: Path) -> None:
    digest = BASE.descriptor.digest
    (layout / "blobs" / "sha256" / digest.encoded).write_bytes(bytes(len(BASE.blob)))
    result = run("save", f"oci:{layout}:one", "-o", tmp_path / "a.tar", "--progress", "none")
    assert (result.code, len(result.lines)) == (7, 1)
    assert f"expected {digest}, got " in result.lines[0]
    assert result.lines[0].endswith(f" (image oci:{layout}:one)")


@pytest.mark.parametrize("command", [["save", "-o", "{path}"], ["plan"]], ids=["save", "plan"])
def test_one_name_for_two_images_names_both(
    run: Run, layout: Path, tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    images = [f"oci:{layout}:one=x:1", f"oci:{layout}:two=y,docker.io/x:1"]
    result = run(*(word.format(path=path) for word in command), *images)
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert f"docker.io/library/x:1 is {IMAGE.image_id} and {OTHER.image_id}" in result.lines[0]
    assert result.lines[0].endswith(f" (image oci:{layout}:one; image oci:{layout}:two)")
    assert path.read_bytes() == b"old"


def test_an_unexpected_error_is_one_line(
    run: Run, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reporter, "__call__", lambda self, event: 1 / 0)
    result = run("save", f"oci:{layout}:one", "-o", tmp_path / "a.tar")
    assert (result.code, len(result.lines)) == (1, 1)
    assert result.lines[0].startswith("aiodockersave: internal error: ZeroDivisionError: division by zero")


def test_names_are_escaped(run: Run, tmp_path: Path) -> None:
    result = run("plan", f"oci:{tmp_path}/\x1b[31m\n\u202egnp")
    assert (result.code, len(result.lines)) == (4, 1)
    assert r"\x1b[31m\n\u202egnp" in result.lines[0]


# ── plan ──


def test_plan_is_what_save_writes(run: Run, layout: Path, tmp_path: Path) -> None:
    images = [f"oci:{layout}:one=a:1,b:2", f"oci:{layout}:two"]
    result = run("plan", *images, "--json")
    assert (result.code, result.lines) == (0, [])
    planned = json.loads(result.out)
    path = tmp_path / "a.tar"
    assert run("save", *images, "-o", path).code == 0
    assert planned["size"] == path.stat().st_size
    with tarfile.open(path) as tar:
        written = [
            (each.name, each.offset_data, each.size, each.offset_data - 512) for each in tar.getmembers()
        ]
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        names = json.load(manifest)
    assert written == [
        (each["name"], each["data_offset"], each["size"], each["offset"]) for each in planned["members"]
    ]
    assert [each["repo_tags"] for each in planned["images"]] == [each["RepoTags"] for each in names]
    assert [each["reference"] for each in planned["images"]] == [f"oci:{layout}:one", f"oci:{layout}:two"]
    assert re.fullmatch("[0-9a-f]{64}", planned["etag"])


def test_plan_for_people(run: Run, layout: Path) -> None:
    planned = json.loads(run("plan", f"oci:{layout}:one=a:1", "--json").out)
    result = run("plan", f"oci:{layout}:one=a:1")
    size, etag, image, *rest = result.out.splitlines()
    assert (size, etag) == (f"size  {planned['size']}", f"etag  {planned['etag']}")
    assert image == f"image {IMAGE.image_id} (manifest {IMAGE.manifest.digest}) docker.io/library/a:1"
    assert [line.split() for line in rest] == [
        [str(each["offset"]), str(each["size"]), each["name"]] for each in planned["members"]
    ]


# ── output ──


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain /é/日本", "plain /é/日本"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b\x85", r"\x9b\x85"),
        ("\u202e\u2066\u200b\u2028", r"\u202e\u2066\u200b\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text, keep="\n") == shown.replace(r"\n", "\n")
