"""Archives for consumers that pull: any bytes of a planned one, or a build as it writes.

:func:`stream_plan` puts known bytes and blobs together; :func:`archive_stream` turns a function that writes into an
object that is read. Both give a :class:`ByteStream`: iterated by one task at a time, closed from any.

The idea to know first: nothing is open across a chunk that is given out, neither a cancel scope nor a task group nor
a time-out. What has to be opened, iterated and closed by one task has a task of its own
(:mod:`aiodockersave.blobs.read_ahead`). So a cancelled ``__anext__`` loses nothing, and who closes need not be who reads.

A blob on its way out of a plan is given out one chunk behind::

    source ──▶ task that reads ahead ──▶ chunk that is held back ──▶ consumer
                                    └──▶ gathered chunks ──▶ SHA-256, in a thread

Its last chunk leaves only when all is checked, so a consumer that counts bytes never holds a wrong blob for a whole one. A
blob that a range cuts has no digest to check, but its length is.
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
"""Bytes of one blob that wait to be given out; two blobs are open at a time."""


class OutgoingBlob:
    """A blob, or what the range has of it, one chunk behind: the last leaves when all is checked.

    Attributes:
        feed: Reads it ahead.
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
        """Whether what :meth:`next` returned last was the last, and nothing is open."""
        return self._transfer.done

    @property
    def head(self) -> bytes:
        """The first bytes of a whole blob, at most 512; complete when it is done."""
        return self._transfer.verifier.head

    @property
    def retries(self) -> int:
        """The number of times that the source had to ask again."""
        return self._content.retries

    @property
    def missing(self) -> int:
        """The number of bytes that are still to be received."""
        return self._size - self._transfer.verifier.received

    def start(self) -> None:
        """Open it, and read ahead."""
        self.feed.start()

    async def next(self) -> bytes:
        """Return the next chunk.

        Raises:
            DigestMismatchError, SizeMismatchError: The blob is not what was promised.
            BaseException: What the source raises.

        Cancel: no byte is lost.
        """
        chunk = await self._transfer.next()
        if self.done:
            await self._transfer.close()
        return bytes(chunk)

    async def read(self) -> bytes:
        """Return the next chunk of what is read ahead; empty at the end.

        Cancel: no byte is lost.
        """
        try:
            return await self.feed.read()
        except ContentError as exc:
            exc.add_note(f"while reading {self._transfer.verifier.what}")
            raise

    def cancel(self) -> None:
        """Begin to close: nothing more is read, and the thread ends."""
        self.feed.cancel()
        self._transfer.abandon()

    async def aclose(self) -> None:
        """Wait until neither task nor thread works for the blob.

        Cancel: is raised after that.
        """
        self.cancel()
        await close_all([self._transfer.close, self.feed.aclose])  # the hash first, which ends by itself


NEAR_END: Final = 16 << 20
"""With so many bytes of a blob to come, the next one is opened: what comes in the time that this takes."""


class ReadingLimits(NamedTuple):
    """The limits on how far a plan's blobs are read ahead of the bytes that leave.

    Attributes:
        blobs: Blobs that are open at once, the one that leaves among them.
        buffer: Bytes of each that may wait.
        near_end: Bytes that the one that leaves may lack when the next is opened; None for any number. A client may take
            hours for a blob: the next would hold a connection meanwhile, which its registry may close for that.
    """

    blobs: int = 2
    buffer: int = READ_AHEAD
    near_end: int | None = NEAR_END


class ByteStream(abc.ABC):
    """Bytes that are pulled. Use it with ``async with``, or close it: what it has open waits for that.

    One task reads at a time; any may close, at any time. If the stream is closed before its end, a waiting read and all
    later ones raise ``anyio.ClosedResourceError``: a reader must not take the cut for the end. After the end, reads raise
    ``StopAsyncIteration``, also on a closed stream. A stream that has failed raises the same error at each read, until it
    is closed.
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
            StopAsyncIteration: All was given.
            ClosedResourceError: The stream is closed, or was closed meanwhile.
            EventLoopError: Not under asyncio.

        Cancel: nothing is lost, the next call goes on. It stays open.
        """
        running_task()
        if self._is_read:
            raise RuntimeError("the stream is being read already: one task reads at a time")
        self._is_read = True
        try:
            # A cancel scope finds nobody waiting where the next chunk is always ready in time.
            await check_cancel_scopes()
            return await self._pull()
        finally:
            self._is_read = False

    async def close(self) -> None:
        """As :meth:`aclose`.

        Cancel: as :meth:`aclose`.
        """
        await self.aclose()

    async def aclose(self) -> None:
        """Close all that is open, and return when nothing of it is left; a second call does nothing.

        Cancel: what is being closed is interrupted once more; the cancel is raised when nothing is left.
        """
        self._closed = True
        self._failure, self._traceback = None, None  # they hold frames that hold this
        await self._close()

    async def __aenter__(self) -> Self:
        running_task()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # For GeneratorExit too: who reads may be an async generator that is being closed, which may await.
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
        """Return the next chunk, empty at the end, when nothing is open. A cancel must lose nothing."""

    @abc.abstractmethod
    async def _close(self) -> None:
        """Close all that is open, whether or not a call of ``_next`` waits."""


# ── a plan's bytes ──


def stream_plan(plan: Plan, open_blob: OpenBlob, *, start: int = 0, stop: int | None = None) -> PlanStream:
    """Stream the bytes of a planned archive from ``start`` up to ``stop``, or to its end.

    ::

        async with stream_plan(plan, source.open_blob, start=start) as chunks:
            async for chunk in chunks:
                await response.write(chunk)

    Only the blobs in the range are opened, at the bytes that it needs, each when the one before it has begun to leave and
    has not much to come. A blob that is in it as a whole is verified, and its last chunk stays back until its digest is
    right; of one that the range cuts the length is checked. Chunks are given out as they come.

    Args:
        plan: The archive.
        open_blob: Opens a blob: that of a source, or your own.
        start: The first byte.
        stop: The byte behind the last.

    Raises:
        InvalidInputError: There is no such range in the archive.

    While it is iterated:

    Raises:
        DigestMismatchError, SizeMismatchError: A blob is not what the plan says.
        Exception: What ``open_blob`` raises.
    """
    return PlanStream(plan.parts(start, stop), open_blob)


class PlanStream(ByteStream):
    """The bytes of a planned archive.

    Attributes:
        size: The number of bytes in all.
        layer: The blob that the last call was about: whose bytes were given, or which has failed; None for known bytes.
        current: Its reader, where it has any bytes.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        open_blob: OpenBlob,
        *,
        limits: ReadingLimits | None = None,
        new_plain: Callable[[Descriptor], PlainHash | None] = lambda _: None,
    ) -> None:
        """Open nothing yet.

        Args:
            parts: What is given, in order.
            open_blob: Opens a blob.
            limits: How far it is read ahead.
            new_plain: Returns what hashes the plain tar of a blob that is in it as a whole; None where that is not verified.
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
        # Before anything is taken: a cancel that comes here loses nothing.
        await self._fairness.passed(self._given)
        self._given = 0
        if self._is_over():
            self.current = None
            self._read_ahead()  # the first blob, while what is in front of it leaves
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
        """Return known bytes as they are; make a blob the current one."""
        self.layer = descriptor = part.segment.descriptor
        self.current = None
        if descriptor is None:
            return (part.segment.data or b"")[part.start : part.stop]
        if part.size:
            self._read_ahead()
            self.current = self._ahead.popleft()
        else:  # no source has to be asked for no bytes
            Verifier(descriptor, plain=self._new_plain(descriptor)).finish()
        return b""

    def _is_over(self) -> bool:
        """Tell whether no blob is leaving: there is none, or all of it was given."""
        return self.current is None or self.current.done

    def _read_ahead(self) -> None:
        """Start on the next blobs, where fewer are open than may be, and they are soon needed."""
        self._check_open()  # who closes may have come while this was waited for
        most, near_end = self._limits.blobs, self._limits.near_end
        if self.current is not None and not self._is_over():
            if near_end is not None and self.current.missing > near_end:
                return
            most -= 1
        elif near_end is not None:
            most = 1  # the one behind it when it has begun to leave
        while len(self._ahead) < most and (blob := next(self._blobs, None)) is not None:
            self._ahead.append(blob)
            blob.start()

    def abandon(self) -> None:
        """Close the stream where nothing can be awaited any more: tasks and threads end by themselves."""
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

    The build runs in a task of its own, from the first read on, and is at most one piece ahead: the writer waits
    until the piece before is taken. When it returns, the archive is closed. Closing the stream before that cancels the
    build, at its await, and waits for it.

    Args:
        build: Puts layers and images; it must not close the archive.
        options: Those of :class:`ArchiveWriter`.

    Raises:
        InvalidInputError, TypeError: As ``ArchiveWriter``.

    While it is iterated:

    Raises:
        WriterClosedError: The build aborted the archive, and returned.
        Exception: What the build raises, behind what was written before.
    """
    return ArchiveStream(build, options)


class ArchiveStream(ByteStream):
    """The archive of a build.

    Attributes:
        report: What is in the archive, once the iteration has come to its end.
    """

    def __init__(self, build: Callable[[ArchiveWriter], Awaitable[object]], options: WriterOptions) -> None:
        """Start nothing yet."""
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
    """A build in its task."""

    def __init__(self, build: Callable[[ArchiveWriter], Awaitable[object]], options: WriterOptions) -> None:
        super().__init__(limit=1, name="aiodockersave-build")  # one piece, whatever its size
        self.report: Report | None = None
        self._build = build
        self._archive = ArchiveWriter(_Handover(self._give), **options)

    async def _make(self) -> None:
        async with self._archive:
            await self._build(self._archive)
        self.report = self._archive.report
        if self.report is None:  # it has no end, so it must not seem to have one
            raise WriterClosedError(aborted=True)


class _Handover:
    """The sink of a build.

    Attributes:
        handed_over: How many bytes are out of its hands: a write that was cancelled while it waited gave none.
    """

    def __init__(self, give: Callable[[bytes], Awaitable[None]]) -> None:
        self.handed_over = 0
        self._give = give

    async def write(self, data: bytes, /) -> None:
        await self._give(data)
        self.handed_over += len(data)
