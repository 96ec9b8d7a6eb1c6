"""The powers that the sinks of this package have besides ``write``; a caller's sink is never asked for any of them."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from aiodockersave._aio import Worker


class Adapter:
    """A sink of ours.

    Attributes:
        worker: The thread that writes, where one does.
        expected_size: How large the archive must become, in bytes, where that was promised to somebody.
    """

    worker: Worker | None = None
    expected_size: int | None = None

    def hold(self) -> AbstractContextManager[None]:
        """Keep what is needed for writing, for the time of one call of a writer."""
        return contextlib.nullcontext()

    async def flush(self) -> None:
        """Wait until what was taken has been passed on, as far as that can be told.

        Cancel: the wait ends, and the sink still holds what it held.
        """
