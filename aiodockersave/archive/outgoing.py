"""One blob on its way out of a plan: read ahead, checked, given out one chunk behind.

::

    source ──▶ task that reads ahead ──▶ chunk that is held back ──▶ consumer
                                    └──▶ gathered chunks ──▶ SHA-256, in a thread

The idea to know first: the last chunk leaves only when all is checked, so a consumer that counts bytes never holds a
wrong blob for a whole one. A blob that a range cuts has no digest to check, but its length is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from aiodockersave._aio import close_all, wait_out
from aiodockersave.blobs.blob_content import BlobContent, OpenBlob
from aiodockersave.blobs.intake import NEVER_INLINE, Lane
from aiodockersave.blobs.read_ahead import ReadAhead
from aiodockersave.core.errors import ContentError, DigestMismatchError, SizeMismatchError
from aiodockersave.core.model import Descriptor, Digest
from aiodockersave.core.plan import Part
from aiodockersave.core.tar import BLOCK_SIZE

if TYPE_CHECKING:
    import hashlib

    from aiodockersave.core.decompression import PlainHash

READ_AHEAD = 1 << 20
"""Bytes of one blob that wait to be given out; two blobs are open at a time."""
_GATHERED = 512 << 10
"""Chunks of so many bytes go to the thread that hashes together: each hop makes loop and thread wait for each other."""
_BEHIND = 1 << 20
"""So many bytes may wait for that thread, or be with it."""


class PlainCheck(NamedTuple):
    """The check of a blob's plain tar.

    Attributes:
        diff_id: The digest that it must have.
        plain_hash: Computes the digest that it has.
    """

    diff_id: Digest
    plain_hash: PlainHash


class OutgoingBlob:
    """A blob, or what the range has of it, one chunk behind: the last leaves when all is checked.

    Attributes:
        done: Whether what :meth:`next` returned last was the last, and nothing is open.
        head: The first bytes of what was received, at most 512.
        feed: Reads it ahead.
    """

    def __init__(
        self,
        part: Part,
        descriptor: Descriptor,
        open_blob: OpenBlob,
        *,
        buffer: int = READ_AHEAD,
        check: PlainCheck | None = None,
    ) -> None:
        self.done = False
        self.head = b""
        self._check = check
        self._descriptor = descriptor
        self._size = part.size
        self._what = f"blob {descriptor.digest}"
        self._received = 0
        self._held = b""
        self._lane = Lane("aiodockersave-hash")
        self._hasher: _GatheringHasher | None = None
        if part.is_whole:
            self._hasher = _GatheringHasher(descriptor.digest, self._lane, check)
            content = BlobContent(open_blob, descriptor)
        else:
            self._what = f"bytes {part.start} to {part.stop} of {self._what}"
            stop = None if part.stop == part.segment.size else part.stop
            content = BlobContent(open_blob, descriptor, start=part.start, stop=stop)
        self._content = content
        self.feed = ReadAhead(content, limit=buffer)

    @property
    def retries(self) -> int:
        """The number of times that the source had to ask again."""
        return self._content.retries

    @property
    def missing(self) -> int:
        """The number of bytes that are still to be received."""
        return self._size - self._received

    def start(self) -> None:
        """Open it, and read ahead."""
        self.feed.start()

    async def next(self) -> bytes:
        """Return the next chunk. A cancel loses nothing.

        Raises:
            DigestMismatchError, SizeMismatchError: It is not what was promised.
            BaseException: What the source raises.
        """
        while chunk := await self._receive():
            held, self._held = self._held, chunk  # no await since it was received
            if held:
                return held
        await self._verify()
        self.done = True
        return self._held

    async def _receive(self) -> bytes:
        if self._hasher is not None:
            await self._hasher.catch_up(_BEHIND)
        try:
            chunk = await self.feed.read()
        except ContentError as exc:
            exc.add_note(f"while reading {self._what}")
            raise
        if len(self.head) < BLOCK_SIZE:
            self.head += chunk[: BLOCK_SIZE - len(self.head)]
        self._received += len(chunk)
        if self._received > self._size or (self._received < self._size and not chunk):
            raise SizeMismatchError(self._size, self._received, what=self._what)
        if self._hasher is not None and chunk:
            self._hasher.add(chunk)
        return chunk

    async def _verify(self) -> None:
        if self._hasher is not None:
            check_digest(self._descriptor, await self._hasher.digest())
            if self._check is not None:
                plain = Digest(self._check.diff_id.algorithm, self._check.plain_hash.hexdigest())
                if plain != self._check.diff_id:
                    raise DigestMismatchError(
                        self._check.diff_id, plain, what="diff ID", descriptor=self._descriptor
                    )
            await self._lane.close()

    def cancel(self) -> None:
        """Begin to close: nothing more is read, and the thread ends."""
        if self._check is not None:
            self._check.plain_hash.stop()
        self.feed.cancel()
        self._lane.abandon()

    async def aclose(self) -> None:
        """Wait until neither task nor thread works for it, whatever is cancelled meanwhile."""
        self.cancel()
        await close_all([self._lane.close, self.feed.aclose])  # the hash first, which ends by itself


class _GatheringHasher:
    """Hashes chunks, many with one hop to the thread, a bounded number of bytes behind."""

    def __init__(self, digest: Digest, lane: Lane, check: PlainCheck | None) -> None:
        self._plain_hash = None if check is None else check.plain_hash
        self._algorithm = digest.algorithm
        self._hash = digest.hasher()
        self._lane = lane
        self._gathered: list[bytes] = []
        self._size = 0
        self._running: deque[tuple[asyncio.Future[None], int]] = deque()
        self._behind = 0

    def add(self, chunk: bytes) -> None:
        self._gathered.append(chunk)
        self._size += len(chunk)
        if self._size >= _GATHERED:
            self._start()

    def _start(self) -> None:
        # Few compressed bytes may be very many plain ones: these are never hashed on the loop.
        cost = self._size if self._plain_hash is None else NEVER_INLINE
        future = self._lane.start(cost, _update, self._hash, self._plain_hash, self._gathered)
        self._running.append((future, self._size))
        self._behind += self._size
        self._gathered, self._size = [], 0

    async def catch_up(self, behind: int) -> None:
        """Wait until at most ``behind`` bytes are still to be hashed by what was started."""
        while self._running and (self._behind > behind or self._running[0][0].done()):
            future, size = self._running[0]
            if not future.done():
                await wait_out(future)
            future.result()
            self._running.popleft()
            self._behind -= size

    async def digest(self) -> Digest:
        if self._gathered:
            self._start()
        await self.catch_up(0)
        return Digest(self._algorithm, self._hash.hexdigest())


def _update(hash_: hashlib._Hash, plain_hash: PlainHash | None, chunks: list[bytes]) -> None:
    for chunk in chunks:
        hash_.update(chunk)
        if plain_hash is not None:
            plain_hash.update(chunk)


def check_digest(descriptor: Descriptor, actual: Digest) -> None:
    """Raise :class:`DigestMismatchError` where a blob has another digest than its own."""
    if actual != descriptor.digest:
        raise DigestMismatchError(descriptor.digest, actual, descriptor=descriptor)
