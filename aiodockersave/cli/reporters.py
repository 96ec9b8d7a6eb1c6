"""The progress of a save as the command shows it, in one of several forms.

=======  ==================================================================================
form     what is shown, all of it on standard error
=======  ==================================================================================
auto     bars on a terminal (:mod:`.bars`), plain lines elsewhere
plain    a line when a layer is in, and now and then while a large one is read
json     one JSON object a line (:mod:`.json_lines`); messages and errors are objects, too
none     nothing
=======  ==================================================================================

All forms count by one :class:`Tally`, which never goes back.
"""

from __future__ import annotations

import time
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
)
from aiodockersave.pipeline.resolve import Prepared

from .terminal import Terminal

PATIENCE: Final = 5.0
"""Seconds between two plain lines about one layer."""


# ── counting ──


@dataclass(slots=True)
class LayerTally:
    """The progress of one layer.

    Attributes:
        layer: The blob.
        number: Which one it is, from 1 on.
        done: How many of its bytes were read, or resumed.
        resumed: How many of them an earlier save has left.
        retries: How often it was asked for again.
        is_waiting: Whether nothing came since it was asked for again.
    """

    layer: Descriptor
    number: int
    done: int = 0
    resumed: int = 0
    retries: int = 0
    is_waiting: bool = False

    @property
    def size(self) -> int:
        """Bytes of the blob; 0 where that is not known."""
        return self.layer.size or 0

    @property
    def short_name(self) -> str:
        """As much of the digest as people compare."""
        return self.layer.digest.encoded[:12]


@dataclass(slots=True)
class Tally:
    """The progress of a save. In whatever order events come, no count goes back.

    Attributes:
        total: Bytes of all blobs.
        total_done: How many of them were read, or resumed.
        layers: All layers.
        running: Those that are being read.
        finished: Those that are in the archive.
        reused: How many more there are that were in already.
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
        """Count what an event tells."""
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
        """The share of all blobs that is done; 100 when every layer is in the archive, and not before."""
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


# ── showing ──


class Reporter:
    """Takes the events of a save, and shows nothing of them.

    It is entered before the save and left after it, also where that fails: then nothing of it is to be seen any more.

    Attributes:
        prepared: What is saved, once that is known.
        tally: How far it is.
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
        """Show an event that was counted."""

    def end(self) -> None:
        """Remove what is not to stay."""


class PlainLines(Reporter):
    """A line when a layer is in, and one now and then while a large one is read."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._last_line: dict[Digest, float] = {}

    def show(self, event: Event) -> None:
        """Print a line, unless there was one a moment ago."""
        match event:
            case LayerStarted(layer):
                self._last_line[layer.digest] = time.monotonic()
            case LayerAdvanced(layer) | LayerRetried(layer):
                self._print_now_and_then(self.tally.of(layer))
            case LayerFinished(layer):
                tally = self.tally.of(layer)
                self._print(tally, amount(tally.done) + _remarks(tally))
            case LayerReused(layer):
                self._print(self.tally.of(layer), "is there for another image")
            case _:
                pass

    def _print_now_and_then(self, tally: LayerTally) -> None:
        now, digest = time.monotonic(), tally.layer.digest
        if now - self._last_line.setdefault(digest, now) >= PATIENCE:
            self._last_line[digest] = now
            self._print(tally, f"{amount(tally.done)} of {amount(tally.size)}{_remarks(tally)}")

    def _print(self, tally: LayerTally, text: str) -> None:
        number = f"{tally.number}/{len(self.tally.layers)}"
        name = f"{tally.layer.digest.algorithm}:{tally.short_name}"
        self._terminal.say(f"{self.tally.percent:3}%  layer {number}  {name}  {text}")


def _remarks(tally: LayerTally) -> str:
    resumed = f", {amount(tally.resumed)} of it resumed" if tally.resumed else ""
    return resumed + (f", {count(tally.retries, 'retry', 'retries')}" if tally.retries else "")


def count(number: int, one: str, many: str) -> str:
    """Return a number of things."""
    return f"{number} {one if number == 1 else many}"


def amount(size: float) -> str:
    """Return a size as people read it: three digits and a decimal unit."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.3g} {units[0]}"
