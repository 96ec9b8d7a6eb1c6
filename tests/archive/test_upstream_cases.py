"""What containers/image does in odd cases, row by row, and what happens here instead.

Upstream's result stands at the top of each test. Where it loses data or leaves a mess, this writer does not follow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from aiodockersave import (
    ArchiveWriter,
    ContentTooLargeError,
    Descriptor,
    Digest,
    DigestMismatchError,
    ImageConflictError,
    ImageManifest,
    InvalidDigestError,
    InvalidDocumentError,
    InvalidInputError,
    NameConflictError,
    SizeMismatchError,
    WriterBrokenError,
    WriterClosedError,
    open_archive,
)
from aiodockersave.blobs import content
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE
from aiodockersave.core.model import OCI_INDEX, OCI_LAYER
from tests.support.images import (
    ListSink,
    MemorySink,
    archive_of,
    make_config,
    make_image,
    make_layer,
    put,
    to_document,
    to_json,
)
from tests.support.rederive import read_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

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

BROKEN: list[tuple[str, Descriptor, Callable[[], Any], type[Exception], str]] = [
    # Upstream: passed on; the next calls say "missed writing 4 bytes", and a torn file stays.
    (
        "source fails after 5 of 9 bytes",
        NINE.descriptor,
        lambda: in_pieces(b"nine ", LOST),
        ConnectionResetError,
        "the source has left",
    ),
    # Upstream: "Size mismatch"; the next calls say "missed writing 11 bytes", and a torn file stays.
    (
        "20 bytes promised, 9 delivered",
        Descriptor(OCI_LAYER, NINE.diff_id, 20),
        lambda: in_pieces(NINE.blob),
        SizeMismatchError,
        f"blob {NINE.diff_id} has the wrong size: expected 20 bytes, got only 9",
    ),
    # Upstream: "archive/tar: write too long"; a member of four bytes of the nine stays in the archive.
    (
        "4 bytes promised, 9 delivered",
        Descriptor(OCI_LAYER, NINE.diff_id, 4),
        lambda: in_pieces(NINE.blob),
        SizeMismatchError,
        "expected 4 bytes, got at least",
    ),
    # Upstream: accepted.
    (
        "wrong digest, right size",
        Descriptor(OCI_LAYER, OTHER.diff_id, 9),
        lambda: in_pieces(NINE.blob),
        DigestMismatchError,
        f"expected {OTHER.diff_id}, got {NINE.diff_id}",
    ),
    # Upstream: accepted, and stored under the wrong digest.
    (
        "wrong digest, size not known",
        Descriptor(OCI_LAYER, OTHER.diff_id, None),
        lambda: in_pieces(NINE.blob),
        DigestMismatchError,
        f"expected {OTHER.diff_id}, got {NINE.diff_id}",
    ),
]
BROKEN_TABLE = pytest.mark.parametrize(
    ("descriptor", "broken", "error", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)


@BROKEN_TABLE
@pytest.mark.parametrize("sink", [MemorySink, ListSink])
async def test_a_small_layer_is_checked_before_it_is_written(
    sink: type[MemorySink | ListSink],
    descriptor: Descriptor,
    broken: Callable[[], Any],
    error: type[Exception],
    message: str,
) -> None:
    out = sink()
    await put_in_spite_of(out, descriptor, broken, error, message)
    assert out.getvalue() == await archive_of([make_image(NINE, repo_tags=[TAG])])


@BROKEN_TABLE
@pytest.mark.usefixtures("small_batches")
async def test_a_torn_layer_is_rewound_where_that_can_be(
    descriptor: Descriptor, broken: Callable[[], Any], error: type[Exception], message: str
) -> None:
    out = MemorySink()
    await put_in_spite_of(out, descriptor, broken, error, message)
    assert out.getvalue() == await archive_of([make_image(NINE, repo_tags=[TAG])])


async def put_in_spite_of(
    sink: MemorySink | ListSink,
    descriptor: Descriptor,
    broken: Callable[[], Any],
    error: type[Exception],
    message: str,
) -> None:
    async with ArchiveWriter(sink) as archive:
        with pytest.raises(error, match=message):
            await archive.put_layer(broken(), descriptor)
        assert sink.getvalue() == b""
        await put(archive, make_image(NINE, repo_tags=[TAG]))


@pytest.mark.parametrize(
    ("descriptor", "broken", "error", "message"),
    [row[1:] for row in BROKEN if row[1].size is not None],  # an unknown size is staged, and so never torn
    ids=[row[0] for row in BROKEN if row[1].size is not None],
)
@pytest.mark.usefixtures("small_batches")
async def test_a_torn_layer_that_cannot_be_rewound_breaks_the_writer_for_good(
    descriptor: Descriptor, broken: Callable[[], Any], error: type[Exception], message: str
) -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)
    with pytest.raises(error, match=message) as first:
        await archive.put_layer(broken(), descriptor)
    torn = sink.getvalue()
    calls: list[Callable[[], Any]] = [
        lambda: archive.put_layer(NINE.blob, NINE.descriptor),
        lambda: archive.put_image(make_config([]), []),
        archive.close,
    ]
    for call in calls:
        with pytest.raises(WriterBrokenError, match=f"torn since byte 0 .layer {descriptor.digest}") as later:
            await call()
        assert later.value.__cause__ is first.value
    assert sink.getvalue() == torn, "nothing is written any more, so that nobody takes it for whole"
    assert not torn.endswith(bytes(1024))


@BROKEN_TABLE
@pytest.mark.usefixtures("small_batches")
async def test_a_file_that_did_not_become_whole_does_not_appear(
    tmp_path: Path,
    descriptor: Descriptor,
    broken: Callable[[], Any],
    error: type[Exception],
    message: str,
) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(b"what was there")
    with pytest.raises(error, match=message):
        async with open_archive(path) as archive:
            await archive.put_layer(broken(), descriptor)
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


@pytest.mark.parametrize(
    "digest", ["sha256:abc", "md5:" + "0" * 32, "../../etc/passwd", "sha256:../" + "0" * 61]
)
def test_a_malformed_digest(digest: str) -> None:
    """Upstream: "invalid checksum digest format". Here there is no digest that is not valid."""
    with pytest.raises(InvalidDigestError, match="invalid digest"):
        Digest.parse(digest)
    with pytest.raises(InvalidDigestError):
        ArchiveWriter(ListSink()).has_blob(digest)


def test_a_negative_size() -> None:
    """Upstream: -1 means unknown. Here None does, and a negative size is an error."""
    with pytest.raises(InvalidInputError, match="the size is negative"):
        Descriptor(OCI_LAYER, NINE.diff_id, -1)


async def test_an_oci_manifest() -> None:
    """Upstream: its docker archive refuses OCI manifests, a caller must convert. Here it is taken as it is."""
    image = make_image(NINE, repo_tags=[TAG])
    assert image.manifest.media_type.startswith("application/vnd.oci.")
    ((item,), _) = documents(await archive_of([image]))
    assert item["RepoTags"] == [TAG]


def test_an_index_is_no_image() -> None:
    """Upstream: manifests of an instance are refused."""
    index = to_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [to_document(make_image().manifest.descriptor)],
        }
    )
    with pytest.raises(InvalidDocumentError, match="it is an index, not a manifest"):
        ImageManifest.parse(index)


async def test_a_config_of_4_mib_and_a_byte() -> None:
    """Upstream: refused, and the file deleted. Here nothing is written, and the archive goes on."""
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        with pytest.raises(ContentTooLargeError, match="config is larger than the limit of 4194304 bytes"):
            await archive.put_image(make_config([]).ljust(MAX_DOCUMENT_SIZE + 1), [])
        assert sink.writes == []
        await archive.put_image(make_config([]).ljust(MAX_DOCUMENT_SIZE), [])
    assert read_entries(sink.getvalue())[0].data == make_config([]).ljust(MAX_DOCUMENT_SIZE)


# ── after the end ──


async def test_a_put_after_close_and_a_second_close() -> None:
    """Upstream: "Internal error: trying to use an already closed tarfile.Writer" for both."""
    sink = ListSink()
    archive = ArchiveWriter(sink)
    await put(archive, make_image(NINE))
    await archive.close()
    whole = sink.getvalue()
    with pytest.raises(WriterClosedError, match="is closed: the archive is complete"):
        await archive.put_layer(OTHER.blob, OTHER.descriptor)
    with pytest.raises(WriterClosedError):
        await archive.put_image(make_config([]), [])
    await archive.close()
    assert sink.getvalue() == whole
