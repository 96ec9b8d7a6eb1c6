"""A loop's clock that a test puts forward: what the product waits for is over when the test says so, not when a machine is slow."""

from __future__ import annotations

import asyncio
from typing import Any


class LoopClock:
    """The clock of the running loop, from now on.

    A limit of the product may so be long, so that no busy machine reaches it, and is over all the same as soon as what the
    test is about has begun.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real_time = loop.time
        self._ahead = 0.0
        loop.time = self._time  # type: ignore[method-assign]

    def _time(self) -> float:
        return self._real_time() + self._ahead

    def put_forward(self, seconds: float) -> None:
        """Let so many seconds pass at once: whatever waits for less is due."""
        self._ahead += seconds

    async def put_forward_until(self, waiting: asyncio.Future[Any], seconds: float) -> None:
        """Do so again and again until something is done, which may begin to wait only later; a test's limit ends it."""
        while not waiting.done():
            self.put_forward(seconds)
            await asyncio.sleep(0.01)
