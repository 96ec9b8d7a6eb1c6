"""A file on its way to the disk while it is written."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Self

from ._aio import Worker, wait_out

if TYPE_CHECKING:
    from ._target import Target

__all__ = ["Syncer"]

_PORTION: Final = 64 << 20
"""Bytes after which those before are sent to the disk, so that not all of them wait for the end."""


class Syncer:
    """Sends a file to the disk, portion by portion, while it is written.

    Args:
        target: The file. An error of the disk is final for it: the kernel has dropped the pages.
        is_wanted: Whether anything is done at all.
    """

    def __init__(self, target: Target, *, is_wanted: bool) -> None:
        self._target = target
        self._is_wanted = is_wanted and hasattr(os, "fdatasync")
        self._worker = Worker("aiodockersave-sync")
        self._bytes = 0
        self._running: asyncio.Future[None] | None = None

    def written(self, size: int) -> None:
        """Count bytes that are being written; start to send a portion where it is time.

        Raises:
            OSError: The disk has refused an earlier one.
        """
        self._bytes += size
        if self._is_wanted and self._bytes >= _PORTION and (self._running is None or self._running.done()):
            self._bytes = 0
            self._check()
            self._running = self._worker.submit(self._target.sync_portion)

    def _check(self) -> None:
        if self._running is not None:
            self._running.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        """Wait for the portion that is on its way. What the disk refuses is raised here, or noted on a fault."""
        if self._running is not None and not isinstance(fault, GeneratorExit):  # then nothing can be awaited
            try:
                await wait_out(self._running)
            except OSError as exc:
                if fault is None:
                    raise
                if fault is not exc:
                    fault.add_note(f"while cleaning up: {exc}")
