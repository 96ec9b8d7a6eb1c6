"""Every system call on the output file fails once, or is the last thing the process does.

strace makes the faults: the run is made once to count the calls, then once per call and fault. After each, the old file is
untouched or the new one is whole, the exit code says which, there is one line on standard error, and nothing is left behind
but, with ``--resume``, a part file that the next run goes on with.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aiodockersave import plan_archive
from aiodockersave.sinks.part_file import part_name
from tests.support.images import Image, make_image, make_layer, write_layout

from . import one_thread

pytestmark = pytest.mark.interop("strace")

TIME_LIMIT = 60.0  # seconds for one run
OLD = b"the archive that was here before"
MODES = ("keep", "decompress")
FAULTS = ("ENOSPC", "EIO", "EINTR", "SIGKILL")
FAILURES = (1, 4, 7, 8)  # exit codes: of a file of the layout, or of the target
# Calls that change or settle a file; reading its state is left alone.
CALLS = (
    "openat", "getdents64", "flock", "fchmod", "ftruncate", "lseek", "write", "pwrite64", "fsync", "fstat", "newfstatat",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "close",
)  # fmt: skip


@dataclass
class Bench:
    """A folder with an old archive, and the command that replaces it."""

    folder: Path
    layout: Path
    log: Path
    image: Image
    options: list[str] = field(default_factory=list)

    @property
    def target(self) -> Path:
        return self.folder / "out.tar"

    @property
    def temporary(self) -> str:
        if "--resume" in self.options:
            return part_name("out.tar", plan_archive([self.image.spec]).etag)
        return f".out.tar.{one_thread.TOKEN}.tmp"

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()

    def run(self, *inject: str) -> subprocess.CompletedProcess[bytes]:
        """Run the command under strace on a fresh folder."""
        self.clear()
        self.target.write_bytes(OLD)
        # The calls below a directory's descriptor have the bare name; fsync has the directory's.
        watched: list[str | Path] = [
            self.folder,
            self.target,
            self.folder / self.temporary,
            self.temporary,
            self.target.name,
        ]
        # The filter makes it three times as fast, but loses injected signals.
        fast = [] if any("signal=" in option for option in inject) else ["--seccomp-bpf"]
        argv: list[str | Path] = [
            "strace",
            "-f",
            *fast,
            "-qq",
            "-o",
            self.log,
            "-e",
            f"trace={','.join(CALLS)}",
        ]
        for path in watched:
            argv += ["-P", path]
        return self._run([*argv, *inject])

    def go_on(self) -> subprocess.CompletedProcess[bytes]:
        """Run the command once more, on what the last run left."""
        return self._run([])

    def _run(self, prefix: Sequence[str | Path]) -> subprocess.CompletedProcess[bytes]:
        save = ["save", f"oci:{self.layout}=a:1", "-o", str(self.target), "--progress", "none"]
        return subprocess.run(
            [*prefix, sys.executable, one_thread.__file__, *save, *self.options],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def calls(self) -> list[tuple[str, str, str]]:
        """Return thread, name and arguments of the calls that the last run made."""
        log = self.log.read_text(errors="replace")
        return [call for call in re.findall(r"^(\d+) +(\w+)\((.*)$", log, re.MULTILINE) if call[1] in CALLS]

    def counts(self) -> dict[str, int]:
        """Return how often each call is made, by the thread that makes it most often: strace counts so."""
        counts = Counter((thread, name) for thread, name, _ in self.calls())
        names = {name for _, name in counts}
        return {name: max(n for (_, called), n in counts.items() if called == name) for name in sorted(names)}

    def left_over(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path != self.target)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    layer = make_layer(
        {"data": random.Random(7).randbytes(900_000)}, "gzip"
    )  # several writes, and a header that comes last
    layout, folder = tmp_path / "layout", tmp_path / "out"
    folder.mkdir()
    image = make_image(layer, repo_tags=["a:1"])
    write_layout(layout, {"latest": image})
    bench = Bench(folder, layout, tmp_path / "strace.log", image)
    yield bench
    bench.clear()  # what a killed process left


def order(bench: Bench) -> list[str]:
    """Return the steps that make a file safe, in the order in which they happened."""
    steps: list[str] = []
    for _, name, arguments in bench.calls():
        if name in ("write", "pwrite64") and bench.temporary in arguments:
            step = "write"
        elif name == "fsync":
            step = "fsync file" if bench.temporary in arguments else "fsync directory"
        elif name.startswith("rename"):
            step = "rename"
        else:
            continue
        if steps[-1:] != [step]:
            steps.append(step)
    return steps


SAFE_ORDER = ["write", "fsync file", "rename", "fsync directory"]


@pytest.mark.parametrize("options", [*(["--layers", mode] for mode in MODES), ["--resume"]], ids=" ".join)
def test_order_of_the_calls(bench: Bench, options: list[str]) -> None:
    """Bytes reach the disk before the name does, and the name before success is said."""
    bench.options = options
    assert bench.run("-y").returncode == 0
    assert order(bench) == SAFE_ORDER


def test_a_missing_fsync_is_caught(bench: Bench) -> None:
    """The check above can fail."""
    bench.options = ["--no-fsync"]
    assert bench.run("-y").returncode == 0
    assert order(bench) == ["write", "rename"]


def faults(counts: dict[str, int]) -> Iterator[tuple[str, int, str]]:
    for name, count in counts.items():
        for k in range(1, count + 1):
            for fault in FAULTS:
                yield name, k, fault


def check(bench: Bench, run: subprocess.CompletedProcess[bytes], new: str, fault: str) -> None:
    data = bench.target.read_bytes()
    whole = hashlib.sha256(data).hexdigest() == new
    assert whole or data == OLD
    if fault == "SIGKILL":
        assert run.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert set(bench.left_over()) <= {bench.temporary}
        return
    assert run.returncode in (0, *FAILURES), run.stderr
    assert whole or run.returncode, "success was said of a file that is not there"
    assert bench.left_over() == [], run.stderr
    assert b"Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr


Check = Callable[[Bench, "subprocess.CompletedProcess[bytes]", str, str], None]


def torture(bench: Bench, check: Check, expected: set[str], *, sample: int | None = None) -> None:
    """Let each call fail in each way, or a sample of them, and check every run."""
    first = bench.run()
    assert first.returncode == 0, first.stderr
    new = hashlib.sha256(bench.target.read_bytes()).hexdigest()
    counts = bench.counts()
    assert expected <= counts.keys()
    chosen = list(faults(counts))
    if sample is not None:
        chosen = random.Random("part file").sample(chosen, sample)
    problems = []
    for name, k, fault in chosen:
        what = f"signal={fault}" if fault == "SIGKILL" else f"error={fault}"
        run = bench.run(f"--inject={name}:{what}:when={k}")
        try:
            check(bench, run, new, fault)
        except AssertionError as error:
            problems.append(f"{name} {k} {fault}: {error}")
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_every_call_fails_once(bench: Bench, mode: str) -> None:
    bench.options = ["--layers", mode]
    torture(bench, check, {"openat", "pwrite64", "fsync"})


def check_resumable(bench: Bench, run: subprocess.CompletedProcess[bytes], new: str, fault: str) -> None:
    data = bench.target.read_bytes()
    whole = hashlib.sha256(data).hexdigest() == new
    assert whole or data == OLD
    assert set(bench.left_over()) <= {bench.temporary}
    if fault == "SIGKILL":
        assert run.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    else:
        assert run.returncode in (0, *FAILURES), run.stderr
        assert whole or run.returncode, "success was said of a file that is not there"
        assert b"Traceback" not in run.stderr
        assert len(run.stderr.splitlines()) == 1, run.stderr
        # Said is what is there, unless the very look at it is what failed.
        said = f"kept in {bench.folder / bench.temporary};".encode() in run.stderr
        assert not said or bench.left_over(), run.stderr
    again = bench.go_on()
    assert again.returncode == 0, again.stderr
    assert hashlib.sha256(bench.target.read_bytes()).hexdigest() == new
    assert bench.left_over() == []


PART_FILE_CALLS = {"openat", "getdents64", "flock", "pwrite64", "ftruncate", "fsync"}


@pytest.mark.timeout(600)
def test_some_calls_on_a_part_file_fail_once(bench: Bench) -> None:
    bench.options = ["--resume"]
    torture(bench, check_resumable, PART_FILE_CALLS, sample=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_call_on_a_part_file_fails_once(bench: Bench) -> None:
    """And whatever is left by that, the next run makes the archive of it."""
    bench.options = ["--resume"]
    torture(bench, check_resumable, PART_FILE_CALLS)
