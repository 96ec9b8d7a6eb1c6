"""Pipes, FIFOs, sockets and terminals, written by the loop without blocking.

The idea to know first: O_NONBLOCK belongs to the open file, which other processes share: a shell's terminal, the other end
of a pipeline. So it is not changed where there is another way: a pipe or terminal is opened anew, through ``/proc``, and a
socket is told in each call not to block.
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
"""The device /dev/ptmx, of which Linux makes the masters of its terminals."""


def reopening_path(fd: int) -> str:
    """Return the path by which Linux opens a descriptor's file anew."""
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
        """Keep the descriptor ready for writes without blocking."""
        with contextlib.ExitStack() as stack:
            self._waiting_fd, self._send = _nonblocking(self._fd, stack)
            try:
                yield
            finally:
                self._send = None

    async def write(self, data: bytes, /) -> None:
        """Write all of ``data``.

        Cancel: comes while it waits for room; `handed_over` counts the bytes that are out.
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
    """Return a descriptor to wait on and a call that writes as many bytes as there is room for."""
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
    """Return a socket of our own for the one that ``fd`` has open.

    A default time-out (``socket.setdefaulttimeout``) would make each call wait, here on the loop. So it is removed, which
    changes the open file, and the open file is put back as it was.
    """
    is_blocking = os.get_blocking(fd)
    sock = socket.socket(fileno=os.dup(fd))
    sock.settimeout(None)
    os.set_blocking(fd, is_blocking)
    return sock


def _send_now(sock: socket.socket, view: memoryview) -> int:
    return sock.send(view, socket.MSG_DONTWAIT)


def _open_anew(fd: int) -> int | None:
    """Return another descriptor of a pipe or terminal, which does not block; None where that is impossible.

    That is on other systems than Linux, for a pipe of another user (``sudo -u``), and for a terminal's master.
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
    """Wait until there is room. Cancel: ends the wait, and the loop watches the descriptor no more."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_writer(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_writer(fd)
