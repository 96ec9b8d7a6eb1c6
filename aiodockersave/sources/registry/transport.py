"""Send one request and follow its redirects.

Redirects are followed here and not by aiohttp, so that the headers of every hop are made anew: a header that gives access
is sent to its own origin (scheme, host, port) alone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from aiodockersave import __version__
from aiodockersave._aio import Beside, Worker
from aiodockersave.core.errors import ContentTooLargeError, DockerSaveError, RegistryError
from aiodockersave.core.text import NO_SECRETS, Secrets, shown, shown_url

from .addresses import AddressClass, is_loopback_name
from .answers import (
    ErrorBody,
    InterruptedTransfer,
    Origin,
    explain,
    explain_status,
    fault_kinds,
    is_tls_refusal,
    load_aiohttp,
    number,
    origin,
    parse_error_body,
    redirect_target,
    retry_after,
)
from .session_pool import Dialler, HeadError, Settings

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

__all__ = ["Request", "Response", "Transport"]

T = TypeVar("T")

MAX_REDIRECTS: Final = 10
"""Redirects that are followed for one request (containerd has the same limit)."""
MAX_ERROR_BODY: Final = 1 << 20
"""Bytes of an error's body that are read (containers/image has the same limit)."""
_QUICK_BODY = 4 << 10
"""Bytes of an error's body that are parsed without a thread: this takes under a millisecond, whatever they are."""
_NO_ANSWER: Final = "no answer yet"
_NO_BYTES: Final = "no more bytes yet"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DRAINED = 16 << 10
"""Bytes of an unwanted body that are read, so that its connection can be used again: cheaper than a new connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        what: The name of the content that it asks for, for errors.
        url: An absolute URL, percent-encoded.
        headers: Headers that every host on the way may see.
        authorization: The header that only the origin of ``url`` may see.
        form: The body of a POST; None for a GET. The form may hold secrets, so its redirects are not followed.
        is_head: Whether only status and headers are wanted, by HEAD instead of GET.
        secrets: The texts that no message may show, should an answer repeat them.
        is_told: Whether a registry named the URL, and not the user.
        login: The place that the credentials in the request come from, or empty; None for a request without credentials.
    """

    what: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    form: bytes | None = field(default=None, repr=False)
    is_head: bool = False
    secrets: Secrets = field(default=NO_SECRETS, repr=False, compare=False)
    is_told: bool = False
    login: str | None = None

    @property
    def method(self) -> str:
        """The HTTP method."""
        if self.form is not None:
            return "POST"
        return "HEAD" if self.is_head else "GET"

    def error(self, reason: str, *, at: str = "") -> RegistryError:
        """Return the error of this request; ``at`` is the URL at which it failed, if a redirect led elsewhere."""
        return RegistryError(self.what, reason, url=self.shown(at or self.url))

    def shown(self, url: str) -> str:
        """Return the URL of a hop for a message, without secrets unless it is the user's own URL."""
        is_own = url == self.url and not self.is_told
        return shown_url(url) if is_own else shown_url(url, secrets=self.secrets)


class Response:
    """An answer whose status and headers have come. Close it; closing before the body's end cuts the connection.

    Attributes:
        status: The status.
        url: The URL that it came from, after redirects.
        is_own: Whether it came from the origin that was asked, and no redirect on the way led to another origin. After one,
            another host chose the URL, so no login is given for it.
        by: The class of address that decides where the answer may point. It is that of the other end of the connection, as
            far as that is known, and public where the redirects on the way came from another class.
    """

    def __init__(
        self,
        raw: aiohttp.ClientResponse,
        request: Request,
        url: str,
        settings: Settings,
        *,
        is_own: bool,
        by: AddressClass,
    ) -> None:
        self.status = raw.status
        self.url = url
        self.is_own = is_own
        self.by = by
        self._raw = raw
        self._what = request.what
        self._request = request
        self._timeouts = settings.timeouts
        self._waits = settings.waits

    def headers(self, name: str) -> Sequence[str]:
        """Return every value of a header."""
        return self._raw.headers.getall(name, [])

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return self._raw.headers.get(name)

    @property
    def content_length(self) -> int | None:
        """The announced size of the body, in bytes; None where it is not announced."""
        return number((self.header("Content-Length") or "").strip())

    def error(self, reason: str) -> RegistryError:
        """Return an error with a reason and this answer's status and URL."""
        return RegistryError(self._what, reason, url=self.place, status=self.status)

    @property
    def secrets(self) -> Secrets:
        """The secrets that the answer may repeat."""
        return self._request.secrets

    @property
    def place(self) -> str:
        """The URL that the answer came from, for a message."""
        return self._request.shown(self.url)

    async def chunk(self) -> bytes:
        """Return the next piece of the body; empty at its end.

        Raises:
            InterruptedTransfer: The body broke off.

        Cancel: no byte is lost, and the answer stays open.
        """
        return await self._receive(_next_chunk)

    async def _receive(self, read: Callable[[aiohttp.StreamReader], Awaitable[bytes]]) -> bytes:
        try:
            # aiohttp has a limit on silence too. But where the framing of a body is broken, it does not wake the reader.
            async with asyncio.timeout(self._timeouts.silence):
                with self._waits.noted(self._what, _NO_BYTES, self._timeouts.silence):
                    return await read(self._raw.content)
        except fault_kinds() as exc:
            fault = explain(exc, what=self._what, url=self.place, timeouts=self._timeouts)
        raise fault  # outside of the handler, so that it has no context

    async def read(self, limit: int, *, seconds: float | None = None) -> bytes:
        """Read the whole body. The limits hold for the bytes and the time themselves, whatever the headers announce.

        Args:
            limit: The largest body, in bytes.
            seconds: The limit on the time, in seconds; that of :meth:`.Timeouts.longest_document` by default.

        Raises:
            ContentTooLargeError: The body has more than ``limit`` bytes.
            InterruptedTransfer: The body broke off, or is too slow.

        Cancel: the bytes that came are lost; the answer stays open.
        """
        parts: list[bytes] = []
        size = 0
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            async with asyncio.timeout(None) as end:
                while True:
                    longest = self._timeouts.longest_document(size) if seconds is None else seconds
                    end.reschedule(begun + longest)
                    # Read all that has come at once: HTTP's chunks may have one byte each, and 10^5 of them block the loop.
                    chunk = await self._receive(_read_any)
                    if not chunk:
                        return b"".join(parts)
                    size += len(chunk)
                    if size > limit:
                        raise ContentTooLargeError(limit, what=f"{self._what} from {self.place}")
                    parts.append(chunk)
        except TimeoutError:  # of `end`: silence is an InterruptedTransfer
            pass
        raise InterruptedTransfer(self.error(f"it is too slow: {size} bytes came in {clock() - begun:.3g} s"))

    async def failure(self) -> InterruptedTransfer | DockerSaveError:
        """Read the body of an answer with a status of failure, close the answer, and return the error to raise.

        Returns:
            An :class:`.InterruptedTransfer` where another attempt may help.

        Cancel: the answer is closed; a body that is being parsed is parsed to its end, and dropped.
        """
        try:
            body = await self.read(MAX_ERROR_BODY)
        except (InterruptedTransfer, ContentTooLargeError):
            body = b""  # the status alone makes an error
        finally:
            self.close()
        delay = retry_after(self.header("Retry-After"), time.time())
        said = await _error_body(body, self.secrets)
        login = self._request.login if self.is_own else None
        return explain_status(
            self.status, said, what=self._what, url=self.place, retry_after=delay, login=login
        )

    async def discard(self) -> None:
        """Close an answer whose body is not wanted; read a small body first, so that its connection can be used again.

        Cancel: the answer is closed.
        """
        length = self.content_length
        try:
            if length is not None and length <= _DRAINED:
                # Not longer than a new connection would take.
                await self.read(_DRAINED, seconds=self._timeouts.connect)
        except (InterruptedTransfer, ContentTooLargeError):
            pass  # nothing of the body is needed
        finally:
            self.close()

    def close(self) -> None:
        """Close the answer; its connection is used again if the body was read to its end."""
        self._raw.close()


class Transport:
    """Requests on behalf of one address of a registry.

    Attributes:
        dialler: The connections of that address.
    """

    def __init__(self, host: str, port: int | None, settings: Settings, name: str = "") -> None:
        self.dialler = Dialler(host, port, settings, name)
        self._settings = settings
        self._timeouts = settings.timeouts

    async def speaks_tls(self, request: Request) -> bool | None:
        """Find out whether the registry speaks TLS, as :meth:`.Dialler.speaks_tls` does.

        Raises:
            InterruptedTransfer: The registry cannot be reached.

        Cancel: no connection stays open; an import of aiohttp that runs is waited for.
        """
        try:
            with self._settings.waits.noted(request.what, _NO_ANSWER, self._timeouts.connect):
                return await _while_importing(self.dialler.speaks_tls())
        except OSError as exc:
            fault = explain(exc, what=request.what, url=request.url, timeouts=self._timeouts)
        raise fault  # outside of the handler, so that it has no context

    async def open(self, request: Request, by: AddressClass | None = None) -> Response:
        """Send a request and follow its redirects; return the last answer, whose status and headers have come.

        Args:
            request: The request.
            by: The class of the host that named the URL; None where the user named it.

        Raises:
            InterruptedTransfer: The connection failed; another attempt may help.
            RegistryError: The request failed for good, or was redirected to a URL that must not be asked.

        Cancel: nothing stays open.
        """
        url, is_own = request.url, True
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send_or_fail(request, url, is_own=is_own, by=by)
            if response.status not in _REDIRECTS:
                return response
            location = response.header("Location")
            await response.discard()
            url, by = self._next_hop(request, url, location, response.by), response.by
            # Once left, the origin counts as left for good: another host may lead back to a path of its own choice.
            is_own = is_own and origin(url) == origin(request.url)
        raise request.error(f"there are more than {MAX_REDIRECTS} redirects", at=url)

    def _next_hop(self, request: Request, url: str, location: str | None, by: AddressClass) -> str:
        target = redirect_target(url, location)
        found = origin(target) if target else None
        if target is None or found is None:
            raise request.error("it redirects to a text that is not a proper URL", at=url)
        if request.form is not None:
            raise request.error("it redirects a request that holds a secret", at=url)
        if found[0] == "http" and urlsplit(url).scheme == "https" and not _may_be_plain(found, by):
            raise request.error(
                f"it redirects from https to http, at {shown(found[1], secrets=request.secrets)}", at=url
            )
        return target

    async def _send_or_fail(
        self, request: Request, url: str, *, is_own: bool, by: AddressClass | None
    ) -> Response:
        headers = dict(request.headers)
        if request.authorization is not None and is_own:
            headers["Authorization"] = request.authorization
        try:
            return await self._send(request, url, headers, is_own=is_own, by=by)
        except _TlsRefusal:
            pass
        raise request.error(
            "it does not speak TLS; where that is right, plain http must be asked for", at=url
        )

    async def _send(
        self, request: Request, url: str, headers: Mapping[str, str], *, is_own: bool, by: AddressClass | None
    ) -> Response:
        # 1. Headers, and the options of the connection. The caller's connector makes a connection under `making`.
        target = origin(url)
        if target is None:
            raise request.error("this is not a proper URL", at=url)
        own = {"Accept-Encoding": "identity", "User-Agent": f"aiodockersave/{__version__}"}
        if request.form is not None:
            own["Content-Type"] = "application/x-www-form-urlencoded"
        options = await _while_importing(self.dialler.options(target, is_own=is_own))
        kinds = fault_kinds()
        making = asyncio.timeout(None)  # it has a limit only while a caller's connector makes a connection
        # 2. Send, and wait for status and headers.
        try:
            session = await self.dialler.choose(target, by)
            async with making:
                with self._settings.waits.noted(request.what, _NO_ANSWER, self._timeouts.head):
                    raw: Any = await session.request(
                        request.method,
                        _encoded(url),
                        headers={**own, **headers, **options.pop("headers", {})},
                        data=request.form,
                        allow_redirects=False,
                        trace_request_ctx=making,
                        **options,
                    )
        # 3. Turn a fault into ours. aiohttp's is not chained, since it may hold a whole URL.
        except HeadError as exc:
            is_refusal = False
            error = request.error(str(exc), at=url)
            fault: InterruptedTransfer | DockerSaveError
            fault = error if exc.is_lasting else InterruptedTransfer(error)
        except kinds as exc:
            is_refusal = target[0] == "https" and is_tls_refusal(exc)
            if making.expired():
                error = request.error("the caller's session makes no connection in time", at=url)
                fault = InterruptedTransfer(error)
            else:
                fault = explain(exc, what=request.what, url=request.shown(url), timeouts=self._timeouts)
        # 4. Judge the answer by its own connection. Two classes on the way here make it public.
        else:
            kind = self.dialler.class_of(target, raw.peer)
            by = kind if by in (None, kind) else AddressClass.PUBLIC
            response = Response(raw, request, url, self._settings, is_own=is_own, by=by)
            self.dialler.set_portion(raw.connection, response.content_length)
            return response
        raise _TlsRefusal if is_refusal else fault  # outside of the handler, so that it has no context


def _may_be_plain(target: Origin, by: AddressClass) -> bool:
    """Tell whether http will do where https is the rule: inside one machine."""
    return is_loopback_name(target[1]) and by is AddressClass.LOOPBACK


async def _error_body(body: bytes, secrets: Secrets) -> ErrorBody:
    if len(body) <= _QUICK_BODY:
        return parse_error_body(body, secrets)
    return await Worker("aiodockersave-document").run(parse_error_body, body, secrets)


async def _next_chunk(content: aiohttp.StreamReader) -> bytes:
    """Return the next piece as it came from the connection: ``readany`` would copy all pieces into one."""
    while True:
        chunk, _ = await content.readchunk()
        if chunk or content.at_eof():  # a piece is empty where only the end of one of HTTP's chunks came
            return chunk


async def _read_any(content: aiohttp.StreamReader) -> bytes:
    return await content.readany()


async def _while_importing(awaitable: Awaitable[T]) -> T:
    """Await something, and meanwhile import aiohttp in a thread, which takes about 150 ms."""
    if "aiohttp" in sys.modules:
        return await awaitable
    async with Beside("aiodockersave-import") as importing:
        importing.start(load_aiohttp)
        return await awaitable


class _TlsRefusal(Exception):  # noqa: N818 - it does not leave this module
    """The other side does not speak TLS."""


def _encoded(url: str) -> URL:
    from yarl import URL  # noqa: PLC0415 - comes with aiohttp, which is loaded late

    return URL(url, encoded=True)
