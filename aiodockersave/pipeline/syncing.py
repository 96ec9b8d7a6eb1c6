"""A file on its way to the disk while it is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from aiodockersave._aio import Beside

if TYPE_CHECKING:
    from aiodockersave.sinks.atomic_file import Target

__all__ = ["Syncer"]

_PORTION: Final = 64 << 20
"""Bytes after which those before are sent to the disk, so that not all of them wait for the end."""


class Syncer(Beside):
    """Sends a file to the disk, portion by portion, while it is written.

    Args:
        target: The file. An error of the disk is final for it: the kernel has dropped the pages.
        is_wanted: Whether anything is done at all.
    """

    def __init__(self, target: Target, *, is_wanted: bool) -> None:
        super().__init__("aiodockersave-sync")
        self._target = target
        self._is_wanted = is_wanted and hasattr(os, "fdatasync")
        self._bytes = 0

    def written(self, size: int) -> None:
        """Count bytes that are being written; start to send a portion where it is time.

        Raises:
            OSError: The disk has refused an earlier one.
        """
        self._bytes += size
        if self._is_wanted and self._bytes >= _PORTION and self.is_free():
            self._bytes = 0
            self.start(self._target.sync_portion)
