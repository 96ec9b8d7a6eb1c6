"""Decide on the header fields of an archive: content type, file name, caching. No I/O, no framework."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from aiodockersave.core.errors import InvalidInputError

from .ranges import Answer

__all__ = ["content_disposition", "response_headers"]

MAX_FILENAME_SIZE: Final = 255
"""Bytes that the name of a file may have: no file system takes more."""

_TOKENS: Final = "!#$&+-.^_`|~"
"""Unencoded characters in an extended value, besides letters and digits (``attr-char``, RFC 8187 § 3.2.1)."""
_PLAIN: Final = frozenset(f"{_TOKENS} @=:(),;[]{{}}'")
"""Characters safe between quotes in every browser; not ``%``, which some decode (RFC 6266, appendix D)."""
_NAME: Final = f"{_TOKENS}%'*"
"""Characters that a field's name may have, besides letters and digits (``tchar``, RFC 9110 § 5.6.2)."""
_CONTROLS: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of controls, text direction marks (U+202E), lone surrogates, line and paragraph separators."""
_OURS: Final = frozenset(
    {
        "accept-ranges",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "content-disposition",
        "etag",
        "transfer-encoding",
    }
)
"""Fields that follow from the archive and the request: a caller's value would be wrong."""


def response_headers(
    answer: Answer, filename: str, extra: Iterable[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """Return all header fields of an answer.

    Nobody may change an archive on the way (``no-transform``): compressed, it would have another size and
    ETag. A cache must ask again each time (``no-cache``), since a tag may move; it must not keep an archive
    without an ETag (``no-store``).

    Args:
        answer: The answer to the request.
        filename: The name under which a browser saves the archive.
        extra: The caller's fields, for every answer; a ``Cache-Control`` replaces ours.

    Raises:
        InvalidInputError: ``filename`` cannot be sent; or ``extra`` has a field that follows from the
            archive, or one that cannot be sent.
    """
    disposition = content_disposition(filename)  # for every answer, so that a bad name shows at once
    added = list(extra)
    names = {name.lower() for name, _ in added}
    if taken := sorted(names & _OURS):
        raise InvalidInputError(f"{taken[0]} follows from the archive and the request: leave it out")
    for name, value in added:
        if not _is_field(name, value):  # the message omits the value, which may be a secret
            raise InvalidInputError(f"a header field cannot be sent, its name or value: {name!a:.100}")
    fields = list(answer.headers)
    if answer.is_archive:
        fields += [("Content-Type", "application/x-tar"), ("Content-Disposition", disposition)]
    if "cache-control" not in names and answer.status in {200, 206, 304}:
        has_etag = any(name == "ETag" for name, _ in answer.headers)
        fields.append(("Cache-Control", f"{'no-cache' if has_etag else 'no-store'}, no-transform"))
    return fields + added


def _is_field(name: str, value: str) -> bool:
    """Return whether a field can be sent (RFC 9110 § 5.1, 5.5).

    Servers would refuse a bad field only after the answer has begun.
    """
    is_token = name != "" and all(char.isascii() and (char.isalnum() or char in _NAME) for char in name)
    return is_token and all(char == "\t" or unicodedata.category(char) != "Cc" for char in value)


def content_disposition(filename: str) -> str:
    """Return the value of ``Content-Disposition`` that makes a browser save the body under this name.

    See RFC 6266. If the name has characters that are not safe between quotes, the value has two forms of the
    name: one with ``_`` in their place, and one encoded (RFC 8187). Both have ``_`` for a slash or backslash,
    so that neither is a path.

    Raises:
        InvalidInputError: The name is empty, longer than 255 bytes, or has control characters.
    """
    if not filename:
        raise InvalidInputError("the name of a file to download is empty")
    if any(unicodedata.category(char) in _CONTROLS for char in filename[: MAX_FILENAME_SIZE + 1]):
        raise InvalidInputError(f"the name of a file to download has control characters: {filename!a:.100}")
    name = filename.replace("/", "_").replace("\\", "_")
    if len(name) > MAX_FILENAME_SIZE or len(name.encode()) > MAX_FILENAME_SIZE:
        raise InvalidInputError(
            f"the name of a file to download is longer than {MAX_FILENAME_SIZE} bytes: {filename!a:.100}"
        )
    plain = "".join(char if char.isascii() and (char.isalnum() or char in _PLAIN) else "_" for char in name)
    if plain == name:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe=_TOKENS)}"
