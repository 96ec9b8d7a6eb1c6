"""The members of an archive, read or derived again with nothing but the standard library.

For configs that are ordinary JSON (no number, escape or name that Python's ``json`` would write in another way).
It shares no line with the package: where both agree, they agree for two reasons.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tests.support.images import TAGS, Image, Layer

EXTENSIONS = {"tar": ".tar", "tar+gzip": ".tar.gz", "tar+zstd": ".tar.zst"}
ATTRIBUTES = ["architecture", "config", "container", "container_config", "created", "docker_version", "os"]


class Entry(NamedTuple):
    """A member: its name, and its data or where it points."""

    name: str
    data: bytes
    link: str = ""


class Located(NamedTuple):
    """The place of a member as a reader found it, in bytes from the start of the archive."""

    name: str
    offset: int
    data_offset: int
    size: int


def derive_entries(images: Iterable[Image], mode: Literal["keep", "decompress"] = "keep") -> list[Entry]:
    """Return the members that an archive of these images has, in order."""
    entries: dict[str, Entry] = {}
    items: dict[str, dict[str, list[str]]] = {}
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        stored = [_stored(layer, mode) for layer in image.layers]
        new = [Entry(name, data) for name, _, data in stored]
        config = hashlib.sha256(image.config).hexdigest() + ".json"
        new.append(Entry(config, image.config))
        legacy = _legacy(json.loads(image.config), [(name, digest) for name, digest, _ in stored])
        new += [entry for group in legacy.values() for entry in group]
        for entry in new:
            entries.setdefault(entry.name, entry)
        tags = [TAGS[tag] for tag in image.repo_tags]
        item = items.setdefault(config, {"RepoTags": [], "Layers": [name for name, _, _ in stored]})
        item["RepoTags"] += [tag for tag in dict.fromkeys(tags) if tag not in item["RepoTags"]]
        for tag in tags if legacy else []:
            name, _, short = tag.rpartition(":")
            repositories.setdefault(name, {})[short] = list(legacy)[-1]
    manifest = [{"Config": config, **item} for config, item in items.items()]
    return [
        *entries.values(),
        Entry("manifest.json", _compact(manifest)),
        Entry("repositories", json.dumps(repositories, sort_keys=True, separators=(",", ":")).encode()),
    ]


def _stored(layer: Layer, mode: str) -> tuple[str, str, bytes]:
    if mode == "decompress":
        return f"{layer.diff_id.encoded}.tar", str(layer.diff_id), layer.plain
    extension = EXTENSIONS[layer.descriptor.media_type.rpartition(".")[2]]
    return layer.descriptor.digest.encoded + extension, str(layer.descriptor.digest), layer.blob


def _legacy(config: dict[str, object], layers: Sequence[tuple[str, str]]) -> dict[str, list[Entry]]:
    """Return the three v1 members of each layer, by legacy ID, base first."""
    found: dict[str, list[Entry]] = {}
    chain = parent = ""
    for number, (name, digest) in enumerate(layers, 1):
        chain = "sha256:" + hashlib.sha256(f"{chain} {digest}".encode()).hexdigest() if chain else digest
        metadata: dict[str, object] = {"parent": parent} if parent else {}
        if number == len(layers):
            metadata |= {attribute: config.get(attribute) for attribute in ATTRIBUTES}
        parent = hashlib.sha256(_object(metadata | {"layer_id": chain})).hexdigest()
        found[parent] = [
            Entry(f"{parent}/layer.tar", b"", f"../{name}"),
            Entry(f"{parent}/VERSION", b"1.0"),
            Entry(f"{parent}/json", _object(metadata | {"id": parent})),
        ]
    return found


def _object(members: dict[str, object]) -> bytes:
    """Write an object with its own names sorted; those of objects inside stay in their order."""
    return (
        b"{" + b",".join(_compact(name) + b":" + _compact(members[name]) for name in sorted(members)) + b"}"
    )


def _compact(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def read_entries(archive: bytes) -> list[Entry]:
    """Return the members of an archive, as ``tarfile`` reads them."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        return [
            Entry(
                member.name + "/" * member.isdir(),
                file.read() if (file := _file(tar, member)) else b"",
                member.linkname,
            )
            for member in tar
        ]


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedIOBase | None:
    return tar.extractfile(member) if member.isfile() else None  # type: ignore[return-value]


def locate_entries(archive: bytes) -> list[Located]:
    """Return where the members of an archive are, as ``tarfile`` finds them."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        return [Located(member.name, member.offset, member.offset_data, member.size) for member in tar]


def files_of(archive: bytes) -> dict[str, bytes]:
    """Return the members of an archive by name, in order; directories are empty."""
    entries = read_entries(archive)
    files = {entry.name: entry.data for entry in entries}
    assert len(files) == len(entries), "a member stands twice"
    return files


def documents_of(files: Mapping[str, bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the descriptors of ``index.json`` and the items of ``manifest.json`` of an ``oci`` archive."""
    index = json.loads(files["index.json"])
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    assert files["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'
    return index["manifests"], json.loads(files["manifest.json"])
