"""Reading the headers and bodies of registries, and showing their texts in messages."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable

import pytest

from aiodockersave.core.text import Secrets, shown, shown_url
from aiodockersave.sources.registry.answers import (
    ContentRange,
    ErrorBody,
    content_range,
    media_type,
    number,
    origin,
    parse_error_body,
    redirect_target,
    retry_after,
    unsatisfied_total,
)
from aiodockersave.sources.registry.auth import parse_challenges

# ── text ──


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("  two\r\n\tlines ", "two lines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\x00b\x7fc", "a\\x00b\\x7fc"),
        ("\x9b31m", "\\x9b31m"),
        ("left\u202eright", "left\\u202eright"),
        ("a\u2066b", "a\\u2066b"),
        ("\ud800", "\\ud800"),
        ("größer", "größer"),
        ("at https://h.example/x?X-Signature=abc said", "at https://h.example/x?*** said"),
        ("at https://user:pass@h.example/x said", "at https://h.example/x said"),
        ("see HTTPS://h.example/x#token=1", "see HTTPS://h.example/x?***"),
    ],
)
def test_shown(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_shown_is_short_whatever_the_text() -> None:
    for text in ("x" * (1 << 20), "\x1b" * (1 << 20), "a-" * (1 << 19), "a://" * (1 << 18), " " * (1 << 20)):
        assert len(shown(text)) <= 200
    assert shown("x" * 300).endswith("x…")


def test_shown_hides_secrets_also_where_it_is_cut() -> None:
    assert shown("token abcd1234 is bad", secrets=["abcd1234"]) == "token *** is bad"
    assert "abcd" not in shown("x" * 3998 + "abcd1234", secrets=["abcd1234"], limit=200)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h.example:5000/v2/x?token=1#f", "https://h.example:5000/v2/x"),
        ("https://user:pass@h.example/v2", "https://h.example/v2"),
        ("https://a@b@h.example", "https://h.example"),
        ("https://h.example/\x1b[2J", "https://h.example/\\x1b[2J"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_shown_url(url: str, expected: str) -> None:
    assert shown_url(url) == expected


# ── error bodies ──


def errors(*entries: object) -> bytes:
    return json.dumps({"errors": entries}).encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            errors({"code": "NAME_UNKNOWN", "message": "no\nsuch"}),
            ErrorBody(("NAME_UNKNOWN",), "no such (NAME_UNKNOWN)"),
        ),
        (
            errors(
                {"code": "A", "message": "a"},
                {"code": "B"},
                {"message": "c"},
                "odd",
                {"code": 1, "message": 2},
            ),
            ErrorBody(("A", "B"), "a (A); B; c"),
        ),
        (errors(), ErrorBody((), "")),
        (
            b'{"errors": null, "details": "incorrect username or password"}',
            ErrorBody((), "incorrect username or password"),
        ),
        (b'{"error": "invalid_grant", "error_description": "bad token"}', ErrorBody((), "bad token")),
        (b'{"errors": {}, "message": "\\u001b[0m"}', ErrorBody((), "\\x1b[0m")),
        (b"[1]", ErrorBody((), "")),
        (b"<html>", ErrorBody((), "")),
        (b"\xff", ErrorBody((), "")),
        (b"", ErrorBody((), "")),
        (b"[" * 200_000, ErrorBody((), "")),
    ],
    ids=range(11),
)
def test_error_bodies(body: bytes, expected: ErrorBody) -> None:
    assert parse_error_body(body) == expected


def test_error_bodies_are_cut_and_hold_no_secret() -> None:
    entry = {"code": "C" * 1000, "message": "Authorization: Basic Zm9vOmJhcg== " + "m" * 10_000}
    found = parse_error_body(errors(*[entry] * 1000), ["Zm9vOmJhcg=="])
    assert len(found.message) <= 200
    assert len(found.codes) == 5
    assert max(map(len, found.codes)) <= 40
    assert "Zm9v" not in found.message


TOO_MUCH = 8 << 20
HOSTILE_BODIES: dict[str, Callable[[], bytes]] = {
    "codes of a small body": lambda: b'{"errors":[' + b'{"code":"A"},' * 4000 + b"0]}",
    "codes": lambda: b'{"errors":[' + b'{"code":"A"},' * (TOO_MUCH // 13) + b"0]}",
    "messages": lambda: b'{"errors":[' + b'{"message":"http://a b?c"},' * (TOO_MUCH // 27) + b"0]}",
    "lists": lambda: b'{"errors":[' + b"[]," * (TOO_MUCH // 3) + b"0]}",
    "nested lists": lambda: b'{"errors":[' + b"[[[[]]]]," * (TOO_MUCH // 9) + b"0]}",
    "one entry of lists": lambda: b'{"errors":[{"detail":[' + b"[]," * (TOO_MUCH // 3) + b"0]}]}",
    "numbers": lambda: b'{"errors":[' + b"1e300," * (TOO_MUCH // 6) + b"0]}",
    "keys": lambda: b"{" + b",".join(b'"%d":0' % i for i in range(TOO_MUCH // 10)) + b"}",
    "white space": lambda: b'{"errors":' + b" " * TOO_MUCH + b"[]}",
    "white space that ends in nothing": lambda: b" " * TOO_MUCH,
    "a long text": lambda: b'{"errors":[{"message":"' + b"\\n" * (TOO_MUCH // 2) + b'"}]}',
    "a long number": lambda: b'{"errors":[' + b"9" * TOO_MUCH + b"]}",
    "deep": lambda: b'{"errors":' + b"[" * TOO_MUCH,
}
MOST_SECONDS = 0.25
"""Of the processor's time: many times what it takes, and far less than what grows with the square of the size takes."""


def cost_of(call: Callable[[], object]) -> float:
    """Return the processor's seconds for a call: the least of three, since a machine may be disturbed."""
    costs = []
    for _ in range(3):
        start = time.process_time()
        call()
        costs.append(time.process_time() - start)
    return min(costs)


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_parsing_an_error_body_is_cheap(name: str) -> None:
    body = HOSTILE_BODIES[name]()
    secrets = Secrets(f"secret-{i:040d}" for i in range(512))
    assert cost_of(lambda: parse_error_body(body, secrets)) < MOST_SECONDS
    found = parse_error_body(body, secrets)
    assert found.codes == (("A",) * 5 if "codes" in name else ())


@pytest.mark.parametrize("size", [100, 4096, 65_536, 65_537, 1 << 20])
def test_the_first_entries_of_an_error_count_whatever_its_size(size: int) -> None:
    body = errors({"code": "A", "message": "a"}, {"code": "B"}, {"detail": "x" * size})
    assert parse_error_body(body) == ErrorBody(("A", "B"), "a (A); B")


def test_the_number_of_challenges_is_bounded() -> None:
    assert len(parse_challenges(["Basic, " * 100] * 100)) == 32
    assert parse_challenges(["x " * 8192, 'Basic realm="late"'])[-1].parameters == {}


HOSTILE_HEADERS: dict[str, str] = {
    "names": "a " * 8192,
    "names and spaces": ("a" + " " * 100) * 160,
    "spaces": "a" + " " * 16_000 + "b",
    "a value": 'a="' + "b" * 16_000,
    "escapes": 'Bearer a="' + "\\x" * 8000,
    "values": 'Bearer a="' * 1600,
    "parameters": "Bearer " + "a=b," * 4000,
    "equals": "Bearer a" + "=" * 16_000 + "b",
    "token68": "Basic " + "a" * 8000 + "=" * 8000 + " x",
    "commas": "," * 16_000,
    "digits": "1" * 16_000,
    "dashes": "bytes " + "-" * 8000 + "/" * 8000,
    "slashes": "http://" + "a/" * 8000,
    "dots": "/../" * 4000,
    "colons": "http://" + ":" * 16_000,
    "ats": "http://" + "@" * 16_000,
    "schemes": "a://" * 4000,
    "hosts": "http://" + "a." * 8000,
    "dates": "Wed, " * 3000,
    "brackets": "http://[" * 2000,
}
READERS: dict[str, Callable[[str], object]] = {
    "challenges": lambda text: parse_challenges([text] * 100),
    "retry_after": lambda text: retry_after(text, NOW),
    "content_range": lambda text: content_range([text]),
    "unsatisfied_total": lambda text: unsatisfied_total([text]),
    "media_type": media_type,
    "redirect_target": lambda text: redirect_target(BASE, text),
    "shown": shown,
    "shown_url": lambda text: shown_url(text, secrets=Secrets([text[:16], text[8:200]])),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_parsing_challenges_is_cheap(name: str, reader: str) -> None:
    assert cost_of(lambda: READERS[reader](HOSTILE_HEADERS[name])) < MOST_SECONDS


def test_hiding_many_secrets_is_cheap() -> None:
    """Also where all tokens begin alike, and the text consists of that beginning."""
    secrets = Secrets(f"eyJhbGciOiJSUzI1NiIsInR5cCI6{i:040d}" for i in range(2000))

    def read() -> None:
        for text in ("eyJh" * 500, "eyJhb…" * 300, "eyJhbGciX…" * 200, "%65yJh" * 300, "x" * 2000):
            secrets.hide(text)
            shown(text * 100, secrets=secrets)

    assert cost_of(read) < 5 * MOST_SECONDS


# ── headers ──


@pytest.mark.parametrize("text", ["0", "12", "9" * 19])
def test_numbers(text: str) -> None:
    assert number(text) == int(text)


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1_0", "١", "0x1", "9" * 20, "1.0"])
def test_texts_that_are_not_numbers(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, ""),
        ("", ""),
        ("Application/JSON; charset=utf-8", "application/json"),
        (" text/html ", "text/html"),
    ],
)
def test_media_type(header: str | None, expected: str) -> None:
    assert media_type(header) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["bytes 0-9/10"], ContentRange(0, 9, 10)),
        (["Bytes 5-9/10"], ContentRange(5, 9, 10)),
        ([" bytes  5-9/10 "], ContentRange(5, 9, 10)),
        ([], None),
        (["bytes 0-9/10", "bytes 0-9/10"], None),
        (["bytes 0-9/*"], None),
        (["bytes */10"], None),
        (["bytes 9-5/10"], None),
        (["bytes 0-10/10"], None),
        (["bytes 0-9"], None),
        (["bytes 09/10"], None),
        (["items 0-9/10"], None),
        (["bytes 0-9/10/11"], None),
        (["bytes 0-9/1_0"], None),
        (["bytes -9/10"], None),
        (["bytes 0-٩/10"], None),
        (["0-9/10"], None),
        ([""], None),
        ([f"bytes 0-{'9' * 20}/{'9' * 20}"], None),
    ],
    ids=str,
)
def test_content_range(values: list[str], expected: ContentRange | None) -> None:
    assert content_range(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["bytes */10"], 10),
        (["bytes */x"], None),
        (["bytes 0-9/10"], None),
        ([], None),
        (["bytes */1", "bytes */1"], None),
    ],
    ids=str,
)
def test_unsatisfied_total(values: list[str], expected: int | None) -> None:
    assert unsatisfied_total(values) == expected


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Wed, 99 Foo 99999 99:99:99 GMT", None),
        ("9" * 30, None),
    ],
)
def test_retry_after(header: str | None, expected: float | None) -> None:
    assert retry_after(header, NOW) == expected


# ── locations ──


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://H.Example/x", ("https", "h.example", 443)),
        ("http://h.example", ("http", "h.example", 80)),
        ("https://h.example:5000/", ("https", "h.example", 5000)),
        ("https://h_h.example", ("https", "h_h.example", 443)),
        ("https://h.example.", ("https", "h.example.", 443)),
        ("https://[::1]:5000", ("https", "::1", 5000)),
        ("https://[fe80::1%25eth0]", ("https", "fe80::1%25eth0", 443)),
        ("ftp://h.example", None),
        ("//h.example", None),
        ("https://", None),
        ("https:///x", None),
        ("https://user@h.example", None),
        ("https://@h.example", None),
        ("https://h.example\\@evil.example", None),
        ("https://h.example:port", None),
        ("https://h.example:0", None),
        ("https://h.example:99999", None),
        ("https://[::1", None),
        ("https://h ost", None),
        ("https://h%2e.example", None),
        ("https://bücher.example", None),
        ("https://-h.example", None),
        ("https://..", None),
        ("https://h.example/a b", None),
        ("https://h.example/a\r\nb", None),
        ("https://h.example/ü", None),
        (" https://h.example/", None),
        ("", None),
    ],
)
def test_origin(url: str, expected: tuple[str, str, int] | None) -> None:
    assert origin(url) == expected


BASE = "https://h.example:5000/v2/app/blobs/sha256:1?x=1"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/other", "https://h.example:5000/other"),
        ("other", "https://h.example:5000/v2/app/blobs/other"),
        ("../up?q=1", "https://h.example:5000/v2/app/up?q=1"),
        ("?q=1", "https://h.example:5000/v2/app/blobs/sha256:1?q=1"),
        ("//o.example/x", "https://o.example/x"),
        ("https://o.example/a%2Fb?sig=a%2Bb%3D#part", "https://o.example/a%2Fb?sig=a%2Bb%3D"),
        ("https://o.example/a b", "https://o.example/a%20b"),
        (" https://o.example/x ", "https://o.example/x"),
        ("https://o.example/ü", "https://o.example/%C3%BC"),
        ("https://o.example/x\r\nHost: evil", "https://o.example/x%0D%0AHost:%20evil"),
        ("https://bücher.example/", None),
        ("https://user:pw@o.example/", None),
        ("file:///etc/passwd", None),
        ("http://[::1/x", None),
        ("", None),
        (None, None),
    ],
)
def test_redirect_target(location: str | None, expected: str | None) -> None:
    assert redirect_target(BASE, location) == expected
