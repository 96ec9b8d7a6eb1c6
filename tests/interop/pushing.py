"""Put images into a registry as they are: of any media type, also what no program here would push."""

from __future__ import annotations

import contextlib
import http.client
import urllib.parse
from dataclasses import dataclass, replace

from aiodockersave import Descriptor, Digest
from aiodockersave.core.model import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
)
from tests.support.images import Image, make_layer, to_document, to_json

from .programs import TIME_LIMIT, ProgramError, Registry

_DOCKER_TYPES = {OCI_LAYER: DOCKER_LAYER, OCI_LAYER_GZIP: DOCKER_LAYER_GZIP}


def as_docker(image: Image) -> Image:
    """Return the same image with a manifest of Docker's."""
    layers = [
        replace(layer.descriptor, media_type=_DOCKER_TYPES[layer.descriptor.media_type])
        for layer in image.layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": to_document(Descriptor(DOCKER_CONFIG, image.image_id, len(image.config))),
        "layers": [to_document(layer) for layer in layers],
    }
    return replace(image, manifest_bytes=to_json(manifest))


def attestation_of(image: Image) -> Image:
    """Return what BuildKit puts beside an image: the config of an image, and a layer that is none."""
    statement = make_layer(
        b'{"_type":"https://in-toto.io/Statement/v0.1"}', None, media_type="application/vnd.in-toto+json"
    )
    config = to_json(
        {
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(statement.diff_id)]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": to_document(
            Descriptor("application/vnd.oci.image.config.v1+json", Digest.of(config), len(config))
        ),
        "layers": [to_document(statement.descriptor)],
    }
    return Image(config, (statement,), to_json(manifest))


@dataclass(frozen=True)
class Entry:
    """The entry of one manifest in an index."""

    image: Image
    platform: dict[str, str]
    attests: Image | None = None

    def to_document(self) -> dict[str, object]:
        annotations = {}
        if self.attests is not None:
            annotations = {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": str(self.attests.manifest.digest),
            }
        return to_document(self.image.manifest.descriptor, **annotations) | {"platform": self.platform}


def make_index(*entries: Entry) -> bytes:
    """Write an index."""
    manifests = [entry.to_document() for entry in entries]
    return to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def push(registry: Registry, repository: str, tag: str, image: Image) -> str:
    """Push an image with all its blobs; return its reference."""
    put_blobs(registry, repository, image)
    return put_manifest(registry, repository, tag, image.manifest_bytes, image.manifest.descriptor.media_type)


def push_index(registry: Registry, repository: str, tag: str, *entries: Entry) -> str:
    """Push an index with all its images; return its reference."""
    for entry in entries:
        push(registry, repository, str(entry.image.manifest.digest), entry.image)
    return put_manifest(registry, repository, tag, make_index(*entries), OCI_INDEX)


def put_blobs(registry: Registry, repository: str, image: Image) -> None:
    """Push the config and the layers of an image."""
    _put_blob(registry, repository, image.image_id, image.config)
    for layer in {layer.descriptor.digest: layer for layer in image.layers}.values():
        _put_blob(registry, repository, layer.descriptor.digest, layer.blob)


def put_manifest(registry: Registry, repository: str, reference: str, raw: bytes, media_type: str) -> str:
    """Push a manifest or an index; return its reference."""
    _ask(registry, "PUT", f"/v2/{repository}/manifests/{reference}", raw, 201, media_type)
    return f"{registry.address}/{repository}{'@' if ':' in reference else ':'}{reference}"


def _put_blob(registry: Registry, repository: str, digest: Digest, blob: bytes) -> None:
    # OCI distribution-spec, § POST then PUT.
    location = _ask(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"", 202)
    path = urllib.parse.urlsplit(location)
    query = f"{path.query}&digest={digest}" if path.query else f"digest={digest}"
    _ask(registry, "PUT", f"{path.path}?{query}", blob, 201)


def _ask(
    registry: Registry,
    method: str,
    path: str,
    body: bytes,
    status: int,
    content_type: str = "application/octet-stream",
) -> str:
    with contextlib.closing(http.client.HTTPConnection(registry.address, timeout=TIME_LIMIT)) as connection:
        connection.request(method, path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        said = response.read()
    if response.status != status:
        raise ProgramError(["docker-registry", method, path], f"status {response.status}", said)
    return response.headers.get("Location", "")
