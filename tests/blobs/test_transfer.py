"""One content on its way in: batches one behind, decompressed, every digest and size checked."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import pytest

from aiodockersave import (
    ArchiveWriter,
    ContentError,
    ContentTooLargeError,
    DecompressionError,
    Descriptor,
    Digest,
    DigestMismatchError,
    MissingDependencyError,
    SizeMismatchError,
    WriterBrokenError,
)
from aiodockersave.blobs.content import BATCH_SIZE, MAX_BATCH_SIZE, OpenContent
from aiodockersave.blobs.thread_queue import INLINE_SIZE
from aiodockersave.blobs.transfer import Hasher, Transfer
from aiodockersave.core import decompression
from aiodockersave.core.model import Limits
from tests.support.contents import CUTS, generate
from tests.support.images import Compression, Layer, ListSink, make_layer

TIME_LIMIT = 60.0  # seconds; nothing here takes one, but on a machine that stalls
RANDOM = random.Random(2)
KINDS: tuple[Compression, ...] = (None, "gzip", "zstd")
SIZES = (0, 1, 5000, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 3 * MAX_BATCH_SIZE + 7)
LARGE = RANDOM.randbytes(SIZES[-1])

every_compression = pytest.mark.parametrize("kind", KINDS, ids=str)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def as_plain(layer: Layer, *, decompress: bool) -> bytes:
    return layer.plain if decompress else layer.blob


async def take_in(
    chunks: Iterable[bytes],
    expected: Descriptor | None = None,
    *,
    decompress: bool = False,
    diff_id: Digest | None = None,
    max_plain_size: int | None = None,
    batches: list[bytes] | None = None,
) -> tuple[list[bytes], Transfer]:
    """Take a content in as the writer does; what comes is also added to ``batches``, should it fail."""
    content = OpenContent(generate(list(chunks)))
    limits = Limits(max_plain_size) if decompress else None
    transfer = Transfer(content, expected, inflate=limits, diff_id=diff_id)
    batches = [] if batches is None else batches
    fault: BaseException | None = None
    try:
        await content.open()
        while not transfer.done:
            batches.append(bytes(await transfer.next()))
    except BaseException as exc:
        fault = exc
        raise
    finally:
        await content.close(fault)
        await transfer.close()
    return batches, transfer


# ── what comes through ──


@every_compression
@pytest.mark.parametrize("decompress", [False, True], ids=["keep", "decompress"])
@pytest.mark.parametrize("known", ["known", "size unknown", "unknown"])
async def test_every_byte_comes_through(kind: Compression, decompress: bool, known: str) -> None:
    for size in SIZES:
        layer = make_layer(LARGE[:size], kind)
        expected = {
            "known": layer.descriptor,
            "size unknown": replace(layer.descriptor, size=None),
            "unknown": None,
        }[known]
        batches, transfer = await take_in(
            cut(layer.blob, 100_000), expected, decompress=decompress, diff_id=layer.diff_id
        )
        assert b"".join(batches) == as_plain(layer, decompress=decompress)
        assert transfer.blob == layer.descriptor
        assert transfer.stored == (layer.plain_descriptor if decompress else layer.descriptor)
        assert all(len(batch) >= BATCH_SIZE for batch in batches[:-1])
        assert all(len(batch) <= 1.5 * MAX_BATCH_SIZE for batch in batches)
        assert batches[-1] or len(batches) == 1


@every_compression
@pytest.mark.parametrize("decompress", [False, True], ids=["keep", "decompress"])
async def test_chunks_of_every_cut(kind: Compression, decompress: bool) -> None:
    layer = make_layer(b"plain bytes, well compressed " * 200, kind, members=3)
    for way in CUTS:
        batches, transfer = await take_in(
            way(layer.blob), layer.descriptor, decompress=decompress, diff_id=layer.diff_id
        )
        assert b"".join(batches) == as_plain(layer, decompress=decompress)
        assert transfer.blob == layer.descriptor


async def test_a_layer_that_expands_a_lot_comes_in_bounded_batches() -> None:
    layer = make_layer(bytes(50 << 20), "gzip")
    batches, _ = await take_in([layer.blob], layer.descriptor, decompress=True, diff_id=layer.diff_id)
    assert sum(map(len, batches)) == 50 << 20
    assert max(map(len, batches)) <= MAX_BATCH_SIZE


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
async def test_several_members_are_one_layer(kind: Compression) -> None:
    layer = make_layer(LARGE, kind, members=7)
    batches, _ = await take_in(
        cut(layer.blob, 70_001), layer.descriptor, decompress=True, diff_id=layer.diff_id
    )
    assert b"".join(batches) == LARGE


async def test_the_media_type_given_does_not_decide_what_is_inflated() -> None:
    """Registries hold plain tars labelled gzip; the bytes say what they are."""
    layer = make_layer(b"plain" * 100, None, media_type=make_layer(b"", "gzip").descriptor.media_type)
    batches, transfer = await take_in([layer.blob], layer.descriptor, decompress=True, diff_id=layer.diff_id)
    assert b"".join(batches) == layer.plain
    assert transfer.stored == layer.plain_descriptor


async def test_the_media_type_given_is_kept() -> None:
    layer = make_layer(b"plain" * 100, "gzip", media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")
    _, transfer = await take_in([layer.blob], layer.descriptor)
    assert transfer.media_type == transfer.stored.media_type == layer.descriptor.media_type


async def test_sha512_for_blob_and_diff_id() -> None:
    layer = make_layer(LARGE, "gzip", algorithm="sha512")
    _, transfer = await take_in(
        cut(layer.blob, 65536), layer.descriptor, decompress=True, diff_id=layer.diff_id
    )
    assert transfer.blob.digest == layer.descriptor.digest
    assert transfer.stored.digest == layer.diff_id
    _, transfer = await take_in([layer.blob], None, decompress=True, diff_id=layer.diff_id)
    assert transfer.blob.digest == Digest.of(layer.blob)


async def test_nothing_is_known_before_the_end() -> None:
    transfer = Transfer(OpenContent(b""), None)
    with pytest.raises(AssertionError, match="not verified"):
        _ = transfer.blob
    with pytest.raises(AssertionError, match="not at its end"):
        _ = transfer.stored
    await transfer.close()


# ── verified before the last batch leaves ──


async def test_one_batch_is_verified_before_it_leaves() -> None:
    batches: list[bytes] = []
    with pytest.raises(DigestMismatchError):
        await take_in([b"wrong"], make_layer(b"right", None).descriptor, batches=batches)
    assert not batches


@pytest.mark.parametrize("decompress", [False, True], ids=["keep", "decompress"])
async def test_the_last_batch_is_held_back(decompress: bool) -> None:
    right = make_layer(LARGE, "gzip")
    wrong = make_layer(LARGE[:-1] + b"\0", "gzip")
    batches: list[bytes] = []
    with pytest.raises(DigestMismatchError) as caught:
        await take_in(
            cut(wrong.blob, 65536),
            right.descriptor if not decompress else None,
            decompress=decompress,
            diff_id=right.diff_id,
            batches=batches,
        )
    out = b"".join(batches)
    assert 0 < len(out) < len(as_plain(wrong, decompress=decompress))
    assert as_plain(wrong, decompress=decompress).startswith(out)
    assert caught.value.what == ("diff ID" if decompress else "blob")
    assert caught.value.expected == (right.diff_id if decompress else right.descriptor.digest)
    assert caught.value.actual == (wrong.diff_id if decompress else wrong.descriptor.digest)


@pytest.mark.parametrize(
    ("chunks", "actual"),
    [
        ([LARGE, b"x"], len(LARGE) + 1),
        ([LARGE + b"x" * 100], len(LARGE) + 100),
        ([LARGE[:-1]], len(LARGE) - 1),
        ([], 0),
        (cut(LARGE, 1 << 20) + [b"x"] * 3, len(LARGE) + 1),
    ],
    ids=["one more", "many more", "one less", "nothing", "three more"],
)
async def test_wrong_sizes(chunks: list[bytes], actual: int) -> None:
    layer = make_layer(LARGE, None)
    with pytest.raises(SizeMismatchError, match=str(layer.descriptor.digest)) as caught:
        await take_in(chunks, layer.descriptor)
    assert (caught.value.expected, caught.value.actual) == (len(LARGE), actual)


async def test_a_size_is_enough_to_stop_an_endless_content() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    sink = ListSink()
    archive = ArchiveWriter(sink)
    with pytest.raises(SizeMismatchError, match="got at least"):
        await archive.put_layer(endless(), make_layer(b"x" * 1000, None).descriptor)
    assert not sink.writes


# ── damage and limits ──


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGED: dict[str, Any] = {
    "cut off": lambda blob: blob[:-3],
    "cut in the magic": lambda blob: blob[:4],
    "wrong in the middle": lambda blob: _flipped(blob, len(blob) // 2),
    "wrong checksum": lambda blob: _flipped(blob, len(blob) - 5),
    "zeros behind it": lambda blob: blob + bytes(512),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
async def test_damaged_layers(damage: Any, size: int) -> None:
    layer = make_layer(LARGE[:size], "gzip")
    blob = damage(layer.blob)
    descriptor = Descriptor(layer.descriptor.media_type, Digest.of(blob), len(blob))
    with pytest.raises(DecompressionError, match=f"cannot decompress layer {descriptor.digest}"):
        await take_in(cut(blob, 100_000), descriptor, decompress=True, diff_id=layer.diff_id)
    with pytest.raises(DecompressionError, match="cannot decompress the layer"):
        await take_in(cut(blob, 100_000), None, decompress=True)
    assert b"".join((await take_in(cut(blob, 100_000), descriptor))[0]) == blob  # kept as it is


@every_compression
@pytest.mark.parametrize("size", [5000, len(LARGE)], ids=["small", "large"])
async def test_the_plain_size_has_a_limit(kind: Compression, size: int) -> None:
    layer = make_layer(LARGE[:size], kind)
    batches, _ = await take_in([layer.blob], None, decompress=True, max_plain_size=size)
    assert b"".join(batches) == layer.plain
    with pytest.raises(ContentTooLargeError, match=f"larger than the limit of {size - 1} bytes") as caught:
        await take_in([layer.blob], layer.descriptor, decompress=True, max_plain_size=size - 1)
    assert caught.value.limit == size - 1
    assert str(layer.descriptor.digest) in caught.value.what


async def test_a_bomb_stops_at_the_limit() -> None:
    bomb = make_layer(bytes(40 << 20), "gzip")
    batches: list[bytes] = []
    with pytest.raises(ContentTooLargeError):
        await take_in([bomb.blob], bomb.descriptor, decompress=True, max_plain_size=1 << 20, batches=batches)
    assert sum(map(len, batches)) <= 1 << 20


async def test_zstd_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "_import_first", lambda *names: None)
    layer = make_layer(b"plain", "zstd")
    sink = ListSink()
    archive = ArchiveWriter(sink, layers="decompress")
    with pytest.raises(MissingDependencyError, match=r"pip install 'aiodockersave\[decompress\]'") as caught:
        await archive.put_layer(layer.blob, layer.descriptor)
    assert caught.value.extra == "decompress"
    assert not sink.writes
    gzipped = make_layer(b"plain", "gzip")  # zlib will do
    await archive.put_layer(gzipped.blob, gzipped.descriptor, diff_id=gzipped.diff_id)


# ── threads ──


async def _threads_while_reading(chunks: list[bytes], expected: Descriptor, *, decompress: bool) -> set[str]:
    names: set[str] = set()

    async def watched() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
            names.update(thread.name for thread in threading.enumerate())

    async with ArchiveWriter(ListSink(), layers="decompress" if decompress else "keep") as archive:
        await archive.put_layer(watched(), expected)
    return {name for name in names if name.startswith("aiodockersave")}


async def test_small_layers_need_no_thread() -> None:
    layer = make_layer(RANDOM.randbytes(INLINE_SIZE), None)
    assert not await _threads_while_reading(cut(layer.blob, 10_000), layer.descriptor, decompress=False)
    small = make_layer(b"plain" * 1000, "gzip")
    assert not await _threads_while_reading(cut(small.blob, 10), small.descriptor, decompress=True)


async def test_large_layers_are_hashed_and_inflated_in_threads() -> None:
    layer = make_layer(LARGE, "gzip")
    keep = await _threads_while_reading(cut(layer.blob, 100_000), layer.descriptor, decompress=False)
    assert keep == {"aiodockersave-hash"}
    decompress = await _threads_while_reading(cut(layer.blob, 100_000), layer.descriptor, decompress=True)
    assert "aiodockersave-inflate" in decompress


async def test_a_sink_that_fails_beside_a_damaged_layer_is_what_is_seen() -> None:
    """A call that runs ahead in a thread may fail as well; the sink failed first."""

    async def full(data: bytes) -> None:
        raise OSError("full")

    layer = make_layer(bytes(20 << 20), "gzip")
    blob = _flipped(layer.blob, len(layer.blob) - 5)
    archive = ArchiveWriter(full, layers="decompress")
    with pytest.raises(DecompressionError):  # staged: the sink is not asked at all
        await archive.put_layer(blob)
    good = gzip.compress(LARGE)
    with pytest.raises(OSError, match="full"):
        await archive.put_layer(good)
    with pytest.raises(WriterBrokenError):
        await archive.close()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_hasher_gives_the_digest_of_all_batches(algorithm: str) -> None:
    hasher = Hasher(algorithm)
    for batch in cut(LARGE, 300_000):
        await hasher.update(batch)
    assert await hasher.digest() == Digest.of(LARGE, algorithm)
    await hasher.close()


async def test_a_hasher_may_go_on_from_a_hash() -> None:
    hash_ = Digest.of(b"").hasher()
    hash_.update(b"first ")
    hasher = Hasher("sha256", hash_=hash_)
    await hasher.update(b"second")
    assert await hasher.digest() == Digest.of(b"first second")
    await hasher.close()


@every_compression
async def test_wrong_content_of_every_kind_leaves_nothing(kind: Compression) -> None:
    layer = make_layer(LARGE, kind)
    for decompress in (False, True):
        with pytest.raises(ContentError):
            await take_in(cut(layer.blob, 100_000)[:-1], layer.descriptor, decompress=decompress)
