"""Read a blob's bytes across attempts, addresses and ranges.

When an answer breaks off, the rest is asked for. The next answer may be the rest, may start too early, or may be the
whole blob again. :func:`judge` decides from status and headers how an answer can be used, before a byte of it is:

======================================================  ========================================
answer                                                  is
======================================================  ========================================
200                                                     the blob from its start: skip its beginning
206, ``Content-Range`` exact or starting too early      the rest: skip the overlap
206 otherwise (starts later, other size, several parts) refused
416                                                     refused; tells the real size
``Content-Encoding`` that is not identity               refused: these are not the blob's bytes
any other                                               refused, or worth another attempt
======================================================  ========================================

All answers together may bring twice the blob's size, so that a registry without ranges does not make us read for ever. No
``If-Range`` is sent: some networks drop the range for it, and the reader verifies the digest anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self

from aiodockersave.core.errors import InvalidInputError, SizeMismatchError, TransferError
from aiodockersave.core.model import Descriptor
from aiodockersave.core.text import NO_SECRETS, Secrets, shown
from aiodockersave.sources.waits import Waits

from .answers import InterruptedTransfer, content_range, media_type, number, unsatisfied_total
from .endpoint import Place, Retries, Turns
from .transport import Response

__all__ = ["BlobReader", "Verdict", "Wanted", "judge"]

BUDGET: Final = 2
"""Bound on the bytes of all answers together, as a multiple of the blob's size: one whole repetition is allowed."""

# ── decisions ──


class Wanted(NamedTuple):
    """A range of a blob: the bytes from ``start`` up to ``stop``, of ``size``; ``0 <= start <= stop <= size``."""

    start: int
    stop: int
    size: int

    @classmethod
    def of(cls, descriptor: Descriptor, start: int, stop: int | None) -> Wanted:
        """Return the range of a blob that a caller wants; ``stop`` is the blob's end by default, and at most its end.

        Raises:
            InvalidInputError: There is no such range, or the blob's size is not known.
        """
        size = descriptor.size
        if size is None:
            raise InvalidInputError(f"the size of blob {descriptor.digest} is not known")
        stop = size if stop is None else min(stop, size)
        if start < 0 or stop < start:
            raise InvalidInputError(f"no range of a blob of {size} bytes: start={start}, stop={stop}")
        return cls(start, stop, size)

    @property
    def range(self) -> str | None:
        """The header ``Range`` (RFC 9110 § 14.2); None for the whole blob."""
        if self.stop < self.size:
            return f"bytes={self.start}-{self.stop - 1}"
        return f"bytes={self.start}-" if self.start else None


class Verdict(NamedTuple):
    """A decision on how an answer can be used.

    Attributes:
        skip: Bytes at the start of its body that come before the range that is wanted.
        reaches: The offset in the blob at which its body ends.
        refusal: The reason why the answer cannot be used; empty if it can.
        actual_size: The blob's size by the answer, where it differs from the descriptor's.
    """

    skip: int = 0
    reaches: int = 0
    refusal: str = ""
    actual_size: int | None = None


def judge(
    wanted: Wanted,
    status: int,
    *,
    ranges: Sequence[str] = (),
    length: str | None = None,
    content_type: str | None = None,
    encoding: str | None = None,
    secrets: Secrets = NO_SECRETS,
) -> Verdict | None:
    """Decide how an answer can be used (RFC 9110 § 14.4, § 15.3.7).

    Args:
        wanted: The range that was asked for.
        status: The answer's status.
        ranges: Every ``Content-Range``.
        length: The ``Content-Length``.
        content_type: The ``Content-Type``.
        encoding: The ``Content-Encoding``.
        secrets: The texts that the headers may repeat and no message may show.

    Returns:
        The verdict; None for a status other than 200, 206 and 416.
    """
    if status == 416:
        return _judge_unsatisfied(wanted, unsatisfied_total(ranges))
    if status not in (200, 206):
        return None
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        name = shown(encoding, secrets=secrets, limit=40)
        return Verdict(refusal=f"it answers with Content-Encoding {name}, which was not asked for")
    announced = None if length is None else number(length.strip())
    if length is not None and announced is None:
        return Verdict(refusal="its Content-Length is not a number")
    if status == 200:
        return _judge_whole(wanted, announced)
    return _judge_part(wanted, ranges, announced, media_type(content_type))


def _judge_unsatisfied(wanted: Wanted, total: int | None) -> Verdict:
    if total is not None and total != wanted.size:
        return Verdict(refusal="it has another size", actual_size=total)
    return Verdict(refusal="it refuses the range, which the blob has")


def _judge_whole(wanted: Wanted, announced: int | None) -> Verdict:
    if announced not in (None, wanted.size):
        return Verdict(refusal="it has another size", actual_size=announced)
    return Verdict(skip=wanted.start, reaches=wanted.size)


def _judge_part(wanted: Wanted, ranges: Sequence[str], announced: int | None, content_type: str) -> Verdict:
    if content_type == "multipart/byteranges":
        return Verdict(refusal="it answers a range in several parts")
    found = content_range(ranges)
    if found is None:
        return Verdict(refusal="it answers a range without a proper Content-Range")
    if found.total != wanted.size:
        return Verdict(refusal="it has another size", actual_size=found.total)
    if found.first > wanted.start or found.last < wanted.stop - 1:
        return Verdict(
            refusal=f"it answers with other bytes ({found.first}-{found.last}) than were asked for"
        )
    if announced not in (None, found.last - found.first + 1):
        return Verdict(refusal="its Content-Length does not fit its Content-Range")
    return Verdict(skip=wanted.start - found.first, reaches=found.last + 1)


# ── reading ──


class BlobReader:
    """The bytes of a blob, to be iterated; a transfer that breaks off is resumed.

    Args:
        what: The name of the blob, for errors.
        descriptor: The blob, with its size.
        wanted: The range that is wanted.
        places: The repositories that have the blob; the registry itself last.
        retries: The limits on attempts.
        waits: Where waits between attempts are noted.

    Attributes:
        retries: The number of transfers that broke off.
    """

    def __init__(
        self,
        what: str,
        descriptor: Descriptor,
        wanted: Wanted,
        places: Sequence[Place],
        retries: Retries,
        waits: Waits,
    ) -> None:
        self.retries = 0
        self._what = what
        self._path = f"blobs/{descriptor.digest}"
        self._wanted = wanted
        self._position = wanted.start
        self._turns = Turns(what, places, retries, waits)
        self._response: Response | None = None
        self._skip = 0
        self._reaches = 0
        self._received = 0
        self._is_closed = False

    async def open(self) -> None:
        """Find a place that answers; an empty range is not asked for.

        Raises:
            DockerSaveError: No place answers.

        Cancel: no connection stays open.
        """
        if self._position < self._wanted.stop:
            await self._turns.run(self._ask)

    def close(self) -> None:
        """End the reading. The connection is cut, unless its answer was read to the end."""
        self._is_closed = True
        self._drop()

    def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk, which is not empty.

        Raises:
            TransferError: The attempts are used up, or more than :data:`BUDGET` allows would be received.
            SizeMismatchError: The blob is longer or shorter than its descriptor says.
            DockerSaveError: No place gives the rest.

        Cancel: the connection stays open until :meth:`close`; no byte is lost.
        """
        if self._is_closed:
            raise RuntimeError("the blob is closed: read it inside the block that opened it")
        while self._position < self._wanted.stop:
            response = self._response
            if response is None:
                response = await self._turns.run(self._ask)
            chunk = await self._receive(response)
            if chunk:
                self._position += len(chunk)
                self._turns.progressed()
                return chunk
        await self._finish()
        raise StopAsyncIteration

    async def _receive(self, response: Response) -> bytes:
        """Return the next bytes of the range; empty where all that came is skipped, or the answer broke off."""
        try:
            chunk = await response.chunk()
        except InterruptedTransfer as exc:
            fault = exc
        else:
            if chunk:
                return self._take(chunk)
            # The answer ended in good order, so the blob may really be that short.
            short = SizeMismatchError(self._wanted.size, self._position, what=self._what)
            fault = InterruptedTransfer(short, is_final=True)
        self._drop()
        await self._turns.failed(fault)
        self.retries += 1
        return b""

    def _take(self, chunk: bytes) -> bytes:
        """Return the part of a chunk that belongs to the range.

        Raises:
            SizeMismatchError: More bytes came than the answer's headers promise.
        """
        skipped = min(self._skip, len(chunk))
        self._skip -= skipped
        left = self._wanted.stop - self._position
        if len(chunk) - skipped > left and self._reaches == self._wanted.stop:
            raise self._too_long(len(chunk) - skipped - left)
        self._count(len(chunk))
        return chunk[skipped : skipped + left] if skipped or len(chunk) > left else chunk

    def _count(self, size: int) -> None:
        self._received += size
        self._check_budget(self._received)

    def _check_budget(self, received: int) -> None:
        if received > BUDGET * self._wanted.size:
            reason = f"more than {BUDGET} times its size would be received, as ranges are not answered"
            raise TransferError(self._what, self._turns.failures, reason) from self._turns.last_error

    def _too_long(self, excess: int) -> SizeMismatchError:
        return SizeMismatchError(self._wanted.size, self._wanted.size + excess, what=self._what)

    async def _finish(self) -> None:
        """Read the end of the answer, so that its connection can be used again, and check that no byte follows."""
        response = self._response
        if response is not None and self._reaches == self._wanted.stop:
            excess = b""
            with suppress(
                InterruptedTransfer
            ):  # the range is complete: the end of the connection does not matter
                excess = await response.chunk()
            if excess:
                raise self._too_long(len(excess))
        self._drop()

    async def _ask(self, place: Place) -> Response:
        """Ask a place for the rest of the range; keep the answer only if it can be used."""
        wanted = Wanted(self._position, self._wanted.stop, self._wanted.size)
        headers = {"Accept": "*/*"} if wanted.range is None else {"Accept": "*/*", "Range": wanted.range}
        response = await place.open(self._what, self._path, headers)
        try:
            verdict = judge(
                wanted,
                response.status,
                ranges=response.headers("Content-Range"),
                length=response.header("Content-Length"),
                content_type=response.header("Content-Type"),
                encoding=response.header("Content-Encoding"),
                secrets=response.secrets,
            )
            if verdict is None:
                raise await response.failure()
            if verdict.actual_size is not None:
                raise SizeMismatchError(wanted.size, verdict.actual_size, what=self._what)
            if verdict.refusal:
                raise response.error(verdict.refusal)
            self._check_budget(self._received + verdict.skip)
        except BaseException:
            response.close()
            raise
        self._response, self._skip, self._reaches = response, verdict.skip, verdict.reaches
        return response
