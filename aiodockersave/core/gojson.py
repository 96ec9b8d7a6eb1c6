"""Read and write JSON as Go's ``encoding/json`` does, where bytes depend on it.

The legacy layer IDs of a docker archive are digests of JSON that Go writes, and that JSON holds parts of the
image config as they stand there. So there are two ways to read: :func:`raw_object` keeps the tokens of a
top-level object (numbers verbatim, escapes and invalid UTF-8 as they are), :func:`parse` gives values. What
:func:`encode` gets as ``bytes`` is such a token and is written as it is.

What ``encoding/json`` refuses is refused: a byte order mark, control characters inside strings, ``NaN``,
anything after the document, nesting deeper than 10,000. CPython gives up on deep nesting on its own account
before that (3.11 near 1,000 levels); this is reported in the same way.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from .errors import InvalidDocumentError
from .text import quoted

__all__ = ["Raw", "Struct", "Value", "encode", "fold", "parse", "raw_object"]

_MAX_DEPTH = 10_000
"""Levels of nesting that ``encoding/json`` reads (its ``maxNestingDepth``)."""

_MAX_DIGITS = 40
"""Characters of an integer that is read as ``int``: more than any 64-bit number has, and far below the
limit at which ``int()`` raises (4,300)."""

_SPACE = re.compile(r"[ \t\n\r]*")
# Possessive, and content with an open end: without either a hostile string costs memory or quadratic time.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_GAPS = re.compile(rf"({_STRING})|[ \t\n\r]+")
_BRACKETS = re.compile(rf"{_STRING}|([\[{{])|([\]}}])")
_SURROGATES = re.compile("[\ud800-\udfff]")
# The characters that become a letter of ASCII: its upper case, and two of Unicode that have no other lower case.
_FOLDED = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)} | {0x17F: "s", 0x212A: "k"}
_HTML = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_ESCAPES = (
    {code: f"\\u{code:04x}" for code in range(0x20)}
    | {ord(char): f"\\{letter}" for char, letter in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)}
    | _HTML
)


Raw: TypeAlias = bytes
"""A token that is JSON already; :func:`encode` writes it as it is."""


@dataclass(frozen=True, slots=True)
class Struct:
    """A JSON object whose members keep their order, as the fields of a Go struct do."""

    fields: Sequence[tuple[str, Value]]


Value: TypeAlias = "str | Raw | Struct | Mapping[str, Value] | Sequence[Value] | None"


# ── writing ──


def encode(value: Value) -> bytes:
    """Encode as ``json.Marshal`` does: no spaces, no newline at the end, ``<``, ``>`` and ``&`` escaped.

    Args:
        value: Text, a mapping (written in the order of its keys' UTF-8 bytes, as a Go map is), a
            :class:`Struct` (written in its own order), a sequence, None, or ``bytes``: a token that is
            JSON already and is written as it is.

    Raises:
        TypeError: For any other type, numbers included: the documents that are written have none.
    """
    if value is None:
        return b"null"
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _encode_text(value)
    if isinstance(value, Struct):
        return _encode_members(value.fields)
    if isinstance(value, Mapping):
        # Without lone surrogates the order of code points is the order of UTF-8 bytes.
        return _encode_members(sorted((_valid(key), item) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return b"[" + b",".join(encode(item) for item in value) + b"]"
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _encode_members(members: Sequence[tuple[str, Value]]) -> bytes:
    return b"{" + b",".join(_encode_text(name) + b":" + encode(value) for name, value in members) + b"}"


def _encode_text(text: str) -> bytes:
    return f'"{_valid(text).translate(_ESCAPES)}"'.encode()


def _valid(text: str) -> str:
    """Replace lone surrogates, which Go strings cannot hold, with U+FFFD as Go does when it reads them."""
    return _SURROGATES.sub("\ufffd", text)


# ── reading tokens ──


def raw_object(data: bytes, media_type: str) -> dict[str, Raw] | None:
    """Split an object into its members, the values as Go's ``json.RawMessage`` writes them again.

    White space outside of strings is gone, ``<``, ``>``, ``&``, U+2028 and U+2029 are escaped; every other
    byte is as it was. Names are unescaped; where one stands twice, the last counts.

    Args:
        data: The document.
        media_type: What it is read as, for the error.

    Returns:
        Name to token, or None where the document is ``null``.

    Raises:
        InvalidDocumentError: ``encoding/json`` would not read this into a map.
    """
    try:
        text = data.decode("utf-8", "surrogateescape")
        _check_depth(text)
        members = _read_members(text)
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError(media_type, _reason(error)) from None
    return None if members is None else {name: _compact(token) for name, token in members.items()}


def _read_members(text: str) -> dict[str, str] | None:
    at = _skip_space(text, 0)
    if text.startswith("null", at):
        _expect_end(text, at + 4)
        return None
    members: dict[str, str] = {}
    at = _skip_space(text, _expect(text, at, "{"))
    if text.startswith("}", at):
        _expect_end(text, at + 1)
        return members
    while True:
        at = _read_member(text, at, members)
        if not text.startswith(",", at):
            break
        at = _skip_space(text, at + 1)
    _expect_end(text, _expect(text, at, "}"))
    return members


def _read_member(text: str, at: int, members: dict[str, str]) -> int:
    """Read ``"name": value``; return where the comma or brace after it stands."""
    _expect(text, at, '"')
    name, at = _TOKENS.raw_decode(text, at)
    at = _skip_space(text, _expect(text, _skip_space(text, at), ":"))
    _, end = _TOKENS.raw_decode(text, at)
    members[_valid(name)] = text[at:end]
    return _skip_space(text, end)


def _compact(token: str) -> bytes:
    # In valid JSON the characters of _HTML stand inside of strings only.
    return _GAPS.sub(r"\1", token).translate(_HTML).encode("utf-8", "surrogateescape")


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere


def _expect(text: str, at: int, char: str) -> int:
    if not text.startswith(char, at):
        raise json.JSONDecodeError(f"Expecting '{char}'", text, at)
    return at + 1


def _expect_end(text: str, at: int) -> None:
    if (end := _skip_space(text, at)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


# ── reading values ──


def fold(name: str) -> str:
    """Fold the case of a field's name as Go does.

    Go's ``encoding/json`` takes a name in a document for a field with an ASCII name if and only if both fold to the same text.
    It folds letter by letter (``foldName``, by ``unicode.SimpleFold``): besides upper case only the long s (U+017F) and the
    Kelvin sign (U+212A) become letters of ASCII. ``str.casefold`` would take ligatures apart too, so that a field were read
    that every consumer passes over.
    """
    return name.translate(_FOLDED)


def parse(data: bytes, media_type: str, *, unique: bool = False) -> object:
    """Parse a whole document into Python values.

    Args:
        data: The document, in valid UTF-8.
        media_type: What it is read as, for the error.
        unique: Refuse an object that has one name twice, instead of taking the last: readers disagree
            about which counts.

    Returns:
        The value. An integer of more digits than any 64-bit number has comes as a float.

    Raises:
        InvalidDocumentError: It is no valid JSON.
    """
    try:
        text = data.decode()
        _check_depth(text)
        return (_UNIQUE if unique else _LAST).decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError(media_type, _reason(error)) from None


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += (found[1] is not None) - (found[2] is not None)
        if depth > _MAX_DEPTH:
            raise RecursionError


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error.msg} at character {error.pos}"
    return str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it is not JSON: {name} is no value")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _unique_object(members: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(members)
    if len(found) != len(members):
        twice = next(name for name, count in Counter(name for name, _ in members).items() if count > 1)
        raise ValueError(f"the name {quoted(twice)} stands twice in one object")
    return found


def _nothing(_: object) -> None:
    """Drop a value: of a document only the tokens' ends are wanted here."""


_TOKENS = json.JSONDecoder(
    object_pairs_hook=_nothing, parse_int=_nothing, parse_float=_nothing, parse_constant=_refuse_constant
)
_LAST = json.JSONDecoder(parse_int=_integer, parse_constant=_refuse_constant)
_UNIQUE = json.JSONDecoder(
    parse_int=_integer, parse_constant=_refuse_constant, object_pairs_hook=_unique_object
)
