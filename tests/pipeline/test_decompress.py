"""Saving to a file with layers as plain tars: whatever they are compressed by, and however many are read at once.

The result is always what ``ArchiveWriter`` makes of the same images in their order, byte for byte.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import (
    ContentTooLargeError,
    DecompressionError,
    Digest,
    DigestMismatchError,
    SizeMismatchError,
    save,
)
from aiodockersave.core.model import Layers
from aiodockersave.pipeline import saving
from aiodockersave.pipeline.progress import Event, LayerAdvanced, LayerFinished, LayerStarted
from tests.support.images import Compression, Layer, archive_of, compress, make_image, make_layer, noise
from tests.support.stores import Store

LIMIT = 60.0  # seconds for anything that is waited for
OLD = b"the archive that was here before"


def layer_of(seed: int, records: int, kind: Compression = "gzip", members: int = 1) -> Layer:
    """Make a layer of so many records of 512 bytes, which is what tars have."""
    return make_layer(noise(seed, records * 512), kind, members=members)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(OLD)
    return path


async def save_plain(store: Store, target: Path, **options: Any) -> list[Event]:
    """Save all images of a store, and check the archive; return what was told."""
    events: list[Event] = []
    async with asyncio.timeout(LIMIT):
        report = await save(
            store.requests(), target, layers="decompress", fsync=False, progress=events.append, **options
        )
    assert target.read_bytes() == await archive_of(store.images.values(), layers="decompress")
    assert report.sha256 == (Digest.of(target.read_bytes()) if options.get("checksum") else None)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert store.open_now == 0
    assert store.most_open <= options.get("jobs", 2)
    check_progress(events, store)
    return events


def check_progress(events: Sequence[Event], store: Store) -> None:
    """Nothing goes back, and all of it is there in the end."""
    counts = [event.total_done for event in events if isinstance(event, LayerAdvanced | LayerFinished)]
    assert counts == sorted(counts)
    assert counts[-1:] in ([], [store.size])
    started = [event.layer.digest for event in events if isinstance(event, LayerStarted)]
    assert sorted(map(str, started)) == sorted(map(str, store.blobs))


FOUR = [layer_of(number, 7 + number) for number in range(4)]


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
async def test_every_compression(kind: Compression, jobs: int, target: Path) -> None:
    layers = [layer_of(number, 3 + number, kind, members=1 + number) for number in range(4)]
    await save_plain(Store({"image": make_image(*layers)}), target, jobs=jobs)


@pytest.mark.parametrize("jobs", [2, 4])
async def test_a_blob_whose_last_member_lies(jobs: int, target: Path) -> None:
    """Each member tells the truth of itself, and the last could be the whole."""
    plain = noise(1, 20 * 512)
    for size in (512, 19 * 512):
        blob = compress(plain[:-size], "gzip") + compress(plain[-size:], "gzip")
        layer = make_layer(plain)
        descriptor = type(layer.descriptor)(layer.descriptor.media_type, Digest.of(blob), len(blob))
        lying = Layer(blob, plain, descriptor, layer.diff_id)
        await save_plain(Store({"image": make_image(FOUR[0], lying, *FOUR[1:])}), target, jobs=jobs)


async def test_a_media_type_that_lies(target: Path) -> None:
    """Called a plain tar, and compressed: its size is not that of the tar."""
    lying = make_layer(bytes(5000), "gzip", media_type=make_layer(b"", None).descriptor.media_type)
    await save_plain(Store({"image": make_image(FOUR[0], lying, *FOUR[1:])}), target, jobs=3)


# ── one plain tar, several blobs ──


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("kinds", list(itertools.permutations(("gzip", "zstd", None))))
async def test_blobs_of_one_diff_id(kinds: tuple[Compression, ...], jobs: int, target: Path) -> None:
    """It is stored once, and each blob is verified."""
    plain = noise(5, 5 * 512)
    images = {
        str(kind): make_image(make_layer(plain, kind), FOUR[number], author=str(kind))
        for number, kind in enumerate(kinds)
    }
    await save_plain(Store(images), target, jobs=jobs)


@pytest.mark.parametrize("jobs", [1, 2, 4])
async def test_another_blob_of_a_diff_id_that_is_wrong(jobs: int, target: Path) -> None:
    plain = noise(5, 5 * 512)
    one, two = make_image(make_layer(plain), author="1"), make_image(make_layer(plain, "zstd"), author="2")
    store = Store({"one": one, "two": two})
    digest = two.layers[0].descriptor.digest
    store.blobs[digest] = store.blobs[digest][:-1] + bytes([store.blobs[digest][-1] ^ 1])
    with pytest.raises((DigestMismatchError, DecompressionError)) as caught:
        await save_plain(store, target, jobs=jobs)
    assert caught.value.__notes__ == ["image two"]
    assert target.read_bytes() == OLD


async def test_images_that_share_layers(target: Path) -> None:
    images = {
        "one": make_image(*FOUR[:2], repo_tags=["a:1"]),
        "two": make_image(FOUR[0], FOUR[2], FOUR[0], repo_tags=["b:2"]),
        "again": make_image(*FOUR[:2], repo_tags=["c:3"]),
        "none": make_image(),
    }
    store = Store(images)
    await save_plain(store, target, jobs=3)
    assert len(store.openings) == 3


# ── limits, and what is wrong ──


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("kind", ["gzip", "zstd", None])
async def test_a_limit_on_plain_sizes(kind: Compression, jobs: int, target: Path) -> None:
    layers = [layer_of(0, 4), layer_of(1, 9, kind), layer_of(2, 4)]
    store = Store({"image": make_image(*layers)})
    await save_plain(store, target, jobs=jobs, max_plain_size=9 * 512)
    target.write_bytes(OLD)
    with pytest.raises(ContentTooLargeError, match=str(layers[1].descriptor.digest)):
        await save_plain(store, target, jobs=jobs, max_plain_size=9 * 512 - 1)
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def flip(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("kind", "damage", "error"),
    [
        (None, flip, DigestMismatchError),
        ("gzip", flip, DecompressionError),
        ("gzip", lambda blob: blob[:-1], SizeMismatchError),
        ("gzip", lambda blob: blob + b"x", SizeMismatchError),
        ("zstd", lambda blob: bytes(len(blob)), DigestMismatchError),
    ],
    ids=["flipped", "flipped gzip", "short", "long", "zeros"],
)
async def test_a_blob_that_is_wrong(
    kind: Compression, damage: Callable[[bytes], bytes], error: Any, number: int, jobs: int, target: Path
) -> None:
    layers = [layer_of(each, 6, kind) for each in range(3)]
    store = Store({"image": make_image(*layers)})
    digest = layers[number].descriptor.digest
    store.blobs[digest] = damage(store.blobs[digest])
    with pytest.raises(error) as caught:
        await save_plain(store, target, jobs=jobs)
    assert caught.value.__notes__ == ["image image"]
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


async def test_a_plain_tar_that_is_not_the_configs(target: Path) -> None:
    image = make_image(FOUR[0], config_bytes=make_image(FOUR[1]).config)
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await save_plain(Store({"image": image}), target)
    assert target.read_bytes() == OLD


# ── nothing is staged ──


def deleted_files() -> list[str]:
    """Return the open files without a name, such as temporary ones."""
    folder = Path("/proc/self/fd")
    links = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            links.append(os.readlink(entry))  # noqa: PTH115 - a deleted file's name is no path
        except FileNotFoundError:  # the listing's own
            continue
    return [link for link in links if link.endswith("(deleted)")]


@pytest.mark.parametrize("jobs", [1, 2, 8])
async def test_no_file_but_the_temporary_one(jobs: int, target: Path) -> None:
    store = Store({"image": make_image(*FOUR, layer_of(9, 30, "zstd"))})
    before = deleted_files()
    seen: set[str] = set()

    def look() -> None:
        seen.update(path.name for path in target.parent.iterdir())
        assert list(Path(tempfile.gettempdir()).iterdir()) == []
        assert deleted_files() == before

    store.on_chunk = lambda digest, position: asyncio.to_thread(look)
    await save_plain(store, target, jobs=jobs)
    assert len(seen) == 2
    assert all(name == "a.tar" or name.startswith(".a.tar.") for name in seen)


# ── the disk, and what is no file ──


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_what_the_disk_refuses_late_is_heard_before_the_archive_gets_its_name(
    layers: Layers, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is told once: whoever asks the disk next is told that all is well."""
    may_fail = threading.Event()

    def refuse(_: int) -> None:
        may_fail.wait(0.3)  # not a verdict: until others would have gone on
        raise OSError(errno.EIO, "refused")

    monkeypatch.setattr(saving, "_PORTION", 500)
    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(OSError, match="refused"):
        await save(Store({"image": make_image(*FOUR)}).requests(), target, layers=layers)
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_fifo_is_not_sent_to_a_disk(
    layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_PORTION", 500)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    image = make_image(*FOUR)
    async with asyncio.timeout(LIMIT):
        reading = asyncio.ensure_future(asyncio.to_thread(path.read_bytes))
        await save(Store({"image": image}).requests(), path, layers=layers)
        assert await reading == await archive_of([image], layers=layers)
