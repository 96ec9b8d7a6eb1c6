"""References: upstream's own cases, our messages, and another implementation as the oracle."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiodockersave.core.errors import InvalidDigestError, InvalidInputError, InvalidReferenceError
from aiodockersave.core.model import Digest
from aiodockersave.core.reference import Reference

CASES = json.loads((Path(__file__).parents[1] / "data/reference/cases.json").read_text(encoding="utf-8"))
HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


def short(case: dict[str, str]) -> str:
    return ascii(case["input"])[:60]


# ── reading ──


@pytest.mark.parametrize("case", CASES["valid"], ids=short)
def test_parse(case: dict[str, Any]) -> None:
    reference = Reference.parse(case["input"])
    assert reference.registry == case["registry"]
    assert reference.repository == case["repository"]
    assert reference.tag == case["tag"]
    assert reference.digest == (Digest.parse(case["digest"]) if case["digest"] else None)
    assert reference.name == f"{reference.registry}/{reference.repository}"
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference


@pytest.mark.parametrize("case", CASES["invalid"], ids=short)
def test_refused(case: dict[str, str]) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        Reference.parse(case["input"])
    assert case["reason"] in caught.value.reason
    assert caught.value.text == case["input"]
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, InvalidInputError)
    assert not isinstance(caught.value, InvalidDigestError)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "https://me:s3cret@quay.io/app:1",
        "https://me:s3/cret@quay.io/app",
        "me:s3cret@quay.io/app",
        "me:s3cret@quay\n",
    ],
)
def test_a_login_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidReferenceError, match="…@quay") as caught:
        Reference.parse(text)
    assert "cret" not in f"{caught.value!r} {caught.value.text}"


@pytest.mark.parametrize("text", [None, b"alpine", 7, ["alpine"]])
def test_wrong_type(text: object) -> None:
    with pytest.raises(TypeError, match="a reference is a str"):
        Reference.parse(text)  # type: ignore[arg-type]


# ── parts that were not parsed ──


def test_parts_are_normalised() -> None:
    assert Reference("index.docker.io", "alpine") == Reference.parse("alpine")
    assert hash(Reference("docker.io", "alpine")) == hash(Reference.parse("docker.io/library/alpine"))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("", "a"), "the registry is not HOST or HOST:PORT"),
        (("example", "a"), "has a dot or a port"),
        (("example.com\n", "a"), "the registry is not HOST or HOST:PORT"),
        (("example.com/a", "b"), "the registry is not HOST or HOST:PORT"),
        (("docker.io", ""), "the repository name is missing"),
        (("example.com", "a\n"), "the repository name is made of"),
        (("example.com", "a", "b\n"), "the tag is made of"),
        (("example.com", "a", ""), "the tag is empty"),
        (("example.com", "a", f"sha256:{'0' * 64}"), "a digest stands behind '@', not behind ':'"),
        (("example.com", "a", f"sha512:{'0' * 128}"), "a digest stands behind '@', not behind ':'"),
        (("example.com", "a:b"), "the repository name is made of"),
    ],
)
def test_parts_are_checked(parts: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidReferenceError, match=reason):
        Reference(*parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parts", [(None, "a"), ("docker.io", b"a"), ("docker.io", "a", 1), ("docker.io", "a", None, DIGEST)]
)
def test_parts_of_a_wrong_type(parts: tuple[str, ...]) -> None:
    with pytest.raises(TypeError):
        Reference(*parts)  # type: ignore[arg-type]


def test_replace_is_checked() -> None:
    with pytest.raises(InvalidReferenceError, match="longer than 128"):
        replace(Reference.parse("alpine"), tag="a" * 129)


# ── writing ──


@pytest.mark.parametrize(
    ("text", "familiar"),
    [
        ("docker.io/library/alpine:3.20", "alpine:3.20"),
        ("docker.io/library/alpine", "alpine"),
        (f"index.docker.io/fooo/bar:1@{DIGEST}", f"fooo/bar:1@{DIGEST}"),
        ("library/foo/bar", "library/foo/bar"),
        ("example.com/library/alpine", "example.com/library/alpine"),
        # Shorter would be read as something else.
        ("docker.io/localhost/foo", "docker.io/localhost/foo"),
        ("docker.io/foo.bar/baz", "docker.io/foo.bar/baz"),
        (f"docker.io/library/{HEX}", f"docker.io/library/{HEX}"),
        (f"docker.io/library/{HEX}:1", f"{HEX}:1"),
        ("docker.io/library/foo.bar:1", "foo.bar:1"),
    ],
)
def test_familiar(text: str, familiar: str) -> None:
    assert Reference.parse(text).familiar == familiar
    assert Reference.parse(familiar) == Reference.parse(text)


@pytest.mark.parametrize(
    ("text", "repo_tag"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
    ],
)
def test_repo_tag(text: str, repo_tag: str) -> None:
    assert Reference.parse(text).repo_tag == repo_tag


@pytest.mark.parametrize("text", [f"alpine@{DIGEST}", f"alpine:3.20@{DIGEST}"])
def test_no_repo_tag_of_a_digest(text: str) -> None:
    with pytest.raises(InvalidReferenceError, match="cannot have a digest"):
        _ = Reference.parse(text).repo_tag


def test_default_tag() -> None:
    assert str(Reference.parse("alpine").with_default_tag()) == "docker.io/library/alpine:latest"
    for text in ("alpine:3", f"alpine@{DIGEST}", f"alpine:3@{DIGEST}"):
        reference = Reference.parse(text)
        assert reference.with_default_tag() is reference


# ── any ──

labels = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?", fullmatch=True)
ports = st.one_of(st.just(""), st.integers(0, 99999).map(lambda port: f":{port}"))
registries = st.one_of(
    st.sampled_from(["docker.io", "index.docker.io", "localhost", "localhost:5000", "[::1]:5000", "Host"]),
    st.builds("{}.{}{}".format, labels, labels, ports),
)
components = st.from_regex(r"[a-z0-9]{1,4}(([._]|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True))
digests = st.one_of(st.none(), st.binary(max_size=4).map(Digest.of))
references = st.builds(Reference, registries, repositories, tags, digests)


@given(references)
def test_round_trip(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference


pieces = st.one_of(
    references.map(str),
    references.map(lambda reference: reference.familiar),
    st.lists(
        st.one_of(
            labels,
            components,
            st.sampled_from(
                ["/", ":", "@", ".", "-", "_", "localhost", "docker.io", "[::1]", "A", "é", "\n", HEX]
            ),
            st.just(DIGEST),
        ),
        max_size=7,
    ).map("".join),
)


@given(pieces)
@example("sha256:" + HEX)
def test_same_answer_as_docker_image_py(text: str) -> None:
    oracle = pytest.importorskip("docker_image.reference")
    try:
        expected = oracle.Reference.parse_normalized_named(text)
    except Exception:
        with pytest.raises(InvalidReferenceError):
            Reference.parse(text)
        return
    if any(mark in text for mark in "\n "):  # its expressions end with `$`, which matches before a newline
        return
    reference = Reference.parse(text)
    assert str(reference) == expected.string()
    assert (reference.registry, reference.repository) == expected.split_hostname()
