"""Write layers unchanged into a file: several blobs at once, each at the offset that the plan gives it.

Blobs arrive in any order, and nothing is staged. All other bytes of the plan (headers, configs, metadata) are
written last, so the file always gets exactly the plan's bytes. To resume, the bytes that an earlier attempt
has left are hashed, and only missing bytes are fetched; the digest decides whether the kept bytes were right.
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
"""Bytes of an earlier attempt that one blocking call hashes; bounds how long a cancel has to wait."""
_READ_BACK_INFLATED: Final = 1 << 18
"""The same if the bytes are decompressed, too: they may expand a thousand times."""


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
        file: The file; it may hold bytes of an earlier attempt.
        plan: The archive.
        books: The archive's blobs.
        jobs: The number of blobs that are read at once.
        resume: Whether to reuse the bytes of an earlier attempt.
        verify: The limits for expanding layers to verify their diff IDs, too; None to verify digests only.
        written: Called with each number of bytes that are being written.

    Raises:
        ContentError, SourceError: A blob differs from its descriptor, or cannot be fetched.
        OSError: The file cannot be written.

    Cancel: when the cancel is raised, nothing runs any more.
    """
    # 1. Sort the blobs, and define the reader that takes one blob after the other.
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

    # 2. Write the blobs with several readers at once, then all other bytes.
    books.begin()
    if books.blobs:
        await run_together(*[run] * readers)
    await Worker("aiodockersave-file").run(write_literals, file, plan.segments, plan.size)


class _Placing:
    """The writing of one blob into its region of the file."""

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
        """Complete the blob's region: fetch the bytes that are missing there, and verify the blob."""
        layer, region = self._blob.layer, self._new_region()
        # 1. Hash the bytes that an earlier attempt has left.
        is_whole = resume and await self._take_over(region)
        if region.position == layer.size and not is_whole:
            region = self._new_region()  # every byte is there, but the digest is wrong: start over
        self._meter.started(layer, region.position)
        # 2. Fetch the missing bytes; fetch all bytes once more if those of the earlier attempt were wrong.
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
        """Hash the bytes that an earlier attempt has left; return whether they are the whole blob."""
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
            # The verifier's error counts: the source may have turned it into an error of its own.
            fault = region.verifier.fault or exc
            is_right = region.verifier.digest == self._blob.layer.digest  # then its plain tar is wrong
            # Fetching everything again helps only if wrong bytes of an earlier attempt may be the cause.
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
