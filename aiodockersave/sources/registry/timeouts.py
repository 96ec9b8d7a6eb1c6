"""Limits on the time that a registry may take."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["Timeouts"]

_LONGER: Final = 1.25
"""Times that the other limits are longer than silence, at least."""


class Timeouts(NamedTuple):
    """Limits on time. A layer has no limit on the whole, since it may be of any size: only on silence.

    Attributes:
        connect: For a connection, TLS included, in seconds. Where a host has several addresses that do not answer, three
            times as long for all of them.
        silence: Between two pieces of an answer, in seconds.
        head: For an answer's status and headers in all, interim answers (1xx) included, in seconds.
        document: For the body of a manifest, config, token or error in all, in seconds.
        document_rate: How fast such a body must come on average, in bytes per second, after a first time that is as long
            as silence may be; 0 for any rate.

    Where ``silence`` is longer than the limits on heads and documents, these are a quarter longer than it.
    """

    connect: float = 10.0
    silence: float = 60.0
    head: float = 90.0
    # The largest that is read, 4 MiB, at 14 KiB/s; real ones have some 10 KiB.
    document: float = 300.0
    document_rate: float = 1024.0

    @property
    def longest_head(self) -> float:
        """The limit on a head, in seconds: longer than silence, so that silence is called so."""
        return max(self.head, _LONGER * self.silence)

    def longest_document(self, size: int) -> float:
        """Return how long a document of which ``size`` bytes have come may take until there are more, in seconds."""
        earned = size / self.document_rate if self.document_rate > 0 else math.inf
        first = _LONGER * self.silence
        return min(first + earned, max(self.document, first))
