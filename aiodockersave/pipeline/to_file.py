"""Saving to a file with layers as they are: several blobs at once, each at the offset that the plan has for it.

No order, nothing staged. What is no blob's (headers, configs, metadata) is written last. So the bytes are the plan's,
whatever came first. What an earlier attempt has left is hashed, and only what is missing is fetched; the digest decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiodockersave._aio import Worker, run_together
from aiodockersave.blobs.filling import fill
from aiodockersave.blobs.placing import KeptBlob, write_literals
from aiodockersave.core.errors import ContentError

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
        file: The file; what is in it may be of an earlier attempt.
        plan: The archive.
        books: Its blobs.
        jobs: How many of them are read at once.
        resume: Whether what is in the file is gone on with.
        verify: How far layers may expand whose plain tars are verified beside; None where they are not.
        written: Is called with a number of bytes that are being written.

    Raises:
        ContentError, SourceError: A blob is not what was promised, or cannot be had.
        OSError: The file cannot be written.

    Cancel: nothing goes on.
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
                    placing = _Kept(file, offset, blob, books, worker, readers, written, verify)
                    await placing.run(resume=resume)
                books.finished(blob.layer)

    books.begin()
    if books.blobs:
        await run_together(*[run] * readers)
    await Worker("aiodockersave-file").run(write_literals, file, plan.segments, plan.size)


class _Kept:
    """One blob that is stored as it is.

    Attributes:
        placement: Its way into its place.
    """

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
        self._verify = verify
        self.placement = self._new_placement()
        self._books = books
        self._meter = books.meter
        self._worker = worker
        self._readers = readers
        self._written = written

    def _new_placement(self) -> KeptBlob:
        layer = self._blob.layer
        if self._verify is None:
            return KeptBlob(self._file, self._offset, layer)
        from aiodockersave.core.decompression import PlainHash  # noqa: PLC0415 - nothing else that is kept has a use of it

        diff_id = self._blob.diff_id
        plain_hash = PlainHash(diff_id.hasher(), what=f"layer {layer.digest}", limits=self._verify)
        return KeptBlob(self._file, self._offset, layer, diff_id, plain_hash)

    async def run(self, *, resume: bool) -> None:
        """Bring it into its place; what is right there already is not fetched."""
        if (await self._place(resume=resume)).is_odd:
            self._books.note_odd(self._blob)

    async def _place(self, *, resume: bool) -> KeptBlob:
        layer, placement = self._blob.layer, self.placement
        is_whole = resume and await self._take_over(placement)
        start = placement.position
        if start == layer.size and not is_whole:
            placement, start = self._new_placement(), 0
        self._meter.started(layer, start)
        if is_whole:
            await self._worker.run(placement.finish)
            return placement
        try:
            await self._fill(placement)
        except Exception as exc:
            # A source that is told of a wrong digest may have made an error of its own of it.
            is_wrong = placement.is_right is False or isinstance(exc, ContentError)
            if not (start and is_wrong) or placement.is_right:  # only the diff ID may be wrong then
                raise
            self._meter.retried(layer)
            placement = self._new_placement()
            await self._fill(placement)
        return placement

    async def _take_over(self, placement: KeptBlob) -> bool:
        """Hash what an earlier attempt has left; tell whether that is the whole blob."""
        stop = await self._worker.run(placement.find)
        step = _READ_BACK if self._verify is None else _READ_BACK_INFLATED
        while placement.position < stop:
            await self._worker.run(placement.read_back, min(stop, placement.position + step))
        return await self._worker.run(placement.is_whole)

    async def _fill(self, placement: KeptBlob) -> None:
        await fill(
            placement,
            self._blob.open,
            self._blob.layer,
            worker=self._worker,
            meter=self._meter,
            readers=self._readers,
            start=placement.position,
            written=self._written,
        )
