"""One layer's member: its header first where digest and size are known, over zeros at the end where they are not.

The methods await everything and return the commit, which the caller runs once no fault can come any more.
"""

from __future__ import annotations

from collections.abc import Callable

from aiodockersave.blobs.content import Batch
from aiodockersave.blobs.transfer import Transfer
from aiodockersave.core.docker_archive import Addition, DockerBuilder, Member
from aiodockersave.core.errors import SinkError
from aiodockersave.core.model import Descriptor, Digest

from .stored_layers import Ledger, Wanted
from .transaction import Batches, OneBatch, Transaction

Commit = Callable[[], Descriptor]


class LayerWriter:
    """Writes layers into transactions, and records them in builder and ledger when they are committed."""

    def __init__(self, builder: DockerBuilder, ledger: Ledger, *, decompress: bool) -> None:
        self._builder = builder
        self._ledger = ledger
        self._decompress = decompress

    async def stream(self, transaction: Transaction, transfer: Transfer, wanted: Wanted) -> Commit:
        """Write a layer while it is received.

        Cancel: the layer is torn; :meth:`Transaction.undo` takes it back.
        """
        batch = await transfer.next()
        if transfer.done:
            return await self.write_known(transaction, OneBatch(batch), transfer.blob, transfer.stored)
        descriptor = wanted.descriptor
        if descriptor is None or descriptor.size is None or self._decompress:
            return await self._write_header_last(transaction, transfer, batch, wanted)
        addition = self._builder.prepare_blob(descriptor.digest, descriptor.size, descriptor.media_type)
        transaction.writing = f"layer {descriptor.digest}"
        await transaction.write_data(_member(addition).header, batch, transfer, pad=True)
        return lambda: self._commit(transaction, addition, transfer.blob, transfer.stored)

    async def write_known(
        self, transaction: Transaction, batches: Batches, blob: Descriptor, stored: Descriptor
    ) -> Commit:
        """Write a layer that was received and verified as a whole.

        Cancel: as :meth:`stream`.
        """
        if (existing := self._ledger.content(stored.digest)) is not None:
            return lambda: self._commit(transaction, Addition(), blob, existing)
        addition = self._prepare(stored)
        transaction.writing = f"layer {stored.digest}"
        await transaction.write_data(_member(addition).header, await batches.next(), batches, pad=True)
        return lambda: self._commit(transaction, addition, blob, stored)

    async def _write_header_last(
        self, transaction: Transaction, transfer: Transfer, batch: Batch, wanted: Wanted
    ) -> Commit:
        descriptor = wanted.descriptor
        expected = wanted.diff_id if self._decompress else descriptor and descriptor.digest
        guess = expected or Digest("sha256", "0" * 64)
        reserved = len(_member(self._builder.prepare_blob(guess, 0, transfer.media_type)).header)
        transaction.writing = f"layer {descriptor.digest}" if descriptor else "a layer of unknown digest"
        await transaction.write_data(bytes(reserved), batch, transfer, pad=False)
        stored = transfer.stored
        if (existing := self._ledger.content(stored.digest)) is not None:
            await _take_back(transaction)
            return lambda: self._commit(transaction, Addition(), transfer.blob, existing)
        addition = self._prepare(stored)
        await transaction.patch_header(reserved, _member(addition))
        return lambda: self._commit(transaction, addition, transfer.blob, stored)

    def _prepare(self, stored: Descriptor) -> Addition:
        if stored.size is None:
            raise AssertionError("what was read has a size")
        return self._builder.prepare_blob(stored.digest, stored.size, stored.media_type)

    def _commit(
        self, transaction: Transaction, addition: Addition, blob: Descriptor, stored: Descriptor
    ) -> Descriptor:
        transaction.commit(addition)
        self._builder.commit(addition)
        self._ledger.record(blob, stored)
        transaction.settle()  # last: until here an interrupt leaves the archive in doubt
        return stored


def _member(addition: Addition) -> Member:
    (member,) = addition.members
    return member


async def _take_back(transaction: Transaction) -> None:
    failure = SinkError("the layer is in already, and its second copy cannot be taken back")
    if not await transaction.undo(failure):
        raise failure
