"""Keep a layer that is received and verified before its turn: first in memory, then in a temporary file.

The idea to know first: all stages of one writer share one memory bound. A stage that would exceed the bound
moves into an unnamed temporary file, which disappears with the stage, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import IO

from aiodockersave._aio import Worker
from aiodockersave.core.errors import InvalidInputError

from .content import MAX_BATCH_SIZE, Batch
from .space import Space


def check_bytes(name: str, size: object) -> int:
    """Return ``size`` after checking that it is a number of bytes.

    Raises:
        InvalidInputError: ``size`` is negative.
        TypeError: ``size`` is no int.
    """
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{name}={size!r}: use a number of bytes")
    if size < 0:
        raise InvalidInputError(f"{name}={size!r}: use a number of bytes, 0 or more")
    return size


class Memory:
    """Count the bytes of memory that all stages together may take."""

    def __init__(self, size: int) -> None:
        self._free = size

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if they are free; return whether they were."""
        if size > self._free:
            return False
        self._free -= size
        return True

    def give_back(self, size: int) -> None:
        """Free ``size`` bytes that were taken."""
        self._free += size


class Stage:
    """Store batches, which are written once and then read once.

    Attributes:
        size: The size of all batches in bytes.
        done: Whether the batch that :meth:`next` returned last was the last.
    """

    def __init__(self, memory: Memory, directory: str | os.PathLike[str] | None) -> None:
        self._memory = memory
        self._directory = directory
        self._batches: list[bytes] = []
        self._taken = 0
        self._file: IO[bytes] | None = None
        self._space: Space | None = None  # of the file
        self._worker = Worker("aiodockersave-stage")
        self._thread = contextlib.ExitStack()  # holds the worker's thread from the first spilled batch on
        self._reading = False
        self._unread = 0
        self.size = 0
        self.done = False

    async def append(self, batch: Batch) -> None:
        """Add a batch.

        Cancel: is raised when the bytes of the batch are written; after that the stage can only be closed.
        """
        self.size += len(batch)
        self._unread += len(batch)
        if self._file is None and self._memory.take(len(batch)):
            self._taken += len(batch)
            self._batches.append(bytes(batch))
        else:
            if self._file is None:
                self._thread.enter_context(self._worker.held())
            await self._worker.run(self._spill, batch)
            self._free()  # on the loop: the thread must not touch the memory count that all stages share

    async def next(self) -> bytes:
        """Return the next batch; after it ``done`` says whether it was the last.

        Cancel: is raised when the file was read; the batch is lost.
        """
        if self._file is not None:
            batch = await self._worker.run(self._read, self._file)
        else:
            batch = self._pop()
        self._unread -= len(batch)
        self.done = self._unread == 0
        return batch

    def _pop(self) -> bytes:
        if not self._reading:
            self._reading = True
            self._batches.reverse()
        batch = self._batches.pop() if self._batches else b""
        self._taken -= len(batch)
        self._memory.give_back(len(batch))
        return batch

    async def close(self) -> None:
        """Free memory and file.

        Cancel: is raised after that.
        """
        self._free()
        file, self._file = self._file, None
        try:
            if file is not None:
                await self._worker.run_always(file.close)
        finally:
            self._thread.close()

    def abandon(self) -> None:
        """Close without awaiting; the thread closes the file after the calls that still use it."""
        self._free()
        self._worker.leave(self._close_file)  # in the thread: a call there may be about to create the file
        self._thread.close()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _free(self) -> None:
        self._batches.clear()
        self._memory.give_back(self._taken)
        self._taken = 0

    def _spill(self, batch: Batch) -> None:
        file, space = self._file, self._space
        if file is None or space is None:
            # Store the file at once: a cancelled call loses its result, and close() must find the file.
            file = self._file = tempfile.TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115
            space = self._space = Space(
                lambda: os.fstatvfs(file.fileno()), os.fspath(self._directory or tempfile.gettempdir())
            )
        for data in (*self._batches, batch):
            space.take(len(data))
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    def _read(self, file: IO[bytes]) -> bytes:
        if not self._reading:
            self._reading = True
            file.seek(0)
        return file.read(MAX_BATCH_SIZE)
