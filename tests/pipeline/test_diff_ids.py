"""Diff IDs of layers that are kept: verified where that is asked for, else what is no layer at all is reported.

A kept layer is stored under its own digest, which is always verified. What is in it is what the diff ID in the config says,
or Docker refuses the archive: the table of wrong ones runs through the writer and through ``save`` in every way that bytes
take there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
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
    InvalidDigestError,
    InvalidInputError,
    MissingDependencyError,
    WriterBrokenError,
    open_archive,
    plan_archive,
    save,
)
from aiodockersave.blobs import file_region
from aiodockersave.core import decompression
from aiodockersave.pipeline import to_file
from aiodockersave.pipeline.progress import LayerStarted
from aiodockersave.sinks.part_file import part_name
from tests.support.images import (
    Compression,
    Image,
    Layer,
    ListSink,
    MemorySink,
    RewindSink,
    archive_of,
    hide_decompressors,
    make_config,
    make_image,
    make_layer,
    put,
)
from tests.support.stores import Store

LIMIT = 20.0  # seconds for anything that is waited for
KINDS: tuple[Compression, ...] = (None, "gzip", "zstd")
NOISE = random.Random(7).randbytes(700_000)
GOOD = make_layer({"good": b"good\n"})
LARGE = make_layer({"noise": NOISE})
SINKS = [ListSink, RewindSink, MemorySink]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_sink = pytest.mark.parametrize("make_sink", SINKS)


def pretending(layer: Layer, diff_id: Digest) -> Layer:
    """The same blob, of which something else is said."""
    return replace(layer, diff_id=diff_id)


def blob_of(blob: bytes, layer: Layer) -> Layer:
    """Another blob with the diff ID of a layer."""
    descriptor = Descriptor(layer.descriptor.media_type, Digest.of(blob), len(blob))
    return replace(layer, blob=blob, descriptor=descriptor)


WRONG: dict[str, tuple[Layer, type[ContentError]]] = {
    "another layer's": (pretending(GOOD, LARGE.diff_id), DigestMismatchError),
    "another layer's, large": (pretending(LARGE, GOOD.diff_id), DigestMismatchError),
    "the blob's own": (pretending(LARGE, LARGE.descriptor.digest), DigestMismatchError),
    "of a plain tar": (pretending(make_layer({"x": b"x"}, None), GOOD.diff_id), DigestMismatchError),
    "of zstd": (pretending(make_layer({"x": NOISE}, "zstd"), GOOD.diff_id), DigestMismatchError),
    "of an empty layer": (pretending(make_layer(b"", None), GOOD.diff_id), DigestMismatchError),
    "by sha512": (pretending(LARGE, Digest.of(b"", "sha512")), DigestMismatchError),
    "no gzip behind its magic": (blob_of(b"\x1f\x8bno", GOOD), DecompressionError),
    "cut off": (blob_of(LARGE.blob[:-9], LARGE), DecompressionError),
    "more behind it": (blob_of(LARGE.blob + b"more", LARGE), DecompressionError),
}
"""Layers that have the right digest as blobs, and are not what the config says, with the error that this is."""

wrong = pytest.mark.parametrize(("layer", "error"), WRONG.values(), ids=WRONG)


def right_layers() -> Iterator[Layer]:
    for kind in KINDS:
        yield make_layer({"kind": str(kind).encode()}, kind)
        yield make_layer({"kind": str(kind).encode() + NOISE}, kind, members=3)
    yield make_layer(b"", None)
    yield make_layer({"long": b"sha512"}, algorithm="sha512")
    yield make_layer({"both": b"sha512"}, diff_id_algorithm="sha512")


RIGHT = make_image(*right_layers(), repo_tags=["a:1"])


# ── the writer ──


@every_sink
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
async def test_the_archive_is_the_same(make_sink: Any, stage: bool) -> None:
    sink = make_sink()
    async with ArchiveWriter(sink, verify_diff_ids=True) as archive:
        await put(archive, RIGHT, stage=stage)
    assert sink.getvalue() == await archive_of([RIGHT])


@every_sink
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
@wrong
async def test_a_wrong_one_where_the_layer_is_put(
    layer: Layer, error: type[ContentError], make_sink: Any, stage: bool
) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink, verify_diff_ids=True)
    with pytest.raises(error) as caught:
        await archive.put_layer(layer.blob, layer.descriptor, diff_id=layer.diff_id, stage=stage)
    if isinstance(caught.value, DigestMismatchError):
        assert (caught.value.what, caught.value.expected) == ("diff ID", layer.diff_id)
        assert str(layer.descriptor.digest) in str(caught.value)
    if make_sink is ListSink and sink.getvalue():
        with pytest.raises(WriterBrokenError):
            await archive.close()
        return
    assert sink.getvalue() == b""
    assert not archive.has_blob(layer.descriptor.digest)
    await put(archive, RIGHT)
    await archive.close()
    assert sink.getvalue() == await archive_of([RIGHT])


@every_sink
@wrong
async def test_a_wrong_one_where_the_image_is_put(
    layer: Layer, error: type[ContentError], make_sink: Any
) -> None:
    """The config tells the diff ID where nobody told it with the layer: before a byte of the image is written."""
    sink = make_sink()
    archive = ArchiveWriter(sink, verify_diff_ids=True)
    wrong = make_image(layer)
    if error is DecompressionError:
        with pytest.raises(error):
            await archive.put_layer(layer.blob, layer.descriptor)
        return
    await archive.put_layer(layer.blob, layer.descriptor)
    before = sink.getvalue()
    expected = InvalidInputError if layer.diff_id.algorithm == "sha512" else DigestMismatchError
    with pytest.raises(expected, match="diff ID"):
        await archive.put_image(wrong.config, wrong.manifest)
    assert sink.getvalue() == before
    right = make_image(replace(layer, diff_id=Digest.of(layer.plain)))
    await archive.put_image(right.config, right.manifest)  # it is open, and the layer is in
    await archive.close()
    assert sink.getvalue() == await archive_of([right])


async def test_layers_of_unknown_digest_and_size() -> None:
    sink = MemorySink()
    archive = ArchiveWriter(sink, verify_diff_ids=True)
    stored = [await archive.put_layer(layer.blob) for layer in (GOOD, LARGE)]
    swapped = make_config([LARGE.diff_id, GOOD.diff_id])
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await archive.put_image(swapped, stored)
    await archive.put_image(make_config([GOOD.diff_id, LARGE.diff_id]), stored)
    await archive.close()


async def test_what_is_in_already_is_looked_at_by_what_is_known_of_it() -> None:
    async def unopened() -> bytes:
        raise AssertionError("it is in")

    archive = ArchiveWriter(ListSink(), verify_diff_ids=True)
    await archive.put_layer(GOOD.blob, GOOD.descriptor)
    await archive.put_layer(unopened, GOOD.descriptor, diff_id=GOOD.diff_id)
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await archive.put_layer(unopened, GOOD.descriptor, diff_id=LARGE.diff_id)
    with pytest.raises(InvalidInputError, match="give diff_id="):
        await archive.put_layer(unopened, GOOD.descriptor, diff_id=Digest.of(GOOD.plain, "sha512"))
    await archive.put_image(make_config([GOOD.diff_id]), [GOOD.descriptor])
    await archive.abort()


async def test_a_diff_id_that_is_no_digest() -> None:
    for options in ({"verify_diff_ids": True}, {"layers": "decompress"}):
        with pytest.raises(InvalidDigestError):
            await ArchiveWriter(ListSink(), **options).put_layer(GOOD.blob, diff_id="x")
    await ArchiveWriter(ListSink()).put_layer(GOOD.blob, diff_id="x")  # nobody looks at it


@wrong
async def test_without_the_option_nothing_is_opened(layer: Layer, error: type[ContentError]) -> None:
    assert issubclass(error, ContentError)
    image = make_image(layer)
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await put(archive, image)
    assert layer.blob in sink.getvalue()


@wrong
async def test_an_archive_at_a_path(layer: Layer, error: type[ContentError], tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with contextlib.suppress(error):
        async with open_archive(path, fsync=False, verify_diff_ids=True) as archive:
            await put(archive, make_image(layer))
    assert list(tmp_path.iterdir()) == []
    async with open_archive(path, fsync=False, verify_diff_ids=True) as archive:
        await put(archive, RIGHT)
    assert path.read_bytes() == await archive_of([RIGHT])


async def test_zstd_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_decompressors(monkeypatch)
    layer = make_layer({"x": b"x"}, "zstd")
    for target in (ListSink(), tmp_path / "a.tar"):
        with pytest.raises(MissingDependencyError, match=r"pip install 'aiodockersave\[decompress\]'"):
            await save_image(make_image(layer), target, verify_diff_ids=True)
        await save_image(make_image(layer), target)
        await save_image(make_image(LARGE), target, verify_diff_ids=True)  # zlib will do


# ── save ──

Saved = Callable[..., Awaitable[Any]]


async def save_image(image: Image, target: Any, **options: Any) -> Store:
    store = Store({"image": image}, chunk_size=options.pop("chunk_size", 30_000))
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), target, fsync=False, **options)
    assert store.open_now == 0
    return store


WAYS: dict[str, dict[str, Any]] = {
    "file": {},
    "file, one by one": {"jobs": 1},
    "file, to be resumed": {"resume": True},
    "stream": {},
    "stream, one by one": {"jobs": 1},
}
every_way = pytest.mark.parametrize("way", WAYS)


def target_of(way: str, folder: Path) -> Any:
    return folder / "a.tar" if way.startswith("file") else ListSink()


def content_of(target: Any) -> bytes:
    content: bytes = target.read_bytes() if isinstance(target, Path) else target.getvalue()
    return content


@every_way
@pytest.mark.parametrize("chunk_size", [1, 100, 300_000])
async def test_right_ones_are_saved(way: str, chunk_size: int, tmp_path: Path) -> None:
    image = (
        RIGHT if chunk_size > 1 else make_image(GOOD, make_layer({"x": b"x"}, "zstd"), make_layer(b"x", None))
    )
    target = target_of(way, tmp_path)
    await save_image(image, target, verify_diff_ids=True, chunk_size=chunk_size, **WAYS[way])
    assert content_of(target) == await archive_of([image])


@every_way
@wrong
async def test_wrong_ones_are_not_saved(
    layer: Layer, error: type[ContentError], way: str, tmp_path: Path
) -> None:
    image = make_image(make_layer({"first": b"1"}), layer, make_layer({"other": NOISE[:5000]}))
    target = target_of(way, tmp_path)
    with pytest.raises(error) as caught:
        await save_image(image, target, verify_diff_ids=True, **WAYS[way])
    assert "image image" in caught.value.__notes__
    if error is DigestMismatchError:
        assert "diff ID" in str(caught.value)
    if isinstance(target, Path):
        assert not target.exists()
    else:
        assert not target.getvalue().endswith(bytes(1024))
    await save_image(image, target_of(way, tmp_path), **WAYS[way])  # as it is without the option


@every_way
async def test_one_layer_with_two_diff_ids(way: str, tmp_path: Path) -> None:
    """It is read for one of the images only."""
    images = {"one": make_image(GOOD), "two": make_image(pretending(GOOD, LARGE.diff_id))}
    store = Store(images)
    with pytest.raises(InvalidInputError, match="two diff IDs"):
        await save(store.requests(), target_of(way, tmp_path), verify_diff_ids=True, fsync=False, **WAYS[way])
    assert store.openings == []
    await save(store.requests(), target_of(way, tmp_path), fsync=False, **WAYS[way])


@every_way
async def test_what_is_opened_beside_has_limits(way: str, tmp_path: Path) -> None:
    bomb = make_layer(bytes(80 << 20), "zstd")
    small = make_layer(bytes(3 << 20), "gzip")
    (tmp_path / "small").mkdir()
    with pytest.raises(ContentTooLargeError, match="allow more by max_expansion"):
        await save_image(make_image(bomb), target_of(way, tmp_path), verify_diff_ids=True, **WAYS[way])
    with pytest.raises(ContentTooLargeError, match="limit of 1000000 bytes"):
        await save_image(
            make_image(small),
            target_of(way, tmp_path / "small"),
            verify_diff_ids=True,
            max_plain_size=1_000_000,
            **WAYS[way],
        )
    for options in ({"max_expansion": None, "verify_diff_ids": True}, {}):
        target = target_of(way, tmp_path)
        await save_image(make_image(bomb), target, **options, **WAYS[way])
        assert content_of(target) == await archive_of([make_image(bomb)])


async def test_decompressed_layers_are_verified_anyway(tmp_path: Path) -> None:
    image = make_image(pretending(GOOD, LARGE.diff_id))
    for verify in (False, True):
        with pytest.raises(DigestMismatchError, match="diff ID"):
            await save_image(image, tmp_path / "a.tar", layers="decompress", verify_diff_ids=verify)


# ── going on ──

NOISY = make_layer({"noise": NOISE})


class Desk:
    """A part file that an interrupted save has left of one layer."""

    def __init__(self, folder: Path, layer: Layer) -> None:
        self.image = make_image(layer, repo_tags=["a:1"])
        self.plan = plan_archive([self.image.spec])
        self.target = folder / "a.tar"
        self.part = folder / part_name("a.tar", self.plan.etag)
        (self.offset,) = (each.offset for each in self.plan.segments if each.descriptor)
        self.store = Store({"image": self.image}, chunk_size=10_000)
        self.events: list[Any] = []

    def leave(self, received: bytes) -> None:
        self.part.write_bytes(bytes(self.offset) + received)

    async def go_on(self, **options: Any) -> int:
        """Save; return how many bytes were fetched."""
        async with asyncio.timeout(LIMIT):
            await save(
                self.store.requests(),
                self.target,
                resume=True,
                fsync=False,
                progress=self.events.append,
                **{"verify_diff_ids": True} | options,
            )
        assert self.target.read_bytes() == await archive_of([self.image])
        return self.store.given.total()


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, pieces and calls for each blob."""
    monkeypatch.setattr(file_region, "BATCH_SIZE", 1 << 16)
    monkeypatch.setattr(file_region, "PIECE", 30_000)
    monkeypatch.setattr(to_file, "_READ_BACK_INFLATED", 100_000)


@pytest.fixture(autouse=True)
def _no_part_files(tmp_path: Path) -> Iterator[None]:
    """A part file that is kept for the next save is no leak."""
    yield
    for path in tmp_path.rglob(".*.part"):
        path.unlink()


def parts_of(blob: bytes) -> dict[str, tuple[bytes, int]]:
    """Return bytes that may be left, and how many have to be fetched then."""
    half, third = len(blob) // 2, len(blob) // 3
    hole = blob[:third] + bytes(1000) + blob[third + 1000 : half]
    wrong_head = b"\xff" * 10 + blob[10:half]
    return {
        "nothing": (b"", len(blob)),
        "one byte": (blob[:1], len(blob) - 1),
        "half": (blob[:half], len(blob) - len(blob[:half].rstrip(b"\0"))),
        "all": (blob, 0),
        "all but zeros": (blob.rstrip(b"\0"), 0),
        "a hole": (hole, len(blob)),
        "another head": (wrong_head, len(blob)),
        "all, one bit wrong": (blob[:half] + bytes([blob[half] ^ 1]) + blob[half + 1 :], len(blob)),
    }


@pytest.mark.parametrize("left", parts_of(bytes(9)))
@every_kind
async def test_what_was_received_is_opened_too(kind: Compression, left: str, tmp_path: Path) -> None:
    layer = make_layer({"noise": NOISE}, kind, members=3)  # what is damaged shows inside
    part, least = parts_of(layer.blob)[left]
    desk = Desk(tmp_path, layer)
    desk.leave(part)
    fetched = await desk.go_on()
    assert least <= fetched <= 2 * len(layer.blob)
    assert fetched == least or part not in layer.blob


@pytest.mark.parametrize("left", parts_of(bytes(9)))
@every_kind
async def test_a_wrong_one_of_what_was_received(kind: Compression, left: str, tmp_path: Path) -> None:
    layer = pretending(make_layer({"noise": NOISE}, kind, members=3), GOOD.diff_id)
    part, least = parts_of(layer.blob)[left]
    desk = Desk(tmp_path, layer)
    desk.leave(part)
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await desk.go_on()
    if part in layer.blob:
        assert desk.store.given.total() == least  # what is right is not fetched again for it
    assert not desk.target.exists()
    assert desk.part.exists()
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await desk.go_on()
    assert await desk.go_on(verify_diff_ids=False) >= least


async def test_damaged_inside_and_received_as_a_whole(tmp_path: Path) -> None:
    layer, _ = WRONG["cut off"]
    for part in (layer.blob, layer.blob[:100_000]):
        desk = Desk(tmp_path, layer)
        desk.leave(part)
        with pytest.raises(DecompressionError, match=str(layer.descriptor.digest)):
            await desk.go_on()
        assert desk.store.given.total() == len(layer.blob) - len(
            part
        )  # the blob is right: it is not fetched again


async def test_zeros_at_the_end_of_what_was_received(tmp_path: Path) -> None:
    """A plain tar ends with them, and they may never have been written: they are hashed, too."""
    layer = make_layer({"x": b"x"}, None)
    desk = Desk(tmp_path, layer)
    desk.leave(layer.blob.rstrip(b"\0"))
    assert await desk.go_on() == 0


# ── what is no layer at all ──

ODD = {
    "text": make_layer(b"no layer " * 9999, None),
    "short": make_layer(b"no", None),
    "called gzip": make_layer(b"no layer " * 99, None, media_type=GOOD.descriptor.media_type),
}
ORDINARY = {
    **{str(kind): make_layer({"x": NOISE[:2000]}, kind) for kind in KINDS},
    "empty": make_layer(b"", None),
    "an empty tar": make_layer(bytes(1024), None),
    "another type": make_layer({"x": b""}, None, media_type=GOOD.descriptor.media_type),
}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "aiodockersave"]


@every_way
@pytest.mark.parametrize("chunk_size", [1, 511, 100_000])
@pytest.mark.parametrize("verify", [False, True], ids=["", "verified"])
async def test_what_is_no_layer_is_reported_once(
    way: str, chunk_size: int, verify: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [ODD["text"] if chunk_size > 1 else ODD["short"], ODD["called gzip"]]
    image = make_image(GOOD, *odd, odd[0])
    target = target_of(way, tmp_path)
    await save_image(image, target, chunk_size=chunk_size, verify_diff_ids=verify, **WAYS[way])
    assert content_of(target) == await archive_of([image])
    assert sorted(warnings(caplog)) == sorted(
        f"layer {layer.descriptor.digest} is neither compressed (gzip, zstd) nor a tar, "
        "so that what loads the archive may refuse it (image image)"
        for layer in odd
    )
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@every_way
async def test_what_is_one_is_not(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await save_image(make_image(*ORDINARY.values()), target_of(way, tmp_path), **WAYS[way])
    assert warnings(caplog) == []


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", ODD)
async def test_of_what_was_received_before(
    name: str, share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(tmp_path, ODD[name])
    desk.leave(ODD[name].blob[: int(share * len(ODD[name].blob))])
    await desk.go_on(verify_diff_ids=False)
    assert len(warnings(caplog)) == 1
    (resumed,) = (event.resumed for event in desk.events if isinstance(event, LayerStarted))
    assert resumed == int(share * len(ODD[name].blob))


async def test_a_name_cannot_write_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store({"a\nb": make_image(ODD["short"])})
    await save(store.requests(), tmp_path / "a.tar", fsync=False)
    (line,) = warnings(caplog)
    assert "\n" not in line


async def test_where_layers_are_decompressed_their_diff_ids_say_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await save_image(make_image(*ODD.values()), tmp_path / "a.tar", layers="decompress")
    await save_image(make_image(*ODD.values()), ListSink(), layers="decompress")
    assert warnings(caplog) == []


# ── cancelled ──


async def test_a_cancel_does_not_wait_until_all_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may be hours of work, which is given up in the middle of a call."""
    stopped: list[bool] = []
    stop = decompression.PlainHash.stop

    def note(self: Any) -> None:
        stopped.append(True)
        stop(self)

    monkeypatch.setattr(decompression.PlainHash, "stop", note)
    blob = gzip.compress(bytes(300 << 20), 9)
    layer = Descriptor(GOOD.descriptor.media_type, Digest.of(blob), len(blob))
    started = asyncio.Event()

    async def content() -> Any:
        yield blob[:-1]
        started.set()
        await asyncio.Event().wait()

    archive = ArchiveWriter(ListSink(), verify_diff_ids=True)
    putting = asyncio.ensure_future(archive.put_layer(content(), layer))
    await asyncio.wait_for(started.wait(), LIMIT)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(putting, LIMIT)
    assert stopped


@pytest.mark.parametrize("way", [*WAYS, "writer"])
async def test_few_bytes_that_may_expand_are_not_opened_on_the_loop(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[threading.Thread] = set()
    update = decompression.PlainHash.update

    def note(plain_hash: Any, data: Any) -> None:
        threads.add(threading.current_thread())
        update(plain_hash, data)

    monkeypatch.setattr(decompression.PlainHash, "update", note)
    if way == "writer":
        async with ArchiveWriter(ListSink(), verify_diff_ids=True) as archive:
            await put(archive, make_image(GOOD))
    else:
        await save_image(make_image(GOOD), target_of(way, tmp_path), verify_diff_ids=True, **WAYS[way])
    assert threads
    assert threading.main_thread() not in threads
