"""Turns gzip or zstd into plain bytes, piece by piece, in bounded memory.

Synchronous: it knows no files, no event loop and no digests, and is called from a worker thread, by one
thread at a time. The idea: both compressions are a series of **members** (gzip's word; zstd says frames)
that are decompressed one after the other, each by an object of its own with the interface of
``bz2.BZ2Decompressor``. One loop over members serves isal, zlib and zstd. ::

    feed ──▶ │ member │ member │ skippable │ member │ ──▶ read
             └ 4 bytes of magic (gzip: and flags) choose who decompresses it

A member that is cut off, a wrong checksum, and anything behind the last member that is no member (zeros
too) are refused. So do Go's readers, ``compress/gzip`` and ``klauspost/compress/zstd``, which will read
what we write.
"""

from __future__ import annotations

import sys
import zlib
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from .errors import ContentTooLargeError, DecompressionError, MissingDependencyError
from .first_bytes import Compression, sniff
from .model import MAX_EXPANSION, Digest, Limits, Share

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["Compression", "Decompressor", "PlainHash", "sniff"]

FREE_EXPANSION: Final = 64 << 20
"""Plain bytes that come of anything, so that a small layer may be one large sparse file."""

# eStargz layers have thousands of members, none of them empty. More empty ones in a row than this cost
# time and give nothing: a bomb (aiohttp #13362 has the same number).
_MAX_EMPTY_MEMBERS = 1024

# A member gets its input in slices that double from the first size to the last. What it leaves over
# is copied (``unused_data``), so a big slice for each of many tiny members would cost quadratic time.
_FIRST_SLICE, _LAST_SLICE = 1 << 10, 1 << 18

_PLAIN_PIECE = 1 << 18

# libzstd's own default for streams, stated because it bounds our memory: a window is kept in full.
_ZSTD_WINDOW_LOG_MAX = 27

# gzip header flags that isal reads right however the header is cut: none, FEXTRA, FNAME, FCOMMENT. With
# two of them, or with FHCRC, it fails on sound input that is cut inside the header (intel/isa-l #224).
# Flags that RFC 1952 reserves go to zlib as well: it refuses them, isal does not.
_ISAL_FLAGS = frozenset((0, 4, 8, 16))


class Decompressor:
    """Decompress a series of gzip members or zstd frames.

    Feed a piece, read until nothing comes, feed the next one; at the end, finish::

        decompressor = Decompressor("gzip")
        for piece in pieces:
            decompressor.feed(piece)
            while plain := decompressor.read():
                ...
        decompressor.finish()

    It holds one piece of input and what its backend needs: for gzip some 100 KiB, for zstd the window
    that a frame asks for, at most 128 MiB. Checksums are verified where a member ends: what was read is
    of unknown worth until ``finish()`` has returned. An error is final, every later call raises it again.

    Attributes:
        plain_size: How many plain bytes ``read()`` has returned so far.
    """

    def __init__(
        self,
        compression: Compression,
        *,
        what: str = "the content",
        media_type: str | None = None,
        max_plain_size: int | None = None,
        max_expansion: int | None = MAX_EXPANSION,
        share: Share | None = None,
    ) -> None:
        """Choose the backend.

        Args:
            compression: The compression of the input.
            what: The name of the content in errors.
            media_type: Names its kind in errors; the compression where it is None.
            max_plain_size: The largest plain size to accept, in bytes.
            max_expansion: The most plain bytes to accept for each one of input, beyond the first 64 MiB; None for any
                number.
            share: Is called with ``what`` and the plain bytes beyond ``max_expansion`` for each byte of input so far, at
                each new maximum; the first 64 MiB count too. Where it returns False, reading fails.

        Raises:
            MissingDependencyError: zstd, and Python has neither its own module nor the backport.
        """
        self.plain_size = 0
        self._compression = compression
        self._what = what
        self._media_type = media_type or compression
        self._max_plain_size = sys.maxsize if max_plain_size is None else max_plain_size
        self._max_expansion = max_expansion
        self._share = share
        self._ahead = 0  # of what the ratio allows, at most until now
        self._fed = 0
        self._allowed = self._max_plain_size  # plain bytes, for what was fed
        self._backend = _gzip_backend() if compression == "gzip" else _zstd_backend()
        self._failure: ContentTooLargeError | DecompressionError | None = None
        self._input = b""
        self._position = 0  # of the first byte that no member was given
        self._drained = True  # read() has made of the input all that it can
        self._member: _Member | None = None  # between two members: none
        self._members = 0  # that are complete
        self._empty_members = 0  # in a row, with the current one as long as it gave nothing
        self._is_pending = False  # the current member may go on without input
        self._slice_size = _FIRST_SLICE

    def feed(self, data: bytes) -> None:
        """Hand over the next piece of compressed input; 256 KiB is a good size.

        Raises:
            RuntimeError: ``read()`` has not returned ``b""`` for the piece before.
        """
        self._check_drained()
        # What is left here is the beginning of a member's head: less than four bytes.
        rest = self._input[self._position :]
        self._input = rest + data if rest else data
        self._position = 0
        self._drained = False
        self._fed += len(data)
        if self._max_expansion is not None:
            self._allowed = min(self._max_plain_size, FREE_EXPANSION + self._max_expansion * self._fed)

    def read(self, max_length: int = 1 << 20) -> bytes:
        """Decompress the input that was fed.

        Returns:
            At most ``max_length`` (1 or more) plain bytes, whatever the input expands to; ``b""`` when it
            needs more input, or is at its end if there is no more.

        Raises:
            DecompressionError: The input is damaged, needs a zstd window above 128 MiB, has more than
                1024 empty members in a row, or has something else behind the last member.
            ContentTooLargeError: The plain bytes would be more than ``max_plain_size``, or ``max_expansion`` allows.
        """
        if self._failure:
            raise self._failure
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        size = 0
        parts: list[bytes] = []
        # One byte beyond what is allowed shows that there is too much.
        limit = min(max_length, self._allowed - self.plain_size + 1)
        while size < limit and (member := self._member or self._begin_member()):
            if (part := self._advance(member, limit - size)) is None:
                break
            parts.append(part)
            size += len(part)
        if self.plain_size + size > self._allowed:
            self._failure = self._too_large()
            raise self._failure
        self.plain_size += size
        if self._max_expansion is not None:
            self._count_ahead(self._max_expansion * self._fed)
        self._drained = size == 0
        return b"".join(parts)

    def finish(self) -> None:
        """Declare the input complete; call it when ``read()`` has returned ``b""``.

        Raises:
            DecompressionError: The last member is cut off, or there is none at all.
            RuntimeError: ``read()`` has not returned ``b""``.
        """
        self._check_drained()
        if self._member or not self._members or self._position < len(self._input):
            raise self._failed("it is cut off: it does not end where a member ends")

    def _check_drained(self) -> None:
        if self._failure:
            raise self._failure
        if not self._drained:
            raise RuntimeError("read() until it returns b'' before feed() or finish()")

    def _begin_member(self) -> _Member | None:
        # Enough to know it: zstd's magic, or gzip's magic, method and flags.
        head = self._input[self._position : self._position + 4]
        if len(head) < 4:
            return None
        if sniff(head) != self._compression:
            where = "is behind its last member" if self._members else "is at its start"
            raise self._failed(f"{head.hex()} {where}, where {self._compression} should begin")
        self._member = self._backend.open_member(head)
        self._empty_members += 1
        self._slice_size = _FIRST_SLICE
        return self._member

    def _advance(self, member: _Member, max_length: int) -> bytes | None:
        """Let the member go one step; None if it needs input and there is none."""
        data = b"" if self._is_pending else self._next_slice()
        if not data and not self._is_pending:
            return None
        try:
            plain = member.decompress(data, max_length)
        except self._backend.errors as error:
            raise self._failed(_reason(error)) from error
        # A full output may hide more, also when all input was taken in; a short one means that all of the
        # input was used. This holds for every backend, and zlib has no ``needs_input``.
        self._is_pending = len(plain) == max_length
        if plain:
            self._empty_members = 0
        if member.eof:
            self._end_member(member)
        return plain

    def _next_slice(self) -> memoryview:
        data = memoryview(self._input)[self._position : self._position + self._slice_size]
        self._position += len(data)
        self._slice_size = min(2 * self._slice_size, _LAST_SLICE)
        return data

    def _end_member(self, member: _Member) -> None:
        # `unused_data` lies wholly in the current input: a member that had not ended had used all of the input before.
        self._position -= len(member.unused_data)
        self._member = None
        self._is_pending = False
        self._members += 1
        if self._empty_members > _MAX_EMPTY_MEMBERS:
            raise self._failed(f"more than {_MAX_EMPTY_MEMBERS} empty members in a row")

    def _count_ahead(self, allowed: int) -> None:
        if self.plain_size - allowed <= self._ahead:
            return
        self._ahead = self.plain_size - allowed
        if self._share is not None and not self._share(self._what, self._ahead):
            self._failure = self._expands("what all layers may have beyond that together is used up", allowed)
            raise self._failure

    def _too_large(self) -> ContentTooLargeError:
        if self._allowed == self._max_plain_size:
            return ContentTooLargeError(self._allowed, what=self._what)
        return self._expands(f"and {FREE_EXPANSION >> 20} MiB", self._allowed)

    def _expands(self, beyond: str, limit: int) -> ContentTooLargeError:
        why = (
            f"{self._max_expansion} for each of the {self._fed} bytes that it was compressed to until there, {beyond}; "
            "where that is no attack, allow more by max_expansion"
        )
        return ContentTooLargeError(limit, what=self._what, why=why)

    def _failed(self, reason: str) -> DecompressionError:
        """Return the error to raise, which every later call will raise too."""
        self._failure = error = DecompressionError(self._what, self._media_type, reason)
        return error


class PlainHash:
    """Hash the plain tar of a blob that is stored as it is.

    Attributes:
        diff_id: The digest that it must have; None where any will do.

    Args:
        diff_id: The same; SHA-256 is computed where there is none.
        what: The name of the blob in errors.
        limits: How far the blob may expand, as for :class:`Decompressor`.
    """

    def __init__(self, diff_id: Digest | None, *, what: str, limits: Limits) -> None:
        self.diff_id = diff_id
        self._algorithm = diff_id.algorithm if diff_id else "sha256"
        self._hash = Digest.of(b"", self._algorithm).hasher()
        self._what = what
        self._limits = limits
        self._head: bytes | None = b""  # until it is known what it is
        self._decompressor: Decompressor | None = None
        self._plain_size = 0  # where nothing is decompressed
        self._is_stopped = False

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the blob.

        Raises:
            ContentError: They are damaged, or too many; every later call raises it again.
            MissingDependencyError: zstd, and there is nothing to decompress it.
        """
        if self._is_stopped:
            return
        if self._head is not None:
            data = self._head + bytes(data)
            if len(data) < 4:
                self._head = data
                return
            self._begin(data)
        self._expand(data)

    def digest(self) -> Digest:
        """Return the digest of all plain bytes; nothing can be taken after it.

        Raises:
            ContentError: The content is cut off.
        """
        if self._head is not None:  # it is shorter than any magic
            self._begin(head := self._head)
            self._expand(head)
        if self._decompressor is not None:
            self._decompressor.finish()
        return Digest(self._algorithm, self._hash.hexdigest())

    def stop(self) -> None:
        """Let an :meth:`update` that runs in another thread end soon; the hash is worthless then."""
        self._is_stopped = True

    def _begin(self, head: bytes) -> None:
        compression = sniff(head[:4])
        if compression is not None:
            self._decompressor = Decompressor(compression, what=self._what, **self._limits._asdict())
        self._head = None

    def _expand(self, data: bytes | memoryview) -> None:
        if self._decompressor is None:
            self._plain_size += len(data)
            most = self._limits.max_plain_size
            if most is not None and self._plain_size > most:
                raise ContentTooLargeError(most, what=self._what)
            self._hash.update(data)
            return
        self._decompressor.feed(bytes(data))
        while not self._is_stopped and (plain := self._decompressor.read(_PLAIN_PIECE)):
            self._hash.update(plain)


# ── backends ──


class _Member(Protocol):
    """One gzip member or zstd frame that is being decompressed, as ``bz2.BZ2Decompressor`` does it."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


class _Backend(NamedTuple):
    open_member: Callable[[bytes], _Member]  # takes the member's first four bytes, to look at them only
    errors: tuple[type[Exception], ...]  # what its members raise on damaged input


class _ZlibMember:
    """zlib behind the interface of ``_Member``."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)  # 16 for gzip's header and trailer, 15 for any window
        self.eof = False
        self.unused_data = b""

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        # While there is a tail, the last output was full, so there is no data yet.
        plain = self._inflate.decompress(self._inflate.unconsumed_tail or data, max_length)
        self.eof = self._inflate.eof
        self.unused_data = self._inflate.unused_data
        return plain


def _import_first(*names: str) -> ModuleType | None:
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    return None


def _gzip_backend() -> _Backend:
    isal = _import_first("isal.igzip_lib")
    if isal is None:
        return _Backend(lambda _head: _ZlibMember(), (zlib.error,))

    def open_member(head: bytes) -> _Member:
        # DECOMP_GZIP has it verify the checksum and the size in the trailer.
        return isal.IgzipDecompressor(flag=isal.DECOMP_GZIP) if head[3] in _ISAL_FLAGS else _ZlibMember()

    return _Backend(open_member, (isal.error, zlib.error))


def _zstd_backend() -> _Backend:
    zstd = _import_first("compression.zstd", "backports.zstd")  # the first is in Python since 3.14
    if zstd is None:
        raise MissingDependencyError("zstd", "decompress")
    options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
    return _Backend(lambda _head: zstd.ZstdDecompressor(options=options), (zstd.ZstdError,))


def _reason(error: Exception) -> str:
    # libzstd's text does not say what the limit is.
    if "too much memory" in str(error):
        return f"it needs a window above the limit of 2^{_ZSTD_WINDOW_LOG_MAX} bytes (128 MiB)"
    return str(error)
