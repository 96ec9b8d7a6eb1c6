"""The members of an archive in Docker's format of today: an OCI image layout with a ``manifest.json``.

``format="oci"``, as Docker's containerd store (``docker save``) and ``ctr images export`` write it::

    blobs/                     a directory
    blobs/sha256/              a directory; blobs/sha512/ beside it, where a digest is of that kind
    blobs/sha256/<hex>         a layer, a config, a manifest: as the registry has it, sorted by name
    index.json                 a descriptor for each name: {"mediaType", "digest", "size", "annotations", "platform"}
    manifest.json              [{"Config", "RepoTags", "Layers"}, …], for readers that know no layouts
    oci-layout                 {"imageLayoutVersion": "1.0.0"}
    (two blocks of zeros)

Manifests travel unchanged, so the registry's digest survives ``docker load``. A plan has the members in this order. A writer,
which learns of a blob when it is put, writes blobs as they come, and each directory before its first blob.

The builder works in the two steps of :mod:`aiodockersave.core.docker_archive`: prepare, then commit.

Source: containerd 2.1, ``core/images/archive/exporter.go``; measured with Docker 28.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from . import gojson, tar
from .docker_archive import (
    Addition,
    Builder,
    Image,
    ManifestItem,
    Member,
    blob_member,
    check_no_document,
    layer_paths,
)
from .documents import IndexEntry
from .errors import InvalidInputError
from .model import CONTAINERD_NAME, OCI_INDEX, REF_NAME, Descriptor, Digest
from .reference import Reference

__all__ = ["OciBuilder"]

_BLOBS: Final = "blobs/"
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_WRITABLE: Final = 0o644
"""The mode of the two files that containerd makes of documents of its own; blobs and ``oci-layout`` have 0444."""


class OciBuilder(Builder):
    """The builder of an ``oci`` archive, which knows images by their manifests."""

    def __init__(self) -> None:
        super().__init__()
        self._directories: set[str] = set()
        self._entries: dict[tuple[Digest, str], gojson.Struct] = {}
        self._listed: set[Digest] = set()

    def prepare_blob(self, digest: Digest, size: int, media_type: str) -> Addition:  # noqa: ARG002 - as of any builder
        """Return the member of a blob that is not in yet, and before it the directories that it is the first in.

        Raises:
            InvalidInputError: It is the config or the manifest of an image that is in.
        """
        check_no_document(digest, self._blobs.get(digest))
        member = blob_member(_path(digest), digest, size)
        return Addition(tuple(self._with_directories([member])), blobs={digest: member})

    def prepare_image(self, image: Image, stored: Sequence[Digest]) -> Addition:
        """Return config and manifest; arguments and errors as :meth:`.Builder.prepare_image`.

        Raises:
            InvalidDocumentError: The index has too many annotations.
            InvalidInputError: The manifest is not known.
        """
        manifest = image.manifest
        if manifest is None:
            raise InvalidInputError(
                f"image {image.config.digest} comes without its manifest, which this format stores: pass the ImageManifest"
            )
        paths = layer_paths(self._blobs, image, stored)
        self._names.check(manifest.digest, (tag.repo_tag for tag in image.repo_tags))
        documents = {manifest.config.digest: image.config.raw, manifest.digest: manifest.raw}
        new = {digest: _known(digest, raw) for digest, raw in documents.items() if digest not in self._blobs}
        old = self._items.get(manifest.digest)
        tags = [*(old.repo_tags if old else ()), *(tag.familiar for tag in image.repo_tags)]
        item = ManifestItem(
            image.config.digest, _path(manifest.config.digest), tuple(dict.fromkeys(tags)), paths
        )
        entry = None if image.index is None else image.index.entry(manifest.digest)
        names: Sequence[Reference | None] = image.repo_tags or (None,)
        entries = {
            (manifest.digest, "" if tag is None else tag.repo_tag): _entry(manifest.descriptor, entry, tag)
            for tag in names
        }
        return Addition(tuple(self._with_directories(new.values())), blobs=new, item=item, entries=entries)

    def prepare_end(self) -> Addition:
        """Return the members that close an archive; :data:`tar.END_OF_ARCHIVE` follows them."""
        index = gojson.Struct(
            [
                ("schemaVersion", b"2"),
                ("mediaType", OCI_INDEX),
                ("manifests", list(self._entries.values())),
            ]
        )
        items = [
            gojson.Struct(
                [
                    ("Config", item.config),
                    ("RepoTags", item.repo_tags or None),
                    ("Layers", item.layers or None),
                ]
            )
            for item in self._items.values()
        ]
        return Addition(
            (
                _file("index.json", gojson.encode(index), _WRITABLE),
                _file("manifest.json", gojson.encode(items), _WRITABLE),
                _file("oci-layout", _LAYOUT),
            )
        )

    def commit(self, addition: Addition) -> None:
        """Record that the members of ``addition`` are in the archive."""
        self._blobs.update(addition.blobs)
        self._directories.update(member.name for member in addition.members if member.name.endswith("/"))
        for (manifest, name), entry in addition.entries.items():
            if addition.item is not None:
                self._items[manifest] = addition.item
            # An image without a name has an entry, too, which gives way to one with a name.
            if name:
                self._names.record(manifest, [name])
                self._entries.pop((manifest, ""), None)
            if name or manifest not in self._listed:
                self._entries.setdefault((manifest, name), entry)
            self._listed.add(manifest)

    def _with_directories(self, members: Iterable[Member]) -> Iterator[Member]:
        made = set(self._directories)
        for member in members:
            for end in (len(_BLOBS), member.name.rindex("/") + 1):
                if (name := member.name[:end]) not in made:
                    made.add(name)
                    yield Member(name, 0, tar.directory_header(name), b"", None)
            yield member


def _path(digest: Digest) -> str:
    return f"{_BLOBS}{digest.algorithm}/{digest.encoded}"


def _known(digest: Digest, raw: bytes) -> Member:
    return blob_member(_path(digest), digest, len(raw))._replace(data=raw)


def _file(name: str, data: bytes, mode: int = 0o444) -> Member:
    return Member(name, len(data), tar.member_header(name, len(data), mode), data, Digest.of(data))


def _entry(manifest: Descriptor, entry: IndexEntry | None, tag: Reference | None) -> gojson.Struct:
    """Return the descriptor of a manifest in ``index.json``, under one of its names."""
    annotations: Mapping[str, str] = entry.annotations if entry else {}
    if tag is not None:
        annotations = {**annotations, CONTAINERD_NAME: tag.repo_tag, REF_NAME: str(tag.tag)}
    fields: list[tuple[str, gojson.Value]] = [
        ("mediaType", manifest.media_type),
        ("digest", str(manifest.digest)),
        ("size", str(manifest.size).encode()),
    ]
    if annotations:
        fields.append(("annotations", annotations))
    if entry is not None and entry.platform is not None:
        fields.append(("platform", entry.platform))
    return gojson.Struct(fields)
