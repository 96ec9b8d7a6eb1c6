"""Read a blob into its region of a file: receive it on the loop, hash and write it in a thread.

::

    source ──chunks──▶ queue ──▶ thread: region.take ──▶ … ──▶ region.finish
             loop

The idea to know first: blobs do not depend on each other. Each blob writes only into its own region, and
knows which bytes there are right. When :func:`fill` has returned or raised, the connection of its blob is
closed and no thread works for the blob.
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
"""The bytes that a large blob gathers before it hands them to its thread: fewer are not worth the hop."""
_LEAST_BATCH: Final = 1 << 17
"""The same for a small blob: with larger batches its thread would begin only when all bytes are here."""
_BATCHES: Final = 64
"""The least number of batches of a blob, as long as no batch gets smaller than :data:`_LEAST_BATCH`."""
_LEAST_BEHIND: Final = 2 * BATCH_SIZE
"""The bytes that may always wait for the thread of each blob, however many blobs are read at once."""
PIECE: Final = 1 << 18
"""The bytes of one read when a region is read back."""
_LAST_ZEROS: Final = 64 << 10
"""The most missing bytes that may be zeros of the blob itself: a plain tar ends with a record of zeros."""


class Meter(Protocol):
    """Count the received bytes and the retries of each blob."""

    def advanced(self, layer: Descriptor, done: int, /) -> None:
        """Record that the first ``done`` bytes of a blob were received."""

    def retried_since(self, layer: Descriptor, before: int, now: int, /) -> int:
        """Count the retries of a source beyond ``before``; return ``now``."""
        ...


class Region(Protocol):
    """The place that :func:`fill` writes one blob to.

    Attributes:
        verifier: Verifies the blob.
    """

    verifier: Verifier

    def take(self, chunks: Sequence[Batch]) -> None:
        """Take the next bytes."""
        ...

    def finish(self) -> int:
        """Verify the bytes that were taken, and return how many bytes are in the region."""
        ...


class FileRegion:
    """The region of a file that stores a blob unchanged. All methods block; one thread at a time calls them.

    Attributes:
        position: The number of bytes of the blob that are hashed and in their place.
        verifier: Verifies the blob.

    Args:
        file: The file.
        offset: The offset of the blob in the file.
        descriptor: The blob, with its size.
        plain: Computes the digest of the plain tar of the blob, if that is verified too.
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
        """Return how many bytes of an earlier attempt may be there.

        Zeros at the end do not count: they may be a hole that was never written.
        """
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
        """Hash the bytes of the region up to ``stop``, so that they need not be received again.

        Raises:
            SinkError: The file became shorter while it was read.
        """
        with self._file as fd:
            while self.position < stop:
                data = os.pread(fd, min(PIECE, stop - self.position), self._offset + self.position)
                if not data:
                    raise SinkError("the part file was cut while it was read")
                with suppress(ContentError):  # one wrong byte may cause it; take and finish raise it again
                    self.verifier.update([data])
                self.position += len(data)

    def is_whole(self) -> bool:
        """Return whether the whole blob is there and right, after adding missing zeros at its end."""
        missing = self._size - self.position
        if missing > _LAST_ZEROS or not self.verifier.would_finish(bytes(missing)):
            return False
        self.take([bytes(missing)])
        return True

    def take(self, chunks: Sequence[Batch]) -> None:
        """Hash and write the next bytes.

        Raises:
            OSError: The bytes cannot be written.
            ContentError: The plain tar is damaged, or too large.
        """
        with self._file as fd:
            for chunk in chunks:
                write_at(fd, chunk, self._offset + self.position)
                self.position += len(chunk)
                self.verifier.update([chunk])

    def finish(self) -> int:
        """Verify the bytes that were taken, and return how many bytes are in the region.

        Raises:
            ContentError: The blob does not match its descriptor, or its plain tar is wrong.
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
    """Write every segment that is not a blob, and set the size of the file to ``size``."""
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
        meter: Counts the received bytes and the retries.
        readers: The number of blobs that are read at once; they share the bytes that may wait in memory.
        start: The number of bytes that the region has already.
        written: Is called with the number of bytes of each batch that was handed to the thread.

    Returns:
        The number of bytes in the region.

    Raises:
        ContentError: The blob does not match its descriptor, or its plain tar is wrong.
        BaseException: The error that the source or the region raises.

    Cancel: no work continues; the bytes taken until then are in their place, and none of them are verified.
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
        # 1. Hand all chunks to the thread. ``count`` refuses a surplus before it is handed over.
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
        # 2. Hand over the rest, then verify. ``drain`` comes before ``end``, so that an error of the disk is
        # raised rather than the error of a blob that is too short.
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
