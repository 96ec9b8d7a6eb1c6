"""Give the calls of one writer their turns at the sink, and keep the state of the archive.

::

    OPEN ──close()──▶ CLOSED
      ├────abort()──▶ ABORTED
      └──a call is interrupted, and the sink cannot rewind──▶ BROKEN

The idea to know first: a call holds the lock and writes in a transaction, which ends in a commit or an undo.
If neither is possible, the archive is BROKEN: its sink has bytes that belong to no member.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from aiodockersave._aio import Closable
from aiodockersave.blobs.calls import Call, Calls
from aiodockersave.core.errors import WriterBrokenError, WriterClosedError, WriterError

from .transaction import Output, Transaction

if TYPE_CHECKING:
    from aiodockersave.blobs.content import OpenContent
    from aiodockersave.sinks.atomic_file import Target

__all__ = ["Turns"]

T = TypeVar("T")


class _State(enum.Enum):
    OPEN = enum.auto()
    CLOSED = enum.auto()
    ABORTED = enum.auto()
    BROKEN = enum.auto()


class Turns:
    """Run the calls of a writer one after the other.

    ::

        with turns.enter() as call:
            async with turns.lock:
                turns.begin(call)
                await turns.transact(call, work)

    Attributes:
        lock: Held by the call that writes.
        target: The target whose file the sink writes, if the file is one of ours; else None.
    """

    def __init__(self, output: Output) -> None:
        self.lock = asyncio.Lock()
        self.target: Target | None = None
        self._output = output
        self._calls = Calls()
        self._holder: Call | None = None  # the call that had the lock last
        self._state = _State.OPEN
        self._cause: BaseException | None = None
        self._torn = (0, "")
        self._last: Transaction | None = None  # the latest one; None after a success

    # ── states ──

    def is_closed(self) -> bool:
        """Return whether the archive is finished."""
        return self._state is _State.CLOSED

    def is_aborted(self) -> bool:
        """Return whether the archive was aborted."""
        return self._state is _State.ABORTED

    def check_open(self) -> None:
        """Raise :class:`WriterBrokenError` or :class:`WriterClosedError` unless more can be written."""
        if self._state is _State.BROKEN:
            raise self._broken_error()
        if self._state is not _State.OPEN:
            raise WriterClosedError(aborted=self._state is _State.ABORTED)

    def close(self, transaction: Transaction) -> None:
        """Record that the archive is finished, and interrupt the calls that are staging.

        Their layers cannot be written any more.
        """
        self._state = _State.CLOSED
        transaction.settle()
        self._calls.interrupt(lambda: WriterClosedError(aborted=False), only_staging=True)

    def give_up(self) -> None:
        """Abort the archive, and interrupt the running calls."""
        if self._state is _State.OPEN:
            self._state = _State.ABORTED
            self._calls.interrupt(lambda: WriterClosedError(aborted=True))
        elif self._state is _State.BROKEN:
            # Calls that are staging receive layers that cannot be written any more.
            self._calls.interrupt(self._broken_error, only_staging=True)

    def _break(self, transaction: Transaction, fault: BaseException | None) -> None:
        if self._state is _State.OPEN:
            self._state = _State.BROKEN
            self._cause = fault
            self._torn = (self._output.position, transaction.writing)

    def _broken_error(self) -> WriterError:
        error = WriterBrokenError(*self._torn)
        error.__cause__ = self._cause
        return error

    # ── calls ──

    @contextlib.contextmanager
    def enter(self) -> Generator[Call, None, None]:
        """Run one public call; errors as :meth:`Calls.enter`.

        If an interrupt kept the call from releasing the lock, the lock is released here.
        """
        with self._calls.enter() as call:
            try:
                yield call
            finally:
                if self._holder is call and self.lock.locked():  # no other call has taken the lock since
                    self.lock.release()

    def check_entry(self) -> None:
        """Raise RuntimeError if the content of a call calls the writer that reads it."""
        self._calls.check_entry()

    async def wait(self) -> None:
        """Wait until no call runs.

        Cancel: the wait ends; the calls keep running.
        """
        await self._calls.wait()

    def begin(self, call: Call) -> None:
        """Begin the turn of a call that holds the lock; errors as :meth:`check_open`.

        A signal handler that raised may have ended the previous transaction before its commit, its undo or
        the state BROKEN was recorded. If the sink may still have bytes of that transaction, the archive
        becomes BROKEN here.
        """
        self._holder = call
        if self._last is not None and self._last.touched:
            self._break(self._last, None)
        self.check_open()

    # ── transactions ──

    async def transact(
        self,
        call: Call,
        work: Callable[[Transaction], Awaitable[Callable[[], T]]],
        *,
        content: OpenContent | None = None,
        closing: Sequence[Closable] = (),
    ) -> T:
        """Run ``work`` and its commit, or take back the bytes it wrote. The caller must hold the lock.

        Cancel: as :meth:`Call.settle`; bytes that can be neither taken back nor committed break the archive.
        """
        with self._output.held():
            self._last = transaction = Transaction(self._output)

            async def undo(fault: BaseException) -> None:
                # 1. If the file has its final name already, it stays there: commit instead.
                if transaction.forward is not None:
                    await self._output.worker.run_always(int)  # a no-op: wait out an interrupted publish
                    if self._go_forward(transaction):
                        return
                # 2. Otherwise take back the bytes. After a failed sync the file is not to be trusted: break.
                refused = self.target is not None and self.target.sync_failed
                if not self.is_closed() and (refused or not await transaction.undo(fault)):
                    self._break(transaction, fault)

            try:
                result = await call.settle(
                    lambda: work(transaction),
                    undo=undo,
                    content=content,
                    closing=[*closing, transaction],
                )
            except BaseException as exc:
                # Whatever ended the call: bytes neither committed nor taken back belong to no member.
                if transaction.touched and not self._go_forward(transaction):
                    self._break(transaction, exc)
                raise
            self._last = None
            return result

    async def publish(self, transaction: Transaction, commit: Callable[[], None]) -> None:
        """Give a file of ours its final name; after that the archive is whole, whatever fails later.

        Cancel: is raised when the thread has published the file, or has failed to.
        """
        if self.target is not None:
            run = self._output.worker.run
            await run(self.target.sync, transaction.cursor)
            transaction.forward = commit
            await run(self.target.publish)

    def _go_forward(self, transaction: Transaction) -> bool:
        """Commit the end of the archive if its file has its final name; return whether it has."""
        if transaction.forward is None or self.target is None or not self.target.published:
            return False
        transaction.forward()
        return True
