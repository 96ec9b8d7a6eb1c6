"""Report a save's progress to a callback, as events, on the event loop.

::

    SaveStarted ─▶ LayerReused … ─▶ LayerStarted ─▶ LayerAdvanced … ─▶ LayerFinished ─▶ ImageFinished ─▶ … ─▶ SaveFinished

:class:`Waiting` may come at any time, even before the first of these events.

Events of layers interleave if several layers are read at once. All sizes are bytes of blobs as the source has
them, so that totals are known from the start, even if layers are decompressed. Neither a layer's count nor
the total ever decreases: bytes that are fetched again are not counted again. Each layer gets at most one
:class:`LayerAdvanced` in 100 ms.

:class:`Books` lists the blobs that a save reads, each of them once, and reports which images are complete.
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
"""Minimum seconds between two :class:`LayerAdvanced` events of one layer."""


@dataclass(frozen=True, slots=True)
class SaveStarted:
    """Everything is prepared; the target is opened next.

    Attributes:
        prepared: The images that are saved.
        total: The bytes of all blobs, each counted once.
    """

    prepared: Prepared
    total: int


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """A layer is being read.

    Attributes:
        layer: The blob.
        resumed: The number of bytes that an earlier save has left; they are not fetched.
    """

    layer: Descriptor
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class LayerAdvanced:
    """Some of a layer was read.

    Attributes:
        layer: The blob.
        done: The bytes of this layer that were read or resumed.
        total_done: The bytes of all blobs that were read or resumed.
    """

    layer: Descriptor
    done: int
    total_done: int


@dataclass(frozen=True, slots=True)
class LayerRetried:
    """A layer broke off or was wrong, and is fetched again.

    Attributes:
        layer: The blob.
        retries: How often this layer was fetched again.
    """

    layer: Descriptor
    retries: int


@dataclass(frozen=True, slots=True)
class LayerFinished:
    """A layer is in the archive, verified.

    Attributes:
        layer: The blob.
        total_done: The bytes of all blobs that were read or resumed.
    """

    layer: Descriptor
    total_done: int


@dataclass(frozen=True, slots=True)
class LayerReused:
    """A layer that occurs again, in another or the same image, and is read once. Reported at the start."""

    layer: Descriptor


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """All layers of an image were received."""

    image: PreparedImage


@dataclass(frozen=True, slots=True)
class SaveFinished:
    """The archive is complete."""

    report: Report


@dataclass(frozen=True, slots=True)
class Waiting:
    """A source waits longer than people expect; reported after 2 seconds, and then each second.

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
"""Called on the event loop, so it must not block. An error of it ends the save, like an error of a source."""


def check_progress(progress: Progress | None) -> None:
    """Refuse a callback that would have to be awaited.

    Raises:
        TypeError: The callback is a coroutine function, or cannot be called.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a function, not {type(progress).__qualname__}")
    if inspect.iscoroutinefunction(progress) or inspect.iscoroutinefunction(type(progress).__call__):
        raise TypeError(
            "progress is called and not awaited: pass a plain function, which may put events into a queue"
        )


class Meter:
    """Counts the bytes that are read of layers, and reports them, but not too often.

    Args:
        notify: The callback; None for none.
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
        """Report an event that needs no counting."""
        self._notify(event)

    def started(self, layer: Descriptor, resumed: int = 0) -> None:
        """Report that a layer is being read now; report nothing if it has started before."""
        if layer.digest not in self._done:
            self._done[layer.digest] = 0
            self._count(layer, resumed)
            self._told[layer.digest] = time.monotonic()
            self._notify(LayerStarted(layer, resumed))

    def advanced(self, layer: Descriptor, done: int) -> None:
        """Count that ``done`` bytes of a layer were read; report it unless an event has just done so."""
        if self._count(layer, done):
            now = time.monotonic()
            if now >= self._told[layer.digest] + INTERVAL:
                self._told[layer.digest] = now
                self._notify(LayerAdvanced(layer, self._done[layer.digest], self._total_done))

    def retried(self, layer: Descriptor) -> None:
        """Report that a layer is fetched again."""
        self._retries[layer.digest] = retries = self._retries.get(layer.digest, 0) + 1
        self._notify(LayerRetried(layer, retries))

    def retried_since(self, layer: Descriptor, before: int, now: int) -> int:
        """Report each retry of a source beyond the ``before`` that were reported already; return ``now``."""
        for _ in range(before, now):
            self.retried(layer)
        return now

    def finished(self, layer: Descriptor) -> None:
        """Report that a layer is complete."""
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
    """Ignore an event: there is no callback."""


_log = logging.getLogger("aiodockersave")


class Blob(NamedTuple):
    """A blob to read, with the first image that has it."""

    layer: Descriptor
    diff_id: Digest
    image: PreparedImage
    open: OpenBlob


class Books:
    """The blobs to read, and the images that are not complete yet.

    Args:
        prepared: The images to save.
        meter: Reports the events.
        ahead: The layers that were prefetched; None for none.
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
        """Report the layers that occur several times and are read once, and images that need no layer."""
        for layer in self._reused:
            self.meter.tell(LayerReused(layer))
        self._tell_images()

    def finished(self, layer: Descriptor) -> None:
        """Report that a blob is in the archive, and report the images that it completes."""
        self.meter.finished(layer)
        for _, missing in self._missing:
            missing.discard(layer.digest)
        self._tell_images()

    def note_odd(self, blob: Blob) -> None:
        """Warn that a layer, which is stored unchanged, does not begin like a layer."""
        _log.warning(
            "layer %s is neither compressed (gzip, zstd) nor a tar, so that what loads the archive may refuse it (image %.300s)",
            blob.layer.digest,
            one_line(str(blob.image.request)),
        )

    def _tell_images(self) -> None:
        while self._missing and not self._missing[0][1]:
            image, _ = self._missing.pop(0)
            self.meter.tell(ImageFinished(image))
