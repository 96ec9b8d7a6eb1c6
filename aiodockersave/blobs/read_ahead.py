"""Produce chunks in a task of their own, a bounded number of bytes ahead of the reader.

The idea to know first: the task that opens a content also iterates and closes it, since a source may hold a
cancel scope or ``asyncio.timeout`` open while it gives chunks. The readers may be any tasks, one after the
other, and yet another task may close the feed. Task and reader share only a buffer: a cancelled
:meth:`Feed.read` loses nothing, and :meth:`Feed.aclose` returns when the task has ended, whatever is
cancelled meanwhile.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from aiodockersave._aio import Fairness, running_task, wait_for_ends
from aiodockersave.core.errors import ContentError

from .calls import Call
from .content import OpenContent

_CHUNK_COST: Final = 64
"""The memory in bytes that each chunk takes besides its data, so that a million tiny chunks count too."""


class Feed(abc.ABC):
    """Chunks that a task produces.

    Attributes:
        task: The task while it runs, else None.
    """

    def __init__(self, *, limit: int, name: str) -> None:
        """Prepare the feed; no task runs yet.

        Args:
            limit: The buffered bytes at which the task waits; the buffer may exceed it by one chunk.
            name: The name of the task.
        """
        self._limit = limit
        self._name = name
        self.task: asyncio.Task[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._ended = False
        self._closed = False

    @abc.abstractmethod
    async def _make(self) -> None:
        """Do all the work of the task: pass each chunk to :meth:`_give`."""

    def start(self) -> None:
        """Start the task, unless it was started already or the feed is closed."""
        if self.task is None and not (self._closed or self._ended):
            self.task = asyncio.get_running_loop().create_task(self._run(), name=self._name)
            self.task.add_done_callback(self._finish)

    async def read(self) -> bytes:
        """Return the next chunk; empty when the task has ended. Starts the task if it was not started.

        Raises:
            ContentError: The task raised CancelledError although nobody cancelled it.
            ClosedResourceError: The feed is closed, or was closed while this call waited.
            BaseException: The error of the task, after the chunks that it gave before; raised by every later
                call.

        Cancel: nothing is lost, the next call resumes.
        """
        self.start()
        self._refuse_own_task()
        while not self._chunks:
            if self._closed:
                from anyio import ClosedResourceError  # noqa: PLC0415 - `_aio` says why anyio is not loaded before

                raise ClosedResourceError("closed while it was read")
            if self._error is not None:
                raise self._error.with_traceback(self._traceback)
            if self._ended:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        chunk = self._chunks.popleft()
        self._waiting -= len(chunk) + _CHUNK_COST
        if self._waiting < self._limit:
            self._room.set()
        return chunk

    def cancel(self) -> None:
        """Begin to close: cancel the task, make a waiting :meth:`read` raise, drop chunks and error."""
        self._refuse_own_task()
        if self._closed:
            return
        self._closed = True
        self._error, self._traceback = None, None  # their frames hold this object: break the cycle
        self._chunks.clear()
        self._arrived.set()
        if self.task is not None:
            with contextlib.suppress(RuntimeError):  # the task's loop is closed, so the task does not run
                self.task.cancel()

    async def aclose(self) -> None:
        """Cancel the task, wait for its end and drop its error. A second call waits too.

        Cancel: the task is cancelled once more, which interrupts its closing; the cancel is raised when the
        task has ended.
        """
        self.cancel()
        if self.task is not None:
            await wait_for_ends([self.task])

    async def _give(self, chunk: bytes) -> None:
        """Wait for room, then put a chunk into the buffer.

        Raises:
            ConnectionResetError: The feed is closed.

        Cancel: the chunk was not put into the buffer.
        """
        while self._waiting >= self._limit and not self._closed:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            raise ConnectionResetError(errno.ECONNRESET, "nobody takes the bytes any more")
        self._chunks.append(chunk)
        self._waiting += len(chunk) + _CHUNK_COST
        self._arrived.set()

    async def _run(self) -> None:
        try:
            await self._make()
        except asyncio.CancelledError as exc:
            if running_task().cancelling():
                raise
            # Nobody cancelled the task. A bare CancelledError would end the reader silently.
            raise ContentError("the content cancelled its reader and gave no reason") from exc

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._ended = True
        self.task = None  # the task holds its error, and the error holds frames
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not self._closed:
            self._error, self._traceback = error, error.__traceback__
        self._arrived.set()

    def _refuse_own_task(self) -> None:
        try:
            current = asyncio.current_task()
        except RuntimeError:  # no loop runs in this thread
            return
        if self.task is not None and self.task is current:
            raise RuntimeError(
                "what makes the bytes must neither read nor close them: it would wait for itself"
            )


async def close_together(feeds: Sequence[Feed]) -> None:
    """Close feeds, and wait for all of their tasks at once.

    Cancel: as :meth:`Feed.aclose`; the cancel reaches every task.
    """
    for feed in feeds:
        feed.cancel()
    await wait_for_ends([feed.task for feed in feeds if feed.task is not None])


class ReadAhead(Feed):
    """Read one blob, or any other content, ahead of its reader."""

    def __init__(self, content: OpenContent, *, limit: int) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            content: The content, which one task opens, iterates and closes.
            limit: The buffered bytes at which reading pauses; the buffer may exceed it by one chunk.
        """
        super().__init__(limit=limit, name="aiodockersave-read-ahead")
        self._content = content

    async def _make(self) -> None:
        await Call(running_task()).settle(self._receive, content=self._content)

    async def _receive(self) -> Callable[[], None]:
        content, fairness = self._content, Fairness()
        await content.open()
        while chunk := await content.read():
            await self._give(bytes(chunk))
            await fairness.passed(len(chunk))
        return _nothing_to_commit


def _nothing_to_commit() -> None:
    """Do nothing: a blob that was read to its end needs no commit."""
