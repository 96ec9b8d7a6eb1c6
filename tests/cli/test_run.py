"""The end of a command's work: one line, and a code."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest

from aiodockersave.cli.run import run
from aiodockersave.cli.terminal import Terminal
from aiodockersave.core.errors import AuthenticationError, InsufficientSpaceError, SourceError

HOW_TO_RESUME = (
    "the part that was received is kept in .a.tar.part; the same command with --resume resumes there"
)
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command removes its handlers; those of pytest come back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(quiet=False, verbose=False)


def interrupted(numbers: list[signal.Signals], *notes: str) -> Callable[[], Awaitable[None]]:
    """Work that is ended by signals, cleans up while more of them come, and says something by notes."""

    async def work() -> None:
        try:
            os.kill(os.getpid(), numbers[0])
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            for number in numbers[1:]:
                os.kill(os.getpid(), number)
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.Event().wait()
            for note in notes:
                exc.add_note(note)
            raise

    return work


@pytest.mark.parametrize(
    ("notes", "rest"),
    [
        ((), ""),
        ((HOW_TO_RESUME,), f" ({HOW_TO_RESUME})"),
        (("one\x1b\ntwo", "three"), r" (one\x1b\ntwo; three)"),
    ],
    ids=["none", "how to go on", "several"],
)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_one_line_with_all_notes(
    capfd: pytest.CaptureFixture[str],
    terminal: Terminal,
    number: signal.Signals,
    count: int,
    notes: tuple[str, ...],
    rest: str,
) -> None:
    assert run(interrupted([number] * count, *notes), terminal, target="a.tar") == SIGNALS[number]
    assert capfd.readouterr() == ("", f"aiodockersave: ended by {number.name}{rest}\n")


def test_the_first_signal_counts(capfd: pytest.CaptureFixture[str], terminal: Terminal) -> None:
    assert run(interrupted([signal.SIGTERM, signal.SIGINT]), terminal, target="a.tar") == 143
    assert capfd.readouterr().err == "aiodockersave: ended by SIGTERM\n"


def test_json_has_the_notes_too(capfd: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True, verbose=False, as_json=True)
    assert run(interrupted([signal.SIGINT], HOW_TO_RESUME), terminal, target="a.tar") == 130
    assert json.loads(capfd.readouterr().err) == {
        "event": "error",
        "message": f"ended by SIGINT ({HOW_TO_RESUME})",
        "exit_code": 130,
        "traceback": None,
    }


ERRORS = [
    (OSError(errno.ENOSPC, "No space left on device"), "a.tar: No space left on device; free some space, or write"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), "a.tar: Broken pipe; whoever read it has left"),
    (PermissionError(errno.EACCES, "Permission denied", "b"), "b: Permission denied; check the permissions"),
    (InsufficientSpaceError("a.tar", 100, 10), "a.tar: 100 bytes are needed there, 10 are free; free some space"),
    (SourceError("it is not there"), "it is not there"),
    (ZeroDivisionError("zero"), "internal error: ZeroDivisionError: zero; please report it"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "line"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_an_error_is_one_line_with_all_notes(
    capfd: pytest.CaptureFixture[str], terminal: Terminal, error: Exception, line: str
) -> None:
    error.add_note(HOW_TO_RESUME)

    async def work() -> None:
        raise error

    assert run(work, terminal, target="a.tar") == 1
    said = capfd.readouterr().err
    assert said.startswith(f"aiodockersave: {line}")
    assert said.endswith(f" ({HOW_TO_RESUME})\n")
    assert said.count("\n") == 1


# ── the library speaks of arguments, the command of options ──

URL = "https://r.example/v2/"
LOGINS = "aiodockersave login, docker login or podman login"


@pytest.mark.parametrize(
    ("error", "note", "said"),
    [
        (
            AuthenticationError("manifest", "a password is needed for r.example", url=URL),
            None,
            f"manifest: {URL}: a password is needed for r.example; log in with {LOGINS}",
        ),
        (AuthenticationError("manifest", "denied", url=URL), None, f"manifest: {URL}: denied"),
        (
            SourceError("to take it, pass allow_other_platform=True"),
            None,
            "to take it, pass --allow-other-platform",
        ),
        (SourceError("allow more by max_expansion"), None, "allow more by --max-expansion"),
        (
            SourceError("it broke"),
            "the part that was received is kept in x; the same save with resume=True resumes there",
            "it broke (the part that was received is kept in x; the same command with --resume resumes there)",
        ),
    ],
    ids=["password", "denied", "platform", "expansion", "resume"],
)
def test_advice_is_given_in_options(
    capfd: pytest.CaptureFixture[str], terminal: Terminal, error: Exception, note: str | None, said: str
) -> None:
    async def work() -> None:
        if note is not None:
            error.add_note(note)
        raise error

    assert run(work, terminal, target="a.tar") == 1
    assert capfd.readouterr() == ("", f"aiodockersave: {said}\n")
