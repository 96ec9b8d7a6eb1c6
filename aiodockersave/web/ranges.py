"""Decide on the answer to a request for an archive: status, header fields, and range of bytes.

:func:`evaluate` decides, in the order of RFC 9110 § 13.2.2::

    If-Match               no match: 412
    If-Unmodified-Since    ignored, as RFC 9110 § 13.1.4 demands if no modification date is known
    If-None-Match          a match: 304 for GET and HEAD, 412 for others
    If-Modified-Since      ignored, for the same reason
    Range, If-Range        GET only; 206, 416, or Range is ignored

A server may always ignore ``Range`` (RFC 9110 § 14.2). This one ignores a field that is longer than 1,024
bytes, has more than 16 elements, is malformed, or asks for more than one run of bytes. There is no multipart
answer, so no request can cost more bytes than the archive has. ``If-Range`` matches only the archive's strong
ETag, byte for byte, and never a date.

The work is linear in the length of the fields: there is no regular expression, and ``int()`` gets only ASCII
digits, at most 19. This module does no I/O and knows no framework.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Answer", "ByteRange", "evaluate"]

MAX_FIELD_SIZE = 1024
"""Characters that a ``Range`` may have: 16 elements of two positions with 19 digits take 640."""
MAX_ELEMENTS = 16
"""Elements of a ``Range``, empty ones too: downloaders ask for one, and more count only if they touch."""
MAX_DIGITS = 19
"""Digits that a position may have: as many as 2**63, which no archive reaches."""

_OWS = " \t"
_NO_REPRESENTATION = frozenset({"CONNECT", "OPTIONS", "TRACE"})
"""Methods that select no representation, so that preconditions are ignored (RFC 9110 § 13.2.1)."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A half-open run of bytes.

    Attributes:
        start: The position of the first byte.
        stop: The position after the last byte; None for the end of an archive of unknown size.
    """

    start: int
    stop: int | None

    @property
    def size(self) -> int | None:
        """The number of bytes; None if it is not known."""
        return None if self.stop is None else self.stop - self.start


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to give.

    Attributes:
        status: 200, 206, 304, 412 or 416.
        headers: The fields that follow from size, ETag and range, including ``Content-Length``.
        body: The bytes to send; None for no body.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: ByteRange | None

    @property
    def is_archive(self) -> bool:
        """Whether the fields describe the archive: the answer sends all or part of it, or would for a GET."""
        return self.status in {200, 206}


def evaluate(
    method: str, headers: Iterable[tuple[str, str]], *, size: int | None = None, etag: str | None = None
) -> Answer:
    """Decide on the answer to a request.

    Args:
        method: The method as received; methods are case-sensitive.
        headers: All fields of the request, as name and value, one item for each line.
        size: The size of the archive in bytes; None if unknown: then only the whole archive can be sent.
        etag: The strong ETag of the archive, without quotes; None if it has none.
    """
    request = _Fields(headers)
    tag = None if etag is None else f'"{etag}"'
    validator = () if tag is None else (("ETag", tag),)
    failed = _failed_precondition(method, request, tag)
    if failed is not None:
        return Answer(failed, validator if failed == 304 else (*validator, ("Content-Length", "0")), None)
    if size is None:
        return Answer(200, (*validator, ("Accept-Ranges", "none")), _body(method, ByteRange(0, None)))
    fields = (*validator, ("Accept-Ranges", "bytes"))
    ranges = _asked_ranges(method, request, tag, size)
    if ranges is not None and not ranges:
        content_range = ("Content-Range", f"bytes */{size}")
        return Answer(416, (*fields, content_range, ("Content-Length", "0")), None)
    # The last bytes of an empty archive ("-5" of 0) are satisfiable, but no Content-Range can express them.
    if ranges and size and len(joined := _join(ranges)) == 1:
        return _partial(*joined[0], size, fields)
    return Answer(200, (*fields, ("Content-Length", str(size))), _body(method, ByteRange(0, size)))


def _failed_precondition(method: str, request: _Fields, tag: str | None) -> int | None:
    """Return the status for the first precondition that fails; None if none fails."""
    if method in _NO_REPRESENTATION:
        return None
    if_match = request.joined("if-match")
    if if_match is not None and not _matches(if_match, tag, strong=True):
        return 412
    if_none_match = request.joined("if-none-match")
    if if_none_match is not None and _matches(if_none_match, tag, strong=False):
        return 304 if method in {"GET", "HEAD"} else 412
    return None


def _asked_ranges(method: str, request: _Fields, tag: str | None, size: int) -> list[tuple[int, int]] | None:
    """Return the satisfiable ranges that the request asks for; None if it asks for the whole archive."""
    field = request.joined("range")
    if field is None or method != "GET":
        return None
    if_range = request.joined("if-range")
    if if_range is not None and if_range != tag:
        return None
    return _parse_ranges(field, size)


def _body(method: str, whole: ByteRange) -> ByteRange | None:
    return None if method == "HEAD" else whole


def _partial(start: int, stop: int, size: int, fields: tuple[tuple[str, str], ...]) -> Answer:
    content_range = ("Content-Range", f"bytes {start}-{stop - 1}/{size}")
    return Answer(
        206, (*fields, content_range, ("Content-Length", str(stop - start))), ByteRange(start, stop)
    )


class _Fields:
    """The fields of a request that matter for the answer, by name."""

    _NAMES = frozenset({"if-match", "if-none-match", "if-range", "range"})

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in headers:
            if (lowered := name.lower()) in self._NAMES:
                self._values.setdefault(lowered, []).append(value)

    def joined(self, name: str) -> str | None:
        """Return the value of a field, its lines joined as RFC 9110 § 5.3 says; None if the request lacks it.

        ``Range`` and ``If-Range`` may occur only once. Joined, two of them are malformed or match nothing.
        """
        values = self._values.get(name)
        return None if values is None else ", ".join(values)


# ── entity tags: RFC 9110 § 8.8.3, 13.1.1, 13.1.2 ──


def _matches(field: str, tag: str | None, *, strong: bool) -> bool:
    """Return whether ``If-Match`` or ``If-None-Match`` lists ``tag``; ``*`` matches any tag, and None."""
    if [element for part in field.split(",") if (element := part.strip(_OWS))] == ["*"]:
        return True
    tags = _parse_tags(field)
    return tag in (tags if strong else [listed.removeprefix("W/") for listed in tags])


def _parse_tags(field: str) -> list[str]:
    """Return the entity tags of a list, with quotes and ``W/``; an empty list if any part is malformed."""
    tags: list[str] = []
    position = 0
    is_separated = True
    while position < len(field):
        if field[position] in ", \t":
            is_separated |= field[position] == ","
            position += 1
            continue
        opening = position + 2 * field.startswith("W/", position)
        closing = field.find('"', opening + 1)
        if not is_separated or not field.startswith('"', opening) or closing < 0:
            return []
        if not all(char > " " and char != "\x7f" for char in field[opening:closing]):
            return []
        tags.append(field[position : closing + 1])
        position = closing + 1
        is_separated = False
    return tags


# ── ranges: RFC 9110 § 14.1.2, 14.2 ──


def _parse_ranges(field: str, size: int) -> list[tuple[int, int]] | None:
    """Return the satisfiable ranges, half-open, in the request's order; None if the field must be ignored."""
    if len(field) > MAX_FIELD_SIZE:
        return None
    unit, separator, listed = field.strip(_OWS).partition("=")
    elements = listed.split(",", MAX_ELEMENTS)
    if not separator or unit.lower() != "bytes" or len(elements) > MAX_ELEMENTS:
        return None
    specs = [spec for element in elements if (spec := element.strip(_OWS))]
    ranges = [_parse_range(spec, size) for spec in specs]
    if not specs or None in ranges:
        return None
    return [each for each in ranges if each]


def _parse_range(spec: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """Return one range, half-open and clamped; empty if the archive has no such bytes, None if malformed."""
    first, separator, last = spec.partition("-")
    if not separator or not all(_is_position(text) for text in (first, last) if text) or not (first or last):
        return None
    if not first:
        length = int(last)
        return (max(0, size - length), size) if length else ()
    if last and int(last) < int(first):
        return None
    start = int(first)
    stop = min(size, int(last) + 1) if last else size
    return (start, stop) if start < size else ()


def _is_position(text: str) -> bool:
    # isdigit() alone accepts "１２" and "²", and int() alone accepts "1_0", " 7 " and "+5".
    return len(text) <= MAX_DIGITS and text.isascii() and text.isdigit()


def _join(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that overlap or touch."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined
