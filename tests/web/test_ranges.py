"""Answers to requests: tables of headers, hostile ones among them, and other programs' opinions of the same rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import etag as etag_oracle
import httprange
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiodockersave.web.ranges import MAX_ELEMENTS, MAX_FIELD_SIZE, Answer, ByteRange, evaluate

SIZE = 1000
ETAG = "1f" * 32
OURS = f'"{ETAG}"'
HUGE = 8 << 40

WHOLE = 200
NOTHING = 416

# What a Range of each kind gives for 1,000 bytes: 200 (ignored), 416, or (start, stop) of a 206.
RANGES: dict[str, tuple[str, int | tuple[int, int]]] = {
    # ── one range ──
    "first byte": ("bytes=0-0", (0, 1)),
    "first half": ("bytes=0-499", (0, 500)),
    "second half": ("bytes=500-999", (500, 1000)),
    "last byte": ("bytes=999-999", (999, 1000)),
    "all by its ends": ("bytes=0-999", (0, 1000)),
    "open end": ("bytes=500-", (500, 1000)),
    "open end from zero": ("bytes=0-", (0, 1000)),
    "open end, last byte": ("bytes=999-", (999, 1000)),
    "end clamped": ("bytes=500-1000", (500, 1000)),
    "end far behind": ("bytes=500-999999999999", (500, 1000)),
    "end of 19 nines": ("bytes=500-" + "9" * 19, (500, 1000)),
    "leading zeros": ("bytes=0000-0009", (0, 10)),
    "19 digits, mostly zeros": ("bytes=" + "1".zfill(19) + "-" + "2".zfill(19), (1, 3)),
    "unit in capitals": ("BYTES=1-2", (1, 3)),
    "unit mixed": ("Bytes=1-2", (1, 3)),
    # ── suffixes ──
    "last byte by suffix": ("bytes=-1", (999, 1000)),
    "last 500": ("bytes=-500", (500, 1000)),
    "suffix of all": ("bytes=-1000", (0, 1000)),
    "suffix longer than all": ("bytes=-1001", (0, 1000)),
    "suffix of 19 nines": ("bytes=-" + "9" * 19, (0, 1000)),
    "suffix with zeros": ("bytes=-0007", (993, 1000)),
    # ── nothing there ──
    "suffix zero": ("bytes=-0", NOTHING),
    "suffix many zeros": ("bytes=-000", NOTHING),
    "start at the size": ("bytes=1000-", NOTHING),
    "start at the size, with end": ("bytes=1000-1000", NOTHING),
    "start behind": ("bytes=1001-2000", NOTHING),
    "start of 19 nines": ("bytes=" + "9" * 19 + "-", NOTHING),
    "several, none there": ("bytes=1000-,2000-3000,-0", NOTHING),
    # ── lists that leave one ──
    "touching": ("bytes=0-4,5-9", (0, 10)),
    "touching, wrong order": ("bytes=5-9,0-4", (0, 10)),
    "overlapping": ("bytes=0-50,20-70", (0, 71)),
    "one in the other": ("bytes=0-99,10-20", (0, 100)),
    "the same twice": ("bytes=3-5,3-5", (3, 6)),
    "sixteen that touch": ("bytes=" + ",".join(f"{n}-{n}" for n in range(16)), (0, 16)),
    "sixteen of the same": ("bytes=" + ",".join(["0-"] * 16), (0, 1000)),
    "one there, one not": ("bytes=1000-,0-0", (0, 1)),
    "one there, suffix zero": ("bytes=-0,7-8", (7, 9)),
    "suffix touches": ("bytes=-10,980-989", (980, 1000)),
    "whole and more": ("bytes=0-,5-6,-1", (0, 1000)),
    "blanks around": ("bytes=0-4 ,\t5-9", (0, 10)),
    "blank behind the equals": ("bytes= 0-4", (0, 5)),
    "blanks behind": ("bytes=0-4  ", (0, 5)),
    "blanks in front": ("\t bytes=0-4", (0, 5)),
    "empty elements": ("bytes=,,0-4,,5-9,", (0, 10)),
    # ── lists that leave more ──
    "two apart": ("bytes=0-4,6-9", WHOLE),
    "first and last byte": ("bytes=0-0,-1", WHOLE),
    "many apart": ("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 32, 2)), WHOLE),
    # ── too much of it ──
    "seventeen that touch": ("bytes=" + ",".join(f"{n}-{n}" for n in range(17)), WHOLE),
    "sixteen and an empty one": ("bytes=" + ",".join(f"{n}-{n}" for n in range(16)) + ",", WHOLE),
    "commas only, many": ("bytes=" + "," * 900 + "0-1", WHOLE),
    "thousand ranges": ("bytes=" + ",".join(["0-"] * 1000), WHOLE),
    "overlap bomb": ("bytes=" + ",".join(f"{n}-" for n in range(1300)), WHOLE),
    "20 digits": ("bytes=0-18446744073709551615", WHOLE),
    "20 digits in front": ("bytes=18446744073709551615-", WHOLE),
    "20 digits as suffix": ("bytes=-18446744073709551615", WHOLE),
    "20 zeros": ("bytes=" + "0" * 20 + "-1", WHOLE),
    "a thousand digits": ("bytes=0-" + "9" * 1000, WHOLE),
    "five thousand digits": ("bytes=0-" + "9" * 5000, WHOLE),
    "longest field": ("bytes=0-4" + " " * (MAX_FIELD_SIZE - 9), (0, 5)),
    "a byte longer": ("bytes=0-4" + " " * (MAX_FIELD_SIZE - 8), WHOLE),
    # ── inverted ──
    "inverted": ("bytes=5-4", WHOLE),
    "inverted to zero": ("bytes=1-0", WHOLE),
    "inverted, behind the size": ("bytes=2000-1500", WHOLE),
    "inverted beside a good one": ("bytes=0-4,9-8", WHOLE),
    "inverted beside a good one, in front": ("bytes=9-8,0-4", WHOLE),
    # ── malformed ──
    "empty": ("", WHOLE),
    "blank": ("  ", WHOLE),
    "unit alone": ("bytes", WHOLE),
    "no range": ("bytes=", WHOLE),
    "comma alone": ("bytes=,", WHOLE),
    "dash alone": ("bytes=-", WHOLE),
    "two dashes": ("bytes=0--1", WHOLE),
    "double dash suffix": ("bytes=--5", WHOLE),
    "three numbers": ("bytes=0-1-2", WHOLE),
    "number alone": ("bytes=5", WHOLE),
    "word": ("bytes=abc", WHOLE),
    "word as end": ("bytes=0-abc", WHOLE),
    "hex": ("bytes=0x0-0x4", WHOLE),
    "exponent": ("bytes=0-1e2", WHOLE),
    "fraction": ("bytes=0.5-1", WHOLE),
    "plus": ("bytes=+0-4", WHOLE),
    "plus in suffix": ("bytes=-+5", WHOLE),
    "underscore": ("bytes=0-1_0", WHOLE),
    "blank in a number": ("bytes=0-1 0", WHOLE),
    "blanks around the dash": ("bytes=0 - 4", WHOLE),
    "blank in front of the dash": ("bytes=0 -4", WHOLE),
    "blank behind the dash": ("bytes=0- 4", WHOLE),
    "blank in front of the equals": ("bytes =0-4", WHOLE),
    "full-width digits": ("bytes=１２-２０", WHOLE),
    "superscript": ("bytes=0-²", WHOLE),
    "arabic digits": ("bytes=٠-٤", WHOLE),
    "minus sign of mathematics": ("bytes=0−4", WHOLE),
    "en dash": ("bytes=0–4", WHOLE),
    "no-break space": ("bytes=0-4\u00a0", WHOLE),
    "line feed": ("bytes=0-4\n", WHOLE),
    "vertical tab": ("bytes=\v0-4", WHOLE),
    "nul": ("bytes=0-4\0", WHOLE),
    "semicolon": ("bytes=0-4;5-9", WHOLE),
    "colon for equals": ("bytes:0-4", WHOLE),
    "as in Content-Range": ("bytes 0-4/1000", WHOLE),
    "equals twice": ("bytes==0-4", WHOLE),
    "quoted": ('bytes="0-4"', WHOLE),
    "a good one and a bad one": ("bytes=0-4,x", WHOLE),
    "a bad one and one not there": ("bytes=x,1000-", WHOLE),
    "star": ("bytes=*", WHOLE),
    "negative both": ("bytes=-5-10", WHOLE),
    # ── other units ──
    "other unit": ("items=0-4", WHOLE),
    "none": ("none=0-4", WHOLE),
    "plural": ("bytess=0-4", WHOLE),
    "singular": ("byte=0-4", WHOLE),
    "no unit": ("=0-4", WHOLE),
    "range without unit": ("0-4", WHOLE),
    "kelvin sign": ("byte\u017f=0-4", WHOLE),  # LATIN SMALL LETTER LONG S, whose upper case is S
}

# Rows on which httprange decides otherwise, and why both may.
DIFFERENT = {
    "20 digits": "we take at most 19 digits; a server may ignore any Range (RFC 9110 § 14.2)",
    "20 digits in front": "the same",
    "20 digits as suffix": "the same",
    "20 zeros": "the same",
    "a thousand digits": "the same",
    "a byte longer": "we ignore a field of more than 1,024 bytes",
    "sixteen and an empty one": "we count empty elements too: at most 16 of both",
}


def kind(answer: Answer) -> int | tuple[int, int]:
    """Return an answer in the form of the tables."""
    if answer.status != 206:
        return answer.status
    assert answer.body is not None
    assert answer.body.stop is not None
    return answer.body.start, answer.body.stop


def by_httprange(field: str, size: int, **conditions: Any) -> int | tuple[int, int]:
    """Return the answer of httprange, with our rule for more than one range."""
    decision = httprange.evaluate_range_request(
        method="GET",
        range_header=field,
        length=size,
        policy=httprange.RangePolicy(max_ranges=MAX_ELEMENTS, max_overlapping=MAX_ELEMENTS),
        on_excessive="ignore",
        **conditions,
    )
    if decision.status != 206:
        return decision.status
    (first, *more) = decision.ranges
    return WHOLE if more else (first.first, first.last + 1)


def check_fields(answer: Answer, size: int) -> None:
    """Check the header fields of an answer against each other."""
    fields = dict(answer.headers)
    assert len(fields) == len(answer.headers)
    assert fields["ETag"] == OURS
    if answer.status == 206:
        assert answer.body is not None
        assert answer.body.stop is not None
        assert fields["Content-Range"] == httprange.build_content_range(
            answer.body.start, answer.body.stop - 1, size
        )
        assert fields["Content-Length"] == str(answer.body.size)
    elif answer.status == 416:
        assert fields["Content-Range"] == f"bytes */{size}"
        assert (answer.body, fields["Content-Length"]) == (None, "0")
    else:
        assert "Content-Range" not in fields
        assert answer.body == ByteRange(0, size)
        assert fields["Content-Length"] == str(size)
    assert fields["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(("field", "expected"), RANGES.values(), ids=RANGES)
def test_range(field: str, expected: int | tuple[int, int]) -> None:
    answer = evaluate("GET", [("Host", "here"), ("range", field)], size=SIZE, etag=ETAG)
    assert kind(answer) == expected
    check_fields(answer, SIZE)


@pytest.mark.parametrize("name", RANGES)
def test_range_as_httprange_sees_it(name: str) -> None:
    field, expected = RANGES[name]
    assert (by_httprange(field, SIZE) == expected) == (name not in DIFFERENT)


@pytest.mark.parametrize("name", RANGES)
def test_head_knows_no_ranges(name: str) -> None:
    answer = evaluate("HEAD", [("Range", RANGES[name][0])], size=SIZE, etag=ETAG)
    assert (answer.status, answer.body) == (200, None)
    assert dict(answer.headers)["Content-Length"] == str(SIZE)


@pytest.mark.parametrize("name", RANGES)
def test_an_archive_of_unknown_size_has_no_ranges(name: str) -> None:
    answer = evaluate("GET", [("Range", RANGES[name][0])])
    assert answer == Answer(200, (("Accept-Ranges", "none"),), ByteRange(0, None))


SIZES: dict[str, tuple[str, int, int | tuple[int, int]]] = {
    "in 8 TiB": (f"bytes={HUGE - 1}-", HUGE, (HUGE - 1, HUGE)),
    "all of 8 TiB": ("bytes=0-", HUGE, (0, HUGE)),
    "suffix of 8 TiB": ("bytes=-1", HUGE, (HUGE - 1, HUGE)),
    "behind 8 TiB": (f"bytes={HUGE}-", HUGE, NOTHING),
    "one byte": ("bytes=0-0", 1, (0, 1)),
    "one byte, suffix": ("bytes=-1", 1, (0, 1)),
    "behind one byte": ("bytes=1-", 1, NOTHING),
    "nothing, from zero": ("bytes=0-", 0, NOTHING),
    "nothing, suffix": ("bytes=-5", 0, WHOLE),
    "nothing, suffix zero": ("bytes=-0", 0, NOTHING),
}


@pytest.mark.parametrize(("field", "size", "expected"), SIZES.values(), ids=SIZES)
def test_range_of_another_size(field: str, size: int, expected: int | tuple[int, int]) -> None:
    answer = evaluate("GET", [("Range", field)], size=size, etag=ETAG)
    assert kind(answer) == expected
    check_fields(answer, size)
    if size:  # where there is nothing, httprange always answers 200
        assert by_httprange(field, size) == expected


# ── several lines, other names ──

LINES: dict[str, tuple[list[tuple[str, str]], int | tuple[int, int]]] = {
    "no range": ([], WHOLE),
    "name in capitals": ([("RANGE", "bytes=0-4")], (0, 5)),
    "twice the same": ([("Range", "bytes=0-4"), ("Range", "bytes=0-4")], WHOLE),
    "two lines": ([("Range", "bytes=0-4"), ("range", "bytes=5-9")], WHOLE),
    "a line and its rest": ([("Range", "bytes=0-4"), ("Range", "5-9")], (0, 10)),
    "Request-Range": ([("Request-Range", "bytes=0-4")], WHOLE),
    "X-Range": ([("X-Range", "bytes=0-4")], WHOLE),
    "Unless-Modified-Since": ([("Unless-Modified-Since", "x"), ("Range", "bytes=0-4")], (0, 5)),
}


@pytest.mark.parametrize(("headers", "expected"), LINES.values(), ids=LINES)
def test_lines(headers: list[tuple[str, str]], expected: int | tuple[int, int]) -> None:
    assert kind(evaluate("GET", headers, size=SIZE, etag=ETAG)) == expected


# ── If-Range ──

IF_RANGE: dict[str, tuple[str, bool]] = {
    "ours": (OURS, True),
    "ours, weak": (f"W/{OURS}", False),
    "without quotes": (ETAG, False),
    "another": ('"another"', False),
    "ours in capitals": (OURS.upper(), False),
    "ours and more": (f'{OURS}, "b"', False),
    "ours twice": (f"{OURS}, {OURS}", False),
    "a prefix": (OURS[:-2] + '"', False),
    "star": ("*", False),
    "empty": ("", False),
    "empty tag": ('""', False),
    "a date": ("Wed, 21 Oct 2015 07:28:00 GMT", False),
    "a date to come": ("Wed, 21 Oct 2065 07:28:00 GMT", False),
    "single quotes": (f"'{ETAG}'", False),
    "not closed": (OURS[:-1], False),
}


@pytest.mark.parametrize(("field", "holds"), IF_RANGE.values(), ids=IF_RANGE)
def test_if_range(field: str, holds: bool) -> None:
    headers = [("Range", "bytes=5-9"), ("If-Range", field)]
    answer = evaluate("GET", headers, size=SIZE, etag=ETAG)
    assert kind(answer) == ((5, 10) if holds else WHOLE)
    check_fields(answer, SIZE)
    assert etag_oracle.if_range(field, OURS) == holds
    assert by_httprange("bytes=5-9", SIZE, if_range=field, etag=OURS) == kind(answer)


@pytest.mark.parametrize("field", ["bytes=1000-", "bytes=-0"])
def test_if_range_that_does_not_hold_comes_before_416(field: str) -> None:
    headers = [("Range", field), ("If-Range", '"another"')]
    assert evaluate("GET", headers, size=SIZE, etag=ETAG).status == 200
    assert evaluate("GET", [("Range", field), ("If-Range", OURS)], size=SIZE, etag=ETAG).status == 416


def test_if_range_means_nothing_without_a_range() -> None:
    assert evaluate("GET", [("If-Range", '"another"')], size=SIZE, etag=ETAG).status == 200


def test_if_range_twice_holds_never() -> None:
    headers = [("Range", "bytes=5-9"), ("If-Range", OURS), ("If-Range", OURS)]
    assert evaluate("GET", headers, size=SIZE, etag=ETAG).status == 200


def test_if_range_holds_never_where_there_is_no_etag() -> None:
    headers = [("Range", "bytes=5-9"), ("If-Range", OURS)]
    assert evaluate("GET", headers, size=SIZE).status == 200


# ── preconditions: what If-Match and If-None-Match have, and the statuses that follow ──

STRONG, WEAK, OTHER = "ours", "ours, but weak", "not ours"

TAGS: dict[str, tuple[list[str], str]] = {
    "ours": ([OURS], STRONG),
    "star": (["*"], STRONG),
    "star and commas": ([", * ,"], STRONG),
    "star with blanks": (["  *\t"], STRONG),
    "among others": ([f'"a", {OURS}, "b"'], STRONG),
    "without blanks": ([f'"a",{OURS},"b"'], STRONG),
    "empty elements": ([f',, "a" ,,{OURS},'], STRONG),
    "in a second line": (['"a"', OURS], STRONG),
    "between empty lines": (["", OURS, ""], STRONG),
    "weak": ([f"W/{OURS}"], WEAK),
    "weak among others": ([f'"a", W/{OURS}'], WEAK),
    "weak and strong": ([f"W/{OURS}, {OURS}"], STRONG),
    "after a weak one": ([f'W/"a", {OURS}'], STRONG),
    "a comma in another tag": ([f'"a,b", {OURS}'], STRONG),
    "a backslash in another tag": ([f'"a\\", {OURS}'], STRONG),
    "letters beyond ASCII": ([f'"é", {OURS}'], STRONG),
    "another": (['"a"'], OTHER),
    "others": (['"a", "b", W/"c"'], OTHER),
    "empty tag": (['""'], OTHER),
    "capitals": ([OURS.upper()], OTHER),
    "prefix": ([f'"{ETAG[:-1]}"'], OTHER),
    "longer": ([f'"{ETAG}0"'], OTHER),
    "star in quotes": (['"*"'], OTHER),
    "empty": ([""], OTHER),
    "blank": (["  "], OTHER),
    "commas": ([",,,"], OTHER),
    "without quotes": ([ETAG], OTHER),
    "single quotes": ([f"'{ETAG}'"], OTHER),
    "not closed": ([f'"{ETAG}'], OTHER),
    "not opened": ([f'{ETAG}"'], OTHER),
    "only a quote": (['"'], OTHER),
    "small w": ([f"w/{OURS}"], OTHER),
    "W without slash": ([f"W{OURS}"], OTHER),
    "W and a blank": ([f"W/ {OURS}"], OTHER),
    "W twice": ([f"W/W/{OURS}"], OTHER),
    "W alone": (["W/"], OTHER),
    "two stars": (["*, *"], OTHER),
    "star and ours": ([f"*, {OURS}"], OTHER),
    "ours and star": ([f"{OURS}, *"], OTHER),
    "ours, then malformed": ([f"{OURS}, x"], OTHER),
    "malformed, then ours": ([f"x, {OURS}"], OTHER),
    "no comma": ([f'"a" {OURS}'], OTHER),
    "glued": ([f'"a"{OURS}'], OTHER),
    "semicolon": ([f'"a"; {OURS}'], OTHER),
    "blank in a tag": ([f'"a b", {OURS}'], OTHER),
    "control in a tag": ([f'"a\x01", {OURS}'], OTHER),
    "delete in a tag": ([f'"a\x7f", {OURS}'], OTHER),
    "line feed": ([f"{OURS}\n"], OTHER),
    "10,000 others": (['"a", ' * 10_000 + OURS], STRONG),
    "10,000 commas": (["," * 10_000 + OURS], STRONG),
    "10,000 quotes": (['"' * 10_001], OTHER),
    "10,000 times W/": (["W/" * 10_000], OTHER),
}


@pytest.mark.parametrize(("lines", "has"), TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_if_match(method: str, lines: list[str], has: str) -> None:
    answer = evaluate(method, [("If-Match", line) for line in lines], size=SIZE, etag=ETAG)
    assert answer.status == (200 if has == STRONG else 412)
    assert (etag_oracle.evaluate_preconditions(method, OURS, if_match=lines) or 200) == answer.status
    if answer.status == 412:
        assert answer == Answer(412, (("ETag", OURS), ("Content-Length", "0")), None)


@pytest.mark.parametrize(("lines", "has"), TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_if_none_match(method: str, lines: list[str], has: str) -> None:
    answer = evaluate(method, [("If-None-Match", line) for line in lines], size=SIZE, etag=ETAG)
    assert answer.status == (200 if has == OTHER else 412 if method == "POST" else 304)
    assert (etag_oracle.evaluate_preconditions(method, OURS, if_none_match=lines) or 200) == answer.status
    if answer.status == 304:
        assert answer == Answer(304, (("ETag", OURS),), None)


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
ORDER: dict[str, tuple[str, dict[str, str], int]] = {
    "If-Match fails before If-None-Match": ("GET", {"If-Match": '"a"', "If-None-Match": OURS}, 412),
    "both hold": ("GET", {"If-Match": OURS, "If-None-Match": '"a"'}, 200),
    "If-Match holds, the client has it": ("GET", {"If-Match": OURS, "If-None-Match": OURS}, 304),
    "If-None-Match before Range": ("GET", {"If-None-Match": OURS, "Range": "bytes=0-4"}, 304),
    "If-None-Match before 416": ("GET", {"If-None-Match": OURS, "Range": "bytes=1000-"}, 304),
    "If-Match before 416": ("GET", {"If-Match": '"a"', "Range": "bytes=1000-"}, 412),
    "If-Match and a range": ("GET", {"If-Match": OURS, "Range": "bytes=0-4"}, 206),
    "If-None-Match fails, a range": ("GET", {"If-None-Match": '"a"', "Range": "bytes=0-4"}, 206),
    "If-Match and If-Range": ("GET", {"If-Match": OURS, "If-Range": '"a"', "Range": "bytes=0-4"}, 200),
    "If-Unmodified-Since is ignored": ("GET", {"If-Unmodified-Since": DATE}, 200),
    "If-Modified-Since is ignored": ("GET", {"If-Modified-Since": DATE}, 200),
    "HEAD and a range": ("HEAD", {"Range": "bytes=1000-"}, 200),
    "HEAD, nothing new": ("HEAD", {"If-None-Match": OURS, "Range": "bytes=0-4"}, 304),
    "POST and a range": ("POST", {"Range": "bytes=0-4"}, 200),
    "get in small letters": ("get", {"Range": "bytes=0-4"}, 200),
    "OPTIONS": ("OPTIONS", {"If-Match": '"a"', "If-None-Match": OURS}, 200),
}


@pytest.mark.parametrize(("method", "headers", "status"), ORDER.values(), ids=ORDER)
def test_order(method: str, headers: dict[str, str], status: int) -> None:
    assert evaluate(method, headers.items(), size=SIZE, etag=ETAG).status == status


def test_an_archive_without_an_etag_matches_no_tag() -> None:
    assert evaluate("GET", [("If-Match", '"None"')]).status == 412
    assert evaluate("GET", [("If-Match", "*")]).status == 200
    assert evaluate("GET", [("If-None-Match", '"None"')]).status == 200


# ── any text ──


@given(st.text("0123456789-, \t=bytesBY", max_size=40), st.integers(1, 40))
@example("bytes=0-,0-", 1)
def test_any_range_is_what_httprange_says(text: str, size: int) -> None:
    for field in (text, f"bytes={text}"):
        if text.count(",") < MAX_ELEMENTS and max(map(len, field.replace(",", "-").split("-"))) < 19:
            assert kind(evaluate("GET", [("Range", field)], size=size, etag=ETAG)) == by_httprange(
                field, size
            )


@given(st.text('"W/*, \tax\x7f\x01é', max_size=30))
def test_any_list_of_tags_is_what_etag_says(field: str) -> None:
    for name, argument in (("If-Match", "if_match"), ("If-None-Match", "if_none_match")):
        expected = etag_oracle.evaluate_preconditions("GET", '"a"', **{argument: field}) or 200  # type: ignore[arg-type]
        assert evaluate("GET", [(name, field)], size=SIZE, etag="a").status == expected


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_answered(one: str, other: str) -> None:
    for name in ("Range", "If-Range", "If-Match", "If-None-Match"):
        answer = evaluate("GET", [(name, one), ("Range", other)], size=SIZE, etag=ETAG)
        assert answer.status in {200, 206, 304, 412, 416}


# ── linear: steps are counted, not seconds ──


def steps(call: Callable[[], object]) -> int:
    """Count the lines of Python that a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


GROWING: dict[str, tuple[str, Callable[[int], str]]] = {
    "tags": ("If-None-Match", lambda n: '"a", ' * n),
    "weak tags": ("If-Match", lambda n: 'W/"a",' * n),
    "one long tag": ("If-Match", lambda n: '"' + "a" * n + '"'),
    "commas": ("If-None-Match", lambda n: "," * n),
    "quotes": ("If-None-Match", lambda n: '"' * n),
    "openings": ("If-None-Match", lambda n: 'W/"' * n),
    "stars": ("If-Match", lambda n: "*," * n),
    "ranges": ("Range", lambda n: "bytes=" + "0-," * n),
    "digits": ("Range", lambda n: "bytes=0-" + "9" * n),
    "blanks": ("Range", lambda n: "bytes=" + " " * n + "0-1"),
    "dashes": ("Range", lambda n: "bytes=" + "-" * n),
}


@pytest.mark.parametrize(("name", "make"), GROWING.values(), ids=GROWING)
def test_work_grows_no_faster_than_the_field(name: str, make: Callable[[int], str]) -> None:
    few, many = (
        steps(lambda n=n: evaluate("GET", [(name, make(n))], size=SIZE, etag=ETAG))  # type: ignore[misc]
        for n in (500, 5000)
    )
    assert many <= 10 * few + 100
