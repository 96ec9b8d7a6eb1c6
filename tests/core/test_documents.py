"""Documents that cannot be read in two ways."""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave.core import documents, gojson
from aiodockersave.core.documents import (
    MAX_DOCUMENT_SIZE,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    parse_descriptor,
    parse_document,
)
from aiodockersave.core.errors import ContentTooLargeError, InvalidDocumentError, PlatformNotFoundError
from aiodockersave.core.model import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Platform,
)

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)


# ── descriptors ──

DESCRIPTOR: dict[str, Any] = {"mediaType": OCI_LAYER_GZIP, "digest": str(DIGEST), "size": 5}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, {}),
        ({"platform": None, "annotations": None, "urls": None}, {}),
        ({"unknown": 1, "data": "aGVsbG8="}, {}),
        ({"platform": {"os": "linux", "architecture": "arm", "variant": "6"}}, {"platform": Platform("linux", "arm", "v6")}),
        (
            {"platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0.1", "os.features": ["x"]}},
            {"platform": Platform("windows", "amd64", os_version="10.0.1")},
        ),
        ({"platform": {}}, {}),
        ({"platform": {"os": "", "architecture": ""}}, {}),
        ({"platform": {"os": 1, "architecture": []}}, {}),
        ({"platform": {"os": "linux"}}, {}),
        ({"annotations": {"a": "b", "c": None}}, {"annotations": {"a": "b", "c": ""}}),
        ({"urls": ["https://a", "https://b"]}, {"urls": ("https://a", "https://b")}),
    ],
)  # fmt: skip
def test_parse_descriptor(extra: dict[str, Any], expected: dict[str, Any]) -> None:
    parsed = parse_descriptor(DESCRIPTOR | extra, OCI_MANIFEST)
    assert parsed == Descriptor(OCI_LAYER_GZIP, DIGEST, 5, **expected)


BAD_DESCRIPTORS: list[tuple[Any, str]] = [
    (None, "a descriptor is no JSON object"),
    ([], "a descriptor is no JSON object"),
    ({}, "the field size"),
    (DESCRIPTOR | {"digest": None}, "the field digest is missing or no text"),
    (DESCRIPTOR | {"digest": "sha256:../../x"}, "invalid digest 'sha256:../../x'"),
    (DESCRIPTOR | {"digest": ["x"]}, "the field digest is missing or no text"),
    (DESCRIPTOR | {"mediaType": 1}, "the field mediaType is missing or no text"),
    (DESCRIPTOR | {"mediaType": ""}, "not a media type"),
    (DESCRIPTOR | {"mediaType": "\x1b[31m"}, r"not a media type: '\x1b[31m'"),
    (DESCRIPTOR | {"size": None}, "the field size"),
    (DESCRIPTOR | {"size": True}, "the field size"),
    (DESCRIPTOR | {"size": 5.0}, "the field size"),
    (DESCRIPTOR | {"size": float("inf")}, "the field size"),
    (DESCRIPTOR | {"size": "5"}, "the field size"),
    (DESCRIPTOR | {"size": -1}, "the size is negative"),
    (DESCRIPTOR | {"size": 2**63}, "the size is negative or has more"),
    (DESCRIPTOR | {"annotations": []}, "the field annotations is no object of texts"),
    (DESCRIPTOR | {"annotations": {"a": 1}}, "the field annotations is no object of texts"),
    (DESCRIPTOR | {"urls": "x"}, "the field urls is no list"),
    (DESCRIPTOR | {"urls": [1]}, "the field urls is no list of texts"),
    (DESCRIPTOR | {"platform": "linux/amd64"}, "a platform is no JSON object"),
    (DESCRIPTOR | {"Digest": str(DIGEST)}, "the field digest stands twice, in two spellings"),
    (DESCRIPTOR | {"\u017fize": 5}, "the field size stands twice, in two spellings"),
]


@pytest.mark.parametrize(
    ("obj", "reason"), BAD_DESCRIPTORS, ids=[ascii(obj)[-50:] for obj, _ in BAD_DESCRIPTORS]
)
def test_invalid_descriptor(obj: Any, reason: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        parse_descriptor(obj, DOCKER_MANIFEST)
    assert reason in caught.value.reason
    assert caught.value.media_type == DOCKER_MANIFEST
    assert str(caught.value).isprintable()


# ── manifests ──

CONFIG: dict[str, Any] = {"mediaType": OCI_CONFIG, "digest": str(Digest.of(b"config")), "size": 6}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [DESCRIPTOR, DESCRIPTOR]}
ENTRY: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": str(DIGEST), "size": 5}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [ENTRY]}


def dump(document: Any) -> bytes:
    return json.dumps(document, indent=3).encode()


def test_manifest() -> None:
    raw = dump(MANIFEST | {"mediaType": OCI_MANIFEST, "annotations": {"a": "b"}})
    manifest = ImageManifest.parse(raw)
    assert manifest.raw is raw
    assert manifest.media_type == OCI_MANIFEST
    assert manifest.digest == Digest.of(raw)
    assert manifest.descriptor == Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw))
    assert manifest.config == Descriptor(OCI_CONFIG, Digest.of(b"config"), 6)
    assert manifest.layers == (Descriptor(OCI_LAYER_GZIP, DIGEST, 5),) * 2
    assert manifest.annotations == {"a": "b"}
    assert manifest.artifact_type is None
    assert manifest.subject is None
    assert hash(manifest) == hash(ImageManifest.parse(raw, OCI_MANIFEST))
    assert manifest == pickle.loads(pickle.dumps(manifest))
    assert parse_document(raw) == manifest
    assert len(repr(manifest)) < 1000


@pytest.mark.parametrize(
    ("given", "media_type"),
    [
        ({"mediaType": ""}, "application/octet-stream"),
        ({"mediaType": None}, "application/octet-stream"),
        ({}, "application/octet-stream"),
        ({"MediaType": OCI_CONFIG}, OCI_CONFIG),
        (
            {"MediaType": "application/vnd.cncf.helm.config.v1+json"},
            "application/vnd.cncf.helm.config.v1+json",
        ),
    ],
    ids=str,
)
def test_the_type_of_a_config(given: dict[str, Any], media_type: str) -> None:
    """Some images of 2015 have none; one in another spelling, as Go reads it, is one."""
    config = {name: value for name, value in CONFIG.items() if name != "mediaType"} | given
    assert ImageManifest.parse(dump(MANIFEST | {"config": config})).config.media_type == media_type


@pytest.mark.parametrize("given", [0, False, [], {}])
def test_a_type_of_a_config_that_is_no_text(given: Any) -> None:
    with pytest.raises(InvalidDocumentError, match="mediaType is missing or no text"):
        ImageManifest.parse(dump(MANIFEST | {"config": CONFIG | {"mediaType": given}}))


@pytest.mark.parametrize("given", [{"mediaType": ""}, {"mediaType": None}])
def test_a_layer_has_a_type(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocumentError):
        ImageManifest.parse(dump(MANIFEST | {"layers": [DESCRIPTOR | given]}))


def test_docker_manifest() -> None:
    raw = dump(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": CONFIG | {"mediaType": DOCKER_CONFIG},
            "layers": [DESCRIPTOR | {"mediaType": DOCKER_LAYER_GZIP}],
        }
    )
    assert ImageManifest.parse(raw).media_type == DOCKER_MANIFEST
    assert ImageManifest.parse(raw, DOCKER_MANIFEST).layers[0].media_type == DOCKER_LAYER_GZIP


def test_artifact_manifest() -> None:
    raw = dump(MANIFEST | {"artifactType": "application/x", "subject": ENTRY})
    manifest = ImageManifest.parse(raw)
    assert manifest.artifact_type == "application/x"
    assert manifest.subject == Descriptor(OCI_MANIFEST, DIGEST, 5)


@pytest.mark.parametrize(
    ("document", "layers"),
    [
        (MANIFEST | {"layers": None}, 0),
        (MANIFEST | {"layers": []}, 0),
        (MANIFEST | {"mediaType": "", "annotations": None, "subject": None, "artifactType": None}, 2),
        (MANIFEST | {"mediaType": None}, 2),
        (MANIFEST | {"layers": [DESCRIPTOR] * 10_000}, 10_000),
        ({"SchemaVersion": 2, "Config": CONFIG, "LAYERS": [DESCRIPTOR]}, 1),
        (MANIFEST | {"history": [], "tag": 1, "name": {}}, 2),
    ],
    ids=["null", "empty", "nulls", "no media type", "many", "spelling", "unknown fields"],
)
def test_odd_manifests(document: dict[str, Any], layers: int) -> None:
    manifest = ImageManifest.parse(dump(document))
    assert len(manifest.layers) == layers
    assert manifest.media_type == OCI_MANIFEST
    assert ImageManifest.parse(dump(document), DOCKER_MANIFEST).media_type == DOCKER_MANIFEST


# What is refused whatever it is read as.
BAD_DOCUMENTS: list[tuple[str, Any, str | None, str]] = [
    ("list", [MANIFEST], None, "the document is no JSON object"),
    ("null", None, None, "the document is no JSON object"),
    ("text", "x", None, "the document is no JSON object"),
    ("no version", {"config": CONFIG, "layers": []}, None, "the field schemaVersion is not 2"),
    ("version 3", MANIFEST | {"schemaVersion": 3}, None, "the field schemaVersion is not 2"),
    ("version text", MANIFEST | {"schemaVersion": "2"}, None, "the field schemaVersion is not 2"),
    ("version float", MANIFEST | {"schemaVersion": 2.0}, None, "the field schemaVersion is not 2"),
    ("version null", MANIFEST | {"schemaVersion": None}, None, "the field schemaVersion is not 2"),
    ("schema 1", {"schemaVersion": 1, "fsLayers": []}, None, "Docker's schema 1 is not supported"),
    ("schema 1 in disguise", MANIFEST | {"fsLayers": []}, None, "Docker's schema 1 is not supported"),
    ("both", MANIFEST | INDEX, None, "it is both an index and a manifest"),
    ("both, manifest", MANIFEST | INDEX, OCI_MANIFEST, "it is both an index and a manifest"),
    ("both, index", MANIFEST | INDEX, OCI_INDEX, "it is both an index and a manifest"),
    ("both, null", MANIFEST | {"manifests": None}, None, "it is both an index and a manifest"),
    ("index with a config", INDEX | {"config": None}, None, "it is both an index and a manifest"),
    ("index with layers", INDEX | {"Layers": []}, None, "it is both an index and a manifest"),
    ("manifest says index", MANIFEST | {"mediaType": OCI_INDEX}, None, "does not agree"),
    ("index says manifest", INDEX | {"mediaType": OCI_MANIFEST}, None, "does not agree"),
    ("another type was sent", MANIFEST | {"mediaType": OCI_MANIFEST}, DOCKER_MANIFEST, "does not agree"),
    ("index was sent as manifest", INDEX, OCI_MANIFEST, "does not agree"),
    ("manifest was sent as index", MANIFEST, OCI_INDEX, "does not agree"),
    ("unknown type", MANIFEST | {"mediaType": "application/\x1b[0m"}, None, "does not agree"),
    ("type is a number", MANIFEST | {"mediaType": 0}, None, "does not agree"),
    ("type is a list", MANIFEST | {"mediaType": []}, None, "does not agree"),
    ("unknown type was sent", MANIFEST, "text/\x1bhtml", r"'text/\x1bhtml' is no manifest's or index's"),
    ("config type was sent", MANIFEST, OCI_CONFIG, "is no manifest's or index's"),
    ("two spellings", MANIFEST | {"Layers": []}, None, "the field layers stands twice"),
    ("annotations", MANIFEST | {"annotations": 5}, None, "the field annotations"),
    ("no config", {"schemaVersion": 2, "layers": []}, None, "the field config is missing"),
    ("config null", MANIFEST | {"config": None}, None, "the field config is missing"),
    ("config list", MANIFEST | {"config": []}, None, "a descriptor is no JSON object"),
    ("no layers", {"schemaVersion": 2, "config": CONFIG}, None, "the field layers is missing"),
    ("layers object", MANIFEST | {"layers": {}}, None, "the field layers is no list"),
    ("layers text", MANIFEST | {"layers": "x"}, None, "the field layers is no list"),
    ("layer null", MANIFEST | {"layers": [None]}, None, "a descriptor is no JSON object"),
    ("artifact type", MANIFEST | {"artifactType": 1}, None, "the field artifactType"),
    ("subject", MANIFEST | {"subject": "x"}, None, "a descriptor is no JSON object"),
    ("manifests object", INDEX | {"manifests": {}}, None, "the field manifests is no list"),
    ("manifests of text", INDEX | {"manifests": ["x"]}, None, "a descriptor is no JSON object"),
]


@pytest.mark.parametrize(
    ("document", "media_type", "reason"),
    [row[1:] for row in BAD_DOCUMENTS],
    ids=[row[0] for row in BAD_DOCUMENTS],
)
def test_invalid_document(document: Any, media_type: str | None, reason: str) -> None:
    raw = dump(document)
    with pytest.raises(InvalidDocumentError) as caught:
        parse_document(raw, media_type)
    assert reason in caught.value.reason
    assert str(caught.value).isprintable()
    for read in (ImageManifest.parse, ImageIndex.parse):
        with pytest.raises(InvalidDocumentError):
            read(raw, media_type)


OTHER_NAMES = {
    "config": "conﬁg",
    "digest": "digeﬆ",
    "layers": "layerß",
    "mediaType": "medıaType",
    "size": "ｓize",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_name_that_go_does_not_know_is_not_read(name: str) -> None:
    raw = dump(MANIFEST).replace(f'"{name}"'.encode(), f'"{OTHER_NAMES[name]}"'.encode())
    assert raw != dump(MANIFEST)
    if name == "mediaType":  # of which the document's own may be missing, but not a descriptor's
        raw = raw.replace(f'"{OTHER_NAMES[name]}"'.encode(), b'"mediaType"', 1)
    with pytest.raises(InvalidDocumentError, match=f"the field {name} is"):
        ImageManifest.parse(raw)


@pytest.mark.parametrize(
    ("name", "other"),
    [("digest", "digeſt"), ("layers", "LAYERS"), ("manifests", "manifeﬆs"), ("config", "conﬁg")],
)
def test_a_name_in_two_spellings_stands_twice_where_go_takes_it_so(name: str, other: str) -> None:
    fields = json.loads(dump(MANIFEST))
    where = fields if name != "digest" else fields["layers"][0]
    where[other] = where.get(name, [])
    if gojson.fold(other) == name:
        with pytest.raises(InvalidDocumentError, match=f"the field {name} stands twice, in two spellings"):
            ImageManifest.parse(dump(fields))
    else:
        assert ImageManifest.parse(dump(fields)).layers == ImageManifest.parse(dump(MANIFEST)).layers


def test_a_config_has_no_diff_ids_under_a_name_that_go_does_not_know() -> None:
    assert ImageConfig.parse('{"rootfs":{"diﬀ_ids":["x"]}}'.encode()).diff_ids == ()
    assert ImageConfig.parse('{"rootﬆ":{"diff_ids":["x"]}}'.encode()).diff_ids == ()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "it is not JSON"),
        (b"\xef\xbb\xbf" + dump(MANIFEST), "it is not JSON"),
        (dump(MANIFEST).replace(b'"layers"', b'"layers": [], "layers"'), "the name 'layers' stands twice"),
        (dump(MANIFEST).replace(b'"size"', b'"size": 1, "size"'), "the name 'size' stands twice"),
        (dump(MANIFEST)[:-1] + b', "x": NaN}', "NaN is no value"),
        (dump(MANIFEST)[:-1] + b', "x": "\xff"}', "it is not UTF-8"),
        (dump(MANIFEST)[:-1] + b', "x": ' + b"[" * 100_000, "it is nested too deeply"),
    ],
    ids=["empty", "byte order mark", "name twice", "inner name twice", "NaN", "UTF-8", "deep"],
)
def test_ambiguous_bytes(raw: bytes, reason: str) -> None:
    for read in (ImageManifest.parse, ImageIndex.parse, parse_document):
        with pytest.raises(InvalidDocumentError, match=reason):
            read(raw)


def test_a_size_of_thousands_of_digits() -> None:
    raw = dump(MANIFEST).replace(b'"size": 5', b'"size": ' + b"5" * 5000)
    with pytest.raises(InvalidDocumentError, match="the field size is no whole number"):
        ImageManifest.parse(raw)


def test_manifest_and_index_are_told_apart() -> None:
    with pytest.raises(InvalidDocumentError, match="it is an index, not a manifest"):
        ImageManifest.parse(dump(INDEX))
    with pytest.raises(InvalidDocumentError, match="it is an index, not a manifest"):
        ImageManifest.parse(dump(INDEX), DOCKER_MANIFEST_LIST)
    with pytest.raises(InvalidDocumentError, match="it is a manifest, not an index"):
        ImageIndex.parse(dump(MANIFEST))


@pytest.mark.parametrize("read", [ImageManifest.parse, ImageIndex.parse, parse_document, ImageConfig.parse])
def test_documents_have_a_limit(read: Any) -> None:
    with pytest.raises(ContentTooLargeError) as caught:
        read(b"{" + b" " * MAX_DOCUMENT_SIZE)
    assert caught.value.limit == 4 * 1024 * 1024
    for other in ("{}", bytearray(b"{}"), None):
        with pytest.raises(TypeError, match="a document is bytes"):
            read(other)


def test_a_document_may_have_the_limit() -> None:
    raw = dump(MANIFEST).ljust(MAX_DOCUMENT_SIZE)
    assert ImageManifest.parse(raw).descriptor.size == MAX_DOCUMENT_SIZE
    assert ImageConfig.parse(b"{}".ljust(MAX_DOCUMENT_SIZE)).diff_ids == ()


# ── indexes ──


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_MANIFEST_LIST])
def test_index(media_type: str) -> None:
    raw = dump(INDEX | {"mediaType": media_type, "annotations": {"a": "b"}})
    index = ImageIndex.parse(raw)
    assert index.raw is raw
    assert index.media_type == media_type
    assert index.digest == Digest.of(raw)
    assert index.descriptor == Descriptor(media_type, Digest.of(raw), len(raw))
    assert index.manifests == (Descriptor(OCI_MANIFEST, DIGEST, 5),)
    assert index.annotations == {"a": "b"}
    assert parse_document(raw, media_type) == index
    assert hash(index) == hash(ImageIndex.parse(raw, media_type))


def test_odd_indexes() -> None:
    assert ImageIndex.parse(dump(INDEX)).media_type == OCI_INDEX
    assert ImageIndex.parse(dump(INDEX | {"manifests": None})).manifests == ()


def entry(number: int, platform: str | None, **extra: Any) -> dict[str, Any]:
    digest = {"digest": str(Digest.of(bytes([number])))}
    if platform is None:
        return ENTRY | digest | extra
    parts = dict(zip(("os", "architecture", "variant", "os.version"), platform.split("/"), strict=False))
    return ENTRY | digest | {"platform": parts} | extra


ATTESTATION = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
ARM: list[str | None] = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"]

SELECTED: list[tuple[str, list[str | None], int | None]] = [
    ("linux/amd64", ["linux/arm64", "linux/amd64", "linux/amd64"], 1),
    ("linux/arm64", ["linux/amd64", "linux/arm64/v8"], 1),
    ("linux/arm64/v8", ["linux/amd64", "linux/arm64"], 1),
    ("linux/aarch64", ["linux/arm64/v9", "linux/arm64"], 1),
    ("linux/arm64/v9", ["linux/arm64", "linux/arm64/v9"], 1),
    ("linux/arm64/v9", ["linux/amd64", "linux/arm64"], 1),
    ("linux/arm64", ["linux/arm64/v9"], None),
    ("linux/arm/v7", ARM, 2),
    ("linux/arm", ARM, 2),
    ("linux/arm/v7", ARM[:2], 1),
    ("linux/arm/v7", ARM[:1], 0),
    ("linux/arm/v8", ARM, 2),
    ("linux/arm/v6", ARM, 1),
    ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
    ("linux/arm/v5", ["linux/arm/v7", "linux/arm/v6"], None),
    ("linux/arm/v7", ["linux/arm64", "linux/arm"], 1),
    ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v1"], 1),
    ("linux/amd64/v4", ["linux/amd64", "linux/amd64/v2"], 1),
    ("linux/amd64/v3", ["linux/386", "linux/amd64"], 1),
    ("linux/amd64", ["linux/amd64/v2"], None),
    ("windows/amd64", ["linux/amd64"], None),
    ("windows/amd64", ["windows/amd64//10.0.1", "windows/amd64//10.0.2"], 0),
    ("linux/amd64", [None, "linux/amd64"], 1),
    ("linux/amd64", [None], 0),
    ("linux/amd64", [None, None], None),
    ("linux/amd64", [None, "linux/arm64"], None),
    ("linux/amd64", [None, "unknown/unknown"], 0),
    ("linux/amd64", ["unknown/unknown"], None),
    ("unknown/unknown", ["unknown/unknown", "linux/amd64"], None),
    ("linux/amd64", [], None),
]


@pytest.mark.parametrize(("wanted", "platforms", "expected"), SELECTED)
def test_select(wanted: str, platforms: list[str | None], expected: int | None) -> None:
    entries = [entry(number, platform) for number, platform in enumerate(platforms)]
    index = ImageIndex.parse(dump(INDEX | {"manifests": entries}))
    platform = Platform.parse(wanted)
    if expected is not None:
        assert index.select(platform) == index.manifests[expected]
        return
    with pytest.raises(PlatformNotFoundError) as caught:
        index.select(platform)
    assert caught.value.wanted == platform
    assert Platform("unknown", "unknown") not in caught.value.available
    assert len(caught.value.available) == sum(name not in (None, "unknown/unknown") for name in platforms)


def test_select_by_os_version() -> None:
    entries = [entry(number, f"windows/amd64//10.0.{number}") for number in range(3)]
    index = ImageIndex.parse(dump(INDEX | {"manifests": entries}))
    assert index.select(Platform("windows", "amd64", os_version="10.0.2")) == index.manifests[2]
    assert index.select(Platform("windows", "amd64")) == index.manifests[0]
    with pytest.raises(
        PlatformNotFoundError, match=r"windows\(10\.0\.3\)/amd64; there are: windows\(10\.0\.0\)/amd64, "
    ):
        index.select(Platform("windows", "amd64", os_version="10.0.3"))


def test_select_by_a_part_of_the_version() -> None:
    versions = ("10.0.203.1", "", "10.0.20.7", "10.0.20.9")
    entries = [entry(number, f"windows/amd64//{version}") for number, version in enumerate(versions)]
    index = ImageIndex.parse(dump(INDEX | {"manifests": entries}))
    for version, number in (("10.0.20", 2), ("10.0.20.9", 3), ("10.0.20.7", 2), ("10.0.99", 1), ("", 0)):
        assert index.select(Platform("windows", "amd64", os_version=version)) == index.manifests[number]


def test_entries_without_platform_are_named_by_their_digests() -> None:
    index = ImageIndex.parse(
        dump(INDEX | {"manifests": [entry(0, None), entry(1, "linux/arm64"), entry(2, None)]})
    )
    with pytest.raises(PlatformNotFoundError) as caught:
        index.select(Platform("linux", "amd64"))
    nameless = f"{index.manifests[0].digest}, {index.manifests[2].digest}"
    assert str(caught.value).endswith(
        f"there are: linux/arm64; some say no platform, and can be named by their digests: {nameless}"
    )


def test_attestations_are_no_choice() -> None:
    entries = [entry(0, "linux/amd64", **ATTESTATION), entry(1, None, **ATTESTATION), entry(2, None)]
    index = ImageIndex.parse(dump(INDEX | {"manifests": entries}))
    assert index.select(Platform("linux", "amd64")) == index.manifests[2]


# ── configs ──

NULLS = dict.fromkeys(
    ["architecture", "config", "container", "container_config", "created", "docker_version", "os"], b"null"
)


def test_config() -> None:
    raw = b"""{
        "architecture": "arm", "variant": "v6", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["A=<b>"], "Size": 1E5}, "history": [{"created_by": "x"}],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:%s", "sha512:%s"]}
    }""" % (HEX.encode(), HEX.encode() * 2)  # fmt: skip
    config = ImageConfig.parse(raw)
    assert config.raw is raw
    assert config.digest == config.image_id == Digest.of(raw)
    assert config.platform == Platform("linux", "arm", "v6")
    assert config.diff_ids == (DIGEST, Digest("sha512", HEX * 2))
    assert config.legacy_attributes == NULLS | {
        "architecture": b'"arm"',
        "config": rb'{"Env":["A=\u003cb\u003e"],"Size":1E5}',
        "created": b'"2024-01-01T00:00:00Z"',
        "os": b'"linux"',
    }
    assert list(config.legacy_attributes) == list(NULLS)
    assert hash(config) == hash(ImageConfig.parse(raw))
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("raw", "attributes"),
    [
        (b"null", {}),
        (b"{}", {}),
        (b'{"os":null,"created":0}', {"created": b"0"}),
        (b'{"OS":"x","os":"linux","architecture":"amd64"}', {"os": b'"linux"', "architecture": b'"amd64"'}),
        (rb'{"\u006fs":"a","config":{"x":1,"x":2}}', {"os": b'"a"', "config": b'{"x":1,"x":2}'}),
        (b'{"os":"a","os":null}', {}),
        (b'{"docker_version":"\xff"}', {"docker_version": b'"\xff"'}),
    ],
    ids=ascii,
)
def test_legacy_attributes(raw: bytes, attributes: dict[str, bytes]) -> None:
    config = ImageConfig.parse(raw)
    assert config.legacy_attributes == NULLS | attributes
    assert config.diff_ids == ()
    assert config.image_id == Digest.of(raw)


@pytest.mark.parametrize(
    ("raw", "legacy_id"),
    [
        (b'{"os":"linux"}', "9bda0d27f3fdcb11a487511d9e30cc0a7c0a6a0a952c77dac1d89e96ec9d051c"),
        (
            b'{"os" : "linux", "architecture": "x"}',
            "780b3ca7d4d05690539340e9131972288f9b6bd3925a4efcc4538ee32255b36e",
        ),
    ],
    ids=ascii,
)
def test_legacy_attributes_hash_as_in_go(raw: bytes, legacy_id: str) -> None:
    attributes = ImageConfig.parse(raw).legacy_attributes
    encoded = gojson.encode({**attributes, "layer_id": str(Digest.of(b"layer-one"))})
    assert hashlib.sha256(encoded).hexdigest() == legacy_id


@pytest.mark.parametrize(
    ("document", "platform"),
    [
        ({"os": "linux", "architecture": "arm64", "variant": "v8"}, Platform("linux", "arm64")),
        (
            {"os": "windows", "architecture": "amd64", "os.version": "10"},
            Platform("windows", "amd64", "", "10"),
        ),
        ({"os": "linux"}, None),
        ({"architecture": "amd64"}, None),
        ({"os": "", "architecture": ""}, None),
        ({"os": 1, "architecture": "amd64"}, None),
        ({"os": "linux", "architecture": ["amd64"]}, None),
        ({"os": "linux", "architecture": "amd64", "variant": 8}, None),
        ({"os": "linux", "architecture": "\x1b[31m"}, None),
        ({"os": None, "architecture": {}}, None),
    ],
)
def test_config_platform(document: dict[str, Any], platform: Platform | None) -> None:
    assert ImageConfig.parse(dump(document)).platform == platform


# What a config says (os, architecture, variant), the platforms that it contradicts, and some that it does not.
CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"os": "linux", "architecture": "amd64"}, "linux/arm64 windows/amd64 linux/386", "linux/amd64 linux/amd64/v3"),
    ({"os": "Linux", "architecture": "x86_64"}, "linux/arm64", "linux/amd64 linux/amd64/v2"),
    ({"os": "linux", "architecture": "amd64", "variant": "v3"}, "linux/amd64 linux/amd64/v2", "linux/amd64/v3 linux/amd64/v4"),
    ({"os": "linux", "architecture": "arm64"}, "linux/amd64 linux/arm/v7", "linux/arm64 linux/arm64/v8 linux/arm64/v9"),
    ({"os": "linux", "architecture": "arm64", "variant": "v8"}, "linux/s390x", "linux/arm64 linux/aarch64"),
    ({"os": "linux", "architecture": "arm64", "variant": "v9"}, "linux/arm64", "linux/arm64/v9"),
    ({"os": "linux", "architecture": "arm", "variant": "v6"}, "linux/arm/v5 linux/arm64", "linux/arm/v6 linux/arm/v7 linux/arm"),
    ({"os": "linux", "architecture": "arm", "variant": "7"}, "linux/arm/v6", "linux/arm/v7 linux/arm linux/arm/v8"),
    ({"os": "linux", "architecture": "arm"}, "linux/arm64 linux/amd64", "linux/arm/v5 linux/arm/v6 linux/arm/v7"),
    ({"os": "linux", "architecture": "arm", "variant": ""}, "linux/386", "linux/arm/v5 linux/arm/v7"),
    ({"os": "linux", "architecture": "arm", "variant": None}, "freebsd/arm/v7", "linux/arm/v5"),
    ({"os": "windows", "architecture": "amd64", "os.version": "10.0.1"}, "linux/amd64", "windows/amd64"),
    ({"architecture": "amd64"}, "", "linux/arm64 windows/amd64"),
    ({"os": "linux"}, "", "windows/amd64"),
    ({"os": "", "architecture": ""}, "", "linux/arm64"),
    ({"os": 1, "architecture": []}, "", "linux/arm64"),
    ({}, "", "linux/arm64"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "contradicted", "others"), CONTRADICTIONS, ids=lambda value: str(value)[:60]
)
def test_what_a_config_contradicts(document: dict[str, Any], contradicted: str, others: str) -> None:
    config = ImageConfig.parse(dump(document))
    platforms = f"{contradicted} {others}".split()
    found = [name for name in platforms if config.contradicts(Platform.parse(name))]
    assert found == contradicted.split()


def test_versions_of_operating_systems_are_not_compared() -> None:
    config = ImageConfig.parse(dump({"os": "windows", "architecture": "amd64", "os.version": "10.0.1"}))
    assert not config.contradicts(Platform("windows", "amd64", os_version="10.0.2"))


def test_config_platform_in_invalid_utf_8() -> None:
    config = ImageConfig.parse(b'{"os":"\xff","architecture":"amd64"}')
    assert config.platform is None
    assert config.legacy_attributes["os"] == b'"\xff"'


@pytest.mark.parametrize(
    ("rootfs", "diff_ids"),
    [
        (None, ()),
        ({}, ()),
        ({"type": "layers", "diff_ids": None}, ()),
        ({"type": "layers", "diff_ids": []}, ()),
        ({"DIFF_IDS": [str(DIGEST)]}, (DIGEST,)),
    ],
)
def test_diff_ids(rootfs: Any, diff_ids: tuple[Digest, ...]) -> None:
    assert ImageConfig.parse(dump({"rootfs": rootfs})).diff_ids == diff_ids
    assert ImageConfig.parse(dump({"RootFS": rootfs})).diff_ids == diff_ids


def test_the_last_rootfs_counts() -> None:
    raw = b'{"rootfs":{"diff_ids":["x"]},"rootfs":{"diff_ids":["y"],"diff_ids":["sha256:%s"]}}' % HEX.encode()
    assert ImageConfig.parse(raw).diff_ids == (DIGEST,)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "Expecting '{'"),
        (b'"x"', "Expecting '{'"),
        (b"", "it is not JSON"),
        (b"{} x", "it is not JSON"),
        (b'{"rootfs":[]}', "rootfs is no JSON object"),
        (b'{"rootfs":"layers"}', "rootfs is no JSON object"),
        (b'{"rootfs":{"diff_ids":{}}}', "the field diff_ids is no list"),
        (b'{"rootfs":{"diff_ids":[null]}}', "the field diff_ids is no list of texts"),
        (b'{"rootfs":{"diff_ids":["sha256:x"]}}', "invalid digest 'sha256:x'"),
        (b'{"rootfs":{"diff_ids":["\xff"]}}', "it is not UTF-8"),
        (b'{"rootfs":{},"RootFS":{}}', "the field rootfs stands twice"),
        (b'{"rootfs":{"diff_ids":[],"Diff_IDs":[]}}', "the field diff_ids stands twice"),
    ],
    ids=ascii,
)
def test_invalid_config(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        ImageConfig.parse(raw)
    assert reason in caught.value.reason
    assert caught.value.media_type == OCI_CONFIG


# ── any ──

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([2, str(DIGEST), OCI_MANIFEST, OCI_INDEX]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(sorted(documents._FIELDS.values())), inner)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from([MANIFEST, INDEX, {}]),
    st.dictionaries(st.sampled_from(sorted(documents._FIELDS.values())), json_values),
)
def test_any_document_is_read_or_refused(document: dict[str, Any], changes: dict[str, Any]) -> None:
    raw = dump(document | changes)
    for read in (parse_document, ImageManifest.parse, ImageIndex.parse, ImageConfig.parse):
        try:
            parsed: Any = read(raw)
        except InvalidDocumentError:
            continue
        assert parsed.digest == Digest.of(raw)
