"""Send one body to one client, which may leave or stall at any moment. This module knows no framework.

One task owns the body: it opens the body, passes it on and always closes it. A second task waits for the
client to leave, because no write notices that while the source is silent. It interrupts the first task as a
time-out would (cancel, uncancel), so that the source is closed at once.

A body gets its end only if it is complete. Otherwise the framework's part (:mod:`.aiohttp`, :mod:`.asgi`)
decides how to close the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiodockersave._aio import Fairness, ending, running_task
from aiodockersave.archive.stream import ByteStream
from aiodockersave.core.errors import SizeMismatchError
from aiodockersave.core.text import shown

__all__ = ["SEND_TIMEOUT", "Client", "Delivery", "Outcome", "describe", "drop"]

logger = logging.getLogger("aiodockersave")

SEND_TIMEOUT = 60.0
"""Seconds that a client may take for one piece."""
PIECE_SIZE = 256 << 10
"""Bytes of one piece: small enough that a slow client (5 kB/s) takes it within `SEND_TIMEOUT`."""


class Outcome(enum.Enum):
    """The way in which a delivery ended, if it did not fail."""

    COMPLETE = enum.auto()
    LEFT = enum.auto()
    STALLED = enum.auto()


class Client(Protocol):
    """The receiver of a body, implemented for each framework."""

    async def start(self) -> None:
        """Send status and header fields.

        Cancel: they may be on their way.
        """
        ...

    async def send(self, data: bytes | memoryview, /) -> None:
        """Send a piece of the body; wait for room, before or after sending.

        Cancel: the piece may be on its way, whole or in part; no more of the body may be sent.
        """
        ...

    async def finish(self) -> None:
        """End the body.

        Cancel: the body may have ended.
        """
        ...

    async def departure(self) -> None:
        """Return once the client has left.

        Cancel: ends the wait; the client is not touched.
        """
        ...

    def has_left(self) -> bool:
        """Return whether an ``OSError`` of the other methods means that the client has left."""
        ...


class Delivery:
    """The sending of one body to one client.

    Attributes:
        is_started: Whether status and header fields may be on their way. Until then the application can
            answer an error with a status of its own.
        sent: Bytes of the body that the server has taken.
    """

    def __init__(self, client: Client, *, size: int | None, send_timeout: float) -> None:
        """Prepare a delivery.

        Args:
            client: The receiver.
            size: The size of the body that its header fields promise; None if they promise none.
            send_timeout: Seconds that the client may take for one piece.
        """
        self.is_started = False
        self.sent = 0
        self._client = client
        self._size = size
        self._send_timeout = send_timeout
        self._fairness = Fairness()

    async def run(self, body: ByteStream) -> Outcome:
        """Send a body, and close it. Nothing is sent before the first chunk is there.

        Raises:
            SizeMismatchError: The body has another size than its header fields promise.
            Exception: An error of the body while the client was there.

        Cancel: the body is closed; the client gets no end of it, unless the cancel comes while the end is
        sent.
        """
        running_task()
        departed = asyncio.timeout(None)
        try:
            async with departed, _Watch(self._client, lambda: departed.reschedule(0)), body as chunks:
                async for chunk in chunks:
                    await self._pass_on(chunk)
                await self._pass_on(b"", last=True)
            await self._within_time_out(self._client.finish)
        except _GoneError as gone:
            return gone.outcome
        except Exception as exc:
            if not departed.expired():
                raise
            if not isinstance(
                exc, TimeoutError
            ):  # the body has raised an error of its own when it was interrupted
                logger.warning("closing a body whose client has left: %s", describe(exc))
            return Outcome.LEFT
        return Outcome.COMPLETE

    async def _pass_on(self, chunk: bytes, *, last: bool = False) -> None:
        size = self.sent + len(chunk)
        if self._size is not None and (size > self._size or (last and size < self._size)):
            raise SizeMismatchError(self._size, size, what="the body of a response")
        if not self.is_started:
            self.is_started = True
            await self._within_time_out(self._client.start)
        view = memoryview(chunk)
        while view:
            piece, view = view[:PIECE_SIZE], view[PIECE_SIZE:]
            await self._within_time_out(self._client.send, piece)
            self.sent += len(piece)
            # If the client has left, a server may take all data without waiting: let the watcher run, too.
            await self._fairness.passed(len(piece))

    async def _within_time_out(self, act: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Await a method of the client; raise _GoneError if it times out, or if the client has left."""
        limit = asyncio.timeout(self._send_timeout)
        try:
            async with limit:
                await act(*args)
        except OSError as exc:  # includes TimeoutError
            if limit.expired():
                raise _GoneError(Outcome.STALLED) from exc
            if self._client.has_left():
                raise _GoneError(Outcome.LEFT) from exc
            raise


class _Watch(ending):
    """Call ``interrupt`` when a client leaves while the block runs."""

    def __init__(self, client: Client, interrupt: Callable[[], None]) -> None:
        super().__init__(lambda: self._watchers)
        self._client = client
        self._interrupt = interrupt
        self._watchers: list[asyncio.Task[None]] = []
        self._is_inside = True

    async def __aenter__(self) -> None:
        """Begin to watch."""
        watcher = asyncio.create_task(self._client.departure(), name="aiodockersave-departure")
        watcher.add_done_callback(self._tell)
        self._watchers.append(watcher)

    async def __aexit__(self, kind: object, fault: BaseException | None, traceback: object) -> None:
        self._is_inside = False
        await super().__aexit__(kind, fault, traceback)

    def _tell(self, watcher: asyncio.Task[None]) -> None:
        if watcher.cancelled():
            return
        if (exc := watcher.exception()) is not None:
            logger.warning("waiting for a client to leave: %s", describe(exc))
        if self._is_inside:
            self._interrupt()


class _GoneError(Exception):
    """The client has left or stalled, and takes nothing any more."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.name)
        self.outcome = outcome


def describe(exc: BaseException) -> str:
    """Return an error as text that is safe to log: one line, escaped, cut, without secrets in URLs."""
    return shown(f"{type(exc).__name__}: {exc}")


def drop(transport: asyncio.Transport | None, *, has_frame: bool) -> None:
    """Close a connection in the middle of a body, at once.

    Args:
        transport: The connection; None if it is gone already.
        has_frame: Whether the client can tell a complete body from a broken connection, by ``Content-Length``
            or by the last chunk. If not (HTTP/1.0), the connection is reset.
    """
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if not has_frame and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
