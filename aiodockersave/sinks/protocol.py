"""Define the base class of this package's own sinks: the methods that a writer uses besides ``write``.

A caller's sink needs none of them: for it, the writer uses a plain :class:`Adapter`, which does nothing.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from aiodockersave._aio import Worker


class Adapter:
    """A sink of this package.

    Attributes:
        worker: The thread that writes; None if the event loop writes.
        expected_size: The size in bytes that was promised for the archive; None if none was promised.
    """

    worker: Worker | None = None
    expected_size: int | None = None

    def hold(self) -> AbstractContextManager[None]:
        """Keep the sink ready for writing while the block runs; one block is one call of a writer."""
        return contextlib.nullcontext()

    async def flush(self) -> None:
        """Wait until the sink has passed on the bytes that it took, as far as it can know that.

        Cancel: ends the wait; the sink keeps its bytes.
        """
