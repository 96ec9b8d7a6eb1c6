"""Saving to a file with layers as plain tars: whatever is told ahead of their sizes, and in whatever order they come in.

The result is always what ``ArchiveWriter`` makes of the same images in their order, byte for byte.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiodockersave import (
    BlobNotFoundError,
    ContentTooLargeError,
    DecompressionError,
    Digest,
    DigestMismatchError,
    ImageRequest,
    SizeMismatchError,
    prepare,
    save,
)
from aiodockersave._aio import Worker
from aiodockersave.blobs import filling, in_place, placing
from aiodockersave.blobs.content import Batch
from aiodockersave.core import tar
from aiodockersave.pipeline import to_file_decompressed as plain_file
from aiodockersave.pipeline.plain_layout import plausible_size
from aiodockersave.pipeline.progress import Event, LayerAdvanced, LayerFinished, LayerRetried, LayerStarted
from aiodockersave.pipeline.to_file_decompressed import plain_size_hint
from aiodockersave.pipeline.tracker import Blob
from tests.support.images import Compression, Image, Layer, archive_of, compress, make_image, make_layer
from tests.support.interruption import ThreadedTickWorker
from tests.support.stores import Store, StoreFailedError

LIMIT = 60.0  # seconds for anything that is waited for
OLD = b"the archive that was here before"


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def layer_of(seed: int, records: int, kind: Compression = "gzip", members: int = 1) -> Layer:
    """Make a layer of so many records of 512 bytes, which is what tars have."""
    return make_layer(random_bytes(seed, records * 512), kind, members=members)


NOTHING_IS_SMALL = -1


def use_small_limits(patch: pytest.MonkeyPatch, small: int = NOTHING_IS_SMALL) -> None:
    """Several batches and pieces for each blob; those of up to ``small`` bytes are received into memory."""
    patch.setattr(plain_file, "_SMALL", small)
    patch.setattr(filling, "BATCH_SIZE", 512)
    patch.setattr(placing, "PIECE", 700)
    patch.setattr(plain_file, "_MOVED", 1000)
    patch.setattr(placing, "_processors", lambda: 2)  # one lane is helped, several are not


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_limits(monkeypatch)


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


# ── hints ──

GIB = 1 << 30


@pytest.mark.parametrize(
    ("told", "size", "plain_size"),
    [
        (10_240, 300, 10_240),
        (512, 60, 512),
        (0, 60, None),
        (10_241, 300, None),
        (511, 60, None),
        (512 * 1032, 512, 512 * 1032),
        (512 * 1033, 512, None),
        (10_240, 10_300, 10_240),  # what cannot be compressed is a little longer
        (9_728, 10_300, None),  # and not so much longer
        (0, 5 * GIB, None),  # an empty member is at the end of eStargz
        (GIB, 5 * GIB, 5 * GIB),
        (GIB, 2 * GIB, 5 * GIB),
        (512, 4 * GIB, 4 * GIB + 512),
        (3 * GIB, 2 * GIB, 3 * GIB),
        (3 * GIB, 10 * GIB, 11 * GIB),
        (GIB + 1, 5 * GIB, None),
    ],
)
def test_plausible_sizes(told: int, size: int, plain_size: int | None) -> None:
    """A gzip member tells its size modulo 4 GiB; a number that cannot be the size of a tar is none."""
    assert plausible_size(told.to_bytes(4, "little"), size) == plain_size


@pytest.mark.parametrize("last", [b"", b"\0\x02\0", b"\0\0\x02\0\0"])
def test_a_hint_has_four_bytes(last: bytes) -> None:
    assert plausible_size(last, 60) is None


@dataclass(frozen=True)
class Hint:
    """The last bytes that a source tells of one blob, in the place of the truth.

    Attributes:
        name: The test's id.
        end: Makes it of the layer.
        reads: How often the layers behind may be read, at most.
    """

    name: str
    end: Callable[[Layer], bytes | BaseException | None]
    reads: int = 1


def told(size: int) -> bytes:
    return size.to_bytes(4, "little")


HINTS = (
    Hint("right", lambda layer: layer.blob[-4:]),
    Hint("none", lambda layer: None),
    Hint("too small", lambda layer: told(len(layer.plain) - 512), 2),
    Hint("much too small", lambda layer: told(len(layer.plain) // 1024 * 512), 2),
    Hint("too large", lambda layer: told(len(layer.plain) + 512), 2),
    Hint("much too large", lambda layer: told(len(layer.plain) * 100), 2),
    Hint("no tar's", lambda layer: told(len(layer.plain) + 1)),
    Hint("impossible", lambda layer: told(len(layer.plain) * 2000)),
    Hint("short", lambda layer: b"\0\2"),
    Hint("not there", lambda layer: BlobNotFoundError(layer.descriptor.digest, "nowhere")),
    Hint("failing", lambda layer: OSError("no connection")),
)
FOUR = [layer_of(number, 9 + number) for number in range(4)]


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("lying", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint.name)
async def test_hints(hint: Hint, lying: tuple[int, ...], jobs: int, target: Path) -> None:
    """A wrong one costs time, and never a byte."""
    store = Store({"image": make_image(*FOUR)})
    for number in lying:
        store.ends[FOUR[number].descriptor.digest] = hint.end(FOUR[number])
    events = await save_plain(store, target, jobs=jobs)
    reads = [[digest for digest, _ in store.openings].count(layer.descriptor.digest) for layer in FOUR]
    if jobs == 1 or hint.reads == 1 or lying == (3,):  # of the last nobody has to know
        assert reads == [1, 1, 1, 1]
        assert not [event for event in events if isinstance(event, LayerRetried)]
    else:
        assert max(reads) <= 1 + len(lying)
        assert all(reads[number] == 1 for number in range(lying[0]))


async def test_layers_are_read_at_once_where_their_places_are_known(target: Path) -> None:
    store = Store({"image": make_image(*FOUR)})
    is_full = asyncio.Event()

    async def wait(digest: Digest, position: int) -> None:
        if store.open_now == 4:
            is_full.set()
        await is_full.wait()

    store.on_chunk = wait
    await save_plain(store, target, jobs=4)
    assert store.most_open == 4


async def test_the_largest_is_begun_first(target: Path) -> None:
    store = Store({"image": make_image(*FOUR)})
    await save_plain(store, target, jobs=2)
    assert [digest for digest, _ in store.openings[:2]] == [
        FOUR[3].descriptor.digest,
        FOUR[2].descriptor.digest,
    ]


async def test_behind_a_layer_of_unknown_size_nothing_is_begun(target: Path) -> None:
    layers = [FOUR[0], layer_of(7, 5, "zstd"), FOUR[1], FOUR[2]]
    store = Store({"image": make_image(*layers)})
    unknown = layers[1].descriptor.digest
    behind = {layer.descriptor.digest for layer in layers[2:]}

    async def look(digest: Digest, position: int) -> None:
        await asyncio.sleep(0)
        if digest == unknown:
            assert not behind & {opened for opened, _ in store.openings}

    store.on_chunk = look
    await save_plain(store, target, jobs=4)


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("kind", [None, "gzip", "zstd"])
async def test_every_compression(kind: Compression, jobs: int, target: Path) -> None:
    layers = [layer_of(number, 3 + number, kind, members=1 + number) for number in range(4)]
    await save_plain(Store({"image": make_image(*layers)}), target, jobs=jobs)


@pytest.mark.parametrize("jobs", [2, 4])
async def test_a_blob_whose_last_member_lies(jobs: int, target: Path) -> None:
    """Each member tells the truth of itself, and the last could be the whole."""
    plain = random_bytes(1, 20 * 512)
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


class WithoutEnds:
    """A source that is not able to give the end of a blob."""

    def __init__(self, store: Store) -> None:
        self.resolve = store.resolve
        self.open_blob = store.open_blob


async def test_a_source_without_ends(target: Path) -> None:
    """One layer after the other, as each shows where the next goes."""
    image = make_image(*FOUR)
    store = Store({"image": image})
    await save([ImageRequest(WithoutEnds(store), "image")], target, layers="decompress", jobs=4)
    assert target.read_bytes() == await archive_of([image], layers="decompress")
    assert [digest for digest, _ in store.openings] == [layer.descriptor.digest for layer in FOUR]
    assert store.most_open == 1


class HangingStore(Store):
    """Never answers what the end of some blobs is."""

    def __init__(self, image: Image, hanging: Sequence[Layer]) -> None:
        super().__init__({"image": image})
        self._hanging = [layer.descriptor.digest for layer in hanging]
        self.asked = 0

    async def last_bytes(self, descriptor: Any, count: int) -> bytes | None:
        self.asked += 1
        if descriptor.digest in self._hanging:
            await asyncio.Event().wait()
        return await super().last_bytes(descriptor, count)


@pytest.mark.parametrize("hanging", [(0,), (1, 2), (0, 1, 2)], ids=str)
async def test_a_source_that_never_answers(
    hanging: tuple[int, ...], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_file, "_PATIENCE", 0.05)
    store = HangingStore(make_image(*FOUR), [FOUR[number] for number in hanging])
    await save_plain(store, target, jobs=4)
    assert store.asked == 3  # nothing depends on the last


async def test_an_error_ends_the_save_while_an_answer_is_waited_for(target: Path) -> None:
    image = make_image(*(layer_of(number, 9) for number in range(12)))
    store = HangingStore(image, image.layers[1:])
    store.blobs[image.layers[0].descriptor.digest] = b"short"
    with pytest.raises(SizeMismatchError):
        await save_plain(store, target, jobs=4)
    assert target.read_bytes() == OLD


async def test_what_is_no_fault_of_the_source_is_not_hidden(target: Path) -> None:
    store = Store({"image": make_image(*FOUR)})
    store.ends[FOUR[1].descriptor.digest] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await save_plain(store, target, jobs=4)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


async def test_many_layers(target: Path) -> None:
    """More than are asked about at once."""
    layers = [layer_of(number, 1 + number % 5) for number in range(40)]
    await save_plain(Store({"image": make_image(*layers)}), target, jobs=8)


async def test_what_lies_cost(target: Path) -> None:
    """Many layers that all lie: each is read again for those in front of it that ran beside it."""
    layers = [layer_of(number, 9) for number in range(16)]
    jobs = 4
    for more in (-512, 512):
        store = Store({"image": make_image(*layers)})
        store.ends = {layer.descriptor.digest: told(len(layer.plain) + more) for layer in layers}
        await save_plain(store, target, jobs=jobs)
        assert store.given.total() <= (1 + jobs) * store.size


async def test_what_was_wrong_at_first_is_forgotten(target: Path) -> None:
    """Too long for its place, so it is read again, and is right then: the archive is, too."""
    layer = layer_of(1, 12)
    digest = layer.descriptor.digest
    store = Store({"image": make_image(layer, FOUR[0])})
    store.ends[digest] = layer.blob[-4:]
    store.blobs[digest] = compress(b"y" * 10_000 + random_bytes(9, 5500), "gzip")
    store.on_chunk = lambda digest, position: asyncio.sleep(0.005)  # until some of it is written, and hashed

    def give_the_right(event: Event) -> None:
        if isinstance(event, LayerRetried):
            store.blobs[digest] = layer.blob

    async with asyncio.timeout(LIMIT):
        await save(
            store.requests(),
            target,
            layers="decompress",
            fsync=False,
            jobs=2,
            progress=give_the_right,
        )
    assert [opened for opened, _ in store.openings].count(digest) == 2
    assert target.read_bytes() == await archive_of(store.images.values(), layers="decompress")


async def test_a_blob_without_a_size_has_no_hint() -> None:
    image = make_image(FOUR[0])
    (prepared,) = (await prepare(Store({"image": image}).requests())).images
    layer = replace(FOUR[0].descriptor, size=None)
    assert (
        await plain_size_hint(Blob(layer, FOUR[0].diff_id, prepared, prepared.request.source.open_blob))
        is None
    )
    assert await plain_size_hint(
        Blob(FOUR[0].descriptor, FOUR[0].diff_id, prepared, prepared.request.source.open_blob)
    ) == len(FOUR[0].plain)


# ── small layers ──


@pytest.fixture(params=[2500, 1 << 20], ids=["some are small", "all are small"])
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_limits(monkeypatch, request.param)


KINDS: list[Compression] = ["zstd", "gzip", None]
MIXED = [layer_of(number, 2 + 3 * (number % 3), kind) for number, kind in enumerate(KINDS * 3)]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("layers", [FOUR, MIXED, MIXED[::-1]], ids=["gzip", "mixed", "reversed"])
async def test_small_layers(layers: list[Layer], jobs: int, target: Path) -> None:
    store = Store({"image": make_image(*layers)})
    await save_plain(store, target, jobs=jobs)
    assert len(store.openings) == len(layers)


@pytest.mark.parametrize(("jobs", "limit", "expected"), [(2, 1 << 20, 2), (3, 1 << 20, 4), (3, 7000, 3)])
async def test_small_layers_are_received_while_their_place_is_not_known(
    jobs: int, limit: int, expected: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as memory is granted for, besides the one that all wait for, and no more."""
    use_small_limits(monkeypatch, 3000)
    monkeypatch.setattr(plain_file, "_RECEIVED", limit)
    unknown, small = layer_of(9, 40, "zstd"), [layer_of(number, 4) for number in range(8)]
    store = Store({"image": make_image(unknown, *small)})
    given: set[Digest] = set()

    async def wait(digest: Digest, position: int) -> None:
        given.add(digest)
        if digest == unknown.descriptor.digest and position > 5000:
            while len(given) < 1 + expected:
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(given) == 1 + expected or position > 6000

    store.on_chunk = wait
    await save_plain(store, target, jobs=jobs)


@pytest.mark.parametrize("kind", ["gzip", None])
async def test_small_layers_have_their_hint_with_them(
    kind: Compression, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So all are stored at once when the place of the first is known."""
    use_small_limits(monkeypatch, 3000)
    unknown, small = layer_of(9, 40, "zstd"), [layer_of(number, 4, kind) for number in range(3)]
    begin = threading.Barrier(len(small))
    begun: set[Digest] = {unknown.descriptor.digest}
    take = placing.PlainBlob.take

    def take_together(placement: placing.PlainBlob, batch: Sequence[Batch]) -> None:
        digest = placement._descriptor.digest
        if digest not in begun:
            begun.add(digest)
            begin.wait(LIMIT)
        take(placement, batch)

    monkeypatch.setattr(placing.PlainBlob, "take", take_together)
    events = await save_plain(Store({"image": make_image(unknown, *small)}), target, jobs=4)
    assert not [event for event in events if isinstance(event, LayerRetried)]


@pytest.mark.parametrize("jobs", [2, 3])
async def test_no_more_are_stored_at_once_than_are_read(
    jobs: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what was received waits for nobody but the one before it."""
    use_small_limits(monkeypatch, 3000)
    now = most = 0
    fill = filling.fill

    async def counted(*args: Any, **options: Any) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await fill(*args, **options)
        finally:
            now -= 1

    monkeypatch.setattr(plain_file, "fill", counted)
    small = [layer_of(number, 4) for number in range(12)]
    await save_plain(Store({"image": make_image(layer_of(9, 40, "zstd"), *small)}), target, jobs=jobs)
    assert most == jobs


async def test_lanes_are_counted_while_they_have_a_blob(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is helped, two are not."""
    crews: set[placing.Crew] = set()
    helped: set[int] = set()
    alone: set[int] = set()
    put, hand_over = placing.Relay.put, placing.Relay._hand_over

    def note(relay: placing.Relay, call: Any, data: Any) -> None:
        crews.add(relay._crew)
        alone.add(relay._crew.busy)
        put(relay, call, data)

    def note_help(relay: placing.Relay, call: Any, data: Any) -> None:
        helped.add(relay._crew.busy)
        hand_over(relay, call, data)

    monkeypatch.setattr(placing.Relay, "put", note)
    monkeypatch.setattr(placing.Relay, "_hand_over", note_help)
    await save_plain(Store({"image": make_image(layer_of(0, 90, "zstd"))}), target, jobs=2)
    assert alone == helped == {1}
    alone.clear()
    store = Store({"image": make_image(*[layer_of(number, 60) for number in range(2)])})
    are_open = asyncio.Event()

    async def wait(*_: object) -> None:
        if store.open_now == 2:
            are_open.set()
        await are_open.wait()

    store.on_chunk = wait
    await save_plain(store, target, jobs=2)
    assert 2 in alone
    assert helped == {1}
    assert {crew.busy for crew in crews} == {0}


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("jobs", [1, 2, 4])
async def test_a_small_layer_with_another_blob(jobs: int, target: Path) -> None:
    """Bytes received of one blob are not taken for the other of the same plain tar."""
    plain = random_bytes(5, 3 * 512)
    images = {
        "one": make_image(layer_of(9, 40, "zstd"), make_layer(plain), author="1"),
        "two": make_image(make_layer(plain, "zstd"), make_layer(plain, None), author="2"),
    }
    store = Store(images)
    await save_plain(store, target, jobs=jobs)
    assert len(store.openings) == 4


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("more", [-1, 1], ids=["too small", "too large"])
async def test_small_layers_behind_a_hint_that_lies(more: int, jobs: int, target: Path) -> None:
    lying = layer_of(9, 20)
    store = Store({"image": make_image(layer_of(8, 4), lying, *MIXED)})
    store.ends[lying.descriptor.digest] = told(len(lying.plain) + 512 * more)
    await save_plain(store, target, jobs=jobs)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("fails_at", [-1, 0, 700])
async def test_a_small_layer_that_cannot_be_had(fails_at: int, target: Path) -> None:
    store = Store({"image": make_image(layer_of(9, 40, "zstd"), *MIXED)})
    store.fails_at[MIXED[3].descriptor.digest] = fails_at
    with pytest.raises(StoreFailedError):
        await save_plain(store, target, jobs=3)
    assert target.read_bytes() == OLD
    assert store.open_now == 0
    assert [path.name for path in target.parent.iterdir()] == [target.name]


# ── one plain tar, several blobs ──


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("kinds", list(itertools.permutations(("gzip", "zstd", None))))
async def test_blobs_of_one_diff_id(kinds: tuple[Compression, ...], jobs: int, target: Path) -> None:
    """It is stored once, and each blob is verified."""
    plain = random_bytes(5, 5 * 512)
    images = {
        str(kind): make_image(make_layer(plain, kind), FOUR[number], author=str(kind))
        for number, kind in enumerate(kinds)
    }
    await save_plain(Store(images), target, jobs=jobs)


@pytest.mark.parametrize("jobs", [1, 2, 4])
async def test_another_blob_of_a_diff_id_that_is_wrong(jobs: int, target: Path) -> None:
    plain = random_bytes(5, 5 * 512)
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


# ── 8 GiB and more ──


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize(
    "hint",
    [hint for hint in HINTS if hint.name in ("right", "none", "too small", "too large")],
    ids=lambda hint: hint.name,
)
@pytest.mark.parametrize("over", [-1, 0, 1, 7], ids="{:+} records".format)
async def test_longer_headers(
    over: int, hint: Hint, jobs: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 8 GiB on a header has PAX records, and what is behind it is moved if that was not known."""
    monkeypatch.setattr(tar, "MAX_OCTAL_SIZE", 10 * 512)
    layers = [layer_of(0, 3), layer_of(1, 10 + over), layer_of(2, 4), layer_of(3, 20, "zstd"), layer_of(4, 5)]
    store = Store({"image": make_image(*layers)})
    for layer in layers[:3]:
        store.ends[layer.descriptor.digest] = hint.end(layer)
    await save_plain(store, target, jobs=jobs)


async def test_what_ends_while_a_layer_is_moved_does_not_disturb_it(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "MAX_OCTAL_SIZE", 10 * 512)
    plain = random_bytes(1, 512)
    moved = layer_of(0, 20, "zstd")
    copy = make_layer(plain, "zstd")
    images = {
        "one": make_image(moved, make_layer(plain)),
        "two": make_image(copy, author="two"),
    }
    store = Store(images)
    is_moving = asyncio.Event()
    loop = asyncio.get_running_loop()
    is_verified = threading.Event()
    move = in_place.move_back

    def move_slowly(*args: Any) -> None:
        loop.call_soon_threadsafe(is_moving.set)
        assert is_verified.wait(LIMIT)
        move(*args)

    async def wait(digest: Digest, position: int) -> None:
        if digest == copy.descriptor.digest:
            await is_moving.wait()

    monkeypatch.setattr(plain_file, "move_back", move_slowly)
    store.on_chunk = wait
    events: list[Event] = []

    def progress(event: Event) -> None:
        events.append(event)
        if isinstance(event, LayerFinished) and event.layer == copy.descriptor:
            loop.call_later(0.01, is_verified.set)  # the filer has looked at it by then

    async with asyncio.timeout(LIMIT):
        await save(store.requests(), target, layers="decompress", jobs=2, fsync=False, progress=progress)
    assert target.read_bytes() == await archive_of(images.values(), layers="decompress")
    assert [digest for digest, _ in store.openings].count(moved.descriptor.digest) == 1
    assert not [event for event in events if isinstance(event, LayerRetried)]


# ── what a layer may be ──


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("kind", ["gzip", "zstd", None])
@pytest.mark.parametrize("hint", [True, False], ids=["hint", "no hint"])
async def test_a_limit_on_plain_sizes(kind: Compression, hint: bool, jobs: int, target: Path) -> None:
    layers = [layer_of(0, 4), layer_of(1, 9, kind), layer_of(2, 4)]
    store = Store({"image": make_image(*layers)})
    if not hint:
        store.ends = dict.fromkeys(store.blobs)
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


# ── any order ──


@pytest.fixture
def _ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads that are none: the same run twice is the same run."""
    monkeypatch.setattr(plain_file, "Worker", ThreadedTickWorker)
    yield
    assert ThreadedTickWorker.unfinished == 0


@pytest.mark.usefixtures("_ticking")
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
@pytest.mark.parametrize("lying", [(), (0,), (1,), (0, 2), (0, 1, 2)], ids=str)
async def test_layers_end_in_any_order(lying: tuple[int, ...], order: tuple[int, ...], target: Path) -> None:
    """Each waits before its last chunk for the one that is to end before it, unless that is not running."""
    store = Store({"image": make_image(*FOUR)})
    for number in lying:
        more = 512 if order[0] % 2 else -512
        store.ends[FOUR[number].descriptor.digest] = told(len(FOUR[number].plain) + more)
    rank = {FOUR[number].descriptor.digest: place for place, number in enumerate(order)}

    async def wait(digest: Digest, position: int) -> None:
        last = position + store.chunk_size >= len(store.blobs[digest])
        for _ in range(1 + (60 * rank[digest] if last else 0)):
            await asyncio.sleep(0)

    store.on_chunk = wait
    events = await save_plain(store, target, jobs=4)
    finished = [event.layer.digest for event in events if isinstance(event, LayerFinished)]
    assert lying or finished == sorted(rank, key=rank.__getitem__)


@dataclass(frozen=True)
class Told:
    """A layer, and what a source says and does about it."""

    layer: Layer
    end: bytes | BaseException | None
    ticks: int

    def __repr__(self) -> str:
        return f"{self.layer} told {self.end!r}, {self.ticks} ticks a chunk"


@st.composite
def told_layers(draw: st.DrawFn) -> Told:
    records = draw(st.integers(0, 12))
    kinds: list[Compression] = ["gzip", "gzip", "gzip", "zstd", None]
    kind = draw(st.sampled_from(kinds))
    extra = draw(st.sampled_from([0, 0, 0, 1, 100]))  # a few are no tars
    plain = random_bytes(draw(st.integers(0, 3)), records * 512 + extra)
    layer = make_layer(plain, kind, members=draw(st.integers(1, 3)))
    end = draw(
        st.just(layer.blob[-4:])
        | st.integers(-3, 3).map(lambda more: told(max(0, len(plain) + more * 512)))
        | st.sampled_from([None, b"", OSError("gone")])
    )
    return Told(layer, end, draw(st.integers(0, 12)))


@st.composite
def told_images(draw: st.DrawFn) -> tuple[list[Image], list[Told]]:
    pool = draw(st.lists(told_layers(), min_size=1, max_size=7))
    stacks = draw(st.lists(st.lists(st.sampled_from(pool), max_size=6), min_size=1, max_size=3))
    return [
        make_image(*(each.layer for each in stack), author=str(number)) for number, stack in enumerate(stacks)
    ], pool


@settings(max_examples=150, derandomize=True)
@given(
    case=told_images(),
    jobs=st.integers(1, 8),
    chunk_size=st.sampled_from([100, 300, 5000]),
    limit=st.sampled_from([2000, 1 << 33]),
    small=st.sampled_from([NOTHING_IS_SMALL, 2500, 1 << 20]),
    worker=st.sampled_from([Worker, ThreadedTickWorker]),
)
async def test_anything(
    case: tuple[list[Image], list[Told]],
    jobs: int,
    chunk_size: int,
    limit: int,
    small: int,
    worker: Any,
) -> None:
    images, pool = case
    store = Store({str(number): image for number, image in enumerate(images)}, chunk_size=chunk_size)
    store.ends = {each.layer.descriptor.digest: each.end for each in pool}
    ticks = {each.layer.descriptor.digest: each.ticks for each in pool}

    async def wait(digest: Digest, position: int) -> None:
        for _ in range(ticks[digest]):
            await asyncio.sleep(0)

    store.on_chunk = wait
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        use_small_limits(patch, small)
        patch.setattr(tar, "MAX_OCTAL_SIZE", limit)
        patch.setattr(plain_file, "Worker", worker)
        await save_plain(store, Path(folder) / "a.tar", jobs=jobs)


async def test_a_copy_that_is_verified_meanwhile_is_not_given_up(tmp_path: Path) -> None:
    """A wrong hint moves what is stored behind it; another blob of the same tar has no place, and goes on."""
    data = {"same": random.Random(6).randbytes(60_000)}
    stored, copy = make_layer(data), make_layer(data, None)
    liar = make_layer({"liar": random.Random(7).randbytes(30_000)})
    image = make_image(liar, stored, copy)
    store = Store({"app": image}, chunk_size=1000)
    store.ends[liar.descriptor.digest] = (60_416).to_bytes(4, "little")
    held = asyncio.Event()

    async def hold(digest: Digest, position: int) -> None:
        if digest == copy.descriptor.digest and position > 50_000:
            await held.wait()
        elif store.openings.count((stored.descriptor.digest, 0)) > 1:
            held.set()  # what was behind the wrong hint is read again

    store.on_chunk = hold
    events = await save_plain(store, tmp_path / "app.tar", jobs=3)
    finished = [event.layer for event in events if isinstance(event, LayerFinished)]
    assert copy.descriptor in finished
