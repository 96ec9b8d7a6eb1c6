"""Known attacks on registry clients, against a registry source: content and texts.

======  =========================================================================================================
S4      No bytes but those that a digest names reach a committed archive.
S5      One document has one meaning, or is an error.
S6      What is read into memory is bounded by bytes that came, not by what was promised.
S7      A bomb costs a bounded amount of memory, and ends in a named error.
S10     Text of others is one line, escaped, cut, and without secrets.
======  =========================================================================================================

S1 to S3 are in ``test_security.py``.
"""

from __future__ import annotations

import gzip
import json
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from aiodockersave import (
    AuthenticationError,
    ContentError,
    ContentTooLargeError,
    DecompressionError,
    Descriptor,
    Digest,
    DigestMismatchError,
    DockerSaveError,
    InsufficientSpaceError,
    InvalidDocumentError,
    InvalidReferenceError,
    RegistryError,
    SizeMismatchError,
    SourceError,
    UnsupportedImageError,
)
from aiodockersave.core.model import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Layers,
)
from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.registry import RegistrySource, Retries
from tests.support.attempts import (
    DOCUMENTS,
    FOREIGN,
    IMAGE,
    LAYER,
    NAME,
    Keyring,
    attempt,
    challenge,
    change,
    everything,
)
from tests.support.faulty_registry import (
    BASIC,
    PASSWORD,
    SECRETS,
    USER,
    Answer,
    Ask,
    Auth,
    Fault,
    FaultyRegistry,
    Kind,
    digest_header,
    flip,
    redirect,
    refuse,
    resize,
)
from tests.support.images import Image, Layer, archive_of, compress, make_image, to_document, to_json

# ── S4: digest ──

HEX = "0123456789abcdef" * 4
BAD_DIGESTS = {
    "upper case": f"sha256:{HEX.upper()}",
    "algorithm in upper case": f"SHA256:{HEX}",
    "short": f"sha256:{HEX[:-1]}",
    "long": f"sha256:{HEX}0",
    "another algorithm of the same length": f"sha3-256:{HEX}",
    "blake of the same length": f"blake2s:{HEX}",
    "md5": "md5:d41d8cd98f00b204e9800998ecf8427e",
    "sha512 with a short value": f"sha512:{HEX}",
    "no algorithm": HEX,
    "empty": "",
    "a path": "sha256:../../../../etc/passwd",
    "a path in the middle": f"sha256:{HEX[:-10]}/../../x",
    "a query": f"sha256:{HEX}?x=1",
    "a new line": f"sha256:{HEX}\n",
    "white space": f" sha256:{HEX}",
    "wide digits": f"sha256:{HEX[:-1]}１",
    "NUL": f"sha256:{HEX[:-1]}\0",
    "a number": 1,
    "null": None,
}


def with_digest(where: str, digest: object) -> bytes:
    """Return the manifest of the image with another digest for its config or its layer."""
    document = json.loads(IMAGE.manifest_bytes)
    (document["config"] if where == "config" else document["layers"][0])["digest"] = digest
    return to_json(document)


@pytest.mark.parametrize("where", ["config", "layer"])
@pytest.mark.parametrize("digest", BAD_DIGESTS)
async def test_s4_digest_in_a_manifest(tmp_path: Path, digest: str, where: str) -> None:
    """A text that is not a digest never becomes a part of a URL or of a name."""
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        registry.add_document("team/app:1", with_digest(where, BAD_DIGESTS[digest]))
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
        assert isinstance(error, InvalidDocumentError), everything(error)
        assert {ask.kind for ask in registry.asks} <= {"ping", "manifest"}


@pytest.mark.parametrize("digest", [text for text in BAD_DIGESTS.values() if isinstance(text, str)])
async def test_s4_digest_in_a_reference(tmp_path: Path, digest: str) -> None:
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        error = await attempt(f"{registry.address}/team/app@{digest}", tmp_path / "app.tar")
        assert isinstance(error, InvalidReferenceError), everything(error)
        assert registry.asks == []


OTHER_BYTES: dict[str, Fault] = {
    "first bit": flip(0),
    "a bit in the middle": flip(0.5),
    "last bit": flip(1),
    "one byte longer": resize(+1),
    "one byte longer, chunked": resize(+1, has_length=False),
    "one byte shorter": resize(-1),
    "one byte shorter, chunked": resize(-1, has_length=False),
    "empty": change("empty", lambda answer: replace(answer, body=b"")),
    "of the same size": change("zeros", lambda answer: replace(answer, body=bytes(len(answer.body)))),
    "304 without a body": change("304", lambda answer: replace(answer, status=304, body=b"")),
    "204 without a body": change("204", lambda answer: replace(answer, status=204, body=b"")),
    "206 of all, unasked": change("206", lambda answer: replace(answer, status=206)),
    "203": change("203", lambda answer: replace(flip(0).change(None, answer), status=203)),  # type: ignore[arg-type]
}
LIES = {
    "digest of the other bytes": lambda answer: answer.saying(
        Docker_Content_Digest=str(Digest.of(answer.body))
    ),
    "digest that was asked for": lambda answer: answer,
    "no digest": lambda answer: answer.saying(Docker_Content_Digest=None),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("name", OTHER_BYTES)
async def test_s4_digest_of_other_bytes(tmp_path: Path, name: str, kind: Kind, lie: str) -> None:
    """The digest is computed from the bytes, whatever a header says. The image is pinned, so all bytes are known."""
    reference = f"team/app@{IMAGE.manifest.digest}"
    faults = [OTHER_BYTES[name].of(kind).often(None), change(lie, LIES[lie]).of(kind)]
    async with FaultyRegistry({"team/app:1": IMAGE}, faults) as registry:
        error = await attempt(f"{registry.address}/{reference}", tmp_path / "app.tar")
    assert faults[0].fired
    if name == "206 of all, unasked" and error is None:
        assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE.tagged(NAME)])
    else:
        assert type(error) in (DigestMismatchError, SizeMismatchError, RegistryError), everything(error)


@pytest.mark.parametrize("value", [f"sha256:{HEX}", "sha256:x", "", "x" * 10_000, f"sha512:{HEX}{HEX}"])
async def test_s4_digest_of_a_pin_counts_not_the_header(tmp_path: Path, value: str) -> None:
    """A header that lies about the right bytes may be an error, or be ignored; it never decides what is written."""
    fault = digest_header(value).of(*DOCUMENTS)
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault]) as registry:
        for reference in (f"team/app@{IMAGE.manifest.digest}", "team/app:1"):
            error = await attempt(f"{registry.address}/{reference}", tmp_path / "app.tar")
            assert isinstance(error, DigestMismatchError | InvalidDocumentError | RegistryError | None), (
                everything(error)
            )
            if error is None:
                assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE.tagged(NAME)])


# ── S5: kinds ──


def manifest_with(**members: object) -> bytes:
    return to_json(json.loads(IMAGE.manifest_bytes) | members)


def index_of(*documents: bytes, media_type: str = OCI_MANIFEST, **members: object) -> bytes:
    manifests = [
        to_document(Descriptor(media_type, Digest.of(raw), len(raw)))
        | {"platform": {"os": "linux", "architecture": "amd64"}}
        for raw in documents
    ]
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests} | members)


def deep_index(depth: int) -> list[bytes]:
    """Return an index in an index …, the outermost first; an image is innermost."""
    documents = [IMAGE.manifest_bytes]
    for level in range(depth):
        documents.insert(0, index_of(documents[0], media_type=OCI_INDEX if level else OCI_MANIFEST))
    return documents


AS_TEXT = IMAGE.manifest_bytes.decode()
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
BOTH = {"manifests": json.loads(index_of(IMAGE.manifest_bytes))["manifests"]}
KINDS: dict[str, tuple[bytes, str]] = {
    # the bytes, and the Content-Type that they come with
    "manifest and index": (manifest_with(**BOTH), OCI_MANIFEST),
    "manifest and index, called an index": (manifest_with(**BOTH, mediaType=OCI_INDEX), OCI_INDEX),
    "manifest and index, called nothing": (manifest_with(**BOTH, mediaType=None), OCI_INDEX),
    "index with a config": (index_of(IMAGE.manifest_bytes, config={}), OCI_INDEX),
    "index with layers": (index_of(IMAGE.manifest_bytes, layers=[]), OCI_INDEX),
    "manifest as an index": (IMAGE.manifest_bytes, OCI_INDEX),
    "index as a manifest": (index_of(IMAGE.manifest_bytes), OCI_MANIFEST),
    "Docker's type for OCI's": (IMAGE.manifest_bytes, DOCKER_MANIFEST),
    "OCI's type for Docker's": (manifest_with(mediaType=DOCKER_MANIFEST), OCI_MANIFEST),
    "schema 1": (to_json({"schemaVersion": 1, "fsLayers": [], "history": []}), SCHEMA_1),
    "schema 1 with schema 2's type": (
        to_json({"schemaVersion": 1, "fsLayers": [], "history": []}),
        OCI_MANIFEST,
    ),
    "schema 3": (manifest_with(schemaVersion=3), OCI_MANIFEST),
    "layers twice": (AS_TEXT.replace('"layers":', '"layers":[],"layers":').encode(), OCI_MANIFEST),
    "config twice": (AS_TEXT.replace('"config":', '"config":null,"config":').encode(), OCI_MANIFEST),
    "layers in another case": (AS_TEXT.replace('"layers":', '"Layers":[],"layers":').encode(), OCI_MANIFEST),
    "digest twice": (
        AS_TEXT.replace('"digest":', f'"digest":"sha256:{HEX}","digest":', 1).encode(),
        OCI_MANIFEST,
    ),
    "NaN": (AS_TEXT.replace(":2,", ":NaN,", 1).encode(), OCI_MANIFEST),
    "Infinity": (AS_TEXT.replace('"size":', '"size":Infinity,"x":', 1).encode(), OCI_MANIFEST),
    "10⁵ arrays": (
        AS_TEXT.replace('"layers":', '"x":' + "[" * 100_000 + "]" * 100_000 + ',"layers":').encode(),
        OCI_MANIFEST,
    ),
    "10⁵ objects, open": (b'{"a":' * 100_000, OCI_MANIFEST),
    "not UTF-8": (IMAGE.manifest_bytes.replace(b"sha256", b"sha\xff56", 1), OCI_MANIFEST),
    "a byte order mark": (b"\xef\xbb\xbf" + IMAGE.manifest_bytes, OCI_MANIFEST),
    "something behind": (IMAGE.manifest_bytes + b"{}", OCI_MANIFEST),
    "an array": (b"[]", OCI_MANIFEST),
    "null": (b"null", OCI_MANIFEST),
    "nothing": (b"", OCI_MANIFEST),
    "a page": (b"<html></html>", "text/html"),
}


@pytest.mark.parametrize("name", KINDS)
async def test_s5_kinds(tmp_path: Path, name: str) -> None:
    """The same bytes are the same error, by tag and by digest, however often they are asked for."""
    raw, media_type = KINDS[name]
    said = set()
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        digest = registry.add_document("team/app:1", raw, media_type)
        for reference in ("team/app:1", "team/app:1", f"team/app@{digest}"):
            error = await attempt(f"{registry.address}/{reference}", tmp_path / "app.tar")
            assert isinstance(error, InvalidDocumentError | UnsupportedImageError | RegistryError), (
                everything(error)
            )
            said.add(str(error).replace(f"@{digest}", ":1").replace(str(digest), "1"))
        assert {ask.kind for ask in registry.asks} <= {"ping", "manifest"}
    assert len(said) == 1, said


@pytest.mark.parametrize("content_type", [OCI_INDEX, DOCKER_MANIFEST, "text/html", None])
async def test_s5_kinds_not_by_the_header(tmp_path: Path, content_type: str | None) -> None:
    """A header cannot change the kind of a document that states it: the result is the image, or an error."""
    fault = change("Content-Type", lambda answer: answer.saying(Content_Type=content_type)).of("manifest")
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault]) as registry:
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    if error is None:
        assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE.tagged(NAME)])
    else:
        assert isinstance(error, InvalidDocumentError | RegistryError | UnsupportedImageError), everything(
            error
        )


async def test_s5_kinds_index_in_index(tmp_path: Path) -> None:
    documents = deep_index(10)
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        for raw in documents[:-1]:
            registry.add_document("other:1", raw, OCI_INDEX)
        registry.add_document("team/app:1", documents[0], OCI_INDEX)
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
        assert isinstance(error, UnsupportedImageError), everything(error)
        assert len(registry.asks) < 8


async def test_s5_kinds_a_cycle(tmp_path: Path) -> None:
    """An index that leads to itself under another digest does not have that digest."""
    raw = index_of(b"", media_type=OCI_INDEX)
    async with FaultyRegistry() as registry:
        registry.add_document("team/app:1", raw, OCI_INDEX)
        registry.documents[str(Digest.of(b""))] = OCI_INDEX, raw
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    assert isinstance(error, ContentError | InvalidDocumentError), everything(error)


# ── S6: size ──

MEBIBYTE = 1 << 20
MAX_DOCUMENT = 4 * MEBIBYTE


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail where the block has more than this in use at once, the registry's part included."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"


SIZES: dict[str, object] = {
    "negative": -1,
    "very negative": -(2**63),
    "2⁶³": 2**63,
    "2⁶⁴": 2**64,
    "10¹⁰⁰": 10**100,
    "a fraction": 1.5,
    "1e3": 1e3,
    "text": "10",
    "true": True,
    "null": None,
}


@pytest.mark.parametrize("where", ["config", "layer"])
@pytest.mark.parametrize("size", SIZES)
async def test_s6_size_in_a_manifest(tmp_path: Path, size: str, where: str) -> None:
    document = json.loads(IMAGE.manifest_bytes)
    (document["config"] if where == "config" else document["layers"][0])["size"] = SIZES[size]
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        registry.add_document("team/app:1", to_json(document))
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
        assert isinstance(error, InvalidDocumentError), everything(error)
        assert "blob" not in {ask.kind for ask in registry.asks}


@pytest.mark.parametrize("size", [2**62, 2**40, LAYER.descriptor.size or 0 + 1])
@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_s6_size_that_is_only_promised(tmp_path: Path, size: int, layers: Layers) -> None:
    """A stated size of a petabyte costs no memory."""
    size += size == LAYER.descriptor.size
    layer = replace(LAYER, descriptor=replace(LAYER.descriptor, size=size))
    async with FaultyRegistry({"team/app:1": make_image(layer)}) as registry:
        with memory_below(24 * MEBIBYTE):
            error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", layers=layers)
    has_room = size < 2**40  # a plain tar is no smaller than what it was compressed to
    expected = SizeMismatchError | SourceError if has_room else InsufficientSpaceError
    assert isinstance(error, expected), everything(error)


def padded(raw: bytes, size: int) -> bytes:
    """Return the same JSON with this many bytes."""
    return raw + b" " * (size - len(raw))


@pytest.mark.parametrize("kind", ["manifest", "config"])
@pytest.mark.parametrize(
    ("size", "works"), [(MAX_DOCUMENT, True), (MAX_DOCUMENT + 1, False)], ids=["4 MiB", "more"]
)
@pytest.mark.parametrize("has_length", [True, False], ids=["announced", "chunked"])
async def test_s6_size_of_documents(
    tmp_path: Path, kind: str, size: int, works: bool, has_length: bool
) -> None:
    image = IMAGE
    if kind == "config":
        image = make_image(LAYER, config_bytes=padded(IMAGE.config, size))
    else:
        image = replace(IMAGE, manifest_bytes=padded(IMAGE.manifest_bytes, size))
    fault = change("length", lambda answer: replace(answer, has_length=has_length)).of("manifest", "config")
    async with FaultyRegistry({"team/app:1": image}, [fault]) as registry:
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    assert works == (error is None), everything(error)
    assert works or isinstance(error, ContentTooLargeError | InvalidDocumentError), everything(error)


@pytest.mark.parametrize("kind", ["manifest", "config", "blob", "token"])
async def test_s6_size_without_an_end(tmp_path: Path, kind: Kind) -> None:
    """An answer that does not end is closed soon, whatever it is."""
    flood = Fault(
        "flood",
        lambda _, answer: replace(answer, body=b" " * 65536, has_length=False, ending="endless"),
        kinds=(kind,),
    )
    auth: Auth = "bearer" if kind == "token" else "none"
    async with FaultyRegistry({"team/app:1": IMAGE}, [flood], auth=auth) as registry:
        with memory_below(32 * MEBIBYTE):
            error = await attempt(
                f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring()
            )
    assert isinstance(error, ContentTooLargeError | SizeMismatchError | RegistryError), everything(error)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500])
@pytest.mark.parametrize("kind", ["manifest", "blob", "token"])
async def test_s6_size_of_errors(tmp_path: Path, kind: Kind, status: int) -> None:
    """An error's body may go on for ever; the error says its status all the same."""
    flood = Fault(
        "an endless error",
        lambda *_: Answer(status, body=b"x" * 65536, has_length=False, ending="endless"),
        kinds=(kind,),
        when=lambda *_: True,
    )
    auth: Auth = "bearer" if kind == "token" else "none"
    async with FaultyRegistry({"team/app:1": IMAGE}, [flood], auth=auth) as registry:
        with memory_below(32 * MEBIBYTE):
            error = await attempt(
                f"{registry.address}/team/app:1",
                tmp_path / "app.tar",
                credentials=Keyring(),
                retries=Retries(attempts=2),
            )
    assert isinstance(error, SourceError), everything(error)
    assert len(str(error)) < 1000


async def test_s6_size_ten_thousand_layers(tmp_path: Path) -> None:
    """The manifest's size bounds their number. Here all are the same layer, which is fetched once."""
    layers = [LAYER] * 10_000
    async with FaultyRegistry({"team/app:1": make_image(*layers)}) as registry:
        with memory_below(256 * MEBIBYTE):
            error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
        assert error is None, everything(error)
        assert [ask.kind for ask in registry.asks if ask.kind == "blob"] == ["blob"]


@pytest.mark.parametrize(
    "headers",
    [
        CIMultiDict((f"X-{number}", "x" * 1000) for number in range(20_000)),
        CIMultiDict({"X-Long": "x" * 10_000_000}),
        CIMultiDict([("Content-Length", "1"), ("Content-Length", "2")]),
        CIMultiDict(("Docker-Content-Digest", f"sha256:{HEX}") for _ in range(50)),
    ],
    ids=["twenty thousand", "ten megabytes", "two lengths", "fifty digests"],
)
async def test_s6_size_of_headers(tmp_path: Path, headers: CIMultiDict[str]) -> None:
    def flood(_: Ask, answer: Answer) -> Answer:
        flooded = answer.headers.copy()
        flooded.extend(headers)
        return replace(answer, headers=flooded)

    async with FaultyRegistry(
        {"team/app:1": IMAGE}, [Fault("headers", flood, kinds=("manifest",))]
    ) as registry:
        error = await attempt(
            f"{registry.address}/team/app:1", tmp_path / "app.tar", retries=Retries(attempts=2)
        )
    assert isinstance(error, SourceError | ContentError | None), everything(error)
    if error is None:
        assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE.tagged(NAME)])


async def test_s6_size_endless_pages(tmp_path: Path) -> None:
    """No paged list is asked for, since an index has all of its manifests."""
    pages = Fault(
        "a next page",
        lambda ask, answer: answer.saying(Link=f'<{ask.path}?last=x>; rel="next"'),
        kinds=DOCUMENTS,
    )
    async with FaultyRegistry({"team/app:1": IMAGE}, [pages]) as registry:
        assert await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar") is None
        assert len(registry.asks) <= 5


# ── S7: bombs ──

ZEROS = 300 * MEBIBYTE
BOMB_MEMORY = 48 * MEBIBYTE


Blob = tuple[bytes, str]
"""A blob and its media type."""


def empty_zstd_frame_with_window(exponent: int) -> bytes:
    """Write a frame that wants a window of 2 to this power, plus 10 (RFC 8878 § 3.1.1), and has nothing in it."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([exponent << 3]) + b"\x01\x00\x00"


TOO_LARGE: dict[str, Callable[[], Blob]] = {
    "gzip": lambda: (gzip.compress(bytes(ZEROS), mtime=0), OCI_LAYER_GZIP),
    "zstd": lambda: (compress(bytes(ZEROS), "zstd"), OCI_LAYER_ZSTD),
    "many gzip members": lambda: (gzip.compress(bytes(MEBIBYTE), mtime=0) * 300, OCI_LAYER_GZIP),
    "many zstd frames": lambda: (compress(bytes(MEBIBYTE), "zstd") * 300, OCI_LAYER_ZSTD),
}
"""The answers that have more in them than is allowed."""

ODD: dict[str, Callable[[], Blob]] = {
    "empty gzip members": lambda: (gzip.compress(b"", mtime=0) * 100_000, OCI_LAYER_GZIP),
    "empty zstd frames": lambda: (compress(b"", "zstd") * 100_000, OCI_LAYER_ZSTD),
    "skippable zstd frames": lambda: (b"\x50\x2a\x4d\x18\0\0\0\0" * 100_000, OCI_LAYER_ZSTD),
    "a zstd window of 2 GiB": lambda: (empty_zstd_frame_with_window(21), OCI_LAYER_ZSTD),
    "rubbish behind gzip": lambda: (LAYER.blob + b"rubbish" * 99, OCI_LAYER_GZIP),
    "rubbish behind zstd": lambda: (compress(LAYER.plain, "zstd") + b"rubbish" * 99, OCI_LAYER_ZSTD),
    "gzip inside gzip": lambda: (gzip.compress(TOO_LARGE["gzip"]()[0], mtime=0), OCI_LAYER_GZIP),
}
"""The answers that ask for more work than they are worth, or are not what they say."""


def image_of_blob(blob: bytes, media_type: str) -> Image:
    """Make an image of one layer that is what it is; the diff ID is somebody else's."""
    descriptor = Descriptor(media_type, Digest.of(blob), len(blob))
    return make_image(Layer(blob, b"", descriptor, LAYER.diff_id))


@pytest.mark.parametrize("name", [*TOO_LARGE, *ODD])
async def test_s7_bombs(tmp_path: Path, name: str) -> None:
    image = image_of_blob(*(TOO_LARGE | ODD)[name]())
    async with FaultyRegistry({"team/app:1": image}) as registry:
        with memory_below(BOMB_MEMORY):
            error = await attempt(
                f"{registry.address}/team/app:1",
                tmp_path / "app.tar",
                layers="decompress",
                max_plain_size=100 * MEBIBYTE,
            )
    wanted = ContentTooLargeError if name in TOO_LARGE else DecompressionError | DigestMismatchError
    assert isinstance(error, wanted), everything(error)


@pytest.mark.parametrize("name", ["gzip", "zstd", "many gzip members", "empty gzip members"])
async def test_s7_bombs_are_kept_where_layers_are_not_decompressed(tmp_path: Path, name: str) -> None:
    image = image_of_blob(*(TOO_LARGE | ODD)[name]())
    async with FaultyRegistry({"team/app:1": image}) as registry:
        with memory_below(BOMB_MEMORY):
            assert await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar") is None


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-bomb"])
async def test_s7_bombs_by_content_encoding(tmp_path: Path, kind: Kind, encoding: str) -> None:
    """The client undoes no encoding, so none can be a bomb."""
    packed = gzip.compress(bytes(ZEROS), mtime=0)
    fault = Fault(
        encoding,
        lambda _, answer: replace(answer, body=packed).saying(Content_Encoding=encoding),
        kinds=(kind,),
    )
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault]) as registry:
        with memory_below(BOMB_MEMORY):
            error = await attempt(
                f"{registry.address}/team/app@{IMAGE.manifest.digest}", tmp_path / "app.tar"
            )
        assert isinstance(error, ContentError | RegistryError | InvalidDocumentError), everything(error)
        assert {ask.headers.get("Accept-Encoding") for ask in registry.asks} == {"identity"}


# ── S10: text ──

NASTY: dict[str, str] = {
    "ESC": "\x1b]0;owned\x07\x1b[2J",
    "CR LF": "fine\r\nSet-Cookie: x\r\n\r\nINFO all is well",
    "NUL and others": "\0\x01\x08\x7f",
    "C1": "\x9b2J\x85\x90",
    "line separators": "a\u2028b\u2029c\x0bd\x0ce",
    "bidi": "\u202eexe.tar\u202c \u2066x\u2069 \u200f",
    "invisible": "a\u200bb\ufeffc\U000e0041",
    "lone surrogate": "\ud800",
    "a megabyte": "x" * MEBIBYTE,
    "many ESC": "\x1b" * 100_000,
}
TELLTALE: dict[str, str] = {
    "the password": f"you sent {PASSWORD}, {BASIC}, and {BASIC.removeprefix('Basic ')}",
    "a signed URL": "see https://user:hunter2@example.com/x?X-Signature=abcdef123#frag",
}
"""The answers that repeat a secret: the client's, which the server was sent, or the server's own."""

every_text = pytest.mark.parametrize("text", [*NASTY.values(), *TELLTALE.values()], ids=[*NASTY, *TELLTALE])
LONGEST_LINE = 2000


def check_text(text: str) -> None:
    """One line, printable, short, without secrets."""
    assert text.isprintable(), ascii(text[:500])
    assert len(text) < LONGEST_LINE
    assert not [secret for secret in (*SECRETS, "hunter2", "abcdef123") if secret in text], text


def check_error(error: BaseException | None) -> None:
    """Check the text of an error, and that no ``repr`` in its traceback has a secret."""
    assert error is not None
    while error is not None:
        if isinstance(error, DockerSaveError):
            for text in (str(error), *getattr(error, "__notes__", ())):
                check_text(text)
        said = repr(error)
        assert not [secret for secret in (*SECRETS, "hunter2", "abcdef123") if secret in said], said
        error = error.__cause__ or error.__context__


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The lines of any logger, at every level, are checked too."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    for record in caplog.records:
        if record.name.startswith("aiodockersave"):
            check_text(record.getMessage())


def error_body(where: str, text: str) -> bytes:
    """Write the body of an error, with a text in it."""
    if where == "oauth":
        return to_json({"error": text, "error_description": text, "details": text})
    entry = {"code": "DENIED", "message": "no"} | {where: text}
    return to_json({"errors": [entry] * 3})


def latin(text: str) -> str:
    """Return the characters of a text that a header can have."""
    return "".join(c for c in text if ord(c) < 256 and c not in "\r\n\0")[:6000]


@pytest.mark.parametrize("where", ["message", "code", "oauth"])
@pytest.mark.parametrize("kind", ["manifest", "blob", "token"])
@every_text
async def test_s10_text_of_errors(
    tmp_path: Path, logged: pytest.LogCaptureFixture, text: str, kind: Kind, where: str
) -> None:
    answer = Answer(403, body=error_body(where, text))
    # What could be repeated is what was sent.
    fault = Fault(where, lambda *_: answer, kinds=(kind,), when=lambda ask, _: "Authorization" in ask.headers)
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault], auth="bearer") as registry:
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring())
    assert isinstance(error, AuthenticationError), everything(error)
    check_error(error)


@pytest.mark.parametrize("text", [*NASTY.values(), TELLTALE["a signed URL"]], ids=[*NASTY, "a signed URL"])
async def test_s10_text_of_challenges(tmp_path: Path, logged: pytest.LogCaptureFixture, text: str) -> None:
    """The URL of a token server is not shown as it came either."""
    quoted = latin(text).replace('"', "")
    for header in (
        f'Bearer realm="{quoted}"',
        f'Bearer realm="https://{quoted}/"',
        f'Odd realm="{quoted}",{quoted}',
    ):
        async with FaultyRegistry({"team/app:1": IMAGE}, [challenge(header)], auth="bearer") as registry:
            error = await attempt(
                f"{registry.address}/team/app:1", tmp_path / "app.tar", credentials=Keyring()
            )
        check_error(error)


Edit = Callable[[dict[str, Any], str], object]
IN_MANIFEST: dict[str, Edit] = {
    "mediaType": lambda document, text: document.update(mediaType=text),
    "config's type": lambda document, text: document["config"].update(mediaType=text),
    "layer's type": lambda document, text: document["layers"][0].update(mediaType=text),
    "config's digest": lambda document, text: document["config"].update(digest=text),
    "layer's digest": lambda document, text: document["layers"][0].update(digest=text),
    "layer's URLs": lambda document, text: document["layers"][0].update(mediaType=FOREIGN, urls=[text]),
    "path of a layer's URL": lambda document, text: document["layers"][0].update(
        mediaType=FOREIGN, urls=[f"https://example.com/{text}"]
    ),
    "unknown field": lambda document, text: document.update({text: text, "schemaVersion": text}),
}


@pytest.mark.parametrize("where", IN_MANIFEST)
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_s10_text_of_manifests(
    tmp_path: Path, logged: pytest.LogCaptureFixture, text: str, where: str
) -> None:
    document = json.loads(IMAGE.manifest_bytes)
    IN_MANIFEST[where](document, text)
    async with FaultyRegistry({"team/app:1": IMAGE}, [refuse(404)]) as registry:
        registry.add_document("team/app:1", to_json(document))
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    check_error(error)


async def test_s10_text_of_a_foreign_layers_url(tmp_path: Path) -> None:
    """The error names the layer's URL without the parts that give access."""
    document = json.loads(IMAGE.manifest_bytes)
    url = "https://user:hunter2@example.com/x?X-Signature=abcdef123#frag"
    IN_MANIFEST["layer's URLs"](document, url)
    async with FaultyRegistry({"team/app:1": IMAGE}, [refuse(404)]) as registry:
        registry.add_document("team/app:1", to_json(document))
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    check_error(error)
    assert "https://example.com/x" in str(error)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_s10_text_of_platforms(tmp_path: Path, logged: pytest.LogCaptureFixture, text: str) -> None:
    """The platforms of an index, as an error lists them."""
    document = json.loads(index_of(IMAGE.manifest_bytes, IMAGE.manifest_bytes))
    for manifest in document["manifests"]:
        manifest["platform"] = {"os": text, "architecture": text, "variant": text}
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        registry.add_document("team/app:1", to_json(document), OCI_INDEX)
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    check_error(error)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_s10_text_of_annotations_is_not_looked_at(tmp_path: Path, text: str) -> None:
    document = json.loads(IMAGE.manifest_bytes)
    document["annotations"] = document["layers"][0]["annotations"] = {text[:100_000]: text[:100_000]}
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        registry.add_document("team/app:1", to_json(document))
        assert await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar") is None
    assert {path.name for path in tmp_path.iterdir()} == {"app.tar"}


def with_header(name: str, value: str, status: int) -> Fault:
    said = {name.replace("-", "_"): value}
    return change(name, lambda answer: replace(answer, status=status).saying(**said))


@pytest.mark.parametrize("kind", ["manifest", "blob"])
@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Location", 307),
        ("Content-Range", 206),
        ("Content-Range", 416),
        ("Content-Type", 200),
        ("Content-Encoding", 200),
        ("Docker-Content-Digest", 200),
        ("Retry-After", 429),
    ],
)
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_s10_text_of_headers(
    tmp_path: Path, logged: pytest.LogCaptureFixture, text: str, header: str, status: int, kind: Kind
) -> None:
    fault = with_header(header, latin(text), status).of(kind)
    async with FaultyRegistry({"team/app:1": IMAGE}, [fault]) as registry:
        error = await attempt(
            f"{registry.address}/team/app:1", tmp_path / "app.tar", retries=Retries(attempts=2)
        )
    if error is not None:
        check_error(error)


async def test_s10_text_of_a_location(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    """A signed URL gives access to everybody who reads it."""
    url = "http://127.0.0.2:{port}/x?X-Signature=abcdef123&token=token-1"
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        registry.faults = [redirect(url.format(port=registry.other.port))]
        error = await attempt(f"{registry.address}/team/app:1", tmp_path / "app.tar")
    check_error(error)


@pytest.mark.parametrize("part", ["{}", "{}:1", "app:{}", "app@{}", "app@sha256:{}"])
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_s10_text_of_references(tmp_path: Path, text: str, part: str) -> None:
    """No such text becomes a path, a header or a line."""
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        error = await attempt(f"{registry.address}/team/{part.format(text)}", tmp_path / "app.tar")
        assert text.isalnum() or registry.asks == []
    check_error(error)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
async def test_s10_text_of_tags(tmp_path: Path, text: str) -> None:
    async with FaultyRegistry({"team/app:1": IMAGE}) as registry:
        error = await attempt(
            f"{registry.address}/team/app:1", tmp_path / "app.tar", tag=f"example.com/app:{text}"
        )
        assert "blob" not in {ask.kind for ask in registry.asks}
    check_error(error)


def test_s10_text_of_objects_with_secrets() -> None:
    for thing in (
        Credentials(USER, PASSWORD),
        Credentials("", "", identity_token="token-1", registry_token="token-2"),
    ):
        assert not [secret for secret in SECRETS if secret in f"{thing!r} {thing}"]


async def test_s10_text_of_a_source() -> None:
    async with RegistrySource(credentials=Keyring()) as source:
        assert not [secret for secret in SECRETS if secret in repr(source)]
