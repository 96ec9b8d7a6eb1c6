"""Write layers unchanged into a stream: the bytes of the plan, in their order.

::

    plan ─▶ known bytes, and blobs that are read ahead ─▶ sink

The archive is known before its first byte, so no written byte ever has to be changed. An interrupted save
leaves nothing in a sink that can rewind; in any other, the beginning of this archive without its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

from aiodockersave._aio import running_task
from aiodockersave.archive.stream import PlanStream, ReadingLimits
from aiodockersave.archive.transaction import Output, Transaction, check_promise
from aiodockersave.blobs.calls import Call
from aiodockersave.core.errors import DockerSaveError
from aiodockersave.core.first_bytes import is_like_a_layer
from aiodockersave.core.plan import Report
from aiodockersave.core.verify import new_plain_hash

from .resolve import note_image

if TYPE_CHECKING:
    from aiodockersave.core.decompression import PlainHash
    from aiodockersave.core.model import Descriptor, Limits
    from aiodockersave.core.plan import Plan
    from aiodockersave.sinks.adapters import AnySink

    from .progress import Books

__all__ = ["write_plan"]

_BUFFER: Final = 8 << 20
"""Bytes to read ahead, of all blobs together; bounds the memory for them."""


async def write_plan(
    sink: AnySink,
    plan: Plan,
    books: Books,
    *,
    jobs: int,
    checksum: bool,
    verify: Limits | None,
) -> Report:
    """Write the archive of a plan into a sink.

    Args:
        sink: The sink; any object that can be adapted to one.
        plan: The archive.
        books: The archive's blobs.
        jobs: The number of blobs that are read at once; all but one of them are read ahead.
        checksum: Whether the report has the SHA-256 of the archive.
        verify: The limits for expanding layers to verify their diff IDs, too; None to verify digests only.

    Raises:
        ContentError, SourceError: A blob differs from its descriptor, or cannot be fetched.
        SinkError: The sink breaks its protocol, or has promised another size.
        BaseException: An error of the sink.

    Cancel: a sink that can rewind is as it was; any other keeps the beginning of the archive.
    """
    output = Output(sink, checksum=checksum)
    check_promise(output, plan.size)
    books.begin()
    writing = _Writing(output, plan, books, jobs=jobs, verify=verify)
    with output.held():
        return await Call(running_task()).settle(
            writing.run,
            undo=writing.undo,
            closing=[writing.chunks, writing.transaction],
        )


class _Writing:
    """One save of a plan into a sink.

    Attributes:
        chunks: The bytes of the plan, as a stream.
        transaction: Writes them to the sink, and can take them back.
    """

    def __init__(
        self,
        output: Output,
        plan: Plan,
        books: Books,
        *,
        jobs: int,
        verify: Limits | None,
    ) -> None:
        self.transaction = Transaction(output)
        self._output = output
        self._plan = plan
        self._books = books
        self._verify = verify
        self._blobs = {blob.layer.digest: blob for blob in books.blobs}
        # Each blob follows known bytes, which include its header: so these announce the next blob.
        self._order = iter([each.descriptor for each in plan.segments if each.descriptor is not None])
        self._layer: Descriptor | None = None  # the layer being written, or whose header was read last
        self._position = self._retries = 0  # of that layer
        limits = ReadingLimits(blobs=jobs, buffer=_BUFFER // jobs, near_end=None)
        self.chunks = PlanStream(plan.parts(), self._open, limits=limits, new_plain=self._new_plain)

    async def run(self) -> Callable[[], Report]:
        """Write the whole archive, and return a function that makes the report."""
        known = b""
        while (chunk := await self._next()) is not None:
            if self.chunks.layer is None:
                known += chunk  # written with the next chunk: if the first blob fails, nothing is
                self._begin_next()
            else:
                await self.transaction.write(known, chunk)
                known = b""
                self._tell(len(chunk))
        await self.transaction.write(known, last=True)
        await self._output.flush()
        sha256 = await self.transaction.checksum()
        return lambda: Report(self._plan.size, self._plan.members, self._plan.images, sha256)

    def _begin_next(self) -> None:
        """Report that the next layer has begun: its header was in the chunk just read."""
        if self._layer is not None and not self._layer.size:  # an empty layer has no last chunk to report it
            self._books.finished(self._layer)
        self._layer = next(self._order, None)
        self._position = self._retries = 0
        if self._layer is not None:
            self._books.meter.started(self._layer)

    async def undo(self, fault: BaseException) -> None:
        """Take back the written bytes, if the sink can rewind."""
        await self.transaction.undo(fault)

    async def _next(self) -> bytes | None:
        try:
            return await anext(self.chunks, None)
        except DockerSaveError as exc:
            if self.chunks.layer is not None:
                note_image(exc, self._blobs[self.chunks.layer.digest].image.request)
            raise

    def _tell(self, size: int) -> None:
        """Report that ``size`` more bytes of the current blob were written."""
        reader, layer = self.chunks.current, self.chunks.layer
        if reader is None or layer is None:
            return
        meter = self._books.meter
        self._retries = meter.retried_since(layer, self._retries, reader.retries)
        self._position += size
        meter.advanced(layer, self._position)
        if reader.done:
            if not is_like_a_layer(reader.head):
                self._books.note_odd(self._blobs[layer.digest])
            self._books.finished(layer)

    def _open(self, layer: Descriptor, /, **wanted: Any) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._blobs[layer.digest].open(layer, **wanted)

    def _new_plain(self, layer: Descriptor) -> PlainHash | None:
        if self._verify is None:
            return None
        return new_plain_hash(layer, self._blobs[layer.digest].diff_id, self._verify)
