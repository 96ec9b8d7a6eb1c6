"""Verifies a blob while its bytes pass: size, digest, and the diff ID of its plain tar where that is asked for.

Synchronous. The size is counted where bytes arrive, so that too many are refused before they wait for anything; hashing
takes long, and is called from a worker thread, by one thread at a time::

    verifier.count(len(chunk))     # on the loop: SizeMismatchError
    verifier.update([chunk])       # in a thread
    verifier.end()                 # on the loop, when the content is at its end: SizeMismatchError
    verifier.finish()              # in a thread: DigestMismatchError

Whoever stores or gives out the bytes of a blob keeps its last chunk back until ``finish`` has returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ContentError, DigestMismatchError, SizeMismatchError
from .model import Descriptor, Digest
from .tar import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .decompression import PlainHash
    from .model import Limits

__all__ = ["Verifier", "check_diff_id", "check_digest", "new_plain_hash"]


class Verifier:
    """Verify one blob, or count a part of one.

    Attributes:
        received: The number of bytes that were counted.
        head: The first bytes that were hashed, at most 512.
        digest: The digest of the blob, once it is finished; None for a part, which has none.
        plain_digest: The digest of its plain tar, once it is finished, where that is checked.
        fault: The error that was raised first.

    Args:
        expected: The blob, where it is known; its size may be None.
        part: The first byte and the byte behind the last, where only these are received: their number is all that can
            be verified.
        plain: Computes the digest of its plain tar, where that is verified, too.
    """

    def __init__(
        self,
        expected: Descriptor | None,
        *,
        part: tuple[int, int] | None = None,
        plain: PlainHash | None = None,
    ) -> None:
        self.received = 0
        self.head = b""
        self.digest: Digest | None = None
        self.plain_digest: Digest | None = None
        self.fault: ContentError | None = None
        self._expected = expected
        self._size = expected.size if expected else None
        self._what = f"blob {expected.digest}" if expected else "the content"
        if part is not None:
            self._size = part[1] - part[0]
            self._what = f"bytes {part[0]} to {part[1]} of {self._what}"
        self._algorithm = expected.digest.algorithm if expected else "sha256"
        self._hash = Digest.of(b"", self._algorithm).hasher() if part is None else None
        self._plain = plain if part is None else None

    @property
    def what(self) -> str:
        """The name of the content, for messages."""
        return self._what

    @property
    def hashes(self) -> bool:
        """Whether there is anything to hash."""
        return self._hash is not None

    @property
    def expands(self) -> bool:
        """Whether a few bytes may be many to hash, since their plain bytes are hashed too."""
        return self._plain is not None

    def count(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            SizeMismatchError: They are more than were promised.
        """
        self.received += size
        if self._size is not None and self.received > self._size:
            self._raise(SizeMismatchError(self._size, self.received, what=self._what))

    def end(self) -> None:
        """Say that no more will arrive.

        Raises:
            SizeMismatchError: They are less than were promised.
        """
        if self._size is not None and self.received < self._size:
            self._raise(SizeMismatchError(self._size, self.received, what=self._what))

    def update(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Hash the next bytes.

        Raises:
            ContentError: The plain tar is damaged, or too large.
            MissingDependencyError: There is nothing to decompress it with.
        """
        if self._hash is None:
            return
        for chunk in chunks:
            if len(self.head) < BLOCK_SIZE:
                self.head += bytes(chunk[: BLOCK_SIZE - len(self.head)])
            self._hash.update(chunk)
            if self._plain is not None:
                self._plain.update(chunk)

    def would_finish(self, rest: bytes) -> bool:
        """Return whether the digest is right when ``rest`` follows the bytes hashed so far."""
        if self._hash is None or self._expected is None:
            return False
        hash_ = self._hash.copy()
        hash_.update(rest)
        return hash_.hexdigest() == self._expected.digest.encoded

    def finish(self) -> None:
        """Verify the bytes that were hashed.

        Raises:
            DigestMismatchError: The blob has another digest than was promised, or its plain tar another diff ID.
            ContentError: The plain tar is cut off.
        """
        if self._hash is None:
            return
        # 1. The blob: wrong bytes are the cause of any other fault.
        self.digest = Digest(self._algorithm, self._hash.hexdigest())
        try:
            if self._expected is not None:
                check_digest(self._expected, self.digest)
            # 2. Its plain tar.
            if self._plain is not None:
                self.plain_digest = self._plain.digest()
                check_diff_id(self._plain.diff_id, self.plain_digest, self._expected)
        except ContentError as exc:
            self.fault = self.fault or exc
            raise

    def stop(self) -> None:
        """Let an :meth:`update` that runs in another thread end soon; nothing can be verified after that."""
        if self._plain is not None:
            self._plain.stop()

    def _raise(self, error: ContentError) -> None:
        self.fault = self.fault or error
        raise error


def new_plain_hash(blob: Descriptor | None, diff_id: Digest | None, limits: Limits) -> PlainHash:
    """Return the hash of the plain tar of a blob that is stored as it is, within limits on its expansion."""
    from .decompression import PlainHash  # noqa: PLC0415 - not where plain tars are not looked at

    return PlainHash(diff_id, what=f"layer {blob.digest}" if blob else "the layer", limits=limits)


def check_digest(expected: Descriptor, actual: Digest) -> None:
    """Raise :class:`DigestMismatchError` where a blob has another digest than its own."""
    if actual != expected.digest:
        raise DigestMismatchError(expected.digest, actual, descriptor=expected)


def check_diff_id(diff_id: Digest | None, actual: Digest, blob: Descriptor | None) -> None:
    """Raise :class:`DigestMismatchError` where the plain tar of a blob has another digest than its diff ID."""
    if diff_id is not None and actual != diff_id:
        raise DigestMismatchError(diff_id, actual, what="diff ID", descriptor=blob)
