"""Programs as whole processes: how long they take, what they use, and what only they themselves know."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from tests.interop.programs import ProgramError

from .observed import FACTS

TIME_LIMIT = 900.0  # seconds; a program that hangs is ended, and the benchmark with it
NAME = "example.com/measured:1"
"""The name of images in archives: the same by each contender."""


@dataclass(frozen=True)
class Usage:
    """The cost of a process: seconds of the clock, and of processors (its own and the system's for it)."""

    seconds: float
    cpu: float


def save_command(reference: str, output: Path, *options: str) -> list[str]:
    """Return our command."""
    return [sys.executable, "-m", "aiodockersave", *_save(reference, output, *options)]


def _save(reference: str, output: Path, *options: str) -> list[str]:
    return ["save", f"{reference}={NAME}", "-o", str(output), *options]


def skopeo_command(reference: str, target: str) -> list[str]:
    """Return skopeo's copy to `target`, such as ``docker-archive:FILE`` or ``dir:FOLDER``."""
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    return [*copy, f"docker://{reference}", target]


@functools.cache
def supports(option: str) -> bool:
    """Tell whether ``save`` has an option."""
    text = subprocess.run(
        [sys.executable, "-m", "aiodockersave", "save", "--help"], check=True, capture_output=True, text=True
    ).stdout
    return option in text


def only_supported(options: Sequence[str]) -> list[str]:
    """Leave out options that ``save`` does not have; values belong to theirs by ``=``."""
    return [option for option in options if supports(option.partition("=")[0])]


def clean_up(target: Path) -> None:
    """Remove what was written, and let the disk come to rest: outside of what is timed."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    os.sync()


@contextlib.contextmanager
def _limited(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process that does not end; `Popen.wait` with a time limit would look only every 50 ms."""
    limit = threading.Timer(TIME_LIMIT, process.kill)
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


def timed(argv: Sequence[str], env: dict[str, str] | None = None) -> Usage:
    """Run a program to its end, by default in this process's environment.

    Raises:
        ProgramError: It exited with another code than 0, or did not end in time.
    """
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env)
        with _limited(process):
            _, status, usage = os.wait4(process.pid, 0)  # says what this child used, not all of them
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        _check(process.returncode, argv, said)
    return Usage(seconds, usage.ru_utime + usage.ru_stime)


def _check(code: int, argv: Sequence[str], said: IO[bytes]) -> None:
    if code:
        said.seek(0)
        raise ProgramError(argv, f"exit code {code}", said.read())


class Observed:
    """Our command in a process that tells what it receives, and what memory it had.

    Usage::

        with Observed(reference, output, "--quiet") as run:
            …                               # run.process, run.received
            seconds = run.finish()
        run.received, run.peak

    Attributes:
        process: The process; killed when the block is left.
        files: Descriptors of the files that it writes for us: what it tells, and its messages.
    """

    def __init__(
        self, reference: str, output: Path, *options: str, env: dict[str, str] | None = None
    ) -> None:
        self._opened = contextlib.ExitStack()
        told = self._opened.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - closed below
        told.truncate(FACTS.size)
        self._facts = mmap.mmap(told.fileno(), FACTS.size)
        self._said = self._opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self.files = (told.fileno(), self._said.fileno())
        observed = [sys.executable, "-m", "tests.benchmarks.observed", told.name]
        self._argv = [*observed, *_save(reference, output, *options)]
        self._start = time.perf_counter()
        self.process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env={**os.environ, **(env or {})},
        )

    @property
    def received(self) -> int:
        """Bytes that it has read from sockets so far, also when it was killed."""
        return int(FACTS.unpack(self._facts)[0])

    @property
    def peak(self) -> int:
        """Its own VmHWM in bytes; 0 before it has ended by itself."""
        return int(FACTS.unpack(self._facts)[1])

    def finish(self) -> float:
        """Wait for its end and return the seconds that it took.

        Raises:
            ProgramError: It exited with another code than 0, or did not end in time.
        """
        with _limited(self.process):
            code = self.process.wait()
        seconds = time.perf_counter() - self._start
        _check(code, self._argv, self._said)
        return seconds

    def kill(self) -> None:
        """End it by SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(TIME_LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._opened.close()
