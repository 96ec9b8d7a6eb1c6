"""The header fields of an archive: nothing of a name or a caller gets out of its place."""

from __future__ import annotations

import email.message
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave import InvalidInputError
from aiodockersave.web.fields import content_disposition, response_headers
from aiodockersave.web.ranges import evaluate

NAMES = {
    "plain": ("app.tar", 'attachment; filename="app.tar"'),
    "a tag": ("alpine:3.20.tar", 'attachment; filename="alpine:3.20.tar"'),
    "blanks": ("my app.tar", 'attachment; filename="my app.tar"'),
    "a path": ("team/app.tar", 'attachment; filename="team_app.tar"'),
    "out of the folder": ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
    "backslash": ("team\\app.tar", 'attachment; filename="team_app.tar"'),
    "quote": ('a".tar', "attachment; filename=\"a_.tar\"; filename*=UTF-8''a%22.tar"),
    "another parameter": (
        'a"; filename="b.exe',
        "attachment; filename=\"a_; filename=_b.exe\"; filename*=UTF-8''a%22%3B%20filename%3D%22b.exe",
    ),
    "percent": ("50%41.tar", "attachment; filename=\"50_41.tar\"; filename*=UTF-8''50%2541.tar"),
    "umlaut": ("Bücher.tar", "attachment; filename=\"B_cher.tar\"; filename*=UTF-8''B%C3%BCcher.tar"),
    "outside of the BMP": ("🐳.tar", "attachment; filename=\"_.tar\"; filename*=UTF-8''%F0%9F%90%B3.tar"),
    "full-width slash": ("a／b", "attachment; filename=\"a_b\"; filename*=UTF-8''a%EF%BC%8Fb"),
    "255 bytes": ("a" * 255, f'attachment; filename="{"a" * 255}"'),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.values(), ids=NAMES)
def test_content_disposition(name: str, expected: str) -> None:
    assert content_disposition(name) == expected


REFUSED = {
    "empty": "",
    "line feed": "a\nb",
    "header injection": "a\r\nSet-Cookie: x=y",
    "nul": "a\0b",
    "escape": "\x1b[31ma",
    "tab": "a\tb",
    "delete": "a\x7fb",
    "next line (C1)": "a\x85b",
    "CSI (C1)": "a\x9b31m",
    "turns text around": "gpj.\u202eexe",
    "isolate": "\u2066a",
    "zero width": "a\u200bb",
    "line separator": "a\u2028b",
    "lone surrogate": "a\udcffb",
    "256 bytes": "a" * 256,
    "256 bytes in 128 letters": "ü" * 128,
    "1 MiB": "a" * (1 << 20),
    "1 MiB, controls": "\n" * (1 << 20),
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="the name of a file to download") as caught:
        content_disposition(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@given(st.text(min_size=1, max_size=100))
def test_any_name_is_refused_or_comes_back(name: str) -> None:
    try:
        field = content_disposition(name)
    except InvalidInputError:
        return
    assert field.isascii()
    assert field.isprintable()
    message = email.message.Message()
    message["Content-Disposition"] = field
    assert message.get_content_disposition() == "attachment"
    plain = name.replace("/", "_").replace("\\", "_")
    assert message.get_filename() == plain.strip() or unquote(field.rpartition("''")[2]) == plain


FIELDS = {
    "whole": ({}, 200, "no-cache, no-transform", True),
    "part": ({"Range": "bytes=0-4"}, 206, "no-cache, no-transform", True),
    "nothing new": ({"If-None-Match": '"e"'}, 304, "no-cache, no-transform", False),
    "not there": ({"Range": "bytes=10-"}, 416, None, False),
    "another": ({"If-Match": '"f"'}, 412, None, False),
}


@pytest.mark.parametrize(("asked", "status", "cache", "has_type"), FIELDS.values(), ids=FIELDS)
def test_fields(asked: dict[str, str], status: int, cache: str | None, has_type: bool) -> None:
    answer = evaluate("GET", asked.items(), size=10, etag="e")
    assert answer.status == status
    fields = dict(response_headers(answer, "app.tar", [("X-Ours", "1")]))
    assert fields.get("Cache-Control") == cache
    assert fields.get("Content-Type") == ("application/x-tar" if has_type else None)
    assert fields.get("Content-Disposition") == ('attachment; filename="app.tar"' if has_type else None)
    assert fields["ETag"] == '"e"'
    assert fields["X-Ours"] == "1"


def test_a_build_is_not_kept() -> None:
    fields = dict(response_headers(evaluate("GET", []), "app.tar"))
    assert fields == {
        "Accept-Ranges": "none",
        "Content-Type": "application/x-tar",
        "Content-Disposition": 'attachment; filename="app.tar"',
        "Cache-Control": "no-store, no-transform",
    }


def test_cache_control_of_the_caller() -> None:
    answer = evaluate("GET", [], size=10, etag="e")
    fields = response_headers(answer, "app.tar", [("cache-control", "public, max-age=31536000, immutable")])
    assert [value for name, value in fields if name.lower() == "cache-control"] == [
        "public, max-age=31536000, immutable"
    ]


@pytest.mark.parametrize("name", ["content-length", "ETag", "CONTENT-RANGE", "Transfer-Encoding"])
def test_fields_that_follow_from_the_archive(name: str) -> None:
    answer = evaluate("GET", [], size=10, etag="e")
    with pytest.raises(InvalidInputError, match=f"{name.lower()} follows from the archive"):
        response_headers(answer, "app.tar", [(name, "1")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nX-C: d"),
        ("X-A", "b\n"),
        ("X-A", "b\0"),
        ("X-A", "b\x85"),
        ("X A", "b"),
        ("X-A:", "b"),
        ("", "b"),
    ],
)
def test_fields_that_break_the_head(name: str, value: str) -> None:
    """Before anything is sent: a server that refuses them later can answer nothing any more."""
    answer = evaluate("GET", [], size=10, etag="e")
    with pytest.raises(InvalidInputError, match="cannot be sent") as caught:
        response_headers(answer, "app.tar", [(name, value)])
    assert value not in str(caught.value) or value == "b"


def test_any_other_field_is_sent() -> None:
    extra = [("X-A!#$%&'*+-.^_`|~9", "b\tc  é\xff"), ("X-Empty", "")]
    assert response_headers(evaluate("GET", [], size=10, etag="e"), "app.tar", extra)[-2:] == extra


def test_a_bad_name_shows_at_every_status() -> None:
    with pytest.raises(InvalidInputError):
        response_headers(evaluate("GET", [("If-None-Match", "*")], size=10, etag="e"), "a\nb")
