"""Headers of members: Go's golden bytes, the borders between USTAR and PAX, and what tarfile reads of them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave.core import tar

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "golden" / "tar-headers.json").read_bytes()
)
HEX = "0123456789abcdef" * 4
HEX_512 = HEX * 2


def header_of(name: str, size: int = 0, link: str = "") -> bytes:
    return tar.link_header(name, link) if link else tar.member_header(name, size)


def read_back(header: bytes) -> tarfile.TarInfo:
    """Let the standard library read a header; the data are not there, and not looked for."""
    with tarfile.open(fileobj=io.BytesIO(header + tar.END_OF_ARCHIVE)) as archive:
        found = archive.next()
    assert found is not None
    return found


def checksum_field(block: bytes) -> bytes:
    return block[148:156]


def pax_records(header: bytes) -> list[bytes]:
    size = int(header[124:135], 8)
    assert header[156:157] == b"x"
    assert header[512 + size : 1024] == bytes(512 - size)
    return header[512 : 512 + size].splitlines(keepends=True)


# ── Go's own bytes ──


@pytest.mark.parametrize("row", GOLDEN, ids=[f"{row['name'][-20:]}-{row['size']}" for row in GOLDEN])
def test_a_header_is_gos(row: dict[str, Any]) -> None:
    header = header_of(row["name"], row["size"], row.get("linkname", ""))
    assert header == base64.b64decode(row["header_base64"])


CHECKSUMS = [
    pytest.param(header_of(f"{HEX}.tar", 0), [b"020570"], id="empty layer"),
    pytest.param(header_of(f"{HEX}.tar", 1), [b"020571"], id="layer of one byte"),
    pytest.param(header_of(f"{HEX}.tar", 2**33 - 1), [b"020705"], id="largest in octal"),
    pytest.param(header_of(f"{HEX}.json", 1234567), [b"021005"], id="config"),
    pytest.param(header_of("manifest.json", 2), [b"011674"], id="manifest.json"),
    pytest.param(header_of("repositories", 2), [b"011645"], id="repositories"),
    pytest.param(header_of(f"{HEX}/VERSION", 3), [b"021133"], id="VERSION"),
    pytest.param(header_of(f"{HEX}/json", 77), [b"020763"], id="json"),
    pytest.param(header_of(f"{HEX}/layer.tar", link=f"../{HEX}.tar"), [b"033502"], id="link"),
    pytest.param(header_of(f"{HEX}.tar", 2**33), [b"021613", b"020570"], id="8 GiB"),
    pytest.param(header_of(f"{HEX}.tar", 2**40 + 7), [b"021616", b"020570"], id="1 TiB and 7 bytes"),
]


@pytest.mark.parametrize(("header", "sums"), CHECKSUMS)
def test_checksums_are_those_that_go_wrote(header: bytes, sums: list[bytes]) -> None:
    blocks = [header[:512], header[1024:]] if len(header) > 512 else [header]
    assert [checksum_field(block) for block in blocks] == [each + b"\0 " for each in sums]


# ── which format ──

DIRECTORY_155 = "d" * 155
BORDERS = [
    # name, size, link; the name's field, the prefix, the records, in the order of Go's sorted keys
    pytest.param("n" * 100, 0, "", "n" * 100, "", [], id="name that fills its field"),
    pytest.param(
        "n" * 101, 0, "", "n" * 100, "", [b"111 path=" + b"n" * 101 + b"\n"], id="name one byte longer"
    ),
    pytest.param(
        f"{DIRECTORY_155}/{'b' * 100}", 0, "", "b" * 100, DIRECTORY_155, [], id="name that fills both fields"
    ),
    pytest.param(
        f"d{DIRECTORY_155}/b",
        0,
        "",
        "d" * 100,
        "",
        [f"168 path=d{DIRECTORY_155}/b\n".encode()],
        id="directory longer than the prefix",
    ),
    pytest.param(
        f"d/{'b' * 101}", 0, "", f"d/{'b' * 98}", "", [f"113 path=d/{'b' * 101}\n".encode()], id="long base"
    ),
    pytest.param(
        f"/{'b' * 100}", 0, "", f"/{'b' * 99}", "", [f"111 path=/{'b' * 100}\n".encode()], id="no prefix"
    ),
    pytest.param("l", 0, "t" * 100, "l", "", [], id="link that fills its field"),
    pytest.param(
        "l", 0, "t" * 101, "l", "", [b"115 linkpath=" + b"t" * 101 + b"\n"], id="link one byte longer"
    ),
    pytest.param("n", 2**33 - 1, "", "n", "", [], id="largest size in octal"),
    pytest.param("n", 2**33, "", "n", "", [b"19 size=8589934592\n"], id="one byte more"),
    pytest.param("n", 2**40 + 7, "", "n", "", [b"22 size=1099511627783\n"], id="terabyte"),
    pytest.param(
        f"{HEX_512}.tar",
        2**33,
        "",
        HEX_512[:100],
        "",
        [f"142 path={HEX_512}.tar\n".encode(), b"19 size=8589934592\n"],
        id="sha512 and 8 GiB",
    ),
    pytest.param(
        f"{HEX}/layer.tar",
        0,
        f"../{HEX_512}.tar",
        f"{HEX}/layer.tar",
        "",
        [f"149 linkpath=../{HEX_512}.tar\n".encode()],
        id="link to sha512",
    ),
    pytest.param(
        f"{'n' * 99}/{'b' * 120}",
        0,
        "",
        "n" * 99,
        "",
        [f"230 path={'n' * 99}/{'b' * 120}\n".encode()],
        id="cut behind a slash",
    ),
]


@pytest.mark.parametrize(("name", "size", "link", "field", "prefix", "records"), BORDERS)
def test_pax_is_used_exactly_where_a_field_is_too_small(
    name: str, size: int, link: str, field: str, prefix: str, records: list[bytes]
) -> None:
    header = header_of(name, size, link)
    main = header[-512:]
    assert len(header) == (1536 if records else 512)
    assert main[:100].rstrip(b"\0").decode() == field
    assert main[345:500].rstrip(b"\0").decode() == prefix
    assert main[157:257].rstrip(b"\0").decode() == link[:100]
    assert int(main[124:135], 8) == (size if size < 2**33 else 0)
    if records:
        assert pax_records(header) == records
    found = read_back(header)
    assert (found.name.removeprefix("/"), found.size, found.linkname) == (name.removeprefix("/"), size, link)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(f"{HEX_512}.tar", f"PaxHeaders.0/{HEX_512}"[:100], id="in the root"),
        pytest.param(f"{HEX}/layer.tar", f"{HEX}/PaxHeaders.0/layer.tar", id="in a directory"),
        # 13 characters of the middle part and 86 others: the cut leaves a slash, which goes.
        pytest.param(f"{'d' * 86}/layer.tar", f"{'d' * 86}/PaxHeaders.0", id="cut behind a slash"),
    ],
)
def test_an_extended_header_has_a_name_of_its_own(name: str, expected: str) -> None:
    block = tar.link_header(name, "t" * 101)[:512]
    assert block[:100].rstrip(b"\0").decode() == expected
    assert block[329:345] == bytes(16), "Go leaves the device fields of an x header empty"


def test_the_length_of_a_record_counts_itself() -> None:
    for length in range(980, 990):  # the number gets a fourth digit at 986
        header = tar.link_header("l", "t" * length)
        record = header[512:-512].rstrip(b"\0")
        number, _, rest = record.partition(b" ")
        assert int(number) == len(record)
        assert rest == b"linkpath=" + b"t" * length + b"\n"


def test_a_negative_size_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="negative size of member x"):
        tar.member_header("x", -1)


# ── small limits ──


def test_the_largest_octal_size_is_a_limit_that_tests_may_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_OCTAL_SIZE", 9)
    assert len(tar.member_header("n", 9)) == 512
    header = tar.member_header("n", 10)
    assert pax_records(header) == [b"11 size=10\n"]
    assert read_back(header).size == 10


# ── what others read ──

NAMES = st.lists(
    st.text("abcdefghij0123456789._-", min_size=1, max_size=150).filter(lambda part: part not in {".", ".."}),
    min_size=1,
    max_size=4,
).map("/".join)


def as_file(found: tarfile.TarInfo) -> tuple[object, ...]:
    return (found.type, found.mode, found.uid, found.gid, found.uname, found.gname, found.mtime)


@given(name=NAMES, size=st.integers(0, 2**63 - 1) | st.integers(2**33 - 2, 2**33 + 2))
def test_tarfile_reads_a_file_of_any_name_and_size(name: str, size: int) -> None:
    found = read_back(tar.member_header(name, size))
    assert (found.name, found.size) == (name, size)
    assert as_file(found) == (tarfile.REGTYPE, 0o444, 0, 0, "", "", 0)


@given(name=NAMES, target=NAMES)
def test_tarfile_reads_a_link_of_any_name_and_target(name: str, target: str) -> None:
    found = read_back(tar.link_header(name, target))
    assert (found.name, found.linkname, found.size) == (name, target, 0)
    assert as_file(found) == (tarfile.SYMTYPE, 0, 0, 0, "", "", 0)


@given(name=NAMES, size=st.integers(0, 2**34), write=st.sampled_from([tar.member_header, tar.link_header]))
def test_a_header_is_whole_blocks_with_right_checksums(
    name: str, size: int, write: Callable[..., bytes]
) -> None:
    header = write(name, size if write is tar.member_header else "t" * (size % 200 + 1))
    assert len(header) in {512, 1536}
    for block in [header] if len(header) == 512 else [header[:512], header[1024:]]:
        assert int(checksum_field(block)[:6], 8) == sum(block) - sum(checksum_field(block)) + 8 * ord(" ")
        assert block[257:265] == b"ustar\x0000"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1023, 1024, 2**33 - 1, 2**33])
def test_padding_fills_the_last_block(size: int) -> None:
    padding = tar.padding(size)
    assert padding == bytes(len(padding))
    assert len(padding) < 512
    assert (size + len(padding)) % 512 == 0


def test_two_blocks_end_an_archive() -> None:
    assert bytes(1024) == tar.END_OF_ARCHIVE
