"""Values that cannot be invalid."""

from __future__ import annotations

import copy
import hashlib
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave.core import model
from aiodockersave.core.errors import InvalidDigestError, InvalidInputError, InvalidPlatformError
from aiodockersave.core.model import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    Descriptor,
    Digest,
    Platform,
    chain_id,
    compression,
    is_layer_media_type,
)

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# ── media types ──


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar", None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar", None),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "zstd"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
        ("application/octet-stream", None),
        ("application/gzip", None),
        ("", None),
    ],
)
def test_compression(media_type: str, expected: str | None) -> None:
    assert compression(media_type) == expected


def test_layer_media_types() -> None:
    names = [name for name in vars(model) if "LAYER" in name and isinstance(getattr(model, name), str)]
    assert len(names) == 11
    assert all(is_layer_media_type(getattr(model, name)) for name in names)
    assert {getattr(model, name) for name in names} == model.LAYER_TYPES
    for other in (OCI_CONFIG, "application/vnd.in-toto+json", "application/vnd.oci.empty.v1+json"):
        assert not is_layer_media_type(other)


# ── digests ──


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"])
def test_digest(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert f"{digest.algorithm}:{digest.encoded}" == text
    assert Digest.parse(digest) is digest
    assert repr(digest) == f"Digest({text[:19]}…)"
    assert pickle.loads(pickle.dumps(digest)) == digest
    assert {digest: 1}[Digest.parse(text)] == 1


BAD_DIGESTS = [
    ("", "there is no ':'"),
    (HEX, "there is no ':'"),
    (":", "the algorithm must be"),
    (f":{HEX}", "the algorithm must be"),
    (f"md5:{HEX[:32]}", "the algorithm must be"),
    (f"sha384:{HEX}{HEX[:32]}", "the algorithm must be"),
    (f"SHA256:{HEX}", "the algorithm must be"),
    (f"sha256 :{HEX}", "the algorithm must be"),
    (f" sha256:{HEX}", "the algorithm must be"),
    (f"sha256+b64:{HEX}", "the algorithm must be"),
    ("sha256:", "the hash has 0 characters, sha256 has 64"),
    (f"sha256:{HEX[:-1]}", "the hash has 63 characters"),
    (f"sha256:{HEX}0", "the hash has 65 characters"),
    (f"sha256:{HEX}{HEX}", "the hash has 128 characters"),
    (f"sha512:{HEX}", "the hash has 64 characters, sha512 has 128"),
    (f"sha256:{HEX.upper()}", "lower case"),
    (f"sha256:{HEX}\n", "other than 0-9 and a-f"),
    (f"sha256:{HEX} ", "other than 0-9 and a-f"),
    (f"sha256:{HEX[:-1]}\n", "other than 0-9 and a-f"),
    (f"sha256:{HEX[:-1]}g", "other than 0-9 and a-f"),
    (f"sha256:{HEX[:-1]}_", "other than 0-9 and a-f"),
    (f"sha256:0x{HEX[2:]}", "other than 0-9 and a-f"),
    (f"sha256:{HEX[:-1]}\u0661", "other than 0-9 and a-f"),
    (f"sha256:{HEX[:-1]}\uff11", "other than 0-9 and a-f"),
    (f"sha256:{HEX[:-1]}\0", "other than 0-9 and a-f"),
    (f"sha256::{HEX[1:]}", "other than 0-9 and a-f"),
    ("sha256:" + "../" * 21 + "x", "other than 0-9 and a-f"),
    ("sha256:/etc/passwd", "other than 0-9 and a-f"),
    ("../../etc/passwd:" + HEX, "the algorithm must be"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_DIGESTS, ids=[ascii(text)[:60] for text, _ in BAD_DIGESTS])
def test_invalid_digest(text: str, reason: str) -> None:
    with pytest.raises(InvalidDigestError) as caught:
        Digest.parse(text)
    assert reason in caught.value.reason
    assert caught.value.text == text
    assert isinstance(caught.value, ValueError)
    if ":" in text:
        algorithm, _, encoded = text.partition(":")
        with pytest.raises(InvalidDigestError):
            Digest(algorithm, encoded)


@pytest.mark.parametrize("value", [None, 5, b"sha256:" + HEX.encode(), ["sha256", HEX]])
def test_digest_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match="a digest is a str or a Digest, not"):
        Digest.parse(value)
    with pytest.raises(TypeError, match="must not be of type"):
        Digest("sha256", value)
    with pytest.raises(TypeError, match="must not be of type"):
        Digest(value, HEX)


def test_digest_is_frozen() -> None:
    with pytest.raises(AttributeError):
        DIGEST.encoded = "x"  # type: ignore[misc]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digest_of(algorithm: str) -> None:
    digest = Digest.of(b"data", algorithm)
    assert digest.encoded == hashlib.new(algorithm, b"data").hexdigest()
    hasher = digest.hasher()
    hasher.update(b"data")
    assert Digest(hasher.name, hasher.hexdigest()) == digest


def test_digest_of_another_algorithm() -> None:
    assert str(Digest.of(b"")) == f"sha256:{EMPTY}"
    with pytest.raises(InvalidDigestError, match="must be sha256 or sha512"):
        Digest.of(b"", "md5")


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_digests_are_ordered_as_text(one: bytes, other: bytes) -> None:
    assert (Digest.of(one) < Digest.of(other)) == (str(Digest.of(one)) < str(Digest.of(other)))
    assert Digest.parse(str(Digest.of(one))) == Digest.of(one)


def test_chain_id() -> None:
    """The recursion of the specification, with its own words."""
    a, b, c = (Digest.of(text) for text in (b"a", b"b", b"c"))
    ab = Digest.of(f"{a} {b}".encode())
    assert chain_id([a]) == a
    assert chain_id((a, b)) == ab
    assert chain_id([a, b, c]) == Digest.of(f"{ab} {c}".encode())
    long = Digest.of(b"a", "sha512")
    assert chain_id([long, long]) == Digest.of(f"{long} {long}".encode())
    with pytest.raises(InvalidInputError, match="without layers"):
        chain_id([])


# ── platforms ──


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm64/9.0", "linux/arm64/v9"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/aarch64/v8", "linux/arm64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("Linux/AMD64", "linux/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows/amd64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64"),
        ("linux/riscv64/rva23", "linux/riscv64/rva23"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("wasip1/wasm", "wasip1/wasm"),
        ("unknown/unknown", "unknown/unknown"),
        ("windows(10.0.20348)/amd64", "windows(10.0.20348)/amd64"),
        ("Windows/AMD64:10.0.20348.2031", "windows(10.0.20348.2031)/amd64"),
        ("windows/arm/v7:10.0.1", "windows(10.0.1)/arm/v7"),
    ],
)
def test_platform(text: str, normal: str) -> None:
    platform = Platform.parse(text)
    assert str(platform) == normal
    assert platform == Platform.parse(normal)
    assert hash(platform) == hash(Platform.parse(normal))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "linux",
        "arm64",
        "linux/",
        "/amd64",
        "linux//v7",
        "linux/arm/",
        "linux/arm/v7/x",
        "linux/am d64",
        "linux/amd64\n",
        "linux/amd64 ",
        "linux/ämd64",
        "linux/*",
        "linux\x1b/amd64",
        "linux/arm/v7\u0661",
        "windows(10.0)/amd64:10.0",
        "windows()/amd64",
        "windows(10.0/amd64",
        "windows/amd64:",
        "windows/amd64:1:2",
        "(10.0)/amd64",
    ],
)
def test_invalid_platform(text: str) -> None:
    with pytest.raises(InvalidPlatformError) as caught:
        Platform.parse(text)
    assert caught.value.text == text
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "parts", [(None, "amd64"), ("linux", 1), ("linux", "arm", 7), ("linux", "arm", "", None)]
)
def test_platform_of_wrong_types(parts: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="must not be of type"):
        Platform(*parts)


def test_platform_text_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="a platform is a str, not NoneType"):
        Platform.parse(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parts", [("", "amd64"), ("linux", ""), ("linux", "arm", "\n"), ("linux", "arm", "", "1 2")]
)
def test_platform_parts_are_checked(parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidPlatformError, match="each part is made of"):
        Platform(*parts)


# ── descriptors ──


def test_descriptor() -> None:
    one = Descriptor(
        OCI_LAYER_GZIP, DIGEST, 5, Platform("linux", "arm64"), {"a": "b"}, ("https://example.com",)
    )
    same = Descriptor(
        OCI_LAYER_GZIP, DIGEST, 5, Platform("linux", "arm64"), {"a": "b"}, ("https://example.com",)
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != Descriptor(OCI_LAYER_GZIP, DIGEST, 5)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one


def test_descriptor_takes_a_copy() -> None:
    annotations = {"a": "b"}
    descriptor = Descriptor(OCI_LAYER_GZIP, DIGEST, 5, annotations=annotations, urls=["x"])  # type: ignore[arg-type]
    annotations["a"] = "c"
    assert descriptor.annotations == {"a": "b"}
    assert descriptor.urls == ("x",)
    assert Descriptor(OCI_LAYER_GZIP, DIGEST, None).annotations == {}


@pytest.mark.parametrize("size", [None, 0, 1, 2**63 - 1])
def test_descriptor_size(size: int | None) -> None:
    assert Descriptor(OCI_LAYER_GZIP, DIGEST, size).size == size


@pytest.mark.parametrize("size", [-1, 2**63, -(2**63), 10**50])
def test_descriptor_of_an_impossible_size(size: int) -> None:
    with pytest.raises(InvalidInputError, match="negative or has more than 63 bits"):
        Descriptor(OCI_LAYER_GZIP, DIGEST, size)


@pytest.mark.parametrize("media_type", ["", "a\nb", "a\x1b", "ä"])
def test_descriptor_of_an_impossible_media_type(media_type: str) -> None:
    with pytest.raises(InvalidInputError, match="not a media type"):
        Descriptor(media_type, DIGEST, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        (None, DIGEST, 1),
        (OCI_LAYER_GZIP, str(DIGEST), 1),
        (OCI_LAYER_GZIP, DIGEST, True),
        (OCI_LAYER_GZIP, DIGEST, 1.0),
        (OCI_LAYER_GZIP, DIGEST, "1"),
        (OCI_LAYER_GZIP, DIGEST, 1, "linux/amd64"),
        (OCI_LAYER_GZIP, DIGEST, 1, None, None),
        (OCI_LAYER_GZIP, DIGEST, 1, None, {}, "https://example.com"),
    ],
)
def test_descriptor_of_wrong_types(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="must not be of type"):
        Descriptor(*arguments)
