"""Receive the layers of a writer, write them as members, and record the layers that are in the archive.

::

    Wanted ──▶ Ledger: is it in already? ──no──▶ Receiver: a transfer ──▶ LayerWriter: a member ──commit──▶ Ledger

If digest and size are known, the header of a member is written first; otherwise zeros are written first, and
the header replaces them at the end. The idea to know first: the methods of :class:`LayerWriter` do all the
awaiting and return a commit, which the caller runs when no fault can come any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from aiodockersave.blobs.content import Batch
from aiodockersave.blobs.transfer import Transfer
from aiodockersave.core.docker_archive import Addition, Builder, Image
from aiodockersave.core.errors import DigestMismatchError, InvalidInputError, SinkError
from aiodockersave.core.model import Descriptor, Digest, Limits
from aiodockersave.core.verify import Verifier, new_plain_hash

from .transaction import Batches, OneBatch, Transaction

if TYPE_CHECKING:
    from aiodockersave._aio import Worker
    from aiodockersave.blobs.calls import Call
    from aiodockersave.blobs.content import OpenContent
    from aiodockersave.blobs.space import Space
    from aiodockersave.blobs.staging import Stage

__all__ = ["Commit", "LayerWriter", "Ledger", "Receiver", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The blob and the plain tar that a layer is expected to be.

    Attributes:
        descriptor: The descriptor of the blob, if known.
        diff_id: The digest of the plain tar, if known and if the plain tar is stored.
        plain: The same digest, if the blob is stored as it is and its plain tar is verified too.
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
        """Check what a caller passes for a layer; ``diff_id`` only if the plain tar is stored or verified.

        Raises:
            InvalidDigestError: The diff ID is no digest.
            TypeError: ``descriptor`` is neither a Descriptor nor None.
        """
        if not isinstance(descriptor, Descriptor | None):
            raise TypeError(f"descriptor is a Descriptor or None, not {type(descriptor).__qualname__}")
        if diff_id is None or not (is_stored or is_verified):
            return cls(descriptor, None)
        digest = Digest.parse(diff_id)
        return cls(descriptor, digest) if is_stored else cls(descriptor, None, digest)


class Ledger:
    """Find the layers in the archive, by the digest of the blob or by the digest of its stored content.

    The two digests have separate tables: the stored content of one blob may equal another blob, as with a tar
    that was compressed twice.
    """

    def __init__(self) -> None:
        self._of_blobs: dict[Digest, Descriptor] = {}
        self._contents: dict[Digest, Descriptor] = {}
        self._sizes: dict[Digest, int] = {}
        self._plain: dict[Digest, Digest] = {}

    def get(self, digest: Digest) -> Descriptor | None:
        """Return the stored content of the blob ``digest``, else the content stored under ``digest``."""
        return self._of_blobs.get(digest) or self._contents.get(digest)

    def content(self, digest: Digest) -> Descriptor | None:
        """Return the content that is stored under ``digest``."""
        return self._contents.get(digest)

    def find(self, wanted: Wanted) -> Descriptor | None:
        """Return the stored content of a layer if its blob is in the archive, else None.

        Another blob with the same diff ID does not count: the caller must read this blob.

        Raises:
            InvalidInputError: The blob is in the archive with another size.
            DigestMismatchError: The blob is in the archive, and its plain tar has another digest than the
                diff ID.
        """
        if wanted.descriptor is None or self.get(wanted.descriptor.digest) is None:
            return None
        stored = self.look_up(wanted.descriptor)
        if wanted.plain is not None:
            self._check_plain(stored, wanted.plain)
        if wanted.diff_id in (None, stored.digest):
            return stored
        if wanted.descriptor.digest not in self._of_blobs:
            return None  # the digest is only that of a stored content, not of a blob that was put
        raise DigestMismatchError(wanted.diff_id, stored.digest, what="diff ID", descriptor=wanted.descriptor)

    def look_up(self, descriptor: Descriptor) -> Descriptor:
        """Return the stored content of a blob that must be in the archive.

        Raises:
            InvalidInputError: The blob is not in the archive, or has another size there.
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
        """Record the digest of the plain tar of a blob.

        The blob need not be in the archive: the digest is a fact about its bytes.
        """
        if plain is not None:
            self._plain[blob.digest] = plain

    def check_diff_ids(self, image: Image, *, are_kept: bool) -> None:
        """Compare each layer of an image with its diff ID in the config.

        If plain tars are stored, the digests of the stored contents are compared. If blobs are kept, the
        digests of their plain tars are compared, which were computed while the blobs were read.

        Raises:
            DigestMismatchError: A layer has another diff ID.
            InvalidInputError: The diff ID has another algorithm than the digest that was computed.
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
        """Record that ``stored`` is in the archive, as the content of ``blob``."""
        self._of_blobs.setdefault(blob.digest, stored)
        self._contents.setdefault(stored.digest, stored)
        for descriptor in (blob, stored):
            if descriptor.size is not None:
                self._sizes.setdefault(descriptor.digest, descriptor.size)


Commit = Callable[[], Descriptor]


class LayerWriter:
    """Write layers into transactions; each commit records its layer in builder and ledger."""

    def __init__(self, builder: Builder, ledger: Ledger, *, decompress: bool) -> None:
        self._builder = builder
        self._ledger = ledger
        self._decompress = decompress

    async def stream(self, transaction: Transaction, transfer: Transfer, wanted: Wanted) -> Commit:
        """Write a layer while it is received.

        Cancel: the layer is incomplete; :meth:`Transaction.undo` takes it back.
        """
        batch = await transfer.next()
        if transfer.done:
            return await self.write_known(transaction, OneBatch(batch), transfer.blob, transfer.stored)
        descriptor = wanted.descriptor
        if descriptor is None or descriptor.size is None or self._decompress:
            return await self._write_header_last(transaction, transfer, batch, wanted)
        addition = self._builder.prepare_blob(descriptor.digest, descriptor.size, descriptor.media_type)
        transaction.writing = f"layer {descriptor.digest}"
        await transaction.write_data(addition.head, batch, transfer, pad=True)
        return lambda: self._commit(transaction, addition, transfer.blob, transfer.stored)

    async def write_known(
        self, transaction: Transaction, batches: Batches, blob: Descriptor, stored: Descriptor
    ) -> Commit:
        """Write a layer that was received and verified before.

        Cancel: as :meth:`stream`.
        """
        if (existing := self._ledger.content(stored.digest)) is not None:
            return lambda: self._commit(transaction, Addition(), blob, existing)
        addition = self._prepare(stored)
        transaction.writing = f"layer {stored.digest}"
        await transaction.write_data(addition.head, await batches.next(), batches, pad=True)
        return lambda: self._commit(transaction, addition, blob, stored)

    async def _write_header_last(
        self, transaction: Transaction, transfer: Transfer, batch: Batch, wanted: Wanted
    ) -> Commit:
        descriptor = wanted.descriptor
        expected = wanted.diff_id if self._decompress else descriptor and descriptor.digest
        guess = expected or Digest("sha256", "0" * 64)
        reserved = len(self._builder.prepare_blob(guess, 0, transfer.media_type).head)
        transaction.writing = f"layer {descriptor.digest}" if descriptor else "a layer of unknown digest"
        await transaction.write_data(bytes(reserved), batch, transfer, pad=False)
        stored = transfer.stored
        if (existing := self._ledger.content(stored.digest)) is not None:
            await _take_back(transaction)
            return lambda: self._commit(transaction, Addition(), transfer.blob, existing)
        addition = self._prepare(stored)
        await transaction.patch_head(reserved, addition.head, _size(stored))
        return lambda: self._commit(transaction, addition, transfer.blob, stored)

    def _prepare(self, stored: Descriptor) -> Addition:
        return self._builder.prepare_blob(stored.digest, _size(stored), stored.media_type)

    def _commit(
        self, transaction: Transaction, addition: Addition, blob: Descriptor, stored: Descriptor
    ) -> Descriptor:
        transaction.commit(addition)
        self._builder.commit(addition)
        self._ledger.record(blob, stored)
        transaction.settle()  # last: until here an interrupt leaves the archive in doubt
        return stored


def _size(stored: Descriptor) -> int:
    if stored.size is None:
        raise AssertionError("what was read has a size")
    return stored.size


async def _take_back(transaction: Transaction) -> None:
    failure = SinkError("the layer is in already, and its second copy cannot be taken back")
    if not await transaction.undo(failure):
        raise failure


class Receiver:
    """Receive layers.

    Attributes:
        space: Checks the free disk space, if the archive is written to a file of ours; else None.

    Args:
        ledger: Records the digests of plain tars.
        worker: The thread that checks the free disk space.
        limits: The limits on the expansion of all layers.
        decompress: Whether plain tars are stored.
        verify_plain: Whether the plain tar of each layer that is kept is verified.
    """

    def __init__(
        self, ledger: Ledger, worker: Worker, limits: Limits, *, decompress: bool, verify_plain: bool
    ) -> None:
        self.space: Space | None = None
        self._ledger = ledger
        self._worker = worker
        self._limits = limits
        self._decompress = decompress
        self._verify_plain = verify_plain

    def transfer(self, opened: OpenContent, wanted: Wanted) -> Transfer:
        """Return the transfer of a layer, without reading yet."""
        blob, diff_id = wanted.descriptor, wanted.diff_id or wanted.plain
        limits = self._limits if blob else _of_one_without_a_name(self._limits)
        plain = new_plain_hash(blob, diff_id, limits) if self._verify_plain else None
        grows = self._decompress or blob is None or blob.size is None
        return Transfer(
            opened,
            blob,
            verifier=Verifier(blob, plain=plain),
            inflate=limits if self._decompress else None,
            diff_id=diff_id,
            make_room=partial(self.space.take_in, self._worker) if self.space and grows else None,
        )

    async def stage(
        self, call: Call, opened: OpenContent, wanted: Wanted, stage: Stage
    ) -> tuple[Descriptor, Descriptor]:
        """Receive a whole layer into ``stage``; return the blob that was read and the content to store.

        Cancel: as :meth:`Call.settle`; the stage keeps the batches that it has.
        """
        transfer = self.transfer(opened, wanted)

        async def work() -> Callable[[], tuple[Descriptor, Descriptor]]:
            await opened.open()
            while not transfer.done:
                await stage.append(await transfer.next())
            self._ledger.know_plain(transfer.blob, transfer.plain_digest)
            return lambda: (transfer.blob, transfer.stored)

        call.staging = True
        try:
            return await call.settle(work, content=opened, closing=[transfer])
        finally:
            call.staging = False


def _of_one_without_a_name(limits: Limits) -> Limits:
    """Return limits that count a layer of unknown digest under a key of its own.

    Limits count a layer under its name in messages. All layers of unknown digest share one name, so without
    this they would count as one.
    """
    share, layer = limits.share, object()
    return limits if share is None else limits._replace(share=lambda _, size: share(layer, size))
