"""Archives that we write load into the programs that people have: podman and skopeo."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest

from aiodockersave import ImageConfig
from tests.support.images import (
    EXAMPLES,
    Image,
    archive_of,
    make_image,
    make_layer,
    planned_archive_of,
    read_layout,
    write_layout,
)
from tests.support.rederive import read_entries

from .programs import ProgramError, run, skopeo, skopeo_inspect

if TYPE_CHECKING:
    from pathlib import Path

    from .programs import Podman

Mode = Literal["keep", "decompress", "oci"]
MODES: tuple[Mode, ...] = ("keep", "decompress", "oci")

BASE = make_layer({"etc/name": b"base\n", "etc/version": b"1\n"})
MEMBERS = make_layer({"srv/members": bytes(range(256)) * 40}, members=4)
PLAIN = make_layer({"srv/plain": b"plain\n", "etc/version": b"2\n"}, None)
ZSTD = make_layer({"srv/zstd": b"zstd\n" * 300}, "zstd", members=2)
SHA512 = make_layer({"srv/sha512": b"sha512\n"}, algorithm="sha512", diff_id_algorithm="sha256")

TAGS = ("example.com/consumer/app:1.0", "docker.io/library/consumer:latest")
OTHER_TAG = "localhost:5000/consumer/other:2"


@dataclass(frozen=True)
class Case:
    """An image, and what must be seen in it once it is loaded."""

    image: Image
    files: dict[str, bytes]


CASES = {
    "gzip, plain, gzip of several members": Case(
        make_image(BASE, PLAIN, MEMBERS, repo_tags=TAGS),
        {"etc/name": b"base\n", "etc/version": b"2\n", "srv/members": bytes(range(256)) * 40},
    ),
    "zstd": Case(make_image(BASE, ZSTD, repo_tags=TAGS), {"srv/zstd": b"zstd\n" * 300}),
    "a layer twice": Case(make_image(BASE, PLAIN, BASE, repo_tags=TAGS), {"etc/version": b"1\n"}),
    "no tags": Case(make_image(BASE), {"etc/version": b"1\n"}),
    "a sha512 blob": Case(make_image(BASE, SHA512, repo_tags=TAGS), {"srv/sha512": b"sha512\n"}),
    "twenty layers": Case(
        make_image(*(make_layer({f"srv/{number}": b"%d" % number}) for number in range(20)), repo_tags=TAGS),
        {"srv/0": b"0", "srv/19": b"19"},
    ),
}
MODE_TABLE = pytest.mark.parametrize("mode", MODES)
CASE_TABLE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def write_archive(path: Path, *images: Image, mode: Mode) -> Path:
    path.write_bytes(archive_in(mode, *images))
    return path


def archive_in(mode: Mode, *images: Image) -> bytes:
    if mode == "oci":
        return planned_archive_of(images, format="oci")
    return asyncio.run(archive_of(images, layers=mode))


def diff_ids_of(image: Image) -> list[str]:
    return [str(diff_id) for diff_id in ImageConfig.parse(image.config).diff_ids]


# ── podman ──


def names_in_podman(image: Image, mode: Mode) -> set[str]:
    """Return the names that podman gives an image out of an archive with several names.

    It takes such an archive of Docker's for a docker-archive, and a short name in that for one of its own
    (``findings/podman-load-short-names-of-docker.sh``).
    """
    if mode != "oci":
        return set(image.repo_tags)
    return {name.replace("docker.io/library/", "localhost/") for name in image.repo_tags}


def assert_loaded(podman: Podman, image: Image, files: dict[str, bytes], *, mode: Mode = "keep") -> None:
    """Check ID, diff IDs, names and files of what podman holds."""
    found = podman.inspect(image.image_id.encoded)
    assert found["Id"] == image.image_id.encoded
    assert found["RootFS"]["Layers"] == diff_ids_of(image)
    assert set(found["RepoTags"]) == names_in_podman(image, mode)
    with podman.files_of(image.image_id.encoded) as folder:
        assert {name: (folder / name).read_bytes() for name in files} == files


@pytest.mark.interop("podman")
@MODE_TABLE
@CASE_TABLE
def test_podman_loads_an_image(podman: Podman, tmp_path: Path, case: Case, mode: Mode) -> None:
    names = podman.load(write_archive(tmp_path / "image.tar", case.image, mode=mode))
    assert len(names) == max(1, len(case.image.repo_tags))
    assert_loaded(podman, case.image, case.files, mode=mode)


@pytest.mark.interop("podman")
@MODE_TABLE
def test_podman_loads_several_images_of_one_archive(podman: Podman, tmp_path: Path, mode: Mode) -> None:
    first = make_image(BASE, PLAIN, repo_tags=TAGS)
    second = make_image(BASE, MEMBERS, repo_tags=[OTHER_TAG])
    names = podman.load(write_archive(tmp_path / "images.tar", first, second, mode=mode))
    assert set(names) == names_in_podman(first, mode) | {OTHER_TAG}
    assert_loaded(podman, first, {"etc/version": b"2\n"}, mode=mode)
    assert_loaded(podman, second, {"etc/version": b"1\n", "etc/name": b"base\n"}, mode=mode)


@pytest.mark.interop("podman")
@MODE_TABLE
def test_podman_loads_an_archive_from_a_pipe(podman: Podman, mode: Mode) -> None:
    image = make_image(BASE, repo_tags=TAGS)
    assert podman.load(archive_in(mode, image))
    assert_loaded(podman, image, {"etc/name": b"base\n"}, mode=mode)


@pytest.mark.interop("podman")
def test_what_podman_saves_of_our_images_is_our_archive(podman: Podman, tmp_path: Path) -> None:
    """One archive of two images through podman's storage and its own multi-image writer: the same bytes."""
    images = [make_image(BASE, PLAIN, repo_tags=TAGS[:1]), make_image(BASE, MEMBERS, repo_tags=[OTHER_TAG])]
    ours = write_archive(tmp_path / "ours.tar", *images, mode="decompress")
    podman.load(ours)
    theirs = tmp_path / "theirs.tar"
    podman("save", "--quiet", "--multi-image-archive", "--output", theirs, TAGS[0], OTHER_TAG)
    assert theirs.read_bytes() == ours.read_bytes()


# ── skopeo ──


@pytest.mark.interop("skopeo")
@MODE_TABLE
@CASE_TABLE
def test_skopeo_inspects_an_image(tmp_path: Path, case: Case, mode: Mode) -> None:
    archive = write_archive(tmp_path / "image.tar", case.image, mode=mode)
    assert skopeo_inspect(f"docker-archive:{archive}", config=True) == json.loads(case.image.config)
    manifest = skopeo_inspect(f"docker-archive:{archive}", raw=True)
    assert manifest["config"]["digest"] == str(case.image.image_id)
    assert [layer["digest"] for layer in manifest["layers"]] == diff_ids_of(case.image)


@pytest.mark.interop("skopeo")
@MODE_TABLE
@CASE_TABLE
def test_skopeo_copies_an_image_with_every_layer(tmp_path: Path, case: Case, mode: Mode) -> None:
    archive = write_archive(tmp_path / "image.tar", case.image, mode=mode)
    folder = tmp_path / "dir"
    skopeo("copy", "--quiet", f"docker-archive:{archive}", f"dir:{folder}")
    assert (folder / case.image.image_id.encoded).read_bytes() == case.image.config
    for layer in case.image.layers:
        assert (folder / layer.diff_id.encoded).read_bytes() == layer.plain


@pytest.mark.interop("skopeo")
@MODE_TABLE
def test_skopeo_finds_each_of_several_images(tmp_path: Path, mode: Mode) -> None:
    first = make_image(BASE, PLAIN, repo_tags=TAGS)
    second = make_image(BASE, MEMBERS, repo_tags=[OTHER_TAG])
    archive = write_archive(tmp_path / "images.tar", first, second, mode=mode)
    found = {
        name: skopeo_inspect(f"docker-archive:{archive}:{name}", raw=True)["config"]["digest"]
        for name in (*TAGS, OTHER_TAG, "@0", "@1")
    }
    assert found == {
        **dict.fromkeys((*TAGS, "@0"), str(first.image_id)),
        **dict.fromkeys((OTHER_TAG, "@1"), str(second.image_id)),
    }


@pytest.mark.interop("skopeo")
@MODE_TABLE
def test_an_image_goes_round_to_an_oci_layout(tmp_path: Path, mode: Mode) -> None:
    image = make_image(BASE, PLAIN, MEMBERS, repo_tags=TAGS)
    archive = write_archive(tmp_path / "image.tar", image, mode=mode)
    skopeo("copy", "--quiet", f"docker-archive:{archive}", f"oci:{tmp_path / 'oci'}:back")
    back = read_layout(tmp_path / "oci", "back")
    assert back.config == image.config
    assert [layer.plain for layer in back.layers] == [layer.plain for layer in image.layers]


@pytest.mark.interop("skopeo")
def test_a_wrong_layer_would_be_noticed(tmp_path: Path) -> None:
    """The consumer does look at the layers: the tests above rely on that."""
    image = make_image(BASE, config_bytes=make_image(PLAIN).config)
    archive = write_archive(tmp_path / "image.tar", image, mode="keep")
    with pytest.raises(ProgramError):
        skopeo("copy", "--quiet", f"docker-archive:{archive}", f"dir:{tmp_path / 'dir'}")


# ── what is kept is what the source has ──


@CASE_TABLE
def test_a_kept_archive_holds_the_source_s_blobs(tmp_path: Path, case: Case) -> None:
    layout = write_layout(tmp_path / "layout", {"latest": case.image})
    source = {path.name: path.read_bytes() for path in (layout / "blobs").rglob("*") if path.is_file()}
    image = read_layout(layout, "latest", case.image.repo_tags)
    entries = read_entries(asyncio.run(archive_of([image])))
    blobs = {entry.name.partition(".")[0]: entry.data for entry in entries if "/" not in entry.name}
    manifest = blobs.pop("manifest")
    del blobs["repositories"]
    assert blobs == {name: data for name, data in source.items() if name != image.manifest.digest.encoded}
    (item,) = json.loads(manifest)
    assert [name.partition(".")[0] for name in item["Layers"]] == [
        layer.digest.encoded for layer in image.manifest.layers
    ]
    links = {entry.name: entry.link for entry in entries if entry.link}
    assert {link.removeprefix("../") for link in links.values()} == set(item["Layers"])
    assert item["RepoTags"] == list(image.repo_tags)


# ── the example's image ──


@pytest.mark.interop("podman", "skopeo")
@MODE_TABLE
def test_the_example_s_image_runs_through_both(podman: Podman, tmp_path: Path, mode: Mode) -> None:
    image = read_layout(EXAMPLES / "hello", "latest", ["docker.io/library/hello:latest"])
    archive = write_archive(tmp_path / "hello.tar", image, mode=mode)
    assert podman.load(archive) == ["docker.io/library/hello:latest"]
    greeting = b"Hello from an image that no daemon has touched.\n"
    assert_loaded(podman, image, {"hello.txt": greeting})
    with podman.files_of("hello") as folder:
        assert run(folder / "hello") == greeting
    assert skopeo_inspect(f"docker-archive:{archive}")["Architecture"] == "amd64"
