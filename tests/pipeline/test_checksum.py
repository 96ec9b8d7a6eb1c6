"""The checksum of a file that is written in no order: hashed meanwhile, and right whatever was guessed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiodockersave import ImageRequest, ImageSpec, plan_archive, save
from aiodockersave.blobs import filling
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.core.model import Digest, Layers
from aiodockersave.core.plan import Plan
from aiodockersave.pipeline import checksum as room
from aiodockersave.pipeline import to_file_decompressed as plain_file
from aiodockersave.pipeline.checksum import Follower
from tests.support.images import archive_of, make_image, make_layer
from tests.support.stores import Store

RANDOM = random.Random("a checksum")
LAYERS = tuple(make_layer({"data": RANDOM.randbytes(size)}) for size in (70_000, 3_000, 200_000))
IMAGE = make_image(*LAYERS)
TAG = "example.com/app:1.0"


@dataclass
class Filled:
    """A blob that is in its place as far as told."""

    position: int = 0


@pytest.fixture
def plan() -> Plan:
    return plan_archive([ImageSpec(IMAGE.config, IMAGE.manifest, [TAG])])


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[OpenFile]:
    path = tmp_path / "archive"
    path.write_bytes(await archive_of([IMAGE.tagged(TAG)]))
    file = OpenFile(os.open(path, os.O_RDWR))
    yield file
    file.close()


def whole(file: OpenFile) -> Digest:
    with file as fd:
        return Digest.of(os.pread(fd, os.fstat(fd).st_size, 0))


async def test_all_at_the_end(file: OpenFile, plan: Plan) -> None:
    async with Follower(file) as follower:
        assert await follower.finish(plan.segments) == whole(file)


@pytest.mark.parametrize("seed", range(20))
async def test_behind_its_writers(
    file: OpenFile, plan: Plan, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = random.Random(seed)
    monkeypatch.setattr(room, "_LEAST", choice.choice([1, 600, 50_000]))
    monkeypatch.setattr(room, "_MOST", choice.choice([100, 5_000, 1 << 20]))
    filled = {layer.descriptor.digest: Filled() for layer in LAYERS}
    async with Follower(file) as follower:
        for digest, placed in filled.items():
            follower.watch(digest, placed)
        for _ in range(200):
            layer = choice.choice(LAYERS)
            placed = filled[layer.descriptor.digest]
            placed.position = min(len(layer.blob), placed.position + choice.randrange(9_000))
            follower.advance(plan.segments)
            if choice.random() < 0.3:
                await asyncio.sleep(0.0005)
        assert await follower.finish(plan.segments) == whole(file)


async def test_what_was_guessed_wrong_is_read_again(
    file: OpenFile, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LEAST", 1)
    other = plan_archive([ImageSpec(IMAGE.config, [*IMAGE.manifest.layers], ["other:1"])])
    wrong = plan_archive([ImageSpec(make_image(LAYERS[0]).config, [LAYERS[0].descriptor])])
    assert wrong.segments[:2] == plan.segments[:2]
    async with Follower(file) as follower:
        follower.watch(LAYERS[0].descriptor.digest, Filled(len(LAYERS[0].blob)))
        follower.advance(wrong.segments)
        assert await follower.finish(plan.segments) == whole(file)
        assert await follower.finish(other.segments) != whole(file)


async def test_a_file_that_is_too_short(file: OpenFile, plan: Plan) -> None:
    with file as fd:
        os.ftruncate(fd, 1000)
    async with Follower(file) as follower:
        with pytest.raises(Exception, match="the file is shorter than what was written to it, at byte 1000"):
            await follower.finish(plan.segments)


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("small", [0, 100_000], ids=["hints", "small ones received"])
async def test_of_a_save(
    tmp_path: Path, layers: Layers, jobs: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LEAST", 1)
    source = Store({"one": IMAGE}, chunk_size=3_000)
    monkeypatch.setattr(filling, "BATCH_SIZE", 5_000)
    monkeypatch.setattr(plain_file, "_SMALL", small)
    target = tmp_path / "archive"
    report = await save(
        [ImageRequest(source, "one", [TAG])], target, layers=layers, jobs=jobs, checksum=True, fsync=False
    )
    assert target.read_bytes() == await archive_of([IMAGE.tagged(TAG)], layers=layers)
    assert report.sha256 == Digest.of(target.read_bytes())
