"""Bytes beyond their ratio that the layers of one archive expand to, all together: else their number would be the bomb."""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["SharedExpansion"]

_TOGETHER: Final = 1 << 30
"""Plain bytes: as many as sixteen layers may have beyond what the ratio allows them."""


class SharedExpansion:
    """Counts them; it may be called from any thread.

    What counts of a layer is the most that it was ahead of its ratio. So the sum depends neither on the order of layers,
    nor on how often one is read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most: dict[object, int] = {}
        self._total = 0

    def __call__(self, layer: object, size: int) -> bool:
        """Count that a layer is so many bytes ahead; tell whether all layers are within what they have together."""
        with self._lock:
            before = self._most.get(layer, 0)
            if size > before:
                self._most[layer] = size
                self._total += size - before
            return self._total <= _TOGETHER
