"""The powers that the sinks of this package have besides ``write``; a caller's sink is never asked for them."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from aiodockersave._aio import Worker


class Adapter:
    """A sink of ours.

    Attributes:
        worker: The thread that writes; None where the loop writes.
        expected_size: The size in bytes that was promised for the archive; None where none was.
    """

    worker: Worker | None = None
    expected_size: int | None = None

    def hold(self) -> AbstractContextManager[None]:
        """Keep ready for writing during the block, which is one call of a writer."""
        return contextlib.nullcontext()

    async def flush(self) -> None:
        """Wait until the bytes that were taken have been passed on, as far as that can be known.

        Cancel: ends the wait; the sink keeps its bytes.
        """
