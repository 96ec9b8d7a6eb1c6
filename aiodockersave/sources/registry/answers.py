"""The answers of registries and token servers, read and made fit to be shown: pure functions of headers and small bodies.

Nothing here believes what it reads. Text of a registry may hold anything, also what was sent to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from aiodockersave.core.text import NO_SECRETS, Secrets, shown

__all__ = [
    "ContentRange",
    "ErrorBody",
    "content_range",
    "media_type",
    "origin",
    "parse_error_body",
    "redirect_target",
    "retry_after",
]

_MAX_CODES = 5
_MAX_ENTRIES = 16
_MAX_PARSED = 64 << 10
"""Bytes of JSON that are read at once. It is one call that lets no other thread run: of the worst, these take 3 ms."""
_ENTRIES = re.compile(r'[ \t\n\r]*+\{[ \t\n\r]*+"errors"[ \t\n\r]*+:[ \t\n\r]*+\[[ \t\n\r]*+')
_COMMA = re.compile(r"[ \t\n\r]*+,[ \t\n\r]*+")
_DECODER = json.JSONDecoder()
_MAX_DIGITS = 19  # of a 63-bit number: more are no size or offset

# ── error bodies ──


class ErrorBody(NamedTuple):
    """The content of an error's body (OCI distribution-spec, § Error Codes).

    Attributes:
        codes: Its codes, such as ``MANIFEST_UNKNOWN``.
        message: Its text, fit for a message; empty where there is none.
    """

    codes: tuple[str, ...]
    message: str


def parse_error_body(body: bytes, secrets: Secrets | Iterable[str] = NO_SECRETS) -> ErrorBody:
    """Read the body of an error; what is no such JSON, a proxy's page say, says nothing.

    The work is bounded, whatever the body is: of one that is larger than any registry's error, only the entries that it
    begins with are read, and of many entries only the first.
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
        # What token servers say: RFC 6749 § 5.2, or Docker Hub's own.
        texts = [_text(document, name) for name in ("error_description", "error", "details", "message")][:4]
        texts = [text for text in texts if text][:1]
    return ErrorBody(tuple(codes[:_MAX_CODES]), shown("; ".join(filter(None, texts)), secrets=secrets))


def _first_entries(start: bytes) -> Mapping[str, object]:
    """Read the entries that stand whole at the start of a body."""
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
    """Read a size or offset: ASCII digits only, and not more than any 63-bit number has."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else None


def media_type(header: str | None) -> str:
    """Return the type that a Content-Type names, without its parameters, in lower case."""
    return (header or "").partition(";")[0].strip().lower()


class ContentRange(NamedTuple):
    """The bytes of a blob that an answer holds: ``first`` to ``last``, both included, of ``total``."""

    first: int
    last: int
    total: int


def content_range(values: Sequence[str]) -> ContentRange | None:
    """Read the ``Content-Range`` of a part (RFC 9110 § 14.4); None if it is not exactly one, whole and possible."""
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
"""Scheme, host in lower case, port: what credentials belong to."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_][a-z0-9._-]*|[0-9a-f]*:[0-9a-f:.]*(?:%(?:25)?[a-z0-9._~-]+)?")
_CLEAN = re.compile("[!-~]+")


def origin(url: str) -> Origin | None:
    """Return the origin of an absolute URL; None for one that is not HTTP's, or names no proper host.

    A URL with user information has none: what it would log in with is not ours to send. Nor has one with characters that
    no request line may have.
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
    """Return the absolute URL that a redirect from ``url`` leads to; None where it leads nowhere.

    What is percent-encoded stays as it is, since signatures cover it. What must not stand in a request is encoded.
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
