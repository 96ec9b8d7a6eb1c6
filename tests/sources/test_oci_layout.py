"""Images out of an OCI image layout: references, platforms, and missing or damaged files."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import ResolvedImage, Source
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE
from aiodockersave.core.errors import (
    BlobNotFoundError,
    ContentTooLargeError,
    DigestMismatchError,
    ImageNotFoundError,
    InvalidDocumentError,
    InvalidInputError,
    PlatformNotFoundError,
    SizeMismatchError,
    UnsupportedImageError,
)
from aiodockersave.core.model import (
    CONTAINERD_NAME,
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Digest,
    Platform,
)
from aiodockersave.sources import oci_layout
from aiodockersave.sources.oci_layout import OciLayoutSource
from tests.support.images import make_config, make_image, make_layer, to_json, write_layout
from tests.support.interruption import (
    Driver,
    Way,
    by_cancel_scope,
    by_task_cancel,
    by_task_cancel_when_ready,
    by_timeout,
)

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
LAYER = make_layer({"etc/name": b"base\n"})
IMAGE = make_image(LAYER)
OTHER = make_image(LAYER, make_layer({"app": b"app\n"}, "zstd"))


class Layout:
    """A builder of an OCI image layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "oci-layout").write_bytes(to_json({"imageLayoutVersion": "1.0.0"}))
        self.write_index()

    @property
    def source(self) -> OciLayoutSource:
        return OciLayoutSource(self.folder)

    def write_index(self, *manifests: dict[str, Any]) -> None:
        (self.folder / "index.json").write_bytes(to_json({"schemaVersion": 2, "manifests": manifests}))

    def path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / digest.algorithm / digest.encoded

    def add(self, blob: bytes, media_type: str, **extra: Any) -> dict[str, Any]:
        """Write a blob and return its descriptor as documents have it."""
        digest = Digest.of(blob)
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.path(digest).write_bytes(blob)
        return {"mediaType": media_type, "digest": str(digest), "size": len(blob)} | extra

    def add_manifest(
        self,
        *,
        media_type: str = OCI_MANIFEST,
        config_type: str = OCI_CONFIG,
        layer_type: str = OCI_LAYER_GZIP,
        platform: str | None = None,
        ref: str | None = None,
    ) -> dict[str, Any]:
        """Write an image of one layer, another one for each platform, and return its descriptor."""
        document = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.add(make_config([LAYER.diff_id], author=platform or "nobody"), config_type),
            "layers": [self.add(LAYER.blob, layer_type)],
        }
        extra: dict[str, Any] = {}
        if platform is not None:
            extra["platform"] = dict(
                zip(("os", "architecture", "variant"), platform.split("/"), strict=False)
            )
        if ref is not None:
            extra["annotations"] = {REF_NAME: ref}
        return self.add(to_json(document), media_type, **extra)

    def add_index(
        self, *manifests: dict[str, Any], media_type: str = OCI_INDEX, ref: str | None = None
    ) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(manifests)}
        extra = {} if ref is None else {"annotations": {REF_NAME: ref}}
        return self.add(to_json(document), media_type, **extra)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def digest_of(descriptor: dict[str, Any]) -> Digest:
    return Digest.parse(descriptor["digest"])


async def read_all(source: Source, descriptor: Descriptor, **span: Any) -> bytes:
    async with source.open_blob(descriptor, **span) as chunks:
        return b"".join([chunk async for chunk in chunks])


# ── which image ──


async def test_resolve_gives_the_documents_as_they_are(tmp_path: Path) -> None:
    source = OciLayoutSource(write_layout(tmp_path, {"one": IMAGE, "two": OTHER}))
    found = await source.resolve("two", AMD64)
    assert isinstance(source, Source)
    assert found == ResolvedImage("two", OTHER.manifest, OTHER.config)
    assert (found.digest, found.default_tags) == (OTHER.manifest.digest, ())
    assert found.manifest.raw == OTHER.manifest_bytes


@pytest.mark.parametrize(
    "reference", ["one", str(IMAGE.manifest.digest)], ids=["by its name", "by its digest"]
)
async def test_one_of_two_images(tmp_path: Path, reference: str) -> None:
    source = OciLayoutSource(str(write_layout(tmp_path, {"one": IMAGE, "two": OTHER})))
    assert (await source.resolve(reference, AMD64)).manifest == IMAGE.manifest


async def test_the_only_image_needs_no_name(tmp_path: Path) -> None:
    source = OciLayoutSource(write_layout(tmp_path, {"one": IMAGE}))
    assert (await source.resolve("", AMD64)).manifest == IMAGE.manifest


async def test_two_names_of_one_image_are_one_image(tmp_path: Path) -> None:
    source = OciLayoutSource(write_layout(tmp_path, {"one": IMAGE, "two": IMAGE}))
    assert (await source.resolve("", AMD64)).manifest == IMAGE.manifest


async def test_a_manifest_of_another_size_than_its_index_says_is_taken(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest tells that these are the right bytes. A config's size is the manifest's word, and stays checked."""
    image = layout.add_manifest(platform="linux/amd64")
    size = image["size"]
    layout.write_index(image | {"size": size + 1})
    found = await layout.source.resolve("", AMD64)
    assert found.digest == digest_of(image)
    assert f"manifest has {size} bytes, not {size + 1} as its index says; its digest is right" in caplog.text


async def test_names_as_containerd_and_docker_write_them(layout: Layout) -> None:
    """Two images with one tag are told apart by their whole names; an annotation of the specification comes first."""
    images = [layout.add_manifest(platform=f"linux/{number}", ref="1.0") for number in range(2)] + [
        layout.add_manifest(platform="linux/2", ref="registry.example/b:1.0")
    ]
    for image, name in zip(images, ("registry.example/a:1.0", "registry.example/b:1.0", "c:1"), strict=True):
        image["annotations"][CONTAINERD_NAME] = name
    layout.write_index(*images)
    for reference, image in (
        ("registry.example/a:1.0", images[0]),
        ("registry.example/b:1.0", images[2]),
        ("c:1", images[2]),
    ):
        assert (await layout.source.resolve(reference, AMD64)).digest == digest_of(image)
    with pytest.raises(ImageNotFoundError) as caught:
        await layout.source.resolve("1.0", AMD64)
    assert "there are: registry.example/a:1.0, registry.example/b:1.0" in str(caught.value)


@pytest.mark.parametrize(
    ("refs", "reference", "reason"),
    [
        (["one", "two"], "", "several, of which one must be named; there are: one, two"),
        (["one", "two"], "three", "none of that name; there are: one, two"),
        (["one", "two"], "ONE", "none of that name; there are: one, two"),
        (["one", "one"], "one", "several, of which one must be named; there are: one"),
        (["one"], f"sha256:{'0' * 64}", "none of that name; there are: one"),
        ([], "", "none; there are: no images at all"),
        ([], "one", "none of that name; there are: no images at all"),
        ([str(number) for number in range(30)], "", "17, 18, 19 and 10 more"),
    ],
    ids=["which", "unknown", "case", "twice", "digest", "empty", "empty, named", "many"],
)
async def test_an_image_that_is_not_there(
    layout: Layout, refs: list[str], reference: str, reason: str
) -> None:
    layout.write_index(
        *(layout.add_manifest(platform=f"linux/{number}", ref=ref) for number, ref in enumerate(refs))
    )
    with pytest.raises(ImageNotFoundError) as caught:
        await layout.source.resolve(reference, AMD64)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"image oci:{layout.folder}{':' * bool(reference)}{reference} not")


async def test_images_without_a_name_are_listed_by_digest(layout: Layout) -> None:
    nameless = layout.add_manifest(platform="linux/1")
    layout.write_index(nameless, layout.add_manifest(ref="named"))
    with pytest.raises(ImageNotFoundError, match=f"there are: {nameless['digest']}, named$"):
        await layout.source.resolve("", AMD64)
    assert (await layout.source.resolve(nameless["digest"], AMD64)).digest == digest_of(nameless)


# ── which platform ──


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_MANIFEST_LIST])
async def test_an_index_is_asked_for_the_platform(layout: Layout, depth: int, media_type: str) -> None:
    # arm64 is among what is below, at each level; the way down to it is by platform too
    choices = {name: layout.add_manifest(platform=name) for name in ("linux/amd64", "linux/arm64")}
    for platform, wanted in (("linux/amd64", AMD64), ("linux/arm64", ARM64)):
        found = layout.add_index(*choices.values(), media_type=media_type)
        for _ in range(depth - 1):
            found = layout.add_index(found, media_type=media_type)
        layout.write_index(found | {"annotations": {REF_NAME: "latest"}})
        assert (await layout.source.resolve("latest", wanted)).digest == digest_of(choices[platform])


async def test_a_single_manifest_is_taken_whatever_it_is_for(layout: Layout) -> None:
    layout.write_index(layout.add_manifest(platform="windows/amd64"))
    await layout.source.resolve("", ARM64)


async def test_a_platform_that_is_not_there(layout: Layout) -> None:
    layout.write_index(
        layout.add_index(*(layout.add_manifest(platform=name) for name in ("linux/amd64", "linux/s390x")))
    )
    with pytest.raises(PlatformNotFoundError) as caught:
        await layout.source.resolve("", ARM64)
    assert (caught.value.wanted, len(caught.value.available)) == (ARM64, 2)


async def test_docker_media_types(layout: Layout) -> None:
    layout.write_index(
        layout.add_index(
            layout.add_manifest(
                media_type=DOCKER_MANIFEST,
                config_type=DOCKER_CONFIG,
                layer_type=DOCKER_LAYER_GZIP,
                platform="linux/amd64",
            ),
            media_type=DOCKER_MANIFEST_LIST,
        )
    )
    found = await layout.source.resolve("", AMD64)
    assert found.manifest.media_type == DOCKER_MANIFEST
    assert [layer.media_type for layer in found.manifest.layers] == [DOCKER_LAYER_GZIP]


async def test_the_depth_of_indexes_is_bounded(layout: Layout) -> None:
    found = layout.add_manifest()
    for _ in range(10):
        found = layout.add_index(found)
    layout.write_index(found)
    with pytest.raises(UnsupportedImageError, match=OCI_INDEX.replace("+", r"\+")):
        await layout.source.resolve("", AMD64)


# ── what is no image ──

HELM = "application/vnd.cncf.helm.config.v1+json"
IN_TOTO = "application/vnd.in-toto+json"


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ({"config_type": HELM}, f"an artifact, not an image: its config is {HELM}"),
        ({"config_type": "application/vnd.oci.empty.v1+json"}, "an artifact, not an image: its config is"),
        ({"layer_type": IN_TOTO}, f"an artifact, not an image: it has a layer {IN_TOTO}"),
        ({"layer_type": f"{OCI_LAYER_GZIP}+encrypted"}, f"layer {LAYER.descriptor.digest} is encrypted"),
    ],
    ids=["artifact", "empty config", "attestation", "encrypted"],
)
async def test_artifacts_are_refused(layout: Layout, types: dict[str, str], reason: str) -> None:
    manifest = layout.add_manifest(ref="thing", **types)
    layout.write_index(manifest)
    for path in layout.folder.glob("blobs/sha256/*"):  # it is told without its config, which may be anything
        if path != layout.path(digest_of(manifest)):
            path.unlink()
    with pytest.raises(UnsupportedImageError) as caught:
        await layout.source.resolve("thing", AMD64)
    assert str(caught.value).startswith(f"oci:{layout.folder}:thing cannot be saved: ")
    assert reason in caught.value.reason


async def test_another_kind_of_document(layout: Layout) -> None:
    layout.write_index(layout.add(b"{}", "application/vnd.example+json"))
    with pytest.raises(UnsupportedImageError, match=r"it is a application/vnd\.example\+json"):
        await layout.source.resolve("", AMD64)


def test_a_resolved_image_can_be_saved() -> None:
    artifact = replace(IMAGE.manifest, config=Descriptor(HELM, IMAGE.image_id, len(IMAGE.config)))
    with pytest.raises(UnsupportedImageError):
        ResolvedImage("thing", artifact, IMAGE.config)


# ── a layout that is none ──


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="no OCI image layout, as it has no file oci-layout"):
        await OciLayoutSource(tmp_path / "nowhere").resolve("", AMD64)


async def test_a_file_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UnsupportedImageError, match="it is a file, not a directory; if it is a layout in a tar, unpack it"
    ):
        await OciLayoutSource(tmp_path / "file").resolve("", AMD64)


async def test_a_path_with_control_characters_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        await OciLayoutSource(tmp_path / "a\nb\x1b[31m").resolve("", AMD64)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"imageLayoutVersion": "1.1.0"}, None),
        ({"imageLayoutVersion": "2.0.0"}, InvalidDocumentError),
        ({"imageLayoutVersion": 1}, InvalidDocumentError),
        ({}, InvalidDocumentError),
        ([], InvalidDocumentError),
        ({"x": "x" * 70_000}, ContentTooLargeError),
    ],
    ids=["1.1", "2.0", "number", "none", "list", "long"],
)
async def test_version_of_the_layout(layout: Layout, header: Any, error: type[Exception] | None) -> None:
    layout.write_index(layout.add_manifest())
    (layout.folder / "oci-layout").write_bytes(to_json(header))
    if error is None:
        await layout.source.resolve("", AMD64)
    else:
        with pytest.raises(error):
            await layout.source.resolve("", AMD64)


async def test_a_missing_index(layout: Layout) -> None:
    (layout.folder / "index.json").unlink()
    with pytest.raises(ImageNotFoundError, match=r"no index\.json"):
        await layout.source.resolve("", AMD64)


@pytest.mark.parametrize(
    ("size", "error"),
    [(MAX_DOCUMENT_SIZE, None), (MAX_DOCUMENT_SIZE + 1, ContentTooLargeError)],
    ids=["limit", "one more"],
)
async def test_an_index_has_a_limit(layout: Layout, size: int, error: type[Exception] | None) -> None:
    layout.write_index(layout.add_manifest())
    path = layout.folder / "index.json"
    path.write_bytes(path.read_bytes().ljust(size))
    if error is None:
        await layout.source.resolve("", AMD64)
    else:
        with pytest.raises(error, match=r"index\.json"):
            await layout.source.resolve("", AMD64)


# ── documents that are others ──


def remove(path: Path) -> None:
    path.unlink()


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


DAMAGES: list[tuple[Callable[[Path], None], type[Exception], bool]] = [
    (remove, BlobNotFoundError, True),
    (replace_by_fifo, OSError, True),
    (replace_by_directory, OSError, True),
    (cut_off, SizeMismatchError, True),
    (extend, SizeMismatchError, True),
    (flip_a_bit, DigestMismatchError, False),
]
"""The changes to a blob's file, what is raised, and whether also for blobs that the source does not verify."""


@pytest.mark.parametrize(
    ("damage", "error"),
    [(damage, error) for damage, error, _ in DAMAGES],
    ids=[damage.__name__ for damage, _, _ in DAMAGES],
)
@pytest.mark.parametrize("what", ["index", "manifest", "config"])
async def test_a_damaged_document(
    layout: Layout, what: str, damage: Callable[[Path], None], error: type[Exception]
) -> None:
    manifest = layout.add_manifest(platform="linux/amd64")
    index = layout.add_index(manifest)
    layout.write_index(index)
    config = json.loads(layout.path(digest_of(manifest)).read_bytes())["config"]
    digest = digest_of({"index": index, "manifest": manifest, "config": config}[what])
    damage(layout.path(digest))
    with pytest.raises(error) as caught:
        await layout.source.resolve("", AMD64)
    assert digest.encoded in str(caught.value)


@pytest.mark.parametrize("what", ["index", "manifest", "config"])
async def test_a_document_with_a_large_stated_size_is_not_read(layout: Layout, what: str) -> None:
    large = {"size": MAX_DOCUMENT_SIZE + 1}
    manifest = layout.add_manifest(platform="linux/amd64")
    if what == "config":
        document = json.loads(layout.path(digest_of(manifest)).read_bytes())
        document["config"] |= large
        manifest = layout.add(to_json(document), OCI_MANIFEST, platform=manifest["platform"])
    elif what == "manifest":
        manifest |= large
    index = layout.add_index(manifest) | (large if what == "index" else {})
    layout.write_index(index)
    with pytest.raises(ContentTooLargeError, match=f"^{what} sha256"):
        await layout.source.resolve("", AMD64)


# ── blobs ──

BLOB = bytes(range(256)) * 5000
BLOB_DESCRIPTOR = Descriptor(OCI_LAYER_GZIP, Digest.of(BLOB), len(BLOB))


@pytest.fixture
def blob_layout(layout: Layout) -> Layout:
    layout.add(BLOB, OCI_LAYER_GZIP)
    return layout


@pytest.mark.parametrize("size", [len(BLOB), None], ids=["known size", "unknown size"])
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, None),
        (0, len(BLOB)),
        (0, 0),
        (1, 2),
        (oci_layout.CHUNK_SIZE - 1, oci_layout.CHUNK_SIZE + 1),
        (oci_layout.CHUNK_SIZE, 2 * oci_layout.CHUNK_SIZE),
        (len(BLOB) - 1, None),
        (len(BLOB), None),
        (len(BLOB), len(BLOB)),
    ],
)
async def test_any_range_of_a_blob(
    blob_layout: Layout, start: int, stop: int | None, size: int | None
) -> None:
    descriptor = replace(BLOB_DESCRIPTOR, size=size)
    assert await read_all(blob_layout.source, descriptor, start=start, stop=stop) == BLOB[start:stop]


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (2, 1), (0, -1)])
async def test_impossible_ranges_are_refused(blob_layout: Layout, start: int, stop: int | None) -> None:
    with pytest.raises(InvalidInputError, match="no range of a blob"):
        await read_all(blob_layout.source, BLOB_DESCRIPTOR, start=start, stop=stop)


async def test_an_empty_blob(layout: Layout) -> None:
    layout.add(b"", OCI_LAYER_GZIP)
    assert await read_all(layout.source, Descriptor(OCI_LAYER_GZIP, Digest.of(b""), 0)) == b""


@pytest.mark.parametrize(
    ("damage", "error"),
    [(damage, error) for damage, error, told in DAMAGES if told],
    ids=[damage.__name__ for damage, _, told in DAMAGES if told],
)
async def test_a_damaged_blob(
    blob_layout: Layout, damage: Callable[[Path], None], error: type[Exception]
) -> None:
    path = blob_layout.path(BLOB_DESCRIPTOR.digest)
    damage(path)
    with pytest.raises(error) as caught:
        await read_all(blob_layout.source, BLOB_DESCRIPTOR)
    assert str(path) in str(caught.value)


async def test_a_missing_blob_is_named_with_its_path(layout: Layout) -> None:
    with pytest.raises(BlobNotFoundError) as caught:
        await read_all(layout.source, BLOB_DESCRIPTOR)
    assert (caught.value.digest, caught.value.where) == (
        BLOB_DESCRIPTOR.digest,
        str(layout.path(BLOB_DESCRIPTOR.digest)),
    )


async def test_a_link_is_followed(blob_layout: Layout, tmp_path: Path) -> None:
    path = blob_layout.path(BLOB_DESCRIPTOR.digest)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert await read_all(blob_layout.source, BLOB_DESCRIPTOR) == BLOB


async def test_a_blob_that_shrinks_is_an_error(blob_layout: Layout) -> None:
    """A reader of a range has no digest by which to notice."""
    path = blob_layout.path(BLOB_DESCRIPTOR.digest)
    async with blob_layout.source.open_blob(BLOB_DESCRIPTOR) as chunks:
        received = [await anext(chunks)]
        os.truncate(path, oci_layout.CHUNK_SIZE + 1)
        received.append(await anext(chunks))
        with pytest.raises(OSError, match=f"ends after {oci_layout.CHUNK_SIZE + 1} bytes") as caught:
            await anext(chunks)
    assert caught.value.filename == str(path)
    assert b"".join(received) == BLOB[: oci_layout.CHUNK_SIZE + 1]


async def test_a_blob_that_grows_ends_at_its_first_size(blob_layout: Layout) -> None:
    path = blob_layout.path(BLOB_DESCRIPTOR.digest)
    async with blob_layout.source.open_blob(BLOB_DESCRIPTOR) as chunks:
        received = [await anext(chunks)]
        with path.open("ab") as file:
            file.write(b"more")
        received += [chunk async for chunk in chunks]
    assert b"".join(received) == BLOB


async def test_a_read_error_names_the_file(blob_layout: Layout) -> None:
    async with blob_layout.source.open_blob(BLOB_DESCRIPTOR) as chunks:
        (descriptor,) = open_files(blob_layout.folder)
        unreadable = os.open("/proc/self/mem", os.O_RDONLY)  # nothing is at address 0: EIO
        os.dup2(unreadable, descriptor)
        os.close(unreadable)
        with pytest.raises(OSError, match=str(blob_layout.path(BLOB_DESCRIPTOR.digest))):
            await anext(chunks)


async def test_chunks_end_with_their_block(blob_layout: Layout) -> None:
    async with blob_layout.source.open_blob(BLOB_DESCRIPTOR) as chunks:
        pass
    with pytest.raises(RuntimeError, match="read it inside the block"):
        await anext(chunks)


# ── cancelled ──


WAYS = [by_task_cancel, by_task_cancel_when_ready, by_timeout, by_cancel_scope]


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
@pytest.mark.parametrize("verb", ["resolve", "open_blob"])
async def test_a_cancel_leaves_nothing_open(layout: Layout, verb: str, way: Way, twice: bool) -> None:
    """At every suspension."""
    layout.add(BLOB, OCI_LAYER_GZIP)
    layout.write_index(layout.add_index(layout.add_manifest(platform="linux/amd64")))

    async def work() -> None:
        if verb == "resolve":
            await layout.source.resolve("", AMD64)
        else:
            assert await read_all(layout.source, BLOB_DESCRIPTOR) == BLOB

    at = 0
    while True:
        driver = Driver(at=at + 1, twice=twice)
        await asyncio.ensure_future(way(driver, work))
        assert not open_files(layout.folder)
        if driver.suspensions <= at:
            break
        at += 1
    assert at > (0 if verb == "resolve" else len(BLOB) // oci_layout.CHUNK_SIZE)


def open_files(folder: Path) -> list[int]:
    """Return this process's descriptors of files in a folder."""
    links = Path("/proc/self/fd").iterdir()
    return [int(link.name) for link in links if os.path.realpath(link).startswith(str(folder))]
