"""The blobs that a save reads, each of them once, and the images that are whole by then."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from aiodockersave.core.text import one_line

from .progress import ImageFinished, LayerReused, Meter
from .resolve import Prepared, PreparedImage

if TYPE_CHECKING:
    from aiodockersave.blobs.blob_content import OpenBlob
    from aiodockersave.core.model import Descriptor, Digest

    from .prefetch import Ahead

__all__ = ["Blob", "Books"]

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
        ahead: What was asked for already.
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
