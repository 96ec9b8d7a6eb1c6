"""Standard error, written by a thread: a terminal that was stopped, or a pipe that nobody reads, holds up nothing.

::

    Terminal, Reporter ──lines──▶ queue ──▶ Printer's thread ──▶ standard error
                                                 ▲
                  Display (the bars), looked at ─┘ every 100 ms

Below the lines there may be a display of a few rows, which is repainted. It is painted so that little can go wrong:
the cursor stays visible and at the end of the last row, so that a process that is killed leaves nothing to restore.
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
"""Seconds between two looks at a display."""
DELAY: Final = 0.25
"""Seconds until a display appears: what is over by then needs none."""

_MOST_WAITING: Final = 1000
"""Texts that may wait to be written; when there are more, those that may be dropped are dropped."""


class Display(Protocol):
    """A few rows below the lines."""

    def rows(self, size: os.terminal_size, encoding: str) -> Sequence[str]:
        """Return what is to be seen now: at most ``size.lines - 1`` rows, narrower than ``size.columns``.

        Called by the printer's thread.
        """
        ...


class Printer:
    """Writes standard error in a thread, which starts with the first text and ends with :meth:`close`.

    No error of writing is raised: that nobody reads must not stop the work.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        # From here on, what the thread has for itself.
        self._display: Display | None = None
        self._next_look = 0.0
        self._painted: Sequence[str] = ()

    def print(self, text: str, *, may_drop: bool = False) -> None:
        """Print a line, or several; where it ``may_drop``, only if not too much is waiting already."""
        if not may_drop or self._queue.qsize() < _MOST_WAITING:
            self._do(partial(self._print, text))

    def show(self, display: Display) -> None:
        """Show a display below the lines, in a moment."""
        self._do(partial(self._show, display))

    def hide(self) -> None:
        """Remove the display."""
        self._do(self._hide)

    def close(self, patience: float | None = None) -> None:
        """Write what is waiting. What is printed later is written at once.

        Args:
            patience: After how many seconds to give up; None for never.
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
            # A daemon: a process can end though nobody takes what this one writes.
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
        except Exception as error:  # noqa: BLE001 - what is shown of the work must not end it
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
    """Return what clears painted rows and leaves the cursor where the first one began."""
    if not rows:
        return ""
    up = f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
    return f"\r{up}\x1b[J"


def _write_all(descriptor: int, data: bytes) -> None:
    # By descriptor: an interpreter that ends must not find a lock of `sys.stderr` held by a thread that waits.
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares it has made it non-blocking
            select.select([], [descriptor], [])


def _encoding() -> str:
    return getattr(sys.stderr, "encoding", None) or "utf-8"


def _terminal_size() -> os.terminal_size:
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return os.terminal_size((size.columns or 80, size.lines or 24))  # as terminals do that know no better


# ── without a thread ──


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey: control characters, and those that turn text around.

    Args:
        text: The text, perhaps somebody else's.
        keep: Characters that stay as they are.
    """
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def print_error(text: str, keep: str = "") -> None:
    """Print a line on standard error. That nobody reads it must not stop the work."""
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
    """Send what standard output still holds nowhere: the interpreter would fail to flush it at exit."""
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
