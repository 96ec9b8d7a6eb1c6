"""JSON as Go reads and writes it: the facts that were observed there, and what has to be refused."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave.core import gojson
from aiodockersave.core.errors import DockerSaveError, InvalidDocumentError
from aiodockersave.core.gojson import Raw, Struct

TYPE = "application/vnd.oci.image.config.v1+json"

# ── writing ──

WRITTEN: list[tuple[str, Any, bytes]] = [
    ("null", None, b"null"),
    ("text", "a", b'"a"'),
    ("quotes", '"\\', rb'"\"\\"'),
    ("short escapes", "\b\f\n\r\t", rb'"\b\f\n\r\t"'),
    ("control characters", "\0\x01\x1f", rb'"\u0000\u0001\u001f"'),
    ("delete is kept", "\x7f", b'"\x7f"'),
    ("solidus is kept", "/", b'"/"'),
    ("HTML", "<a>&", rb'"\u003ca\u003e\u0026"'),
    ("line separators", "\u2028\u2029", rb'"\u2028\u2029"'),
    ("UTF-8", "é☃\U0001f433\ufffd", '"é☃\U0001f433\ufffd"'.encode()),
    ("lone surrogates", "\ud800a\udcff", '"\ufffda\ufffd"'.encode()),
    ("empty list", [], b"[]"),
    ("list", ["a", None, ()], b'["a",null,[]]'),
    ("tuple", ("a", "b"), b'["a","b"]'),
    ("empty map", {}, b"{}"),
    ("map is sorted", {"b": "1", "a": "2", "B": "3"}, b'{"B":"3","a":"2","b":"1"}'),
    ("map by UTF-8", {"\U00010000": "1", "\uffee": "2"}, '{"\uffee":"2","\U00010000":"1"}'.encode()),
    ("escaped name", {'a"<': "1"}, rb'{"a\"\u003c":"1"}'),
    ("nested", {"name": {"tag": "id"}}, b'{"name":{"tag":"id"}}'),
    ("tokens", {"os": b'"linux"', "n": Raw(b"1E5")}, b'{"n":1E5,"os":"linux"}'),
    ("a token alone", b"-0", b"-0"),
    ("empty struct", Struct([]), b"{}"),
    (
        "structs keep their order",
        [Struct([("Config", "x.json"), ("RepoTags", []), ("Layers", ["a.tar"])])],
        b'[{"Config":"x.json","RepoTags":[],"Layers":["a.tar"]}]',
    ),
]


@pytest.mark.parametrize(("value", "expected"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN])
def test_encode(value: Any, expected: bytes) -> None:
    assert gojson.encode(value) == expected


@pytest.mark.parametrize("value", [1, 1.5, True, {"a": {1}}, [object()], bytearray(b"1")])
def test_encode_refuses_other_types(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot write a"):
        gojson.encode(value)


texts = st.text()
values = st.recursive(
    texts | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_what_is_written_is_read_again(value: object) -> None:
    data = gojson.encode(value)  # type: ignore[arg-type]
    assert json.loads(data) == value
    assert gojson.parse(data, TYPE, unique=True) == value


# ── reading tokens ──

TOKENS: list[tuple[str, bytes, dict[str, bytes] | None]] = [
    ("empty object", b"{}", {}),
    ("empty object with space", b" \t\r\n{ \n} ", {}),
    ("null", b" null\n", None),
    ("space", b' { "a" : 1 ,\r\n\t"b":[ 1 , "x y" ] } ', {"a": b"1", "b": b'[1,"x y"]'}),
    ("numbers stay", b'{"a":1E5,"b":-0,"c":2.0,"d":' + b"9" * 5000 + b"}", {
        "a": b"1E5", "b": b"-0", "c": b"2.0", "d": b"9" * 5000,
    }),
    ("escapes stay", rb'{"a":"\/\u00e9\ud800\"\\"}', {"a": rb'"\/\u00e9\ud800\"\\"'}),
    ("HTML is escaped", '{"a":"<&>\u2028\u2029"}'.encode(), {"a": rb'"\u003c\u0026\u003e\u2028\u2029"'}),
    ("HTML in inner names", b'{"a":{"<":1}}', {"a": rb'{"\u003c":1}'}),
    ("invalid UTF-8 stays", b'{"a":"\xff\xed\xa0\x80","b":"\x7f"}', {"a": b'"\xff\xed\xa0\x80"', "b": b'"\x7f"'}),
    ("order and duplicates inside stay", b'{"a":{"z":1, "b":2, "z":3}}', {"a": b'{"z":1,"b":2,"z":3}'}),
    ("the last wins", b'{"a":1,"b":2,"a":3}', {"a": b"3", "b": b"2"}),
    ("a later null wins", b'{"a":1,"a":null}', {"a": b"null"}),
    ("names are unescaped", rb'{"\u006fs":1,"os":2,"OS":3}', {"os": b"2", "OS": b"3"}),
    ("names with invalid UTF-8", b'{"\xff":1,"\\ud800":2}', {"\ufffd": b"2"}),
    ("names of two bytes missing a third", b'{"\xe2\x82":1}', {"\ufffd\ufffd": b"1"}),
    ("surrogate pairs", rb'{"\ud83d\udc33":1}', {"\U0001f433": b"1"}),
    ("empty name", b'{"":""}', {"": b'""'}),
    ("string with brackets", b'{"a":"}],{[ \\" :"}', {"a": b'"}],{[ \\" :"'}),
    ("literals", b'{"a":true,"b":false,"c":null}', {"a": b"true", "b": b"false", "c": b"null"}),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in TOKENS], ids=[row[0] for row in TOKENS])
def test_raw_object(data: bytes, expected: dict[str, bytes] | None) -> None:
    assert gojson.raw_object(data, TYPE) == expected


@pytest.mark.parametrize("data", [row[1] for row in TOKENS], ids=[row[0] for row in TOKENS])
def test_tokens_are_written_as_they_are(data: bytes) -> None:
    members = gojson.raw_object(data, TYPE)
    again = gojson.encode(members)
    assert gojson.raw_object(again, TYPE) == members
    assert gojson.raw_object(b" " + again + b"\n", TYPE) == members


@given(st.dictionaries(texts, values, max_size=5), st.sampled_from([None, 0, 2]))
def test_raw_object_of_any(value: dict[str, object], indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=False, indent=indent).encode()
    members = gojson.raw_object(data, TYPE)
    assert members is not None
    assert {name: json.loads(token) for name, token in members.items()} == value
    assert all(token == gojson.raw_object(b'{"a":' + token + b"}", TYPE)["a"] for token in members.values())  # type: ignore[index]


REFUSED: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("only space", b" \n"),
    ("cut off", b'{"a":1'),
    ("cut off after a comma", b'{"a":1,'),
    ("cut off after a name", b'{"a"'),
    ("cut off in a string", b'{"a":"b'),
    ("cut off in an escape", b'{"a":"\\'),
    ("byte order mark", b'\xef\xbb\xbf{"a":1}'),
    ("trailing garbage", b'{"a":1}x'),
    ("a second document", b"{}{}"),
    ("garbage after null", b"nullx"),
    ("garbage after null and space", b"null null"),
    ("zero byte at the end", b"{}\0"),
    ("other white space", b'{"a":\x0b1}'),
    ("no-break space", '{"a":\u00a01}'.encode()),
    ("form feed in front", b"\x0c{}"),
    ("control character in a string", b'{"a":"\n"}'),
    ("zero byte in a string", b'{"a":"\0"}'),
    ("tab in a name", b'{"a\t":1}'),
    ("NaN", b'{"a":NaN}'),
    ("Infinity", b'{"a":[Infinity]}'),
    ("-Infinity", b'{"a":-Infinity}'),
    ("leading zero", b'{"a":01}'),
    ("plus", b'{"a":+1}'),
    ("minus alone", b'{"a":-}'),
    ("no digits after the point", b'{"a":1.}'),
    ("no digits before the point", b'{"a":.5}'),
    ("no digits in the exponent", b'{"a":1e}'),
    ("hexadecimal", b'{"a":0x1}'),
    ("underscore", b'{"a":1_0}'),
    ("other digits", '{"a":\u0661}'.encode()),
    ("other digits after the first", '{"a":1\u0661}'.encode()),
    ("other digits in an escape", '{"a":"\\u006\u0661"}'.encode()),
    ("unknown escape", rb'{"a":"\x41"}'),
    ("quote escape", rb'{"a":"\'"}'),
    ("short escape", rb'{"a":"\u12"}'),
    ("signed escape", rb'{"a":"\u+123"}'),
    ("bad literal", b'{"a":nulL}'),
    ("capital literal", b'{"a":True}'),
    ("single quotes", b"{'a':1}"),
    ("bare name", b"{a:1}"),
    ("number as name", b"{1:1}"),
    ("comma at the end", b'{"a":1,}'),
    ("comma at the end of a list", b'{"a":[1,]}'),
    ("two commas", b'{"a":1,,"b":2}'),
    ("no comma", b'{"a":1 "b":2}'),
    ("no colon", b'{"a" 1}'),
    ("no value", b'{"a":}'),
    ("comment", b'{"a":1/**/}'),
    ("wrong bracket", b'{"a":[1}]'),
    ("raw invalid UTF-8 outside of strings", b'{"a":\xff}'),
    ("UTF-16", '{"a":1}'.encode("utf-16-le")),
    ("too deep", b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    ("much too deep", b'{"a":' + b"[" * 200_000),
    ("much too deep in objects", b'{"a":' * 200_000),
]


@pytest.mark.parametrize("data", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(data: bytes) -> None:
    for read in (gojson.raw_object, gojson.parse):
        with pytest.raises(InvalidDocumentError) as caught:
            read(data, TYPE)
        assert caught.value.media_type == TYPE
        assert caught.value.__cause__ is None
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"[]", b'"a"', b"1", b"true", b"nul"])
def test_no_object(data: bytes) -> None:
    with pytest.raises(InvalidDocumentError, match=r"Expecting '{' at character 0"):
        gojson.raw_object(data, TYPE)


@given(st.text('{}[]":,\\ \n<nul10-.eE+u\u2028', max_size=12).map(str.encode) | st.binary(max_size=8))
def test_never_another_error(data: bytes) -> None:
    """Both readers answer or refuse, whatever the bytes are, and one reads whatever the other reads."""
    raw: object = InvalidDocumentError
    value: object = InvalidDocumentError
    with suppress(InvalidDocumentError):
        raw = gojson.raw_object(data, TYPE)
    with suppress(InvalidDocumentError):
        value = gojson.parse(data, TYPE)
    assert (raw is None) == (value is None)
    if isinstance(value, dict):
        assert isinstance(raw, dict)
        assert raw.keys() == {_as_go(name) for name in value}


def _as_go(name: str) -> str:
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in name)


# ── nesting ──


@pytest.mark.parametrize("levels", [1, 100, 500])
def test_deep_enough(levels: int) -> None:
    token = b"[" * levels + b"]" * levels
    assert gojson.raw_object(b'{"a":' + token + b"}", TYPE) == {"a": token}


def test_depth_counts_no_brackets_in_strings() -> None:
    token = b'["' + b"[{" * 10_000 + rb"\"[" + b'",' + b"[]," * 10_000 + b"0]"
    assert gojson.raw_object(b'{"a":' + token + b"}", TYPE) == {"a": token}


def test_go_reads_as_deep_as_python_can() -> None:
    """Either the token or an error, never a crash, on every Python."""
    token = b"[" * 9_999 + b"]" * 9_999
    answer: object
    try:
        answer = gojson.raw_object(b'{"a":' + token + b"}", TYPE)
    except InvalidDocumentError as error:
        answer = error.reason
    assert answer in ({"a": token}, "it is nested too deeply")


def test_recursion_error_of_a_shallow_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(text: str, at: int) -> tuple[object, int]:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(gojson, "_TOKENS", type("Scanner", (), {"raw_decode": staticmethod(scan)}))
    with pytest.raises(InvalidDocumentError, match="nested too deeply"):
        gojson.raw_object(b'{"a":1}', TYPE)


def test_a_hostile_string_costs_linear_time() -> None:
    """A quote that is never closed, with escaped quotes after it, behind enough brackets to be counted."""
    data = b'{"a":[' + b"[]," * 10_001 + b'"' + rb"\"" * 1_000_000
    with pytest.raises(InvalidDocumentError, match="Unterminated string"):
        gojson.raw_object(data, TYPE)


# ── reading values ──


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"null", None),
        (b'[1,-2,1.5,"a",true,{}]', [1, -2, 1.5, "a", True, {}]),
        (b'{"size":9223372036854775808}', {"size": 2**63}),
        (b'{"a":1,"a":2}', {"a": 2}),
    ],
)
def test_parse(data: bytes, expected: object) -> None:
    assert gojson.parse(data, TYPE) == expected


@pytest.mark.parametrize("digits", [4300, 4301, 100_000])
def test_long_numbers_are_no_error(digits: int) -> None:
    value = gojson.parse(b'{"a":' + b"9" * digits + b"}", TYPE)
    assert value == {"a": float("inf")}


@pytest.mark.parametrize(
    "data", [b'{"a":1,"a":1}', b'[{"x":{"b":1,"a":2,"a":3}}]', rb'{"os":1,"\u006fs":1}'], ids=ascii
)
def test_names_are_unique(data: bytes) -> None:
    gojson.parse(data, TYPE)
    with pytest.raises(InvalidDocumentError, match="stands twice in one object"):
        gojson.parse(data, TYPE, unique=True)


def test_parse_wants_utf_8() -> None:
    with pytest.raises(InvalidDocumentError, match="it is not UTF-8 at byte 6"):
        gojson.parse(b'{"a":"\xff"}', TYPE)


def test_reasons() -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        gojson.parse(b'{"a":NaN}', TYPE)
    assert isinstance(caught.value, DockerSaveError)
    assert str(caught.value) == f"invalid document ({TYPE}): it is not JSON: NaN is no value"


def test_recursion_limit_is_left_alone() -> None:
    before = sys.getrecursionlimit()
    with pytest.raises(InvalidDocumentError):
        gojson.parse(b"[" * 100_000, TYPE)
    assert sys.getrecursionlimit() == before


# ── names ──

FOLDED = {
    "config": True,
    "CONFIG": True,
    "Config": True,
    "conﬁg": False,  # a ligature, which str.casefold takes apart
    "conﬁG": False,
    "confıg": False,  # a dotless i
    "confİg": False,  # a dotted I
    "ｃonfig": False,  # a wide letter
    "cönfig": False,
    "config\0": False,
    "config ": False,
    "": False,
}


@pytest.mark.parametrize(("name", "is_same"), FOLDED.items())
def test_names_are_folded_as_go_folds_them(name: str, is_same: bool) -> None:
    assert (gojson.fold(name) == gojson.fold("config")) is is_same


@pytest.mark.parametrize(("name", "field"), [("digeſt", "digest"), ("\u212aelvin", "kelvin"), ("oſ", "os")])
def test_two_letters_of_unicode_are_letters_of_ascii(name: str, field: str) -> None:
    """As ``unicode.SimpleFold`` has it: the long s and the Kelvin sign."""
    assert gojson.fold(name) == field


def test_every_other_letter_is_none_of_ascii() -> None:
    like_ascii = [chr(code) for code in range(0x80, 0x110000) if gojson.fold(chr(code)).isascii()]
    assert like_ascii == ["\u017f", "\u212a"]
