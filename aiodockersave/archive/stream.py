"""Stream an archive to a consumer that pulls: any range of a plan, or a build while it writes.

:func:`stream_plan` joins known bytes and blobs; :func:`archive_stream` turns a function that writes into an
object that is read. Both return a :class:`ByteStream`: one task at a time iterates it, and any task may close
it.

The idea to know first: no cancel scope, task group or time-out is open while the consumer has a chunk. An
object that one task must open, iterate and close gets a task of its own
(:mod:`aiodockersave.blobs.read_ahead`). So a cancelled ``__anext__`` loses nothing, and the task that closes
need not be the task that reads.

The stream of a plan holds back one chunk of each blob::

    source ──▶ task that reads ahead ──▶ chunk that is held back ──▶ consumer
                                    └──▶ gathered chunks ──▶ SHA-256, in a thread

The last chunk of a blob leaves only when the blob is verified, so a consumer that counts bytes never takes a
wrong blob for a complete one. Of a blob that a range cuts only the length is checked, since the part has no
known digest.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self, Unpack

from aiodockersave._aio import Fairness, check_cancel_scopes, close_all, running_task
from aiodockersave.blobs.content import BlobContent, OpenBlob
from aiodockersave.blobs.read_ahead import Feed, ReadAhead, close_together
from aiodockersave.blobs.transfer import Transfer
from aiodockersave.core.errors import ContentError, WriterClosedError
from aiodockersave.core.model import Descriptor
from aiodockersave.core.plan import Part, Plan, Report
from aiodockersave.core.verify import Verifier

from .writer import ArchiveWriter, WriterOptions

if TYPE_CHECKING:
    from aiodockersave.core.decompression import PlainHash

__all__ = [
    "READ_AHEAD",
    "ArchiveStream",
    "ByteStream",
    "OpenBlob",
    "OutgoingBlob",
    "PlanStream",
    "archive_stream",
    "stream_plan",
]

READ_AHEAD = 1 << 20
"""The bytes of one blob that may wait to be returned; by default two blobs are open at a time."""


class OutgoingBlob:
    """Read a blob, or the part of it in the range, and hold back its last chunk until it is verified.

    Attributes:
        feed: Reads the blob ahead.
    """

    def __init__(
        self,
        part: Part,
        descriptor: Descriptor,
        open_blob: OpenBlob,
        *,
        buffer: int = READ_AHEAD,
        plain: PlainHash | None = None,
    ) -> None:
        self._size = part.size
        if part.is_whole:
            verifier = Verifier(descriptor, plain=plain)
            content = BlobContent(open_blob, descriptor)
        else:
            verifier = Verifier(descriptor, part=(part.start, part.stop))
            stop = None if part.stop == part.segment.size else part.stop
            content = BlobContent(open_blob, descriptor, start=part.start, stop=stop)
        self._content = content
        self.feed = ReadAhead(content, limit=buffer)
        self._transfer = Transfer(self, descriptor, verifier=verifier, least=1)

    @property
    def done(self) -> bool:
        """Whether :meth:`next` has returned the last chunk, and nothing is open."""
        return self._transfer.done

    @property
    def head(self) -> bytes:
        """The first bytes of a whole blob, at most 512; complete once the blob is done."""
        return self._transfer.verifier.head

    @property
    def retries(self) -> int:
        """The number of retries of the source."""
        return self._content.retries

    @property
    def missing(self) -> int:
        """The number of bytes that are still to be received."""
        return self._size - self._transfer.verifier.received

    def start(self) -> None:
        """Open the blob, and read ahead."""
        self.feed.start()

    async def next(self) -> bytes:
        """Return the next chunk.

        Raises:
            DigestMismatchError, SizeMismatchError: The blob does not match its descriptor or diff ID.
            BaseException: The error that the source raises.

        Cancel: no byte is lost.
        """
        chunk = await self._transfer.next()
        if self.done:
            await self._transfer.close()
        return bytes(chunk)

    async def read(self) -> bytes:
        """Return the next chunk of the feed; empty at the end.

        Cancel: no byte is lost.
        """
        try:
            return await self.feed.read()
        except ContentError as exc:
            exc.add_note(f"while reading {self._transfer.verifier.what}")
            raise

    def cancel(self) -> None:
        """Begin to close: stop reading, and let the thread end."""
        self.feed.cancel()
        self._transfer.abandon()

    async def aclose(self) -> None:
        """Close the blob, and wait until neither task nor thread works for it.

        Cancel: is raised after that.
        """
        self.cancel()
        await close_all([self._transfer.close, self.feed.aclose])  # the hash first: it ends by itself


NEAR_END: Final = 16 << 20
"""The missing bytes of a blob at which the next one is opened: about the bytes that arrive while it opens."""


class ReadingLimits(NamedTuple):
    """The limits on how far a plan's blobs are read ahead of the bytes that leave.

    Attributes:
        blobs: The most blobs that are open at once, including the current one.
        buffer: The bytes of each blob that may wait.
        near_end: The most bytes that the current blob may lack when the next one is opened; None for any
            number. A client may take hours for a blob: the next one would hold an idle connection, which its
            registry may close.
    """

    blobs: int = 2
    buffer: int = READ_AHEAD
    near_end: int | None = NEAR_END


class ByteStream(abc.ABC):
    """An iterator of bytes. Use it with ``async with``, or close it: otherwise tasks or sources stay open.

    One task reads at a time; any task may close, at any time. If the stream is closed before its end, a
    waiting read and all later reads raise ``anyio.ClosedResourceError``, so that no reader takes the cut for
    the end. After the end, reads raise ``StopAsyncIteration``, also on a closed stream. A stream that has
    failed raises the same error at each read, until it is closed.
    """

    def __init__(self) -> None:
        self._is_read = False
        self._ended = False
        self._closed = False
        self._failure: Exception | None = None
        self._traceback: TracebackType | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk, which is never empty.

        Raises:
            StopAsyncIteration: All chunks were returned.
            ClosedResourceError: The stream is closed, or was closed during the call.
            EventLoopError: The caller does not run under asyncio.

        Cancel: nothing is lost, the next call resumes. The stream stays open.
        """
        running_task()
        if self._is_read:
            raise RuntimeError("the stream is being read already: one task reads at a time")
        self._is_read = True
        try:
            # If the next chunk is always ready, nothing waits, and a cancel scope cannot deliver its cancel.
            await check_cancel_scopes()
            return await self._pull()
        finally:
            self._is_read = False

    async def close(self) -> None:
        """Do as :meth:`aclose`.

        Cancel: as :meth:`aclose`.
        """
        await self.aclose()

    async def aclose(self) -> None:
        """Close everything that is open, and return when nothing is left open; a second call does nothing.

        Cancel: the closing itself is interrupted once more; the cancel is raised when nothing is left open.
        """
        self._closed = True
        self._failure, self._traceback = None, None  # their frames hold this object: break the cycle
        await self._close()

    async def __aenter__(self) -> Self:
        running_task()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # For GeneratorExit too: the reader may be an async generator that is being closed, which may await.
        await self.aclose()

    async def _pull(self) -> bytes:
        if self._failure is not None:
            raise self._failure.with_traceback(self._traceback)
        if not self._ended:
            self._check_open()
            try:
                chunk = await self._next()
            except Exception as exc:
                if not self._closed:
                    self._failure, self._traceback = exc, exc.__traceback__
                    await self._close()
                raise
            if chunk:
                return chunk
            self._ended = True
        raise StopAsyncIteration

    def _check_open(self) -> None:
        if self._closed:
            from anyio import ClosedResourceError  # noqa: PLC0415 - `_aio` says why anyio is not loaded before

            raise ClosedResourceError("the stream is closed")

    @abc.abstractmethod
    async def _next(self) -> bytes:
        """Return the next chunk; empty at the end, with nothing left open. A cancel must lose nothing."""

    @abc.abstractmethod
    async def _close(self) -> None:
        """Close everything that is open, whether or not a call of ``_next`` waits."""


# ── the bytes of a plan ──


def stream_plan(plan: Plan, open_blob: OpenBlob, *, start: int = 0, stop: int | None = None) -> PlanStream:
    """Stream the bytes of a planned archive from ``start`` up to ``stop``, or to its end.

    ::

        async with stream_plan(plan, source.open_blob, start=start) as chunks:
            async for chunk in chunks:
                await response.write(chunk)

    Only the blobs in the range are opened, at the bytes that the range needs. Each is opened when the blob
    before it has begun to leave and has little to come. A blob that lies wholly in the range is verified, and
    its last chunk is held back until its digest is right; of a blob that the range cuts the length is
    checked. Chunks leave as they arrive.

    Args:
        plan: The plan of the archive.
        open_blob: Opens a blob: the method of a source, or your own function.
        start: The offset of the first byte.
        stop: The offset after the last byte.

    Raises:
        InvalidInputError: The archive has no such range.

    While the stream is iterated:

    Raises:
        DigestMismatchError, SizeMismatchError: A blob does not match the plan.
        Exception: The error that ``open_blob`` raises.
    """
    return PlanStream(plan.parts(start, stop), open_blob)


class PlanStream(ByteStream):
    """Stream the bytes of a planned archive.

    Attributes:
        size: The total number of bytes.
        layer: The blob of the last call, whose bytes were returned or which failed; None for known bytes.
        current: The reader of that blob; None for a blob without bytes.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        open_blob: OpenBlob,
        *,
        limits: ReadingLimits | None = None,
        new_plain: Callable[[Descriptor], PlainHash | None] = lambda _: None,
    ) -> None:
        """Prepare the stream; nothing is opened yet.

        Args:
            parts: The parts of the archive to stream, in order.
            open_blob: Opens a blob.
            limits: The limits on reading ahead.
            new_plain: Returns the hash of the plain tar for a blob that lies wholly in the range; None if the
                plain tar is not verified.
        """
        super().__init__()
        self.size = sum(part.size for part in parts)
        self.layer: Descriptor | None = None
        self.current: OutgoingBlob | None = None
        self._limits = limits or ReadingLimits()
        self._new_plain = new_plain
        self._parts = iter(parts)
        self._blobs = _blobs(parts, open_blob, self._limits.buffer, new_plain)
        self._ahead: deque[OutgoingBlob] = deque()
        self._fairness = Fairness()
        self._given = 0

    async def _next(self) -> bytes:
        # Suspend before taking a chunk: a cancel that comes here loses nothing.
        await self._fairness.passed(self._given)
        self._given = 0
        if self._is_over():
            self.current = None
            self._read_ahead()  # open the next blob while the known bytes before it leave
        chunk = b""
        while not chunk:
            if self.current is not None and not self._is_over():
                chunk = await self.current.next()
                self._read_ahead()
            elif (part := next(self._parts, None)) is not None:
                chunk = self._begin(part)
            else:
                break
        self._given = len(chunk)
        return chunk

    def _begin(self, part: Part) -> bytes:
        """Return the bytes of a known part; of a blob, make it the current one and return no bytes."""
        self.layer = descriptor = part.segment.descriptor
        self.current = None
        if descriptor is None:
            return (part.segment.data or b"")[part.start : part.stop]
        if part.size:
            self._read_ahead()
            self.current = self._ahead.popleft()
        else:  # verify an empty blob without asking the source
            Verifier(descriptor, plain=self._new_plain(descriptor)).finish()
        return b""

    def _is_over(self) -> bool:
        """Return whether there is no current blob, or all of its bytes were returned."""
        return self.current is None or self.current.done

    def _read_ahead(self) -> None:
        """Open the next blobs, if the limits allow more and the current one is near its end."""
        self._check_open()  # another task may have closed the stream during an await
        most, near_end = self._limits.blobs, self._limits.near_end
        if self.current is not None and not self._is_over():
            if near_end is not None and self.current.missing > near_end:
                return
            most -= 1
        elif near_end is not None:
            most = 1  # no blob is leaving yet: open only the next one
        while len(self._ahead) < most and (blob := next(self._blobs, None)) is not None:
            self._ahead.append(blob)
            blob.start()

    def abandon(self) -> None:
        """Close the stream without awaiting: tasks and threads end by themselves."""
        self._closed = True
        for blob in self._open():
            blob.cancel()

    def _open(self) -> list[OutgoingBlob]:
        return [*([] if self.current is None else [self.current]), *self._ahead]

    async def _close(self) -> None:
        blobs = self._open()
        for blob in blobs:
            blob.cancel()
        feeds = [blob.feed for blob in blobs]
        await close_all([partial(close_together, feeds), *[blob.aclose for blob in blobs]])


def _blobs(
    parts: Iterable[Part],
    open_blob: OpenBlob,
    buffer: int,
    new_plain: Callable[[Descriptor], PlainHash | None],
) -> Iterator[OutgoingBlob]:
    for part in parts:
        descriptor = part.segment.descriptor
        if descriptor is not None and part.size:
            plain = new_plain(descriptor) if part.is_whole else None
            yield OutgoingBlob(part, descriptor, open_blob, buffer=buffer, plain=plain)


# ── a build ──


def archive_stream(
    build: Callable[[ArchiveWriter], Awaitable[object]], **options: Unpack[WriterOptions]
) -> ArchiveStream:
    """Stream the archive that ``build`` writes, while it writes.

    ::

        async def build(archive: ArchiveWriter) -> None:
            await archive.put_layer(partial(source.open_blob, layer), layer)
            await archive.put_image(config, manifest, ["example.com/app:1.0"])

        async with archive_stream(build) as chunks:
            await session.post(url, data=chunks)
        chunks.report

    The build runs in a task of its own from the first read on, at most one piece ahead of the reader: the
    writer waits until the reader has taken the piece before. When the build returns, the archive is closed.
    Closing the stream before that cancels the build at its await, and waits for its end.

    Args:
        build: Puts layers and images; it must not close the archive.
        options: The options of :class:`ArchiveWriter`.

    Raises:
        InvalidInputError, TypeError: As ``ArchiveWriter``.

    While the stream is iterated:

    Raises:
        WriterClosedError: The build aborted the archive, and returned.
        Exception: The error that the build raises, after the bytes that were written before it.
    """
    return ArchiveStream(build, options)


class ArchiveStream(ByteStream):
    """Stream the archive of a build.

    Attributes:
        report: The report of the archive, once the iteration has reached its end; None before.
    """

    def __init__(self, build: Callable[[ArchiveWriter], Awaitable[object]], options: WriterOptions) -> None:
        """Prepare the stream; the build does not run yet."""
        super().__init__()
        self.report: Report | None = None
        self._feed = _Build(build, options)

    async def _next(self) -> bytes:
        piece = await self._feed.read()
        if not piece:
            self.report = self._feed.report
        return piece

    async def _close(self) -> None:
        await self._feed.aclose()


class _Build(Feed):
    """Run a build in a task, and feed its bytes to the stream."""

    def __init__(self, build: Callable[[ArchiveWriter], Awaitable[object]], options: WriterOptions) -> None:
        super().__init__(limit=1, name="aiodockersave-build")  # so that the task waits after each piece
        self.report: Report | None = None
        self._build = build
        self._archive = ArchiveWriter(_Handover(self._give), **options)

    async def _make(self) -> None:
        async with self._archive:
            await self._build(self._archive)
        self.report = self._archive.report
        if self.report is None:  # without its end the archive must not look complete
            raise WriterClosedError(aborted=True)


class _Handover:
    """The sink of a build.

    Attributes:
        handed_over: The number of bytes that the feed has taken; a write that was cancelled while it waited
            adds none.
    """

    def __init__(self, give: Callable[[bytes], Awaitable[None]]) -> None:
        self.handed_over = 0
        self._give = give

    async def write(self, data: bytes, /) -> None:
        await self._give(data)
        self.handed_over += len(data)
