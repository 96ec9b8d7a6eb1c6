"""The events that a save tells a callback while it runs, on the event loop.

::

    SaveStarted ─▶ LayerReused … ─▶ LayerStarted ─▶ LayerAdvanced … ─▶ LayerFinished ─▶ ImageFinished ─▶ … ─▶ SaveFinished

:class:`Waiting` may come at any time, also before the first of these.

Layers overlap, where several are read at once. All sizes are bytes of blobs as the source has them, so that totals are
known from the start, also where layers are decompressed. Neither a layer's count nor the total ever decreases: bytes that
are fetched again are not counted again. Of each layer there is at most one :class:`LayerAdvanced` in 100 ms.

:class:`Books` has the blobs that a save reads, each of them once, and tells which images are whole.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from aiodockersave.core.model import Descriptor, Digest
from aiodockersave.core.plan import Report
from aiodockersave.core.text import one_line

from .resolve import Prepared, PreparedImage

if TYPE_CHECKING:
    from aiodockersave.blobs.content import OpenBlob
    from aiodockersave.sources.waits import Wait

    from .prefetch import Ahead

__all__ = [
    "Blob",
    "Books",
    "Event",
    "ImageFinished",
    "LayerAdvanced",
    "LayerFinished",
    "LayerRetried",
    "LayerReused",
    "LayerStarted",
    "Progress",
    "SaveFinished",
    "SaveStarted",
    "Waiting",
]

INTERVAL: Final = 0.1
"""Seconds between two events about how far one layer is."""


@dataclass(frozen=True, slots=True)
class SaveStarted:
    """Everything is prepared; the target is opened next.

    Attributes:
        prepared: What is saved.
        total: The bytes of all blobs, each counted once.
    """

    prepared: Prepared
    total: int


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """A layer is being read.

    Attributes:
        layer: The blob.
        resumed: How many of its bytes an earlier save has left; they are not fetched.
    """

    layer: Descriptor
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class LayerAdvanced:
    """Some of a layer was read.

    Attributes:
        layer: The blob.
        done: How many of its bytes were read, or resumed.
        total_done: How many of all blobs.
    """

    layer: Descriptor
    done: int
    total_done: int


@dataclass(frozen=True, slots=True)
class LayerRetried:
    """A layer broke off, or had wrong bytes, and is asked for again.

    Attributes:
        layer: The blob.
        retries: How often that has happened to it.
    """

    layer: Descriptor
    retries: int


@dataclass(frozen=True, slots=True)
class LayerFinished:
    """A layer is in the archive, verified.

    Attributes:
        layer: The blob.
        total_done: How many bytes of all blobs were read, or resumed.
    """

    layer: Descriptor
    total_done: int


@dataclass(frozen=True, slots=True)
class LayerReused:
    """A layer that another image has too, or this one twice: it is read once. Told at the start."""

    layer: Descriptor


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """All of an image was received."""

    image: PreparedImage


@dataclass(frozen=True, slots=True)
class SaveFinished:
    """The archive is whole."""

    report: Report


@dataclass(frozen=True, slots=True)
class Waiting:
    """A source waits, for longer than people expect: told after 2 seconds, and then each second.

    Attributes:
        wait: The wait, and how long it has lasted.
    """

    wait: Wait


Event = (
    SaveStarted
    | LayerStarted
    | LayerAdvanced
    | LayerRetried
    | LayerFinished
    | LayerReused
    | ImageFinished
    | SaveFinished
    | Waiting
)
Progress = Callable[[Event], None]
"""Called on the event loop, so it must not block. What it raises ends the save, as an error of a source does."""


def check_progress(progress: Progress | None) -> None:
    """Refuse a callback that would have to be awaited.

    Raises:
        TypeError: It is a coroutine function, or cannot be called.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a function, not {type(progress).__qualname__}")
    if inspect.iscoroutinefunction(progress) or inspect.iscoroutinefunction(type(progress).__call__):
        raise TypeError(
            "progress is called and not awaited: pass a plain function, which may put events into a queue"
        )


class Meter:
    """Count the bytes that are read of layers, and tell them, not too often.

    Args:
        notify: The callback; None if nobody wants to know.
        layers: The blobs that are read.
    """

    def __init__(self, notify: Progress | None, layers: Iterable[Descriptor]) -> None:
        self._notify = notify or _ignore
        self._done: dict[Digest, int] = {}
        self._told: dict[Digest, float] = {}
        self._retries: dict[Digest, int] = {}
        self._total_done = 0
        self.total = sum(layer.size or 0 for layer in layers)

    def tell(self, event: Event) -> None:
        """Pass on an event that is not about how far a layer is."""
        self._notify(event)

    def started(self, layer: Descriptor, resumed: int = 0) -> None:
        """Tell that a layer is read now; of one that starts again nothing is told."""
        if layer.digest not in self._done:
            self._done[layer.digest] = 0
            self._count(layer, resumed)
            self._told[layer.digest] = time.monotonic()
            self._notify(LayerStarted(layer, resumed))

    def advanced(self, layer: Descriptor, done: int) -> None:
        """Tell how far a layer is, unless that was told a moment ago."""
        if self._count(layer, done):
            now = time.monotonic()
            if now >= self._told[layer.digest] + INTERVAL:
                self._told[layer.digest] = now
                self._notify(LayerAdvanced(layer, self._done[layer.digest], self._total_done))

    def retried(self, layer: Descriptor) -> None:
        """Tell that a layer is asked for once more."""
        self._retries[layer.digest] = retries = self._retries.get(layer.digest, 0) + 1
        self._notify(LayerRetried(layer, retries))

    def retried_since(self, layer: Descriptor, before: int, now: int) -> int:
        """Tell each time that a source has asked again for a layer, of which ``before`` were told; return ``now``."""
        for _ in range(before, now):
            self.retried(layer)
        return now

    def finished(self, layer: Descriptor) -> None:
        """Tell that a layer is whole."""
        self._count(layer, layer.size or 0)
        self._notify(LayerFinished(layer, self._total_done))

    def _count(self, layer: Descriptor, done: int) -> bool:
        more = done - self._done[layer.digest]
        if more <= 0:
            return False
        self._done[layer.digest] = done
        self._total_done += more
        return True


def _ignore(_: Event) -> None:
    """Without a callback nobody is told."""


_log = logging.getLogger("aiodockersave")


class Blob(NamedTuple):
    """A blob to be read, and the first image that has it."""

    layer: Descriptor
    diff_id: Digest
    image: PreparedImage
    open: OpenBlob


class Books:
    """The blobs that are to be read, and the images that are not whole yet.

    Args:
        prepared: What is saved.
        meter: Is told.
        ahead: The blobs that were opened early.
    """

    def __init__(self, prepared: Prepared, meter: Meter, ahead: Ahead | None = None) -> None:
        self.meter = meter
        self.blobs: list[Blob] = []
        self._reused: list[Descriptor] = []
        self._missing: list[tuple[PreparedImage, set[Digest]]] = []
        seen: set[Digest] = set()
        for image in prepared.images:
            checked = image.image
            for layer, diff_id in zip(checked.layers, checked.config.diff_ids, strict=True):
                if layer.digest in seen:
                    self._reused.append(layer)
                else:
                    seen.add(layer.digest)
                    source = image.request.source
                    open_blob = source.open_blob if ahead is None else ahead.opener(source, layer)
                    self.blobs.append(Blob(layer, diff_id, image, open_blob))
            self._missing.append((image, {layer.digest for layer in checked.layers}))

    def begin(self) -> None:
        """Tell which layers are read once for several."""
        for layer in self._reused:
            self.meter.tell(LayerReused(layer))
        self._tell_images()

    def finished(self, layer: Descriptor) -> None:
        """Tell that a blob is in, and the images that it completes."""
        self.meter.finished(layer)
        for _, missing in self._missing:
            missing.discard(layer.digest)
        self._tell_images()

    def note_odd(self, blob: Blob) -> None:
        """Say that a layer, which is stored as it is, begins as none does."""
        _log.warning(
            "layer %s is neither compressed (gzip, zstd) nor a tar, so that what loads the archive may refuse it (image %.300s)",
            blob.layer.digest,
            one_line(str(blob.image.request)),
        )

    def _tell_images(self) -> None:
        while self._missing and not self._missing[0][1]:
            image, _ = self._missing.pop(0)
            self.meter.tell(ImageFinished(image))
