"""Images out of registries: references, documents that are accepted, and the requests that are sent."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from aiodockersave import (
    AuthenticationError,
    BlobNotFoundError,
    ContentTooLargeError,
    Descriptor,
    Digest,
    DigestMismatchError,
    DockerSaveError,
    ImageIndex,
    ImageManifest,
    ImageNotFoundError,
    ImageRequest,
    InvalidDocumentError,
    InvalidInputError,
    InvalidReferenceError,
    Platform,
    PlatformNotFoundError,
    RegistryError,
    RegistrySource,
    Source,
    TransferError,
    UnsupportedImageError,
    save,
)
from aiodockersave.core.model import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
)
from aiodockersave.core.reference import Reference
from aiodockersave.sources.credentials import StaticCredentials
from aiodockersave.sources.registry import Retries
from aiodockersave.sources.registry.cache import Kept
from aiodockersave.sources.registry.manifests import Stated, read_manifest
from tests.support.faulty_registry import (
    PASSWORD,
    USER,
    Answer,
    Auth,
    Fault,
    FaultyRegistry,
    digest_header,
    label,
    no_length,
    redirect,
    refuse,
)
from tests.support.images import Image, make_image, make_layer, to_document, to_json

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
IMAGE = make_image(make_layer({"a": b"a"}), make_layer({"b": b"b"}))
OTHER = make_image(make_layer({"c": b"c"}))


async def no_sleep(seconds: float) -> None:
    """Replace sleep: return at once."""


Build = Callable[..., Awaitable[tuple[FaultyRegistry, RegistrySource]]]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Start a registry; make a source for it."""
    async with AsyncExitStack() as stack:

        async def build(
            images: dict[str, Image] | None = None, *faults: Fault, auth: Auth = "none", **options: Any
        ) -> tuple[FaultyRegistry, RegistrySource]:
            registry = FaultyRegistry({"team/app:1": IMAGE} if images is None else images, faults, auth=auth)
            await stack.enter_async_context(registry)
            options.setdefault("plain_http", True)
            source = await stack.enter_async_context(RegistrySource(sleep=no_sleep, **options))
            return registry, source

        yield build


def paths(registry: FaultyRegistry) -> list[str]:
    """Return the paths of all requests, without their common beginning."""
    return [ask.path.removeprefix("/v2/team/app/") for ask in registry.asks]


def says(kind: str = "manifest", **headers: str | None) -> Fault:
    """Answer with other headers."""
    return Fault("headers", lambda _, answer: answer.saying(**headers), kinds=(kind,))  # type: ignore[arg-type]


def test_it_is_a_source() -> None:
    assert isinstance(RegistrySource(), Source)


# ── references ──


@pytest.mark.parametrize(
    ("suffix", "asked", "tags"),
    [
        (":1", "manifests/1", [":1"]),
        ("", "manifests/latest", [":latest"]),
        ("@{digest}", "manifests/{digest}", []),
        (":any@{digest}", "manifests/{digest}", [":any"]),
    ],
)
async def test_references(build: Build, suffix: str, asked: str, tags: list[str]) -> None:
    registry, source = await build({"team/app:1": IMAGE, "team/app:latest": IMAGE})
    digest = IMAGE.manifest.digest
    name = f"{registry.address}/team/app"
    image = await source.resolve(f"{name}{suffix.format(digest=digest)}", AMD64)
    assert image.reference == f"{name}{suffix.format(digest=digest)}"
    assert image.manifest == IMAGE.manifest
    assert image.config == IMAGE.config
    assert image.default_tags == tuple(f"{name}{tag}" for tag in tags)
    assert paths(registry) == [asked.format(digest=digest), f"blobs/{IMAGE.image_id}"]


@pytest.mark.parametrize("reference", ["", "app/UPPER", "docker://alpine", "alpine@sha256:abc", "a b"])
async def test_invalid_references(build: Build, reference: str) -> None:
    registry, source = await build()
    with pytest.raises(InvalidReferenceError):
        await source.resolve(reference, AMD64)
    assert registry.asks == []


async def test_docker_hub_is_asked_at_its_real_address(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultyRegistry({"library/alpine:3.20": IMAGE}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.here.url)
        _, source = await build()
        image = await source.resolve("alpine:3.20", AMD64)
    assert image.default_tags == ("docker.io/library/alpine:3.20",)
    assert [ask.headers["Host"] for ask in proxy.asks] == ["registry-1.docker.io"] * 2


async def test_loopback_is_not_asked_through_a_proxy(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    registry, source = await build(plain_http=False)
    assert (await source.resolve(f"{registry.address}/team/app:1", AMD64)).config == IMAGE.config


async def test_all_kinds_of_manifests_are_accepted(build: Build) -> None:
    registry, source = await build()
    await source.resolve(f"{registry.address}/team/app:1", AMD64)
    accepted = registry.asks[0].headers["Accept"].split(", ")
    assert {OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST} < set(accepted)
    assert len(accepted) == 6


# ── what is not there ──


@pytest.mark.parametrize(
    ("faults", "error", "message"),
    [
        ([], ImageNotFoundError, "manifest_unknown"),
        ([refuse(404, code="NAME_UNKNOWN").of("manifest")], ImageNotFoundError, "not today"),
        ([refuse(401).of("manifest")], AuthenticationError, "log in, or check the name"),
        ([refuse(403).of("manifest")], AuthenticationError, "status 403"),
        ([refuse(400).of("manifest")], RegistryError, "status 400"),
        ([refuse(500).of("manifest")], TransferError, "after 5 attempts"),
    ],
    ids=["unknown", "no name", "401", "403", "400", "500"],
)
async def test_refusals_of_a_manifest(
    build: Build, faults: list[Fault], error: type[DockerSaveError], message: str
) -> None:
    registry, source = await build({}, *faults)
    if faults:
        faults[0].when = lambda *_: True
    with pytest.raises(error, match=message) as caught:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert f"{registry.address}/team/app:1" in str(caught.value)


async def test_a_config_that_is_not_there(build: Build) -> None:
    registry, source = await build()
    registry.blobs.clear()
    with pytest.raises(BlobNotFoundError, match=registry.address) as caught:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert caught.value.digest == IMAGE.image_id


# ── indexes ──


def index(*children: tuple[Image, Platform | None], **annotations: str) -> bytes:
    manifests = []
    for image, platform in children:
        descriptor = replace(image.manifest.descriptor, platform=platform)
        document = to_document(descriptor, **annotations)
        if platform is not None:
            document["platform"] = {"os": platform.os, "architecture": platform.architecture}
        manifests.append(document)
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


async def test_an_index_is_followed(build: Build) -> None:
    registry, source = await build({"team/app:amd": IMAGE, "team/app:arm": OTHER})
    registry.add_document("team/app:1", index((IMAGE, AMD64), (OTHER, ARM64)), OCI_INDEX)
    name = f"{registry.address}/team/app:1"
    assert (await source.resolve(name, ARM64)).config == OTHER.config
    assert (await source.resolve(name, AMD64)).config == IMAGE.config
    with pytest.raises(PlatformNotFoundError, match="there are: linux/amd64, linux/arm64"):
        await source.resolve(name, Platform("linux", "s390x"))


async def test_an_index_in_an_index(build: Build) -> None:
    registry, source = await build()
    raw = index((IMAGE, AMD64))
    for depth in range(1, 6):
        registry.add_document(f"team/app:{depth}", raw, OCI_INDEX)
        descriptor = Descriptor(OCI_INDEX, Digest.of(raw), len(raw))
        child = to_document(descriptor) | {"platform": {"os": "linux", "architecture": "amd64"}}
        raw = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})
    name = f"{registry.address}/team/app"
    for depth in (1, 2, 3):
        assert (await source.resolve(f"{name}:{depth}", AMD64)).config == IMAGE.config
    with pytest.raises(UnsupportedImageError, match="an index 4 deep"):
        await source.resolve(f"{name}:5", AMD64)


@pytest.mark.parametrize(
    ("media_type", "error", "message"),
    [
        (DOCKER_MANIFEST, InvalidDocumentError, "it is a application/vnd.oci"),
        ("application/vnd.example+json", UnsupportedImageError, "not an image"),
    ],
)
async def test_an_index_that_misnames_a_manifest(
    build: Build, media_type: str, error: type[DockerSaveError], message: str
) -> None:
    registry, source = await build()
    child = to_document(replace(IMAGE.manifest.descriptor, media_type=media_type))
    child["platform"] = {"os": "linux", "architecture": "amd64"}
    registry.add_document("team/app:1", to_json({"schemaVersion": 2, "manifests": [child]}), OCI_INDEX)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(error, match=message):
            await source.resolve(f"{registry.address}/team/app:1", AMD64)


# ── documents ──

RAW = IMAGE.manifest_bytes
PINNED = Descriptor("*/*", Digest.of(RAW), None)
WRONG = "sha256:" + "0" * 64
SCHEMA_1 = b'{"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}'
INDEX = index((IMAGE, AMD64))

SOUND: dict[str, tuple[bytes, Stated, Descriptor | None]] = {
    "all said": (RAW, Stated(OCI_MANIFEST, [str(IMAGE.manifest.digest)]), PINNED),
    "nothing said": (RAW, Stated(), None),
    "parameters": (RAW, Stated(f"{OCI_MANIFEST}; charset=utf-8"), None),
    "upper case": (RAW, Stated(OCI_MANIFEST.upper()), None),
    "vague": (RAW, Stated("application/json"), None),
    "plain text": (RAW, Stated("text/plain; charset=utf-8"), None),
    "SHA-512": (
        RAW,
        Stated(None, [str(Digest.of(RAW, "sha512"))]),
        Descriptor("*/*", Digest.of(RAW, "sha512"), len(RAW)),
    ),
    "said twice": (RAW, Stated(None, [str(IMAGE.manifest.digest)] * 2), None),
    "index": (INDEX, Stated(OCI_INDEX), None),
}


@pytest.mark.parametrize(("raw", "stated", "expected"), SOUND.values(), ids=SOUND)
def test_documents(raw: bytes, stated: Stated, expected: Descriptor | None) -> None:
    document = read_manifest(raw, stated, "manifest x", expected)
    assert document == (ImageIndex.parse(INDEX) if raw is INDEX else IMAGE.manifest)


UNSOUND: dict[str, tuple[bytes, Stated, Descriptor | None, type[DockerSaveError], str]] = {
    "another than pinned": (RAW + b" ", Stated(), PINNED, DigestMismatchError, "manifest x"),
    "pinned, and the header agrees with the body": (
        RAW + b" ",
        Stated(None, [str(Digest.of(RAW + b" "))]),
        PINNED,
        DigestMismatchError,
        "manifest x",
    ),
    "lying header": (RAW, Stated(None, [WRONG]), PINNED, DigestMismatchError, "header Docker-Content-Digest"),
    "one header of two lies": (
        RAW,
        Stated(None, [str(Digest.of(RAW)), WRONG]),
        None,
        DigestMismatchError,
        "manifest x",
    ),
    "short header": (RAW, Stated(None, ["sha256:abc"]), None, InvalidDocumentError, "manifest x"),
    "upper-case header": (
        RAW,
        Stated(None, [str(Digest.of(RAW)).upper()]),
        None,
        InvalidDocumentError,
        "manifest x",
    ),
    "other type": (RAW, Stated(DOCKER_MANIFEST), None, InvalidDocumentError, "manifest x: .*mediaType"),
    "called an index": (RAW, Stated(OCI_INDEX), None, InvalidDocumentError, "manifest x"),
    "a page": (b"<html>", Stated("text/html"), None, InvalidDocumentError, "manifest x: 'text/html' is no"),
    "no JSON": (b"<html>", Stated(), None, InvalidDocumentError, "manifest x"),
    "schema 1 by type": (
        SCHEMA_1,
        Stated("application/vnd.docker.distribution.manifest.v1+prettyjws"),
        None,
        UnsupportedImageError,
        "manifest x cannot be saved: it is of Docker's schema 1",
    ),
    "schema 1 by content": (SCHEMA_1, Stated("application/json"), None, UnsupportedImageError, "schema 1"),
    "both": (
        to_json(json.loads(RAW) | {"manifests": []}),
        Stated(),
        None,
        InvalidDocumentError,
        "both an index and a manifest",
    ),
}


@pytest.mark.parametrize(("raw", "stated", "expected", "error", "message"), UNSOUND.values(), ids=UNSOUND)
def test_documents_that_are_refused(
    raw: bytes, stated: Stated, expected: Descriptor | None, error: type[DockerSaveError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_manifest(raw, stated, "manifest x", expected)


@pytest.mark.parametrize(
    "fault",
    [
        digest_header(None).of("manifest"),
        no_length().of("manifest", "config"),
        says(Content_Type=None),
        says("config", Content_Type="text/html", Docker_Content_Digest=WRONG),
    ],
    ids=["no digest", "no length", "no type", "what is said of a config"],
)
async def test_headers_may_be_missing(build: Build, fault: Fault) -> None:
    registry, source = await build(None, fault)
    assert (await source.resolve(f"{registry.address}/team/app:1", AMD64)).manifest == IMAGE.manifest


@pytest.mark.parametrize("kind", ["manifest", "config"])
async def test_encoded_documents_are_refused(build: Build, kind: Any) -> None:
    registry, source = await build(None, label("gzip").of(kind))
    with pytest.raises(RegistryError, match="Content-Encoding gzip"):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)


@pytest.mark.parametrize("has_length", [True, False])
async def test_documents_are_counted(build: Build, has_length: bool) -> None:
    huge = Answer(body=bytes(4 * 1024 * 1024 + 1), has_length=has_length)
    registry, source = await build(None, Fault("huge", lambda *_: huge, kinds=("manifest",)))
    with pytest.raises(ContentTooLargeError, match=registry.address):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)


def with_manifest(**changes: Any) -> bytes:
    return to_json(json.loads(RAW) | changes)


CONFIG = to_document(IMAGE.manifest.config)
LAYER = to_document(IMAGE.layers[0].descriptor)


@pytest.mark.parametrize(
    ("manifest", "error", "message"),
    [
        (
            with_manifest(config=CONFIG | {"mediaType": "application/vnd.example"}),
            UnsupportedImageError,
            "an artifact",
        ),
        (
            with_manifest(layers=[LAYER | {"mediaType": "application/vnd.in-toto+json"}]),
            UnsupportedImageError,
            "vnd.in-toto",
        ),
        (
            with_manifest(layers=[LAYER | {"mediaType": OCI_LAYER_GZIP + "+encrypted"}]),
            UnsupportedImageError,
            "is encrypted",
        ),
        (with_manifest(config=CONFIG | {"size": 5 << 20}), ContentTooLargeError, "config"),
    ],
    ids=["config", "layer", "encrypted", "huge config"],
)
async def test_artifacts_are_refused(
    build: Build, manifest: bytes, error: type[DockerSaveError], message: str
) -> None:
    registry, source = await build()
    registry.add_document("team/app:1", manifest)
    name = f"{registry.address}/team/app:1"
    with pytest.raises(error, match=message) as caught:
        await source.resolve(name, AMD64)
    assert name in str(caught.value)
    assert str(Digest.of(manifest)) in str(caught.value) or error is ContentTooLargeError
    assert paths(registry) == ["manifests/1"]


# ── what is kept ──


async def test_documents_are_kept_by_their_digest(build: Build) -> None:
    registry, source = await build()
    name = f"{registry.address}/team/app"
    first = await source.resolve(f"{name}:1", AMD64)
    assert await source.resolve(f"{name}@{IMAGE.manifest.digest}", AMD64) == replace(
        first, reference=f"{name}@{IMAGE.manifest.digest}", default_tags=()
    )
    assert len(registry.asks) == 2
    registry.add("team/app:1", OTHER)  # the tag moves
    assert (await source.resolve(f"{name}:1", AMD64)).manifest == OTHER.manifest
    assert paths(registry)[2:] == [
        "manifests/1",  # by HEAD: what is kept may still be right
        f"manifests/{OTHER.manifest.digest}",
        f"blobs/{OTHER.image_id}",
    ]


async def read(source: RegistrySource, descriptor: Descriptor) -> bytes:
    async with source.open_blob(descriptor) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_blob_is_looked_for_wherever_it_may_be(build: Build) -> None:
    one, source = await build()
    two, _ = await build()
    layer = IMAGE.layers[0]
    for registry in (one, two):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    del one.blobs[str(layer.descriptor.digest)]
    assert await read(source, layer.descriptor) == layer.blob
    two.blobs.clear()
    with pytest.raises(BlobNotFoundError, match=two.address):
        await read(source, layer.descriptor)


# ── what is kept is its repository's ──


def only_in(repository: str, *digests: Digest) -> Fault:
    """Serve these documents and blobs in one repository alone."""
    wanted = tuple(map(str, digests))
    return Fault(
        f"only in {repository}",
        lambda *_: refuse(404).change(*_),
        when=lambda ask, _: (
            not ask.path.startswith(f"/v2/{repository}/") and ask.path.rpartition("/")[2] in wanted
        ),
        kinds=("manifest", "config", "blob"),
    )


def names_config_of(image: Image) -> bytes:
    """A manifest with the config of an image, and no layers."""
    document = json.loads(image.manifest_bytes)
    return to_json(document | {"layers": [], "annotations": {"by": "a stranger"}})


def names_layers_of(image: Image, *, twice: bool = False) -> Image:
    """Another image, with the layers of an image."""
    config = to_json(json.loads(image.config) | {"author": "a stranger"})
    document = json.loads(image.manifest_bytes)
    document["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
    document["layers"] *= 1 + twice
    return replace(image, config=config, manifest_bytes=to_json(document), layers=())


@pytest.mark.parametrize("what", ["manifest", "index", "index in an index", "config"])
async def test_a_digest_is_no_key_to_another_repository(build: Build, what: str) -> None:
    """A reader of one repository must not get a document of another that somebody asked for before."""
    index = to_json({"schemaVersion": 2, "manifests": [to_document(IMAGE.manifest.descriptor)]})
    outer = to_json(
        {"schemaVersion": 2, "manifests": [to_document(Descriptor(OCI_INDEX, Digest.of(index), len(index)))]}
    )
    secret = (IMAGE.manifest.digest, Digest.of(index), Digest.of(outer), IMAGE.image_id)
    registry, source = await build({}, only_in("team/private", *secret))
    registry.add("team/private:1", IMAGE)
    registry.add_document("team/private:index", index, OCI_INDEX)
    registry.add_document("team/private:outer", outer, OCI_INDEX)
    for tag in ("1", "index", "outer"):
        await source.resolve(f"{registry.address}/team/private:{tag}", AMD64)
    wanted = {
        "manifest": f"@{IMAGE.manifest.digest}",
        "index": f"@{Digest.of(index)}",
        "index in an index": ":1",
        "config": ":1",
    }[what]
    if what == "config":
        registry.add_document("team/public:1", names_config_of(IMAGE))
    if what == "index in an index":
        registry.add_document("team/public:1", outer.replace(b"{", b"{ ", 1), OCI_INDEX)
    with pytest.raises(BlobNotFoundError if what == "config" else ImageNotFoundError):
        await source.resolve(f"{registry.address}/team/public{wanted}", AMD64)
    registry.asks.clear()
    await source.resolve(f"{registry.address}/team/private@{IMAGE.manifest.digest}", AMD64)
    assert registry.asks == [], "there it is still kept"


async def test_another_registry_is_not_answered_for(build: Build) -> None:
    one, source = await build()
    two, _ = await build({})
    await source.resolve(f"{one.address}/team/app:1", AMD64)
    with pytest.raises(ImageNotFoundError, match=two.address):
        await source.resolve(f"{two.address}/team/app@{IMAGE.manifest.digest}", AMD64)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("is_first", [False, True], ids=["resolved later", "resolved first"])
async def test_a_manifest_that_names_the_layers_of_another_repository_does_not_get_them(
    build: Build, tmp_path: Path, is_first: bool, twice: bool
) -> None:
    """The layer is looked for in the manifest's repository alone, and readers of the other repository still get it."""
    secret = [layer.descriptor.digest for layer in IMAGE.layers]
    strange = names_layers_of(IMAGE, twice=twice)
    registry, source = await build({}, only_in("team/private", *secret))
    registry.add("team/private:1", IMAGE)
    registry.add("team/public:1", strange)
    names = [f"{registry.address}/team/{name}:1" for name in ("private", "public")]
    private, public = [await source.resolve(name, AMD64) for name in (names[::-1] if is_first else names)][
        :: -1 if is_first else 1
    ]
    for layer in public.manifest.layers:
        with pytest.raises(BlobNotFoundError, match="team/public"):
            await read(source, layer)
    assert await read(source, private.manifest.layers[0]) == IMAGE.layers[0].blob
    if not twice:  # else its config does not fit, which is said first
        with pytest.raises(BlobNotFoundError, match="team/public"):
            await save([ImageRequest(source, names[1])], tmp_path / "app.tar", platform=AMD64, fsync=False)
    report = await save([ImageRequest(source, names[0])], tmp_path / "app.tar", platform=AMD64, fsync=False)
    assert report.size > 0


@pytest.mark.parametrize("other", ["1", "2"], ids=["the same, read twice", "another"])
async def test_layers_in_two_manifests_of_a_repository_keep_their_origin(build: Build, other: str) -> None:
    """The second manifest must not erase the origin that the first one gave to its layers."""
    secret = [layer.descriptor.digest for layer in IMAGE.layers]
    registry, source = await build({}, only_in("team/private", *secret))
    registry.add("team/private:1", IMAGE)
    registry.add("team/public:1", names_layers_of(IMAGE))
    registry.add("team/public:2", names_layers_of(IMAGE, twice=True))
    # At once, so that nothing is kept yet.
    _, *public = await asyncio.gather(
        *(
            source.resolve(f"{registry.address}/team/{name}", AMD64)
            for name in ("private:1", "public:1", f"public:{other}")
        )
    )
    for image in public:
        for layer in image.manifest.layers:
            with pytest.raises(BlobNotFoundError, match="team/public"):
                await read(source, layer)


def test_where_a_layer_is_from_is_known_as_long_as_its_descriptor_lives() -> None:
    kept = Kept()
    repositories = [Reference("registry.example", f"team/{number}") for number in range(100)]
    read = [(each, ImageManifest.parse(IMAGE.manifest_bytes)) for each in repositories]
    for repository, manifest in read:
        kept.put_layers(repository, manifest)
    for repository, manifest in read:
        assert [kept.repositories(layer) for layer in manifest.layers] == [[repository]] * len(
            manifest.layers
        )
    del read[:], manifest
    gc.collect()
    assert len(kept._origins) == len(IMAGE.layers), "those that were put last are keys of what is kept"


def test_a_stale_entry_does_not_match_a_new_object_with_the_same_id() -> None:
    """An interrupt may keep the entry of a dead object, and a new object may get its ``id``."""
    kept = Kept()
    private, public = (Reference("registry.example", f"team/{name}") for name in ("private", "public"))
    kept.put_layers(private, ImageManifest.parse(IMAGE.manifest_bytes))
    gc.collect()
    manifest = ImageManifest.parse(IMAGE.manifest_bytes)
    dead: Any = lambda: None  # noqa: E731 - as a weak reference is whose object is gone
    for layer in manifest.layers:
        kept._origins[id(layer.digest)] = dead, private
    kept.put_layers(public, manifest)
    assert [kept.repositories(layer) for layer in manifest.layers] == [[public]] * len(manifest.layers)
    for layer in manifest.layers:
        kept._origins[id(layer.digest)] = dead, private
        assert kept.repositories(layer) == [private, public], "as of a descriptor that the caller has made"


def test_the_cache_is_freed_with_its_source() -> None:
    """It is freed at once, without the garbage collector."""
    kept = Kept()
    manifest = ImageManifest.parse(IMAGE.manifest_bytes)
    kept.put_layers(Reference("registry.example", "team/app"), manifest)
    gone = weakref.ref(kept)
    gc.disable()
    try:
        del kept
        assert gone() is None
    finally:
        gc.enable()
    del manifest  # whose entries are gone already


async def test_foreign_layers_are_not_fetched_from_their_urls(build: Build) -> None:
    registry, source = await build()
    url = f"http://{registry.other.address}/layer?sig=secret"
    foreign = LAYER | {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "urls": [url],
    }
    registry.add_document("team/app:1", with_manifest(layers=[foreign, *json.loads(RAW)["layers"][1:]]))
    image = await source.resolve(f"{registry.address}/team/app:1", AMD64)
    layer = image.manifest.layers[0]
    assert await read(source, layer) == IMAGE.layers[0].blob  # the registry has it after all
    del registry.blobs[str(layer.digest)]
    with pytest.raises(UnsupportedImageError, match="foreign layer") as caught:
        await read(source, layer)
    assert f"http://{registry.other.address}/layer," in str(caught.value)
    assert "secret" not in str(caught.value)
    assert registry.other.asks == []


# ── schemes ──


async def secure_registry(stack: AsyncExitStack, folder: Path) -> tuple[FaultyRegistry, Path]:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = folder / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    registry = FaultyRegistry({"team/app:1": IMAGE})
    await registry.start(context)
    stack.push_async_callback(registry.stop)
    return registry, ca_file


async def test_https_where_there_is_an_authority(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry, ca_file = await secure_registry(stack, tmp_path)
        name = f"{registry.address}/team/app:1"
        source = await stack.enter_async_context(RegistrySource(ca_file=ca_file))
        assert (await source.resolve(name, AMD64)).config == IMAGE.config
        distrusting = await stack.enter_async_context(RegistrySource())
        with pytest.raises(RegistryError, match="certificate is not valid"):
            await distrusting.resolve(name, AMD64)
        assert len(registry.asks) == 2


async def test_a_lent_session_has_its_own_authorities(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry, ca_file = await secure_registry(stack, tmp_path)
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        source = await stack.enter_async_context(RegistrySource(session=session))
        assert (await source.resolve(f"{registry.address}/team/app:1", AMD64)).config == IMAGE.config


async def test_http_on_loopback_where_tls_is_refused(build: Build, tmp_path: Path) -> None:
    registry, source = await build(plain_http=False)
    name = f"{registry.address}/team/app:1"
    assert (await source.resolve(name, AMD64)).config == IMAGE.config
    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    async with RegistrySource(ca_file=ca_file, sleep=no_sleep) as strict:
        with pytest.raises(RegistryError, match="does not speak TLS"):
            await strict.resolve(name, AMD64)


# ── logging in ──


@pytest.mark.parametrize("auth", ["basic", "bearer"])
async def test_logging_in(build: Build, auth: Auth) -> None:
    registry, source = await build(auth=auth, credentials=StaticCredentials(USER, PASSWORD))
    image = await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert await read(source, image.manifest.layers[0]) == IMAGE.layers[0].blob
    refused = 1
    tokens = int(auth == "bearer")
    assert len(registry.asks) == 3 + refused + tokens  # logged in once


@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize("credentials", [StaticCredentials(USER, "wrong horse"), StaticCredentials("", "")])
async def test_wrong_credentials(build: Build, auth: Auth, credentials: StaticCredentials) -> None:
    registry, source = await build(auth=auth, credentials=credentials)
    with pytest.raises(AuthenticationError) as caught:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert "horse" not in str(caught.value)
    assert len(registry.asks) <= 3


async def test_tokens_that_are_never_good_enough(build: Build) -> None:
    registry, source = await build(auth="bearer", credentials=StaticCredentials(USER, PASSWORD))
    registry.token_uses = 0
    with pytest.raises(AuthenticationError):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert len(registry.asks) == 7  # three tokens, each tried once


async def test_another_host_that_asks_for_credentials_gets_none(build: Build) -> None:
    wants = Answer(401).saying(WWW_Authenticate='Basic realm="evil"')
    asks_too = Fault("asks too", lambda *_: wants, when=lambda ask, _: ask.is_elsewhere, kinds=("config",))
    credentials = StaticCredentials(USER, PASSWORD)
    registry, source = await build(
        None, redirect("{elsewhere}{path}").of("config"), asks_too, credentials=credentials
    )
    with pytest.raises(AuthenticationError, match=registry.other.address):
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert len(registry.other.asks) == 1
    assert not [ask for ask in registry.asks if "Authorization" in ask.headers]


# ── mirrors ──


async def test_a_mirror_is_asked_for_digests_only(build: Build) -> None:
    mirror, _ = await build({"hub/team/app:1": IMAGE})
    registry, source = await build(mirrors=[f"{mirror.here.url}/hub/"])
    mirror.add("hub/team/app:1", OTHER)  # says something else of the tag
    image = await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert image.manifest == IMAGE.manifest
    assert await read(source, image.manifest.layers[0]) == IMAGE.layers[0].blob
    assert [(ask.method, ask.path) for ask in registry.asks] == [("HEAD", "/v2/team/app/manifests/1")]
    kinds = [ask.path.partition("sha256")[0].removeprefix("/v2/hub/team/app/") for ask in mirror.asks]
    assert kinds == ["manifests/", "blobs/", "blobs/"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mirror.example.com",
        "ftp://mirror.example.com",
        "https://user:pw@m.example",
        "user:pw@m.example",
        "https://user:pw/pw@m.example",
        "https://user:pw?@m.example",
        "https://m.example/?a=secret",
    ],
)
def test_invalid_mirrors_are_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="no URL of a mirror") as caught:
        RegistrySource(mirrors=[url])
    assert "secret" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_one_mirror_is_a_list_too() -> None:
    with pytest.raises(TypeError, match="list"):
        RegistrySource(mirrors="https://mirror.example.com")


# ── the end ──


async def test_a_closed_source(build: Build) -> None:
    registry, source = await build()
    name = f"{registry.address}/team/app:1"
    await source.resolve(name, AMD64)
    await source.aclose()
    await source.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await source.resolve(name, AMD64)


async def test_retries_are_the_callers(build: Build) -> None:
    registry, source = await build(None, refuse(503).of("manifest"), retries=Retries(attempts=2))
    with pytest.raises(TransferError, match="2 attempts") as caught:
        await source.resolve(f"{registry.address}/team/app:1", AMD64)
    assert isinstance(caught.value.__cause__, RegistryError)
    assert caught.value.__cause__.status == 503
    assert len(registry.asks) == 2


def test_manifests_of_both_kinds_are_told_apart() -> None:
    assert isinstance(read_manifest(INDEX, Stated(), "x"), ImageIndex)
    assert isinstance(read_manifest(RAW, Stated(), "x"), ImageManifest)
