"""A blob of a source as content: all of it, or some, also of a source that can give only the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

from aiodockersave._aio import Fairness
from aiodockersave.core.model import Descriptor

from .content import Batch, OpenContent

__all__ = ["BlobContent", "OpenBlob"]


class OpenBlob(Protocol):
    """The verb of a source that gives content, as :class:`~aiodockersave.Source` has it."""

    def __call__(
        self, descriptor: Descriptor, /, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a blob from ``start`` up to ``stop``; NotImplementedError says that only the whole can be had."""
        ...


class BlobContent(OpenContent):
    """A blob while it is read.

    Args:
        open_blob: Opens it.
        descriptor: The blob.
        start: The first byte that is wanted.
        stop: The byte behind the last; None where it is read to its end, so that a surplus is seen.
    """

    def __init__(
        self, open_blob: OpenBlob, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> None:
        self._whole = partial(open_blob, descriptor)
        self._is_part = start > 0 or stop is not None
        super().__init__(partial(self._whole, start=start, stop=stop) if self._is_part else self._whole)
        self._start = start
        self._stop = stop
        self._skip = 0
        self._left: int | None = None
        self._entered: object = None
        self._fairness = Fairness()

    @property
    def retries(self) -> int:
        """The number of times that the source had to ask again, as far as its iterator says so by an attribute of this name."""
        retries = getattr(self._entered, "retries", 0)
        return retries if isinstance(retries, int) else 0

    async def _enter(self, content: Any) -> object:
        self._entered = await super()._enter(content)
        return self._entered

    async def open(self) -> None:
        """Open what is wanted, else the whole, of which the rest is left out.

        Cancel: as :meth:`OpenContent.open`.
        """
        try:
            await super().open()
        except NotImplementedError as exc:
            if not self._is_part or await self.close(exc):
                raise
            self._content, self._skip = self._whole, self._start
            self._left = None if self._stop is None else self._stop - self._start
            await super().open()

    async def read(self) -> Batch:
        """Return the next chunk of what is wanted; empty at its end.

        Cancel: as :meth:`OpenContent.read`.
        """
        while self._left != 0 and (chunk := await super().read()):
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            if skipped or self._left is not None:
                chunk = chunk[skipped : None if self._left is None else skipped + self._left]
            if chunk:
                if self._left is not None:
                    self._left -= len(chunk)
                return chunk
            await self._fairness.passed(skipped)
        return b""
