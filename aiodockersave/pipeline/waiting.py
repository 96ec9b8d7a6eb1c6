"""Report what sources wait for, if a wait takes longer than people expect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final

from aiodockersave._aio import ending, running_task
from aiodockersave.sources import Source
from aiodockersave.sources.waits import SupportsWaits

from .progress import Progress, Waiting

__all__ = ["TellingWaits"]

PATIENCE: Final = 2.0
"""Seconds that a wait must last to be reported: a shorter one surprises nobody."""
INTERVAL: Final = 1.0
"""Seconds between two checks, and so between two events about one wait."""


class TellingWaits:
    """Call ``progress`` with an event for each long wait of sources, while the block runs.

    If ``progress`` raises an error, the block is cancelled, and the error is raised after the block.

    Cancel: is raised when no more events can come.
    """

    def __init__(self, sources: Iterable[Source], progress: Progress | None) -> None:
        each_once = {id(source): source for source in sources}.values()
        self._sources = [source for source in each_once if isinstance(source, SupportsWaits)]
        self._progress = progress
        self._cancels = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._fault: BaseException | None = None

    async def __aenter__(self) -> None:
        if self._progress is not None and self._sources:
            owner = running_task()
            self._cancels = owner.cancelling()
            self._tasks.append(asyncio.ensure_future(self._tell(self._progress, owner)))

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await ending(lambda: self._tasks).__aexit__(exc_type, exc, tb)
        if self._fault is None:
            return
        # The error of `progress` replaces only our own cancel, not another cancel or an error of the block.
        is_alone = running_task().uncancel() <= self._cancels
        if exc is None or (isinstance(exc, asyncio.CancelledError) and is_alone):
            raise self._fault from None

    async def _tell(self, progress: Progress, owner: asyncio.Task[Any]) -> None:
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                for source in self._sources:
                    for wait in source.waits():
                        if wait.seconds >= PATIENCE:
                            progress(Waiting(wait))
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - raised in the owner's task
            self._fault = exc
            owner.cancel()
