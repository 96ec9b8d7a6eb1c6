"""Send archives as ASGI responses: for Starlette, FastAPI, or a server alone.

::

    @app.get("/app.tar")
    async def download() -> Response:
        return PlanResponse(plan, source.open_blob, filename="app.tar")

If Starlette is installed, the classes inherit from its ``Response``, since FastAPI demands that; they use
nothing of it.

An error before the first byte of the body is raised before the response has begun, and the application may
answer it. A later error is raised, too: the server logs it and closes the connection in the middle of the
body, so that no client takes the body for complete. A client that leaves is not an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from aiodockersave._aio import running_task
from aiodockersave.archive.stream import ByteStream, OpenBlob, archive_stream, stream_plan
from aiodockersave.archive.writer import ArchiveWriter
from aiodockersave.core.plan import Plan

from .delivery import SEND_TIMEOUT, Delivery, Outcome, describe, drop
from .fields import content_disposition, response_headers
from .ranges import Answer, ByteRange, evaluate

if TYPE_CHECKING:
    from starlette.responses import Response
else:
    try:
        from starlette.responses import Response
    except ImportError:
        Response = object

__all__ = ["ArchiveResponse", "PlanResponse"]

logger = logging.getLogger("aiodockersave")

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class _BodyResponse(Response):
    """The common part of both responses.

    Attributes:
        raw_headers: The caller's header fields; those of the archive are added when the response is sent.
        background: Called when the response has ended, as Starlette does.
    """

    def __init__(
        self,
        *,
        filename: str,
        headers: Mapping[str, str] | None,
        background: Callable[[], Awaitable[None]] | None,
        send_timeout: float,
    ) -> None:
        # Starlette's __init__ is not called: it would derive header fields from a body that is not there yet.
        content_disposition(filename)
        self.status_code = 200
        self.body = b""
        self.background = background  # type: ignore[assignment]
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (headers or {}).items()
        ]
        self._filename = filename
        self._send_timeout = send_timeout

    async def _respond(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        answer: Answer,
        open_body: Callable[[ByteRange], ByteStream],
    ) -> None:
        """Send the status alone, or status and body; then run the background task."""
        extra = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers]
        client = _Client(receive, send, answer.status, response_headers(answer, self._filename, extra))
        if answer.body is None:
            await client.start()
            await client.finish()
        else:
            size = answer.body.size
            # Whether the client can tell a truncated body from a complete one.
            has_frame = size is not None or scope.get("http_version") != "1.0"
            await self._deliver(client, open_body(answer.body), size, has_frame=has_frame)
        if self.background is not None:
            await self.background()

    async def _deliver(self, client: _Client, body: ByteStream, size: int | None, *, has_frame: bool) -> None:
        delivery = Delivery(client, size=size, send_timeout=self._send_timeout)
        try:
            outcome = await delivery.run(body)
            if outcome is Outcome.STALLED:
                raise TimeoutError(f"the client stalled for {self._send_timeout:g} s")
        except BaseException as exc:
            # If a source cancels itself, CancelledError is raised here, though nobody cancelled this task.
            is_stray = isinstance(exc, asyncio.CancelledError) and not running_task().cancelling()
            is_fault = isinstance(exc, Exception) or is_stray
            if delivery.is_started and not client.drop(has_frame=has_frame) and is_fault:
                await self._spoil(client, delivery.sent, exc)
            raise

    async def _spoil(self, client: _Client, sent: int, fault: BaseException) -> None:
        is_refused = False
        try:
            is_refused = await client.spoil()
        finally:
            if not is_refused:  # a middleware took the message, so the server will not see and log the fault
                logger.error("a response broke off after %d bytes: %s", sent, describe(fault))


class PlanResponse(_BodyResponse):
    """A planned archive, or the part of it that a request asks for, as a response.

    :mod:`aiodockersave.web.ranges` decides on ``ETag``, ``Content-Length`` and ranges. Only blobs that
    overlap the requested part are opened, and only the bytes that it needs are read.
    """

    def __init__(
        self,
        plan: Plan,
        open_blob: OpenBlob,
        *,
        filename: str,
        headers: Mapping[str, str] | None = None,
        background: Callable[[], Awaitable[None]] | None = None,
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        """Make a response; no blob is opened before the response is sent.

        Args:
            plan: The archive.
            open_blob: Opens a blob, as a source's method does. The source must be open until the response has ended.
            filename: The name under which a browser saves the archive.
            headers: More header fields; ``Cache-Control`` replaces ours, which is ``no-cache, no-transform``.
            background: Called when the response has ended without an error.
            send_timeout: Seconds that the client may take for 256 KiB before it is dropped.

        Raises:
            InvalidInputError: ``filename`` cannot be sent.
        """
        super().__init__(filename=filename, headers=headers, background=background, send_timeout=send_timeout)
        self._plan = plan
        self._open_blob = open_blob

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            InvalidInputError: A header field that was added cannot be sent.
            TimeoutError: The client stalled.
            Exception: An error of a source, before the response has begun or after that.

        Cancel: nothing upstream stays open.
        """
        running_task()
        plan = self._plan
        answer = evaluate(scope["method"], _headers(scope), size=plan.size, etag=plan.etag)

        def open_body(part: ByteRange) -> ByteStream:
            return stream_plan(plan, self._open_blob, start=part.start, stop=part.stop)

        await self._respond(scope, receive, send, answer, open_body)


class ArchiveResponse(_BodyResponse):
    """A response with a whole archive that is written while it is sent; its size is unknown."""

    def __init__(
        self,
        build: Callable[[ArchiveWriter], Awaitable[Any]],
        *,
        filename: str,
        headers: Mapping[str, str] | None = None,
        background: Callable[[], Awaitable[None]] | None = None,
        send_timeout: float = SEND_TIMEOUT,
        **writer_options: Any,
    ) -> None:
        """Make a response; ``build`` does not begin before the response is sent.

        Args:
            build: Writes the archive, as :func:`aiodockersave.archive_stream` says, and need not close it.
            filename: The name under which a browser saves the archive.
            headers: More header fields; ``Cache-Control`` replaces ours, which is ``no-store, no-transform``.
            background: Called when the response has ended without an error.
            send_timeout: Seconds that the client may take for 256 KiB before it is dropped.
            writer_options: Those of :class:`~aiodockersave.ArchiveWriter`.

        Raises:
            InvalidInputError: ``filename`` cannot be sent.
        """
        super().__init__(filename=filename, headers=headers, background=background, send_timeout=send_timeout)
        self._build = build
        self._writer_options = writer_options

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request; a HEAD builds nothing.

        Raises:
            InvalidInputError: A header field that was added cannot be sent.
            TimeoutError: The client stalled.
            Exception: An error of ``build``, before the response has begun or after that.

        Cancel: ``build`` is cancelled and has ended.
        """
        running_task()
        answer = evaluate(scope["method"], _headers(scope))

        def open_body(_: ByteRange) -> ByteStream:
            return archive_stream(self._build, **self._writer_options)

        await self._respond(scope, receive, send, answer, open_body)


class _Client:
    """The client at the other end of a server's ``receive`` and ``send``."""

    def __init__(self, receive: Receive, send: Send, status: int, headers: list[tuple[str, str]]) -> None:
        self._receive = receive
        self._send = send
        self._status = status
        self._headers = headers

    async def start(self) -> None:
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self._headers]
        await self._send({"type": "http.response.start", "status": self._status, "headers": headers})

    async def send(self, data: bytes | memoryview, /) -> None:
        await self._send({"type": "http.response.body", "body": bytes(data), "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # a part of the request's body, which nobody needs

    def has_left(self) -> bool:
        return True  # an OSError from `send` means this, since version 2.4 of the ASGI specification

    def drop(self, *, has_frame: bool) -> bool:
        """Close the connection at once if it can be reached; return whether it was closed.

        ASGI has no message for that. After an exception of the application a server closes the connection,
        but it first sends its buffer, and so waits for a stalled client, perhaps for ever. In uvicorn,
        ``receive`` is a method of an object that holds the connection. In hypercorn and granian, and behind
        Starlette's ``BaseHTTPMiddleware``, the connection cannot be reached: sources are closed all the same,
        but the server keeps the connection until the client acts.
        """
        # `transport` is not documented; neither ASGI nor uvicorn offers a public way to the connection.
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        if not callable(getattr(transport, "abort", None)):
            return False
        drop(transport, has_frame=has_frame)
        return True

    async def spoil(self) -> bool:
        """Keep a middleware from ending a broken body; return True if the server itself refused the message.

        Starlette's ``BaseHTTPMiddleware`` passes on the application's error, but ends the body first, and
        with chunks half an archive would then look complete. It passes on a ``pathsend`` message in the
        middle of a body, and does not end the body after that. Servers refuse the message. This works through
        any number of such middlewares. (Two of them around a ``GZipMiddleware`` still end the body.)

        Cancel: comes also from a middleware that fails over the server's refusal; the body is not ended.
        """
        try:
            await self._send({"type": "http.response.pathsend", "path": ""})
        except Exception:  # noqa: BLE001 - expected; the error that is being raised says more
            return True
        return False


def _headers(scope: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
