"""A command's work on an event loop: signals cancel it, errors become a line and an exit code."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable

from aiodockersave.core.errors import AuthenticationError, DockerSaveError
from aiodockersave.core.text import message_line

from .printing import give_up_output
from .terminal import Terminal

EXIT_FAILED = 1
EXIT_SIGNAL = 128
"""Added to the number of a signal, as shells do it."""

_PATIENCE = 0.5
"""Seconds that an interrupted command waits for its last lines to be taken."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IN_OPTIONS = {
    "allow more by max_expansion": "allow more by --max-expansion",
    "pass allow_other_platform=True": "pass --allow-other-platform",
    "the same save with resume=True": "the same command with --resume",
}
"""The advice of the library, in arguments, and the same in the command's options."""
_NEEDS_LOGIN = "a password is needed"
"""The reason of an error that a login mends."""
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


def run(work: Callable[[], Awaitable[None]], terminal: Terminal, *, target: str | None) -> int:
    """Run ``work`` to its end and return the exit code.

    Args:
        work: What is to be done.
        terminal: Where it is said what failed; its printer is closed.
        target: The name of what is written to; None for standard output.
    """
    code = _run(work, terminal, target)
    # Whoever wants the process to end does not want to wait until somebody reads why it does.
    terminal.printer.close(_PATIENCE if code > EXIT_SIGNAL else None)
    return code


def _run(work: Callable[[], Awaitable[None]], terminal: Terminal, target: str | None) -> int:
    code = EXIT_FAILED
    try:
        asyncio.run(_interruptible(work))
    except _EndedError as error:
        code = EXIT_SIGNAL + (signal.SIGINT if error.signal is signal.SIGINT else signal.SIGTERM)
        terminal.fail(_with_notes(f"ended by {error.signal.name}", error.__cause__), error, code)
    except BrokenPipeError as error:
        if target is None:
            give_up_output()
            return EXIT_SIGNAL + signal.SIGPIPE
        terminal.fail(_reason(error, target), error, code)
    except AuthenticationError as error:
        advice = "; log in with docker login or podman login" if _NEEDS_LOGIN in error.reason else ""
        terminal.fail(_with_notes(f"{error}{advice}", error), error, code)
    except DockerSaveError as error:  # also where it is an OSError: its text says all
        terminal.fail(_with_notes(str(error), error), error, code)
    except OSError as error:
        if target is None:
            give_up_output()
        terminal.fail(_reason(error, target or "standard output"), error, code)
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends in one line
        said = message_line(f"{type(error).__name__}: {error}")
        line = f"internal error: {said}; please report it with what --verbose shows"
        terminal.fail(_with_notes(line, error), error, code)
    else:
        return 0
    return code


class _EndedError(Exception):
    """A signal ended the work."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


async def _interruptible(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work``; a signal cancels it, another one cancels what is then cleaned up."""
    received: list[signal.Signals] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt(number: signal.Signals) -> None:
        received.append(number)
        if task is not None:
            task.cancel()

    # Ignored are those of nohup, and of a shell's background jobs.
    ending = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    for number in ending:
        loop.add_signal_handler(number, interrupt, number)
    try:
        await work()
    except asyncio.CancelledError as exc:
        if received:
            raise _EndedError(received[0]) from exc
        raise
    finally:
        # A loop that closes closes what its handlers write to first, and Python would complain of a late signal.
        for number in ending:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)


def _reason(error: OSError, target: str) -> str:
    # What is written by descriptor has no name in its errors; what is read is always opened by name.
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else target
    what = error.strerror or str(error)
    # What this package says itself says what to do, the system does not.
    advice = None if ";" in what else _ADVICE.get(error.errno or 0)
    line = f"{where}: {what}" + (f"; {advice}" if advice else "")
    return _with_notes(line, error)


def _with_notes(line: str, error: BaseException | None) -> str:
    notes = [note for note in getattr(error, "__notes__", ()) if note not in line]
    whole = message_line(f"{line} ({'; '.join(notes)})") if notes else line
    for argument, option in _IN_OPTIONS.items():
        whole = whole.replace(argument, option)
    return whole
