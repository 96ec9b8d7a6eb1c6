"""Send archives as responses of aiohttp's server.

::

    async def download(request):
        return await plan_response(request, plan, source.open_blob, filename="app.tar")

Both functions send the whole response and return it. An error before the first byte of the body is raised,
and the application may answer it. After that no other answer can be sent: the connection is closed in the
middle of the body, one line goes to the logger ``aiodockersave``, and the response is returned unfinished. A
client that leaves is not an error. Its leaving is noticed within a quarter of a second, with
``handler_cancellation`` or without.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiodockersave.archive.stream import ByteStream, OpenBlob, archive_stream, stream_plan
from aiodockersave.archive.writer import ArchiveWriter
from aiodockersave.core.errors import MissingDependencyError
from aiodockersave.core.plan import Plan

from .delivery import SEND_TIMEOUT, Delivery, Outcome, describe, drop
from .fields import response_headers
from .ranges import evaluate

try:
    from aiohttp import HttpVersion11, web
except ImportError as exc:
    raise MissingDependencyError("a response of aiohttp", "registry") from exc

__all__ = ["archive_response", "plan_response"]

logger = logging.getLogger("aiodockersave")

_LOOK_INTERVAL = 0.25
"""Seconds between two checks of a connection: aiohttp does not tell a handler that its client has left."""


async def plan_response(
    request: web.BaseRequest,
    plan: Plan,
    open_blob: OpenBlob,
    *,
    filename: str,
    headers: Mapping[str, str] | None = None,
    send_timeout: float = SEND_TIMEOUT,
) -> web.StreamResponse:
    """Answer a request with a planned archive, or with the part of it that the request asks for.

    :mod:`aiodockersave.web.ranges` decides on ``ETag``, ``Content-Length`` and ranges. Only blobs that
    overlap the requested part are opened, and only the bytes that it needs are read.

    Args:
        request: A GET or HEAD.
        plan: The archive.
        open_blob: Opens a blob, as a source's method does.
        filename: The name under which a browser saves the archive.
        headers: More header fields; ``Cache-Control`` replaces ours, which is ``no-cache, no-transform``.
        send_timeout: Seconds that the client may take for 256 KiB before it is dropped.

    Returns:
        The response, prepared and finished; unfinished if the client left or the body broke off.

    Raises:
        InvalidInputError: ``filename`` or ``headers`` cannot be sent.
        Exception: An error of the source before the first byte was sent.

    Cancel: the connection is closed, unless nothing was sent; nothing upstream stays open.
    """
    answer = evaluate(request.method, request.headers.items(), size=plan.size, etag=plan.etag)
    fields = response_headers(answer, filename, (headers or {}).items())
    response = web.StreamResponse(status=answer.status, headers=fields)
    if answer.body is None:
        return await _send_head(request, response)
    body = stream_plan(plan, open_blob, start=answer.body.start, stop=answer.body.stop)
    return await _send(request, response, body, size=answer.body.size, send_timeout=send_timeout)


async def archive_response(
    request: web.BaseRequest,
    build: Callable[[ArchiveWriter], Awaitable[Any]],
    *,
    filename: str,
    headers: Mapping[str, str] | None = None,
    send_timeout: float = SEND_TIMEOUT,
    **writer_options: Any,
) -> web.StreamResponse:
    """Answer a request with a whole archive that is written while it is sent, chunked, its size unknown.

    Args:
        request: A GET or HEAD; for a HEAD nothing is built.
        build: Writes the archive, as :func:`aiodockersave.archive_stream` says, and need not close it.
        filename: The name under which a browser saves the archive.
        headers: More header fields; ``Cache-Control`` replaces ours, which is ``no-store, no-transform``.
        send_timeout: Seconds that the client may take for 256 KiB before it is dropped.
        writer_options: Those of :class:`~aiodockersave.ArchiveWriter`.

    Returns:
        The response, prepared and finished; unfinished if the client left or the body broke off.

    Raises:
        InvalidInputError: ``filename`` or ``headers`` cannot be sent.
        Exception: An error of ``build`` before the first byte was sent.

    Cancel: the connection is closed, unless nothing was sent; ``build`` is cancelled and has ended.
    """
    answer = evaluate(request.method, request.headers.items())
    fields = response_headers(answer, filename, (headers or {}).items())
    response = web.StreamResponse(status=answer.status, headers=fields)
    if answer.body is None:
        return await _send_head(request, response)
    body = archive_stream(build, **writer_options)
    return await _send(request, response, body, size=None, send_timeout=send_timeout)


async def _send_head(request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
    with contextlib.suppress(ConnectionError):  # the client has left
        await response.prepare(request)
        await response.write_eof()
    return response


async def _send(
    request: web.BaseRequest,
    response: web.StreamResponse,
    body: ByteStream,
    *,
    size: int | None,
    send_timeout: float,
) -> web.StreamResponse:
    """Send a body; return the response.

    Cancel: the connection is closed, unless nothing was sent; the body is closed.
    """
    client = _Client(request, response)
    has_frame = size is not None or request.version >= HttpVersion11
    delivery = Delivery(client, size=size, send_timeout=send_timeout)
    try:
        outcome = await delivery.run(body)
    except BaseException as exc:
        if not delivery.is_started:
            raise
        # Drop first: the application's error handler must not send an answer after half a body.
        drop(request.transport, has_frame=has_frame)
        if not isinstance(exc, Exception):
            raise
        show_traceback = logger.isEnabledFor(logging.DEBUG)  # it holds foreign text that is not escaped
        logger.error(  # noqa: TRY400 - the traceback is for debugging
            "a response broke off after %d bytes: %s", delivery.sent, describe(exc), exc_info=show_traceback
        )
        return response
    if outcome is not Outcome.COMPLETE:
        if outcome is Outcome.STALLED:
            logger.warning("a client was dropped: it stalled for %g s", send_timeout)
        drop(request.transport, has_frame=has_frame)
    return response


class _Client:
    """The client at the other end of a request."""

    def __init__(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        self._request = request
        self._response = response

    async def start(self) -> None:
        await self._response.prepare(self._request)

    async def send(self, data: bytes | memoryview, /) -> None:
        await self._response.write(data)

    async def finish(self) -> None:
        """End the body; wait until the connection has taken all of it, since a client may stall here, too."""
        await self._response.write_eof()
        transport = self._request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=0)
            try:
                await self._request.writer.drain()
            finally:
                transport.set_write_buffer_limits()

    async def departure(self) -> None:
        while not self.has_left():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_LOOK_INTERVAL)

    def has_left(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()
