"""Archives load into dockerd and containerd, with the image ID and the diff IDs that the source has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest

from aiodockersave.core.model import Layers
from tests.support.images import (
    EXAMPLES,
    Image,
    archive_of,
    make_image,
    make_layer,
    planned_archive_of,
    read_layout,
)

from .daemons import Containerd, Dockerd
from .programs import Loaded, ProgramError

NAME = "example.com/app:1.0"
OTHER = "example.com/app:2.0"

BASE = make_layer({"etc/name": b"base\n"})
MEMBERS = make_layer({f"file-{number}": bytes([number]) * 5000 for number in range(20)}, members=7)
PLAIN = make_layer({"plain": b"plain\n"}, None)
ZSTD = make_layer({"compressed": b"zstd\n" * 999}, "zstd")

IMAGES: dict[str, list[Image]] = {
    "hello": [read_layout(EXAMPLES / "hello", "latest", [NAME])],
    "gzip members": [make_image(BASE, MEMBERS, repo_tags=[NAME])],
    "plain layer": [make_image(BASE, PLAIN, repo_tags=[NAME])],
    "repeated layer": [make_image(BASE, PLAIN, BASE, repo_tags=[NAME])],
    "empty layer": [make_image(BASE, make_layer({}), repo_tags=[NAME])],
    "two names": [make_image(BASE, repo_tags=[NAME, OTHER])],
    "shared base": [
        make_image(BASE, PLAIN, repo_tags=[NAME]),
        make_image(BASE, MEMBERS, repo_tags=[OTHER]),
    ],
    "twelve layers": [
        make_image(*(make_layer({f"{number}": b"%d" % number}) for number in range(12)), repo_tags=[NAME])
    ],
}
ZSTD_IMAGE = make_image(BASE, ZSTD, repo_tags=[NAME])

both_modes = pytest.mark.parametrize("layers", ["keep", "decompress"])
every_mode = pytest.mark.parametrize("mode", ["keep", "decompress", "oci"])
every_image = pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)


Mode = Layers | Literal["oci"]


async def write(path: Path, images: list[Image], mode: Mode) -> Path:
    if mode == "oci":
        path.write_bytes(planned_archive_of(images, format="oci"))
    else:
        path.write_bytes(await archive_of(images, layers=mode))
    return path


def expected(images: list[Image]) -> dict[str, Loaded]:
    return {
        name: Loaded(str(image.image_id), [str(layer.diff_id) for layer in image.layers])
        for image in images
        for name in image.repo_tags
    }


def loaded_by(consumer: Dockerd | Containerd, archive: Path) -> dict[str, Loaded]:
    return {name: consumer.loaded(name) for name in consumer.load(archive)}


@every_mode
@every_image
async def test_dockerd(dockerd: Dockerd, tmp_path: Path, images: list[Image], mode: Mode) -> None:
    archive = await write(tmp_path / "app.tar", images, mode)
    assert loaded_by(dockerd, archive) == expected(images)


@every_mode
@every_image
async def test_containerd(containerd: Containerd, tmp_path: Path, images: list[Image], mode: Mode) -> None:
    archive = await write(tmp_path / "app.tar", images, mode)
    assert loaded_by(containerd, archive) == expected(images)


async def test_no_layers(dockerd: Dockerd, containerd: Containerd, tmp_path: Path) -> None:
    image = make_image(repo_tags=[NAME])
    archive = await write(tmp_path / "app.tar", [image], "keep")
    assert loaded_by(dockerd, archive) == loaded_by(containerd, archive) == expected([image])


async def test_no_names(dockerd: Dockerd, tmp_path: Path) -> None:
    image = make_image(BASE)
    archive = await write(tmp_path / "app.tar", [image], "keep")
    assert dockerd.load(archive) == [str(image.image_id)]
    assert dockerd.loaded(str(image.image_id)).diff_ids == [str(BASE.diff_id)]


# ── zstd ──


async def test_kept_zstd_is_refused_by_docker_20(dockerd: Dockerd, tmp_path: Path) -> None:
    archive = await write(tmp_path / "app.tar", [ZSTD_IMAGE], "keep")
    version = re.search(rb'"Version":"(\d+)', dockerd.ask("GET", "/version"))
    assert version
    if int(version[1]) > 20:
        pytest.skip("a dockerd that reads zstd")
    with pytest.raises(ProgramError, match=r"unexpected EOF|invalid tar header"):
        dockerd.load(archive)
    assert dockerd.ask("GET", "/images/json") == b"[]\n"


async def test_decompressed_zstd_is_taken_by_dockerd(dockerd: Dockerd, tmp_path: Path) -> None:
    archive = await write(tmp_path / "app.tar", [ZSTD_IMAGE], "decompress")
    assert loaded_by(dockerd, archive) == expected([ZSTD_IMAGE])


@every_mode
async def test_zstd_is_taken_by_containerd(containerd: Containerd, tmp_path: Path, mode: Mode) -> None:
    archive = await write(tmp_path / "app.tar", [ZSTD_IMAGE], mode)
    assert loaded_by(containerd, archive) == expected([ZSTD_IMAGE])


# ── the checks above can fail ──


@pytest.fixture
async def other_diff_id(tmp_path: Path) -> Path:
    """An archive whose config promises another layer than is there."""
    config = make_image(PLAIN).config
    image = make_image(BASE, config_bytes=config, repo_tags=[NAME])
    return await write(tmp_path / "app.tar", [image], "keep")


def test_dockerd_refuses_another_diff_id(dockerd: Dockerd, other_diff_id: Path) -> None:
    with pytest.raises(ProgramError, match="invalid diffID"):
        dockerd.load(other_diff_id)


def test_containerd_refuses_another_diff_id(containerd: Containerd, other_diff_id: Path) -> None:
    with pytest.raises(ProgramError, match="wrong diff id"):
        containerd.load(other_diff_id)
