"""The head of an answer: from whom it comes, and how long it may take.

aiohttp takes a class for requests and one for responses. Ours look at the connection before anything is sent over it, note
whose it is (a name says nothing about that, nor does the address that was tried last), and end a wait that aiohttp would
never end: it reads interim answers (1xx) for as long as somebody sends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .importing import load_aiohttp

if TYPE_CHECKING:
    import aiohttp

__all__ = ["MAX_INTERIM", "HeadError", "head_classes", "peer_of"]

MAX_INTERIM: Final = 16
"""Interim answers before the one that counts. Nothing is asked for that would call for more than one or two."""


class HeadError(Exception):
    """There is no answer, for a reason of ours; aiohttp passes it on as it is.

    Attributes:
        is_lasting: Whether the same request will fail again.
    """

    def __init__(self, reason: str, *, is_lasting: bool) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting


def head_classes(check: Callable[[str | None], None], seconds: float) -> tuple[type[Any], type[Any]]:
    """Make the classes of requests and responses for a session.

    Args:
        check: Is told the address of whom a request is about to be sent to, None where that is not known; raises
            :class:`HeadError` where it must not be.
        seconds: How long status and headers may take, from the request on.

    Returns:
        The classes. A response has an attribute ``peer``, as :func:`peer_of` gives it.
    """
    library = load_aiohttp()

    class HeadRequest(library.ClientRequest):  # type: ignore[misc, name-defined]
        """A request that is sent to who may get it."""

        async def send(self, conn: aiohttp.connector.Connection) -> Any:
            peer = peer_of(conn.transport)
            check(peer)
            response = await super().send(conn)
            response.peer = peer
            return response

    class HeadResponse(library.ClientResponse):  # type: ignore[misc, name-defined]
        """A response whose head ends."""

        peer: str | None = None

        async def start(self, connection: aiohttp.connector.Connection) -> Any:
            protocol: Any = connection.protocol
            read, interim = protocol.read, -1

            async def read_counted() -> Any:
                nonlocal interim
                interim += 1
                if interim > MAX_INTERIM:
                    reason = f"it sends more than {MAX_INTERIM} interim answers before the one that counts"
                    raise HeadError(reason, is_lasting=True)
                return await read()

            protocol.read = read_counted  # on this object only, and only while this head is read
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await super().start(connection)
            except TimeoutError:
                if not limit.expired():  # aiohttp's, for silence
                    raise
            finally:
                del protocol.read
            raise HeadError(f"its status and headers were not whole within {seconds:g} s", is_lasting=False)

    return HeadRequest, HeadResponse


def peer_of(transport: asyncio.BaseTransport | None) -> str | None:
    """Return the address at the other end of a connection; None where it is closed, or not one of IP."""
    peer = None if transport is None else transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) and peer else None
