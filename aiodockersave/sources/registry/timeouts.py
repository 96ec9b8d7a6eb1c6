"""Limits on the time that a registry may take."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["Timeouts"]

_LONGER: Final = 1.25
"""Least ratio of the limits on heads and documents to ``silence``: silence must end first, so that its error says so."""


class Timeouts(NamedTuple):
    """Limits on time. A layer may be of any size, so only ``silence`` limits its transfer, not the whole time.

    Attributes:
        connect: Limit on one connection, TLS included, in seconds. All attempts on the addresses of one host together may
            take three times as long.
        silence: Limit between two pieces of an answer, in seconds.
        head: Limit on an answer's status and headers in all, interim answers (1xx) included, in seconds.
        document: Limit on the body of a manifest, config, token or error in all, in seconds.
        document_rate: The least average rate of such a body, in bytes per second, after a first time of a quarter more
            than ``silence``; 0 for any rate.

    The limits on heads and documents are at least a quarter longer than ``silence``.
    """

    connect: float = 10.0
    silence: float = 60.0
    head: float = 90.0
    # The largest that is read, 4 MiB, at 14 KiB/s; real ones have some 10 KiB.
    document: float = 300.0
    document_rate: float = 1024.0

    @property
    def longest_head(self) -> float:
        """The limit on status and headers, in seconds; longer than ``silence``, so that silence is reported as such."""
        return max(self.head, _LONGER * self.silence)

    def longest_document(self, size: int) -> float:
        """Return the limit on the time from the start of a document to its next byte, in seconds.

        Args:
            size: Bytes of the document that have come.
        """
        earned = size / self.document_rate if self.document_rate > 0 else math.inf
        first = _LONGER * self.silence
        return min(first + earned, max(self.document, first))
