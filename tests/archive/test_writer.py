"""The writer as it is used: layers and images of every form, what is returned, what is reported, what is refused."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest

from aiodockersave import (
    ArchiveWriter,
    ContentTooLargeError,
    Digest,
    DigestMismatchError,
    ImageIndex,
    InvalidDigestError,
    Platform,
    SinkError,
    SizeMismatchError,
    WriterBrokenError,
    open_archive,
    plan_archive,
)
from aiodockersave.blobs import content
from aiodockersave.core import tar
from aiodockersave.core.documents import IndexEntry
from aiodockersave.core.model import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Format,
)
from aiodockersave.sinks.protocol import Adapter
from tests.support.images import (
    Compression,
    Image,
    Layer,
    ListSink,
    MemorySink,
    RewindSink,
    archive_of,
    layer_tar,
    make_config,
    make_image,
    make_layer,
    put,
    to_json,
)
from tests.support.rederive import derive_entries, locate_entries, read_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Mode = Literal["keep", "decompress"]
MODES: tuple[Mode, ...] = ("keep", "decompress")
KINDS: tuple[Compression, ...] = (None, "gzip", "zstd")
MEDIA_TYPES = {None: OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}
TAG, TAG_2 = "example.com/app:1.0", "example.com/app:2"

FILES = {"etc/name": b"name\n", "srv/noise": random.Random(3).randbytes(3000)}
GZIP, ZSTD, PLAIN = (make_layer(FILES, kind) for kind in ("gzip", "zstd", None))
OTHER = make_layer({"other": b"other\n"})

# ── sinks ──


class BlindSink(RewindSink):
    """Can be patched, and not read back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = self._memory.patch
        self.move = self._memory.move


class SlowSink(ListSink):
    """Takes at most 100 bytes at a time."""

    async def write(self, data: bytes, /) -> int:  # type: ignore[override]
        await asyncio.sleep(0)
        self.writes.append(data[:100])
        return len(self.writes[-1])


SINKS = [ListSink, SlowSink, RewindSink, BlindSink, MemorySink]
AnySink = ListSink | RewindSink | MemorySink
SINK_TABLE = pytest.mark.parametrize("make_sink", SINKS)
MODE_TABLE = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(params=[False, True], ids=["one batch", "many batches"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with layers that are one batch, and with layers that are several."""
    if request.param:
        cut_small(monkeypatch)


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "BATCH_SIZE", 256)
    monkeypatch.setattr(content, "MAX_BATCH_SIZE", 512)


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 300):
        yield data[start : start + 300]


def unopened() -> bytes:
    raise AssertionError("this content must not be opened")


# ── put_layer ──


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("layer", [GZIP, ZSTD, PLAIN], ids=["gzip", "zstd", "plain"])
@MODE_TABLE
@SINK_TABLE
async def test_a_layer_of_every_form(make_sink: type[AnySink], mode: Mode, layer: Layer) -> None:
    image = make_image(layer, repo_tags=[TAG])
    expected = await archive_of([image], layers=mode)
    assert read_entries(expected) == derive_entries([image], mode)
    for descriptor in (layer.descriptor, replace(layer.descriptor, size=None), None):
        for stage in (False, True):
            sink = make_sink()
            async with ArchiveWriter(sink, layers=mode) as archive:
                stored = await archive.put_layer(in_pieces(layer.blob), descriptor, stage=stage)
                assert stored == (layer.descriptor if mode == "keep" else layer.plain_descriptor)
                assert archive.has_blob(layer.descriptor.digest)
                assert archive.has_blob(stored.digest)
                await archive.put_image(image.config, image.manifest, image.repo_tags)
            assert sink.getvalue() == expected, (descriptor, stage)


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("as_text", [False, True])
@SINK_TABLE
async def test_the_diff_id_is_checked_where_it_is_stored(make_sink: type[AnySink], as_text: bool) -> None:
    right, wrong = (str(each) if as_text else each for each in (GZIP.diff_id, OTHER.diff_id))
    sink = make_sink()
    archive = ArchiveWriter(sink, layers="decompress")
    call = archive.put_layer(GZIP.blob, GZIP.descriptor, diff_id=wrong, stage=True)
    with pytest.raises(DigestMismatchError, match=f"diff ID .* expected {OTHER.diff_id}, got {GZIP.diff_id}"):
        await call
    assert sink.getvalue() == b""
    assert not archive.has_blob(GZIP.descriptor.digest)
    assert (await archive.put_layer(GZIP.blob, GZIP.descriptor, diff_id=right)).digest == GZIP.diff_id


async def test_the_diff_id_is_not_looked_at_where_blobs_are_kept() -> None:
    archive = ArchiveWriter(ListSink())
    assert await archive.put_layer(GZIP.blob, GZIP.descriptor, diff_id=OTHER.diff_id) == GZIP.descriptor
    assert not archive.has_blob(OTHER.diff_id)


async def test_a_diff_id_of_sha512_names_the_layer() -> None:
    layer = make_layer(FILES, "gzip", diff_id_algorithm="sha512")
    image = make_image(layer)
    assert read_entries(await archive_of([image], layers="decompress")) == derive_entries(
        [image], "decompress"
    )


@pytest.mark.parametrize("digest", [GZIP.descriptor.digest, str(GZIP.descriptor.digest)])
async def test_has_blob_takes_text_and_digests(digest: Digest | str) -> None:
    archive = ArchiveWriter(ListSink())
    assert not archive.has_blob(digest)
    await archive.put_layer(GZIP.blob, GZIP.descriptor)
    assert archive.has_blob(digest)
    assert not archive.has_blob(GZIP.diff_id)
    with pytest.raises(InvalidDigestError):
        archive.has_blob("sha256:short")


async def test_a_layer_keeps_the_media_type_that_it_was_put_with() -> None:
    archive = ArchiveWriter(ListSink())
    docker = replace(GZIP.descriptor, media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")
    annotated = replace(docker, annotations={"a": "b"}, platform=Platform("linux", "arm64"))
    assert await archive.put_layer(GZIP.blob, annotated) == docker
    assert await archive.put_layer(unopened, GZIP.descriptor) == docker, "it is in already"


async def test_a_layer_may_be_larger_than_every_buffer() -> None:
    layer = make_layer({"noise": random.Random(4).randbytes(5 << 20)})
    image = make_image(layer, OTHER, layer)
    for mode in MODES:
        sink = ListSink()
        async with ArchiveWriter(sink, layers=mode, stage_memory=1 << 20) as archive:
            await put(archive, image)
        assert read_entries(sink.getvalue()) == derive_entries([image], mode)
        assert max(map(len, sink.writes)) <= 2 << 20


@pytest.mark.parametrize("limit", [len(GZIP.plain) - 1, len(GZIP.plain)])
@pytest.mark.parametrize("layer", [GZIP, ZSTD, PLAIN], ids=["gzip", "zstd", "plain"])
async def test_the_plain_size_has_a_limit_that_a_caller_may_set(layer: Layer, limit: int) -> None:
    archive = ArchiveWriter(ListSink(), layers="decompress", max_plain_size=limit)
    if limit == len(layer.plain):
        await archive.put_layer(layer.blob, layer.descriptor)
    else:
        with pytest.raises(ContentTooLargeError, match=f"limit of {limit} bytes"):
            await archive.put_layer(layer.blob, layer.descriptor)


# ── what is in already ──


@SINK_TABLE
@MODE_TABLE
async def test_a_layer_that_is_in_is_not_opened_again(make_sink: type[AnySink], mode: Mode) -> None:
    sink = make_sink()
    archive = ArchiveWriter(sink, layers=mode)
    stored = await archive.put_layer(GZIP.blob, GZIP.descriptor)
    before = sink.getvalue()
    for descriptor in (GZIP.descriptor, stored, replace(GZIP.descriptor, size=None)):
        for stage in (False, True):
            assert await archive.put_layer(unopened, descriptor, stage=stage) == stored
    assert sink.getvalue() == before


@SINK_TABLE
async def test_two_compressions_of_one_layer_are_read_and_stored_once(make_sink: type[AnySink]) -> None:
    sink = make_sink()
    async with ArchiveWriter(sink, layers="decompress") as archive:
        first = await archive.put_layer(GZIP.blob, GZIP.descriptor)
        second = await archive.put_layer(ZSTD.blob, ZSTD.descriptor, diff_id=GZIP.diff_id)
        assert first == second == GZIP.plain_descriptor
        image = make_image(ZSTD, GZIP, PLAIN)
        await archive.put_image(image.config, image.manifest)
    assert read_entries(sink.getvalue()) == derive_entries([image], "decompress")


@SINK_TABLE
async def test_a_diff_id_that_is_in_is_no_reason_to_believe_it(make_sink: type[AnySink]) -> None:
    """Else one layer would silently stand for another, and go on to do so in later images."""
    other = make_layer({"other": b"another layer"})
    sink = make_sink()
    archive = ArchiveWriter(sink, layers="decompress")
    await archive.put_layer(GZIP.blob, GZIP.descriptor)
    before = sink.getvalue()
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await archive.put_layer(other.blob, other.descriptor, diff_id=GZIP.diff_id, stage=True)
    with pytest.raises(DigestMismatchError, match="diff ID"):
        await archive.put_layer(unopened, GZIP.descriptor, diff_id=other.diff_id)
    assert sink.getvalue() == before
    assert not archive.has_blob(other.descriptor.digest)
    assert (
        await archive.put_layer(other.blob, other.descriptor, diff_id=other.diff_id) == other.plain_descriptor
    )


@SINK_TABLE
@pytest.mark.parametrize("order", [1, -1], ids=["once, twice", "twice, once"])
async def test_a_layer_that_was_compressed_twice_is_no_other_layer(
    make_sink: type[AnySink], order: int
) -> None:
    """Its plain tar has the digest of another blob, of which again the plain tar is stored."""
    sink = make_sink()
    layers = [GZIP, make_layer(GZIP.blob, "gzip")][::order]
    image = make_image(*layers)
    async with ArchiveWriter(sink, layers="decompress") as archive:
        for layer in layers:
            stored = await archive.put_layer(layer.blob, layer.descriptor, diff_id=layer.diff_id)
            assert stored == layer.plain_descriptor
        await archive.put_image(image.config, image.manifest)
    assert read_entries(sink.getvalue()) == derive_entries([image], "decompress")


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("stage", [False, True], ids=["streamed", "staged"])
@pytest.mark.parametrize("checksum", [False, True], ids=["", "checksum"])
@SINK_TABLE
async def test_two_compressions_of_one_layer_are_stored_once_where_only_the_bytes_tell(
    make_sink: type[AnySink], stage: bool, checksum: bool
) -> None:
    sink = make_sink()
    image = make_image(GZIP, ZSTD)
    async with ArchiveWriter(sink, layers="decompress", checksum=checksum) as archive:
        await archive.put_layer(in_pieces(GZIP.blob), GZIP.descriptor, stage=True)
        before = sink.getvalue()
        again = await archive.put_layer(in_pieces(ZSTD.blob), ZSTD.descriptor, stage=stage)
        assert again == GZIP.plain_descriptor
        assert sink.getvalue() == before
        assert archive.has_blob(ZSTD.descriptor.digest)
        await archive.put_image(image.config, image.manifest)
    assert read_entries(sink.getvalue()) == derive_entries([image], "decompress")
    assert archive.report is not None
    assert archive.report.size == len(sink.getvalue()), "the second copy does not count"
    expected = Digest.of(sink.getvalue()) if checksum else None
    assert archive.report.sha256 == expected


class StuckSink(MemorySink):
    """Says that it can rewind, and fails when it is asked to."""

    def rewind(self, position: int, /) -> None:
        raise OSError(errno.EIO, "the disk is gone")


async def test_a_second_copy_that_cannot_be_taken_back_breaks_the_archive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_small(monkeypatch)
    archive = ArchiveWriter(StuckSink(), layers="decompress")
    await archive.put_layer(GZIP.blob, GZIP.descriptor, stage=True)
    with pytest.raises(SinkError, match="its second copy cannot be taken back") as first:
        await archive.put_layer(in_pieces(ZSTD.blob), ZSTD.descriptor)
    assert any(
        "could not be rewound: OSError: [Errno 5] the disk is gone" in note for note in first.value.__notes__
    )
    with pytest.raises(WriterBrokenError) as later:
        await archive.close()
    assert later.value.__cause__ is first.value


@SINK_TABLE
async def test_two_tasks_that_put_the_same_layer_write_it_once(make_sink: type[AnySink]) -> None:
    sink = make_sink()
    image = make_image(GZIP, OTHER)
    async with ArchiveWriter(sink) as archive:
        first, second, third = await asyncio.gather(
            archive.put_layer(GZIP.blob, GZIP.descriptor),
            archive.put_layer(unopened, GZIP.descriptor),
            archive.put_layer(OTHER.blob, OTHER.descriptor),
        )
        assert (first, second, third) == (GZIP.descriptor, GZIP.descriptor, OTHER.descriptor)
        await asyncio.gather(
            archive.put_image(image.config, image.manifest, [TAG]),
            archive.put_image(image.config, image.manifest, [TAG_2]),
        )
    assert sink.getvalue() == await archive_of([image.tagged(TAG), image.tagged(TAG_2)])


# ── put_image ──

LAYER_LISTS = {
    "the manifest": lambda image, stored: image.manifest,
    "the manifest's layers": lambda image, stored: image.manifest.layers,
    "what was returned": lambda image, stored: stored,
    "of unknown size": lambda image, stored: [replace(layer, size=None) for layer in stored],
    "annotated": lambda image, stored: [replace(layer, annotations={"a": "b"}) for layer in stored],
}


@pytest.mark.parametrize("choose", LAYER_LISTS.values(), ids=LAYER_LISTS)
@MODE_TABLE
async def test_an_image_by_every_list_of_its_layers(mode: Mode, choose: Any) -> None:
    image = make_image(GZIP, OTHER, GZIP, repo_tags=[TAG])
    sink = ListSink()
    async with ArchiveWriter(sink, layers=mode) as archive:
        stored = [await archive.put_layer(layer.blob, layer.descriptor) for layer in image.layers]
        await archive.put_image(image.config, choose(image, stored), image.repo_tags)
    assert sink.getvalue() == await archive_of([image], layers=mode)


async def test_images_and_layers_in_any_order() -> None:
    first, second, third = (
        make_image(GZIP, repo_tags=[TAG]),
        make_image(OTHER, GZIP, repo_tags=[TAG_2]),
        make_image(comment="no layers"),
    )
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await archive.put_image(third.config, third.manifest)
        await archive.put_layer(OTHER.blob, OTHER.descriptor)
        await archive.put_layer(GZIP.blob, GZIP.descriptor)
        await archive.put_image(second.config, second.manifest, [TAG_2])
        await archive.put_image(first.config, first.manifest, [TAG])
    names = [entry.name for entry in read_entries(sink.getvalue()) if "/" not in entry.name]
    assert names == [
        f"{third.image_id.encoded}.json",
        f"{OTHER.descriptor.digest.encoded}.tar.gz",
        f"{GZIP.descriptor.digest.encoded}.tar.gz",
        f"{second.image_id.encoded}.json",
        f"{first.image_id.encoded}.json",
        "manifest.json",
        "repositories",
    ]


async def test_a_large_config_is_worked_on_beside_the_loop() -> None:
    image = make_image(GZIP, comment="c" * 200_000)
    assert read_entries(await archive_of([image])) == derive_entries([image])


@pytest.mark.parametrize("format", ["docker", "oci"])
async def test_a_large_index_is_read_beside_the_loop(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker archive does not read it at all."""
    image = make_image(GZIP)
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": str(image.manifest.digest),
        "size": len(image.manifest_bytes),
    }
    other = entry | {"digest": str(Digest.of(b""))}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*[other] * 1000, entry]}
    threads: list[threading.Thread] = []
    look = ImageIndex.entry

    def entry_of(self: ImageIndex, digest: Digest) -> IndexEntry | None:
        threads.append(threading.current_thread())
        return look(self, digest)

    monkeypatch.setattr(ImageIndex, "entry", entry_of)
    async with ArchiveWriter(ListSink(), format=format) as archive:
        for layer in image.layers:
            await archive.put_layer(layer.blob, layer.descriptor)
        parsed = ImageIndex.parse(to_json(index))
        await archive.put_image(image.config, image.manifest, index=parsed)
    assert len(threads) == (format == "oci")
    assert threading.main_thread() not in threads


async def test_a_decompressed_layer_must_be_the_config_s() -> None:
    sink = ListSink()
    async with ArchiveWriter(sink, layers="decompress") as archive:
        await archive.put_layer(GZIP.blob, GZIP.descriptor)
        with pytest.raises(
            DigestMismatchError, match=f"diff ID .* expected {OTHER.diff_id}, got {GZIP.diff_id}"
        ):
            await archive.put_image(make_config([OTHER.diff_id]), [GZIP.descriptor])
    assert len(read_entries(sink.getvalue())) == 3


# ── the end ──


async def test_there_is_no_report_before_the_end() -> None:
    archive = ArchiveWriter(ListSink())
    await put(archive, make_image(GZIP))
    assert archive.report is None


@MODE_TABLE
@SINK_TABLE
async def test_the_report_says_what_is_in_the_archive(make_sink: type[AnySink], mode: Mode) -> None:
    images = [make_image(GZIP, OTHER, repo_tags=[TAG]), make_image(GZIP, repo_tags=[TAG_2])]
    sink = make_sink()
    async with ArchiveWriter(sink, layers=mode) as archive:
        for image in images:
            await put(archive, image)
    report = archive.report
    assert report is not None
    written = sink.getvalue()
    assert report.size == len(written)
    assert [
        (member.name, member.offset, member.data_offset, member.size) for member in report.members
    ] == locate_entries(written)
    digests = [Digest.of(entry.data) for entry in read_entries(written) if not entry.link]
    assert [member.digest for member in report.members if member.digest is not None] == digests
    assert [item.image_id for item in report.images] == [image.image_id for image in images]
    assert [item.repo_tags for item in report.images] == [(TAG,), (TAG_2,)]
    assert report.sha256 is None
    if mode == "keep":
        plan = plan_archive(image.spec for image in images)
        assert (report.size, report.members, report.images) == (plan.size, plan.members, plan.images)


@pytest.mark.usefixtures("batches")
@MODE_TABLE
@SINK_TABLE
async def test_the_report_has_the_checksum_that_was_asked_for(make_sink: type[AnySink], mode: Mode) -> None:
    sink = make_sink()
    async with ArchiveWriter(sink, layers=mode, checksum=True) as archive:
        for image in (make_image(OTHER, repo_tags=[TAG]), make_image(GZIP, ZSTD), make_image(PLAIN)):
            for layer in image.layers:
                await archive.put_layer(in_pieces(layer.blob), layer.descriptor)
            await archive.put_image(image.config, image.manifest, image.repo_tags)
    assert archive.report is not None
    assert archive.report.sha256 == Digest.of(sink.getvalue())


@MODE_TABLE
async def test_a_file_s_checksum_is_that_of_the_file(tmp_path: Path, mode: Mode) -> None:
    path = tmp_path / "app.tar"
    image = make_image(GZIP, make_layer({"noise": random.Random(5).randbytes(2 << 20)}), repo_tags=[TAG])
    async with open_archive(path, layers=mode, checksum=True) as archive:
        await put(archive, image)
    assert archive.report is not None
    assert archive.report.sha256 == Digest("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert path.read_bytes() == await archive_of([image], layers=mode)


class Stalled:
    """A source that has nothing yet. No generator: nobody could close one that is dropped."""

    async def read(self, size: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError("nothing sets the event")


async def test_a_call_that_is_dropped_before_its_first_byte_leaves_the_archive_open() -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    call = archive.put_layer(Stalled(), GZIP.descriptor)
    call.send(None)
    call.close()
    assert sink.writes == []
    await put(archive, make_image(GZIP))


async def test_nothing_is_written_before_the_first_put_and_nothing_is_held_back() -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    assert sink.writes == []
    await archive.put_layer(GZIP.blob, GZIP.descriptor)
    assert len(sink.writes) == 1
    assert len(sink.getvalue()) % 512 == 0
    await archive.put_image(make_config([GZIP.diff_id]), [GZIP.descriptor])
    assert len(sink.writes) == 2, "the small members of a call are joined"
    await archive.put_image(make_config([GZIP.diff_id]), [GZIP.descriptor], [TAG])
    assert len(sink.writes) == 2, "a tag more is written at the end"
    await archive.close()
    assert len(sink.writes) == 3


class PromisedSink(ListSink, Adapter):
    """Has told somebody how large the archive will be; says when it was asked to pass on what it holds."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.expected_size = size
        self.flushed = False

    async def flush(self) -> None:
        self.flushed = True


@pytest.mark.parametrize("difference", [-1, 0, 1])
async def test_a_sink_that_promised_a_size_gets_it_or_no_end(difference: int) -> None:
    image = make_image(GZIP, repo_tags=[TAG])
    plan = plan_archive([image.spec])
    sink = PromisedSink(plan.size + difference)
    archive = ArchiveWriter(sink)
    await put(archive, image)
    if difference == 0:
        await archive.close()
        assert sink.flushed
        assert len(sink.getvalue()) == plan.size
    else:
        with pytest.raises(
            SinkError, match=f"has {plan.size} bytes, but the response promises {sink.expected_size}"
        ):
            await archive.close()
        assert not sink.getvalue().endswith(tar.END_OF_ARCHIVE)


# ── headers that come last ──


@pytest.fixture
def small_octal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every layer too large for an octal size: its header grows to three blocks once that is known."""
    monkeypatch.setattr(tar, "MAX_OCTAL_SIZE", 2000)
    cut_small(monkeypatch)


@pytest.mark.usefixtures("small_octal")
@pytest.mark.parametrize("checksum", [False, True])
@MODE_TABLE
@SINK_TABLE
async def test_a_body_is_shifted_where_its_header_grows(
    make_sink: type[AnySink], mode: Mode, checksum: bool
) -> None:
    image = make_image(OTHER, GZIP, PLAIN, repo_tags=[TAG])
    sink = make_sink()
    async with ArchiveWriter(sink, layers=mode, checksum=checksum) as archive:
        for layer in image.layers:
            await archive.put_layer(in_pieces(layer.blob), replace(layer.descriptor, size=None))
        await archive.put_image(image.config, image.manifest, image.repo_tags)
    written = sink.getvalue()
    assert read_entries(written) == derive_entries([image], mode)
    large = [
        (each.name, each.data_offset - each.offset) for each in locate_entries(written) if each.size > 2000
    ]
    assert large
    assert {size for _, size in large} == {1536}
    assert archive.report is not None
    assert archive.report.sha256 == (Digest.of(written) if checksum else None)


@pytest.mark.usefixtures("small_octal")
@MODE_TABLE
async def test_a_body_is_shifted_in_a_file_too(tmp_path: Path, mode: Mode) -> None:
    path = tmp_path / "app.tar"
    image = make_image(GZIP, OTHER, repo_tags=[TAG])
    async with open_archive(path, layers=mode) as archive:
        for layer in image.layers:
            await archive.put_layer(in_pieces(layer.blob), replace(layer.descriptor, size=None))
        await archive.put_image(image.config, image.manifest, image.repo_tags)
    assert read_entries(path.read_bytes()) == derive_entries([image], mode)


# ── open_archive ──


@MODE_TABLE
async def test_an_archive_at_a_path(tmp_path: Path, mode: Mode) -> None:
    path = tmp_path / "app.tar"
    images = [make_image(GZIP, OTHER, repo_tags=[TAG]), make_image(GZIP, repo_tags=[TAG_2])]
    async with open_archive(path, layers=mode, fsync=False) as archive:
        for image in images:
            await put(archive, image)
        assert not path.exists()
    assert path.read_bytes() == await archive_of(images, layers=mode)
    assert archive.report is not None
    assert archive.report.size == path.stat().st_size


async def test_a_place_that_was_taken_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    with pytest.raises(IsADirectoryError):
        async with open_archive(path) as archive:
            await put(archive, make_image(GZIP))
            path.mkdir()
    assert archive.report is None
    assert list(tmp_path.iterdir()) == [path]


async def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    images: list[Image] = [make_image(GZIP, ZSTD, GZIP, repo_tags=[TAG]), make_image(PLAIN)]
    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for path in paths:
        async with open_archive(path, format="docker", stage_dir=tmp_path, stage_memory=0) as archive:
            for image in images:
                await put(archive, image, stage=path is paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


async def test_a_layer_tar_of_nothing_is_a_layer() -> None:
    image = make_image(make_layer(b"", None), make_layer(layer_tar({}), "gzip"))
    for mode in MODES:
        assert read_entries(await archive_of([image], layers=mode)) == derive_entries([image], mode)


async def test_a_layer_of_an_image_that_is_no_descriptor() -> None:
    archive = ArchiveWriter(ListSink())
    with pytest.raises(TypeError, match="a layer of an image is a Descriptor, not str"):
        await archive.put_image(make_image(GZIP).config, ["sha256:…"])  # type: ignore[list-item]


async def test_a_task_as_content_that_is_not_needed_stays_the_callers() -> None:
    async def load() -> bytes:
        await asyncio.sleep(0)
        return GZIP.blob

    archive = ArchiveWriter(ListSink())
    await archive.put_layer(GZIP.blob, GZIP.descriptor)
    loading = asyncio.create_task(load())
    await archive.put_layer(loading, GZIP.descriptor)
    assert await loading == GZIP.blob


async def test_a_rewind_that_turns_out_to_be_async_breaks_the_archive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_small(monkeypatch)

    class Never:
        def __await__(self) -> Any:
            raise AssertionError("nobody awaits it")

    class Sneaky(ListSink):
        def rewind(self, position: int, /) -> Any:
            return Never()

    archive = ArchiveWriter(Sneaky())
    torn = archive.put_layer(in_pieces(GZIP.blob[:-1]), GZIP.descriptor)
    with pytest.raises(SizeMismatchError) as first:
        await torn
    assert "rewind() is async" in first.value.__notes__[0]
    with pytest.raises(WriterBrokenError):
        await archive.close()
