"""How the layers of one writer are received: what they must be, how far they may expand, and whether there is room."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from aiodockersave.blobs.transfer import Transfer
from aiodockersave.core.verify import Verifier, new_plain_hash

if TYPE_CHECKING:
    from aiodockersave._aio import Worker
    from aiodockersave.blobs.calls import Call
    from aiodockersave.blobs.content import OpenContent
    from aiodockersave.blobs.space import Space
    from aiodockersave.blobs.staging import Stage
    from aiodockersave.core.model import Descriptor, Limits

    from .stored_layers import Ledger, Wanted

__all__ = ["Receiver"]


class Receiver:
    """Receives layers.

    Attributes:
        space: The room for a file that grows, where that is one of ours.

    Args:
        ledger: Is told the digests of plain tars.
        worker: The thread that looks at the room.
        limits: How far all layers may expand.
        decompress: Whether plain tars are stored.
        verify_plain: Whether the plain tar of a layer that is kept is verified.
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
        """Return the transfer of a layer; nothing is read yet."""
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
        """Receive a layer as a whole; return the blob that came and what is to be stored of it.

        Cancel: as :meth:`Call.settle`; the stage keeps what it has.
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
    """Return limits for a layer whose digest is not known: it is another one than all others, whatever messages call it."""
    share, layer = limits.share, object()
    return limits if share is None else limits._replace(share=lambda _, size: share(layer, size))
