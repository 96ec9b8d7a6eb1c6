"""Space for what grows without its size being known ahead: looked at now and then, and never used to its last byte."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiodockersave import ArchiveWriter, Descriptor, Digest, InsufficientSpaceError, open_archive, save
from aiodockersave.blobs import file_region
from aiodockersave.blobs.space import Space
from tests.support.images import Compression, Image, Layer, ListSink, archive_of, make_image, make_layer, put
from tests.support.stores import Store

LIMIT = 20.0  # seconds for anything that is waited for
OLD = b"the archive that was here before"
BLOCK = 512
NOISE = random.Random(5)


class Disk:
    """Stands in for the disk of one file, and of what else is written to it.

    Attributes:
        size: Bytes of it.
        used: Bytes that others have.
        looks: How often it was looked at.
        fullest: The largest that the file was when it was looked at.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size = size
        self.used = 0
        self.looks = 0
        self.fullest = 0
        monkeypatch.setattr(os, "fstatvfs", self._look)

    def _look(self, fd: int) -> Any:
        self.looks += 1
        there = (
            os.fstat(fd).st_blocks * BLOCK
        )  # not its size: it may have holes where layers are still to come
        self.fullest = max(self.fullest, there)
        free = max(0, self.size - self.used - there) // BLOCK
        return SimpleNamespace(f_blocks=self.size // BLOCK, f_frsize=BLOCK, f_bavail=free)


MakeDisk = Callable[[int], Disk]


@pytest.fixture
def make_disk(monkeypatch: pytest.MonkeyPatch) -> MakeDisk:
    return lambda size: Disk(monkeypatch, size)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "file").open("wb") as file:
        yield file.fileno()
    (tmp_path / "file").unlink()


# ── the counting ──

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "reserve"),
    [(100 * GIB, 64 << 20), (6400 << 20, 64 << 20), (GIB, GIB // 100), (65536, 655), (4096, 40)],
)
def test_what_is_left_to_others(size: int, reserve: int, fd: int, make_disk: MakeDisk) -> None:
    make_disk(size)
    where = Space(lambda: os.fstatvfs(fd), "a.tar")
    free = where.look()
    assert free == (size, reserve)
    where.check(size - reserve, free)
    with pytest.raises(InsufficientSpaceError, match=r"^a.tar: ") as caught:
        where.check(size - reserve + 1, free)
    assert (caught.value.needed, caught.value.available) == (size + 1, size)
    assert caught.value.errno == errno.ENOSPC


def test_it_is_not_looked_at_each_time(fd: int, make_disk: MakeDisk) -> None:
    disk = make_disk(1000 * GIB)
    where = Space(lambda: os.fstatvfs(fd), "a.tar")
    for _ in range(4 * 1024):  # 1 GiB
        where.take(256 << 10)
    assert disk.looks <= 18


@pytest.mark.parametrize("piece", [600, 256 << 10])
def test_the_nearer_the_end_the_more_often(piece: int, fd: int, make_disk: MakeDisk) -> None:
    disk = make_disk(100 * piece)
    where = Space(lambda: os.fstatvfs(fd), "a.tar")
    taken = 0
    with pytest.raises(InsufficientSpaceError):
        while True:
            where.take(piece)
            taken += piece
            disk.used = taken
    assert disk.size - taken >= disk.size // 100
    assert taken >= 97 * piece


def test_others_write_there_too(fd: int, make_disk: MakeDisk) -> None:
    disk = make_disk(1000 * GIB)
    where = Space(lambda: os.fstatvfs(fd), "a.tar")
    where.take(1)
    disk.used = disk.size
    with pytest.raises(InsufficientSpaceError):
        for _ in range(300):
            where.take(256 << 10)


def test_where_nothing_is_told(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result([0] * 11))
    Space(lambda: os.fstatvfs(fd), "a.tar").take(1 << 60)


# ── what grows ──


def layers_of(kind: Compression, count: int = 4, size: int = 100_000) -> list[Layer]:
    """Layers of which the plain tars are ten times as large."""
    return [
        make_layer(NOISE.randbytes(size // 10) * 10 + bytes(BLOCK - size // 10 * 10 % BLOCK), kind)
        for _ in range(count)
    ]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(OLD)
    return path


def assert_untouched(target: Path) -> None:
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


async def save_plain(store: Store, target: Path, **options: Any) -> None:
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), target, layers="decompress", fsync=False, **options)


@pytest.mark.parametrize(
    ("kind", "jobs", "enough"),
    [(None, 1, 390_000), (None, 4, 390_000), ("zstd", 2, 35_000)],
)
async def test_what_is_told_ahead_is_added_up_before_a_layer_is_fetched(
    kind: Compression,
    jobs: int,
    enough: int,
    target: Path,
    make_disk: MakeDisk,
) -> None:
    """No layer is smaller than its blob."""
    store = Store({"image": make_image(*layers_of(kind))})
    disk = make_disk(enough)
    with pytest.raises(InsufficientSpaceError, match=f"^{target}: ") as caught:
        await save_plain(store, target, jobs=jobs)
    assert caught.value.available == enough // BLOCK * BLOCK
    assert store.openings == []
    assert disk.fullest == 0
    assert_untouched(target)
    disk.size = 450_000
    await save_plain(store, target, jobs=jobs)


async def test_blobs_of_one_plain_tar_need_its_room_and_that_of_one_more(
    target: Path, make_disk: MakeDisk
) -> None:
    """Another one is written behind, compared, and taken back."""
    plain = NOISE.randbytes(200 * BLOCK)
    layers = [make_layer(plain, kind) for kind in ("gzip", "zstd", None)]
    images = {str(number): make_image(layer, author=str(number)) for number, layer in enumerate(layers)}
    make_disk(240_000)
    await save_plain(Store(images), target)
    make_disk(180_000)
    store = Store(images)
    with pytest.raises(InsufficientSpaceError):
        await save_plain(store, target)
    assert store.openings == [], "it is known before a layer is fetched"


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
async def test_what_is_not_told_is_stopped_before_the_disk_is_full(
    kind: Compression, jobs: int, target: Path, make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_region, "PIECE", 700)
    image = make_image(*layers_of(kind))
    store = Store({"image": image})
    disk = make_disk(350_000)
    with pytest.raises(InsufficientSpaceError, match=str(target)):
        await save_plain(store, target, jobs=jobs)
    # What others are about to write is not seen yet: a piece of each, which is little beside what is left.
    assert 200_000 < disk.fullest <= 350_000 - 3_500 + jobs * 4096
    assert_untouched(target)
    disk.size = 450_000
    await save_plain(store, target, jobs=jobs)
    assert target.read_bytes() == await archive_of([image], layers="decompress")


async def test_many_layers_that_are_each_small(target: Path, make_disk: MakeDisk) -> None:
    store = Store({"image": make_image(*layers_of("zstd", 60, 2000))})
    disk = make_disk(100_000)
    with pytest.raises(InsufficientSpaceError):
        await save_plain(store, target)
    assert disk.fullest <= 99_000
    assert_untouched(target)


@pytest.mark.parametrize("known", [True, False], ids=["decompress", "size unknown"])
async def test_an_archive_at_a_path(known: bool, target: Path, make_disk: MakeDisk) -> None:
    layers: Any = "decompress" if known else "keep"
    parts = layers_of("zstd" if known else None, 8, 2_000_000)
    disk = make_disk(10_000_000)
    written = 0
    with pytest.raises(InsufficientSpaceError, match=str(target)):
        async with open_archive(target, fsync=False, layers=layers) as archive:
            for layer in parts:
                await archive.put_layer(layer.blob, layer.descriptor if known else None)
                written += len(layer.plain)
    assert 4_000_000 < written < 10_000_000
    assert disk.fullest < 9_900_000
    assert_untouched(target)


async def test_after_that_the_archive_goes_on(target: Path, make_disk: MakeDisk) -> None:
    image = make_image(*layers_of("zstd", 2))
    disk = make_disk(150_000)
    async with open_archive(target, fsync=False, layers="decompress") as archive:
        await archive.put_layer(image.layers[0].blob, image.layers[0].descriptor)
        with pytest.raises(InsufficientSpaceError):
            await archive.put_layer(image.layers[1].blob, image.layers[1].descriptor)
        disk.size = 10_000_000
        await put(archive, image)
    assert target.read_bytes() == await archive_of([image], layers="decompress")


async def test_what_is_staged(tmp_path: Path, make_disk: MakeDisk) -> None:
    disk = make_disk(1_000_000)
    image = make_image(make_layer(bytes(5_000_000), None), repo_tags=["a:1"])
    (layer,) = image.layers
    sink = ListSink()
    archive = ArchiveWriter(sink, stage_memory=10_000, stage_dir=tmp_path)
    for descriptor in (None, layer.descriptor):
        with pytest.raises(InsufficientSpaceError, match=f"^{tmp_path}: "):
            await archive.put_layer(layer.blob, descriptor, stage=descriptor is not None)
        assert sink.writes == []
        assert disk.fullest <= 990_000
    disk.size = 10_000_000
    await put(archive, image, stage=True)
    await archive.close()
    assert sink.getvalue() == await archive_of([image])
    assert list(tmp_path.iterdir()) == []


async def test_what_is_staged_on_the_way_into_a_stream(tmp_path: Path, make_disk: MakeDisk) -> None:
    make_disk(1_000_000)
    store = Store({"image": make_image(make_layer(bytes(5_000_000), "gzip"))})
    with pytest.raises(InsufficientSpaceError, match=f"^{tmp_path}: "):
        await save(store.requests(), ListSink(), layers="decompress", stage_memory=10_000, stage_dir=tmp_path)


async def test_what_is_known_ahead_may_be_as_large_as_the_disk(target: Path, make_disk: MakeDisk) -> None:
    """The caller has asked for so much, and has it: nothing is left over for others."""
    image: Image = make_image(*layers_of(None, 4, 2_000_000))
    size = len(await archive_of([image]))
    make_disk(-(-size // BLOCK) * BLOCK)
    store = Store({"image": image})
    await save(store.requests(), target, fsync=False)
    async with open_archive(target, fsync=False) as archive:
        await put(archive, image)
    assert target.stat().st_size == size


async def test_what_is_no_file_is_not_looked_at(make_disk: MakeDisk) -> None:
    disk = make_disk(10)
    blob = b"x" * 5000
    store = Store({"image": make_image(*layers_of("gzip"))})
    await save_plain(store, Path("/dev/null"))
    async with open_archive("/dev/null", layers="decompress") as archive:
        await archive.put_layer(blob, Descriptor("application/octet-stream", Digest.of(blob), None))
    assert disk.looks == 0
