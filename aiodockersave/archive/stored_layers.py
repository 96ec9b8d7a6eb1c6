"""The layers that are in an archive: a map from blobs to what is stored of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from aiodockersave.core.docker_archive import Image
from aiodockersave.core.errors import DigestMismatchError, InvalidInputError
from aiodockersave.core.model import Descriptor, Digest


@dataclass(frozen=True, slots=True)
class Wanted:
    """The blob and the plain tar that a layer is expected to be.

    Attributes:
        descriptor: The blob, where it is known.
        diff_id: The digest of the plain tar, where it is known and what is stored.
        plain: The same, where the blob is stored as it is and its plain tar is to be looked at.
    """

    descriptor: Descriptor | None
    diff_id: Digest | None
    plain: Digest | None = None

    @classmethod
    def of(
        cls,
        descriptor: Descriptor | None,
        diff_id: Digest | str | None,
        *,
        is_stored: bool,
        is_verified: bool,
    ) -> Self:
        """Check what a caller says of a layer: ``diff_id`` where the plain tar is stored, or verified beside.

        Raises:
            InvalidDigestError: The diff ID is no digest.
            TypeError: The descriptor is none.
        """
        if not isinstance(descriptor, Descriptor | None):
            raise TypeError(f"descriptor is a Descriptor or None, not {type(descriptor).__qualname__}")
        if diff_id is None or not (is_stored or is_verified):
            return cls(descriptor, None)
        digest = Digest.parse(diff_id)
        return cls(descriptor, digest) if is_stored else cls(descriptor, None, digest)


class Ledger:
    """The layers that are in, found by the digest of the blob or of what is stored of it.

    The two are kept apart: what is stored of one blob may be another blob, as a tar that was compressed twice shows.
    """

    def __init__(self) -> None:
        self._of_blobs: dict[Digest, Descriptor] = {}
        self._contents: dict[Digest, Descriptor] = {}
        self._sizes: dict[Digest, int] = {}
        self._plain: dict[Digest, Digest] = {}

    def get(self, digest: Digest) -> Descriptor | None:
        """Return what is stored of the blob ``digest``, or under it."""
        return self._of_blobs.get(digest) or self._contents.get(digest)

    def content(self, digest: Digest) -> Descriptor | None:
        """Return what is stored under ``digest``."""
        return self._contents.get(digest)

    def find(self, wanted: Wanted) -> Descriptor | None:
        """Return what a layer is stored as, if its blob is in. Another blob with the same diff ID has to be read.

        Raises:
            InvalidInputError: It is in with another size.
            DigestMismatchError: It is in, and is another layer than the diff ID says.
        """
        if wanted.descriptor is None or self.get(wanted.descriptor.digest) is None:
            return None
        stored = self.look_up(wanted.descriptor)
        if wanted.plain is not None:
            self._check_plain(stored, wanted.plain)
        if wanted.diff_id in (None, stored.digest):
            return stored
        if wanted.descriptor.digest not in self._of_blobs:
            return None  # its digest is that of a content: it is another blob
        raise DigestMismatchError(wanted.diff_id, stored.digest, what="diff ID", descriptor=wanted.descriptor)

    def look_up(self, descriptor: Descriptor) -> Descriptor:
        """Return what is stored of a blob that must be in.

        Raises:
            InvalidInputError: It is not, or with another size.
        """
        stored = self.get(descriptor.digest)
        if stored is None:
            raise InvalidInputError(f"layer {descriptor.digest} is not in the archive: put_layer() it first")
        size = self._sizes.get(descriptor.digest)
        if None not in (size, descriptor.size) and size != descriptor.size:
            raise InvalidInputError(
                f"blob {descriptor.digest} has two sizes: it is in the archive with {size} bytes, "
                f"{descriptor.size} are promised"
            )
        return stored

    def know_plain(self, blob: Descriptor, plain: Digest | None) -> None:
        """Remember the digest of the plain tar of a blob, whether that is in or not: it is a fact about its bytes."""
        if plain is not None:
            self._plain[blob.digest] = plain

    def check_diff_ids(self, image: Image, *, are_kept: bool) -> None:
        """Look whether what is stored of an image's layers, or of kept ones is known to be in them, is what it says.

        Raises:
            DigestMismatchError: One is not.
            InvalidInputError: That cannot be told, as the diff ID has another algorithm than what was looked at.
        """
        for layer, diff_id in zip(image.layers, image.config.diff_ids, strict=True):
            stored = self.look_up(layer)
            if are_kept:
                self._check_plain(stored, diff_id)
            elif stored.digest != diff_id:
                raise DigestMismatchError(diff_id, stored.digest, what="diff ID")

    def _check_plain(self, stored: Descriptor, diff_id: Digest) -> None:
        plain = self._plain[stored.digest]
        if plain.algorithm != diff_id.algorithm:
            raise InvalidInputError(
                f"layer {stored.digest} was put with its {plain.algorithm}, and its diff ID is a {diff_id.algorithm}: "
                "give diff_id= when you put it"
            )
        if plain != diff_id:
            raise DigestMismatchError(diff_id, plain, what="diff ID", descriptor=stored)

    def record(self, blob: Descriptor, stored: Descriptor) -> None:
        """Record that ``stored`` is in, and came of ``blob``."""
        self._of_blobs.setdefault(blob.digest, stored)
        self._contents.setdefault(stored.digest, stored)
        for descriptor in (blob, stored):
            if descriptor.size is not None:
                self._sizes.setdefault(descriptor.digest, descriptor.size)
