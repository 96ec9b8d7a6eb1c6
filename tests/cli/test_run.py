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
from aiodockersave.core.errors import (
    AuthenticationError,
    ContentError,
    ImageNotFoundError,
    InsufficientSpaceError,
    InvalidDocumentError,
    PartFileLockedError,
    PlatformNotFoundError,
    RateLimitedError,
    RegistryError,
    SinkError,
    SourceError,
    UnsupportedImageError,
)
from aiodockersave.core.model import Platform

HOW_TO_RESUME = (
    "the part that was received is kept in .a.tar.part; the same command with --resume resumes there"
)
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


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


URL = "https://r.example/v2/"
ERRORS = [
    (OSError(errno.ENOSPC, "No space left on device"), 8, "a.tar: No space left on device; free some space, or write"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 8, "a.tar: Broken pipe; whoever read it has left"),
    (PermissionError(errno.EACCES, "Permission denied", "b"), 1, "b: Permission denied; check the permissions"),
    (PermissionError(errno.EACCES, "Permission denied", "a.tar"), 8, "a.tar: Permission denied; check the permissions"),
    (OSError(errno.EDQUOT, "Quota exceeded", ".a.tar.0123.part"), 8, ".a.tar.0123.part: Quota exceeded; free some"),
    (OSError(errno.ENOTDIR, "Not a directory", "/"), 8, "/: Not a directory; it is below a file"),
    (InsufficientSpaceError("a.tar", 100, 10), 8, "a.tar: 100 bytes are needed there, 10 are free; free some space"),
    (PartFileLockedError("a.part"), 8, "a.part: another save is writing it"),
    (SinkError("it took nothing"), 8, "it took nothing"),
    (ImageNotFoundError("a:1", "no such tag"), 4, "image a:1 not found: no such tag"),
    (PlatformNotFoundError(Platform.parse("linux/riscv64"), []), 4, "no image for platform linux/riscv64"),
    (AuthenticationError("manifest", "denied", url=URL), 5, f"manifest: {URL}: denied"),
    (RateLimitedError("manifest", "too many requests", url=URL), 6, f"manifest: {URL}: too many requests"),
    (RegistryError("manifest", "it is broken", url=URL), 6, f"manifest: {URL}: it is broken"),
    (ContentError("it has 10 bytes"), 7, "it has 10 bytes"),
    (InvalidDocumentError("manifest", "no JSON"), 7, ""),
    (UnsupportedImageError("a:1", "it is a chart"), 1, "a:1 cannot be saved: it is a chart"),
    (SourceError("it is not there"), 1, "it is not there"),
    (ZeroDivisionError("zero"), 1, "internal error: ZeroDivisionError: zero; please report it"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "line"), ERRORS, ids=[repr(error) for error, _, _ in ERRORS])
def test_an_error_is_one_line_with_all_notes_and_a_code(
    capfd: pytest.CaptureFixture[str], terminal: Terminal, error: Exception, code: int, line: str
) -> None:
    error.add_note(HOW_TO_RESUME)

    async def work() -> None:
        raise error

    assert run(work, terminal, target="a.tar") == code
    said = capfd.readouterr().err
    assert said.startswith(f"aiodockersave: {line}")
    assert said.endswith(f" ({HOW_TO_RESUME})\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("verbose", [False, True], ids=["", "verbose"])
def test_causes_are_told_to_who_wants_to_know(capfd: pytest.CaptureFixture[str], verbose: bool) -> None:
    async def work() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise OSError("second\x1b")  # noqa: B904 - a context counts, too
        except OSError as error:
            raise RegistryError("manifest", "it cannot be reached", url=URL) from error

    assert run(work, Terminal(quiet=False, verbose=verbose), target="a.tar") == 6
    first, *causes = capfd.readouterr().err.splitlines()
    assert first == f"aiodockersave: manifest: {URL}: it cannot be reached"
    assert causes == (
        [r"  caused by OSError: second\x1b", "  caused by KeyError: 'first'"] if verbose else []
    )


@pytest.mark.parametrize("verbose", [False, True], ids=["", "verbose"])
def test_a_fault_of_ours_has_a_traceback_where_one_is_wanted(
    capfd: pytest.CaptureFixture[str], verbose: bool
) -> None:
    async def work() -> None:
        raise ZeroDivisionError("zero")

    assert run(work, Terminal(quiet=False, verbose=verbose), target="a.tar") == 1
    told = capfd.readouterr().err
    assert told.startswith("aiodockersave: internal error: ZeroDivisionError: zero; please report it")
    assert ("Traceback (most recent call last)" in told) == verbose


# ── the library speaks of arguments, the command of options ──

LOGINS = "aiodockersave login, docker login or podman login"
SELF_SIGNED = "its certificate is not valid: self-signed certificate"


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
            AuthenticationError("manifest r/a:1", "denied; log in, or check the name", url=URL),
            "image r/a:1",
            f"manifest r/a:1: {URL}: denied; log in with aiodockersave login, or check the name",
        ),
        (
            AuthenticationError("blob of r/a", "denied", url=URL),
            "image r/a:1",
            f"blob of r/a: {URL}: denied (image r/a:1)",
        ),
        (
            RegistryError("manifest", SELF_SIGNED, url=URL),
            None,
            f"manifest: {URL}: {SELF_SIGNED}; if you trust it, name its authority with --ca-file",
        ),
        (
            RegistryError("manifest", "its certificate is not valid: certificate has expired", url=URL),
            None,
            f"manifest: {URL}: its certificate is not valid: certificate has expired",
        ),
        (
            RegistryError(
                "manifest",
                "it does not speak TLS; where that is right, plain http must be asked for",
                url=URL,
            ),
            None,
            f"manifest: {URL}: it does not speak TLS; where that is right, ask with --plain-http",
        ),
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
    ids=[
        "password",
        "denied",
        "login",
        "named already",
        "authority",
        "expired",
        "plain http",
        "platform",
        "expansion",
        "resume",
    ],
)
def test_advice_is_given_in_options(
    capfd: pytest.CaptureFixture[str], terminal: Terminal, error: Exception, note: str | None, said: str
) -> None:
    async def work() -> None:
        if note is not None:
            error.add_note(note)
        raise error

    run(work, terminal, target="a.tar")
    assert capfd.readouterr() == ("", f"aiodockersave: {said}\n")
