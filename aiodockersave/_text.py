"""Text of others, made fit to be shown: on one line, escaped, cut, and without what looks like a secret."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

__all__ = ["one_line", "shown", "shown_url"]

MAX_SHOWN: Final = 200
"""Characters of foreign text in a message."""
_HIDDEN: Final = "***"
_SPACES: Final = re.compile(r"\s+")
# The query of a signed URL, and the user information of any, give access.
_URL_SECRETS: Final = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,20}://)(?:[^\s/?#@]*@)?(?P<rest>[^\s?#]*)(?P<query>[?#]\S*)?",
    re.IGNORECASE,
)


def one_line(name: str) -> str:
    """Return a path or name as it may stand in a message."""
    return name if name.isprintable() else ascii(name)


def shown(text: str, *, secrets: Collection[str] = (), limit: int = MAX_SHOWN) -> str:
    """Return foreign text as it may stand in a message: one line, printable, short, without secrets.

    Args:
        text: The text.
        secrets: Credentials that it may repeat.
        limit: The longest result, in characters.
    """
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    text = text[
        : limit * 20
    ]  # so that the work below is small; a secret must not be cut in two before it is found
    text = _URL_SECRETS.sub(_without_secrets, _SPACES.sub(" ", text).strip())
    # `isprintable` is false for controls, C1, bidirectional marks and what is not assigned.
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _without_secrets(match: re.Match[str]) -> str:
    return match["scheme"] + match["rest"] + (f"?{_HIDDEN}" if match["query"] else "")


def shown_url(url: str) -> str:
    """Return a URL without user information, query and fragment, fit for a message."""
    text = url.partition("#")[0].partition("?")[0]
    scheme, separator, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    return shown(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}")
