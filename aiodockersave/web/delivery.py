"""One body on its way to one client, which may leave or stall at any moment.

One task owns it all: it opens the body, passes it on and closes it, whatever happens. Beside it a small one waits for
the client to leave, since nothing is noticed by writing while the source says nothing; it interrupts the first as a
time-out would (cancel, uncancel), so that what is upstream is closed in the same moment.

A body is either complete or not ended: what to do with the connection then is the framework's half.
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
"""Bytes of one piece: so few that a client which is only slow (5 kB/s) is not taken for a stalled one."""


class Outcome(enum.Enum):
    """The end of a delivery that did not fail."""

    COMPLETE = enum.auto()
    LEFT = enum.auto()
    STALLED = enum.auto()


class Client(Protocol):
    """The receiver of a body: a framework's half of a response."""

    async def start(self) -> None:
        """Send status and header fields."""
        ...

    async def send(self, data: bytes | memoryview, /) -> None:
        """Send a piece of the body once there is room."""
        ...

    async def finish(self) -> None:
        """End the body."""
        ...

    async def departure(self) -> None:
        """Return once the client has left."""
        ...

    def has_left(self) -> bool:
        """Tell whether an ``OSError`` of the other methods means that the client has left."""
        ...


class Delivery:
    """One body for one client.

    Attributes:
        is_started: Whether status and header fields may be on their way. Until then a fault is an ordinary error, to
            which the application can give a status of its own.
        sent: How many bytes of the body the server has taken.
    """

    def __init__(self, client: Client, *, size: int | None, send_timeout: float) -> None:
        """Prepare a delivery.

        Args:
            client: Who receives it.
            size: How many bytes were promised, if any were.
            send_timeout: Seconds that the client may take for one piece.
        """
        self.is_started = False
        self.sent = 0
        self._client = client
        self._size = size
        self._send_timeout = send_timeout
        self._fairness = Fairness()

    async def run(self, body: ByteStream) -> Outcome:
        """Pass a body on, and close it. The first chunk is there before anything is sent.

        Raises:
            SizeMismatchError: The body is not as long as was promised.
            Exception: What the body raised, while the client was there.

        Cancel: the body is closed, and not ended towards the client.
        """
        running_task()
        departed = asyncio.timeout(None)
        try:
            async with departed, _Watch(self._client, lambda: departed.reschedule(0)), body as chunks:
                async for chunk in chunks:
                    await self._pass_on(chunk)
                await self._pass_on(b"", last=True)
            await self._call(self._client.finish)
        except _GoneError as gone:
            return gone.outcome
        except Exception as exc:
            if not departed.expired():
                raise
            if not isinstance(exc, TimeoutError):  # what the body makes of being interrupted
                logger.warning("closing a body whose client has left: %s", describe(exc))
            return Outcome.LEFT
        return Outcome.COMPLETE

    async def _pass_on(self, chunk: bytes, *, last: bool = False) -> None:
        size = self.sent + len(chunk)
        if self._size is not None and (size > self._size or (last and size < self._size)):
            raise SizeMismatchError(self._size, size, what="the body of a response")
        if not self.is_started:
            self.is_started = True
            await self._call(self._client.start)
        view = memoryview(chunk)
        while view:
            piece, view = view[:PIECE_SIZE], view[PIECE_SIZE:]
            await self._call(self._client.send, piece)
            self.sent += len(piece)
            # A server whose client has left may take all at once; then nobody would be told.
            await self._fairness.passed(len(piece))

    async def _call(self, act: Callable[..., Awaitable[None]], *args: Any) -> None:
        limit = asyncio.timeout(self._send_timeout)
        try:
            async with limit:
                await act(*args)
        except OSError as exc:  # TimeoutError is one
            if limit.expired():
                raise _GoneError(Outcome.STALLED) from exc
            if self._client.has_left():
                raise _GoneError(Outcome.LEFT) from exc
            raise


class _Watch(ending):
    """Call ``interrupt`` when a client leaves inside the block."""

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
    """The client takes nothing any more."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.name)
        self.outcome = outcome


def describe(exc: BaseException) -> str:
    """Return an error as it may stand in a log: one line, escaped, cut, without secrets in URLs."""
    return shown(f"{type(exc).__name__}: {exc}")


def drop(transport: asyncio.Transport | None, *, has_frame: bool) -> None:
    """Close a connection in the middle of a body, at once.

    Args:
        transport: The connection; None where there is none any more.
        has_frame: Whether the client can tell an end from a broken connection, by ``Content-Length`` or by the last
            chunk. If not (HTTP/1.0), the connection is reset.
    """
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if not has_frame and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
