"""An archive on its sink: which bytes are committed, which were touched since, and how to take these back.

The writer's half that knows positions. It decides nothing about members or states; a :class:`Transaction` is what
one public call writes, and ends in a commit or an undo.
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
"""Bytes that are moved by one blocking call: how long a cancel may have to wait."""


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
    """Data that are here as a whole."""

    def __init__(self, batch: Batch) -> None:
        self.done = True
        self._batch = batch

    async def next(self) -> Batch:
        """Return all of it. Never waits, so no cancel comes in."""
        return self._batch


class Output:
    """The sink of an archive, and what is committed in it.

    Attributes:
        position: The size of what is committed, in bytes.
        members: The members that are committed.
        can_rewind: Whether the sink can take back what was written last.
        can_patch: Whether a header may be written after its data.
        checksum: Whether the SHA-256 of the whole is wanted.
        in_order_hash: The hash of what is committed; None where it is not wanted, or no longer known.
    """

    def __init__(self, sink: AnySink, *, checksum: bool) -> None:
        self.sink: Sink = as_sink(sink)
        self._adapter = self.sink if isinstance(self.sink, Adapter) else Adapter()
        self.worker = self._adapter.worker or Worker("aiodockersave-sink")
        self.position = 0
        self.members: list[ArchiveMember] = []
        self.can_rewind = isinstance(self.sink, SupportsRewind)
        # What is patched is not hashed in order: a checksum needs to read it back.
        readable = isinstance(self.sink, SupportsRead) or not checksum
        self.can_patch = self.can_rewind and readable and isinstance(self.sink, SupportsPatch)
        self.in_order_hash = hashlib.sha256() if checksum else None
        self.checksum = checksum

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """Keep thread and descriptor of the sink for the time of one call."""
        with self.worker.held(), self._adapter.hold():
            yield

    @property
    def handed_over(self) -> int | None:
        """The number of bytes that the sink says are out of its hands; None where it does not know."""
        count = getattr(self.sink, "handed_over", None)
        return count if isinstance(count, int) else None

    @property
    def expected_size(self) -> int | None:
        """The size that the archive must get, in bytes, where the sink has promised it to somebody."""
        return self._adapter.expected_size

    async def flush(self) -> None:
        """Wait until the sink has passed on what it holds, as far as it can tell.

        Cancel: the wait ends, and the sink still holds it.
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
    """The bytes that one public call writes behind the committed bytes.

    Attributes:
        cursor: Where the next byte goes, in bytes from the start of the archive.
        writing: What is being written, for messages.
        forward: Records the end of the archive, once the file may be under its name already; None before.
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
        """Write ``parts``, joined, in pieces of at most ``MAX_BATCH_SIZE`` bytes and a little more.

        When the sink has taken the ``last`` of them, nothing is awaited any more: a cancel that comes then must not
        break an archive that has all of its bytes.

        Cancel: the sink may have a part of them; :attr:`touched` tells.
        """
        full = [part for part in parts if part]
        data = full[0] if len(full) == 1 else b"".join(full)  # most batches come alone, and are not copied
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
        """Write ``header`` and ``batch``, joined, then the other batches, the last one joined with the padding.

        Cancel: the member is torn; :meth:`undo` takes it back.
        """
        size = len(batch)
        while not batches.done:
            await self.write(header, batch)
            header, batch = b"", await batches.next()
            size += len(batch)
        await self.write(header, batch, tar.padding(size) if pad else b"", last=pad)

    async def patch_head(self, reserved: int, head: bytes, size: int) -> None:
        """Write a head over the ``reserved`` zeros in front of ``size`` bytes of data, which end at the cursor.

        Cancel: the member is torn; :meth:`undo` takes it back.
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
        """Return the SHA-256 of the archive with this transaction, where it was asked for.

        Cancel: as :meth:`Output.read_back`.
        """
        if not self._output.checksum:
            return None
        if self._hasher is not None and self._output.in_order_hash is not None:
            return await self._hasher.digest()
        return await self._output.read_back(self.cursor)

    def commit(self, addition: Addition) -> None:
        """Record that the members of ``addition`` are in; once more changes nothing. No await from here on."""
        output = self._output
        offset = self._start
        del output.members[self._members_before :]
        for member in addition.members:
            output.members.append(located(member, offset))
            offset += member.total_size
        # The hash of the transaction also covers bytes that were rewound: it counts only if the sink still has them.
        if self._touched and self._hasher is not None and output.in_order_hash is not None:
            output.in_order_hash = self._hasher.hash
        output.position = self.cursor

    def settle(self) -> None:
        """Say that all is recorded: the bytes are the archive's own from here on."""
        self._touched = False

    async def undo(self, fault: BaseException) -> bool:
        """Take back what was written; return whether the archive is as it was before.

        What fails here is added to ``fault`` as a note.

        Cancel: is not raised, and interrupts nothing; the caller sees it.
        """
        sink = self._output.sink
        if not self.touched:
            return True
        if not isinstance(sink, SupportsRewind):
            return False
        rewinding = self._output.worker.submit_always(sink.rewind, self._start)
        # An error is read below, and a cancel is seen by the call.
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
        """Wait until no thread hashes for it.

        Cancel: is raised after that.
        """
        if self._hasher is not None:
            await self._hasher.close()

    def abandon(self) -> None:
        """Let the thread that hashes end by itself."""
        if self._hasher is not None:
            self._hasher.abandon()


def check_promise(output: Output, size: int) -> None:
    """Raise :class:`SinkError` where the sink has promised another size than the archive will have."""
    if output.expected_size not in (None, size):
        raise SinkError(
            f"the archive has {size} bytes, but the response promises {output.expected_size}: "
            "leave Content-Length away, or take it from a plan"
        )
