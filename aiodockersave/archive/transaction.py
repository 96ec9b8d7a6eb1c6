"""Write an archive to its sink: know which bytes are committed, and take back the bytes written since.

The idea to know first: a :class:`Transaction` holds the bytes that one public call writes, and ends in a
commit or an undo. This module knows positions in the sink; it decides nothing about members or states of the
archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
from collections.abc import Callable, Generator
from typing import Protocol

from aiodockersave._aio import Fairness, Worker, closing, wait_out
from aiodockersave.blobs.content import MAX_BATCH_SIZE, Batch
from aiodockersave.blobs.transfer import Hasher
from aiodockersave.core import tar
from aiodockersave.core.docker_archive import Addition
from aiodockersave.core.errors import SinkError
from aiodockersave.core.model import Digest
from aiodockersave.core.plan import ArchiveMember, located
from aiodockersave.sinks.adapters import (
    AnySink,
    Sink,
    SupportsPatch,
    SupportsRead,
    SupportsRewind,
    as_sink,
    write_some,
)
from aiodockersave.sinks.protocol import Adapter

_MOVE_SIZE = 64 << 20
"""The bytes that one blocking call moves: this bounds the time that a cancel may have to wait."""


class Batches(Protocol):
    """The source of a member's data.

    Attributes:
        done: Whether the batch that :meth:`next` returned last was the last.
    """

    done: bool

    async def next(self) -> Batch:
        """Return the next batch.

        Cancel: the batch is lost.
        """
        ...


class OneBatch:
    """Offer data that are complete in one batch."""

    def __init__(self, batch: Batch) -> None:
        self.done = True
        self._batch = batch

    async def next(self) -> Batch:
        """Return the batch. Never waits, so no cancel can come."""
        return self._batch


class Output:
    """The sink of an archive, and the bytes and members that are committed to it.

    Attributes:
        position: The number of committed bytes.
        members: The committed members.
        can_rewind: Whether the sink can take back the bytes that were written last.
        can_patch: Whether a header may be written after its data.
        checksum: Whether the SHA-256 of the archive is wanted.
        in_order_hash: The hash of the committed bytes; None if it is not wanted, or no longer known.
    """

    def __init__(self, sink: AnySink, *, checksum: bool) -> None:
        self.sink: Sink = as_sink(sink)
        self._adapter = self.sink if isinstance(self.sink, Adapter) else Adapter()
        self.worker = self._adapter.worker or Worker("aiodockersave-sink")
        self.position = 0
        self.members: list[ArchiveMember] = []
        self.can_rewind = isinstance(self.sink, SupportsRewind)
        # A patched archive cannot be hashed in order: its checksum needs a sink that can be read back.
        readable = isinstance(self.sink, SupportsRead) or not checksum
        self.can_patch = self.can_rewind and readable and isinstance(self.sink, SupportsPatch)
        self.in_order_hash = hashlib.sha256() if checksum else None
        self.checksum = checksum

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """Keep the thread and the descriptor of the sink while the block runs."""
        with self.worker.held(), self._adapter.hold():
            yield

    @property
    def handed_over(self) -> int | None:
        """The number of bytes that the sink reports as handed over; None if it does not report any."""
        count = getattr(self.sink, "handed_over", None)
        return count if isinstance(count, int) else None

    @property
    def expected_size(self) -> int | None:
        """The size in bytes that the archive must get, if the sink has promised one; else None."""
        return self._adapter.expected_size

    async def flush(self) -> None:
        """Wait until the sink has passed on the bytes that it holds, as far as it can tell.

        Cancel: the wait ends, and the sink still holds the bytes.
        """
        await self._adapter.flush()

    async def read_back(self, size: int) -> Digest:
        """Return the SHA-256 of the first ``size`` bytes of the sink, committed or not.

        Cancel: is raised when no thread reads or hashes any more.
        """
        if not isinstance(self.sink, SupportsRead):
            raise AssertionError("patched, and cannot be read")
        hasher = Hasher("sha256")
        async with closing(hasher):
            position = 0
            while data := await self.worker.run(
                self.sink.read, position, min(MAX_BATCH_SIZE, size - position)
            ):
                await hasher.update(data)
                position += len(data)
            return await hasher.digest()


class Transaction:
    """Write the bytes of one public call after the committed bytes.

    Attributes:
        cursor: The offset of the next byte, from the start of the archive.
        writing: The name of the object that is being written, for messages.
        forward: Records the end of the archive. Set once the file may have its final name; None before.
    """

    def __init__(self, output: Output) -> None:
        self.cursor = output.position
        self.forward: Callable[[], None] | None = None
        self.writing = "a layer"
        self._output = output
        self._start = output.position
        self._members_before = len(output.members)
        self._touched = False
        self._handed_over = output.handed_over
        self._fairness = Fairness()
        hash_ = output.in_order_hash
        self._hasher = None if hash_ is None else Hasher("sha256", hash_=hash_.copy())

    @property
    def touched(self) -> bool:
        """Whether the sink may have bytes of this transaction."""
        return self._touched and (self._handed_over is None or self._output.handed_over != self._handed_over)

    async def write(self, *parts: Batch, last: bool = False) -> None:
        """Write ``parts``, joined, in pieces of at most one and a half times ``MAX_BATCH_SIZE``.

        With ``last`` nothing is awaited after the sink has taken the last piece: a cancel that comes then
        must not break an archive that has all of its bytes.

        Cancel: the sink may have some of the bytes; :attr:`touched` tells.
        """
        full = [part for part in parts if part]
        data = full[0] if len(full) == 1 else b"".join(full)  # do not copy a single part, the usual case
        start = 0
        while len(data) - start > MAX_BATCH_SIZE + MAX_BATCH_SIZE // 2:
            await self._write(data[start : start + MAX_BATCH_SIZE])
            start += MAX_BATCH_SIZE
        await self._write(data[start:] if start else data, last=last)

    async def _write(self, data: Batch, *, last: bool = False) -> None:
        if self._hasher is not None:
            await self._hasher.update(data)
            if last:
                await self._hasher.digest()
        while data:
            await self._fairness.passed(len(data))
            self._touched = True
            taken = await write_some(self._output.sink, data)
            self.cursor += taken
            data = data[taken:]

    async def write_data(self, header: bytes, batch: Batch, batches: Batches, *, pad: bool) -> None:
        """Write ``header`` and ``batch``, joined, then the other batches; the padding is joined to the last.

        Cancel: the member is incomplete; :meth:`undo` takes it back.
        """
        size = len(batch)
        while not batches.done:
            await self.write(header, batch)
            header, batch = b"", await batches.next()
            size += len(batch)
        await self.write(header, batch, tar.padding(size) if pad else b"", last=pad)

    async def patch_head(self, reserved: int, head: bytes, size: int) -> None:
        """Write ``head`` over the ``reserved`` zeros before ``size`` bytes of data, then the padding.

        The data end at the cursor. If the head is longer or shorter than the zeros, the data are moved
        first.

        Cancel: the member is incomplete; :meth:`undo` takes it back.
        """
        sink, run = self._output.sink, self._output.worker.run
        if not isinstance(sink, SupportsPatch):
            raise AssertionError("the sink cannot be patched")
        start = self._output.position
        shift = len(head) - reserved
        stop = start + reserved + size
        while shift and stop > start + reserved:
            portion = min(_MOVE_SIZE, stop - start - reserved)
            stop -= portion
            await run(sink.move, stop, stop + shift, portion)
        self.cursor += shift
        await run(sink.patch, start, head)
        await self._write(tar.padding(size))
        self._output.in_order_hash = None

    async def checksum(self) -> Digest | None:
        """Return the SHA-256 of the archive with this transaction; None if it was not asked for.

        Cancel: as :meth:`Output.read_back`.
        """
        if not self._output.checksum:
            return None
        if self._hasher is not None and self._output.in_order_hash is not None:
            return await self._hasher.digest()
        return await self._output.read_back(self.cursor)

    def commit(self, addition: Addition) -> None:
        """Record the members of ``addition`` as committed. A second call changes nothing.

        The caller must not await anything after this.
        """
        output = self._output
        offset = self._start
        del output.members[self._members_before :]
        for member in addition.members:
            output.members.append(located(member, offset))
            offset += member.total_size
        # The hash also covers bytes that were rewound: use it only if the sink still has the bytes.
        if self._touched and self._hasher is not None and output.in_order_hash is not None:
            output.in_order_hash = self._hasher.hash
        output.position = self.cursor

    def settle(self) -> None:
        """Mark everything as recorded: from now on the bytes belong to the archive."""
        self._touched = False

    async def undo(self, fault: BaseException) -> bool:
        """Take back the bytes of the transaction; return whether the archive is as it was before.

        An error of the rewind is added to ``fault`` as a note.

        Cancel: is not raised, and interrupts nothing; the caller sees it.
        """
        sink = self._output.sink
        if not self.touched:
            return True
        if not isinstance(sink, SupportsRewind):
            return False
        rewinding = self._output.worker.submit_always(sink.rewind, self._start)
        # The error is read below, and the call checks for a cancel itself.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await wait_out(rewinding)
        error = rewinding.exception()
        if error is None and inspect.isawaitable(rewinding.result()):
            error = TypeError("rewind() is async: it must be a plain method")
        if error is not None:
            fault.add_note(f"the archive could not be rewound: {type(error).__name__}: {error}")
            return False
        self._touched = False
        self.cursor = self._start
        return True

    async def close(self) -> None:
        """Wait until no thread hashes for the transaction.

        Cancel: is raised after that.
        """
        if self._hasher is not None:
            await self._hasher.close()

    def abandon(self) -> None:
        """Let the thread that hashes end by itself."""
        if self._hasher is not None:
            self._hasher.abandon()


def check_promise(output: Output, size: int) -> None:
    """Raise :class:`SinkError` if the sink has promised another size than the archive will have."""
    if output.expected_size not in (None, size):
        raise SinkError(
            f"the archive has {size} bytes, but the response promises {output.expected_size}: "
            "leave Content-Length away, or take it from a plan"
        )
