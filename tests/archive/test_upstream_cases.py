"""Odd cases of containers/image, row by row, and the result here.

Upstream's result stands at the top of each test. Where it loses data or leaves a mess, this writer does not follow.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiodockersave import (
    ArchiveWriter,
    ContentTooLargeError,
    Descriptor,
    DigestMismatchError,
    ImageConflictError,
    NameConflictError,
    SizeMismatchError,
    WriterBrokenError,
    open_archive,
)
from aiodockersave.blobs import content
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE
from aiodockersave.core.model import OCI_LAYER
from tests.support.images import (
    ListSink,
    MemorySink,
    archive_of,
    make_config,
    make_image,
    make_layer,
    put,
)
from tests.support.rederive import read_entries

NINE = make_layer(b"nine byte", None)  # the layer of upstream's cases
OTHER = make_layer(b"other", None)
TAG, TAG_2 = "example.com/app:1", "example.com/app:2"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make nine bytes too many to be verified before their header is written."""
    monkeypatch.setattr(content, "BATCH_SIZE", 2)


def documents(archive: bytes) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    found = {entry.name: entry.data for entry in read_entries(archive)}
    return json.loads(found["manifest.json"]), json.loads(found["repositories"])


async def in_pieces(data: bytes, fault: Exception | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 2):
        yield data[start : start + 2]
    if fault is not None:
        raise fault


# ── images ──


async def test_closed_without_an_image(tmp_path: Path) -> None:
    """Upstream: no error, and the file is deleted; `null` in manifest.json, which `docker load` refuses."""
    path = tmp_path / "empty.tar"
    async with open_archive(path):
        pass
    assert documents(path.read_bytes()) == ([], {})


async def test_an_image_twice() -> None:
    """Upstream: the second fails with "unexpected end of JSON input"; the archive has the first tag only."""
    image = make_image(NINE, OTHER)
    archive = await archive_of([image.tagged(TAG), image.tagged(TAG_2)])
    assert archive == await archive_of([image.tagged(TAG, TAG_2)])
    ((item,), repositories) = documents(archive)
    assert item["RepoTags"] == [TAG, TAG_2]
    assert set(repositories["example.com/app"]) == {"1", "2"}


async def test_an_image_without_layers_twice() -> None:
    """Upstream: tags merged in order. The same here."""
    image = make_image()
    ((item,), repositories) = documents(await archive_of([image.tagged(TAG_2), image.tagged(TAG, TAG_2)]))
    assert (item["RepoTags"], repositories) == ([TAG_2, TAG], {})


async def test_the_same_config_with_other_layers() -> None:
    """Upstream: fails, with the same parse error as above, when parts of the image are written already."""
    config = make_config([NINE.diff_id])
    first = make_image(NINE, config_bytes=config, repo_tags=[TAG])
    second = make_image(OTHER, config_bytes=config, repo_tags=[TAG_2])
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await put(archive, first)
        await archive.put_layer(OTHER.blob, OTHER.descriptor)
        before = sink.getvalue()
        with pytest.raises(ImageConflictError, match=str(first.image_id)):
            await archive.put_image(second.config, second.manifest, second.repo_tags)
        assert sink.getvalue() == before
    ((item,), _) = documents(sink.getvalue())
    assert (item["RepoTags"], item["Layers"]) == ([TAG], [f"{NINE.diff_id.encoded}.tar"])


async def test_two_configs_with_a_shared_base() -> None:
    """Upstream: base once, three legacy folders. The same here."""
    first = make_image(NINE, repo_tags=[TAG])
    second = make_image(NINE, OTHER, repo_tags=[TAG_2])
    archive = await archive_of([first, second])
    names = [entry.name for entry in read_entries(archive)]
    assert names.count(f"{NINE.diff_id.encoded}.tar") == 1
    versions = [name for name in names if name.endswith("/VERSION")]
    assert len(versions) == 3
    items, repositories = documents(archive)
    assert [item["RepoTags"] for item in items] == [[TAG], [TAG_2]]
    assert repositories["example.com/app"]["2"] == versions[-1].partition("/")[0]


async def test_two_configs_with_a_shared_base_and_the_same_tag() -> None:
    """Upstream: the tag on both items, `repositories` names the second. Here the second is refused before a byte."""
    first = make_image(NINE, repo_tags=[TAG])
    second = make_image(NINE, OTHER, repo_tags=[TAG])
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await put(archive, first)
        await archive.put_layer(OTHER.blob, OTHER.descriptor)
        before = sink.getvalue()
        with pytest.raises(NameConflictError, match=f"{TAG} is {first.image_id} and {second.image_id}"):
            await archive.put_image(second.config, second.manifest, second.repo_tags)
        assert sink.getvalue() == before
        await archive.put_image(second.config, second.manifest, [TAG_2])
    items, _ = documents(sink.getvalue())
    assert [item["RepoTags"] for item in items] == [[TAG], [TAG_2]]


async def test_a_layer_twice_in_one_image() -> None:
    """Upstream: one member, two legacy folders with different IDs, listed twice. The same here."""
    archive = await archive_of([make_image(NINE, NINE)])
    names = [entry.name for entry in read_entries(archive)]
    assert names.count(f"{NINE.diff_id.encoded}.tar") == 1
    assert len({name for name in names if name.endswith("/layer.tar")}) == 2
    ((item,), _) = documents(archive)
    assert item["Layers"] == [f"{NINE.diff_id.encoded}.tar"] * 2


# ── layers that are not what was promised ──

LOST = ConnectionResetError("the source has left")


class Broken(NamedTuple):
    """A layer that is not what its descriptor promises, and the error that a put of it raises."""

    name: str
    descriptor: Descriptor
    chunks: Callable[[], Any]
    error: type[Exception]
    message: str


BROKEN = [
    # Upstream: passed on; the next calls say "missed writing 4 bytes", and a torn file stays.
    Broken(
        "source fails after 5 of 9 bytes",
        NINE.descriptor,
        lambda: in_pieces(b"nine ", LOST),
        ConnectionResetError,
        "the source has left",
    ),
    # Upstream: "Size mismatch"; the next calls say "missed writing 11 bytes", and a torn file stays.
    Broken(
        "20 bytes promised, 9 delivered",
        Descriptor(OCI_LAYER, NINE.diff_id, 20),
        lambda: in_pieces(NINE.blob),
        SizeMismatchError,
        f"blob {NINE.diff_id} has the wrong size: expected 20 bytes, got only 9",
    ),
    # Upstream: "archive/tar: write too long"; a member of four bytes of the nine stays in the archive.
    Broken(
        "4 bytes promised, 9 delivered",
        Descriptor(OCI_LAYER, NINE.diff_id, 4),
        lambda: in_pieces(NINE.blob),
        SizeMismatchError,
        "expected 4 bytes, got at least",
    ),
    # Upstream: accepted; and where the size is not known, stored under the wrong digest.
    *(
        Broken(
            f"wrong digest, size {size}",
            Descriptor(OCI_LAYER, OTHER.diff_id, size),
            lambda: in_pieces(NINE.blob),
            DigestMismatchError,
            f"expected {OTHER.diff_id}, got {NINE.diff_id}",
        )
        for size in (9, None)
    ),
]
every_broken = pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)


async def check_refused_in_peace(sink: MemorySink | ListSink, broken: Broken) -> None:
    async with ArchiveWriter(sink) as archive:
        with pytest.raises(broken.error, match=broken.message):
            await archive.put_layer(broken.chunks(), broken.descriptor)
        assert sink.getvalue() == b""
        await put(archive, make_image(NINE, repo_tags=[TAG]))
    assert sink.getvalue() == await archive_of([make_image(NINE, repo_tags=[TAG])])


@every_broken
@pytest.mark.parametrize("sink", [MemorySink, ListSink])
async def test_a_small_layer_is_checked_before_it_is_written(
    sink: type[MemorySink | ListSink], broken: Broken
) -> None:
    await check_refused_in_peace(sink(), broken)


@every_broken
@pytest.mark.usefixtures("small_batches")
async def test_a_torn_layer_is_rewound_where_that_can_be(broken: Broken) -> None:
    await check_refused_in_peace(MemorySink(), broken)


# A layer of unknown size is staged, and so never torn.
@pytest.mark.parametrize("broken", [each for each in BROKEN if each.descriptor.size is not None])
@pytest.mark.usefixtures("small_batches")
async def test_a_torn_layer_that_cannot_be_rewound_breaks_the_writer_for_good(broken: Broken) -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    with pytest.raises(broken.error, match=broken.message) as first:
        await archive.put_layer(broken.chunks(), broken.descriptor)
    torn = sink.getvalue()
    calls: list[Callable[[], Any]] = [
        lambda: archive.put_layer(NINE.blob, NINE.descriptor),
        lambda: archive.put_image(make_config([]), []),
        archive.close,
    ]
    message = f"torn since byte 0 .layer {broken.descriptor.digest}"
    for call in calls:
        with pytest.raises(WriterBrokenError, match=message) as later:
            await call()
        assert later.value.__cause__ is first.value
    assert sink.getvalue() == torn, "nothing is written any more, so that nobody takes it for whole"
    assert not torn.endswith(bytes(1024))


@every_broken
@pytest.mark.usefixtures("small_batches")
async def test_a_file_that_did_not_become_whole_does_not_appear(tmp_path: Path, broken: Broken) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(b"what was there")
    with pytest.raises(broken.error, match=broken.message):
        async with open_archive(path) as archive:
            await archive.put_layer(broken.chunks(), broken.descriptor)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


# ── digests, documents ──


async def test_a_sha512_layer() -> None:
    """Upstream: accepted, with a PAX header for its path. The same here, and it is checked."""
    layer = make_layer(NINE.plain, None, algorithm="sha512")
    archive = await archive_of([make_image(layer)])
    assert archive[156:157] == b"x"
    assert f"path={layer.diff_id.encoded}.tar\n".encode() in archive[512:1024]
    sink = ListSink()
    with pytest.raises(DigestMismatchError, match="sha512:"):
        await ArchiveWriter(sink).put_layer(b"nine bytE", layer.descriptor)
    assert sink.getvalue() == b""


async def test_an_oci_manifest() -> None:
    """Upstream: its docker archive refuses OCI manifests, a caller must convert. Here it is taken as it is."""
    image = make_image(NINE, repo_tags=[TAG])
    assert image.manifest.media_type.startswith("application/vnd.oci.")
    ((item,), _) = documents(await archive_of([image]))
    assert item["RepoTags"] == [TAG]


async def test_a_config_of_4_mib_and_a_byte() -> None:
    """Upstream: refused, and the file deleted. Here nothing is written, and the archive goes on."""
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        with pytest.raises(ContentTooLargeError, match="config is larger than the limit of 4194304 bytes"):
            await archive.put_image(make_config([]).ljust(MAX_DOCUMENT_SIZE + 1), [])
        assert sink.writes == []
        await archive.put_image(make_config([]).ljust(MAX_DOCUMENT_SIZE), [])
    assert read_entries(sink.getvalue())[0].data == make_config([]).ljust(MAX_DOCUMENT_SIZE)
