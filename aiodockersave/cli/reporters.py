"""The progress of a save as the command shows it, in one of several forms.

=======  ==================================================================================
form     shown on standard error
=======  ==================================================================================
auto     bars on a terminal (:mod:`.bars`), plain lines elsewhere
plain    a line when a layer is in the archive, and every 5 s while it is read
json     one JSON object a line (:mod:`.json_lines`); messages and errors are objects, too
none     nothing
=======  ==================================================================================

All forms count by one :class:`Tally`, which never goes back.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from aiodockersave.core.model import Descriptor, Digest
from aiodockersave.pipeline.progress import (
    Event,
    LayerAdvanced,
    LayerFinished,
    LayerRetried,
    LayerReused,
    LayerStarted,
    SaveFinished,
    SaveStarted,
    Waiting,
)
from aiodockersave.pipeline.resolve import Prepared
from aiodockersave.sources.waits import Wait

from .terminal import Terminal

PATIENCE: Final = 5.0
"""Seconds between two plain lines about one layer: a log of an hour has 720 of them, not 36,000."""

WAIT_PATIENCE: Final = 30.0
"""Seconds between two plain lines about one wait: the longest wait, of 300 s, has ten of them."""
WINDOW: Final = 5.0
"""Seconds over which rates are measured."""
UNKNOWN_TIME: Final = "-:--"


# ── counting ──


@dataclass(slots=True)
class LayerTally:
    """The progress of one layer.

    Attributes:
        layer: The blob.
        number: The layer's place in the order, from 1 on.
        done: Bytes that were read, or resumed.
        resumed: Bytes that an earlier save has left.
        retries: Times that the layer was asked for again.
        is_waiting: Whether no byte has come since the layer was asked for again.
    """

    layer: Descriptor
    number: int
    done: int = 0
    resumed: int = 0
    retries: int = 0
    is_waiting: bool = False

    @property
    def size(self) -> int:
        """Bytes of the blob; 0 where the size is not known."""
        return self.layer.size or 0

    @property
    def short_name(self) -> str:
        """The first 12 digits of the digest, which people compare."""
        return self.layer.digest.encoded[:12]


@dataclass(slots=True)
class Tally:
    """The progress of a save. In whatever order events come, no count goes back.

    Attributes:
        total: Bytes of all blobs.
        total_done: Bytes of all blobs that were read, or resumed.
        layers: All layers.
        running: Layers that are being read.
        finished: Layers that are in the archive.
        reused: Layers that were not read again, because another image has them.
        is_over: Whether the archive is whole.
    """

    total: int = 0
    total_done: int = 0
    layers: dict[Digest, LayerTally] = field(default_factory=dict)
    running: dict[Digest, LayerTally] = field(default_factory=dict)
    finished: set[Digest] = field(default_factory=set)
    reused: int = 0
    is_over: bool = False

    def take(self, event: Event) -> None:
        """Count an event."""
        match event:
            case SaveStarted(prepared, total):
                self.total = total
                for layer in prepared.layers:
                    self.of(layer)
            case LayerStarted(layer, resumed):
                self._advance(layer, resumed, self.total_done + resumed)
                self.of(layer).resumed = resumed
            case LayerAdvanced(layer, done, total_done):
                self._advance(layer, done, total_done)
            case LayerRetried(layer, retries):
                tally = self.of(layer)
                tally.retries, tally.is_waiting = max(retries, tally.retries), True
            case LayerFinished(layer, total_done):
                self._advance(layer, layer.size or 0, total_done)
                self.running.pop(layer.digest, None)
                self.finished.add(layer.digest)
            case LayerReused():
                self.reused += 1
            case SaveFinished():
                self.is_over = True
            case _:
                pass

    def of(self, layer: Descriptor) -> LayerTally:
        """Return the tally of one layer."""
        return self.layers.setdefault(layer.digest, LayerTally(layer, len(self.layers) + 1))

    @property
    def percent(self) -> int:
        """The share of all bytes that is done; 100 when every layer is in the archive, and not before."""
        if self.is_over or (self.layers and len(self.finished) == len(self.layers)):
            return 100
        return min(99, 100 * self.total_done // self.total) if self.total else 0

    def _advance(self, layer: Descriptor, done: int, total_done: int) -> None:
        tally = self.of(layer)
        if layer.digest not in self.finished:
            self.running[layer.digest] = tally
        if done > tally.done:
            tally.done, tally.is_waiting = done, False
        self.total_done = max(total_done, self.total_done)


class Pace:
    """The speed at which a count grows."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """Note the count at a moment, in seconds."""
        self._noted.append((now, done))
        while now - self._noted[0][0] > WINDOW:
            self._noted.popleft()

    @property
    def rate(self) -> float | None:
        """Bytes a second within the window; None before there are two moments."""
        (begin, first), (end, last) = self._noted[0], self._noted[-1]
        return (last - first) / (end - begin) if end > begin else None

    def left(self, size: int) -> str:
        """Return the time until the count is ``size`` bytes, at this speed."""
        missing, rate = size - self._noted[-1][1], self.rate
        return clock(missing / rate) if rate and missing >= 0 else UNKNOWN_TIME


# ── showing ──


class Reporter:
    """Takes the events of a save, and shows nothing.

    The reporter is entered before the save and left after it, also after a failure: then its display is gone.

    Attributes:
        prepared: The images that are saved, once they are resolved.
        tally: The progress.
    """

    def __init__(self) -> None:
        self.prepared: Prepared | None = None
        self.tally = Tally()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end()

    def __call__(self, event: Event) -> None:
        """Take an event of the pipeline."""
        if isinstance(event, SaveStarted):
            self.prepared = event.prepared
        self.tally.take(event)
        self.show(event)

    def show(self, event: Event) -> None:
        """Show an event, which is counted already."""

    def end(self) -> None:
        """Remove the display."""


class WaitLines(Reporter):
    """Prints a line about each long wait, when it begins to be long and every `WAIT_PATIENCE` seconds."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._told: dict[tuple[str, str], tuple[float, float]] = {}
        """Of each wait: how long it had lasted at its last event, and at its last line."""

    def show(self, event: Event) -> None:
        """Print a line about a wait, if it is new, or there was none for a while."""
        if isinstance(event, Waiting):
            wait = event.wait
            before, line = self._told.get((wait.what, wait.reason), (0.0, -WAIT_PATIENCE))
            if wait.seconds < before or wait.seconds - line >= WAIT_PATIENCE:
                line = wait.seconds
                self._terminal.say(wait_line(wait))
            self._told[wait.what, wait.reason] = (wait.seconds, line)


def wait_line(wait: Wait) -> str:
    """Return a line about a wait."""
    return f"waiting, {wait.seconds:.0f} s of at most {wait.limit:.0f} s: {wait.reason} ({wait.what})"


class PlainLines(WaitLines):
    """Prints a line when a layer is in the archive, and one every `PATIENCE` seconds while it is read."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal)
        self._last_line: dict[Digest, float] = {}
        self._paces: dict[Digest, Pace] = {}

    def show(self, event: Event) -> None:
        """Print a line; about a layer that is being read, only if there was none for a while."""
        super().show(event)
        match event:
            case LayerStarted(layer):
                self._last_line[layer.digest] = time.monotonic()
            case LayerAdvanced(layer) | LayerRetried(layer):
                self._print_now_and_then(self.tally.of(layer))
            case LayerFinished(layer):
                self._paces.pop(layer.digest, None)
                tally = self.tally.of(layer)
                self._print(tally, amount(tally.done) + _remarks(tally))
            case LayerReused(layer):
                self._print(self.tally.of(layer), "is there more than once, and stored once")
            case _:
                pass

    def _print_now_and_then(self, tally: LayerTally) -> None:
        now, digest = time.monotonic(), tally.layer.digest
        pace = self._paces.setdefault(digest, Pace())
        pace.note(now, tally.done)
        if now - self._last_line.setdefault(digest, now) >= PATIENCE:
            self._last_line[digest] = now
            speed = "" if pace.rate is None else f", {amount(pace.rate)}/s, {pace.left(tally.size)} left"
            self._print(tally, f"{amount(tally.done)} of {amount(tally.size)}{speed}{_remarks(tally)}")

    def _print(self, tally: LayerTally, text: str) -> None:
        number = f"{tally.number}/{len(self.tally.layers)}"
        name = f"{tally.layer.digest.algorithm}:{tally.short_name}"
        self._terminal.say(f"{self.tally.percent:3}%  layer {number}  {name}  {text}")


def _remarks(tally: LayerTally) -> str:
    resumed = f", {amount(tally.resumed)} of it resumed" if tally.resumed else ""
    return resumed + (f", {count(tally.retries, 'retry', 'retries')}" if tally.retries else "")


def count(number: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def amount(size: float) -> str:
    """Return a size as people read it: three digits and a decimal unit."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.3g} {units[0]}"


def clock(seconds: float) -> str:
    """Return a duration as clocks show it: minutes and seconds, and hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > 99:
        return ">99 h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
