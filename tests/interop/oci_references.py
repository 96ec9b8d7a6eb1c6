"""Makes the references of ``tests/data/oci`` with a Docker that has the containerd store; run by hand.

::

    python -m tests.interop.oci_references FOLDER docker -H unix:///run/docker.sock

Each set of images is loaded from a plain OCI layout in a tar, so that no store knows which registry it came from, and saved
again. ``NAME.tar`` is Docker's archive. ``NAME.index.json`` is the index that an image was chosen from, where there was one.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiodockersave import Digest
from aiodockersave.core.model import (
    CONTAINERD_NAME,
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
)
from tests.support.images import Image, make_image, make_layer, to_json

LIBRARY = "docker.io/library/"


@dataclass(frozen=True)
class Case:
    """Images that are saved together.

    Attributes:
        images: Each image under its whole names; without one it is saved by its ID.
        index: An index to load in place of the first image, which is chosen from it.
        options: What ``docker save`` is told besides.
    """

    images: Sequence[tuple[Image, Sequence[str]]]
    index: bytes = b""
    options: Sequence[str] = field(default=())


BASE = make_layer({"etc/name": b"base\n"})
APP = make_layer({"app": b"app\n"}, "zstd")
ONE, TWO = make_image(BASE), make_image(BASE, APP)
PLAIN = make_layer({"plain": b"plain\n"}, None)


def of_docker(image: Image) -> Image:
    """Return an image with Docker's media types."""
    document = json.loads(image.manifest_bytes)
    document["mediaType"] = DOCKER_MANIFEST
    document["config"]["mediaType"] = DOCKER_CONFIG
    for layer in document["layers"]:
        layer["mediaType"] = DOCKER_LAYER_GZIP
    return Image(image.config, image.layers, to_json(document))


def annotated(image: Image) -> Image:
    """Return an image whose manifest has annotations, and is not as compact as ours."""
    document = json.loads(image.manifest_bytes) | {"annotations": {"org.example.note": "<a&b>", "z": "é"}}
    return Image(image.config, image.layers, json.dumps(document, indent=3).encode())


def entry(raw: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(raw)), "size": len(raw)} | fields


def index_of(*entries: dict[str, Any]) -> bytes:
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def on(image: Image, os: str, architecture: str, variant: str = "", **fields: Any) -> dict[str, Any]:
    platform = {"os": os, "variant": variant, "architecture": architecture}
    platform = {key: value for key, value in platform.items() if value}
    return entry(image.manifest_bytes, OCI_MANIFEST, platform=platform, **fields)


ARM = make_image(make_layer({"arm": b"64"}), architecture="arm64", variant="v8")
ARM7 = make_image(make_layer({"arm": b"7"}), architecture="arm", variant="v7")
WINDOWS: dict[str, Any] = {"os": "windows", "os.version": "10.0.17763.1"}
ATTESTATION = on(ONE, "unknown", "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"})

CASES = {
    "gzip": Case([(ONE, [LIBRARY + "gzip:1"])]),
    "zstd": Case([(TWO, ["docker.io/user/zstd:v1"])]),
    "plain": Case([(make_image(PLAIN), ["example.com/plain:latest"])]),
    "several-layers": Case([(make_image(BASE, PLAIN, APP), ["localhost:5000/a/b/c:1.0-rc_1"])]),
    "repeated-layer": Case([(make_image(BASE, APP, BASE), [LIBRARY + "repeated:1"])]),
    "no-layers": Case([(make_image(), [LIBRARY + "none:1"])]),
    "no-name": Case([(ONE, [])]),
    "two-names": Case([(TWO, ["example.com/b:2", LIBRARY + "a:1"])]),
    "five-names": Case([(ONE, [f"{name}:{tag}" for name in ("example.com/x", LIBRARY + "x") for tag in ("1", "2")] + [LIBRARY + "w:0"])]),
    "two-images": Case([(TWO, [LIBRARY + "a:1"]), (make_image(PLAIN), ["example.com/b:2"])]),
    "shared-base": Case([(TWO, [LIBRARY + "two:1"]), (ONE, [LIBRARY + "one:1"])]),
    "three-images": Case([(make_image(make_layer({"n": b"%d" % n})), [f"example.com/{n}:1"]) for n in (3, 1, 2)]),
    "two-names-each": Case([(TWO, [LIBRARY + "t:1", LIBRARY + "t:2"]), (ONE, [LIBRARY + "o:1", LIBRARY + "o:2"])]),
    "docker-types": Case([(of_docker(make_image(BASE, make_layer({"more": b"more\n"}))), ["docker.io/user/docker:1"])]),
    "annotated": Case([(annotated(ONE), [LIBRARY + "annotated:1"])]),
    "larger": Case([(make_image(make_layer({"noise": bytes(range(256)) * 150}, None), BASE), [LIBRARY + "larger:1"])]),
    "other-platform": Case([(ARM, [LIBRARY + "arm:1"])]),
    "windows": Case([(make_image(make_layer({"Files/x": b"x"}), **WINDOWS), [LIBRARY + "win:1"])]),
    "from-index": Case([(ONE, ["docker.io/user/multi:1"])], index_of(on(ONE, "linux", "amd64"), on(ARM, "linux", "arm64", "v8"), ATTESTATION), ["--platform", "linux/amd64"]),
    "from-index-arm64": Case([(ARM, ["docker.io/user/multi:1"])], index_of(on(TWO, "linux", "amd64"), on(ARM, "linux", "arm64", "v8")), ["--platform", "linux/arm64"]),
    "from-index-arm-v7": Case([(ARM7, ["docker.io/user/multi:1"])], index_of(on(ARM7, "linux", "arm", "v7"), on(ARM, "linux", "arm64")), ["--platform", "linux/arm/v7"]),
    "from-annotated-index": Case([(TWO, [LIBRARY + "multi:1", "example.com/multi:2"])], index_of(on(TWO, "linux", "amd64", annotations={"z": "1", "a": "<b>"})), ["--platform", "linux/amd64"]),
}  # fmt: skip


def layout_of(case: Case) -> bytes:
    """Return what is loaded: an OCI layout in a tar."""
    blobs: dict[str, bytes] = {}
    entries = []
    for image, names in case.images:
        raw, media_type = image.manifest_bytes, image.manifest.media_type
        for each in [raw, image.config, *(layer.blob for layer in image.layers)]:
            blobs[str(Digest.of(each))] = each
        if case.index:
            raw, media_type = case.index, OCI_INDEX
            blobs[str(Digest.of(raw))] = raw
        for name in names or [""]:
            named = {CONTAINERD_NAME: name, REF_NAME: name.rpartition(":")[2]} if name else {}
            entries.append(entry(raw, media_type, annotations=named))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index_of(*entries)}
        for path, data in {
            **files,
            **{f"blobs/{each.replace(':', '/')}": blobs[each] for each in blobs},
        }.items():
            header = tarfile.TarInfo(path)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def make(folder: Path, docker: Sequence[str], name: str, case: Case) -> None:
    def run(*arguments: str, data: bytes = b"") -> bytes:
        return subprocess.run([*docker, *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout

    for known in set(run("image", "ls", "--quiet", "--no-trunc").decode().split()):
        run("image", "rm", "--force", known)
    run("load", data=layout_of(case))
    wanted = [each for image, names in case.images for each in names or [str(image.manifest.digest)]]
    # Docker lists several images in manifest.json in an order of chance; ours is the one that was asked for.
    archive = run("save", *case.options, *wanted)
    for _ in range(100):
        if configs_of(archive) == [str(image.image_id.encoded) for image, _ in case.images]:
            break
        archive = run("save", *case.options, *wanted)
    (folder / f"{name}.tar").write_bytes(archive)
    if case.index:
        (folder / f"{name}.index.json").write_bytes(case.index)


def configs_of(archive: bytes) -> list[str]:
    """Return the digests of the configs in ``manifest.json``, in order."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        return [item["Config"].rpartition("/")[2] for item in json.load(file)]


def main() -> None:
    """Make all references."""
    folder = Path(sys.argv[1])
    for name, case in CASES.items():
        make(folder, sys.argv[2:], name, case)


if __name__ == "__main__":
    main()
