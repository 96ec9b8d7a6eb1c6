"""Save to a file with layers kept: write several blobs at once, each at its offset in the plan.

Blobs arrive in any order, and none is staged. All other bytes (headers, configs, metadata) are written last. So the file has
the bytes of the plan, whichever blob came first. To resume, the bytes of an earlier attempt are hashed, and only the missing
ones are fetched; the digest decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiodockersave._aio import Worker, run_together
from aiodockersave.blobs.file_region import FileRegion, fill, write_literals
from aiodockersave.core.errors import ContentError
from aiodockersave.core.first_bytes import is_like_a_layer
from aiodockersave.core.verify import new_plain_hash

from .resolve import naming

if TYPE_CHECKING:
    from aiodockersave.blobs.open_file import OpenFile
    from aiodockersave.core.model import Limits
    from aiodockersave.core.plan import Plan

    from .progress import Blob, Books

__all__ = ["file_kept"]

_READ_BACK: Final = 32 << 20
"""Bytes of an earlier attempt that are hashed by one blocking call: how long a cancel may have to wait."""
_READ_BACK_INFLATED: Final = 1 << 18
"""The same where they are decompressed, too: there may be a thousand times as many."""


async def file_kept(
    file: OpenFile,
    plan: Plan,
    books: Books,
    *,
    jobs: int,
    resume: bool,
    verify: Limits | None = None,
    written: Callable[[int], None],
) -> None:
    """Write the archive of a plan into a file.

    Args:
        file: The file, perhaps with bytes of an earlier attempt.
        plan: The archive.
        books: Its blobs.
        jobs: How many of them are read at once.
        resume: Whether to resume from the bytes in the file.
        verify: The limits on the expansion of layers, if their plain tars are verified; else None.
        written: Is called with a number of bytes that are being written.

    Raises:
        ContentError, SourceError: A blob has other bytes than promised, or cannot be fetched.
        OSError: The file cannot be written.

    Cancel: no blob is read any more.
    """
    offsets = {
        segment.descriptor.digest: segment.offset
        for segment in plan.segments
        if segment.descriptor is not None
    }
    waiting = iter(sorted(books.blobs, key=lambda blob: -(blob.layer.size or 0)))  # the largest takes longest

    readers = min(jobs, len(books.blobs))

    async def run() -> None:
        worker = Worker("aiodockersave-blob")
        with worker.held():
            for blob in waiting:
                with naming(blob.image.request):
                    offset = offsets[blob.layer.digest]
                    placing = _Placing(file, offset, blob, books, worker, readers, written, verify)
                    await placing.run(resume=resume)
                books.finished(blob.layer)

    books.begin()
    if books.blobs:
        await run_together(*[run] * readers)
    await Worker("aiodockersave-file").run(write_literals, file, plan.segments, plan.size)


class _Placing:
    """One blob on its way into its region of the file."""

    def __init__(
        self,
        file: OpenFile,
        offset: int,
        blob: Blob,
        books: Books,
        worker: Worker,
        readers: int,
        written: Callable[[int], None],
        verify: Limits | None,
    ) -> None:
        self._file = file
        self._offset = offset
        self._blob = blob
        self._books = books
        self._meter = books.meter
        self._worker = worker
        self._readers = readers
        self._written = written
        self._verify = verify

    async def run(self, *, resume: bool) -> None:
        """Fill the region of the blob; right bytes that are there already are not fetched."""
        layer, region = self._blob.layer, self._new_region()
        # 1. Hash the bytes of an earlier attempt.
        is_whole = resume and await self._take_over(region)
        if region.position == layer.size and not is_whole:
            region = self._new_region()  # all of it, and wrong
        self._meter.started(layer, region.position)
        # 2. Fetch the missing bytes; if the old ones are wrong, fetch the whole blob.
        if is_whole:
            await self._worker.run(region.finish)
        else:
            region = await self._receive(region)
        if not is_like_a_layer(region.verifier.head):
            self._books.note_odd(self._blob)

    def _new_region(self) -> FileRegion:
        layer, limits = self._blob.layer, self._verify
        plain = None if limits is None else new_plain_hash(layer, self._blob.diff_id, limits)
        return FileRegion(self._file, self._offset, layer, plain)

    async def _take_over(self, region: FileRegion) -> bool:
        """Hash the bytes of an earlier attempt; return whether they are the whole blob."""
        stop = await self._worker.run(region.find)
        step = _READ_BACK if self._verify is None else _READ_BACK_INFLATED
        while region.position < stop:
            await self._worker.run(region.read_back, min(stop, region.position + step))
        return await self._worker.run(region.is_whole)

    async def _receive(self, region: FileRegion) -> FileRegion:
        start = region.position
        try:
            await self._fill(region)
        except Exception as exc:
            # A source that is told of a wrong digest may have made an error of its own of it.
            fault = region.verifier.fault or exc
            is_right = region.verifier.digest == self._blob.layer.digest  # so its plain tar is not
            if not start or is_right or not isinstance(fault, ContentError):
                raise
        else:
            return region
        self._meter.retried(self._blob.layer)
        region = self._new_region()
        await self._fill(region)
        return region

    async def _fill(self, region: FileRegion) -> None:
        await fill(
            region,
            self._blob.open,
            self._blob.layer,
            worker=self._worker,
            meter=self._meter,
            readers=self._readers,
            start=region.position,
            written=self._written,
        )
