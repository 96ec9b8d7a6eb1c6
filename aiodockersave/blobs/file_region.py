"""A blob into its region of a file: received on the loop, hashed and written at its offset in a thread.

::

    source ──chunks──▶ queue ──▶ thread: region.take ──▶ … ──▶ region.finish
             loop

Nothing of it depends on what other blobs do: each writes into its own region only, and knows the bytes of it that are right.
All of a blob is over when :func:`fill` has returned or raised: its connection is closed, and no thread works for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from aiodockersave._aio import Fairness, Worker, running_task
from aiodockersave.core.errors import ContentError, SinkError
from aiodockersave.core.verify import Verifier

from .calls import Call
from .content import BlobContent, OpenBlob
from .thread_queue import BEHIND, ThreadQueue

if TYPE_CHECKING:
    from aiodockersave.core.decompression import PlainHash
    from aiodockersave.core.model import Descriptor
    from aiodockersave.core.plan import Segment

    from .content import Batch
    from .open_file import OpenFile

__all__ = ["FileRegion", "Meter", "Region", "fill", "write_at", "write_literals"]

BATCH_SIZE: Final = 1 << 18
"""Bytes that are worth a hop to a thread, for large blobs."""
_LEAST_BATCH: Final = 1 << 17
"""The same for small ones, whose thread would begin when all is here."""
_BATCHES: Final = 64
"""The number of batches that a blob is cut into at least, as long as they are no smaller than that."""
_LEAST_BEHIND: Final = 2 * BATCH_SIZE
"""Bytes that the thread of each blob may have to take, however many blobs there are."""
PIECE: Final = 1 << 18
"""Bytes that are read back and hashed at once."""
_LAST_ZEROS: Final = 64 << 10
"""Zeros at the end of a blob that are taken for its own: a plain tar ends with a record of them."""


class Meter(Protocol):
    """Counts how much of each blob was received."""

    def advanced(self, layer: Descriptor, done: int, /) -> None:
        """Count that the first ``done`` bytes of a blob were received."""

    def retried_since(self, layer: Descriptor, before: int, now: int, /) -> int:
        """Count the retries of a source beyond ``before``; return ``now``."""
        ...


class Region(Protocol):
    """The place of one blob, as :func:`fill` uses it.

    Attributes:
        verifier: Verifies the blob.
    """

    verifier: Verifier

    def take(self, chunks: Sequence[Batch]) -> None:
        """Take the next bytes."""
        ...

    def finish(self) -> int:
        """Verify what was taken, and return how many bytes are in the region."""
        ...


class FileRegion:
    """The region of a file that a blob is stored in as it is. All methods block; one thread at a time calls them.

    Attributes:
        position: How many bytes of the blob are hashed and in their place.
        verifier: Verifies the blob.

    Args:
        file: The file.
        offset: Where the blob starts in it.
        descriptor: The blob, with its size.
        plain: Computes the digest of its plain tar, where that is verified, too.
    """

    def __init__(
        self, file: OpenFile, offset: int, descriptor: Descriptor, plain: PlainHash | None = None
    ) -> None:
        self.position = 0
        self.verifier = Verifier(descriptor, plain=plain)
        self._file = file
        self._offset = offset
        self._size = descriptor.size or 0

    def find(self) -> int:
        """Return how many bytes of an earlier attempt may be there: zeros at their end may never have been written."""
        with self._file as fd:
            stop = min(os.fstat(fd).st_size - self._offset, self._size)
            while stop > 0:
                start = max(0, stop - PIECE)
                kept = os.pread(fd, stop - start, self._offset + start).rstrip(b"\0")
                if kept:
                    return start + len(kept)
                stop = start
        return 0

    def read_back(self, stop: int) -> None:
        """Hash what is there, up to ``stop``, instead of taking it.

        Raises:
            SinkError: The file was cut meanwhile.
        """
        with self._file as fd:
            while self.position < stop:
                data = os.pread(fd, min(PIECE, stop - self.position), self._offset + self.position)
                if not data:
                    raise SinkError("the part file was cut while it was read")
                with suppress(ContentError):  # raised again by take and finish: it may be a wrong byte
                    self.verifier.update([data])
                self.position += len(data)

    def is_whole(self) -> bool:
        """Tell whether all of the blob is there and right, perhaps with zeros at its end."""
        missing = self._size - self.position
        if missing > _LAST_ZEROS or not self.verifier.would_finish(bytes(missing)):
            return False
        self.take([bytes(missing)])
        return True

    def take(self, chunks: Sequence[Batch]) -> None:
        """Hash and write the next bytes.

        Raises:
            OSError: They cannot be written.
            ContentError: Their plain tar is damaged, or too large.
        """
        with self._file as fd:
            for chunk in chunks:
                write_at(fd, chunk, self._offset + self.position)
                self.position += len(chunk)
                self.verifier.update([chunk])

    def finish(self) -> int:
        """Verify what was taken, and return how many bytes are in the region.

        Raises:
            ContentError: It is not what was promised.
        """
        self.verifier.finish()
        return self.position


def write_at(fd: int, data: Batch, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def write_literals(file: OpenFile, segments: Iterable[Segment], size: int) -> None:
    """Write all of an archive that is no blob's, and cut the file to the archive's size."""
    with file as fd:
        for segment in segments:
            if segment.data is not None:
                write_at(fd, segment.data, segment.offset)
        os.ftruncate(fd, size)


async def fill(
    region: Region,
    open_blob: OpenBlob,
    layer: Descriptor,
    *,
    worker: Worker,
    meter: Meter,
    readers: int = 1,
    start: int = 0,
    written: Callable[[int], None] = lambda _: None,
) -> int:
    """Read a blob into its region, and verify it.

    Args:
        region: Takes the bytes, in the thread of ``worker``.
        open_blob: Opens the blob, as a source's method does.
        layer: The blob, with its size.
        worker: The thread.
        meter: Is told how far it is.
        readers: How many blobs are read at once: what may wait in memory is shared by them.
        start: How many bytes the region has already.
        written: Is called with a number of bytes that the thread was given.

    Returns:
        How many bytes are in the region.

    Raises:
        ContentError: The blob is not what was promised.
        BaseException: What the source or the region raises.

    Cancel: nothing goes on; what was taken until then is in its place, and nothing of it is verified.
    """
    verifier, fairness = region.verifier, Fairness()
    verifier.received = start
    content = BlobContent(open_blob, layer, start=start)
    queue = ThreadQueue(
        region.take,
        worker,
        least=min(BATCH_SIZE, max(_LEAST_BATCH, (layer.size or 0) // _BATCHES)),
        limit=max(_LEAST_BEHIND, BEHIND // readers),
        inline=0,  # a disk may take its time
        stop=verifier.stop,
    )

    async def work() -> Callable[[], int]:
        # 1. All chunks to the thread; too many are refused before they are handed over.
        await content.open()
        retries = 0
        while True:
            await queue.room()
            if not (chunk := await content.read()):
                break
            retries = meter.retried_since(layer, retries, content.retries)
            verifier.count(len(chunk))
            if size := queue.give(chunk):
                written(size)
                meter.advanced(layer, verifier.received)
            await fairness.passed(len(chunk))
        # 2. The rest of them, and what they have come to: what the disk has refused comes before what is missing.
        if size := await queue.drain():
            written(size)
        verifier.end()
        stored = await worker.run(region.finish)
        return lambda: stored

    try:
        return await Call(running_task()).settle(work, content=content, closing=[queue])
    except BaseException as exc:
        queue.note_on(exc)
        raise
