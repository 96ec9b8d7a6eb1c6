"""Mistakes of callers: a clear error that names its subject, and a writer in the state that the error tells.

Also every class of error, raised as callers meet it: its parents, its facts, its one line, its pickle.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import aiodockersave
from aiodockersave import (
    ArchiveWriter,
    BlobNotFoundError,
    ConfigurationError,
    ContentError,
    ContentTooLargeError,
    DecompressionError,
    Descriptor,
    Digest,
    DigestMismatchError,
    DockerSaveError,
    EventLoopError,
    ImageConflictError,
    ImageIndex,
    ImageManifest,
    ImageNotFoundError,
    InsufficientSpaceError,
    InvalidDigestError,
    InvalidDocumentError,
    InvalidInputError,
    InvalidPlatformError,
    InvalidReferenceError,
    MissingDependencyError,
    NameConflictError,
    OciLayoutSource,
    PartFileError,
    Platform,
    PlatformNotFoundError,
    RegistryError,
    SinkError,
    SizeMismatchError,
    SourceError,
    TransferError,
    UnsupportedImageError,
    WriterBrokenError,
    WriterClosedError,
    WriterError,
    open_archive,
    plan_archive,
)
from aiodockersave.core import errors
from aiodockersave.core.documents import MAX_DOCUMENT_SIZE
from aiodockersave.core.model import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Layers
from tests.support.images import (
    Image,
    ListSink,
    MemorySink,
    archive_of,
    hide_decompressors,
    make_config,
    make_image,
    make_layer,
    put,
    to_document,
    to_json,
    write_layout,
)
from tests.test_structure import public_errors

LAYER = make_layer(b"layer " * 1000)
OTHER = make_layer(b"other " * 1000, None)
IMAGE = make_image(LAYER, OTHER, repo_tags=["example.com/app:1.0"])
ONE = make_image(LAYER)
TWO = make_image(LAYER, author="two")
HEX = "a" * 64
LINUX = Platform("linux", "amd64")

every_sink = pytest.mark.parametrize("sink", [ListSink, MemorySink], ids=["cannot rewind", "can rewind"])


async def check_untouched(
    sink: Any,
    call: Callable[[ArchiveWriter], Awaitable[object]],
    error: type[Exception],
    message: str,
    layers: Layers = "keep",
) -> None:
    """Have a call refused in the middle of an archive, which then becomes the same as without the call."""
    archive = ArchiveWriter(sink, layers=layers)
    await archive.put_layer(LAYER.blob, LAYER.descriptor)
    before = sink.getvalue()
    with pytest.raises(error) as caught:
        await call(archive)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sink.getvalue() == before
    await put(archive, IMAGE)
    await archive.close()
    assert sink.getvalue() == await archive_of([IMAGE], layers=layers)


# ── digests ──


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sha256:../../../../etc/passwd", "characters other than 0-9 and a-f"),
        ("sha256:" + "../" * 21 + "a", "characters other than 0-9 and a-f"),
        (f"../sha256:{HEX}", "the algorithm must be sha256 or sha512"),
    ],
)
async def test_digests_are_checked_before_they_become_a_name(text: str, reason: str) -> None:
    async def put_it(archive: ArchiveWriter) -> None:
        await archive.put_layer(OTHER.blob, Descriptor(OCI_LAYER, Digest.parse(text), len(OTHER.blob)))

    await check_untouched(ListSink(), put_it, InvalidDigestError, reason)
    async with ArchiveWriter(ListSink(), layers="decompress") as archive:
        with pytest.raises(InvalidDigestError, match="invalid digest"):
            await archive.put_layer(OTHER.blob, OTHER.descriptor, diff_id=text)
        with pytest.raises(InvalidDigestError, match="invalid digest"):
            archive.has_blob(text)
    manifest = to_json({"schemaVersion": 2, "config": _document(text), "layers": [_document(text)]})
    with pytest.raises(InvalidDocumentError, match="digest"):
        ImageManifest.parse(manifest, OCI_MANIFEST)
    config = to_json({"rootfs": {"type": "layers", "diff_ids": [text]}})
    with pytest.raises((InvalidDocumentError, InvalidDigestError), match="digest"):
        plan_archive([aiodockersave.ImageSpec(config, [OTHER.descriptor])])


def _document(digest: str) -> dict[str, object]:
    return {"mediaType": OCI_LAYER, "digest": digest, "size": 1}


# ── calls ──


def _image(*args: Any, **options: Any) -> Callable[[ArchiveWriter], Awaitable[object]]:
    return lambda archive: archive.put_image(*args, **options)


def _layer(*args: Any, **options: Any) -> Callable[[ArchiveWriter], Awaitable[object]]:
    return lambda archive: archive.put_layer(*args, **options)


def _tagged(*names: Any) -> Callable[[ArchiveWriter], Awaitable[object]]:
    return _image(ONE.config, ONE.manifest, names)


REFUSED: dict[str, tuple[Callable[[ArchiveWriter], Awaitable[object]], type[Exception], str]] = {
    "a layer that is not in": (
        _image(IMAGE.config, IMAGE.manifest),
        InvalidInputError,
        f"layer {OTHER.descriptor.digest} is not in the archive: put_layer() it first",
    ),
    "fewer layers than diff IDs": (
        _image(IMAGE.config, [LAYER.descriptor]),
        InvalidInputError,
        f"image {IMAGE.image_id} has 1 layers, but 2 diff IDs in its config",
    ),
    "more layers than diff IDs": (
        _image(ONE.config, [LAYER.descriptor] * 2),
        InvalidInputError,
        f"image {ONE.image_id} has 2 layers, but 1 diff IDs in its config",
    ),
    "two sizes for one layer": (
        _layer(LAYER.blob, replace(LAYER.descriptor, size=5)),
        InvalidInputError,
        f"blob {LAYER.descriptor.digest} has two sizes: it is in the archive with {len(LAYER.blob)} bytes",
    ),
    "two sizes in an image": (
        _image(ONE.config, [replace(LAYER.descriptor, size=5)]),
        InvalidInputError,
        f"blob {LAYER.descriptor.digest} has two sizes",
    ),
    "another config than the manifest's": (
        _image(make_config([LAYER.diff_id], comment="b"), make_image(LAYER, comment="a").manifest),
        DigestMismatchError,
        "config is not what was promised: expected sha256:",
    ),
    "a config of another size": (
        _image(ONE.config + b" ", ONE.manifest),
        SizeMismatchError,
        f"config {ONE.image_id} has the wrong size: expected {len(ONE.config)} bytes",
    ),
    "a config that is too large": (
        _image(ONE.config + b" " * MAX_DOCUMENT_SIZE, [LAYER.descriptor]),
        ContentTooLargeError,
        f"larger than the limit of {MAX_DOCUMENT_SIZE} bytes",
    ),
    "a config that is no JSON": (_image(b"{", []), InvalidDocumentError, "invalid document"),
    "a config that is no object": (_image(b"[]", []), InvalidDocumentError, "invalid document"),
    "a name in upper case": (_tagged("example.com/App:1"), InvalidReferenceError, "'example.com/App:1'"),
    "a name with a digest": (_tagged(f"app@{OTHER.diff_id}"), InvalidReferenceError, "cannot have a digest"),
    "a good name and a bad one": (_tagged("app:1", "app:"), InvalidReferenceError, "'app:'"),
    "one name for a list": (
        _image(ONE.config, ONE.manifest, "app:1"),
        TypeError,
        "repo_tags is a sequence of names, not one string",
    ),
    "wrong content": (
        _layer(b"x" * len(OTHER.blob), OTHER.descriptor),
        DigestMismatchError,
        f"blob is not what was promised: expected {OTHER.descriptor.digest}, got sha256:",
    ),
    "short content": (
        _layer(OTHER.blob[:-1], OTHER.descriptor),
        SizeMismatchError,
        f"blob {OTHER.descriptor.digest} has the wrong size: expected 6000 bytes, got only 5999",
    ),
    "long content": (
        _layer(OTHER.blob + b"x", OTHER.descriptor),
        SizeMismatchError,
        f"blob {OTHER.descriptor.digest} has the wrong size: expected 6000 bytes, got at least 6001",
    ),
    "no content": (_layer(None, OTHER.descriptor), TypeError, "cannot read from None: pass bytes"),
    "a path as content": (
        _layer("layer.tar", OTHER.descriptor),
        TypeError,
        "cannot read from str: pass bytes",
    ),
}


@every_sink
@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
async def test_a_refused_call_changes_nothing(
    sink: type[Any],
    layers: Layers,
    call: Callable[[ArchiveWriter], Awaitable[object]],
    error: type[Exception],
    message: str,
) -> None:
    await check_untouched(sink(), call, error, message, layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tar"}, "format='tar': use one of 'docker'"),
        ({"layers": "inflate"}, "layers='inflate': use one of 'keep', 'decompress'"),
    ],
    ids=["format", "layers"],
)
async def test_names_of_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ArchiveWriter(ListSink(), **options)
    with pytest.raises(InvalidInputError, match=message):
        async with open_archive(tmp_path / "app.tar", **options):
            raise AssertionError
    assert not list(tmp_path.iterdir())


async def test_the_same_config_with_other_layers() -> None:
    """The second stack has the right diff IDs, and other blobs of them."""
    again = make_layer(LAYER.plain, "zstd")
    sink = ListSink()
    async with ArchiveWriter(sink) as archive:
        await put(archive, ONE)
        await archive.put_layer(again.blob, again.descriptor)
        with pytest.raises(ImageConflictError, match=f"image {ONE.image_id} is already in the archive"):
            await archive.put_image(ONE.config, [again.descriptor], ["app:2"])
        await archive.put_image(ONE.config, ONE.manifest, ["app:1"])
    assert b"app:2" not in sink.getvalue()


# ── a writer that is no longer open ──


async def _closed() -> ArchiveWriter:
    archive = ArchiveWriter(ListSink())
    await archive.close()
    return archive


async def _aborted() -> ArchiveWriter:
    archive = ArchiveWriter(ListSink())
    await archive.abort()
    return archive


async def _broken() -> ArchiveWriter:
    async def full(data: bytes) -> None:
        raise OSError("full")

    archive = ArchiveWriter(full)
    with pytest.raises(OSError, match="full"):
        await archive.put_layer(OTHER.blob, OTHER.descriptor)
    return archive


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_closed, WriterClosedError, "the archive writer is closed: the archive is complete; open a new one"),
        (
            _aborted,
            WriterClosedError,
            "the archive writer was aborted: the archive is incomplete; open a new one",
        ),
        (
            _broken,
            WriterBrokenError,
            rf"torn since byte 0 \(layer {OTHER.descriptor.digest}\) and cannot go on",
        ),
    ],
    ids=["closed", "aborted", "broken"],
)
async def test_a_writer_that_is_no_longer_open(
    make: Callable[[], Awaitable[ArchiveWriter]], error: type[Exception], message: str
) -> None:
    archive = await make()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: archive.put_layer(LAYER.blob, LAYER.descriptor),
        lambda: archive.put_layer(LAYER.blob, LAYER.descriptor, stage=True),
        lambda: archive.put_image(make_config([]), []),
    ]
    if make is not _closed:
        calls.append(archive.close)
    for call in calls * 2:
        with pytest.raises(error, match=message) as caught:
            await call()
        assert isinstance(caught.value.__cause__, OSError if make is _broken else type(None))
    await archive.abort()
    if make is _closed:
        await archive.close()


# ── other loops ──


def test_trio_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("trio")
    sink = ListSink()
    archive = ArchiveWriter(sink)

    async def main() -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: archive.put_layer(LAYER.blob),
            lambda: archive.put_image(ONE.config, ONE.manifest),
            archive.close,
            archive.abort,
            archive.__aenter__,
            open_archive(tmp_path / "app.tar").__aenter__,
        ]
        for call in calls:
            with pytest.raises(EventLoopError, match=r"runs on asyncio only; .* use asyncio\.run\(\)"):
                await call()

    anyio.run(main, backend="trio")
    assert not sink.writes
    assert not list(tmp_path.iterdir())


def test_a_writer_that_trio_could_not_use_works_under_asyncio() -> None:
    pytest.importorskip("trio")
    sink = ListSink()
    archive = ArchiveWriter(sink)

    async def refused() -> None:
        with pytest.raises(EventLoopError):
            await archive.close()

    anyio.run(refused, backend="trio")
    asyncio.run(archive.close())
    assert sink.writes


# ── every class of error ──


async def _raise_closed() -> None:
    await (await _aborted()).close()


async def _raise_broken() -> None:
    await (await _broken()).close()


async def _raise_sink() -> None:
    class Nothing(ListSink):
        async def write(self, data: bytes, /) -> int:  # type: ignore[override]
            return 0

    await ArchiveWriter(Nothing()).close()


async def _put(content: object, descriptor: Descriptor | None = None, **options: Any) -> None:
    async with ArchiveWriter(ListSink(), **options) as archive:
        await archive.put_layer(content, descriptor)  # type: ignore[arg-type]


async def _raise_conflict() -> None:
    again = make_layer(LAYER.plain, "zstd")
    async with ArchiveWriter(ListSink()) as archive:
        await put(archive, ONE)
        await archive.put_layer(again.blob, again.descriptor)
        await archive.put_image(ONE.config, [again.descriptor])


async def _raise_name_conflict() -> None:
    async with ArchiveWriter(ListSink()) as archive:
        for image in (ONE, TWO):
            await put(archive, image.tagged("example.com/app:1.0"))


async def _raise_content() -> None:
    async def cancels_itself() -> bytes:
        raise asyncio.CancelledError

    await _put(cancels_itself)


async def _raise_missing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        hide_decompressors(patch)
        await _put(make_layer(b"", "zstd").blob, layers="decompress")


async def _raise_digest() -> None:
    Digest.parse("md5:0")


async def _raise_reference() -> None:
    plan_archive([replace(ONE.spec, repo_tags=["UPPER"])])


async def _raise_platform() -> None:
    Platform.parse("linux")


async def _raise_document() -> None:
    ImageManifest.parse(b"{}", OCI_MANIFEST)


async def _raise_platform_not_found() -> None:
    entry = to_document(Descriptor(OCI_MANIFEST, OTHER.diff_id, 1))
    entry["platform"] = {"os": "linux", "architecture": "s390x"}
    ImageIndex.parse(to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})).select(
        LINUX
    )


async def _raise_event_loop() -> None:
    coroutine = ArchiveWriter(ListSink()).close()
    with pytest.raises(EventLoopError) as caught:
        await asyncio.to_thread(coroutine.send, None)
    raise caught.value


def _from_layout(image: Image, reference: str) -> Callable[[Path], Awaitable[None]]:
    async def resolve(folder: Path) -> None:
        await OciLayoutSource(write_layout(folder, {"latest": image})).resolve(reference, LINUX)

    return resolve


async def _raise_blob_not_found(folder: Path) -> None:
    source = OciLayoutSource(write_layout(folder, {"latest": ONE}))
    async with source.open_blob(OTHER.descriptor) as chunks:
        async for _ in chunks:
            raise AssertionError


def _artifact() -> Image:
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": to_document(Descriptor("application/vnd.example", Digest.of(b"{}"), 2)),
            "layers": [],
        }
    )
    return Image(b"{}", (), manifest)


RAISED: dict[type[DockerSaveError], tuple[Any, tuple[type, ...], dict[str, object]]] = {
    InvalidInputError: (lambda: _put(b"", stage_memory=-1), (ValueError,), {}),
    InvalidDigestError: (_raise_digest, (InvalidInputError,), {"text": "md5:0"}),
    InvalidReferenceError: (_raise_reference, (InvalidInputError,), {"text": "UPPER"}),
    InvalidPlatformError: (_raise_platform, (InvalidInputError,), {"text": "linux"}),
    InvalidDocumentError: (_raise_document, (ValueError,), {"media_type": OCI_MANIFEST}),
    ContentError: (_raise_content, (), {}),
    DigestMismatchError: (
        lambda: _put(b"x" * len(OTHER.blob), OTHER.descriptor),
        (ContentError,),
        {
            "expected": OTHER.descriptor.digest,
            "actual": Digest.of(b"x" * len(OTHER.blob)),
            "what": "blob",
            "descriptor": OTHER.descriptor,
        },
    ),
    SizeMismatchError: (
        lambda: _put(b"", OTHER.descriptor),
        (ContentError,),
        {"expected": len(OTHER.blob), "actual": 0, "what": f"blob {OTHER.descriptor.digest}"},
    ),
    ContentTooLargeError: (
        lambda: _put(LAYER.blob, layers="decompress", max_plain_size=9),
        (ContentError,),
        {"limit": 9, "what": "the layer"},
    ),
    DecompressionError: (
        lambda: _put(LAYER.blob[:-1], layers="decompress"),
        (ContentError,),
        {"what": "the layer", "media_type": "gzip"},
    ),
    WriterClosedError: (_raise_closed, (WriterError,), {"aborted": True}),
    WriterBrokenError: (
        _raise_broken,
        (WriterError,),
        {"position": 0, "member": f"layer {OTHER.descriptor.digest}"},
    ),
    ImageConflictError: (_raise_conflict, (WriterError,), {"image_id": ONE.image_id}),
    NameConflictError: (
        _raise_name_conflict,
        (WriterError,),
        {"name": "example.com/app:1.0", "image_ids": (ONE.image_id, TWO.image_id)},
    ),
    SinkError: (_raise_sink, (WriterError,), {}),
    ImageNotFoundError: (_from_layout(ONE, "other"), (SourceError, LookupError), {}),
    BlobNotFoundError: (
        _raise_blob_not_found,
        (SourceError, LookupError),
        {"digest": OTHER.descriptor.digest},
    ),
    PlatformNotFoundError: (
        _raise_platform_not_found,
        (SourceError, LookupError),
        {"wanted": LINUX, "available": (Platform("linux", "s390x"),)},
    ),
    UnsupportedImageError: (_from_layout(_artifact(), "latest"), (SourceError,), {}),
    EventLoopError: (_raise_event_loop, (RuntimeError,), {}),
    MissingDependencyError: (_raise_missing, (ImportError,), {"what": "zstd", "extra": "decompress"}),
}
GROUPS = {"DockerSaveError", "SourceError", "WriterError"}  # what others are a kind of
# Raised where these are tested.
ELSEWHERE = (ConfigurationError, InsufficientSpaceError, PartFileError, RegistryError, TransferError)


@pytest.mark.parametrize(
    ("cls", "raiser", "parents", "facts"),
    [(cls, *row) for cls, row in RAISED.items()],
    ids=[cls.__name__ for cls in RAISED],
)
async def test_every_class_is_raised(
    cls: type[DockerSaveError],
    raiser: Any,
    parents: tuple[type, ...],
    facts: dict[str, object],
    tmp_path: Path,
) -> None:
    with pytest.raises(DockerSaveError) as caught:
        await (raiser(tmp_path) if raiser.__code__.co_argcount else raiser())
    error = caught.value
    assert type(error) is cls
    assert all(issubclass(cls, parent) for parent in parents)
    assert {name: getattr(error, name) for name in facts} == facts
    assert str(error)
    assert "\n" not in str(error)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error)
        assert {name: getattr(twin, name) for name in facts} == facts
        assert twin.args == error.args


def test_no_class_is_left_out() -> None:
    left = public_errors() - {cls.__name__ for cls in RAISED} - GROUPS
    assert left == {name for name in left if issubclass(getattr(errors, name), ELSEWHERE)}


async def test_a_descriptor_of_another_type_says_so_and_wastes_no_coroutine() -> None:
    async def content() -> bytes:
        return b"never read"

    writer = ArchiveWriter(ListSink())
    with pytest.raises(TypeError, match="descriptor is a Descriptor or None, not dict"):
        await writer.put_layer(content(), {"digest": "sha256:…"})  # type: ignore[arg-type]
