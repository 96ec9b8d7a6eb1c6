"""What registries say: read without belief, and shown without harm."""

from __future__ import annotations

import email.utils
import json

import pytest

from aiodockersave._text import shown, shown_url
from aiodockersave.sources._answers import (
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


# ── headers ──


@pytest.mark.parametrize("text", ["0", "12", "9" * 19])
def test_numbers(text: str) -> None:
    assert number(text) == int(text)


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1_0", "١", "0x1", "9" * 20, "1.0"])
def test_no_numbers(text: str) -> None:
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
