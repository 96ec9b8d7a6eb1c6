"""Progress as bars: one for each layer that is being read, and one for all together, below everything else.

::

    3f2a9c81b2d4 ━━━━━━━━━━━━━━━━━━━━━━━━━━╺━━━━━━━━━━━━━  64%  17.4 MB/27.1 MB  10.2 MB/s  0:01
    a81f07cc3e55 ━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  16%  1.02 MB/6.31 MB  2.33 MB/s  0:02
    3/5 layers   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━  84%    151 MB/180 MB  12.5 MB/s  0:02

A layer's bar goes when the layer is in the archive. A narrow terminal lacks the rate first, then the amount, then the time.

rich draws the bar alone, once for each percent. Its ``Progress`` is not used: it hides the cursor, which a killed process
would leave hidden; its rate does not fall while a layer stalls; and it takes 4.9 ms for a look at nine bars, where these take
0.1 ms, ten times a second, while the loop waits for the interpreter. The printer's thread imports rich when the bars first
appear: the import takes 50 ms, two fifths of a tiny save, which is over before.
"""

from __future__ import annotations

import io
import os
import re
import time
from typing import TYPE_CHECKING, Final

from aiodockersave.core.model import Digest
from aiodockersave.pipeline.progress import Event, SaveStarted, Waiting

from .printing import printable
from .reporters import LayerTally, Pace, Reporter, amount, clock, count, wait_line
from .terminal import Terminal

if TYPE_CHECKING:
    from rich.console import Console

# Columns that each part of a row takes.
_NAME, _PERCENT, _AMOUNT, _RATE, _LEFT = 12, 4, 15, 9, 7
_GAP: Final = "  "
_SHORTEST_BAR, _LONGEST_BAR = 8, 40
_FRESH: Final = 2.0
"""Seconds for which a line about a wait is shown: the next event about it comes after one."""
_STYLING: Final = re.compile(r"\x1b\[[0-9;]*m")


class Bars(Reporter):
    """Bars while the save runs, one line when it is done, and nothing if it fails."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._begin = time.monotonic()
        self._wait: tuple[float, str] = (0.0, "")  # until when a line about a wait is shown, and the line
        self._is_shown = False
        # Of the printer's thread:
        self._paces: dict[Digest | None, Pace] = {}
        self._painter: _Painter | None = None

    def show(self, event: Event) -> None:
        """Bring up the bars, which look up how far the layers are when they are painted."""
        if isinstance(event, SaveStarted):
            self._begin = time.monotonic()
        elif isinstance(event, Waiting):
            self._wait = (time.monotonic() + _FRESH, printable(wait_line(event.wait)))
        if not self._is_shown and isinstance(event, SaveStarted | Waiting):
            self._is_shown = True
            self._terminal.printer.show(self)

    def end(self) -> None:
        """Take the bars down."""
        self._terminal.printer.hide()
        if self.tally.is_over:
            self._terminal.say(self._summary())

    def _summary(self) -> str:
        layers = self.tally.layers.values()
        resumed = sum(each.resumed for each in layers)
        retries = sum(each.retries for each in layers)
        seconds = time.monotonic() - self._begin
        parts = [
            count(len(layers), "layer", "layers"),
            *([f"{self.tally.reused} reused"] if self.tally.reused else []),
            amount(self.tally.total_done),
            *([f"{amount(resumed)} of it resumed"] if resumed else []),
            *([count(retries, "retry", "retries")] if retries else []),
        ]
        return f"{self.tally.percent:3}%  {', '.join(parts)} in {clock(seconds)}"

    # ── in the printer's thread ──

    def rows(self, size: os.terminal_size, encoding: str) -> list[str]:
        """Return a row for each layer that is read, as far as there is room, and one for all."""
        if self._painter is None or (self._painter.size, self._painter.encoding) != (size, encoding):
            self._painter = _Painter(size, encoding)
        running = tuple(self.tally.running.values())  # a copy: the loop's thread changes it
        self._forget_all_but(running)
        until, line = self._wait
        waiting = [line[: max(1, size.columns - 1)]] if time.monotonic() < until else []
        if not self.tally.layers and self.prepared is None:  # nothing is known yet
            return waiting
        room = max(0, size.lines - 2 - len(waiting))
        return [
            *waiting[: max(0, size.lines - 2)],
            *(self._layer_row(self._painter, each) for each in running[:room]),
            self._total_row(self._painter),
        ]

    def _layer_row(self, painter: _Painter, layer: LayerTally) -> str:
        pace = self._pace(layer.layer.digest, layer.done)
        # A bar is full when the layer is in, which is when it goes.
        percent = min(99, 100 * layer.done // layer.size) if layer.size else 0
        left = f"retry {layer.retries}" if layer.is_waiting else pace.left(layer.size)
        return painter.row(layer.short_name, percent, (layer.done, layer.size), pace.rate, left)

    def _total_row(self, painter: _Painter) -> str:
        tally = self.tally
        name = f"{len(tally.finished)}/{len(tally.layers)}"
        if len(name) <= _NAME - len(" layers"):
            name += " layers"
        pace = self._pace(None, tally.total_done)
        done = (tally.total_done, tally.total)
        return painter.row(name, tally.percent, done, pace.rate, pace.left(tally.total))

    def _pace(self, of: Digest | None, done: int) -> Pace:
        pace = self._paces.setdefault(of, Pace())
        pace.note(time.monotonic(), done)
        return pace

    def _forget_all_but(self, running: tuple[LayerTally, ...]) -> None:
        keep = {None, *(each.layer.digest for each in running)}
        self._paces = {of: pace for of, pace in self._paces.items() if of in keep}


class _Painter:
    """Makes rows for one size of terminal.

    Attributes:
        size: The size.
        encoding: The encoding of the terminal.
    """

    def __init__(self, size: os.terminal_size, encoding: str) -> None:
        self.size = size
        self.encoding = encoding
        # One column less: in the last one, terminals do not agree where the cursor is.
        self._width = max(1, size.columns - 1)
        self._console = _new_console(self._width, encoding)
        self._bars: dict[int, str] = {}  # of each percent

    def row(self, name: str, percent: int, done: tuple[int, int], rate: float | None, left: str) -> str:
        """Return a row; ``done`` is the number of bytes that were read, and of all bytes."""
        parts = self._parts(percent, done, rate, left)
        room = self._width - _NAME - len(" ") - sum(map(len, parts))
        if room < _SHORTEST_BAR:
            return f"{name:{_NAME}.{_NAME}}{''.join(parts)}"[: self._width]
        if percent not in self._bars:
            self._bars[percent] = self._bar(percent, min(room, _LONGEST_BAR))
        return f"{name:{_NAME}.{_NAME}} {self._bars[percent]}{''.join(parts)}"

    def _parts(self, percent: int, done: tuple[int, int], rate: float | None, left: str) -> list[str]:
        """Return the texts behind the bar, as far as there is room."""
        room = self._width - _NAME - len(" ") - _SHORTEST_BAR - len(_GAP) - _PERCENT
        shown_rate = "" if rate is None else f"{amount(rate)}/s"
        fits = []
        for width in (_LEFT, _AMOUNT, _RATE):  # the most wanted first
            room -= len(_GAP) + width
            fits.append(room >= 0)
        has_left, has_amount, has_rate = fits
        return [
            f"{_GAP}{percent:{_PERCENT - 1}}%",
            *([f"{_GAP}{f'{amount(done[0])}/{amount(done[1])}':>{_AMOUNT}.{_AMOUNT}}"] if has_amount else []),
            *([f"{_GAP}{shown_rate:>{_RATE}.{_RATE}}"] if has_rate else []),
            *([f"{_GAP}{left:>{_LEFT}.{_LEFT}}"] if has_left else []),
        ]

    def _bar(self, percent: int, width: int) -> str:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415 - see the head of this file

        with self._console.capture() as capture:
            self._console.print(ProgressBar(100, percent, width), end="")
        bar = capture.get()
        return bar + " " * (width - len(_STYLING.sub("", bar)))  # without colours the rest is not drawn


def _new_console(width: int, encoding: str) -> Console:
    from rich.console import Console  # noqa: PLC0415 - see the head of this file

    # rich decides on colours, and takes the characters that it may use from the file's encoding.
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, force_terminal=True, width=width, height=1, legacy_windows=False)
