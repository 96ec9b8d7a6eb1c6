"""Text of others, made fit to be shown: on one line, escaped, cut, and without secrets.

::

    foreign text ──▶ secrets hidden ──▶ white space and URLs made plain ──▶ escaped ──▶ cut, with "…" at the end

The order matters. A secret is looked for before anything is taken away from it, since half of one is a secret too; and
whatever is cut says so, so that a beginning of a secret before the mark is still found by who looks at the whole line.
"""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

__all__ = [
    "NO_SECRETS",
    "Secrets",
    "cut",
    "listed",
    "message_line",
    "one_line",
    "printable",
    "quoted",
    "shown",
    "shown_url",
]

MAX_SHOWN: Final = 200
"""Characters of foreign text in a message."""
MAX_MESSAGE: Final = 2000
"""Characters of a whole message."""
MAX_LISTED: Final = 20
"""Items of a foreign list in a message."""
_LONGEST_LIST: Final = 500
_LONGEST_URL: Final = 8192
_HIDDEN: Final = "***"
_CUT: Final = "…"
_SPACES: Final = re.compile(r"\s+")
# The query of a signed URL, and the user information of any, give access.
_URL_SECRETS: Final = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,20}://)(?:[^\s/?#@]*@)?(?P<rest>[^\s?#]*)(?P<query>[?#]\S*)?",
    re.IGNORECASE,
)

# ── secrets ──

SHORTEST_SECRET: Final = 4
"""Characters; shorter secrets are not hidden: they would make holes in ordinary words."""
_MAX_SECRETS: Final = 512
"""Secrets that are looked for, of which those count that were used last."""
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})|%[0-9A-Fa-f]?(?=\xe2\x80\xa6|\?\*\*\*)")
# Not by `html`, which loads the names of all characters.
_IN_HTML: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})
_IN_GOS_HTML: Final = _IN_HTML | str.maketrans({'"': "&#34;", "'": "&#39;"})
_MARKS: Final = re.compile(re.escape(_CUT.encode()) + rb"|\?\*\*\*")
"""The mark where text was taken away."""


class Secrets:
    """The secrets that were sent, in every form in which they may come back.

    It is found in upper and lower case, as it is and percent-encoded (all of it or a part, as every program does it
    differently), in base64 and base64url, and as JSON, HTML and we ourselves escape it. What is not found is text that
    somebody has changed on purpose: who wants to tell a secret can always do so.

    The work is linear in the text and in the number of secrets, without a pattern that would have to be compiled anew for
    each token: with 512 secrets a message takes some 0.2 ms.
    """

    def __init__(self, secrets: Iterable[str | bytes] = ()) -> None:
        # Secret to its forms, the one that was added last at the end.
        self._forms: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()
        self._all: tuple[bytes, ...] | None = ()
        self._longest = 0
        self.add(*secrets)

    def add(self, *secrets: str | bytes) -> None:
        """Hide these too, from now on. Very many are too many: then those are forgotten that were not added again for longest."""
        for secret in secrets:
            raw = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
            if len(raw) < SHORTEST_SECRET:
                continue
            if raw in self._forms:
                self._forms.move_to_end(raw)
                continue
            self._forms[raw] = _forms_of(raw)
            if len(self._forms) > _MAX_SECRETS:
                self._forms.popitem(last=False)
            self._all = None

    def __contains__(self, secret: object) -> bool:
        return isinstance(secret, str) and secret.encode("utf-8", "surrogatepass") in self._forms

    def __len__(self) -> int:
        return len(self._forms)

    def __repr__(self) -> str:
        return f"<{len(self)} secrets>"

    def hide(self, text: str, *, own: Sequence[str] = (), limit: int | None = None) -> str:
        """Return text without them.

        Args:
            text: The text.
            own: Parts of it that are not foreign, such as the name that the user gave: they stay as they are. A hole in
                what everybody knows would tell the secret.
            limit: How many of its characters are wanted, at most. A secret that begins among them is found.
        """
        if not self._forms:
            return text[:limit]
        first, *others = own or ("",)
        if not first or first not in text:
            return self.hide(text, own=others, limit=limit) if others else self._hide(text, limit)
        return first.join(self.hide(part, own=others) for part in text.split(first))[:limit]

    def hide_beginning(self, text: str) -> str:
        """Return a text without them which may end in the middle of one, as something was taken off its end."""
        return self.hide(text + _CUT).removesuffix(_CUT) if self._forms else text

    def _hide(self, text: str, limit: int | None) -> str:
        forms = self._every_form()
        # Behind a limit as much is looked at as a secret may have there, each byte of it as "%XX".
        looked_at = text if limit is None else text[: limit + 3 * self._longest]
        data = looked_at.encode("utf-8", "surrogatepass")
        end = len(data) if limit is None else len(text[:limit].encode("utf-8", "surrogatepass"))
        # Where text is to be cut yet, nothing in it was cut by us.
        spans = list(_spans(data.lower(), forms, _cuts(data) if limit is None else ()))
        if b"%" in data:
            decoded, at = _percent_decoded(data)
            found = _spans(decoded.lower(), forms, _cuts(decoded) if limit is None else ())
            spans += [(at[start], at[stop]) for start, stop in found]
        parts, position = [], 0
        for start, stop in sorted(spans):
            if start >= end:
                break
            if start >= position:
                parts += [data[position:start], _HIDDEN.encode()]
            position = max(position, stop)
        kept = b"".join([*parts, data[position:end]])
        try:
            return kept.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # a secret of bytes that are no text was a part of characters
            return kept.decode("utf-8", "replace")

    def _every_form(self) -> tuple[bytes, ...]:
        if self._all is None:
            self._all = tuple({form: None for forms in self._forms.values() for form in forms})
            self._longest = max(map(len, self._all), default=0)
        return self._all


def _forms_of(raw: bytes) -> tuple[bytes, ...]:
    """Return the forms of a secret that percent-decoding does not lead to, in lower case."""
    text = raw.decode("utf-8", "surrogateescape")
    plain = {
        text,
        text.lower(),  # as headers' names are compared; `bytes.lower` below does so with ASCII only
        text.replace(" ", "+"),  # in a form
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        repr(f"{text}'\"")[1:-4],  # in a text that has both quotes
        text.translate(_IN_HTML),
        text.translate(_IN_GOS_HTML),
        printable(_SPACES.sub(" ", text).strip()),
    }
    forms = {
        raw,
        *(each.encode("utf-8", "surrogatepass") for each in plain),
    }  # as headers and bodies are decoded
    # Without "=", which may be missing; with it, what is left shows nothing.
    forms |= {encode(raw).rstrip(b"=") for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return tuple({form.lower(): None for form in sorted(forms) if len(form) >= SHORTEST_SECRET})


def _cuts(data: bytes) -> Sequence[int]:
    return [found.start() for found in _MARKS.finditer(data)]


def _spans(data: bytes, forms: Iterable[bytes], cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where forms stand, and where one was cut behind its beginning."""
    beginnings: dict[bytes, list[tuple[int, bytes]]] = {}
    for form in forms:
        at = data.find(form)
        while at >= 0:
            yield at, at + len(form)
            at = data.find(form, at + len(form))
        if cuts:
            # Tokens of one issuer begin alike, so that is looked up once.
            beginning = form[:SHORTEST_SECRET]
            if beginning not in beginnings:
                beginnings[beginning] = _beginnings(data, beginning, cuts)
            others = []
            for at, rest in beginnings[beginning]:
                if form.startswith(rest):
                    yield at, at + len(rest)
                else:
                    others.append((at, rest))
            beginnings[beginning] = others


def _beginnings(data: bytes, beginning: bytes, cuts: Sequence[int]) -> list[tuple[int, bytes]]:
    """Return where a text stands, with all that follows it until it is cut."""
    found, at = [], data.find(beginning)
    while 0 <= at < cuts[-1]:
        found.append((at, data[at : cuts[bisect_right(cuts, at)]]))
        at = data.find(beginning, at + 1)
    return found


def _percent_decoded(data: bytes) -> tuple[bytes, Sequence[int]]:
    """Return data without percent-encoding, and where each of its bytes, and its end, stands in what was given."""
    decoded, position = bytearray(), 0
    at: list[int] = []
    for found in _PERCENT.finditer(data):
        decoded += data[position : found.start()]
        at += range(position, found.start())
        if found[1]:  # else it was cut in its middle
            at.append(found.start())
            decoded.append(int(found[1], 16))
        position = found.end()
    decoded += data[position:]
    at += range(position, len(data) + 1)
    return bytes(decoded), at


NO_SECRETS: Final = Secrets()
"""Nothing was sent. Not to be added to."""


# ── text ──


def one_line(name: str) -> str:
    """Return a path or name as it may stand in a message."""
    return name if name.isprintable() else ascii(name)


def cut(text: str, limit: int = MAX_SHOWN) -> str:
    """Return a text of at most so many characters, which says where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + _CUT


def message_line(text: str) -> str:
    """Return a whole message as a line that a log or a terminal can take."""
    return cut(printable(text[: MAX_MESSAGE + 1]), MAX_MESSAGE)


def quoted(value: object, limit: int = 100) -> str:
    """Return a value that somebody wrote into a document, as it may stand in a message: printable, cut."""
    if isinstance(value, str):
        return cut(repr(value[: limit + 1]), limit)
    if isinstance(value, list | dict):  # whose `repr` may take long, and may not even end
        return "a list" if isinstance(value, list) else "an object"
    return cut(repr(value), limit)


def listed(names: Iterable[str], limit: int = 100) -> str:
    """Return a list as it may stand in a message: each once, cut, and not too many."""
    different = list(dict.fromkeys(names))
    parts: list[str] = []
    while len(parts) < min(len(different), MAX_LISTED) and sum(map(len, parts)) < _LONGEST_LIST:
        parts.append(cut(one_line(different[len(parts)]), limit))
    more = f" and {len(different) - len(parts)} more" if len(different) > len(parts) else ""
    return ", ".join(parts) + more


def shown(text: str, *, secrets: Secrets | Iterable[str] = NO_SECRETS, limit: int = MAX_SHOWN) -> str:
    """Return foreign text as it may stand in a message: one line, printable, short, without secrets.

    Args:
        text: The text.
        secrets: Credentials that it may repeat.
        limit: The longest result, in characters.
    """
    kept = limit * 20  # so that the work below is small
    is_cut = len(text) > kept
    text = (secrets if isinstance(secrets, Secrets) else Secrets(secrets)).hide(text, limit=kept)
    text = printable(_URL_SECRETS.sub(_without_secrets, _SPACES.sub(" ", text).strip()))
    return f"{text[: limit - 1]}{_CUT}" if is_cut or len(text) > limit else text


def printable(text: str) -> str:
    """Return a text on one line, in which what is not printable is escaped."""
    if text.isprintable():
        return text
    # It is false for controls, C1, bidirectional marks and what is not assigned.
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _without_secrets(match: re.Match[str]) -> str:
    """Replace a URL that was found: without its user information, and with a mark for query or fragment."""
    return match["scheme"] + match["rest"] + (f"?{_HIDDEN}" if match["query"] else "")


def shown_url(url: str, *, secrets: Secrets = NO_SECRETS) -> str:
    """Return a URL without user information, query and fragment, fit for a message.

    Args:
        url: The URL.
        secrets: Credentials that it may repeat, if somebody else made it.
    """
    # Behind so many characters nothing is shown of any.
    text = secrets.hide_beginning(url[:_LONGEST_URL]).partition("#")[0].partition("?")[0]
    scheme, separator, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    return shown(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}")
