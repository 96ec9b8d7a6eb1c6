"""``save(…, format="oci")``: the plan's bytes by every way, resumed too; and what an index says of an image."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import (
    Digest,
    ImageRequest,
    InvalidInputError,
    NameConflictError,
    OciLayoutSource,
    RegistrySource,
    open_archive,
    plan_archive,
    prepare,
    save,
)
from aiodockersave.core.model import OCI_INDEX, OCI_MANIFEST, REF_NAME, Platform
from tests.support.faulty_registry import FaultyRegistry
from tests.support.images import (
    ListSink,
    blobs_of,
    bytes_of_plan,
    make_image,
    make_layer,
    noise,
    to_json,
    write_layout,
)
from tests.support.rederive import documents_of, files_of
from tests.support.stores import Store, StoreFailedError

LIMIT = 60.0
AMD64 = Platform("linux", "amd64")
IMAGE = make_image(make_layer(noise(1, 300_001), None), make_layer(noise(2, 2047)), repo_tags=["a:1", "b:2"])
OTHER = make_image(IMAGE.layers[0], make_layer(noise(3, 1500), "zstd"), repo_tags=["other:1"])
PLAN = plan_archive([IMAGE.spec, OTHER.spec], format="oci")
WHOLE = bytes_of_plan(PLAN, blobs_of([IMAGE, OTHER]))


@pytest.fixture
def store() -> Store:
    return Store({"image": IMAGE, "other": OTHER})


# ── every way ──


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("checksum", [False, True])
async def test_to_a_file(store: Store, tmp_path: Path, jobs: int, checksum: bool) -> None:
    target = tmp_path / "a.tar"
    report = await save(
        store.requests(),
        target,
        format="oci",
        jobs=jobs,
        checksum=checksum,
        fsync=False,
        verify_diff_ids=True,
    )
    assert target.read_bytes() == WHOLE
    assert (report.size, report.members, report.images) == (PLAN.size, PLAN.members, PLAN.images)
    assert report.sha256 == (Digest.of(WHOLE) if checksum else None)


@pytest.mark.parametrize("jobs", [1, 4])
async def test_to_a_sink(store: Store, jobs: int) -> None:
    sink = ListSink()
    await save(store.requests(), sink, format="oci", jobs=jobs)
    assert sink.getvalue() == WHOLE


async def test_to_a_fifo(store: Store, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = asyncio.create_task(asyncio.to_thread(fifo.read_bytes))
    await save(store.requests(), fifo, format="oci")
    assert await reading == WHOLE


@pytest.mark.parametrize("at", range(0, 300_000, 60_000))
async def test_resumed(store: Store, tmp_path: Path, at: int) -> None:
    target = tmp_path / "a.tar"
    store.fails_at = {IMAGE.layers[0].descriptor.digest: at or -1}
    with pytest.raises(StoreFailedError):
        await save(store.requests(), target, format="oci", resume=True, fsync=False)
    store.fails_at = {}
    before = store.given.total()
    await save(store.requests(), target, format="oci", resume=True, fsync=False)
    assert target.read_bytes() == WHOLE
    assert store.given.total() - before <= store.size
    assert (await save(store.requests(), target, format="oci", resume=True)).left_as_is
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


async def test_the_other_format_s_part_file_is_not_used(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    store.fails_at = {IMAGE.layers[0].descriptor.digest: 100_000}
    with pytest.raises(StoreFailedError):
        await save(store.requests(), target, resume=True, fsync=False)
    store.fails_at = {}
    await save(store.requests(), target, format="oci", resume=True, fsync=False)
    assert target.read_bytes() == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


# ── refused ──


async def test_plain_layers_are_for_the_other_format(store: Store, tmp_path: Path) -> None:
    options: dict[str, Any] = {"format": "oci", "layers": "decompress"}
    with pytest.raises(InvalidInputError, match="format='oci' keeps the manifest"):
        await save(store.requests(), tmp_path / "a.tar", **options)
    with pytest.raises(InvalidInputError, match="format='oci' keeps the manifest"):
        async with open_archive(tmp_path / "a.tar", **options):
            raise AssertionError
    assert list(tmp_path.iterdir()) == []


async def test_one_name_for_two_manifests_of_one_config(tmp_path: Path) -> None:
    both = {kind: make_image(make_layer({"a": b"a"}, kind)) for kind in ("gzip", "zstd")}
    store = Store(both)
    requests = [ImageRequest(store, name, ["a:1"]) for name in both]
    with pytest.raises(NameConflictError) as caught:
        await save(requests, tmp_path / "a.tar", format="oci")
    assert caught.value.__notes__ == ["image gzip", "image zstd"]


# ── what an index says ──

ENTRY = {
    "mediaType": OCI_MANIFEST,
    "digest": str(IMAGE.manifest.digest),
    "size": len(IMAGE.manifest_bytes),
    "annotations": {"org.example.note": "x"},
    "platform": {"architecture": "amd64", "os": "linux"},
}
INDEX = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY]})


async def entry_of(request: ImageRequest) -> dict[str, Any]:
    plan = (await prepare(request, format="oci", platform=AMD64)).plan
    assert plan is not None
    (entry,) = documents_of(files_of(bytes_of_plan(plan, blobs_of([IMAGE]))))[0]
    return entry


async def test_of_a_registry() -> None:
    async with FaultyRegistry({"team/app:direct": IMAGE}) as registry, RegistrySource() as source:
        registry.add_document("team/app:1", INDEX, OCI_INDEX)
        through = await entry_of(ImageRequest(source, f"{registry.address}/team/app:1", ["a:1"]))
        direct = await entry_of(ImageRequest(source, f"{registry.address}/team/app:direct", ["a:1"]))
    named = {"io.containerd.image.name": "docker.io/library/a:1", REF_NAME: "1"}
    assert through["platform"] == ENTRY["platform"]
    assert through["annotations"] == {**named, "org.example.note": "x"}
    assert "platform" not in direct
    assert direct["annotations"] == named


@pytest.mark.parametrize("is_nested", [False, True])
async def test_of_a_layout(tmp_path: Path, is_nested: bool) -> None:
    """Its ``index.json`` lists what is in the layout: only an index below it is an image's own."""
    write_layout(tmp_path, {"one": IMAGE})
    if is_nested:
        digest = Digest.of(INDEX)
        (tmp_path / "blobs" / "sha256" / digest.encoded).write_bytes(INDEX)
        top = {
            "mediaType": OCI_INDEX,
            "digest": str(digest),
            "size": len(INDEX),
            "annotations": {REF_NAME: "one"},
        }
        (tmp_path / "index.json").write_bytes(to_json({"schemaVersion": 2, "manifests": [top]}))
    entry = await entry_of(ImageRequest(OciLayoutSource(tmp_path), "one", ()))
    assert entry.get("annotations") == (ENTRY["annotations"] if is_nested else None)
    assert entry.get("platform") == (ENTRY["platform"] if is_nested else None)
