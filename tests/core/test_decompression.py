"""Decompression: every backend, every cut, every damaged byte."""

from __future__ import annotations

import gzip
import itertools
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodockersave.core import decompression
from aiodockersave.core.decompression import Decompressor, PlainHash, sniff
from aiodockersave.core.errors import ContentTooLargeError, DecompressionError, MissingDependencyError
from aiodockersave.core.model import MAX_EXPANSION, Digest, Limits
from tests.support.images import hide_decompressors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

igzip_lib = pytest.importorskip("isal.igzip_lib")

BACKENDS = ["isal", "zlib", "zstd"]

# ── builders ──


def gzip_member(plain: bytes, flags: int = 0, level: int = 6) -> bytes:
    """A member with the optional header fields that the flags announce."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = deflate.compress(plain) + deflate.flush()
    head = b"\x1f\x8b\x08" + bytes((flags,)) + bytes(5) + b"\xff"
    head += struct.pack("<H", 5) + b"extra" if flags & 4 else b""
    head += b"name\0" if flags & 8 else b""
    head += b"comment\0" if flags & 16 else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & 2 else b""
    return head + body + struct.pack("<II", zlib.crc32(plain), len(plain))


def zstd_frame(plain: bytes, *, checksum: bool = True, sized: bool = True) -> bytes:
    options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: int(checksum)}
    if sized:
        return zstd.compress(plain, options=options)
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(plain) + compressor.flush()


def zstd_skippable(content: bytes, kind: int = 0) -> bytes:
    return bytes((0x50 + kind,)) + b"\x2a\x4d\x18" + struct.pack("<I", len(content)) + content


def zstd_windowed(window_log: int, mantissa: int = 0) -> bytes:
    """A frame of the three bytes ``abc`` that asks for a window of 2^log * (1 + mantissa / 8) bytes."""
    descriptor = (window_log - 10) << 3 | mantissa
    return b"\x28\xb5\x2f\xfd\x00" + bytes((descriptor,)) + struct.pack("<I", 3 << 3 | 1)[:3] + b"abc"


def member(backend: str, plain: bytes) -> bytes:
    return zstd_frame(plain) if backend == "zstd" else gzip_member(plain)


def make(
    backend: str,
    *,
    what: str = "layer",
    media_type: str | None = None,
    max_plain_size: int | None = None,
    **limits: Any,
) -> Decompressor:
    with pytest.MonkeyPatch.context() as patch:
        if backend == "zlib":
            hide_decompressors(patch)
        return Decompressor(
            "zstd" if backend == "zstd" else "gzip",
            what=what,
            media_type=media_type,
            max_plain_size=max_plain_size,
            **limits,
        )


def drain(decompressor: Decompressor, max_length: int = 1 << 20) -> Iterator[bytes]:
    while plain := decompressor.read(max_length):
        assert len(plain) <= max_length
        yield plain


def run(decompressor: Decompressor, pieces: Iterable[bytes], max_length: int = 1 << 20) -> bytes:
    out = bytearray()
    for piece in pieces:
        decompressor.feed(piece)
        for plain in drain(decompressor, max_length):
            out += plain
            assert decompressor.plain_size == len(out)
    decompressor.finish()
    return bytes(out)


def bytewise(blob: bytes) -> list[bytes]:
    return [blob[i : i + 1] for i in range(len(blob))]


def odd(blob: bytes) -> Iterator[bytes]:
    position = 0
    for size in itertools.cycle((3, 1, 251, 0, 17, 4099, 2)):
        if position >= len(blob):
            return
        yield blob[position : position + size]
        position += size


# ── sound streams ──


class Case(NamedTuple):
    id: str
    blob: bytes
    plain: bytes


RANDOM = random.Random(7).randbytes(20_000)
TEXT = b"".join(b"%d bottles of beer\n" % n for n in range(2000))
ZEROS = bytes(1 << 20)

GZIP_CASES = [
    Case("single", gzip_member(b"hello, hello"), b"hello, hello"),
    Case(
        "several",
        b"".join(map(gzip_member, (b"one", b"two" * 300, b"three"))),
        b"one" + b"two" * 300 + b"three",
    ),
    Case("empty members", gzip_member(b"") * 3 + gzip_member(b"x") + gzip_member(b"") * 2, b"x"),
    Case("nothing inside", gzip_member(b""), b""),
    Case("zeros", gzip_member(ZEROS), ZEROS),
    Case("random", gzip_member(RANDOM), RANDOM),
    Case("stored", gzip_member(RANDOM[:70], level=0), RANDOM[:70]),
    Case("text", gzip_member(TEXT) + gzip_member(TEXT, level=1), TEXT * 2),
    Case("standard library", gzip.compress(TEXT), TEXT),
    *(
        Case(
            f"flags {flags}",
            gzip_member(b"first first", flags) + gzip_member(b"second", flags),
            b"first firstsecond",
        )
        for flags in (1, 2, 4, 8, 16, 12, 31)
    ),
]
ZSTD_CASES = [
    Case("single", zstd_frame(b"hello, hello"), b"hello, hello"),
    Case(
        "several",
        b"".join(map(zstd_frame, (b"one", b"two" * 300, b"three"))),
        b"one" + b"two" * 300 + b"three",
    ),
    Case("empty frames", zstd_frame(b"") * 3 + zstd_frame(b"x") + zstd_frame(b"") * 2, b"x"),
    Case("nothing inside", zstd_frame(b""), b""),
    Case("zeros", zstd_frame(ZEROS), ZEROS),
    Case("random", zstd_frame(RANDOM), RANDOM),
    Case("text", zstd_frame(TEXT) + zstd_frame(TEXT, sized=False), TEXT * 2),
    Case("no checksum", zstd_frame(b"abc" * 9, checksum=False) * 2, b"abc" * 18),
    Case("no content size", zstd_frame(b"abc" * 9, sized=False) * 2, b"abc" * 18),
    Case("skippable first", zstd_skippable(b"seek table") + zstd_frame(b"abc"), b"abc"),
    Case("skippable between", zstd_frame(b"a") + zstd_skippable(b"", 15) + zstd_frame(b"b"), b"ab"),
    Case("skippable last", zstd_frame(b"abc") + zstd_skippable(b"TOC", 3) * 3, b"abc"),
    Case("skippable alone", zstd_skippable(b"nothing else"), b""),
    Case("window at the limit", zstd_windowed(27), b"abc"),
]
ROWS = [
    pytest.param(backend, case, id=f"{backend}-{case.id}")
    for backend in BACKENDS
    for case in (ZSTD_CASES if backend == "zstd" else GZIP_CASES)
]


@pytest.mark.parametrize(("backend", "case"), ROWS)
def test_sound_streams_in_any_pieces(backend: str, case: Case) -> None:
    for pieces in ([case.blob], bytewise(case.blob), odd(case.blob), [b"", case.blob, b""]):
        assert run(make(backend), pieces) == case.plain
    for max_length in (1000, 32768):
        assert run(make(backend), [case.blob], max_length) == case.plain


@pytest.mark.parametrize(("backend", "case"), [row for row in ROWS if len(row.values[1].blob) < 200])  # type: ignore[union-attr]
def test_every_cut_in_two(backend: str, case: Case) -> None:
    small_reads = (1, 3) if len(case.plain) < 100 else ()
    for cut in range(len(case.blob) + 1):
        for max_length in (1 << 20, *small_reads):
            assert run(make(backend), [case.blob[:cut], case.blob[cut:]], max_length) == case.plain


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_reads_hold_nothing_back(backend: str) -> None:
    # All input may have been taken in while a match (up to 258 bytes) did not fit into the last read.
    blob = member(backend, TEXT[:600] + bytes(600))
    for cut in range(len(blob)):
        got = []
        for max_length in (1, 7, 1 << 20):
            decompressor = make(backend)
            decompressor.feed(blob[:cut])
            got.append(b"".join(drain(decompressor, max_length)))
        assert got[0] == got[1] == got[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_read_size(backend: str) -> None:
    plain = b"ab" * 400
    blob = member(backend, plain) * 2
    for max_length in range(1, 810):
        assert run(make(backend), [blob], max_length) == plain * 2


def test_isal_reads_only_members_that_it_can_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go to zlib: members with two header fields, or with a checksum of the header."""
    read: list[int] = []
    decompressor = igzip_lib.IgzipDecompressor

    def note(**options: int) -> Any:
        read.append(flags)
        return decompressor(**options)

    monkeypatch.setattr(igzip_lib, "IgzipDecompressor", note)
    for flags in range(32):
        assert run(make("isal"), [gzip_member(b"abc", flags)]) == b"abc"
    assert read == [0, 4, 8, 16]


@pytest.mark.parametrize("backend", ["isal", "zlib"])
@pytest.mark.parametrize("flags", [4, 8, 16])
def test_long_header_fields(backend: str, flags: int) -> None:
    field = struct.pack("<H", 60_000) + bytes(60_000) if flags == 4 else b"n" * 60_000 + b"\0"
    sound = gzip_member(b"abc")
    blob = sound[:3] + bytes((flags,)) + sound[4:10] + field + sound[10:]
    assert run(make(backend), odd(blob)) == b"abc"


MEMBERS = st.lists(
    st.tuples(st.binary(max_size=400), st.integers(0, 31), st.integers(1, 40)), min_size=1, max_size=5
)


@given(
    backend=st.sampled_from(BACKENDS),
    members=MEMBERS,
    cuts=st.lists(st.integers(0, 3000), max_size=8),
    max_length=st.sampled_from([1, 2, 57, 258, 4096, 1 << 20]),
)
@settings(max_examples=300, deadline=None)
def test_round_trip(
    backend: str, members: list[tuple[bytes, int, int]], cuts: list[int], max_length: int
) -> None:
    plain = b"".join(data * times for data, _, times in members)
    if backend == "zstd":
        blob = b"".join(
            zstd_frame(data * times, checksum=bool(flags & 1), sized=bool(flags & 2))
            for data, flags, times in members
        )
    else:
        blob = b"".join(gzip_member(data * times, flags) for data, flags, times in members)
    edges = [0, *sorted(min(cut, len(blob)) for cut in cuts), len(blob)]
    pieces = [blob[start:stop] for start, stop in itertools.pairwise(edges)]
    max_length = max(max_length, len(plain) // 2000)
    assert run(make(backend), pieces, max_length) == plain


# ── damaged streams ──

HELLO = b"hello, hello, hello"
DAMAGED = [
    *(
        pytest.param(backend, gzip_member(HELLO, flags), id=f"{backend}-{flags}")
        for backend in ("isal", "zlib")
        for flags in (0, 8, 30)
    ),
    pytest.param("zstd", zstd_frame(HELLO), id="zstd-sized"),
    pytest.param("zstd", zstd_frame(HELLO, sized=False), id="zstd-unsized"),
]


@pytest.mark.parametrize(("backend", "blob"), DAMAGED)
def test_cut_off_at_every_byte(backend: str, blob: bytes) -> None:
    before = member(backend, b"before ")
    for size in range(len(blob)):
        for start, plain in ((b"", HELLO), (before, b"before " + HELLO)):
            if start and not size:
                continue  # cut between two members: nothing shows it
            decompressor = make(backend)
            decompressor.feed(start + blob[:size])
            assert plain.startswith(b"".join(drain(decompressor)))
            with pytest.raises(DecompressionError, match="cut off"):
                decompressor.finish()


@pytest.mark.parametrize(("backend", "blob"), DAMAGED)
def test_a_flipped_byte_is_an_error_or_harmless(backend: str, blob: bytes) -> None:
    undetected = set()
    for position, flip in itertools.product(range(len(blob)), (1, 2, 4, 8, 16, 32, 64, 128, 255)):
        damaged = blob[:position] + bytes((blob[position] ^ flip,)) + blob[position + 1 :]
        for pieces in ([damaged], bytewise(damaged)):
            try:
                assert run(make(backend), pieces) == HELLO
                undetected.add(position)
            except DecompressionError:
                pass
    # Every byte of the trailer (checksum, size) is verified.
    assert max(undetected, default=0) < len(blob) - (4 if backend == "zstd" else 8)
    if backend != "zstd":
        # Magic and method.
        assert not undetected & {0, 1, 2}


@pytest.mark.parametrize("backend", ["isal", "zlib"])
@pytest.mark.parametrize("flag", [32, 64, 128])
def test_reserved_header_flags_are_refused(backend: str, flag: int) -> None:
    with pytest.raises(DecompressionError):
        run(make(backend), [gzip_member(b"abc", flag)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "garbage", [b"\0" * n for n in (1, 3, 4, 512)] + [b"x", b"PK\x03\x04....", bytes(range(99))]
)
def test_anything_behind_the_last_member_is_refused(backend: str, garbage: bytes) -> None:
    for pieces in (
        [member(backend, b"abc") + garbage],
        [member(backend, b"abc"), garbage],
        bytewise(member(backend, b"abc") + garbage),
    ):
        with pytest.raises(DecompressionError, match=r"does not end where|behind its last member"):
            run(make(backend), pieces)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_other_compression_is_refused(backend: str) -> None:
    other = member("zlib" if backend == "zstd" else "zstd", b"abc")
    with pytest.raises(DecompressionError, match=f"{other[:4].hex()} is at its start"):
        run(make(backend), [other])
    with pytest.raises(DecompressionError, match=f"{other[:4].hex()} is behind its last member"):
        run(make(backend), [member(backend, b"abc") + other])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_is_final_and_names_the_media_type(backend: str) -> None:
    decompressor = make(backend, media_type="application/x-layer")
    decompressor.feed(b"something else")
    with pytest.raises(DecompressionError) as first:
        decompressor.read()
    assert first.value.media_type == "application/x-layer"
    for call in (decompressor.read, decompressor.finish, lambda: decompressor.feed(member(backend, b"abc"))):
        with pytest.raises(DecompressionError) as again:
            call()
        assert again.value is first.value
    with pytest.raises(DecompressionError) as unnamed:
        make(backend).finish()
    assert unnamed.value.media_type == ("zstd" if backend == "zstd" else "gzip")


@pytest.mark.parametrize(
    ("window_log", "mantissa"), [(27, 1), (28, 0), (31, 0), (41, 7)], ids=["2^27+", "2^28", "2^31", "largest"]
)
def test_zstd_window_above_the_limit(window_log: int, mantissa: int) -> None:
    with pytest.raises(DecompressionError, match=r"limit of 2\^27 bytes \(128 MiB\)"):
        run(make("zstd"), [zstd_windowed(window_log, mantissa)])


def test_zstd_checksum_is_verified() -> None:
    blob = zstd_frame(b"abc" * 100)
    with pytest.raises(DecompressionError, match="checksum"):
        run(make("zstd"), [blob[:-1] + bytes((blob[-1] ^ 1,))])


# ── bombs ──


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bomb_comes_in_bounded_reads(backend: str) -> None:
    blob = member(backend, bytes(32 << 20))
    decompressor = make(backend)
    tracemalloc.start()
    try:
        decompressor.feed(blob)
        assert sum(map(len, drain(decompressor, 1 << 16))) == 32 << 20
        decompressor.finish()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pieces_of", [lambda blob: [blob], bytewise], ids=["whole", "bytewise"])
def test_max_plain_size(backend: str, pieces_of: Callable[[bytes], list[bytes]]) -> None:
    blob = member(backend, b"x" * 3000) + member(backend, b"y" * 3000) + member(backend, b"")
    for max_length in (1, 999, 1 << 20):
        for limit in (6000, 6001):
            assert len(run(make(backend, max_plain_size=limit), pieces_of(blob), max_length)) == 6000
        for limit in (0, 1, 2999, 3000, 5999):
            decompressor = make(backend, what="the layer", max_plain_size=limit)
            with pytest.raises(ContentTooLargeError, match="the layer") as caught:
                run(decompressor, pieces_of(blob), max_length)
            assert caught.value.limit == limit
            assert decompressor.plain_size <= limit
            with pytest.raises(ContentTooLargeError):
                decompressor.read()


FREE = decompression.FREE_EXPANSION
MEBIBYTE = 1 << 20


def zeros(blocks: int) -> bytes:
    """A frame of so many blocks of 128 KiB of zeros, four bytes each: what zstd makes the most of."""
    block = 1 << 1 | (128 << 10) << 3
    blocks_of_zeros = (block.to_bytes(3, "little") + b"\0") * (blocks - 1)
    return b"\x28\xb5\x2f\xfd\0\x50" + blocks_of_zeros + (block | 1).to_bytes(3, "little") + b"\0"


def read_all(decompressor: Decompressor, pieces: Iterable[bytes]) -> int:
    for piece in pieces:
        decompressor.feed(piece)
        while decompressor.read():
            pass
    decompressor.finish()
    return decompressor.plain_size


@pytest.mark.parametrize("pieces_of", [lambda blob: [blob], bytewise], ids=["whole", "bytewise"])
def test_what_expands_without_end_is_stopped(pieces_of: Callable[[bytes], list[bytes]]) -> None:
    blob = zeros(1600)
    assert len(blob) < 6500
    decompressor = make("zstd", what="layer sha256:1")
    with pytest.raises(
        ContentTooLargeError, match=r"^layer sha256:1 is larger.* 1100 for each.*by max_expansion$"
    ) as caught:
        read_all(decompressor, pieces_of(blob))
    assert FREE <= decompressor.plain_size <= caught.value.limit <= FREE + 1100 * len(blob)
    assert "max_expansion" in str(caught.value)
    with pytest.raises(ContentTooLargeError):
        decompressor.read()
    with pytest.raises(ContentTooLargeError):
        decompressor.feed(b"")


@pytest.mark.parametrize(
    ("blob", "limits", "passes"),
    [
        (zeros(1600), {"max_expansion": None}, True),
        (zeros(1600), {"max_expansion": 33_000}, True),
        (zeros(1600), {"max_expansion": 20_000}, False),
        (zeros(512), {}, True),  # 64 MiB are free
        (zeros(528), {}, True),  # and a little more, for those that it was compressed to
        (zeros(570), {}, False),
        (zeros(512), {"max_expansion": 1}, True),
        (zeros(513), {"max_expansion": 1}, False),
        (zeros(512) + zeros(512), {}, False),  # frames count together
        (
            zeros(512) + b"\x50\x2a\x4d\x18" + (70_000).to_bytes(4, "little") + bytes(70_000) + zeros(512),
            {},
            True,
        ),
        (zeros(600), {"max_plain_size": 600 << 17}, False),
        (zeros(600), {"max_plain_size": 600 << 17, "max_expansion": None}, True),
    ],
    ids=str,
)
def test_how_much_it_may_expand(blob: bytes, limits: dict[str, Any], passes: bool) -> None:
    decompressor = make("zstd", **limits)
    if passes:
        assert read_all(decompressor, [blob]) % (128 << 10) == 0
    else:
        with pytest.raises(ContentTooLargeError, match="max_expansion"):
            read_all(decompressor, [blob])


def test_the_smaller_limit_is_the_one_that_is_named() -> None:
    with pytest.raises(ContentTooLargeError, match=r"limit of 1000 bytes$"):
        read_all(make("zstd", max_plain_size=1000), [zeros(1600)])


@pytest.mark.parametrize("backend", ["isal", "zlib"])
def test_no_gzip_is_ever_refused(backend: str) -> None:
    """Deflate makes at most 1,032 of one: 120 MiB of zeros are as near to it as it gets."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    blob = b"".join([*(packer.compress(bytes(MEBIBYTE)) for _ in range(120)), packer.flush()])
    assert 1020 < (120 << 20) / len(blob) < 1032
    assert read_all(make(backend), [blob]) == 120 << 20
    assert read_all(make(backend), (blob[at : at + 7] for at in range(0, len(blob), 7))) == 120 << 20


def test_what_all_layers_have_together() -> None:
    """Many small bombs are one: what counts is how far each is ahead of its ratio, once."""
    told: list[tuple[object, int]] = []

    def share(what: object, ahead: int) -> bool:
        told.append((what, ahead))
        return ahead < 30 * MEBIBYTE

    assert read_all(make("zstd", what="a", share=share), [zeros(200)]) == 25 * MEBIBYTE
    assert {what for what, _ in told} == {"a"}
    assert [ahead for _, ahead in told] == sorted({ahead for _, ahead in told})
    assert told[-1][1] == 25 * MEBIBYTE - 1100 * len(zeros(200))
    with pytest.raises(ContentTooLargeError, match="together"):
        read_all(make("zstd", what="b", share=share), [zeros(400)])
    told.clear()
    assert read_all(make("isal", share=share), [gzip_member(bytes(MEBIBYTE))]) == MEBIBYTE
    assert read_all(make("zstd", share=share, max_expansion=None), [zeros(400)]) == 50 * MEBIBYTE
    assert told == []


# ── hashing what is not stored ──


def plain_hash(
    algorithm: str = "sha256", *, max_plain_size: int | None = None, max_expansion: int | None = MAX_EXPANSION
) -> PlainHash:
    limits = Limits(max_plain_size, max_expansion)
    return PlainHash(Digest.of(b"", algorithm), what="layer sha256:1", limits=limits)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("pieces_of", [lambda blob: [blob], bytewise, odd], ids=["whole", "bytewise", "odd"])
@pytest.mark.parametrize("kind", ["gzip", "zstd", None])
def test_the_hash_of_plain_bytes(kind: str | None, pieces_of: Any, algorithm: str) -> None:
    for plain in (b"", b"x", b"abc", b"some plain bytes " * 500):
        blob = plain if kind is None else member(kind, plain)
        hash_ = plain_hash(algorithm)
        for piece in pieces_of(blob):
            hash_.update(memoryview(piece))
        assert hash_.digest() == Digest.of(plain, algorithm)


@pytest.mark.parametrize(
    "blob", [gzip_member(b"x" * 99)[:-1], b"\x1f\x8b", gzip_member(b"x" * 99)[:-8] + bytes(8)]
)
def test_the_hash_of_what_is_damaged(blob: bytes) -> None:
    hash_ = plain_hash()
    for _ in range(2):
        with pytest.raises(DecompressionError, match="cannot decompress layer sha256:1"):
            hash_.update(blob)
            hash_.digest()
        blob = b""


@pytest.mark.parametrize(
    ("blob", "limits"),
    [
        (zeros(1600), {}),
        (zeros(100), {"max_plain_size": 10 * MEBIBYTE}),
        (b"x" * 1001, {"max_plain_size": 1000}),
        (b"xyz", {"max_plain_size": 2}),
    ],
    ids=["expansion", "size", "plain", "short"],
)
def test_the_hash_of_what_is_too_much(blob: bytes, limits: dict[str, Any]) -> None:
    hash_ = plain_hash(**limits)
    with pytest.raises(ContentTooLargeError, match="layer sha256:1"):
        hash_.update(blob)
        hash_.digest()
    with pytest.raises(ContentTooLargeError):
        hash_.update(b"x")
        hash_.digest()


def test_a_hash_that_is_stopped_ends_soon() -> None:
    class Stopping:
        """Stops after the first piece, as another thread does at any."""

        def __init__(self) -> None:
            self.size = 0

        def update(self, plain: bytes) -> None:
            self.size += len(plain)
            hash_.stop()

    hash_, inner = plain_hash(max_expansion=None), Stopping()
    hash_._hash = inner  # type: ignore[assignment]
    hash_.update(zeros(100_000))  # 12.5 GiB otherwise
    hash_.update(b"what comes behind it")
    assert 0 < inner.size <= MEBIBYTE


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_fits_a_limit_of_zero(backend: str) -> None:
    assert run(make(backend, max_plain_size=0), [member(backend, b"")]) == b""


def count_members(decompressor: Decompressor) -> list[bytes]:
    heads: list[bytes] = []
    backend = decompressor._backend

    def open_member(head: bytes) -> decompression._Member:
        heads.append(head)
        return backend.open_member(head)

    decompressor._backend = backend._replace(open_member=open_member)
    return heads


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_members_in_a_row_are_limited(backend: str) -> None:
    empty, real = member(backend, b""), member(backend, b"x")
    assert run(make(backend), [empty * 1024]) == b""
    assert run(make(backend), [(empty * 1024 + real) * 2]) == b"xx"
    for pieces in ([empty * 100_000], [real + empty * 1025], itertools.repeat(empty, 100_000)):
        decompressor = make(backend)
        heads = count_members(decompressor)
        with pytest.raises(DecompressionError, match="1024 empty members in a row"):
            run(decompressor, pieces)
        assert len(heads) <= 1026


def test_skippable_frames_in_a_row_are_limited() -> None:
    with pytest.raises(DecompressionError, match="1024 empty members in a row"):
        run(make("zstd"), [zstd_skippable(b"abc") * 1025])


@pytest.mark.parametrize("backend", BACKENDS)
def test_thousands_of_members_cost_linear_time(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time beyond that of the members themselves is in the slices that they are given.
    given_out: list[int] = []
    next_slice = Decompressor._next_slice

    def measured(self: Decompressor) -> memoryview:
        data = next_slice(self)
        given_out.append(len(data))
        return data

    monkeypatch.setattr(Decompressor, "_next_slice", measured)
    blob = member(backend, b"x") * 10_000
    assert run(make(backend), [blob]) == b"x" * 10_000
    assert sum(given_out) <= 1024 * 10_000

    given_out.clear()
    blob = b"".join(member(backend, RANDOM[:size]) for size in range(0, 20_000, 400))
    run(make(backend), [blob])
    assert sum(given_out) <= 3 * len(blob) + 1024 * 50


# ── the contract ──


@pytest.mark.parametrize("backend", BACKENDS)
def test_feed_and_finish_want_everything_read(backend: str) -> None:
    decompressor = make(backend)
    assert decompressor.read() == b""
    decompressor.feed(member(backend, b"abc"))
    with pytest.raises(RuntimeError, match="read"):
        decompressor.feed(b"")
    with pytest.raises(RuntimeError, match="read"):
        decompressor.finish()
    with pytest.raises(ValueError, match="max_length"):
        decompressor.read(0)
    assert decompressor.read(2) == b"ab"
    assert decompressor.read(2) == b"c"
    with pytest.raises(RuntimeError, match="read"):
        decompressor.finish()
    assert decompressor.read() == b""
    decompressor.finish()
    decompressor.finish()
    assert decompressor.plain_size == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_input_is_cut_off(backend: str) -> None:
    with pytest.raises(DecompressionError, match="cut off"):
        run(make(backend), [])
    with pytest.raises(DecompressionError, match="cut off"):
        run(make(backend), [b""])


@pytest.mark.parametrize(
    ("prefix", "compression"),
    [
        (gzip_member(b"x"), "gzip"),
        (b"\x1f\x8b", "gzip"),
        (zstd_frame(b"x"), "zstd"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x50\x2a\x4d\x18", "zstd"),
        (b"\x5f\x2a\x4d\x18....", "zstd"),
        (b"\x60\x2a\x4d\x18", None),
        (b"\x4f\x2a\x4d\x18", None),
        (b"\x28\xb5\x2f", None),
        (b"\x1f", None),
        (b"", None),
        (b"etc/passwd\0", None),
        (bytes(512), None),
    ],
)
def test_sniff(prefix: bytes, compression: str | None) -> None:
    assert sniff(prefix) == compression


# ── backends ──


def test_zstd_without_a_backend_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(MissingDependencyError, match=r"aiodockersave\[decompress\]") as caught:
        Decompressor("zstd")
    assert caught.value.extra == "decompress"


def test_the_standard_library_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", zstd)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    assert run(Decompressor("zstd"), [zstd_frame(b"abc")]) == b"abc"


def test_gzip_without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    decompressor = Decompressor("gzip")
    assert run(decompressor, [gzip_member(b"abc")]) == b"abc"
    assert decompressor._backend.errors == (zlib.error,)


def test_import_loads_no_backend() -> None:
    code = (
        "import sys, aiodockersave.core.decompression\n"
        "print(*{'isal', 'backports.zstd', 'compression.zstd', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
