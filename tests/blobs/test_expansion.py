"""The limits on how far layers expand, in every way that they are decompressed: into a file, into a stream, through the writer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import ArchiveWriter, ContentTooLargeError, InvalidInputError, open_archive, save
from aiodockersave.blobs import space
from aiodockersave.blobs.space import SharedExpansion
from aiodockersave.core import decompression
from aiodockersave.core.model import MAX_EXPANSION
from tests.support.images import ListSink, MemorySink, RewindSink, archive_of, make_image, make_layer, put
from tests.support.stores import Store

LIMIT = 20.0  # seconds for anything that is waited for
MEBIBYTE = 1 << 20
BOMB = make_layer(bytes(200 * MEBIBYTE), "zstd")
SPARSE = make_layer({"disk.img": bytes(60 * MEBIBYTE), "etc/name": b"x"}, "zstd")
"""A layer that may well be in an image: little, and much of it zeros."""


def assert_is_named(error: ContentTooLargeError) -> None:
    assert str(BOMB.descriptor.digest) in str(error)
    assert f"{MAX_EXPANSION} for each" in str(error)
    assert "allow more by max_expansion" in str(error)
    assert error.limit < 100 * MEBIBYTE


@pytest.mark.parametrize("make_sink", [ListSink, RewindSink, MemorySink])
@pytest.mark.parametrize("known", [True, False])
async def test_through_the_writer(make_sink: Any, known: bool, tmp_path: Path) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink, layers="decompress", stage_dir=tmp_path)
    with pytest.raises(ContentTooLargeError) as caught:
        await archive.put_layer(BOMB.blob, BOMB.descriptor if known else None, diff_id=BOMB.diff_id)
    if known:
        assert_is_named(caught.value)
    assert len(sink.getvalue()) == 0
    await put(archive, make_image(SPARSE))
    await archive.close()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("checksum", [False, True])
async def test_into_a_file(jobs: int, checksum: bool, tmp_path: Path) -> None:
    largest = 0
    sizes = threading.Event()

    async def watch() -> None:
        nonlocal largest
        while not sizes.is_set():
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                largest = max([largest, *(path.stat().st_size for path in tmp_path.iterdir())])
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(watch())
    store = Store({"image": make_image(SPARSE, BOMB)}, chunk_size=1000)
    with pytest.raises(ContentTooLargeError) as caught:
        async with asyncio.timeout(LIMIT):
            await save(
                store.requests(),
                tmp_path / "a.tar",
                layers="decompress",
                fsync=False,
                jobs=jobs,
                checksum=checksum,
            )
    sizes.set()
    assert_is_named(caught.value)
    assert list(tmp_path.iterdir()) == []
    await watching
    assert 0 < largest < 140 * MEBIBYTE  # the first layer, and not much more than 64 MiB of the second


async def test_into_a_stream(tmp_path: Path) -> None:
    sink = ListSink()
    store = Store({"image": make_image(SPARSE, BOMB)}, chunk_size=1000)
    with pytest.raises(ContentTooLargeError) as caught:
        await save(store.requests(), sink, layers="decompress", stage_dir=tmp_path)
    assert_is_named(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert len(sink.getvalue()) < 61 * MEBIBYTE


async def test_who_wants_it_gets_it(tmp_path: Path) -> None:
    image = make_image(make_layer(bytes(100 * MEBIBYTE), "zstd"))
    store = Store({"image": image}, chunk_size=100_000)
    expected = await archive_of([image], layers="decompress", max_expansion=None)
    for way in (None, 40_000):
        for target in (tmp_path / "a.tar", ListSink()):
            await save(
                store.requests(),
                target,
                layers="decompress",
                fsync=False,
                max_expansion=way,
                stage_dir=tmp_path,
            )
            written = target.read_bytes() if isinstance(target, Path) else target.getvalue()
            assert written == expected
    async with open_archive(
        tmp_path / "b.tar", fsync=False, layers="decompress", max_expansion=None
    ) as archive:
        await put(archive, image)
    assert (tmp_path / "b.tar").read_bytes() == expected


# ── all layers together ──


@pytest.fixture
def little_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "FREE_EXPANSION", 300_000)
    monkeypatch.setattr(space, "_TOGETHER", 1_000_000)


def sparse_layers(count: int) -> list[Any]:
    """Layers that are each well below what one may have."""
    return [make_layer(bytes(280_000) + bytes([number]) * 512, "zstd") for number in range(count)]


@pytest.mark.usefixtures("little_together")
@pytest.mark.parametrize("way", ["file", "file, many at once", "stream", "kept"])
async def test_many_small_bombs_are_one(way: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": "keep", "verify_diff_ids": True} if way == "kept" else {}
    options = {"layers": "decompress", "jobs": 8 if "many" in way else 2} | options
    for count, passes in ((4, True), (40, False)):
        target: Any = ListSink() if way == "stream" else tmp_path / "a.tar"
        store = Store({"image": make_image(*sparse_layers(count))})
        if passes:
            await save(store.requests(), target, fsync=False, **options)
            continue
        with pytest.raises(ContentTooLargeError, match=r"all layers .* together .*max_expansion"):
            await save(store.requests(), target, fsync=False, **options)
        await save(store.requests(), target, fsync=False, **options | {"max_expansion": None})


@pytest.mark.usefixtures("little_together")
@pytest.mark.parametrize("known", [True, False])
async def test_of_one_writer(known: bool) -> None:
    archive = ArchiveWriter(ListSink(), layers="decompress")
    with pytest.raises(ContentTooLargeError, match="together"):
        for layer in sparse_layers(40):
            await archive.put_layer(layer.blob, layer.descriptor if known else None)
    other = ArchiveWriter(ListSink(), layers="decompress")  # has its own
    await put(other, make_image(*sparse_layers(3)))


@pytest.mark.usefixtures("little_together")
async def test_a_layer_that_is_read_again_counts_once() -> None:
    archive = ArchiveWriter(RewindSink(), layers="decompress")
    (layer,) = sparse_layers(1)
    wrong = make_layer(b"wrong").diff_id
    for _ in range(20):
        with pytest.raises(Exception, match="diff ID"):
            await archive.put_layer(layer.blob, layer.descriptor, diff_id=wrong)
    await archive.put_layer(layer.blob, layer.descriptor, diff_id=layer.diff_id)


def test_the_sum_does_not_depend_on_the_order() -> None:
    told = [("a", 500 << 20), ("b", 300 << 20), ("a", 600 << 20), ("b", 200 << 20)]
    for order in (told, told[::-1]):
        shared = SharedExpansion()
        assert all(shared(*each) for each in order)
        assert shared("c", 124 << 20)
        assert not shared("c", (124 << 20) + 1)
        assert not shared("d", 0)


# ── what may be said ──


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, InvalidInputError), (-1, InvalidInputError), (1.5, TypeError), ("9", TypeError), (True, TypeError)],
)
async def test_numbers_that_are_none(value: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match=f"max_expansion={value!r}: use a number of plain bytes"):
        ArchiveWriter(ListSink(), max_expansion=value)
    with pytest.raises(error, match=f"max_expansion={value!r}"):
        await save([], tmp_path / "a.tar", max_expansion=value)
    if value != 0:
        with pytest.raises(error, match=f"max_plain_size={value!r}: use a number of bytes"):
            await save([], tmp_path / "a.tar", max_plain_size=value)
    assert list(tmp_path.iterdir()) == []
