"""Define the sink protocol, and adapt callers' files and streams to it.

A **sink** is any object with ``async write(data)`` that takes the data once it has room; awaiting ``write``
is the back-pressure. ``write`` returns None when it took all bytes, or the number of bytes that it took. The
rest is offered again; a return value of 0 is an error. The ``bytes`` never change, so a sink may keep them.

A sink may have **powers**: optional plain methods that block. The writer runs them in a thread and waits.

==============================  ============================================  ======================
``rewind(position)``            cut at a position; the next write goes there  :class:`SupportsRewind`
``patch(position, data)``,      write over earlier bytes, copy earlier        :class:`SupportsPatch`
``move(source, target, size)``  bytes within the sink
==============================  ============================================  ======================

Positions count bytes from where the sink stood when it was adapted. An adapter decides its powers once, by
file type and mode, not by the methods it finds: a pipe's writer, a ``GzipFile`` and a file in append mode
have ``seek`` and ``truncate``, but cannot rewind.

Threads write only files whose writes end by themselves: regular files, /dev/null, block devices. The event
loop writes pipes, sockets and terminals, without blocking, because a thread that writes to a full pipe waits
until somebody reads, perhaps for ever. So a ``GzipFile`` above a pipe is refused. A file object of a class of
your own is written in a thread, and its ``write`` must end by itself.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import inspect
import io
import os
import select
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import IO, Any, Protocol, runtime_checkable

from aiodockersave._aio import Worker
from aiodockersave.blobs.content import Batch
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.core.errors import SinkError

from .pipes import DescriptorSink, reopening_path
from .protocol import Adapter

_MOVE_SIZE = 1 << 20
"""Bytes that ``move`` copies at a time within a file; bounds the memory that it needs."""
_MAX_WRAPPERS = 8
"""File objects to look through for a descriptor; bounded because they may wrap each other in a circle."""


@runtime_checkable
class Sink(Protocol):
    """A receiver of bytes."""

    async def write(self, data: bytes, /) -> int | None:
        """Take ``data`` once there is room; return the number of bytes that were taken, None for all.

        Cancel: the number is unknown, unless the sink has an int attribute ``handed_over``, which counts the
        bytes that it has passed on.
        """
        ...


@runtime_checkable
class SupportsRewind(Protocol):
    """A sink that can take back the bytes that were written last."""

    def rewind(self, position: int, /) -> None:
        """Drop all bytes from ``position`` on; the next write goes there. Blocks."""
        ...


@runtime_checkable
class SupportsPatch(Protocol):
    """A sink whose earlier bytes can be written over."""

    def patch(self, position: int, data: bytes, /) -> None:
        """Write ``data`` over the bytes at ``position``; this does not move the next ``write``. Blocks."""
        ...

    def move(self, source: int, target: int, size: int, /) -> None:
        """Copy ``size`` bytes from ``source`` to ``target``, which may lie beyond the end. Blocks."""
        ...


@runtime_checkable
class SupportsRead(Protocol):
    """A sink that can be read back."""

    def read(self, position: int, size: int, /) -> bytes:
        """Return up to ``size`` bytes at ``position``; empty at the end. Blocks."""
        ...


class SupportsSend(Protocol):
    """The methods of anyio's byte send streams."""

    async def send(self, item: bytes, /) -> None:
        """Send ``item`` once there is room.

        Cancel: as the stream defines it.
        """
        ...

    async def aclose(self) -> None:
        """Close the stream. The adapter never calls this method, so no cancel reaches it."""
        ...


AnySink = Sink | IO[bytes] | asyncio.StreamWriter | SupportsSend | Callable[[bytes], Awaitable[Any]]
"""The objects that can be adapted to a sink."""


def as_sink(obj: AnySink) -> Sink:
    """Adapt a caller's object to a sink; return an object that has ``async write(data)`` as it is.

    Takes an aiofiles or anyio file, a binary file, an anyio byte send stream, ``asyncio.StreamWriter`` (a subprocess'
    stdin too), aiohttp's ``StreamResponse`` and a plain ``async def``. The adapter never closes ``obj``.

    Each call of a writer uses a duplicate of the file's descriptor. If you close the file and another file
    gets its number, that other file is safe. Closing the duplicate drops the process' ``fcntl.lockf`` locks
    on the file, as POSIX demands; ``flock`` locks stay.

    Raises:
        TypeError: The object is none of these.
    """
    file = _wrapped_file(obj)
    if file is not None:
        return _file_sink(file)
    if isinstance(obj, asyncio.StreamWriter):
        return StreamWriterSink(obj)
    web = sys.modules.get("aiohttp.web")
    if web is not None and isinstance(obj, web.StreamResponse):
        return ResponseSink(obj)
    if not isinstance(obj, type):
        if callable(getattr(obj, "write", None)):
            return _checked(obj)
        send = getattr(obj, "send", None)
        if callable(send) and hasattr(obj, "aclose"):
            return CallableSink(send)
        if callable(obj) and (
            inspect.iscoroutinefunction(obj) or inspect.iscoroutinefunction(type(obj).__call__)
        ):
            return CallableSink(obj)
    raise TypeError(f"cannot write to {_kind(obj)}: {_hint(obj)}")


def _checked(sink: Any) -> Sink:
    for power in ("rewind", "patch", "move"):
        if inspect.iscoroutinefunction(getattr(sink, power, None)):
            raise TypeError(
                f"the {power}() of {_kind(sink)} is async: powers are plain methods, which are run in a thread"
            )
    return sink  # type: ignore[no-any-return]


async def write_some(sink: Sink, data: Batch) -> int:
    """Write ``data`` to a sink once, and return the number of bytes that it took.

    A caller's sink always gets ``bytes``; only our own adapters may get a ``memoryview``.

    Raises:
        SinkError: The sink took nothing, or more than it was given.
        TypeError: The ``write`` of the sink is not async.

    Cancel: the sink has seen the data; the number of bytes that it took is unknown.
    """
    waiting = sink.write(data if isinstance(sink, Adapter) else bytes(data))  # type: ignore[arg-type]
    if not inspect.isawaitable(waiting):
        raise TypeError(f"the write() of {_kind(sink)} is not async: pass a file, or wrap it in an async def")
    taken = await waiting
    if taken is None:
        return len(data)
    if isinstance(taken, bool) or not isinstance(taken, int):
        raise TypeError(
            f"the write() of {_kind(sink)} returned {taken!r}: return None, or how many bytes it took"
        )
    if not 0 < taken <= len(data):
        raise SinkError(
            f"the sink took {taken} of {len(data)} bytes: it must take at least one, and no more than it was given"
        )
    return taken


def _hint(obj: object) -> str:
    if isinstance(obj, str | os.PathLike):
        return "for a path use open_archive()"
    return "pass a binary file, a stream, a response, or an object with async write(data)"


def _kind(obj: object) -> str:
    if obj is None:
        return "None"
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else type(obj).__qualname__


# ── files ──


def _wrapped_file(obj: Any) -> Any:
    """Return the plain file below an aiofiles, anyio or tempfile wrapper, the file itself, or None."""
    for module, cls, attribute in (
        # Not public, but needed: our thread has to flush, and aiofiles' own `flush` is a coroutine.
        ("aiofiles.base", "AsyncBase", "_file"),
        ("anyio", "AsyncFile", "wrapped"),
        # The class has no public name, since `tempfile.NamedTemporaryFile` is a function.
        ("tempfile", "_TemporaryFileWrapper", "file"),
    ):
        wrapper = getattr(sys.modules.get(module), cls, None)
        if wrapper is not None and isinstance(obj, wrapper):
            return _wrapped_file(getattr(obj, attribute))
    return obj if isinstance(obj, io.IOBase) else None


def _file_sink(file: Any) -> Sink:
    if isinstance(file, io.TextIOBase) or hasattr(file, "encoding"):  # or a SpooledTemporaryFile of text
        raise TypeError("cannot write to a text file: open it in binary mode, or pass its .buffer")
    if not file.writable():
        raise TypeError("cannot write to a file that is open for reading: open it with 'wb'")
    raw = getattr(file, "raw", file)
    if isinstance(raw, io.FileIO):
        return descriptor_sink(raw.fileno(), flush=file.flush)
    if isinstance(raw, socket.SocketIO | io.BufferedRWPair):  # the second is makefile("rwb")
        raise TypeError("cannot write to the file of a socket: use asyncio.open_connection(sock=…)")
    if type(file) is io.BytesIO and file.tell() >= len(file.getbuffer()):
        return BytesIOSink(file)
    fd = _descriptor_below(file)
    if fd is not None and _may_block(fd):
        raise TypeError(
            f"cannot write to a {_kind(file)} that ends in a pipe, socket or device: a thread would wait in it, and a "
            "cancel for the thread; pass the pipe itself, or an async def that makes of the bytes what you want"
        )
    return BlockingSink(file)


def _descriptor_below(file: Any) -> int | None:
    """Return the descriptor that a file object finally writes to; None if it has none, or hides it.

    ``GzipFile`` and similar classes have ``fileno``; a member of a ``ZipFile`` leads to the zip file.
    """
    spooled = getattr(sys.modules.get("tempfile"), "SpooledTemporaryFile", None)
    for _ in range(_MAX_WRAPPERS):
        if spooled is not None and isinstance(file, spooled):
            return None  # calling its fileno() would move its content to the disk
        try:
            return int(file.fileno())
        except (AttributeError, OSError, TypeError, ValueError):
            # `_fileobj` is for a ZipFile's member, which has no public attribute for the file below it.
            below = [getattr(file, name, None) for name in ("fileobj", "_fileobj", "fp")]
            file = next((each for each in below if each is not None), None)
    return None


def descriptor_sink(
    fd: int, *, flush: Callable[[], None] | None = None, file: OpenFile | None = None
) -> Sink:
    """Return the sink that fits the kind of file behind an open descriptor.

    Args:
        fd: The descriptor; it stays the caller's.
        flush: Writes out the buffer above the descriptor: bytes that the caller wrote earlier come first.
        file: The same descriptor, if this package opened the file.
    """
    flush = flush or _nothing
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) and _may_be_cut(fd):
        return (PatchableFileSink if _is_readable(fd) else FileSink)(fd, flush=flush, file=file)
    if _may_block(fd):
        flush()  # may block, as the caller's own next write would; the buffer is usually empty
        return DescriptorSink(fd)
    return PlainDescriptorSink(fd, flush=flush, file=file)


def target_sink(file: OpenFile) -> Sink:
    """Return the sink of a file that this package opened, for the file's owner; see :attr:`OpenFile.fd`."""
    return descriptor_sink(file.fd, file=file)


def _may_block(fd: int) -> bool:
    """Return whether a write may wait for another process: pipe, socket, terminal, or device with a queue.

    Without epoll (macOS) only the first three are recognised.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd):
        return True
    if not stat.S_ISCHR(mode) or not hasattr(select, "epoll"):
        return False
    with select.epoll() as poll:
        try:
            poll.register(fd, select.EPOLLOUT)
        except PermissionError:  # the device has no queue: /dev/null, a tape
            return False
    return True


def _nothing() -> None:
    """Flush nothing: there is no buffer."""


def _flags(fd: int) -> int:
    import fcntl  # noqa: PLC0415 - not on Windows

    return fcntl.fcntl(fd, fcntl.F_GETFL)


def _may_be_cut(fd: int) -> bool:
    """Return whether written bytes can be cut off: not in append mode, and not if other bytes follow."""
    return not _flags(fd) & os.O_APPEND and os.lseek(fd, 0, os.SEEK_CUR) >= os.fstat(fd).st_size


def _is_readable(fd: int) -> bool:
    # On Linux, a file that is open for writing only can be opened a second time for reading.
    return _flags(fd) & os.O_ACCMODE == os.O_RDWR or os.access(reopening_path(fd), os.R_OK)


class ThreadSink(Adapter):
    """A sink that writes in a thread, which runs only while the sink is in use."""

    def __init__(self) -> None:
        self.worker: Worker = Worker("aiodockersave-file")

    @contextlib.contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Leave the block only when the thread has ended its writes, even after an interrupt."""
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            # From here on the caller may close the file, and another file may get its number.
            self.worker.finish()
            raise


class OwnDescriptorSink(ThreadSink):
    """A file that a thread writes by its descriptor; of a caller's descriptor the thread has a duplicate.

    The duplicate is for a loop that is closed during a call: nothing stops the thread then, the caller may
    close the file while the thread still writes, and another file may get its number.
    """

    def __init__(
        self, fd: int, *, flush: Callable[[], None] = _nothing, file: OpenFile | None = None
    ) -> None:
        super().__init__()
        self._fd = fd
        self._flush = flush
        self._is_given = file is not None
        self._file = file

    @contextlib.contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Keep a duplicate of a caller's descriptor during the block; close it after its last use."""
        if self._is_given:
            with super().hold():
                yield
            return
        file = self._file = OpenFile(os.dup(self._fd))
        try:
            with super().hold():
                yield
        finally:
            # After an interrupt `_file` stays the closed file, so that later calls in the thread fail.
            file.close()
        self._file = None

    @contextlib.contextmanager
    def _opened(self) -> Generator[int, None, None]:
        """Yield the descriptor; outside of :meth:`hold`, yield a duplicate and close it after the block."""
        if self._file is not None:
            with self._file as fd:
                yield fd
        else:
            fd = os.dup(self._fd)
            try:
                yield fd
            finally:
                os.close(fd)

    async def write(self, data: bytes, /) -> int | None:
        """Write ``data``.

        Cancel: raised when the write has ended.
        """
        return await self.worker.run(self._write, data)

    @abc.abstractmethod
    def _write(self, data: bytes) -> int | None:
        """Write ``data``. Runs in the thread."""


class FileSink(OwnDescriptorSink):
    """A regular file, written from its current position on; can rewind."""

    def __init__(
        self, fd: int, *, flush: Callable[[], None] = _nothing, file: OpenFile | None = None
    ) -> None:
        super().__init__(fd, flush=flush, file=file)
        self._start: int | None = None

    def _write(self, data: bytes) -> None:
        with self._opened() as fd:
            self._begin(fd)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

    def _begin(self, fd: int) -> int:
        """Return where the archive starts in the file; the first write sets it, after the caller's bytes."""
        if self._start is None:
            self._flush()
            self._start = os.lseek(fd, 0, os.SEEK_CUR)
        return self._start

    def rewind(self, position: int, /) -> None:
        """Cut the file at ``position``."""
        if self._start is None:
            return  # nothing was written; perhaps the caller's own buffer could not be flushed
        with self._opened() as fd:
            os.ftruncate(fd, self._begin(fd) + position)
            os.lseek(fd, self._begin(fd) + position, os.SEEK_SET)


class PatchableFileSink(FileSink):
    """A regular file that can be read back, and so can also patch and move earlier bytes."""

    def patch(self, position: int, data: bytes, /) -> None:
        """Write over earlier bytes."""
        view = memoryview(data)
        with self._opened() as fd:
            position += self._begin(fd)
            while view:
                written = os.pwrite(fd, view, position)
                view = view[written:]
                position += written

    def read(self, position: int, size: int, /) -> bytes:
        """Read back earlier bytes."""
        with self._opened() as own:
            position += self._begin(own)
            try:
                return os.pread(own, size, position)
            except OSError as exc:
                if exc.errno != errno.EBADF:  # EBADF: the descriptor is open for writing only
                    raise
            fd = os.open(reopening_path(own), os.O_RDONLY)
            try:
                return os.pread(fd, size, position)
            finally:
                os.close(fd)

    def move(self, source: int, target: int, size: int, /) -> None:
        """Copy bytes within the file, towards its end; the two places may overlap."""
        # The archive's end, not the file's: bytes of the caller may follow.
        with self._opened() as fd:
            end = max(os.lseek(fd, 0, os.SEEK_CUR), self._begin(fd) + target + size)
        # The last bytes first: if the two places overlap, no byte is overwritten before it is copied.
        while size:
            step = min(size, _MOVE_SIZE)
            size -= step
            data = self.read(source + size, step)
            if len(data) != step:
                raise SinkError(
                    f"the file is shorter than what was written to it, at byte {source + size + len(data)}"
                )
            self.patch(target + size, data)
        with self._opened() as fd:
            os.lseek(fd, end, os.SEEK_SET)


class PlainDescriptorSink(OwnDescriptorSink):
    """A file that never waits for a reader and cannot be cut.

    That is a file in append mode or with other bytes after its position, /dev/null, a block device.
    """

    def _write(self, data: bytes) -> int:
        self._flush()
        with self._opened() as fd:
            return os.write(fd, data)


class BytesIOSink(Adapter):
    """An ``io.BytesIO``, written from its end on; can rewind."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file
        self._start = file.tell()

    async def write(self, data: bytes, /) -> None:
        """Append ``data``; never waits, so no cancel can come."""
        self._file.write(data)

    def rewind(self, position: int, /) -> None:
        """Cut the file at ``position``."""
        self._file.seek(self._start + position)
        self._file.truncate()


class BlockingSink(ThreadSink):
    """A file object such as ``GzipFile``, above memory or a regular file; a thread writes it."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._write = file.write

    async def write(self, data: bytes, /) -> int | None:
        """Write ``data``.

        Cancel: raised when the write has ended.
        """
        taken: int | None = await self.worker.run(self._write, data)
        return taken


# ── streams ──


class StreamWriterSink(Adapter):
    """An ``asyncio.StreamWriter``; a write waits for room first, so a cancelled wait hands over nothing."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.handed_over = 0
        self._writer = writer

    async def write(self, data: bytes, /) -> None:
        """Wait for room, then hand ``data`` over.

        Cancel: comes during the wait; nothing was handed over.
        """
        await self.flush()
        self._writer.write(data)
        self.handed_over += len(data)

    async def flush(self) -> None:
        """Wait until there is room again.

        Raises:
            ConnectionError: The other side has left.

        Cancel: ends the wait; bytes that were handed over are sent.
        """
        if self._writer.transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "the other side has left")
        await self._writer.drain()


class ResponseSink(Adapter):
    """aiohttp's ``StreamResponse``, prepared by the caller.

    Attributes:
        expected_size: The ``Content-Length`` that the response promises, in bytes, or None. aiohttp would cut
            off bytes beyond that size, and would leave the client waiting for missing ones.
    """

    def __init__(self, response: Any) -> None:
        self.expected_size = response.content_length
        self._response = response
        self._sent = 0

    async def write(self, data: bytes, /) -> None:
        """Hand ``data`` over, then wait for room.

        Raises:
            SinkError: The response has promised fewer bytes; nothing was handed over.

        Cancel: comes when all of ``data`` was handed over.
        """
        if self.expected_size is not None and self._sent + len(data) > self.expected_size:
            raise SinkError(
                f"the archive is larger than the {self.expected_size} bytes that the response promises"
            )
        self._sent += len(data)
        await self._response.write(data)


class CallableSink(Adapter):
    """An ``async def`` that takes bytes: the caller's own function, or a stream's ``send``."""

    def __init__(self, write: Callable[[bytes], Awaitable[Any]]) -> None:
        self._write = write

    async def write(self, data: bytes, /) -> Any:
        """Call the function with ``data``.

        Cancel: the function has seen the data; the number of bytes that it took is unknown.
        """
        return await self._write(bytes(data))
