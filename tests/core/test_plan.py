"""Plans: what they refuse, how their segments tile the archive, and what an ETag depends on."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import (
    Descriptor,
    DigestMismatchError,
    ImageConflictError,
    ImageSpec,
    InvalidDocumentError,
    InvalidInputError,
    NameConflictError,
    Plan,
    Platform,
    plan_archive,
)
from aiodockersave.core.model import DOCKER_LAYER_GZIP, OCI_LAYER
from tests.support.images import Image, make_config, make_image, make_layer

GZIP, ZSTD, PLAIN = (
    make_layer({"a": b"a" * 700}),
    make_layer({"b": b"b"}, "zstd"),
    make_layer(b"", None, algorithm="sha512"),
)
TAG = "example.com/app:1.0"


def plan_of(*images: Image) -> Plan:
    return plan_archive(image.spec for image in images)


def spec(*layers: Descriptor, tags: tuple[str, ...] = (TAG,), **attributes: Any) -> ImageSpec:
    """Return an image of these descriptors; the diff IDs are made up."""
    config = make_config([PLAIN.diff_id] * len(layers), **attributes)
    return ImageSpec(config, list(layers), tags)


# ── shape ──


def test_an_empty_plan_is_an_archive_without_images() -> None:
    plan = plan_archive([])
    assert [member.name for member in plan.members] == ["manifest.json", "repositories"]
    assert (plan.size, plan.images) == (4 * 512 + 1024, ())
    assert [segment.size for segment in plan.segments] == [plan.size]


def test_segments_are_known_bytes_and_blobs_in_turn_without_gaps() -> None:
    image = make_image(GZIP, PLAIN, GZIP, ZSTD, repo_tags=[TAG])
    plan = plan_of(image)
    assert [segment.descriptor for segment in plan.segments] == [
        *(None, GZIP.descriptor, None, PLAIN.descriptor),
        *(None, ZSTD.descriptor, None),
    ]
    position = 0
    for segment in plan.segments:
        assert segment.offset == position
        assert segment.data is None or len(segment.data) == segment.size
        position += segment.size
    assert position == plan.size


def test_members_say_where_their_data_are() -> None:
    plan = plan_of(make_image(GZIP, PLAIN))
    gzip, plain, config, *_, last = plan.members
    assert (gzip.offset, gzip.data_offset, gzip.size) == (0, 512, GZIP.descriptor.size)
    assert gzip.digest == GZIP.descriptor.digest
    assert plain.data_offset - plain.offset == 1536, "a sha512 name needs PAX"
    assert (config.offset, config.digest) == (plain.data_offset, make_image(GZIP, PLAIN).image_id)
    assert plan.size == last.data_offset + 512 + 1024


def test_images_are_those_of_manifest_json() -> None:
    image = make_image(GZIP)
    (item,) = plan_of(image.tagged("app"), image.tagged(TAG)).images
    assert item.image_id == image.image_id
    assert item.config == f"{image.image_id.encoded}.json"
    assert item.repo_tags == ("docker.io/library/app:latest", TAG)
    assert item.layers == (f"{GZIP.descriptor.digest.encoded}.tar.gz",)


# ── refusals ──

UNSIZED = replace(GZIP.descriptor, size=None)
CONFLICT = make_config([GZIP.diff_id])
ONE_NAME = [
    *("app", "app", "app:latest", "library/app", "docker.io/app", "docker.io/library/app:latest"),
    "index.docker.io/library/app",
]


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        pytest.param([spec(UNSIZED)], InvalidInputError, r"the size of blob .* is not known", id="no size"),
        pytest.param(
            [spec(GZIP.descriptor, replace(GZIP.descriptor, size=1))],
            InvalidInputError,
            rf"blob {GZIP.descriptor.digest} has two sizes: \d+ bytes in the archive, 1 promised",
            id="two sizes",
        ),
        pytest.param([ImageSpec(b"[", [])], InvalidDocumentError, "not JSON", id="no config"),
        pytest.param(
            [ImageSpec(make_config([], os="linuy"), make_image().manifest)],
            DigestMismatchError,
            "config is not what was promised",
            id="other config",
        ),
        pytest.param(
            [ImageSpec(CONFLICT, [GZIP.descriptor]), ImageSpec(CONFLICT, [ZSTD.descriptor])],
            ImageConflictError,
            "already in the archive with other layers",
            id="other layers",
        ),
        *(
            pytest.param(
                [spec(tags=("b", first)), spec(os="other", tags=(second, "c"))],
                NameConflictError,
                "one name for two images: docker.io/library/app:latest is sha256:.* and sha256:.*; give one of them another",
                id=f"one name, {first} and {second}",
            )
            for first, second in itertools.pairwise(ONE_NAME)
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(
    specs: list[ImageSpec], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_archive(specs)


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="format='tar'"):
        plan_archive([], format="tar")  # type: ignore[arg-type]


def test_a_size_that_is_known_once_is_enough() -> None:
    assert (
        plan_archive([spec(GZIP.descriptor, UNSIZED)]).etag
        == plan_archive([spec(*[GZIP.descriptor] * 2)]).etag
    )


# ── ETags ──

A, B = GZIP.descriptor, ZSTD.descriptor
SECOND = spec(A, os="second", tags=("example.com/second:1.0",))
BASE = [spec(A, B), SECOND]

OTHER_ARCHIVES = {
    "base": BASE,
    "a byte of the config": [spec(A, B, os="linuy"), SECOND],
    "white space in the config": [replace(BASE[0], config=BASE[0].config + b" "), SECOND],
    "a layer's digest": [spec(A, replace(B, digest=PLAIN.diff_id)), SECOND],
    "a layer's size": [spec(A, replace(B, size=B.size and B.size + 1)), SECOND],
    "a layer's size within its padding": [spec(A, replace(B, size=B.size and B.size - 1)), SECOND],
    "a layer's compression": [spec(A, replace(B, media_type=OCI_LAYER)), SECOND],
    "the order of layers": [spec(B, A), SECOND],
    "a layer twice": [spec(A, B, B), SECOND],
    "one layer less": [spec(A), SECOND],
    "a tag": [spec(A, B, tags=("example.com/app:1.1",)), SECOND],
    "another tag too": [spec(A, B, tags=(TAG, "example.com/app:2")), SECOND],
    "the order of tags": [spec(A, B, tags=("example.com/app:2", TAG)), SECOND],
    "no tag": [spec(A, B, tags=()), SECOND],
    "the order of images": [SECOND, BASE[0]],
    "one image less": [BASE[0]],
    "an image more": [*BASE, spec(tags=("example.com/third:1.0",))],
    "an image again with another tag": [*BASE, replace(SECOND, repo_tags=["example.com/app:2"])],
    "nothing at all": [],
}


def test_every_change_of_content_or_tag_changes_the_etag() -> None:
    etags = {name: plan_archive(specs).etag for name, specs in OTHER_ARCHIVES.items()}
    same = [(a, b) for a, b in itertools.combinations(etags, 2) if etags[a] == etags[b]]
    assert same == []
    assert all(len(etag) == 64 and etag == etag.lower() for etag in etags.values())


def test_an_etag_is_the_hash_of_known_bytes_and_of_what_stands_for_blobs() -> None:
    sha256 = hashlib.sha256()
    plan = plan_archive(BASE)
    for segment in plan.segments:
        if segment.data is not None:
            sha256.update(f"bytes {len(segment.data)}\n".encode() + segment.data)
        if segment.descriptor is not None:
            sha256.update(f"blob {segment.descriptor.digest} {segment.descriptor.size}\n".encode())
    assert plan.etag == sha256.hexdigest()


ANNOTATED = Descriptor(
    A.media_type, A.digest, A.size, Platform("linux", "arm64"), {"a": "b"}, ("https://example.com/a",)
)
SAME_ARCHIVE = {
    "again": [*BASE],
    "layers in a tuple": [replace(BASE[0], image=(A, B)), SECOND],
    "annotations, platform and URLs": [spec(ANNOTATED, B), replace(SECOND, image=[ANNOTATED])],
    "another type of the same compression": [spec(replace(A, media_type=DOCKER_LAYER_GZIP), B), SECOND],
    "a tag twice": [spec(A, B, tags=(TAG, TAG)), SECOND],
    "an image twice": [*BASE, SECOND],
}


@pytest.mark.parametrize("specs", SAME_ARCHIVE.values(), ids=SAME_ARCHIVE)
def test_what_is_not_in_the_archive_is_not_in_the_etag(specs: list[ImageSpec]) -> None:
    assert plan_archive(specs).etag == plan_archive(BASE).etag


def test_a_tag_counts_as_it_is_stored() -> None:
    short, long = spec(A, tags=("alpine",)), spec(A, tags=("docker.io/library/alpine:latest",))
    assert plan_archive([short]) == plan_archive([long])


def test_a_manifest_counts_as_its_layers() -> None:
    image = make_image(GZIP, ZSTD, repo_tags=[TAG])
    bare = ImageSpec(image.config, [GZIP.descriptor, ZSTD.descriptor], [TAG])
    assert plan_archive([bare]) == plan_of(image)


ELSEWHERE = """
from tests.core.test_plan import BASE, plan_archive
plan = plan_archive(BASE)
print(plan.etag, plan.size)
"""


@pytest.mark.parametrize("seed", ["0", "1", "4294967295"])
def test_another_process_makes_the_same_plan(seed: str) -> None:
    plan = plan_archive(BASE)
    process = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Pacific/Apia"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stdout.split() == [plan.etag, str(plan.size)]
