"""The command as a process: kinds of targets, readers that leave, and signals at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import resource
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

import aiodockersave
from aiodockersave import cli
from tests.sinks.test_adapters import ROOT, on_small_disk
from tests.support.images import Image, make_image, make_layer, write_layout

LIMIT = 60.0  # seconds for anything that is waited for
SMALL = make_image(make_layer({"etc/name": b"base\n"}))
OTHER = make_image(make_layer({"etc/name": b"other\n"}))
LARGE_SIZE = 30 << 20
PACKAGE = Path(aiodockersave.__file__).parent

ENDINGS = {
    signal.SIGINT: (130, "aiodockersave: ended by SIGINT"),
    signal.SIGTERM: (143, "aiodockersave: ended by SIGTERM"),
    signal.SIGHUP: (129, "aiodockersave: ended by SIGHUP"),
}


# ── processes ──


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "aiodockersave", *map(str, arguments)]


def execute(
    *arguments: object, prefix: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end; `prefix` is a program that runs it."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    line = [*prefix, *command(*arguments)]
    result: Any = subprocess.run(line, timeout=LIMIT, check=False, cwd=ROOT, **options)
    return cast("subprocess.CompletedProcess[bytes]", result)


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command beside the test; it is killed where the test fails."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    running: Any = subprocess.Popen(command(*arguments), cwd=ROOT, **options)
    process = cast("subprocess.Popen[bytes]", running)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], Any]) -> Any:
    """Look until a condition is true, and return its result."""
    deadline = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.001)
    return found


def only_line(text: bytes) -> str:
    (line,) = text.decode().splitlines()
    return line


# ── images ──


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layouts that all tests read: a small one of two images, and a large one."""
    folder = tmp_path_factory.mktemp("layouts")
    for name, images in {
        "small": {"one": SMALL, "two": OTHER},
        "odd": {
            "other": make_image(replace(SMALL.layers[0], diff_id=OTHER.layers[0].diff_id)),
            "text": make_image(make_layer(b"no layer " * 99, None)),
        },
        "sparse": {"one": make_image(make_layer({"data": bytes(LARGE_SIZE)}, "zstd"))},
        "bomb": {"one": make_image(make_layer(bytes(3 * LARGE_SIZE), "zstd"))},
        "large": {"one": make_image(make_layer({"data": random.Random(1).randbytes(LARGE_SIZE)}, None))},
    }.items():
        (folder / name).mkdir()
        write_layout(folder / name, images)
    return folder


@pytest.fixture
def small(layouts: Path) -> str:
    return f"oci:{layouts}/small:one=a:1"


@pytest.fixture
def large(layouts: Path) -> str:
    return f"oci:{layouts}/large=a:1"


def archive_size(image: str) -> int:
    result = execute("plan", image)
    assert result.returncode == 0
    return int(result.stdout.split()[1])


def is_archive_of(path: Path, image: Image) -> bool:
    with tarfile.open(path) as tar:
        return f"{image.image_id.encoded}.json" in tar.getnames()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file in a folder of its own, with old content."""
    path = tmp_path / "target" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def assert_untouched(target: Path) -> None:
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


# ── targets ──


def test_dev_null(small: str) -> None:
    result = execute("save", small, "-o", "/dev/null", "--progress", "none")
    assert (result.returncode, result.stdout) == (0, b"")
    assert only_line(result.stderr).startswith("/dev/null: ")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_device_that_is_full(small: str) -> None:
    result = execute("save", small, "-o", "/dev/full")
    assert result.returncode == 8
    assert only_line(result.stderr).startswith("aiodockersave: /dev/full: No space left on device; free")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("layers", ["keep", "decompress"])
def test_a_fifo_whose_reader_comes_later(large: str, fifo: Path, tmp_path: Path, layers: str) -> None:
    with started("save", large, "-o", fifo, "--layers", layers) as process:
        wait_until(lambda: handles(process.pid, signal.SIGTERM))
        data = fifo.read_bytes()
        assert process.wait(LIMIT) == 0
    assert execute("save", large, "-o", tmp_path / "file", "--layers", layers).returncode == 0
    assert data == (tmp_path / "file").read_bytes()
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal: the command does once its loop runs."""
    return bool(int(status_of(pid, "SigCgt"), 16) >> (number - 1) & 1)


def status_of(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def test_a_fifo_whose_reader_leaves(large: str, fifo: Path) -> None:
    with started("save", large, "-o", fifo) as process:
        with fifo.open("rb") as reader:
            reader.read(10_000)
        assert process.wait(LIMIT) == 8
        line = only_line(process.communicate()[1])
    assert line == f"aiodockersave: {fifo}: Broken pipe; whoever read it has left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fifo_that_nobody_reads_is_no_trap(small: str, fifo: Path, number: signal.Signals) -> None:
    code, line = ENDINGS[number]
    with started("save", small, "-o", fifo) as process:
        wait_until(lambda: handles(process.pid, number))
        before = int(status_of(process.pid, "voluntary_ctxt_switches"))  # it looks again and again
        wait_until(lambda: int(status_of(process.pid, "voluntary_ctxt_switches")) > before + 10)
        process.send_signal(number)
        assert process.wait(LIMIT) == code
        assert only_line(process.communicate()[1]) == line


def test_a_full_pipe_that_nobody_reads_is_no_trap(large: str) -> None:
    reader, writer = os.pipe()
    capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    with os.fdopen(reader, "rb") as pipe, started("save", large, "-o", "-", stdout=writer) as process:
        os.close(writer)
        wait_until(lambda: waiting_bytes(pipe) == capacity)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 143
        assert only_line(process.communicate()[1]) == "aiodockersave: ended by SIGTERM"


def waiting_bytes(pipe: BinaryIO) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_symbolic_link_stays_and_its_target_is_replaced(small: str, target: Path) -> None:
    link = target.parent / "link"
    link.symlink_to("a.tar")
    assert execute("save", small, "-o", link).returncode == 0
    assert link.readlink() == Path("a.tar")
    assert not target.is_symlink()
    assert is_archive_of(target, SMALL)


def test_a_link_that_leads_nowhere_yet(small: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new.tar")
    assert execute("save", small, "-o", tmp_path / "link").returncode == 0
    assert is_archive_of(tmp_path / "new.tar", SMALL)


def test_the_mode_of_an_existing_file_is_kept(small: str, target: Path) -> None:
    target.chmod(0o640)
    assert execute("save", small, "-o", target).returncode == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert is_archive_of(target, SMALL)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_file_has_its_mode_from_the_umask(small: str, tmp_path: Path, umask: int, mode: int) -> None:
    assert execute("save", small, "-o", tmp_path / "new.tar", umask=umask).returncode == 0
    assert stat.S_IMODE((tmp_path / "new.tar").stat().st_mode) == mode


UNPRIVILEGED = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)


def test_a_directory_that_cannot_be_written_to(small: str, target: Path) -> None:
    is_root = os.geteuid() == 0  # whom modes do not stop, but for these capabilities
    if is_root and shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv to make root an ordinary user")
    target.parent.chmod(0o555)
    try:
        result = execute("save", small, "-o", target, prefix=UNPRIVILEGED if is_root else ())
    finally:
        target.parent.chmod(0o755)
    assert result.returncode == 8
    said = r"aiodockersave: .*/\.a\.tar\.\w+\.tmp: Permission denied; check the permissions"
    assert re.fullmatch(said, only_line(result.stderr))
    assert_untouched(target)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("{folder}", "Is a directory; name a file"),
        ("{folder}/nowhere/a.tar", "No such file or directory; check the name, or make the directory first"),
        ("{folder}/a.tar/b.tar", "Not a directory; it is below a file"),
        ("/proc/a.tar", "No such file or directory; check the name, or make the directory first"),
        ("{folder}/" + "x" * 256, "File name too long"),
        ("{folder}/loop", "Too many levels of symbolic links"),
    ],
    ids=["directory", "nowhere", "below a file", "proc", "long", "loop"],
)
def test_a_target_that_cannot_be(small: str, target: Path, output: str, reason: str) -> None:
    if output.endswith("loop"):
        (target.parent / "loop").symlink_to("loop")
    result = execute("save", small, "-o", output.format(folder=target.parent))
    assert result.returncode == 8
    assert only_line(result.stderr).endswith(f": {reason}")
    (target.parent / "loop").unlink(missing_ok=True)
    assert_untouched(target)


def test_a_terminal_is_refused(small: str) -> None:
    master, slave = pty.openpty()
    try:
        result = execute("save", small, "-o", "-", stdout=slave)
        assert result.returncode == 2
        assert b"an archive is not for a terminal: use -o FILE" in result.stderr
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):
            os.read(master, 1)
    finally:
        os.close(master)
        os.close(slave)


# ── standard output ──


def test_a_reader_that_leaves_early(large: str) -> None:
    """As in `… -o - | head -c 10`: quiet, with the code that shells know."""
    with started("save", large, "-o", "-") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_plan_whose_reader_has_left(small: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = execute("plan", small, stdout=writer)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("arguments", [["save", "-o", "-"], ["plan"]], ids=["save", "plan"])
def test_standard_output_on_a_full_disk(small: str, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = execute(*arguments, small, stdout=full)
    assert result.returncode == 8
    assert only_line(result.stderr).startswith("aiodockersave: standard output: No space left on device")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["save", "-o", "-"], 2), (["plan"], 8), (["save", "-o", "{file}"], 0)]
)
def test_standard_output_is_closed(small: str, tmp_path: Path, arguments: list[str], code: int) -> None:
    arguments = [each.format(file=tmp_path / "a.tar") for each in arguments]
    result = execute(*arguments, small, prefix=("sh", "-c", 'exec "$@" >&-', "sh"))
    assert result.returncode == code
    assert (b"standard output is closed" in result.stderr) is (code != 0)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_messages_that_nobody_reads_stop_nothing(small: str, redirection: str) -> None:
    """And none of them comes into the archive."""
    whole = execute("save", small, "-o", "-").stdout
    result = execute("save", small, "-o", "-", prefix=("sh", "-c", f'exec "$@" {redirection}', "sh"))
    assert (result.returncode, result.stdout) == (0, whole)


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_redirected_to_a_file(small: str, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"before")
    with path.open(mode) as file:
        assert execute("save", small, "-o", "-", stdout=file).returncode == 0
    before = b"before" if mode == "ab" else b""
    assert path.read_bytes() == before + execute("save", small, "-o", "-").stdout


# ── a full disk ──


def test_a_limit_on_file_sizes(large: str, target: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = execute("save", large, "-o", target, preexec_fn=limit)
    assert result.returncode == 8
    assert only_line(result.stderr).startswith(f"aiodockersave: {target}: File too large; raise the limit")
    assert_untouched(target)


@pytest.mark.parametrize(
    ("name", "layers"), [("large", "keep"), ("large", "decompress"), ("sparse", "decompress")]
)
def test_a_small_disk(layouts: Path, tmp_path: Path, name: str, layers: str) -> None:
    """Whether that is known ahead, so that nothing is fetched for it, or turns out while it grows."""
    disk = tmp_path / "disk"
    disk.mkdir()
    image = f"oci:{layouts}/{name}=a:1"
    save = " ".join(f"'{word}'" for word in command("save", image, "-o", disk / "a.tar", "--layers", layers))
    script = f'printf old > {disk}/a.tar; {save}; echo "$?"; ls -A {disk}; cat {disk}/a.tar'
    result = subprocess.run(
        [*on_small_disk(disk), "sh", "-c", script], cwd=ROOT, capture_output=True, timeout=LIMIT, check=False
    )
    assert result.stdout.decode().split() == ["8", "a.tar", "old"]
    line = only_line(result.stderr)
    said = r"\d+ bytes are needed there, \d+ are free; free some space, or write to another place"
    assert re.match(rf"aiodockersave: {disk}/a\.tar: {said}", line), line


# ── the content of layers ──


def test_a_diff_id_that_is_wrong(layouts: Path, target: Path) -> None:
    arguments = ["save", f"oci:{layouts}/odd:other=a:1", "-o", target, "--progress", "none"]
    for more in (["--verify-diff-ids"], ["--verify-diff-ids", "--resume"], ["--layers", "decompress"]):
        result = execute(*arguments, *more)
        assert result.returncode == 7
        said = only_line(result.stderr)
        digests = f"{OTHER.layers[0].diff_id}, got {SMALL.layers[0].diff_id}"
        assert f"diff ID of blob {SMALL.layers[0].descriptor.digest} is not what was promised" in said
        assert digests in said
        for part in target.parent.glob(".*.part"):
            part.unlink()
        assert_untouched(target)
    assert execute(*arguments[:4], "-o", "-", "--verify-diff-ids").returncode == 7
    assert execute(*arguments).returncode == 0


def test_diff_ids_that_are_right(large: str, target: Path, tmp_path: Path) -> None:
    assert execute("save", large, "-o", target).returncode == 0
    assert execute("save", large, "-o", tmp_path / "b.tar", "--verify-diff-ids").returncode == 0
    assert target.read_bytes() == (tmp_path / "b.tar").read_bytes()
    streamed = execute("save", large, "-o", "-", "--verify-diff-ids").stdout
    assert streamed == target.read_bytes()


@pytest.mark.parametrize("output", ["file", "-"])
def test_a_layer_that_is_not_a_tar_is_a_warning(layouts: Path, target: Path, output: str) -> None:
    image = f"oci:{layouts}/odd:text"
    arguments = ["save", f"{image}=a:1", "-o", target if output == "file" else "-"]
    result = execute(*arguments, "--progress", "none")
    assert result.returncode == 0
    told, _ = result.stderr.decode().splitlines()
    assert re.fullmatch(
        rf"aiodockersave: (layer sha256:\w+ is neither compressed .* nor a tar, .* \(image {image}\))", told
    )
    events = [json.loads(line) for line in execute(*arguments, "--progress", "json").stderr.splitlines()]
    message = {"event": "message", "level": "warning", "message": told.removeprefix("aiodockersave: ")}
    assert message in events
    assert execute(*arguments, "--quiet").stderr == b""


@pytest.mark.parametrize("output", ["file", "-"])
def test_a_layer_that_expands_without_end_is_refused(layouts: Path, target: Path, output: str) -> None:
    bomb = f"oci:{layouts}/bomb=a:1"
    arguments = ["save", bomb, "-o", target if output == "file" else "-", "--layers", "decompress", "--quiet"]
    for more, said in (
        ([], "allow more by --max-expansion"),
        (["--max-expansion", "2000"], "2000 for each of the"),
        (["--max-expansion", "0", "--max-plain-size", "1000000"], "the limit of 1000000 bytes"),
    ):
        result = execute(*arguments, *more)
        assert (result.returncode, said in only_line(result.stderr)) == (7, True)
        assert_untouched(target)
    for number in ("0", "40000"):
        result = execute(*arguments, "--max-expansion", number)
        assert (result.returncode, result.stderr) == (0, b"")
        size = len(result.stdout) if output == "-" else target.stat().st_size
        assert size > 3 * LARGE_SIZE


@pytest.mark.parametrize("option", ["--max-expansion", "--max-plain-size"])
@pytest.mark.parametrize("value", ["-1", "x", "1.5"])
def test_limits_that_are_none(small: str, target: Path, option: str, value: str) -> None:
    assert execute("save", small, "-o", target, option, value).returncode == 2
    assert_untouched(target)


# ── signals ──


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_leaves_nothing_half_written(
    large: str, target: Path, number: signal.Signals
) -> None:
    code, line = ENDINGS[number]
    size = archive_size(large)
    begin = time.monotonic()
    assert execute("save", large, "-o", target, "--quiet").returncode == 0
    duration = time.monotonic() - begin
    moments = random.Random(f"50 moments of {number}")
    codes: list[int] = []
    while len(codes) < 50 or (
        codes.count(code) < 10 and len(codes) < 200
    ):  # fewer are in time on a busy machine
        attempt = len(codes)
        target.write_bytes(b"old")
        with started("save", large, "-o", target, "--quiet") as process:
            if attempt % 2:  # at any moment of all
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moments.uniform(0.2, 1.05) * duration)
            else:  # while there is something to clean up, however long it takes to get there
                wait_until(lambda: len(list(target.parent.iterdir())) > 1 or process.poll() is not None)
                time.sleep(moments.uniform(0, 0.02))
            process.send_signal(number)
            codes.append(process.wait(LIMIT))
            said = process.communicate()[1]
        assert [path.name for path in target.parent.iterdir()] == ["a.tar"]
        assert target.stat().st_size in (3, size)
        if target.stat().st_size == 3:
            assert codes[-1] != 0
        if codes[-1] == -number and "Traceback" in said.decode():  # Python's own, of its start
            assert f'"{PACKAGE}' not in said.decode()
        else:
            advice = r"(; --resume would have kept the [0-9.]+ [kM]?B that were received)?"
            assert re.fullmatch(f"{line}{advice}\n" if codes[-1] == code else "", said.decode())
    # a signal may come before there is anything to clean up (then it ends the process as it ends any), or too late
    assert set(codes) <= {0, code, -number}
    assert codes.count(code) >= 10


INTERRUPTING = """
import os, signal, sys

class Interrupting:
    "Sends SIGINT to its own process at the n-th line of the package, as Ctrl-C may at any."

    left = int(os.environ["INTERRUPT_AT"])

    def __call__(self, frame, event, arg):
        if event == "call":
            return self if "aiodockersave" in frame.f_code.co_filename else None
        if event == "line":
            Interrupting.left -= 1
            if Interrupting.left == 0:
                sys.settrace(None)
                os.kill(os.getpid(), signal.SIGINT)
        return self

sys.settrace(Interrupting())
"""
TAKES_OVER = 10  # lines at the package's beginning that take Ctrl-C over


@pytest.mark.parametrize("at", [TAKES_OVER + each for each in (0, 1, 2, 3, 5, 8, 13, 30, 60, 120, 250, 500)])
def test_an_interrupt_from_the_first_line_on_is_no_traceback(at: int, large: str, tmp_path: Path) -> None:
    """It ends the process as a signal does, which shells call 130, or with one line and that code."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    environment = os.environ | {"INTERRUPT_AT": str(at), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = execute("save", large, "-o", tmp_path / "a.tar", "--quiet", env=environment)
    assert result.returncode in (-signal.SIGINT, 130)
    assert result.stderr.decode() in ("", "aiodockersave: ended by SIGINT\n")
    assert not (tmp_path / "a.tar").exists()


def test_ctrl_c_of_another_program_is_its_own() -> None:
    """Its arguments may be those of ours."""
    code = (
        "import signal, aiodockersave; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "-m", "aiodockersave"], cwd=ROOT, capture_output=True, check=True
    )
    assert result.stdout == b"True\n"


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Stop a command until SIGCONT, and tell whether it had not ended before."""
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: process.poll() is not None or status_of(process.pid, "State")[0] == "T")
    return process.poll() is None


@contextlib.contextmanager
def stopped_while_it_writes(image: str, target: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a save, and stop it while its temporary file is there; anew where a busy machine has looked too late."""

    def is_writing() -> bool:
        return len(list(target.parent.iterdir())) > 1

    for _ in range(50):
        target.write_bytes(b"old")
        with started("save", image, "-o", target, "--quiet", **options) as process:
            wait_until(lambda: is_writing() or process.poll() is not None)
            if is_stopped(process) and is_writing():
                yield process
                return
    raise AssertionError("it was never seen at work")


def test_a_second_signal_does_not_stop_the_cleaning_up(large: str, target: Path) -> None:
    for _ in range(5):
        with stopped_while_it_writes(large, target) as process:
            for number in ENDINGS:  # all are there before it goes on, in an order that the system makes
                process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            code = process.wait(LIMIT)
            assert (code, only_line(process.communicate()[1])) in ENDINGS.values()
        assert_untouched(target)


HANGING = """
import asyncio, sys, time
from aiodockersave.pipeline import save as pipeline
from aiodockersave.__main__ import program

async def save(*_, **__):
    looking_up = asyncio.get_running_loop().run_in_executor(None, time.sleep, 300)
    print("begun", flush=True)
    await looking_up

pipeline.save = save
sys.argv = ["aiodockersave", "save", "oci:nowhere", "-o", "a.tar", "--quiet"]
program()
"""
"""A save that hangs in a thread that nobody can end, as where no name server answers."""


@pytest.mark.parametrize("number", ENDINGS)
def test_further_signals_end_a_process_that_waits_for_a_thread(
    number: signal.Signals, tmp_path: Path
) -> None:
    code, line = ENDINGS[number]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            deadline = time.monotonic() + LIMIT
            while process.poll() is None:
                assert time.monotonic() < deadline
                process.send_signal(number)
                time.sleep(0.05)
        finally:
            process.kill()  # nobody waits for its thread here
        assert process.stderr is not None
        assert (process.returncode, only_line(process.stderr.read())) == (code, line)


EMBEDDED = """
import os, signal
from aiodockersave.cli import main
from aiodockersave.pipeline import save as pipeline

async def save(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    await __import__("asyncio").sleep(300)

def own(*_): ...

pipeline.save = save
signal.signal(signal.SIGTERM, own)
print(main(["save", "oci:nowhere", "-o", "a.tar", "--quiet"]))
print(signal.getsignal(signal.SIGTERM) is own, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)
"""


def test_a_program_that_runs_a_command_has_its_signal_handlers_back(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", EMBEDDED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        timeout=LIMIT,
    )
    assert result.stdout.split() == [b"143", b"True", b"True", b"True"]


def test_a_lost_terminal_ends_it(large: str, target: Path) -> None:
    with stopped_while_it_writes(large, target) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT) == 129
        assert only_line(process.communicate()[1]) == "aiodockersave: ended by SIGHUP"
    assert_untouched(target)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_an_ignored_signal_stays_ignored(large: str, target: Path, number: signal.Signals) -> None:
    """`nohup` ignores SIGHUP, a shell ignores SIGINT for a background job."""
    ignore = lambda: signal.signal(number, signal.SIG_IGN)  # noqa: E731
    with stopped_while_it_writes(large, target, preexec_fn=ignore) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT) == 0
    assert target.stat().st_size > LARGE_SIZE


# ── others at work in the same place ──


def test_a_link_at_the_temporary_name(small: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = target.parent.parent / "victim"
    victim.write_bytes(b"precious")
    (target.parent / ".a.tar.00000000.tmp").symlink_to(victim)
    names = iter(["00000000", "00000000", "11111111"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(names))
    assert cli.main([*["save", "--quiet", "-o"], str(target), small]) == 0
    assert victim.read_bytes() == b"precious"
    assert is_archive_of(target, SMALL)
    (target.parent / ".a.tar.00000000.tmp").unlink()
    assert [path.name for path in target.parent.iterdir()] == ["a.tar"]


def test_a_parent_that_is_swapped_meanwhile(large: str, target: Path) -> None:
    """The archive goes where the target was when it began, never where a link leads later."""
    folder, moved, victim = target.parent, target.parent.parent / "moved", target.parent.parent / "victim"
    victim.mkdir()
    (victim / "a.tar").write_bytes(b"precious")
    with stopped_while_it_writes(large, target) as process:
        folder.rename(moved)
        folder.symlink_to(victim)
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT) == 0
    assert (victim / "a.tar").read_bytes() == b"precious"
    assert [path.name for path in victim.iterdir()] == ["a.tar"]
    assert [path.name for path in moved.iterdir()] == ["a.tar"]
    assert (moved / "a.tar").stat().st_size > LARGE_SIZE


def test_two_writers_of_one_file(layouts: Path, target: Path) -> None:
    images = [f"oci:{layouts}/small:one=a:1", f"oci:{layouts}/small:two=a:1"]
    for _ in range(5):
        with started("save", images[0], "-o", target) as one, started("save", images[1], "-o", target) as two:
            assert (one.wait(LIMIT), two.wait(LIMIT)) == (0, 0)
        assert is_archive_of(target, SMALL) != is_archive_of(target, OTHER)
        assert [path.name for path in target.parent.iterdir()] == ["a.tar"]


PRINTING = pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["save", "--help"]], ids=" ".join)


def print_into(file: BinaryIO, arguments: list[str]) -> tuple[int, str]:
    """Return the exit code and standard error of a command that prints into a file."""
    command = [sys.executable, "-m", "aiodockersave", *arguments]
    ended = subprocess.run(command, check=False, stdout=file, stderr=subprocess.PIPE, timeout=LIMIT)
    return ended.returncode, ended.stderr.decode()


@PRINTING
def test_a_reader_of_standard_output_that_has_left(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        assert print_into(pipe, arguments) == (141, "")


@PRINTING
def test_a_full_standard_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        line = "aiodockersave: standard output: No space left on device\n"
        assert print_into(full, arguments) == (8, line)
