"""Read the headers and small bodies of registries and token servers, and turn their faults into errors of ours.

Nothing here trusts its input: a registry's text may hold anything, also the secrets that were sent to the registry.

This is the only module that knows aiohttp's exceptions. Errors of ours replace them and are not chained to them, since
an exception of aiohttp's may hold a whole URL, whose query gives access. :func:`discretion` removes the secrets from our
errors, in every text that they quote.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from aiodockersave.core.errors import (
    AuthenticationError,
    DockerSaveError,
    MissingDependencyError,
    RateLimitedError,
    RegistryError,
)
from aiodockersave.core.text import NO_SECRETS, Secrets, shown, shown_url

from .addresses import AddressRefusedError
from .timeouts import Timeouts

__all__ = [
    "ContentRange",
    "ErrorBody",
    "InterruptedTransfer",
    "content_range",
    "discretion",
    "explain",
    "explain_status",
    "fault_kinds",
    "is_tls_refusal",
    "load_aiohttp",
    "media_type",
    "origin",
    "parse_error_body",
    "redirect_target",
    "retry_after",
]

_MAX_CODES = 5
"""Error codes that an exception carries; registries send one."""
_MAX_ENTRIES = 16
"""Entries of an error's body that are read; registries send one."""
_MAX_PARSED = 64 << 10
"""Bytes of JSON that are parsed in one call, which lets no other thread run; in the worst case these take 3 ms."""
_ENTRIES = re.compile(r'[ \t\n\r]*+\{[ \t\n\r]*+"errors"[ \t\n\r]*+:[ \t\n\r]*+\[[ \t\n\r]*+')
_COMMA = re.compile(r"[ \t\n\r]*+,[ \t\n\r]*+")
_DECODER = json.JSONDecoder()
_MAX_DIGITS = 19
"""Digits of a size or an offset: as many as a number of 63 bits has."""

# ── error bodies ──


class ErrorBody(NamedTuple):
    """The content of an error's body (OCI distribution-spec, § Error Codes).

    Attributes:
        codes: The codes, such as ``MANIFEST_UNKNOWN``, at most 5.
        message: The text in one line, cut and without secrets; empty where there is none.
    """

    codes: tuple[str, ...]
    message: str


def parse_error_body(body: bytes, secrets: Secrets | Iterable[str] = NO_SECRETS) -> ErrorBody:
    """Read the body of an error; the result is empty for any other text, such as a proxy's page.

    The work is bounded whatever the body is. Of a body that is larger than a registry's errors are, only the entries at
    its start are read, and of many entries only the first 16.
    """
    try:
        document = json.loads(body) if len(body) <= _MAX_PARSED else _first_entries(body[:_MAX_PARSED])
    except (ValueError, RecursionError):
        return ErrorBody((), "")
    secrets = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    errors = _list(document.get("errors")) if isinstance(document, dict) else []
    entries = [entry for entry in errors[:_MAX_ENTRIES] if isinstance(entry, dict)]
    codes = [
        shown(code, secrets=secrets, limit=40)
        for entry in entries
        if isinstance(code := entry.get("code"), str)
    ]
    texts = [_error_text(entry) for entry in entries]
    if not entries and isinstance(document, dict):
        # The fields of token servers: RFC 6749 § 5.2, and Docker Hub's own.
        texts = [_text(document, name) for name in ("error_description", "error", "details", "message")][:4]
        texts = [text for text in texts if text][:1]
    return ErrorBody(tuple(codes[:_MAX_CODES]), shown("; ".join(filter(None, texts)), secrets=secrets))


def _first_entries(start: bytes) -> Mapping[str, object]:
    """Read the entries that are complete at the start of a body."""
    text = start.decode("utf-8", "replace")
    found = _ENTRIES.match(text)
    entries: list[object] = []
    while found and len(entries) < _MAX_ENTRIES:
        try:
            entry, at = _DECODER.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            break
        entries.append(entry)
        found = _COMMA.match(text, at)
    return {"errors": entries}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _text(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _error_text(entry: Mapping[str, object]) -> str:
    code, message = _text(entry, "code"), _text(entry, "message")
    return f"{message} ({code})" if code and message else message or code


# ── headers ──


def number(text: str) -> int | None:
    """Read a size or an offset; None for a text that is not 1 to 19 ASCII digits."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else None


def media_type(header: str | None) -> str:
    """Return the media type of a ``Content-Type``, without parameters, in lower case; empty where there is no header."""
    return (header or "").partition(";")[0].strip().lower()


class ContentRange(NamedTuple):
    """The bytes of a blob that an answer holds: ``first`` to ``last``, both included, of ``total``."""

    first: int
    last: int
    total: int


def content_range(values: Sequence[str]) -> ContentRange | None:
    """Read the ``Content-Range`` of a 206 (RFC 9110 § 14.4); None unless there is exactly one that is complete and possible."""
    if len(values) != 1:
        return None
    unit, _, rest = values[0].strip().partition(" ")
    span, slash, total = rest.strip().partition("/")
    first, dash, last = span.partition("-")
    numbers = [number(part) for part in (first, last, total)]
    if unit.lower() != "bytes" or not slash or not dash or None in numbers:
        return None
    found = ContentRange(*(value or 0 for value in numbers))
    return found if found.first <= found.last < found.total else None


def unsatisfied_total(values: Sequence[str]) -> int | None:
    """Read the size out of the ``Content-Range`` of a 416, ``bytes */SIZE``; None where there is none."""
    if len(values) != 1 or not values[0].startswith("bytes */"):
        return None
    return number(values[0].removeprefix("bytes */").strip())


def retry_after(header: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` (RFC 9110 § 10.2.3).

    Args:
        header: Seconds, or a date.
        now: The time, in seconds since the epoch.

    Returns:
        Seconds from now, not negative; None where nothing can be read.
    """
    if header is None:
        return None
    seconds = number(header.strip())
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


# ── locations ──

Origin = tuple[str, str, int]
"""Scheme, host in lower case, port. Credentials belong to an origin."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_][a-z0-9._-]*|[0-9a-f]*:[0-9a-f:.]*(?:%(?:25)?[a-z0-9._~-]+)?")
_CLEAN = re.compile("[!-~]+")


def origin(url: str) -> Origin | None:
    """Return the origin of an absolute URL; None for one that is not HTTP's, or names no proper host.

    None also for a URL with user information, since a registry must not choose the login, and for one with characters
    that no request line may have.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    host = (parts.hostname or "").lower()
    if parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or not _HOST.fullmatch(host) or port == 0:
        return None
    if not _CLEAN.fullmatch(url):
        return None
    return parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme]


def redirect_target(url: str, location: str | None) -> str | None:
    """Return the absolute URL that a redirect from ``url`` leads to; None where ``location`` is not a valid target.

    Percent-encoded text stays as it is, since signatures cover it. Characters that a request must not have are encoded.
    """
    if not location:
        return None
    if not _CLEAN.fullmatch(location):
        location = _encode(location)
    try:
        target = urljoin(url, location).partition("#")[0]
    except ValueError:
        return None
    return target if origin(target) else None


def _encode(text: str) -> str:
    data = text.strip().encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E else f"%{byte:02X}" for byte in data)


# ── faults ──

_PHRASES: Final = {
    401: "access is not granted",
    403: "access is denied",
    404: "there is no such thing",
    416: "there are no such bytes",
    429: "there were too many requests",
}

# A resolver's codes for a name that does not exist; after any other, the next attempt may succeed.
_NO_SUCH_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class InterruptedTransfer(Exception):  # noqa: N818 - it does not leave this room
    """A request or its answer broke off; another attempt may help.

    Attributes:
        error: The fault, as an error of ours.
        retry_after: The wait in seconds that the registry asks for, or None.
        is_final: Whether ``error`` itself is raised when the attempts are used up, since it says more than a
            ``TransferError``.
    """

    def __init__(
        self, error: DockerSaveError, *, retry_after: float | None = None, is_final: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after
        self.is_final = is_final or isinstance(error, RateLimitedError)


def fault_kinds() -> tuple[type[Exception], ...]:
    """Return the exceptions that a request, or reading an answer, may raise: aiohttp's and the system's.

    Where aiohttp has no compiled parser, a fault in the framing of a body is an ``HttpProcessingError``.
    """
    aiohttp = load_aiohttp()
    return (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, ValueError)


def explain(
    exc: Exception, *, what: str, url: str, timeouts: Timeouts
) -> InterruptedTransfer | DockerSaveError:
    """Turn a fault into the exception to raise: an interruption if another attempt may help, else an error."""
    lasting = _lasting_reason(exc)
    reason = lasting or _passing_reason(exc, timeouts)
    error = RegistryError(what, reason, url=shown_url(url))
    return error if lasting else InterruptedTransfer(error)


_ACCESS = frozenset({401, 403})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_OWN_LIMIT = 520  # and above: content delivery networks report the servers behind them by such statuses


def refusal(login: str) -> str:
    """Return the reason of a refusal; ``login`` is the place that the credentials come from, or empty."""
    return f"the credentials from {login} are refused" if login else "the credentials are refused"


def explain_status(
    status: int,
    said: ErrorBody,
    *,
    what: str,
    url: str,
    retry_after: float | None,
    login: str | None = None,
) -> InterruptedTransfer | DockerSaveError:
    """Turn a status of failure into the exception to raise, as :func:`explain` does.

    ``login`` is the place that the credentials in the request come from; None for a request without credentials.
    """
    phrase = _PHRASES.get(status, "this answer was not expected")
    reason = f"{said.message or phrase} (status {status})"
    if status in _ACCESS and login is not None:  # some token servers refuse a password with 403
        reason = f"{refusal(login)}: {reason}"
    elif status == 401:
        reason = f"{said.message or phrase}; log in, or check the name (status {status})"
    place = shown_url(url)
    if status == 429:
        limited = RateLimitedError(what, reason, url=place, codes=said.codes, retry_after=retry_after)
        return InterruptedTransfer(limited, retry_after=retry_after)
    kind = AuthenticationError if status in _ACCESS else RegistryError
    error = kind(what, reason, url=place, status=status, codes=said.codes)
    is_passing = status in _PASSING or status >= _OWN_LIMIT
    return InterruptedTransfer(error, retry_after=retry_after) if is_passing else error


def is_tls_refusal(exc: Exception) -> bool:
    """Tell whether the other side does not speak TLS, rather than speaking it with a fault."""
    # An alert is TLS; an answer of HTTP is "wrong version number". A connection that breaks off tells neither.
    return isinstance(exc, load_aiohttp().ClientConnectorSSLError) and "ALERT" not in (
        getattr(exc.os_error, "reason", None) or ""
    )


def _lasting_reason(exc: Exception) -> str:
    """Return the reason why the same request will fail again; empty if another attempt may help."""
    aiohttp = load_aiohttp()
    if isinstance(exc, aiohttp.ClientConnectorError):
        return _lasting_connector_reason(exc)
    if isinstance(exc, AddressRefusedError):
        return str(exc.strerror)
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return "" if exc.status >= 500 else f"the proxy refuses with status {exc.status}"
    if isinstance(exc, aiohttp.ClientResponseError):
        return "it does not answer in HTTP, or with headers that are too long"
    if isinstance(exc, ValueError):  # aiohttp's InvalidURL is one too
        return "this address, or that of the proxy, cannot be used"
    return _no_such_name(exc)


def _lasting_connector_reason(exc: Any) -> str:
    aiohttp = load_aiohttp()
    cause = exc.os_error
    if isinstance(cause, AddressRefusedError):
        return str(cause.strerror)
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not valid: {shown(getattr(cause, 'verify_message', '') or str(cause))}"
    if isinstance(exc, aiohttp.ClientConnectorSSLError):
        return f"TLS failed: {shown(getattr(cause, 'reason', None) or str(cause))}"
    return _no_such_name(cause)


def _no_such_name(exc: Exception) -> str:
    is_final = isinstance(exc, socket.gaierror) and exc.errno in _NO_SUCH_NAME
    return "there is no such host" if is_final else ""


def _passing_reason(exc: Exception, timeouts: Timeouts) -> str:
    aiohttp = load_aiohttp()
    if isinstance(exc, aiohttp.SocketTimeoutError) or (isinstance(exc, TimeoutError) and not exc.args):
        return f"nothing came for {timeouts.silence:g} s"
    if isinstance(exc, aiohttp.ServerTimeoutError):
        return f"no connection within {timeouts.connect:g} s"
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return f"the proxy fails with status {exc.status}"
    if isinstance(exc, aiohttp.ClientConnectorError):
        party = "the proxy" if isinstance(exc, aiohttp.ClientProxyConnectionError) else "it"
        return f"{party} cannot be reached: {_system_reason(exc.os_error)}"
    if isinstance(exc, OSError) and exc.strerror:
        event = "the connection broke" if isinstance(exc, aiohttp.ClientError) else "it cannot be reached"
        return f"{event}: {_system_reason(exc)}"
    return "the connection was closed before the answer was whole"


def _system_reason(exc: Any) -> str:
    # asyncio's error for a connection that is closed during the handshake has no text.
    silent = "the connection was closed" if isinstance(exc, ConnectionError) else type(exc).__name__
    return shown(exc.strerror or str(exc) or silent)


def load_aiohttp() -> Any:
    """Import aiohttp, which takes about 150 ms the first time.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import aiohttp  # noqa: PLC0415 - see above
    except ImportError:
        raise MissingDependencyError("a registry as a source", "registry") from None
    return aiohttp


# ── secrets ──


@contextlib.contextmanager
def discretion(secrets: Secrets, *own: str) -> Iterator[None]:
    """Hide secrets in the errors of ours that leave the block: in messages, attributes, notes and causes.

    The block is put around every place where a registry's errors leave this package, or are logged.

    Args:
        secrets: The texts that were sent in confidence.
        own: Texts in messages that are the user's and not the registry's: the name of the image, and URLs made of it.
            In these nothing is hidden, since a gap in them would tell the secret.
    """
    try:
        yield
    except (DockerSaveError, InterruptedTransfer) as exc:
        if secrets:
            _hide(exc, secrets, own)
        raise


def _hide(exc: BaseException, secrets: Secrets, own: tuple[str, ...]) -> None:
    def hidden(value: object) -> Any:
        if isinstance(value, str):
            return secrets.hide(value, own=own)
        if (
            type(value) is tuple
        ):  # an item that is not a text, such as a platform, is left out if it shows a secret
            return tuple(
                hidden(each) for each in value if isinstance(each, str) or hidden(str(each)) == str(each)
            )
        return list(map(hidden, value)) if type(value) is list else value

    seen: list[BaseException] = []
    waiting: list[object] = [exc]
    while waiting:
        each = waiting.pop()
        if isinstance(each, DockerSaveError | InterruptedTransfer) and each not in seen:
            seen.append(each)
            each.args = hidden(each.args)
            for name, value in vars(each).items():
                setattr(each, name, hidden(value))
            waiting += [each.__cause__, each.__context__, getattr(each, "error", None)]
