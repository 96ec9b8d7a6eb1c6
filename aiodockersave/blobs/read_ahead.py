"""Chunks from a task of their own, a bounded number of bytes ahead of who takes them.

The idea to know first: what a task opens, it iterates and closes itself (a source may hold a cancel scope or
``asyncio.timeout`` open while it gives chunks), while who takes the chunks may be any task, one after the other, and
who closes may be yet another. Between them is a buffer, and nothing else: a cancelled :meth:`Feed.read` loses
nothing, and :meth:`Feed.aclose` returns when the task has ended, whatever is cancelled meanwhile.
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
"""The memory that a chunk takes besides its bytes, so that a million tiny ones count too."""


class Feed(abc.ABC):
    """Chunks that a task makes.

    Attributes:
        task: The task, while it runs.
    """

    def __init__(self, *, limit: int, name: str) -> None:
        """Make nothing yet.

        Args:
            limit: So many bytes may wait to be taken before the task waits; the chunk that exceeds it waits too.
            name: What the task is called.
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
        """Do all the work, in the task: :meth:`_give` each chunk."""

    def start(self) -> None:
        """Start the task; does nothing where it was started, or where the feed is closed."""
        if self.task is None and not (self._closed or self._ended):
            self.task = asyncio.get_running_loop().create_task(self._run(), name=self._name)
            self.task.add_done_callback(self._finish)

    async def read(self) -> bytes:
        """Return the next chunk; empty at the end, when the task has ended. Starts the task where nobody has.

        Raises:
            ContentError: The task was cancelled from within, by nobody.
            ClosedResourceError: The feed is closed, or was closed while this call waited.
            BaseException: What the task raised, behind the chunks that it gave before; each time again.

        Cancel: nothing is lost, the next call goes on.
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
        """Begin to close: the task is cancelled, a waiting :meth:`read` raises. Chunks and error are dropped."""
        self._refuse_own_task()
        if self._closed:
            return
        self._closed = True
        self._error, self._traceback = None, None  # they hold frames that hold this
        self._chunks.clear()
        self._arrived.set()
        if self.task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nothing runs there any more
                self.task.cancel()

    async def aclose(self) -> None:
        """Cancel the task and wait for its end; what it raises now is dropped. A second call waits too.

        Cancel: the task is cancelled once more, which interrupts what it closes; the cancel is raised when it has ended.
        """
        self.cancel()
        if self.task is not None:
            await wait_for_ends([self.task])

    async def _give(self, chunk: bytes) -> None:
        """Hand over a chunk once there is room.

        Raises:
            ConnectionResetError: The feed is closed.

        Cancel: nothing was handed over.
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
            # Nobody cancelled the task. Raised as it is, it would end who reads silently.
            raise ContentError("the content cancelled its reader and gave no reason") from exc

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._ended = True
        self.task = None  # it holds what it raised, and that its frames
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not self._closed:
            self._error, self._traceback = error, error.__traceback__
        self._arrived.set()

    def _refuse_own_task(self) -> None:
        try:
            current = asyncio.current_task()
        except RuntimeError:  # no loop runs here
            return
        if self.task is not None and self.task is current:
            raise RuntimeError(
                "what makes the bytes must neither read nor close them: it would wait for itself"
            )


async def close_together(feeds: Sequence[Feed]) -> None:
    """Close feeds, and wait for all of their tasks at once.

    Cancel: as :meth:`Feed.aclose`; it reaches each of the tasks.
    """
    for feed in feeds:
        feed.cancel()
    await wait_for_ends([feed.task for feed in feeds if feed.task is not None])


class ReadAhead(Feed):
    """One blob, or any content, read ahead."""

    def __init__(self, content: OpenContent, *, limit: int) -> None:
        """Open nothing yet.

        Args:
            content: What is opened, iterated and closed in one task.
            limit: So many bytes are buffered before it is not read on; it may be one chunk more.
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
    """A blob that was read to its end needs no more."""
