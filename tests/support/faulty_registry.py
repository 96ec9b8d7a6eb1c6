"""A registry that answers as it is told to: rightly, or with faults that are chosen ahead.

::

    registry = FaultyRegistry({"team/app:1": image}, faults=[drop(0.3), refuse(429).often(2)], auth="bearer")
    async with registry:
        registry.address                    # "127.0.0.1:35023", plain HTTP
        registry.asks, registry.other.asks  # every request as it came: here, and at the host it may redirect to

It speaks the distribution protocol (manifests by tag and digest, blobs with ranges, tokens), rightly where no fault
says otherwise. A :class:`Fault` changes the right :class:`Answer` to an :class:`Ask`. All of them are plain values, so
that the same faults make the same registry.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self, TypeAlias
from urllib.parse import quote

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from aiodockersave import Digest
from aiodockersave.core.model import OCI_MANIFEST
from tests.support.images import Image, to_json

Kind: TypeAlias = Literal["ping", "token", "manifest", "config", "blob"]
Auth: TypeAlias = Literal["none", "basic", "bearer"]
Ending: TypeAlias = Literal["whole", "close", "reset", "stall", "endless"]

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
QUIET = 10  # looks in a row at which nothing goes on: then nothing does
USER, PASSWORD = "gordon", "correct horse"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
RIGHT_TOKEN = "given-to-anybody"
"""The token of :func:`wants_token`."""
SECRETS = (PASSWORD, BASIC.removeprefix("Basic "), "token-")
"""Secrets, not to be seen where they do not belong: the password, as it is and as a header has it, and any token."""


# ── what is asked, what is answered ──


@dataclass(frozen=True)
class Ask:
    """A request, as it came.

    Attributes:
        kind: What was asked for.
        is_elsewhere: Whether it came to the other host.
        path: With the query.
        headers: All of them, in order, also those that came twice.
        elsewhere: The URL of the host to redirect to.
    """

    kind: Kind
    is_elsewhere: bool
    method: str
    path: str
    headers: CIMultiDictProxy[str]
    body: str
    elsewhere: str

    def __str__(self) -> str:
        return f"{self.method} {self.headers.get('Host')}{self.path} {self.headers.get('Range', '')}"

    def everything(self) -> str:
        """Return all that was sent, to look for secrets in."""
        headers = "".join(f"{name}: {value}\n" for name, value in self.headers.items())
        return f"{self.method} {self.path}\n{headers}\n{self.body}"


@dataclass(frozen=True)
class Answer:
    """An answer that is sent back.

    Attributes:
        body: The bytes that follow the head.
        whole: What ``body`` is a part of, where a part was asked for.
        has_length: Whether there is a ``Content-Length``; without one the body comes in HTTP's chunks.
        sent: So many bytes of the body are sent before the ending; None for all, -1 for not even a status.
        ending: What comes then; ``"endless"`` sends the body again and again.
    """

    status: int = 200
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""
    whole: bytes = b""
    has_length: bool = True
    sent: int | None = None
    ending: Ending = "whole"

    @property
    def is_content(self) -> bool:
        """Whether this is what was asked for, or a part of it."""
        return self.status in (200, 206)

    @property
    def is_part(self) -> bool:
        """Whether this is a part of what was asked for."""
        return self.status == 206

    def saying(self, **headers: str | None) -> Answer:
        """Return it with other headers (``_`` stands for ``-``); None takes one away."""
        changed = self.headers.copy()
        for name, value in headers.items():
            changed.popall(name.replace("_", "-"), None)
            if value is not None:
                changed[name.replace("_", "-")] = value
        return replace(self, headers=changed)

    def part(self, start: int, last: int, total: int) -> Answer:
        """Return a part of the whole, with this ``Content-Range``."""
        answer = replace(self, status=206, body=self.whole[start : last + 1])
        return answer.saying(Content_Range=f"bytes {start}-{last}/{total}")

    def range(self) -> tuple[int, int, int]:
        """Return what ``Content-Range`` says: the first byte, the last, and how many there are."""
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["Content-Range"])
        assert found
        return int(found[1]), int(found[2]), int(found[3])


Change: TypeAlias = Callable[[Ask, Answer], Answer]
Condition: TypeAlias = Callable[[Ask, Answer], bool]


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        name: What, in words.
        change: Makes the wrong answer of the right one.
        when: Which answers it happens to, of those that ``kinds`` allows.
        kinds: The requests that it happens to.
        times: How often it happens; None for always.
        fired: How often it has happened.
    """

    name: str
    change: Change
    when: Condition = lambda _, answer: answer.is_content
    kinds: tuple[Kind, ...] = ("blob",)
    times: int | None = None
    fired: int = 0

    def __str__(self) -> str:
        often = "always" if self.times is None else f"at most {self.times} times"
        return f"{self.name} ({', '.join(self.kinds)}; {often}; seen {self.fired} times)"

    def of(self, *kinds: Kind) -> Fault:
        """Return the same fault for these requests."""
        return replace(self, kinds=kinds)

    def often(self, times: int | None) -> Fault:
        """Return the same fault, happening so many times."""
        return replace(self, times=times)

    def apply(self, ask: Ask, answer: Answer) -> Answer:
        """Return what is answered instead."""
        spent = self.times is not None and self.fired >= self.times
        if spent or ask.kind not in self.kinds or not self.when(ask, answer):
            return answer
        self.fired += 1
        return self.change(ask, answer)


# ── faults of the connection ──


def drop(at: float, ending: Ending = "reset") -> Fault:
    """Break the connection, or fall silent, after this part of the body (0 to 1)."""
    return Fault(
        f"{ending} at {at:.0%}",
        lambda _, answer: replace(answer, sent=int(at * len(answer.body)), ending=ending),
    )


def drop_at_once(ending: Ending = "close") -> Fault:
    """Break the connection, or fall silent, before anything is answered."""
    return Fault(f"{ending} before the status", lambda _, answer: replace(answer, sent=-1, ending=ending))


def endless() -> Fault:
    """Send the body again and again."""
    return Fault("endless", lambda _, answer: replace(answer, has_length=False, ending="endless"))


# ── faults of the answer ──


def refuse(status: int, *, retry_after: str | None = None, code: str = "UNKNOWN") -> Fault:
    """Answer with an error, in the form that the specification has for errors."""
    body = to_json({"errors": [{"code": code, "message": "not today"}]})
    said = Answer(status, CIMultiDict({"Content-Type": "application/json"}), body).saying(
        Retry_After=retry_after
    )
    return Fault(f"status {status}, Retry-After: {retry_after}", lambda *_: said)


def error_page() -> Fault:
    """Answer with a page for people, and status 200."""
    page = b"<!DOCTYPE html><title>Sign in</title>" + b"<p>Welcome to our hotel.</p>" * 30
    said = Answer(200, CIMultiDict({"Content-Type": "text/html"}), page)
    return Fault("a page with status 200", lambda *_: said)


def redirect(location: str, status: int = 307) -> Fault:
    """Send the client to `location`, with ``{elsewhere}`` for the other host's URL and ``{path}`` for what was asked."""
    return Fault(
        f"redirected to {location}",
        lambda ask, _: Answer(status).saying(
            Location=location.format(path=ask.path, elsewhere=ask.elsewhere)
        ),
        when=lambda ask, answer: answer.is_content and not ask.is_elsewhere,
    )


def wants_token(scope: str, *, elsewhere: bool = False) -> tuple[Fault, Fault]:
    """Want a token that anybody gets, for this scope alone: at the registry itself, or at the other host."""

    def challenge(ask: Ask, _: Answer) -> Answer:
        realm = f'Bearer realm="http://{ask.headers.get("Host")}/token",service="s",scope="{scope}"'
        return Answer(401, body=b"{}").saying(WWW_Authenticate=realm)

    def token(ask: Ask, _: Answer) -> Answer:
        return Answer(body=to_json({"token": RIGHT_TOKEN if quote(scope, safe="") in ask.path else "wrong"}))

    def is_there(ask: Ask) -> bool:
        return ask.is_elsewhere == elsewhere

    return (
        Fault(
            f"wants {scope}",
            challenge,
            when=lambda ask, _: is_there(ask) and ask.headers.get("Authorization") != f"Bearer {RIGHT_TOKEN}",
            kinds=("manifest", "config", "blob"),
        ),
        Fault(
            "gives a token for its scope alone", token, when=lambda ask, _: is_there(ask), kinds=("token",)
        ),
    )


def flip(at: float) -> Fault:
    """Change one bit of the body, at this part of it (0 to 1)."""

    def change(_: Ask, answer: Answer) -> Answer:
        body = bytearray(answer.body)
        body[int(at * (len(body) - 1))] ^= 1
        return replace(answer, body=bytes(body))

    return Fault(f"a bit flipped at {at:.0%}", change)


def resize(by: int, *, has_length: bool = True) -> Fault:
    """Send more bytes, or fewer, in an answer that is sound in itself."""

    def change(_: Ask, answer: Answer) -> Answer:
        body = answer.body + bytes(by) if by > 0 else answer.body[:by]
        return replace(answer, body=body, has_length=has_length)

    return Fault(f"{by:+} bytes, {'with' if has_length else 'without'} Content-Length", change)


def no_length() -> Fault:
    """Leave ``Content-Length`` out."""
    return Fault("no Content-Length", lambda _, answer: replace(answer, has_length=False))


def label(coding: str) -> Fault:
    """Call a body encoded that is as it should be, as some proxies do with layers."""
    return Fault(f"labelled {coding}", lambda _, answer: answer.saying(Content_Encoding=coding))


def digest_header(value: str | None) -> Fault:
    """Send another ``Docker-Content-Digest``, or none."""
    return Fault(
        f"Docker-Content-Digest: {value}", lambda _, answer: answer.saying(Docker_Content_Digest=value)
    )


# ── faults of answers to a Range ──


def _in_part(name: str, change: Callable[[Answer], Answer]) -> Fault:
    return Fault(name, lambda _, answer: change(answer), when=lambda _, answer: answer.is_part)


def ignore_range() -> Fault:
    """Send the whole where a part was asked for."""
    return _in_part(
        "Range ignored",
        lambda answer: replace(answer, status=200, body=answer.whole).saying(Content_Range=None),
    )


def crawl(step: float) -> Fault:
    """Send the whole from its start each time, and break off this part of it (0 to 1) behind what was asked for."""

    def change(ask: Ask, answer: Answer) -> Answer:
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", ask.headers.get("Range", "bytes=0-")))
        sent = start + int(step * len(answer.whole)) + 1
        whole = replace(answer, status=200, body=answer.whole).saying(Content_Range=None)
        return whole if sent >= len(whole.body) else replace(whole, sent=sent, ending="close")

    return Fault(f"from the start, {step:.0%} further each time", change)


def start_at(by: int) -> Fault:
    """Begin so many bytes later than asked, or earlier, and say so."""

    def change(answer: Answer) -> Answer:
        start, last, total = answer.range()
        return answer.part(min(max(0, start + by), last), last, total)

    return _in_part(f"begins {by:+} bytes from what was asked", change)


def wrong_part() -> Fault:
    """Send the first bytes for the last ones, and call them the last ones."""
    return _in_part(
        "the wrong part under the right name",
        lambda answer: replace(answer, body=answer.whole[: len(answer.body)]),
    )


def wrong_total(by: int) -> Fault:
    """Say that the whole has another size."""

    def change(answer: Answer) -> Answer:
        start, last, total = answer.range()
        return answer.part(start, last, total + by)

    return _in_part(f"a total of {by:+} bytes", change)


def content_range(value: str | None) -> Fault:
    """Say another ``Content-Range``, or none."""
    return _in_part(f"Content-Range: {value}", lambda answer: answer.saying(Content_Range=value))


def multipart() -> Fault:
    """Answer a range as if several had been asked for."""
    return _in_part(
        "multipart/byteranges",
        lambda answer: replace(answer, body=b"--x\r\n\r\n" + answer.body + b"\r\n--x--").saying(
            Content_Range=None, Content_Type="multipart/byteranges; boundary=x"
        ),
    )


def refuse_range() -> Fault:
    """Answer a range with 416."""
    return _in_part(
        "status 416", lambda answer: Answer(416).saying(Content_Range=f"bytes */{len(answer.whole)}")
    )


# ── the servers ──


class _Host:
    """One address that listens, and what came there.

    Attributes:
        asks: Every request, in the order in which they came.
        speaking: How many of them are being answered.
    """

    def __init__(
        self,
        ip: str,
        answer: Callable[[web.BaseRequest, str], Answer],
        fall_silent: Callable[[], Awaitable[None]],
    ) -> None:
        self.asks: list[Ask] = []
        self.speaking = 0
        self.ip = ip
        self.port = 0
        self.scheme = "http"
        self._answer = answer
        self._fall_silent = fall_silent
        self._runner: web.ServerRunner | None = None

    @property
    def address(self) -> str:
        """``ip:port``."""
        return f"{self.ip}:{self.port}"

    @property
    def url(self) -> str:
        """``scheme://ip:port``."""
        return f"{self.scheme}://{self.address}"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        assert self._runner is not None
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    async def start(self, tls: ssl.SSLContext | None) -> None:
        # A client that leaves ends its handler, which may be waiting for ever.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, 0, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]
        self.scheme = "https" if tls else "http"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.speaking += 1
        try:
            body = (await request.read()).decode()
            answer = self._answer(request, body)
            response = await _send(request, answer)
        finally:
            self.speaking -= 1
        if answer.ending == "stall" and (answer.sent == -1 or request.method != "HEAD"):
            await self._fall_silent()
        return response


async def _send(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    if answer.sent == -1:
        await _end(request, response, answer)
        return response
    if answer.has_length:
        response.content_length = len(answer.body)
    else:
        response.enable_chunked_encoding()
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(answer.body[: answer.sent])
        await _end(request, response, answer)
    return response


async def _end(request: web.BaseRequest, response: web.StreamResponse, answer: Answer) -> None:
    transport = request.transport
    with contextlib.suppress(ConnectionError):  # the client has left
        while answer.ending == "endless":
            await response.write(answer.body)
    if answer.ending == "close" and transport is not None:
        transport.close()
    if answer.ending == "reset" and transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class FaultyRegistry:
    """Serves images, with faults; and a second host to redirect to, with the same blobs and no need for credentials.

    Attributes:
        faults: What goes wrong, in the order in which it is applied.
        auth: What it asks for: nothing, a password, or a token that is given for the password.
        token_uses: After so many requests with one token it is no longer valid; None for never.
        documents: Manifests and indexes by ``name:tag`` and by digest: media type and bytes.
        blobs: Blobs and configs by digest.
        on_silence: Is called when it has fallen silent, once nothing else goes on: who puts a clock forward then makes only
            this silence a long one.
        here: The registry's own host.
        other: The other host.
    """

    def __init__(
        self,
        images: Mapping[str, Image] | None = None,
        faults: Sequence[Fault] = (),
        *,
        auth: Auth = "none",
        token_uses: int | None = None,
        ip: str = HERE,
        elsewhere: str = ELSEWHERE,
    ) -> None:
        self.faults = list(faults)
        self.auth = auth
        self.token_uses = token_uses
        self.documents: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.on_silence: Callable[[], object] | None = None
        self._silences = 0
        self._configs: set[str] = set()
        self._token_uses: dict[str, int] = {}
        self.here = _Host(ip, self._answer_here, self._fall_silent)
        self.other = _Host(elsewhere, self._answer_elsewhere, self._fall_silent)
        for name, image in (images or {}).items():
            self.add(name, image)

    def add(self, name: str, image: Image) -> None:
        """Have an image, under ``repository:tag`` and its digest."""
        self.add_document(name, image.manifest_bytes)
        self._configs.add(str(image.image_id))
        self.blobs[str(image.image_id)] = image.config
        self.blobs |= {str(layer.descriptor.digest): layer.blob for layer in image.layers}

    def add_document(self, name: str, raw: bytes, media_type: str = OCI_MANIFEST) -> Digest:
        """Have a manifest or an index, whatever it is; return its digest."""
        digest = Digest.of(raw)
        self.documents[name] = self.documents[str(digest)] = media_type, raw
        return digest

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen."""
        await self.here.start(tls)
        await self.other.start(tls)

    async def stop(self) -> None:
        """End, with all connections."""
        await self.here.stop()
        await self.other.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """``ip:port``, as references have it."""
        return self.here.address

    @property
    def asks(self) -> list[Ask]:
        """Every request that came here."""
        return self.here.asks

    @property
    def connections(self) -> int:
        """The number of open connections, at both hosts."""
        return self.here.connections + self.other.connections

    async def _fall_silent(self) -> None:
        """Say nothing, until the client leaves."""
        while self.on_silence is not None:
            before, quiet = self._silences, 0
            while quiet < QUIET and before == self._silences:
                await asyncio.sleep(0.005)  # what was sent is read meanwhile
                quiet = quiet + 1 if self.here.speaking + self.other.speaking == 0 else 0
            if before == self._silences:  # else another one's was long just now, and so was this
                self._silences += 1
                self.on_silence()
        await asyncio.Event().wait()

    # ── answers ──

    def _classify(self, path: str) -> Kind:
        if path == "/token":
            return "token"
        if "/manifests/" in path:
            return "manifest"
        if "/blobs/" in path:
            return "config" if path.rpartition("/")[2] in self._configs else "blob"
        return "ping"

    def _answer_here(self, request: web.BaseRequest, body: str) -> Answer:
        ask = self._note(self.here, request, body)
        answer = self._with_faults(ask, self._refusal(ask) or self._right(ask))
        self._count_use(ask, answer)
        return answer

    def _answer_elsewhere(self, request: web.BaseRequest, body: str) -> Answer:
        ask = self._note(self.other, request, body)
        return self._with_faults(ask, self._right(ask))

    def _note(self, host: _Host, request: web.BaseRequest, body: str) -> Ask:
        kind = self._classify(request.path)
        elsewhere = host is self.other
        ask = Ask(kind, elsewhere, request.method, request.path_qs, request.headers, body, self.other.url)
        host.asks.append(ask)
        return ask

    def _with_faults(self, ask: Ask, answer: Answer) -> Answer:
        for fault in self.faults:
            answer = fault.apply(ask, answer)
        return answer

    def _right(self, ask: Ask) -> Answer:
        path = ask.path.partition("?")[0]
        if ask.kind == "ping":
            return Answer(body=b"{}").saying(Content_Type="application/json")
        if ask.kind == "token":
            return self._token(ask)
        if ask.kind == "manifest":
            return self._manifest(path)
        return self._blob(path, ask.headers.get("Range"))

    def _manifest(self, path: str) -> Answer:
        name, _, reference = path.removeprefix("/v2/").partition("/manifests/")
        found = self.documents.get(f"{name}:{reference}") or self.documents.get(reference)
        if found is None:
            return _error(404, "MANIFEST_UNKNOWN")
        media_type, raw = found
        answer = Answer(body=raw)
        return answer.saying(Content_Type=media_type, Docker_Content_Digest=str(Digest.of(raw)))

    def _blob(self, path: str, asked: str | None) -> Answer:
        digest = path.rpartition("/")[2]
        blob = self.blobs.get(digest)
        if blob is None:
            return _error(404, "BLOB_UNKNOWN")
        whole = Answer(body=blob, whole=blob).saying(
            Content_Type="application/octet-stream", Docker_Content_Digest=digest
        )
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if wanted is None:
            return whole
        start = int(wanted[1])
        last = min(int(wanted[2] or len(blob)), len(blob) - 1)
        if start > last:
            return Answer(416).saying(Content_Range=f"bytes */{len(blob)}")
        return whole.part(start, last, len(blob))

    # ── credentials ──

    def _refusal(self, ask: Ask) -> Answer | None:
        given = ask.headers.get("Authorization", "")
        if self.auth == "none" or ask.kind == "token":
            return None
        if self.auth == "basic":
            challenge = 'Basic realm="faulty"'
            return None if given == BASIC else _error(401, "UNAUTHORIZED", WWW_Authenticate=challenge)
        uses = self._token_uses.get(given.removeprefix("Bearer "))
        if uses is not None and (self.token_uses is None or uses < self.token_uses):
            return None
        name = ask.path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0]
        realm = f"{self.here.scheme}://{ask.headers.get('Host')}/token"
        challenge = f'Bearer realm="{realm}",service="faulty",scope="repository:{name}:pull"'
        if given:
            challenge += ',error="invalid_token"'
        return _error(401, "UNAUTHORIZED", WWW_Authenticate=challenge)

    def _count_use(self, ask: Ask, answer: Answer) -> None:
        token = ask.headers.get("Authorization", "").removeprefix("Bearer ")
        # Where nothing at all is answered, aiohttp's client sends the same request again by itself.
        if token in self._token_uses and answer.sent != -1:
            self._token_uses[token] += 1

    def _token(self, ask: Ask) -> Answer:
        if ask.headers.get("Authorization") != BASIC:
            return _error(401, "UNAUTHORIZED")
        token = f"token-{len(self._token_uses)}"
        self._token_uses[token] = 0
        return Answer(body=to_json({"token": token, "expires_in": 300})).saying(
            Content_Type="application/json"
        )


def _error(status: int, code: str, **headers: str) -> Answer:
    body = to_json({"errors": [{"code": code, "message": code.lower()}]})
    return Answer(status, body=body).saying(Content_Type="application/json", **headers)
