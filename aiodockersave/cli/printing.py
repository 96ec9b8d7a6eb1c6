"""Standard error, written by a thread: a stopped terminal, or a pipe that nobody reads, does not hold up the work.

::

    Terminal, Reporter ──lines──▶ queue ──▶ Printer's thread ──▶ standard error
                                                 ▲
                  Display (the bars), looked at ─┘ every 100 ms

Below the lines there may be a display of a few rows, which is repainted. The cursor stays visible, at the end of the last
row, so that a process that is killed leaves nothing to restore.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

PROGRAM: Final = "aiodockersave"

REFRESH: Final = 0.1
"""Seconds between two looks at a display: faster, nobody can read it."""
DELAY: Final = 0.25
"""Seconds until a display appears: a save that is over by then needs none."""

_MOST_WAITING: Final = 1000
"""Texts that may wait to be written, some 200 kB; beyond, those that may be dropped are dropped."""


class Display(Protocol):
    """A few rows below the lines."""

    def rows(self, size: os.terminal_size, encoding: str) -> Sequence[str]:
        """Return the rows to show now: at most ``size.lines - 1`` rows, narrower than ``size.columns``.

        Called by the printer's thread.
        """
        ...


class Printer:
    """Writes standard error in a thread, which starts with the first text and ends with :meth:`close`.

    No error of writing is raised: the work goes on where nobody reads.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        # The thread alone uses these.
        self._display: Display | None = None
        self._next_look = 0.0
        self._painted: Sequence[str] = ()

    def print(self, text: str, *, may_drop: bool = False) -> None:
        """Print a line, or several; a text that ``may_drop`` is dropped where too many wait already."""
        if not may_drop or self._queue.qsize() < _MOST_WAITING:
            self._do(partial(self._print, text))

    def show(self, display: Display) -> None:
        """Show a display below the lines, after `DELAY`."""
        self._do(partial(self._show, display))

    def hide(self) -> None:
        """Remove the display."""
        self._do(self._hide)

    def close(self, patience: float | None = None) -> None:
        """Write all texts that wait. A text that is printed later is written at once.

        Args:
            patience: Seconds after which to give up; None for never.
        """
        self._is_closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(patience)

    def _do(self, action: Callable[[], None]) -> None:
        if self._is_closed:
            if self._thread is None or not self._thread.is_alive():
                action()
            return
        if self._thread is None:
            # A daemon: the process can end while this thread waits for a reader.
            self._thread = threading.Thread(target=self._run, name="aiodockersave-printer", daemon=True)
            self._thread.start()
        self._queue.put(action)

    # ── in the thread ──

    def _run(self) -> None:
        while True:
            try:
                action = self._queue.get(timeout=self._until_next_look())
            except queue.Empty:
                self._look()
                continue
            if action is None:
                break
            action()
        self._hide()

    def _until_next_look(self) -> float | None:
        return None if self._display is None else max(0.0, self._next_look - time.monotonic())

    def _print(self, text: str) -> None:
        self._write(_above(self._painted) + text + "\n" + "\n".join(self._painted))

    def _show(self, display: Display) -> None:
        self._display = display
        self._next_look = time.monotonic() + DELAY

    def _hide(self) -> None:
        self._display = None
        self._paint(())

    def _look(self) -> None:
        if self._display is None:
            return
        try:
            rows = self._display.rows(_terminal_size(), _encoding())
        except Exception as error:  # noqa: BLE001 - a fault of the display must not end the work
            self._hide()
            self._print(f"aiodockersave: progress is not shown: {type(error).__name__}: {error}")
            return
        self._next_look = time.monotonic() + REFRESH
        self._paint(rows)

    def _paint(self, rows: Sequence[str]) -> None:
        if rows != self._painted:
            self._write(_above(self._painted) + "\n".join(rows))
            self._painted = rows

    def _write(self, text: str) -> None:
        if sys.stderr is None:
            return
        data = text.encode(_encoding(), "backslashreplace")
        with contextlib.suppress(OSError, ValueError):  # closed, nobody there, no room
            _write_all(sys.stderr.fileno(), data)


def _above(rows: Sequence[str]) -> str:
    """Return the sequence that clears painted rows and leaves the cursor where the first one began."""
    if not rows:
        return ""
    up = f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
    return f"\r{up}\x1b[J"


def _write_all(descriptor: int, data: bytes) -> None:
    # By descriptor: the interpreter must not find a lock of `sys.stderr` at its end that a waiting thread holds.
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process that has it open has made it non-blocking
            select.select([], [descriptor], [])


def _encoding() -> str:
    return getattr(sys.stderr, "encoding", None) or "utf-8"


def _terminal_size() -> os.terminal_size:
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return os.terminal_size((size.columns or 80, size.lines or 24))  # the usual size


# ── without the thread ──


def printable(text: str, keep: str = "") -> str:
    """Escape characters that a terminal would obey: controls, and those that turn text around.

    Args:
        text: The text, which may come from a registry.
        keep: Characters that stay as they are.
    """
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def print_error(text: str, keep: str = "") -> None:
    """Print a line on standard error; where nobody reads it, go on."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(printable(text, keep) + "\n")
            sys.stderr.flush()


def print_data(text: str) -> None:
    """Print lines on standard output.

    Raises:
        OSError: They could not be written.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed")
    sys.stdout.write(printable(text, keep="\n") + "\n")
    sys.stdout.flush()


def give_up_output() -> None:
    """Send the rest of standard output to /dev/null: the interpreter would fail to flush it at exit."""
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
