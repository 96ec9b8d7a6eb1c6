"""``format="oci"``: Docker's own archives byte for byte (``data/oci/README.md``), and the rules of its builder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from aiodockersave import (
    ArchiveWriter,
    Descriptor,
    Digest,
    ImageConflictError,
    ImageIndex,
    ImageManifest,
    ImageSpec,
    InvalidDocumentError,
    InvalidInputError,
    NameConflictError,
    Plan,
    Reference,
    plan_archive,
)
from aiodockersave.core.model import CONTAINERD_NAME, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from tests.support.images import (
    Image,
    Layer,
    ListSink,
    blobs_of,
    bytes_of_plan,
    image_lists,
    make_image,
    make_layer,
    put,
    to_json,
)
from tests.support.rederive import documents_of, files_of

REFERENCES = Path(__file__).parents[1] / "data" / "oci"
BASE = make_layer({"etc/name": b"base\n"})
ONE = make_image(BASE, repo_tags=["one:1"])
TWO = make_image(BASE, make_layer({"app": b"app\n"}, "zstd"), repo_tags=["two:1"])


def path_of(digest: Digest | str) -> str:
    return f"blobs/{digest}".replace(":", "/")


# ── Docker's archives ──


def specs_of(files: dict[str, bytes], index: ImageIndex | None) -> list[ImageSpec]:
    """Return the images of an archive under their names, as its ``index.json`` has them."""
    names: dict[str, list[str]] = {}
    for each in json.loads(files["index.json"])["manifests"]:
        found = names.setdefault(each["digest"], [])
        found += [name for name in [each.get("annotations", {}).get(CONTAINERD_NAME)] if name]
    manifests = {digest: ImageManifest.parse(files[path_of(digest)]) for digest in names}
    return [
        ImageSpec(files[path_of(manifest.config.digest)], manifest, names[digest], index)
        for digest, manifest in manifests.items()
    ]


@pytest.mark.parametrize("path", sorted(REFERENCES.glob("*.tar")), ids=lambda path: path.stem)
def test_bytes(path: Path) -> None:
    expected = path.read_bytes()
    files = files_of(expected)
    index_path = path.with_suffix(".index.json")
    index = ImageIndex.parse(index_path.read_bytes()) if index_path.exists() else None
    plan = plan_archive(specs_of(files, index), format="oci")
    blobs = {
        each.descriptor.digest: files[path_of(each.descriptor.digest)]
        for each in plan.segments
        if each.descriptor
    }
    assert bytes_of_plan(plan, blobs) == expected
    assert [member.name for member in plan.members] == sorted(files)


def test_there_are_as_many_references_as_promised() -> None:
    assert len(list(REFERENCES.glob("*.tar"))) >= 20


# ── the rules ──


def planned(*images: Image, **options: Any) -> tuple[Plan, dict[str, bytes]]:
    """Plan an archive; return the plan and the files of the archive."""
    plan = plan_archive([image.spec for image in images], format="oci", **options)
    return plan, files_of(bytes_of_plan(plan, blobs_of(images)))


@given(image_lists())
def test_every_blob_is_there_once_and_both_lists_agree(images: list[Image]) -> None:
    plan, files = planned(*images)
    assert plan.size == sum(len(segment.data or b"") or segment.size for segment in plan.segments)
    assert list(files) == sorted(files)
    for path, data in files.items():
        if path.startswith("blobs/") and not path.endswith("/"):
            assert path == path_of(Digest.of(data, path.split("/")[1]))
    entries, items = documents_of(files)
    by_config = {
        path_of(ImageManifest.parse(files[path_of(each["digest"])]).config.digest): each for each in entries
    }
    assert set(by_config) == {item["Config"] for item in items}
    names = {each["annotations"][CONTAINERD_NAME] for each in entries if "annotations" in each}
    assert names == {str(Reference.parse(tag)) for item in items for tag in item["RepoTags"] or ()}


def test_the_registry_s_manifest_and_config_are_blobs() -> None:
    _, files = planned(TWO)
    assert files[path_of(Digest.of(TWO.manifest_bytes))] == TWO.manifest_bytes
    assert files[path_of(TWO.image_id)] == TWO.config


def test_sha512_has_a_directory_of_its_own() -> None:
    layer = make_layer({"a": b"a"}, algorithm="sha512")
    _, files = planned(make_image(BASE, layer, repo_tags=["a:1"]))
    assert "blobs/sha512/" in files
    assert files[path_of(layer.descriptor.digest)] == layer.blob


def test_a_config_that_the_manifest_names_by_sha512() -> None:
    document = json.loads(ONE.manifest_bytes)
    document["config"]["digest"] = str(Digest.of(ONE.config, "sha512"))
    image = Image(ONE.config, ONE.layers, to_json(document), ("a:1",))
    _, files = planned(image)
    (item,) = documents_of(files)[1]
    assert item["Config"] == path_of(document["config"]["digest"])
    assert files[item["Config"]] == ONE.config


def test_a_layer_of_more_than_8_gib() -> None:
    """Its header is PAX's, as in any other archive."""
    layer = Descriptor(OCI_LAYER_GZIP, BASE.descriptor.digest, 1 << 34)
    document = json.loads(ONE.manifest_bytes)
    document["layers"][0]["size"] = 1 << 34
    plan = plan_archive([ImageSpec(ONE.config, ImageManifest.parse(to_json(document)))], format="oci")
    (member,) = [member for member in plan.members if member.digest == layer.digest]
    assert (member.size, member.data_offset - member.offset) == (1 << 34, 1536)
    assert plan.size > 1 << 34


def test_names_are_whole_in_one_list_and_short_in_the_other() -> None:
    _, files = planned(ONE.tagged("alpine", "user/app:1", "localhost:5000/a:b"))
    entries, (item,) = documents_of(files)
    assert [each["annotations"] for each in entries] == [
        {CONTAINERD_NAME: "docker.io/library/alpine:latest", "org.opencontainers.image.ref.name": "latest"},
        {CONTAINERD_NAME: "docker.io/user/app:1", "org.opencontainers.image.ref.name": "1"},
        {CONTAINERD_NAME: "localhost:5000/a:b", "org.opencontainers.image.ref.name": "b"},
    ]
    assert item["RepoTags"] == ["alpine:latest", "user/app:1", "localhost:5000/a:b"]


@pytest.mark.parametrize("order", [("", "a:1"), ("a:1", "")], ids=["nameless first", "nameless last"])
def test_an_image_with_and_without_a_name_has_one_entry(order: Sequence[str]) -> None:
    _, files = planned(*(ONE.tagged(*filter(None, [name])) for name in order))
    entries, (item,) = documents_of(files)
    assert [each["annotations"][CONTAINERD_NAME] for each in entries] == ["docker.io/library/a:1"]
    assert item["RepoTags"] == ["a:1"]


def test_two_manifests_of_one_config_are_two_images() -> None:
    """Layers that were compressed in two ways: a docker archive cannot have both."""
    both = [make_image(make_layer({"a": b"a"}, kind), repo_tags=[f"{kind}:1"]) for kind in ("gzip", "zstd")]
    with pytest.raises(ImageConflictError):
        plan_archive([image.spec for image in both])
    _, files = planned(*both)
    entries, items = documents_of(files)
    assert [each["digest"] for each in entries] == [str(image.manifest.digest) for image in both]
    assert [item["RepoTags"] for item in items] == [["gzip:1"], ["zstd:1"]]


def test_one_name_is_one_manifest() -> None:
    both = [make_image(make_layer({"a": b"a"}, kind), repo_tags=["a:1"]) for kind in ("gzip", "zstd")]
    with pytest.raises(NameConflictError) as caught:
        plan_archive([image.spec for image in both], format="oci")
    assert caught.value.image_ids == tuple(image.manifest.digest for image in both)


def test_the_manifest_is_needed() -> None:
    layers = [layer.descriptor for layer in ONE.layers]
    with pytest.raises(InvalidInputError, match="comes without its manifest"):
        plan_archive([ImageSpec(ONE.config, layers)], format="oci")


def test_an_index_is_one() -> None:
    with pytest.raises(TypeError, match="index is an ImageIndex or None, not bytes"):
        plan_archive([ImageSpec(ONE.config, ONE.manifest, (), b"{}")], format="oci")  # type: ignore[arg-type]


def test_its_etag_is_another_one() -> None:
    plans = [plan_archive([ONE.spec], format=format) for format in ("docker", "oci")]
    assert plans[0].etag != plans[1].etag


# ── the words of an index ──


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"platform": None, "annotations": None}, {}),
        ({"annotations": {"b": "1", "a": "<"}}, {"annotations": {"a": "<", "b": "1"}}),
        (
            {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"platform": {"architecture": "arm64", "os": "linux", "variant": "v8"}},
        ),
        (
            {"platform": {"os.version": "10.0.1", "os": "windows", "os.features": ["win32k"], "architecture": "amd64"}},
            {"platform": {"architecture": "amd64", "os": "windows", "os.version": "10.0.1", "os.features": ["win32k"]}},
        ),
        ({"platform": {"variant": ""}}, {"platform": {"architecture": "", "os": ""}}),
        ({"platform": {"os": 1, "architecture": "amd64"}}, {}),
        ({"platform": {"os": False, "architecture": "amd64"}}, {}),
        ({"platform": {"os": "linux", "architecture": "amd64", "os.features": "x"}}, {}),
        ({"platform": {"os": "linux", "architecture": "amd64", "os.features": [None]}}, {}),
    ],
)  # fmt: skip
def test_an_entry_repeats_the_index(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    raw = to_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": str(ONE.manifest.digest),
                    "size": len(ONE.manifest_bytes),
                    **fields,
                }
            ],
        }
    )
    spec = ImageSpec(ONE.config, ONE.manifest, (), ImageIndex.parse(raw))
    plan = plan_archive([spec], format="oci")
    (entry,) = documents_of(files_of(bytes_of_plan(plan, {BASE.descriptor.digest: BASE.blob})))[0]
    assert list(entry.items())[3:] == list(expected.items())
    assert [list(value) for value in entry.values() if isinstance(value, dict)] == [
        list(value) for value in expected.values()
    ]


def test_an_index_that_does_not_name_the_manifest_says_nothing() -> None:
    raw = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    plan, _ = planned(ONE)
    assert (
        plan_archive([ImageSpec(ONE.config, ONE.manifest, ["one:1"], ImageIndex.parse(raw))], format="oci")
        == plan
    )


@pytest.mark.parametrize("index_first", [False, True])
def test_a_name_of_a_manifest_and_one_of_its_index_are_both_in_both_lists(index_first: bool) -> None:
    """containerd loses one of them in one order (``findings/ctr-export-loses-a-name.sh``)."""
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": str(ONE.manifest.digest),
        "size": len(ONE.manifest_bytes),
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    index = ImageIndex.parse(to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}))
    specs = [
        ImageSpec(ONE.config, ONE.manifest, ["a:1"]),
        ImageSpec(ONE.config, ONE.manifest, ["b:1"], index),
    ]
    plan = plan_archive(reversed(specs) if index_first else specs, format="oci")
    entries, (item,) = documents_of(files_of(bytes_of_plan(plan, {BASE.descriptor.digest: BASE.blob})))
    assert set(item["RepoTags"]) == {"a:1", "b:1"}
    found = {each["annotations"][CONTAINERD_NAME]: each.get("platform") for each in entries}
    assert found == {"docker.io/library/a:1": None, "docker.io/library/b:1": entry["platform"]}


def index_with(image: Image, **annotations: str) -> ImageIndex:
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": str(image.manifest.digest),
        "size": len(image.manifest_bytes),
        "annotations": annotations,
    }
    return ImageIndex.parse(
        to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}), OCI_INDEX
    )


def entries_of(*specs: ImageSpec) -> list[dict[str, Any]]:
    plan = plan_archive(specs, format="oci")
    files = files_of(bytes_of_plan(plan, blobs_of([ONE, TWO])))
    return documents_of(files)[0]


@pytest.mark.parametrize("tags", [[], ["mine:1"]])
def test_a_registry_does_not_name_an_image(tags: list[str]) -> None:
    """containerd and Docker import an image under the name of these annotations."""
    names = {
        CONTAINERD_NAME: "docker.io/library/alpine:latest",
        "org.opencontainers.image.ref.name": "latest",
        "io.containerd.import.ref-source": "x",
        "containerd.io/distribution.source.example.com": "team/app",
        "org.example.note": "kept",
    }
    index = index_with(TWO, **names)
    good, other = entries_of(
        ImageSpec(ONE.config, ONE.manifest, ["alpine"]), ImageSpec(TWO.config, TWO.manifest, tags, index)
    )
    assert good["annotations"][CONTAINERD_NAME] == "docker.io/library/alpine:latest"
    assert other["annotations"].pop("org.example.note") == "kept"
    assert other["annotations"] == (
        {CONTAINERD_NAME: "docker.io/library/mine:1", "org.opencontainers.image.ref.name": "1"}
        if tags
        else {}
    )


def test_annotations_are_bounded() -> None:
    index = index_with(ONE, note="x" * 70_000)
    with pytest.raises(InvalidDocumentError, match="more than 65536 characters"):
        plan_archive([ImageSpec(ONE.config, ONE.manifest, ["a:1"], index)], format="oci")
    plan_archive([ImageSpec(ONE.config, ONE.manifest, ["a:1"], index)])


def test_keys_that_go_reads_as_one_are_one() -> None:
    index = index_with(ONE, **dict(zip(map(chr, (0xD800, 0xDFFF)), "ab", strict=True)))
    plan = plan_archive([ImageSpec(ONE.config, ONE.manifest, [], index)], format="oci")
    written = files_of(bytes_of_plan(plan, blobs_of([ONE])))["index.json"]
    (entry,) = ImageIndex.parse(written).manifests  # which refuses a key that stands twice
    assert entry.annotations == {chr(0xFFFD): "b"}


@pytest.mark.parametrize("document", ["config", "manifest_bytes"])
def test_a_layer_that_is_another_image_s_document(document: str) -> None:
    raw: bytes = getattr(ONE, document)
    layer = Layer(raw, raw, Descriptor(OCI_LAYER_GZIP, Digest.of(raw), len(raw)), Digest.of(raw))
    odd = make_image(layer, repo_tags=["odd:1"])
    with pytest.raises(
        InvalidInputError, match="is the config or manifest of one image, and a layer of another"
    ):
        plan_archive([ONE.spec, odd.spec], format="oci")
    plan_archive([odd.spec, ONE.spec], format="oci")


async def test_a_writer_refuses_a_layer_that_is_another_image_s_config() -> None:
    layer = Layer(
        ONE.config, ONE.config, Descriptor(OCI_LAYER_GZIP, ONE.image_id, len(ONE.config)), ONE.image_id
    )
    sink = ListSink()
    async with ArchiveWriter(sink, format="oci") as archive:
        await put(archive, ONE)
        with pytest.raises(InvalidInputError, match="is the config or manifest of one image"):
            await archive.put_layer(layer.blob, layer.descriptor)
        await put(archive, TWO)
    assert path_of(ONE.image_id) in files_of(sink.getvalue())  # once
