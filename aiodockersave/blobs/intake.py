"""One content on its way into an archive: joined to batches, decompressed where asked, checked.

::

    chunks ──▶ batches ──▶ SHA-256 ──▶                          ──▶ stored as it is    (keep)
                       └──▶ inflate, SHA-256                                           (… with its diff ID verified)
                                   └──▶ inflate ──▶ SHA-256 ──▶ ──▶ stored plain       (decompress)

The idea to know first: batches are handed out one behind, so the last one leaves only when everything was
verified, and content that fits one batch is verified before anything of it is written. Hashing and inflating
run ahead of the consumer in threads of their own, as futures of plain calls: there is no task to own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, ParamSpec, Protocol, TypeVar

from aiodockersave._aio import Fairness, Worker, close_all, forget, wait_out
from aiodockersave.core.decompression import Compression, Decompressor, PlainHash, sniff
from aiodockersave.core.errors import ContentTooLargeError, DigestMismatchError, SizeMismatchError
from aiodockersave.core.model import (
    MAX_EXPANSION,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Digest,
    Limits,
    Share,
)

from . import content as _content
from .content import Batch, OpenContent

P = ParamSpec("P")
T = TypeVar("T")

INLINE_SIZE = 256 << 10
"""So many bytes are hashed on the loop, which takes less than handing them to a thread; the rest is not."""
_QUEUE = 2
"""Batches that may wait for a thread: memory, and how far a source may be ahead of the processor."""
_INFLATION = 8
"""The cost of a compressed byte, in hashed ones."""
NEVER_INLINE = INLINE_SIZE + 1
"""The cost of a byte where all that comes of it is hashed by the same call: few bytes may be very many."""

MEDIA_TYPES: dict[Compression | None, str] = {None: OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


class Lane:
    """Runs calls in order: the first bytes at once, what comes after them in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._worker = Worker(name)
        self._held = ExitStack()
        self._inline = INLINE_SIZE
        self._last: asyncio.Future[Any] | None = None

    def start(self, cost: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start a call that is worth ``cost`` bytes of hashing. Its future is waited for, here or in close()."""
        future: asyncio.Future[T]
        if self._inline >= cost:
            self._inline -= cost
            future = asyncio.get_running_loop().create_future()
            future.set_result(call(*args, **kwargs))
            return future
        if self._inline >= 0:
            self._inline = -1
            self._held.enter_context(self._worker.held())
        self._last = future = self._worker.submit(call, *args, **kwargs)
        return future

    async def close(self) -> None:
        """Wait until no call runs; the thread ends. What a call raised is dropped with its result.

        Cancel: is raised when no call runs any more.
        """
        try:
            if self._last is not None and not self._last.done():
                with contextlib.suppress(Exception):
                    await wait_out(self._last)
        finally:
            self._held.close()
            if self._last is not None and self._last.done():  # it is not where this coroutine is closed
                self._last.exception()

    def abandon(self) -> None:
        """Let the thread end by itself, when the calls that it has are made."""
        self._held.close()
        if self._last is not None:
            forget(self._last)


class _Hash(Protocol):
    """The part of a ``hashlib`` object that a hasher uses."""

    def update(self, data: Batch, /) -> None: ...

    def hexdigest(self) -> str: ...


class Hasher:
    """Hashes batches in a lane, at most a few behind.

    Attributes:
        hash: The hashlib object, or what works as one; complete once :meth:`digest` has returned.
    """

    def __init__(self, algorithm: str, *, hash_: _Hash | None = None, cost: int = 1) -> None:
        self.hash: Any = hash_ or Digest.of(b"", algorithm).hasher()
        self._algorithm = algorithm
        self._cost = cost
        self._lane = Lane("aiodockersave-hash")
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def update(self, batch: Batch) -> None:
        """Take a batch; waits while too many are behind.

        Cancel: is raised when the batch that was waited for is hashed; this one may not be taken.
        """
        await self._wait(_QUEUE - 1)
        future = self._lane.start(self._cost * len(batch), self.hash.update, batch)
        if not future.done():
            self._waiting.append(future)

    async def digest(self) -> Digest:
        """Wait for all batches and return their digest.

        Cancel: is raised when the batch that was waited for is hashed.
        """
        await self._wait(0)
        return Digest(self._algorithm, self.hash.hexdigest())

    async def _wait(self, behind: int) -> None:
        while len(self._waiting) > behind:
            await wait_out(self._waiting[0])
            self._waiting.popleft()

    async def close(self) -> None:
        """Wait until nothing is hashed.

        Cancel: as :meth:`Lane.close`.
        """
        await self._lane.close()

    def abandon(self) -> None:
        """Let the thread end by itself."""
        self._lane.abandon()


class Intake:
    """The batches of one content as they are stored.

    Attributes:
        done: Whether the batch that :meth:`next` returned last was the last, and all is verified.
        plain_digest: The digest of the plain tar, once it is done, where the blob is kept and this was asked for.

    Args:
        content: What is read.
        expected: What it must be.
        decompress: Whether the plain tar is stored.
        diff_id: What the plain tar must be, where that is known.
        max_plain_size: The largest plain tar to accept, in bytes.
        max_expansion: The most plain bytes to accept for each compressed one.
        share: What all contents of an archive may expand to beyond that.
        verify_plain: Whether the plain tar of a blob that is kept is looked at beside.
        make_room: Is awaited before bytes are handed out, with their number.
    """

    def __init__(
        self,
        content: OpenContent,
        expected: Descriptor | None,
        *,
        decompress: bool,
        diff_id: Digest | None,
        max_plain_size: int | None,
        max_expansion: int | None = MAX_EXPANSION,
        share: Share | None = None,
        verify_plain: bool = False,
        make_room: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.done = False
        self.plain_digest: Digest | None = None
        self._expected = expected
        self._what = f"layer {expected.digest}" if expected else "the layer"
        self._diff_id = diff_id if decompress or verify_plain else None
        if share is not None and expected is None:
            share = _as_another(share)
        self._limits = limits = Limits(max_plain_size, max_expansion, share)
        self._beside: PlainHash | None = None
        if verify_plain and not decompress:
            hash_ = (diff_id or Digest.of(b"")).hasher()
            self._beside = PlainHash(hash_, what=self._what, limits=limits)
        self._blob = _Blob(content, expected, self._beside, diff_id)
        self._decompress = decompress
        self._plain: _Plain | None = None
        self._make_room = make_room
        self._batch: Batch | None = None
        self._compression: Compression | None = None
        self._stored: Descriptor | None = None

    @property
    def blob(self) -> Descriptor:
        """The blob that was read, once it is done."""
        return self._blob.descriptor(MEDIA_TYPES[self._compression])

    @property
    def stored(self) -> Descriptor:
        """The blob that is to be stored of it, once it is done."""
        if self._stored is None:
            raise AssertionError("the content is not at its end")
        return self._stored

    @property
    def media_type(self) -> str:
        """The media type of what is stored, once the first batch is there."""
        if self._decompress:
            return OCI_LAYER
        return self._expected.media_type if self._expected else MEDIA_TYPES[self._compression]

    async def next(self) -> Batch:
        """Return the next batch; after it ``done`` says whether it was the last.

        Raises:
            ContentError: The content is not what was promised, or cannot be decompressed.

        Cancel: the batch is lost, and :meth:`close` still has to be called.
        """
        if self._batch is None:
            self._batch = await self._first()
        batch = self._batch
        if batch:
            if self._plain is not None:
                await self._plain.hash(batch)
            self._batch = await self._fetch()
        if not self._batch:
            self._stored = await self._verify()
            self.done = True
        if self._make_room is not None:
            await self._make_room(len(batch))
        return batch

    async def close(self) -> None:
        """Wait until no thread works for it.

        Cancel: is raised when no thread works for it any more.
        """
        if self._beside is not None:
            self._beside.stop()
        await close_all([self._blob.close, *([] if self._plain is None else [self._plain.close])])

    def abandon(self) -> None:
        """Let its threads end by themselves."""
        if self._beside is not None:
            self._beside.stop()
        self._blob.abandon()
        if self._plain is not None:
            self._plain.abandon()

    async def _first(self) -> Batch:
        batch = await self._blob.next()
        self._compression = sniff(bytes(batch[:4]))
        if not self._decompress:
            return batch
        self._plain = _Plain(self._blob, batch, self._compression, self._diff_id, self._what, self._limits)
        return await self._plain.next()

    async def _fetch(self) -> Batch:
        return await (self._blob if self._plain is None else self._plain).next()

    async def _verify(self) -> Descriptor:
        self.plain_digest = await self._blob.verify()
        digest = self.plain_digest if self._plain is None else await self._plain.digest()
        if digest is not None and self._diff_id is not None and digest != self._diff_id:
            raise DigestMismatchError(self._diff_id, digest, what="diff ID", descriptor=self._expected)
        if self._plain is None or digest is None:
            return self._blob.descriptor(self.media_type)
        return Descriptor(self.media_type, digest, self._plain.size)


def _as_another(share: Share) -> Share:
    """Let a layer without a name be another one than all others."""
    layer = object()
    return lambda _, size: share(layer, size)


class _Blob:
    """The blob's batches, hashed, also plain where asked; each holds at least ``BATCH_SIZE`` bytes but the last."""

    def __init__(
        self,
        content: OpenContent,
        expected: Descriptor | None,
        plain: PlainHash | None,
        diff_id: Digest | None,
    ) -> None:
        self._content = content
        self._expected = expected
        algorithm = diff_id.algorithm if diff_id else "sha256"
        self._plain_hasher = Hasher(algorithm, hash_=plain, cost=NEVER_INLINE) if plain else None
        self._hasher = Hasher(expected.digest.algorithm if expected else "sha256")
        self._fairness = Fairness()
        self._size = 0
        self._digest: Digest | None = None

    async def next(self) -> Batch:
        parts: list[Batch] = []
        size = 0
        while size < _content.BATCH_SIZE and (chunk := await self._content.read()):
            parts.append(chunk)
            size += len(chunk)
            self._size += len(chunk)
            self._check_size(at_end=False)
            await self._fairness.passed(len(chunk))
        batch = parts[0] if len(parts) == 1 else b"".join(parts)
        if batch:
            await self._hasher.update(batch)
            if self._plain_hasher is not None:
                await self._plain_hasher.update(batch)
        return batch

    async def verify(self) -> Digest | None:
        """Verify the blob, and return the digest of its plain tar where that was asked for."""
        self._check_size(at_end=True)
        self._digest = await self._hasher.digest()
        if self._expected is not None and self._digest != self._expected.digest:
            raise DigestMismatchError(self._expected.digest, self._digest, descriptor=self._expected)
        return None if self._plain_hasher is None else await self._plain_hasher.digest()

    def _check_size(self, *, at_end: bool) -> None:
        size = self._expected.size if self._expected else None
        if (
            self._expected is not None
            and size is not None
            and (self._size > size or (at_end and self._size < size))
        ):
            raise SizeMismatchError(size, self._size, what=f"blob {self._expected.digest}")

    def descriptor(self, media_type: str) -> Descriptor:
        if self._digest is None:
            raise AssertionError("the blob is not verified")
        return Descriptor(media_type, self._digest, self._size)

    async def close(self) -> None:
        await close_all(
            [self._hasher.close, *([] if self._plain_hasher is None else [self._plain_hasher.close])]
        )

    def abandon(self) -> None:
        self._hasher.abandon()
        if self._plain_hasher is not None:
            self._plain_hasher.abandon()


class _Plain:
    """The plain batches of a blob: inflated one ahead, hashed."""

    def __init__(
        self,
        blob: _Blob,
        first: Batch,
        compression: Compression | None,
        diff_id: Digest | None,
        what: str,
        limits: Limits,
    ) -> None:
        self.size = 0
        self._blob = blob
        self._what = what
        self._max_size = limits.max_plain_size
        self._first: Batch | None = first
        self._inputs: deque[bytes] = deque()
        self._ended = False
        self._lane = Lane("aiodockersave-inflate")
        self._hasher = Hasher(diff_id.algorithm if diff_id else "sha256")
        self._decompressor = Decompressor(compression, what=what, **limits._asdict()) if compression else None
        self._reading: asyncio.Future[bytes] | None = None

    async def next(self) -> Batch:
        if self._decompressor is None:
            return self._passed(await self._compressed())
        parts: list[bytes] = []
        size = 0
        while size < _content.BATCH_SIZE and (piece := await self._piece(self._decompressor)):
            parts.append(piece)
            size += len(piece)
        return self._passed(parts[0] if len(parts) == 1 else b"".join(parts))

    def _passed(self, batch: Batch) -> Batch:
        self.size += len(batch)
        if self._max_size is not None and self.size > self._max_size:
            raise ContentTooLargeError(self._max_size, what=self._what)
        return batch

    async def _piece(self, decompressor: Decompressor) -> bytes:
        """Return the next plain bytes, and start on those after them; empty at the end."""
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
        """Keep some input ready, so that the thread need not wait for the loop."""
        while not self._ended and len(self._inputs) < _QUEUE:
            batch = await self._compressed()
            if batch:
                self._inputs.append(bytes(batch))
            else:
                self._ended = True

    async def _compressed(self) -> Batch:
        batch, self._first = self._first, None
        return await self._blob.next() if batch is None else batch

    async def hash(self, batch: Batch) -> None:
        await self._hasher.update(batch)

    async def digest(self) -> Digest:
        return await self._hasher.digest()

    async def close(self) -> None:
        await close_all([self._lane.close, self._hasher.close])

    def abandon(self) -> None:
        self._lane.abandon()
        self._hasher.abandon()


def _inflate(decompressor: Decompressor, inputs: deque[bytes], limit: int) -> bytes:
    """Return up to ``limit`` plain bytes of the inputs; empty when these are used up."""
    while not (plain := decompressor.read(limit)) and inputs:
        decompressor.feed(inputs.popleft())
    return plain
