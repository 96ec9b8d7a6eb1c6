"""Which layers are in an archive, and as what: the map from blobs to what is stored of them."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import DigestMismatchError, InvalidInputError
from .model import Descriptor, Digest


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a layer is expected to be.

    Attributes:
        descriptor: The blob, where it is known.
        diff_id: The digest of the plain tar, where it is known and what is stored.
    """

    descriptor: Descriptor | None
    diff_id: Digest | None


class Ledger:
    """The layers that are in, found by the digest of the blob or of what is stored of it."""

    def __init__(self) -> None:
        self._stored: dict[Digest, Descriptor] = {}
        self._sizes: dict[Digest, int] = {}

    def get(self, digest: Digest) -> Descriptor | None:
        """Return what is stored under ``digest``, or of the blob with it."""
        return self._stored.get(digest)

    def find(self, wanted: Wanted) -> Descriptor | None:
        """Return what a layer is stored as, if its blob is in. Another blob with the same diff ID has to be read.

        Raises:
            InvalidInputError: It is in with another size.
            DigestMismatchError: It is in, and is another layer than the diff ID says.
        """
        if wanted.descriptor is None or wanted.descriptor.digest not in self._stored:
            return None
        stored = self.look_up(wanted.descriptor)
        if wanted.diff_id not in (None, stored.digest):
            raise DigestMismatchError(
                wanted.diff_id, stored.digest, what="diff ID", descriptor=wanted.descriptor
            )
        return stored

    def look_up(self, descriptor: Descriptor) -> Descriptor:
        """Return what is stored of a blob that must be in.

        Raises:
            InvalidInputError: It is not, or with another size.
        """
        stored = self._stored.get(descriptor.digest)
        if stored is None:
            raise InvalidInputError(f"layer {descriptor.digest} is not in the archive: put_layer() it first")
        size = self._sizes.get(descriptor.digest)
        if None not in (size, descriptor.size) and size != descriptor.size:
            raise InvalidInputError(
                f"blob {descriptor.digest} has two sizes: it is in the archive with {size} bytes, "
                f"{descriptor.size} are promised"
            )
        return stored

    def record(self, blob: Descriptor, stored: Descriptor) -> None:
        """Record that ``stored`` is in, and came of ``blob``."""
        for descriptor in (blob, stored):
            self._stored.setdefault(descriptor.digest, stored)
            if descriptor.size is not None:
                self._sizes.setdefault(descriptor.digest, descriptor.size)
