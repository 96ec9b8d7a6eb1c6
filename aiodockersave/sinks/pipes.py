"""Write to pipes, FIFOs, sockets and terminals from the event loop, without blocking.

The idea to know first: the flag O_NONBLOCK belongs to the open file, and other processes share that file: a
shell's terminal, or the other end of a pipeline. So this module changes the flag only if there is no other
way. It opens a pipe or terminal a second time, through ``/proc``, and tells a socket in each call not to
block.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import stat
from collections.abc import Callable, Generator

from .protocol import Adapter

_MASTER = os.makedev(5, 2)
"""The device number of /dev/ptmx; on Linux, opening it makes the master of a new terminal."""


def reopening_path(fd: int) -> str:
    """Return the path through which Linux opens a descriptor's file a second time."""
    return f"/proc/self/fd/{fd}"


class DescriptorSink(Adapter):
    """A pipe, FIFO, socket or terminal, written without blocking while it is held."""

    def __init__(self, fd: int) -> None:
        self.handed_over = 0
        self._fd = fd
        self._send: Callable[[memoryview], int] | None = None
        self._waiting_fd = fd

    @contextlib.contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Keep the descriptor ready for non-blocking writes during the block."""
        with contextlib.ExitStack() as stack:
            self._waiting_fd, self._send = _nonblocking(self._fd, stack)
            try:
                yield
            finally:
                self._send = None

    async def write(self, data: bytes, /) -> None:
        """Write all of ``data``.

        Cancel: comes while it waits for room; `handed_over` counts the bytes that were written.
        """
        if self._send is None:
            with self.hold():
                return await self.write(data)
        view = memoryview(data)
        while view:
            try:
                written = self._send(view)
            except BlockingIOError:
                await _writable(self._waiting_fd)
            else:
                self.handed_over += written
                view = view[written:]
        return None


def _nonblocking(fd: int, stack: contextlib.ExitStack) -> tuple[int, Callable[[memoryview], int]]:
    """Return a descriptor to wait on, and a function that writes as many bytes as there is room for.

    Leaving ``stack`` closes the descriptors that were opened for this, and sets back a changed flag.
    """
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        sock = stack.enter_context(_without_timeout(fd))
        return sock.fileno(), functools.partial(_send_now, sock)
    if not os.get_blocking(fd):
        return fd, functools.partial(os.write, fd)
    own = _open_anew(fd)
    if own is None:
        os.set_blocking(fd, False)
        stack.callback(os.set_blocking, fd, True)
        return fd, functools.partial(os.write, fd)
    stack.callback(os.close, own)
    return own, functools.partial(os.write, own)


def _without_timeout(fd: int) -> socket.socket:
    """Return a socket object without a time-out for a duplicate of the descriptor ``fd``.

    A default time-out (``socket.setdefaulttimeout``) would make each call wait, and so block the loop.
    Removing it changes the blocking mode of the shared open file, so the mode is set back.
    """
    is_blocking = os.get_blocking(fd)
    sock = socket.socket(fileno=os.dup(fd))
    sock.settimeout(None)
    os.set_blocking(fd, is_blocking)
    return sock


def _send_now(sock: socket.socket, view: memoryview) -> int:
    return sock.send(view, socket.MSG_DONTWAIT)


def _open_anew(fd: int) -> int | None:
    """Open a pipe or terminal a second time, and return a descriptor that does not block; None if impossible.

    It is impossible on systems other than Linux, for a pipe of another user (``sudo -u``), and for a
    terminal's master.
    """
    there = os.fstat(fd)
    # Each opening of a terminal's master makes a new terminal; another device may allow only one.
    if there.st_rdev == _MASTER or (stat.S_ISCHR(there.st_mode) and not os.isatty(fd)):
        return None
    try:
        return os.open(reopening_path(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # nobody reads the pipe
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        raise


async def _writable(fd: int) -> None:
    """Wait until there is room. Cancel: ends the wait, and the loop stops watching the descriptor."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_writer(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_writer(fd)
