"""One truth: what is planned, what is written, and what the standard library derives are the same bytes.

Also any order of calls: a state machine puts layers and images in all ways, lets puts fail, and compares the
archive with the members that were committed.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiodockersave import (
    ArchiveWriter,
    ContentError,
    Descriptor,
    DigestMismatchError,
    ImageConflictError,
    InvalidInputError,
    NameConflictError,
    Plan,
    SizeMismatchError,
    WriterClosedError,
    plan_archive,
)
from aiodockersave.blobs import content
from aiodockersave.core import tar
from aiodockersave.core.model import OCI_LAYER
from tests.support.images import (
    TAGS,
    Image,
    Layer,
    ListSink,
    MemorySink,
    RewindSink,
    archive_of,
    blobs_of,
    bytes_of_plan,
    image_lists,
    make_image,
    make_layer,
    put,
)
from tests.support.rederive import Entry, derive_entries, locate_entries, read_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

# ── plan = writer = the standard library ──


@settings(max_examples=150)
@given(images=image_lists())
async def test_a_plan_is_what_the_writer_writes(images: list[Image]) -> None:
    plan = plan_archive(image.spec for image in images)
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        for image in images:
            await put(archive, image)
    written = sink.getvalue()
    report = archive.report
    assert report is not None
    assert (report.size, report.members, report.images) == (plan.size, plan.members, plan.images)
    assert bytes_of_plan(plan, blobs_of(images)) == written
    assert len(written) == plan.size
    assert [(each.name, each.offset, each.data_offset, each.size) for each in plan.members] == locate_entries(
        written
    )


async def put_in_order_of(plan: Plan, archive: ArchiveWriter, images: list[Image]) -> None:
    """Put all blobs as the plan has them, configs and manifests among them, then the images."""
    blobs = blobs_of(images)
    for image in images:
        blobs |= {image.manifest.config.digest: image.config, image.manifest.digest: image.manifest_bytes}
    for member in plan.members:
        if member.digest in blobs and member.name.startswith("blobs/"):
            await archive.put_layer(blobs[member.digest], Descriptor(OCI_LAYER, member.digest, member.size))
    for image in images:
        await archive.put_image(image.config, image.manifest, image.repo_tags)


@settings(max_examples=150)
@given(images=image_lists())
async def test_an_oci_plan_is_what_the_writer_writes_in_its_order(images: list[Image]) -> None:
    plan = plan_archive((image.spec for image in images), format="oci")
    sink = ListSink()
    async with ArchiveWriter(sink, format="oci") as archive:
        await put_in_order_of(plan, archive, images)
    assert bytes_of_plan(plan, blobs_of(images)) == sink.getvalue()
    report = archive.report
    assert report is not None
    assert (report.size, report.members, report.images) == (plan.size, plan.members, plan.images)


@settings(max_examples=150)
@given(images=image_lists(), stage=st.booleans(), memory=st.booleans())
async def test_an_oci_archive_has_the_plan_s_members_in_any_order(
    images: list[Image], stage: bool, memory: bool
) -> None:
    """As they come: layers of unknown size and digest, too."""
    plan = plan_archive((image.spec for image in images), format="oci")
    sink = MemorySink() if memory else ListSink()
    async with ArchiveWriter(sink, format="oci", stage_memory=1000) as archive:
        for image in images:
            for layer in image.layers:
                known = layer.descriptor if stage else replace(layer.descriptor, size=None)
                await archive.put_layer(layer.blob, known, stage=stage)
            await archive.put_image(image.config, image.manifest, image.repo_tags)
    entries = {entry.name: entry for entry in read_entries(sink.getvalue())}
    planned = read_entries(bytes_of_plan(plan, blobs_of(images)))
    assert sorted(entries) == sorted(entry.name for entry in planned)
    assert [entries[entry.name] for entry in planned] == planned


@given(images=image_lists(), mode=st.sampled_from(["keep", "decompress"]))
async def test_the_standard_library_derives_the_same_members(
    images: list[Image], mode: Literal["keep", "decompress"]
) -> None:
    assert read_entries(await archive_of(images, layers=mode)) == derive_entries(images, mode)


@given(images=image_lists())
async def test_decompressed_is_as_if_the_source_had_been_plain(images: list[Image]) -> None:
    plain = [
        make_image(*(_plain(layer) for layer in image.layers), config_bytes=image.config).tagged(
            *image.repo_tags
        )
        for image in images
    ]
    assert await archive_of(images, layers="decompress") == await archive_of(plain)


def _plain(layer: Layer) -> Layer:
    return Layer(layer.plain, layer.plain, layer.plain_descriptor, layer.diff_id)


@settings(max_examples=50)
@given(images=image_lists(), mode=st.sampled_from(["keep", "decompress"]), stage=st.booleans())
async def test_sink_and_staging_do_not_reach_the_bytes(
    images: list[Image], mode: Literal["keep", "decompress"], stage: bool
) -> None:
    sink = MemorySink()
    async with ArchiveWriter(sink, layers=mode, stage_memory=1000) as archive:
        for image in images:
            await put(archive, image, stage=stage)
    assert sink.getvalue() == await archive_of(images, layers=mode)


@settings(max_examples=50)
@given(images=image_lists())
def test_the_etag_is_a_function_of_the_bytes(images: list[Image]) -> None:
    plan = plan_archive(image.spec for image in images)
    bare = plan_archive(
        [
            type(image.spec)(image.config, [layer.descriptor for layer in image.layers], image.repo_tags)
            for image in images
        ]
    )
    assert bare == plan
    for number, image in enumerate(images):
        changed = [
            *images[:number],
            image.tagged(*image.repo_tags, "example.com/only:here"),
            *images[number + 1 :],
        ]
        assert plan_archive(each.spec for each in changed).etag != plan.etag


# ── any order of calls ──

POOL = [
    make_layer(b"", None),
    make_layer(b"a" * 700, None),
    make_layer(b"a" * 700, "gzip"),
    make_layer(b"a" * 700, "zstd"),
    make_layer(b"a" * 700, "gzip", algorithm="sha512"),
    make_layer({"etc/name": bytes(range(256)) * 9}, "gzip", members=3),
    make_layer({"app": b"app"}, "zstd"),
]
WAYS = ["bytes", "iterator", "staged", "reader", "size unknown", "opener"]
FAULTS: dict[str, type[Exception]] = {
    "wrong digest": DigestMismatchError,
    "short": SizeMismatchError,
    "long": SizeMismatchError,
    "raises at once": ConnectionResetError,
    "raises at the end": ConnectionResetError,
}
STATE_MACHINE_BATCH = 64  # bytes: small layers take several batches


class Reader:
    """Has ``async read(n)``, and gives less than it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, size: int) -> bytes:
        size = min(size, 50)
        data, self._data = self._data[:size], self._data[size:]
        return data


async def chunks_of(data: bytes, fault: Exception | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 90):
        await asyncio.sleep(0)
        yield data[start : start + 90]
    if fault is not None:
        raise fault


def content_of(layer: Layer, way: str) -> Any:
    contents: dict[str, Callable[[], Any]] = {
        "iterator": lambda: chunks_of(layer.blob),
        "reader": lambda: Reader(layer.blob),
        "opener": lambda: lambda: chunks_of(layer.blob),
    }
    return contents.get(way, lambda: layer.blob)()


def broken_content(layer: Layer, fault: str) -> Any:
    if fault == "wrong digest":
        return layer.blob[:-1] + bytes([layer.blob[-1] ^ 1])
    if fault in {"short", "long"}:
        return chunks_of(layer.blob[:-1] if fault == "short" else layer.blob + b"+")
    return chunks_of(layer.blob if fault == "raises at the end" else b"", ConnectionResetError())


class Archives(RuleBasedStateMachine):
    """An archive that is written in any order, beside the members that must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(content, "BATCH_SIZE", STATE_MACHINE_BATCH)
        self.runner = asyncio.Runner()
        self.entries: dict[str, Entry] = {}
        self.layers: list[Layer] = []
        self.images: list[Image] = []
        self.closed = False

    def teardown(self) -> None:
        if not self.closed:
            self.close()
        self.runner.close()
        self.patch.undo()

    @initialize(mode=st.sampled_from(["keep", "decompress"]), sink=st.sampled_from([MemorySink, RewindSink]))
    def begin(self, mode: Literal["keep", "decompress"], sink: type[MemorySink | RewindSink]) -> None:
        self.mode = mode
        self.sink = sink()
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.archive = ArchiveWriter(self.sink, layers=self.mode, stage_memory=100)

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    # ── layers ──

    @rule(layer=st.sampled_from(POOL), way=st.sampled_from(WAYS))
    def put_layer(self, layer: Layer, way: str) -> None:
        descriptor = layer.descriptor
        if way == "size unknown":
            descriptor = Descriptor(descriptor.media_type, descriptor.digest, None)
        call = self.archive.put_layer(
            content_of(layer, way), descriptor, diff_id=layer.diff_id, stage=way == "staged"
        )
        if self.closed:
            self.expect(WriterClosedError, call)
            return
        stored = self.run(call)
        assert stored.digest == (layer.descriptor.digest if self.mode == "keep" else layer.diff_id)
        self.commit_layer(layer)

    def commit_layer(self, layer: Layer) -> None:
        name, data = stored_as(layer, self.mode)
        self.entries.setdefault(name, Entry(name, data))
        self.layers.append(layer)

    @precondition(lambda self: not self.closed)
    @rule(
        layer=st.sampled_from([layer for layer in POOL if layer.plain]),
        fault=st.sampled_from(list(FAULTS)),
        stage=st.booleans(),
    )
    def put_broken_layer(self, layer: Layer, fault: str, stage: bool) -> None:
        content = broken_content(layer, fault)
        call = self.archive.put_layer(content, layer.descriptor, diff_id=layer.diff_id, stage=stage)
        if self.is_in(layer):  # then it is not read at all
            self.run(call)
            self.commit_layer(layer)
        else:
            error = FAULTS[fault]
            # What is decompressed may be found out earlier: by a checksum, or by bytes after the end.
            self.expect(
                ContentError if self.mode == "decompress" and issubclass(error, ContentError) else error, call
            )
            assert not self.archive.has_blob(layer.descriptor.digest)

    @precondition(lambda self: not self.closed and self.mode == "decompress")
    @rule(layer=st.sampled_from(POOL), other=st.sampled_from(POOL))
    def put_layer_with_another_diff_id(self, layer: Layer, other: Layer) -> None:
        if self.is_in(layer) or layer.plain == other.plain:
            return
        self.expect(
            DigestMismatchError, self.archive.put_layer(layer.blob, layer.descriptor, diff_id=other.diff_id)
        )

    def is_in(self, layer: Layer) -> bool:
        """Tell whether the blob is in, or is what is stored of another; one with the same diff ID is read."""
        return any(
            layer.descriptor.digest == each.descriptor.digest
            or (self.mode == "decompress" and layer.descriptor.digest == each.diff_id)
            for each in self.layers
        )

    # ── images ──

    @rule(data=st.data(), tags=st.lists(st.sampled_from(list(TAGS)), max_size=2), variant=st.integers(0, 1))
    def put_image(self, data: st.DataObject, tags: list[str], variant: int) -> None:
        stack = data.draw(st.lists(st.sampled_from(self.layers), max_size=4)) if self.layers else []
        image = make_image(*stack, repo_tags=tags, comment=f"variant {variant}")
        layers = image.manifest if data.draw(st.booleans()) else image.manifest.layers
        call = self.archive.put_image(image.config, layers, tags)
        if self.closed:
            self.expect(WriterClosedError, call)
        elif any(self.is_conflict(image, each) for each in self.images):
            self.expect(ImageConflictError, call)
        elif any(self.is_conflict_of_names(image, each) for each in self.images):
            self.expect(NameConflictError, call)
        else:
            self.run(call)
            self.images.append(image)
            for entry in derive_entries([image], self.mode)[:-2]:
                self.entries.setdefault(entry.name, entry)

    def is_conflict(self, image: Image, other: Image) -> bool:
        return image.config == other.config and [stored_as(layer, self.mode) for layer in image.layers] != [
            stored_as(layer, self.mode) for layer in other.layers
        ]

    def is_conflict_of_names(self, image: Image, other: Image) -> bool:
        return image.config != other.config and not set(image.repo_tags).isdisjoint(other.repo_tags)

    @precondition(lambda self: not self.closed)
    @rule(layer=st.sampled_from(POOL))
    def put_image_without_its_layer(self, layer: Layer) -> None:
        if self.is_in(layer):
            return
        image = make_image(layer)
        self.expect(InvalidInputError, self.archive.put_image(image.config, image.manifest))

    # ── the end ──

    @rule()
    def close(self) -> None:
        self.run(self.archive.close())
        self.closed = True
        report = self.archive.report
        assert report is not None
        assert report.size == len(self.sink.getvalue())
        assert [item.image_id for item in report.images] == list(
            dict.fromkeys(image.image_id for image in self.images)
        )

    @invariant()
    def the_archive_is_what_was_committed(self) -> None:
        if not hasattr(self, "sink"):
            return
        end = derive_entries(self.images, self.mode)[-2:] if self.closed else []
        expected = b"".join(map(tar_bytes, (*self.entries.values(), *end)))
        assert self.sink.getvalue() == expected + (tar.END_OF_ARCHIVE if self.closed else b"")

    def expect(self, error: type[Exception], call: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(error):
            self.run(call)


@functools.cache
def stored_as(layer: Layer, mode: Literal["keep", "decompress"]) -> tuple[str, bytes]:
    entry = derive_entries([make_image(layer)], mode)[0]
    return entry.name, entry.data


def tar_bytes(entry: Entry) -> bytes:
    if entry.link:
        return tar.link_header(entry.name, entry.link)
    size = len(entry.data)
    return tar.member_header(entry.name, size) + entry.data + tar.padding(size)


TestArchives = Archives.TestCase
TestArchives.settings = settings(max_examples=100, stateful_step_count=30)
