"""Turn the chunks of one content into verified batches, and decompress them if asked.

::

    chunks ──▶ SHA-256, in a thread
          └──▶ batches ──▶                                ──▶ held back ──▶ given on    (keep)
                      └──▶ inflate ──▶ SHA-256, in threads ──▶ held back ──▶ given on    (decompress)

The idea to know first: one batch is always held back. So the last batch leaves only when everything is
verified, and content that fits into one batch is verified before any of it leaves. Hashing and inflating run
ahead of the consumer in threads of their own, as futures of plain calls: there is no task to own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from aiodockersave._aio import Fairness, Worker, close_all, wait_out
from aiodockersave.core.errors import ContentTooLargeError
from aiodockersave.core.first_bytes import Compression, sniff
from aiodockersave.core.model import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Digest,
    Limits,
)
from aiodockersave.core.verify import Verifier, check_diff_id

from . import content as _content
from .content import Batch
from .thread_queue import Lane, ThreadQueue

if TYPE_CHECKING:
    from hashlib import _Hash

    from aiodockersave.core.decompression import Decompressor

__all__ = ["MEDIA_TYPES", "Hasher", "Readable", "Transfer"]

_INPUTS = 2
"""The compressed batches that may wait to be inflated: they bound memory and the lead of a source."""
_INFLATION = 8
"""The cost of inflating one compressed byte, in hashed bytes."""

MEDIA_TYPES: dict[Compression | None, str] = {None: OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


class Readable(Protocol):
    """A content that is open, or that a task reads ahead."""

    async def read(self) -> Batch:
        """Return the next chunk; empty at the end.

        Cancel: no byte is lost.
        """
        ...


class Hasher:
    """Hash batches in a thread, which may be a bounded number of bytes behind.

    Attributes:
        hash: The hashlib object; it covers all batches once :meth:`digest` has returned.
    """

    def __init__(self, algorithm: str, *, hash_: _Hash | None = None) -> None:
        self.hash = hash_ or Digest.of(b"", algorithm).hasher()
        self._algorithm = algorithm
        self._queue = ThreadQueue(self._take, Worker("aiodockersave-hash"))

    async def update(self, batch: Batch) -> None:
        """Wait while too many bytes are in the queue, then take a batch.

        Cancel: this batch is not taken.
        """
        await self._queue.put(batch)

    async def digest(self) -> Digest:
        """Wait until all batches are hashed, and return their digest.

        Cancel: is raised when all batches are hashed.
        """
        await self._queue.drain()
        return Digest(self._algorithm, self.hash.hexdigest())

    async def close(self) -> None:
        """Wait until the thread hashes nothing more.

        Cancel: is raised after that.
        """
        await self._queue.close()

    def abandon(self) -> None:
        """Let the thread end by itself."""
        self._queue.abandon()

    def _take(self, chunks: Sequence[Batch]) -> None:
        for chunk in chunks:
            self.hash.update(chunk)


class Transfer:
    """Return the batches of one content as they are to be stored.

    Attributes:
        done: Whether :meth:`next` has returned the last batch, and everything is verified.
        verifier: Verifies the blob.

    Args:
        content: The content to read.
        expected: The descriptor that the content must match.
        verifier: Replaces the default verifier of ``expected``, for a part of a blob or to verify the plain
            tar of a kept blob.
        least: The least bytes of a batch, except the last; chunks are joined to reach it.
        inflate: The limits on the expansion of the blob if its plain tar is stored; None keeps the blob as it
            is.
        diff_id: The digest that the plain tar must have, if known.
        make_room: Is awaited with the size of each batch before :meth:`next` returns it.
    """

    def __init__(
        self,
        content: Readable,
        expected: Descriptor | None,
        *,
        verifier: Verifier | None = None,
        least: int | None = None,
        inflate: Limits | None = None,
        diff_id: Digest | None = None,
        make_room: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.done = False
        self.verifier = verifier or Verifier(expected)
        self._content = content
        self._expected = expected
        self._least = _content.BATCH_SIZE if least is None else least
        self._make_room = make_room
        self._inflate = inflate
        self._diff_id = diff_id
        self._plain: _Plain | None = None
        # A few compressed bytes may expand to very many plain bytes: never hash those on the loop.
        inline = 0 if self.verifier.expands else None
        self._queue = ThreadQueue(
            self.verifier.update, Worker("aiodockersave-hash"), inline=inline, stop=self.verifier.stop
        )
        self._fairness = Fairness()
        self._passed = 0  # bytes that fairness has not counted yet
        self._parts: list[Batch] = []
        self._size = 0  # of the parts, in bytes
        self._held: Batch | None = None  # the batch to return next
        self._compression: Compression | None = None
        self._stored: Descriptor | None = None

    @property
    def blob(self) -> Descriptor:
        """The descriptor of the blob that was read, once the transfer is done."""
        return self._descriptor(MEDIA_TYPES[self._compression])

    @property
    def stored(self) -> Descriptor:
        """The descriptor of the blob to store, once the transfer is done."""
        if self._stored is None:
            raise AssertionError("the content is not at its end")
        return self._stored

    @property
    def plain_digest(self) -> Digest | None:
        """The digest of the plain tar of a kept blob, if asked for, once the transfer is done."""
        return self.verifier.plain_digest

    @property
    def media_type(self) -> str:
        """The media type of the blob to store, once the first batch was received."""
        if self._inflate is not None:
            return OCI_LAYER
        return self._expected.media_type if self._expected else MEDIA_TYPES[self._compression]

    async def next(self) -> Batch:
        """Return the next batch; after that ``done`` tells whether it was the last.

        Raises:
            ContentError: The content does not match its descriptor or diff ID, or cannot be decompressed.

        Cancel: if the blob is kept, and a cancelled read of the content loses no bytes, a second call
        resumes. If the blob is decompressed, or the cancel comes while ``make_room`` is awaited, the batch is
        lost. :meth:`close` still has to be called.
        """
        # 1. Get a first batch to hold back.
        if self._held is None:
            self._held = await self._first()
        # 2. Get the batch after the held one. If there is none, verify before the held one leaves.
        following = await self._fetch() if self._held else b""
        if not following:
            await self._verify()
            self.done = True
        batch, self._held = self._held, following
        if self._make_room is not None:
            await self._make_room(len(batch))
        return batch

    async def close(self) -> None:
        """Wait until no thread works for the transfer.

        Cancel: is raised when no thread works for the transfer any more.
        """
        await close_all([self._queue.close, *([] if self._plain is None else [self._plain.close])])

    def abandon(self) -> None:
        """Let the threads of the transfer end by themselves."""
        self._queue.abandon()
        if self._plain is not None:
            self._plain.abandon()

    async def _first(self) -> Batch:
        batch = await self._receive()
        self._compression = sniff(bytes(batch[:4]))
        if self._inflate is None:
            return batch
        self._plain = _Plain(
            self._receive, batch, self._compression, self._expected, self._diff_id, self._inflate
        )
        return await self._plain.next()

    async def _fetch(self) -> Batch:
        return await (self._receive() if self._plain is None else self._plain.next())

    async def _receive(self) -> Batch:
        """Return the next batch of the blob, after handing it to the hash thread; empty at the end."""
        verifier = self.verifier
        while self._size < self._least:
            # Suspend before reading a chunk: a cancel that comes here loses no bytes.
            await self._fairness.passed(self._passed)
            self._passed = 0
            if verifier.hashes:
                await self._queue.room()
            chunk = await self._content.read()
            self._passed = len(chunk)
            verifier.count(len(chunk))
            if not chunk:
                verifier.end()
                break
            self._parts.append(chunk)
            self._size += len(chunk)
        parts, self._parts, self._size = self._parts, [], 0
        batch = parts[0] if len(parts) == 1 else b"".join(parts)
        if batch and verifier.hashes:
            self._queue.give(batch)
        return batch

    async def _verify(self) -> None:
        await self._queue.drain()
        self.verifier.finish()
        if self._plain is None:
            self._stored = self._descriptor(self.media_type) if self.verifier.digest else None
            return
        digest = await self._plain.digest()
        check_diff_id(self._diff_id, digest, self._expected)
        self._stored = Descriptor(self.media_type, digest, self._plain.size)

    def _descriptor(self, media_type: str) -> Descriptor:
        if self.verifier.digest is None:
            raise AssertionError("the blob is not verified")
        return Descriptor(media_type, self.verifier.digest, self.verifier.received)


class _Plain:
    """Inflate a blob one piece ahead, and hash its plain batches."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[Batch]],
        first: Batch,
        compression: Compression | None,
        blob: Descriptor | None,
        diff_id: Digest | None,
        limits: Limits,
    ) -> None:
        self.size = 0
        self._receive = receive
        self._what = f"layer {blob.digest}" if blob else "the layer"
        self._limits = limits
        self._first: Batch | None = first
        self._inputs: deque[bytes] = deque()
        self._ended = False
        self._lane = Lane(Worker("aiodockersave-inflate"))
        self._hasher = Hasher(diff_id.algorithm if diff_id else "sha256")
        self._decompressor = self._new_decompressor(compression) if compression else None
        self._reading: asyncio.Future[bytes] | None = None

    def _new_decompressor(self, compression: Compression) -> Decompressor:
        from aiodockersave.core.decompression import Decompressor  # noqa: PLC0415 - not where layers are kept

        return Decompressor(compression, what=self._what, **self._limits._asdict())

    async def next(self) -> Batch:
        if self._decompressor is None:
            batch = await self._compressed()
        else:
            batch = await self._inflated(self._decompressor)
        self.size += len(batch)
        most = self._limits.max_plain_size
        if most is not None and self.size > most:
            raise ContentTooLargeError(most, what=self._what)
        if batch:
            await self._hasher.update(batch)
        return batch

    async def _inflated(self, decompressor: Decompressor) -> Batch:
        parts: list[bytes] = []
        size = 0
        while size < _content.BATCH_SIZE and (piece := await self._piece(decompressor)):
            parts.append(piece)
            size += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _piece(self, decompressor: Decompressor) -> bytes:
        """Return the next plain bytes, and start to inflate the bytes after them; empty at the end."""
        limit = _content.MAX_BATCH_SIZE - _content.BATCH_SIZE
        while True:
            await self._fill()
            if self._reading is None:
                cost = _INFLATION * sum(map(len, self._inputs))
                self._reading = self._lane.start(cost, _inflate, decompressor, self._inputs, limit)
            piece = await wait_out(self._reading)
            self._reading = None
            if piece:
                self._reading = self._lane.start(len(piece), _inflate, decompressor, self._inputs, limit)
                return piece
            if self._ended and not self._inputs:
                decompressor.finish()
                return b""

    async def _fill(self) -> None:
        """Keep compressed batches ready, so that the thread need not wait for the loop."""
        while not self._ended and len(self._inputs) < _INPUTS:
            batch = await self._compressed()
            if batch:
                self._inputs.append(bytes(batch))
            else:
                self._ended = True

    async def _compressed(self) -> Batch:
        batch, self._first = self._first, None
        return await self._receive() if batch is None else batch

    async def digest(self) -> Digest:
        return await self._hasher.digest()

    async def close(self) -> None:
        await close_all([self._lane.close, self._hasher.close])

    def abandon(self) -> None:
        self._lane.abandon()
        self._hasher.abandon()


def _inflate(decompressor: Decompressor, inputs: deque[bytes], limit: int) -> bytes:
    """Return up to ``limit`` plain bytes of the inputs; empty when the inputs are used up."""
    while not (plain := decompressor.read(limit)) and inputs:
        decompressor.feed(inputs.popleft())
    return plain
