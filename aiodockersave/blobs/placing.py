"""A blob into its place in a file: hashed, and written at its offset; decompressed beside where its diff ID is verified.

The idea to know first: everything here blocks, and one blob is handled by one thread at a time. Nothing of it depends on
what other blobs do: each writes into its own region only, and knows the bytes of it that are right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aiodockersave.core.errors import ContentError, DigestMismatchError, SinkError
from aiodockersave.core.first_bytes import is_like_a_layer
from aiodockersave.core.model import Descriptor, Digest
from aiodockersave.core.tar import BLOCK_SIZE

from .content import Batch

if TYPE_CHECKING:
    from aiodockersave.core.decompression import PlainHash
    from aiodockersave.core.plan import Segment

    from .content import Batch
    from .open_file import OpenFile

__all__ = ["KeptBlob", "Placement", "write_at", "write_literals"]


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


T = TypeVar("T")

PIECE: Final = 1 << 18
"""Bytes that are decompressed, hashed and written at once."""
_LAST_ZEROS: Final = 64 << 10
"""Zeros at the end of a blob that are taken for its own: a plain tar ends with a record of them."""


class Placement(Protocol):
    """One blob on its way into its region.

    Attributes:
        position: How many bytes of the region are filled.
    """

    position: int

    def take(self, batch: Sequence[Batch]) -> None:
        """Take the next bytes of the blob.

        Raises:
            OSError: They cannot be written.
            ContentError: They are not what was promised.
        """
        ...

    def finish(self) -> int:
        """Verify what was taken, and return how many bytes are in the region.

        Raises:
            ContentError: It is not what was promised.
        """
        ...

    def stop(self) -> None:
        """Let a :meth:`take` that runs in another thread end soon; its blob is given up."""
        ...

    def close(self) -> None:
        """Wait until no thread works for it, whatever they have left to do."""
        ...


class KeptBlob:
    """A blob that is stored as it is.

    Attributes:
        position: How many of its bytes are hashed and in their place.
        is_right: Whether all of them came, and have the right digest; None as long as that is not known.
        is_odd: Whether it begins as no layer does; known with that.

    Args:
        file: The file.
        offset: Where the blob starts in it.
        descriptor: The blob, with its size.
        diff_id: What its plain tar must be, where that is looked at.
        plain_hash: Hashes that.
    """

    def __init__(
        self,
        file: OpenFile,
        offset: int,
        descriptor: Descriptor,
        diff_id: Digest | None = None,
        plain_hash: PlainHash | None = None,
    ) -> None:
        self.position = 0
        self.is_right: bool | None = None
        self.is_odd = False
        self._diff_id = diff_id
        self._plain_hash = plain_hash
        self._file = file
        self._offset = offset
        self._descriptor = descriptor
        self._hash = descriptor.digest.hasher()

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
        """Hash what is there, up to ``stop``, instead of taking it."""
        with self._file as fd:
            while self.position < stop:
                data = os.pread(fd, min(PIECE, stop - self.position), self._offset + self.position)
                if not data:
                    raise SinkError("the part file was cut while it was read")
                self._hash.update(data)
                if self._plain_hash is not None:
                    with suppress(ContentError):  # raised again by take and finish: it may be a wrong byte
                        self._plain_hash.update(data)
                self.position += len(data)

    def is_whole(self) -> bool:
        """Tell whether all of the blob is there and right, perhaps with zeros at its end."""
        missing = self._size - self.position
        if missing > _LAST_ZEROS:
            return False
        hash_ = self._hash.copy()
        hash_.update(bytes(missing))
        if hash_.hexdigest() != self._descriptor.digest.encoded:
            return False
        self.take([bytes(missing)])
        return True

    def take(self, batch: Sequence[Batch]) -> None:
        """Hash and write bytes."""
        with self._file as fd:
            for chunk in batch:
                self._hash.update(chunk)
                write_at(fd, chunk, self._offset + self.position)
                self.position += len(chunk)
                if self._plain_hash is not None:
                    self._plain_hash.update(chunk)

    def finish(self) -> int:
        """Verify the digest, and the diff ID where that is asked for."""
        self.is_right = False  # unless the next line finds that it is
        _check(self._hash, self._descriptor.digest, "blob", self._descriptor)
        self.is_right = True
        with self._file as fd:
            self.is_odd = not is_like_a_layer(os.pread(fd, min(BLOCK_SIZE, self._size), self._offset))
        if self._plain_hash is not None and self._diff_id is not None:
            _check(self._plain_hash, self._diff_id, "diff ID", self._descriptor)
        return self.position

    def stop(self) -> None:
        """Decompress no further, if it does."""
        if self._plain_hash is not None:
            self._plain_hash.stop()

    def close(self) -> None:
        """Do nothing: there is no thread."""

    @property
    def _size(self) -> int:
        return self._descriptor.size or 0


def _check(hash_: Any, expected: Digest, what: str, descriptor: Descriptor) -> None:
    actual = Digest(expected.algorithm, hash_.hexdigest())
    if actual != expected:
        raise DigestMismatchError(expected, actual, what=what, descriptor=descriptor)
