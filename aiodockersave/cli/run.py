"""A command's work on an event loop: signals cancel it, errors become a line and an exit code."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

from aiodockersave.core.errors import AuthenticationError, DockerSaveError, RegistryError
from aiodockersave.core.text import message_line

from . import exit_codes
from .printing import PROGRAM, give_up_output
from .terminal import Terminal

_PATIENCE = 0.5
"""Seconds that an interrupted command waits for a reader of its last lines: less than people wait for Ctrl-C."""
_IN_OPTIONS = {
    "allow more by max_expansion": "allow more by --max-expansion",
    "pass allow_other_platform=True": "pass --allow-other-platform",
    "plain http must be asked for": "ask with --plain-http",
    "; log in, or check the name": f"; log in with {PROGRAM} login, or check the name",
    "the same save with resume=True": "the same command with --resume",
}
"""The library's advice, which names arguments, and the same advice with the command's options."""
_NEEDS_LOGIN = "a password is needed"
"""Part of the reason of an error that a login mends."""
_NEEDS_AUTHORITY = ("self-signed certificate", "issuer certificate", "verify the first certificate")
"""Parts of OpenSSL's reasons for which an authority that is not known may be named."""
_ADVICE = {
    errno.EACCES: "check the permissions",
    errno.EDQUOT: "free some space, or write to another place",
    errno.EFBIG: "raise the limit on file sizes, or write to another place",
    errno.EISDIR: "name a file",
    errno.ENOENT: "check the name, or make the directory first",
    errno.ENOSPC: "free some space, or write to another place",
    errno.ENOTDIR: "it is below a file",
    errno.EPERM: "check the permissions",
    errno.EPIPE: "whoever read it has left",
    errno.EROFS: "write to another place",
}


def run(
    work: Callable[[], Awaitable[None]],
    terminal: Terminal,
    *,
    target: str | None,
    advice: Callable[[], str] = lambda: "",
) -> int:
    """Run ``work`` to its end and return the exit code.

    Args:
        work: The work of the command.
        terminal: Reports a failure; its printer is closed.
        target: The name of the file that is written; None for standard output.
        advice: Returns what is said of an interrupt, behind the signal's name.
    """
    code = _run(work, terminal, target, advice)
    # A user who interrupts the process does not want to wait until somebody reads the reason.
    terminal.printer.close(_PATIENCE if code > exit_codes.SIGNAL else None)
    return code


def _run(
    work: Callable[[], Awaitable[None]], terminal: Terminal, target: str | None, advice: Callable[[], str]
) -> int:
    try:
        asyncio.run(_interruptible(work))
    except Exception as error:  # noqa: BLE001 - any error ends in one line
        if isinstance(error, _EndedError):
            for number in error.handled:  # until the line is printed, which takes no longer than _PATIENCE
                signal.signal(number, signal.SIG_IGN)
        if target is None and isinstance(error, OSError) and not isinstance(error, DockerSaveError):
            give_up_output()
            if isinstance(error, BrokenPipeError):
                return exit_codes.READER_LEFT
        line, code = _explain(error, target or "standard output", advice)
        is_internal = not isinstance(error, DockerSaveError | OSError | _EndedError)
        terminal.fail(line, error, code, is_internal=is_internal)
        return code
    return 0


def _explain(error: Exception, target: str, advice: Callable[[], str]) -> tuple[str, int]:
    """Return the line that reports an error, and the exit code."""
    match error:
        case _EndedError():
            line = f"ended by {error.signal.name}{advice()}"
            return _with_notes(line, error.__cause__), exit_codes.SIGNAL + error.signal
        case AuthenticationError() if _NEEDS_LOGIN in error.reason:
            line = f"{error}; log in with {PROGRAM} login, docker login or podman login"
        case RegistryError() if any(part in error.reason for part in _NEEDS_AUTHORITY):
            line = f"{error}; if you trust it, name its authority with --ca-file"
        case DockerSaveError():  # before OSError, which some of them are: their text is complete
            line = str(error)
        case OSError():
            name = _name(error, target)
            code = exit_codes.TARGET if _is_of(name, target) else exit_codes.FAILED
            return _with_notes(_reason(error, name), error), code
        case _:
            cause = message_line(f"{type(error).__name__}: {error}")
            line = f"internal error: {cause}; please report it with the output of --verbose"
    return _with_notes(line, error), exit_codes.code_of(error)


class _EndedError(Exception):
    """A signal ended the work.

    Attributes:
        signal: The first signal.
        handled: The signals that would have ended the work.
    """

    def __init__(self, number: signal.Signals, handled: Sequence[signal.Signals]) -> None:
        super().__init__(number.name)
        self.signal = number
        self.handled = handled


async def _interruptible(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work``. The first signal cancels the work, a second one its clean-up, or what the loop does after that.

    Cancel: passed on to ``work``; raised as it comes, unless a signal sent it.
    """
    received: list[signal.Signals] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt(number: signal.Signals) -> None:
        received.append(number)
        if task is not None:
            task.cancel()

    def end_again(*_: object) -> None:
        raise _EndedError(received[0], ending)

    # A signal that is ignored stays so: nohup and a shell's background jobs rely on it.
    ending = [number for number in exit_codes.ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in ending:
        loop.add_signal_handler(number, interrupt, number)
    try:
        await work()
    except asyncio.CancelledError as exc:
        if received:
            raise _EndedError(received[0], ending) from exc
        raise
    finally:
        # A loop closes the pipe of its signal handlers first, and Python would complain of a signal that comes after that.
        for number in ending:
            loop.remove_signal_handler(number)
            signal.signal(number, end_again if received else signal.SIG_DFL)


def _name(error: OSError, target: str) -> str:
    # An error without a name is of the target, which is written by descriptor: files are opened for reading by name.
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else target


def _is_of(name: str, target: str) -> bool:
    """Tell whether a file is the target, a file of ours beside it, or a directory on the way to it."""
    name = os.path.abspath(name)
    for path in (os.path.abspath(target), os.path.realpath(target)):
        folder, last = os.path.split(path)
        if os.path.commonpath((name, path)) == name or name.startswith(os.path.join(folder, f".{last}.")):
            return True
    return False


def _reason(error: OSError, name: str) -> str:
    reason = error.strerror or str(error)
    # Messages of this package have their advice already, those of the system have none.
    advice = None if ";" in reason else _ADVICE.get(error.errno or 0)
    return f"{name}: {reason}" + (f"; {advice}" if advice else "")


def _with_notes(line: str, error: BaseException | None) -> str:
    # The line may name the image already, as a manifest's.
    notes = [note for note in getattr(error, "__notes__", ()) if note.removeprefix("image ") not in line]
    whole = message_line(f"{line} ({'; '.join(notes)})") if notes else line
    for argument, option in _IN_OPTIONS.items():
        whole = whole.replace(argument, option)
    return whole
