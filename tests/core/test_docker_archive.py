"""Members, names and JSON of an archive, and the builder that is asked twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aiodockersave import (
    Descriptor,
    Digest,
    ImageConflictError,
    ImageManifest,
    InvalidInputError,
    NameConflictError,
    plan_archive,
)
from aiodockersave.core import model
from aiodockersave.core.docker_archive import Addition, DockerBuilder, Member, read_image
from tests.support.images import Image, archive_of, make_config, make_image, make_layer, read_layout, to_json
from tests.support.rederive import derive_entries, read_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FROZEN = Path(__file__).parents[1] / "data" / "frozen"
ONE, TWO = make_layer(b"layer-one", None), make_layer(b"layer-two", None)
GZIP, ZSTD = make_layer({"a": b"a"}), make_layer({"b": b"b"}, "zstd")
TAG = "example.com/app:1.0"

# ── driving a builder ──


def put(builder: DockerBuilder, image: Image, stored: Sequence[Digest] | None = None) -> Addition:
    """Put an image as a plan does: layers that are missing, then the image; return the image's addition."""
    for layer in image.layers:
        if builder.blob(layer.descriptor.digest) is None:
            put_layer(builder, layer.descriptor)
    addition = prepare(builder, image, stored)
    builder.commit(addition)
    return addition


def put_layer(builder: DockerBuilder, layer: Descriptor) -> None:
    assert layer.size is not None
    builder.commit(builder.prepare_blob(layer.digest, layer.size, layer.media_type))


def prepare(builder: DockerBuilder, image: Image, stored: Sequence[Digest] | None = None) -> Addition:
    checked = read_image(image.config, image.manifest, image.repo_tags)
    return builder.prepare_image(checked, stored or [layer.descriptor.digest for layer in image.layers])


def built(*images: Image) -> DockerBuilder:
    builder = DockerBuilder()
    for image in images:
        put(builder, image)
    return builder


def end_of(builder: DockerBuilder) -> dict[str, bytes]:
    """Return the documents that close an archive."""
    return {member.name: member.data or b"" for member in builder.prepare_end().members}


def documents(*images: Image) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    end = end_of(built(*images))
    return json.loads(end["manifest.json"]), json.loads(end["repositories"])


def members(addition: Addition) -> tuple[Member, ...]:
    return tuple(addition.members)


def names(addition: Addition) -> list[str]:
    return [member.name for member in addition.members]


def top_id(image: Image) -> str:
    """Return the legacy ID of an image's top layer."""
    return names(put(DockerBuilder(), image))[-1].partition("/")[0]


# ── legacy layer IDs: FORMAT of containers/image, recomputed in Go and in Python ──

IDS_ONE = ["9bda0d27f3fdcb11a487511d9e30cc0a7c0a6a0a952c77dac1d89e96ec9d051c"]
ID_FIRST = "9c4143dd5fed32fbf3468033ae294955a2da7b9165c59328078049044a049b96"
IDS_ONE_TWO = [ID_FIRST, "f001e51cadb68055cdf7f1f7e8590a336f05332ed31fe72ac0dfc4285b24c596"]
IDS_ONE_ONE = [ID_FIRST, "7d08cd4b091bb10994e1cbbc982f7e01ff520cfb3c0ce5ad1042a8a4386b067c"]
IDS_ARCHITECTURE = ["780b3ca7d4d05690539340e9131972288f9b6bd3925a4efcc4538ee32255b36e"]
MINIMAL: dict[str, Any] = dict.fromkeys(["created", "architecture", "config", "history"])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(make_image(ONE, **MINIMAL), IDS_ONE, id="one layer"),
        pytest.param(make_image(ONE, TWO, **MINIMAL), IDS_ONE_TWO, id="two layers"),
        pytest.param(make_image(ONE, ONE, **MINIMAL), IDS_ONE_ONE, id="one layer twice"),
        pytest.param(make_image(ONE, **MINIMAL | {"architecture": "x"}), IDS_ARCHITECTURE, id="architecture"),
        pytest.param(make_image(**MINIMAL), [], id="no layers"),
    ],
)
def test_legacy_ids_are_gos(image: Image, expected: list[str]) -> None:
    addition = put(DockerBuilder(), image)
    assert names(addition) == [
        f"{image.image_id.encoded}.json",
        *(f"{legacy}/{name}" for legacy in expected for name in ("layer.tar", "VERSION", "json")),
    ]


def test_legacy_members_are_a_link_a_version_and_json() -> None:
    image = make_image(ONE, TWO, **MINIMAL)
    by_name = {member.name: member for member in put(DockerBuilder(), image).members}
    first, last = IDS_ONE_TWO
    link = by_name[f"{last}/layer.tar"]
    assert link.header[157:257].rstrip(b"\0").decode() == f"../{TWO.diff_id.encoded}.tar"
    assert (link.size, link.data, link.digest) == (0, b"", None)
    assert by_name[f"{last}/VERSION"].data == b"1.0"
    assert by_name[f"{first}/json"].data == f'{{"id":"{first}"}}'.encode()
    assert by_name[f"{first}/json"].size == 73
    assert (
        by_name[f"{last}/json"].data
        == (
            '{"architecture":null,"config":null,"container":null,"container_config":null,"created":null,'
            f'"docker_version":null,"id":"{last}","os":"linux","parent":"{first}"}}'
        ).encode()
    )
    assert by_name[f"{last}/json"].size == 274
    assert members(put(DockerBuilder(), make_image(ONE, **MINIMAL)))[-1].size == 198


def test_only_the_top_layer_has_the_attributes_and_only_the_seven() -> None:
    image = make_image(
        ONE, TWO, variant="v8", docker_version="1", container="c", container_config={"z": 1, "a": 2}
    )
    first, top = (json.loads(member.data or b"") for member in members(put(DockerBuilder(), image))[3::3])
    assert list(first) == ["id"]
    assert set(top) == {*("architecture", "config", "container", "container_config", "created"),
                        *("docker_version", "id", "os", "parent")}  # fmt: skip
    assert list(top["container_config"]) == ["z", "a"], "what is copied keeps its order"


def test_an_image_that_shares_its_base_shares_the_base_s_legacy_members() -> None:
    builder = DockerBuilder()
    first, second = make_image(ONE, TWO, comment="1"), make_image(ONE, GZIP, comment="2")
    assert len(put(builder, first).members) == 1 + 2 * 3
    shared = put(builder, second)
    assert len(shared.members) == 1 + 3
    assert f"{ID_FIRST}/json" not in names(shared)
    assert shared.legacy_ids.isdisjoint({ID_FIRST})


# ── names ──

EXTENSIONS = {
    model.DOCKER_LAYER: ".tar",
    model.DOCKER_LAYER_GZIP: ".tar.gz",
    model.DOCKER_LAYER_ZSTD: ".tar.zst",
    model.DOCKER_FOREIGN_LAYER: ".tar",
    model.DOCKER_FOREIGN_LAYER_GZIP: ".tar.gz",
    model.OCI_LAYER: ".tar",
    model.OCI_LAYER_GZIP: ".tar.gz",
    model.OCI_LAYER_ZSTD: ".tar.zst",
    model.OCI_NONDISTRIBUTABLE_LAYER: ".tar",
    model.OCI_NONDISTRIBUTABLE_LAYER_GZIP: ".tar.gz",
    model.OCI_NONDISTRIBUTABLE_LAYER_ZSTD: ".tar.zst",
    "application/x-unheard-of": ".tar",
}


def test_every_layer_type_has_an_extension() -> None:
    assert EXTENSIONS.keys() >= model.LAYER_TYPES


@pytest.mark.parametrize(("media_type", "extension"), EXTENSIONS.items())
def test_the_extension_comes_from_the_media_type_alone(media_type: str, extension: str) -> None:
    (member,) = DockerBuilder().prepare_blob(GZIP.descriptor.digest, 7, media_type).members
    assert member.name == GZIP.descriptor.digest.encoded + extension
    assert (member.size, member.data, member.digest) == (7, None, GZIP.descriptor.digest)
    assert member.total_size == 1024


def test_a_blob_s_literal_bytes_are_not_known() -> None:
    (member,) = DockerBuilder().prepare_blob(GZIP.descriptor.digest, 7, model.OCI_LAYER).members
    with pytest.raises(AssertionError, match=r"the data of .* are not known"):
        _ = member.literal


def test_a_sha512_layer_has_a_pax_header_and_a_pax_link() -> None:
    layer = make_layer(b"layer-one", None, algorithm="sha512")
    builder = DockerBuilder()
    addition = builder.prepare_blob(layer.descriptor.digest, 9, model.OCI_LAYER)
    (member,) = addition.members
    assert len(member.header) == 1536
    assert member.total_size == 1536 + 512
    image = make_image(layer)
    config, link, version, metadata = put(builder, image).members
    assert len(link.header) == 1536
    assert [len(member.header) for member in (config, version, metadata)] == [512] * 3
    assert f"../{layer.diff_id.encoded}.tar".encode() in link.header


def test_a_config_is_named_by_its_sha256_whatever_the_manifest_names_it_by() -> None:
    config = make_config([])
    manifest = json.loads(make_image(config_bytes=config).manifest_bytes)
    manifest["config"]["digest"] = str(Digest.of(config, "sha512"))
    checked = read_image(config, ImageManifest.parse(to_json(manifest)))
    (member,) = DockerBuilder().prepare_image(checked, []).members
    assert member.name == f"{hashlib.sha256(config).hexdigest()}.json"


# ── manifest.json and repositories ──


def test_an_archive_without_images_has_an_empty_list() -> None:
    assert end_of(DockerBuilder()) == {"manifest.json": b"[]", "repositories": b"{}"}


def test_the_documents_byte_for_byte() -> None:
    image = make_image(ONE, ZSTD, repo_tags=["alpine", TAG])
    legacy = top_id(image)
    end = end_of(built(image, make_image(comment="no tags, no layers")))
    other = make_image(comment="no tags, no layers").image_id.encoded
    assert (
        end["manifest.json"]
        == (
            f'[{{"Config":"{image.image_id.encoded}.json",'
            '"RepoTags":["docker.io/library/alpine:latest","example.com/app:1.0"],'
            f'"Layers":["{ONE.diff_id.encoded}.tar","{ZSTD.descriptor.digest.encoded}.tar.zst"]}},'
            f'{{"Config":"{other}.json","RepoTags":[],"Layers":[]}}]'
        ).encode()
    )
    assert (
        end["repositories"]
        == (
            f'{{"docker.io/library/alpine":{{"latest":"{legacy}"}},"example.com/app":{{"1.0":"{legacy}"}}}}'
        ).encode()
    )


def test_repositories_and_tags_are_sorted_whatever_order_they_come_in() -> None:
    tags = [f"example.com/{name}:{tag}" for name in "bca" for tag in ("z", "Z", "1")]
    _, repositories = documents(make_image(ONE, repo_tags=tags))
    assert list(repositories) == ["example.com/a", "example.com/b", "example.com/c"]
    assert [list(each) for each in repositories.values()] == [["1", "Z", "z"]] * 3


def test_a_layer_that_stands_twice_is_listed_twice() -> None:
    ((item,), _) = documents(make_image(GZIP, GZIP))
    assert item["Layers"] == [f"{GZIP.descriptor.digest.encoded}.tar.gz"] * 2


def test_the_same_image_again_adds_its_tags_once_each_in_order() -> None:
    image = make_image(ONE)
    (item,), repositories = documents(
        image.tagged("example.com/b:1", "example.com/b:1"),
        image.tagged(),
        image.tagged("example.com/a:1", "example.com/b:1"),
    )
    assert item["RepoTags"] == ["example.com/b:1", "example.com/a:1"]
    assert list(repositories) == ["example.com/a", "example.com/b"]
    builder = built(image)
    assert not names(put(builder, image.tagged(TAG))), "nothing is written a second time"


def test_a_name_of_two_images_is_refused_and_nothing_is_recorded() -> None:
    first, second = (
        make_image(ONE, repo_tags=[TAG], comment="1"),
        make_image(ONE, repo_tags=[TAG], comment="2"),
    )
    builder = built(first)
    before = end_of(builder)
    with pytest.raises(NameConflictError, match=TAG) as caught:
        prepare(builder, second)
    assert (caught.value.name, caught.value.image_ids) == (TAG, (first.image_id, second.image_id))
    assert end_of(builder) == before
    put(builder, first)  # the same image may say its name as often as it likes
    put(builder, second.tagged("example.com/app:2"))
    assert [item.repo_tags for item in builder.items] == [(TAG,), ("example.com/app:2",)]


def test_an_image_without_layers_is_in_no_repository() -> None:
    items, repositories = documents(make_image(repo_tags=[TAG]))
    assert items[0]["RepoTags"] == [TAG]
    assert repositories == {}


# ── asked twice: prepare changes nothing, commit records ──

PREPARATIONS: list[tuple[str, Callable[[DockerBuilder], Addition]]] = [
    ("blob", lambda builder: builder.prepare_blob(ZSTD.descriptor.digest, 3, model.OCI_LAYER_ZSTD)),
    ("new image", lambda builder: prepare(builder, make_image(GZIP, repo_tags=["example.com/new:1"]))),
    ("known image", lambda builder: prepare(builder, make_image(ONE, TWO, repo_tags=["example.com/new:1"]))),
    ("end", lambda builder: builder.prepare_end()),
]


@pytest.mark.parametrize("ask", [ask for _, ask in PREPARATIONS], ids=[name for name, _ in PREPARATIONS])
def test_prepare_changes_nothing(ask: Callable[[DockerBuilder], Addition]) -> None:
    builder = built(make_image(ONE, TWO, repo_tags=[TAG]))
    put_layer(builder, GZIP.descriptor)
    before = end_of(builder), builder.items, builder.blob(ZSTD.descriptor.digest)
    first = ask(builder)
    assert ask(builder) == first
    assert (end_of(builder), builder.items, builder.blob(ZSTD.descriptor.digest)) == before


def test_only_a_commit_makes_a_layer_known() -> None:
    builder = DockerBuilder()
    addition = builder.prepare_blob(ONE.descriptor.digest, 9, model.OCI_LAYER)
    assert builder.blob(ONE.descriptor.digest) is None
    with pytest.raises(InvalidInputError, match=f"layer {ONE.diff_id} is not in the archive"):
        prepare(builder, make_image(ONE))
    builder.commit(addition)
    assert builder.blob(ONE.descriptor.digest) == next(iter(addition.members))
    prepare(builder, make_image(ONE))


def test_images_are_listed_in_the_order_of_their_commits() -> None:
    first, second = make_image(comment="1"), make_image(comment="2")
    builder = DockerBuilder()
    prepared = prepare(builder, first)
    put(builder, second)
    builder.commit(prepared)  # without layers it does not depend on what came between
    assert [item.image_id for item in builder.items] == [second.image_id, first.image_id]
    put(builder, second.tagged(TAG))
    assert [item.image_id for item in builder.items] == [second.image_id, first.image_id]


# ── what is refused ──


def test_one_config_cannot_have_two_lists_of_layers() -> None:
    config = make_config([GZIP.diff_id])
    kept = make_image(GZIP, config_bytes=config)
    plain = make_image(make_layer(GZIP.plain, None), config_bytes=config)
    builder = built(kept)
    put_layer(builder, plain.layers[0].descriptor)
    before = end_of(builder)
    with pytest.raises(ImageConflictError, match=str(kept.image_id)) as caught:
        prepare(builder, plain)
    assert caught.value.image_id == kept.image_id
    assert end_of(builder) == before


def test_one_layer_cannot_stand_for_two_diff_ids() -> None:
    config = make_config([GZIP.diff_id, ONE.diff_id])
    image = make_image(GZIP, GZIP, config_bytes=config)
    with pytest.raises(InvalidInputError, match=f"two diff IDs .*: {GZIP.diff_id} and {ONE.diff_id}"):
        put(DockerBuilder(), image)


@pytest.mark.parametrize("size", [4 << 20, (4 << 20) - 1])
def test_a_config_may_have_4_mib(size: int) -> None:
    config = make_config([])
    assert len(read_image(config.ljust(size), []).config.raw) == size


def test_a_manifest_that_does_not_say_the_config_s_size_is_checked_by_digest() -> None:
    image = make_image()
    unsized = Descriptor(model.OCI_CONFIG, image.image_id, None)
    manifest = ImageManifest(b"", model.OCI_MANIFEST, image.image_id, unsized, ())
    assert read_image(image.config, manifest).config.digest == image.image_id


def test_layers_without_a_manifest_are_enough() -> None:
    checked = read_image(make_config([ONE.diff_id]), [ONE.descriptor], ["app"])
    assert checked.layers == (ONE.descriptor,)
    assert [tag.repo_tag for tag in checked.repo_tags] == ["docker.io/library/app:latest"]


# ── bytes that must never change ──


def frozen_images() -> list[Image]:
    layout = FROZEN / "layout"
    return [
        read_layout(layout, "one", ["example.com/app:1.0", "alpine"]),
        read_layout(layout, "two", ["example.com/app:2", "busybox"]),
        read_layout(layout, "none"),
        read_layout(layout, "one", ["localhost:5000/a/b:x_1", "alpine"]),
    ]


async def test_a_kept_archive_is_the_frozen_one() -> None:
    frozen = (FROZEN / "keep.tar").read_bytes()
    assert await archive_of(frozen_images()) == frozen
    plan = plan_archive(image.spec for image in frozen_images())
    assert plan.size == len(frozen)
    assert plan.etag == "016278dd1c8a884fc2ad0fc95d032729cac2a3db2985343483ebcff85d4aa6fe"


def test_the_frozen_archive_is_what_the_standard_library_derives() -> None:
    frozen = (FROZEN / "keep.tar").read_bytes()
    assert read_entries(frozen) == derive_entries(frozen_images())
    assert frozen.endswith(bytes(1024))
