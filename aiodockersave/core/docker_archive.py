"""The members of an archive: which there are, under which names, with which JSON.

``format="docker"``, as containers/image writes it::

    <hex>.tar                  a layer, when it is put (.tar.gz, .tar.zst where it is kept compressed)
    <hex>.json                 a config
    <legacy id>/layer.tar      -> ../<hex>.tar        ┐
    <legacy id>/VERSION        1.0                    ├ once per legacy ID, after its image's config
    <legacy id>/json           v1 metadata            ┘
    manifest.json              [{"Config", "RepoTags", "Layers"}, …]
    repositories               {name: {tag: legacy ID of the top layer}}
    (two blocks of zeros)

Layers lie in the root because ``docker load`` takes every directory for an image.

The idea to know first: the builder works in two steps. **prepare** returns the members that would follow,
given the content of the archive so far, and changes nothing; **commit** records that they are in now. A writer
commits when its sink has taken the bytes, so a rewind has nothing to undo; a plan commits at once, so the
two cannot drift.

Source: containers/image v5, ``docker/internal/tarfile/writer.go``.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from . import gojson, tar
from .documents import ImageConfig, ImageIndex, ImageManifest
from .errors import (
    DigestMismatchError,
    ImageConflictError,
    InvalidInputError,
    NameConflictError,
    SizeMismatchError,
)
from .model import Descriptor, Digest, compression
from .reference import Reference, parse_repo_tags

_EXTENSIONS = {None: ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}
_LAYER_ATTRIBUTE = "layer_id"


# ── members ──


class Member(NamedTuple):
    """One entry of an archive: header, then data, then padding.

    Attributes:
        name: The name in the archive.
        size: The size of the data, in bytes.
        header: The header: 512 bytes, or 1,536 with PAX.
        data: The data, or None where they are a blob's, which comes from elsewhere.
        digest: The digest of the data; None for a symbolic link.
    """

    name: str
    size: int
    header: bytes
    data: bytes | None
    digest: Digest | None

    @property
    def total_size(self) -> int:
        """Header, data and padding, in bytes."""
        return len(self.header) + self.size + -self.size % tar.BLOCK_SIZE

    @property
    def literal(self) -> bytes:
        """All bytes of a member whose data are known: header, data, padding."""
        if self.data is None:
            raise AssertionError(f"the data of {self.name} are not known")
        return b"".join((self.header, self.data, tar.padding(self.size)))


def blob_member(name: str, digest: Digest, size: int) -> Member:
    """Return a member whose data are the blob ``digest`` of ``size`` bytes."""
    return Member(name, size, tar.member_header(name, size), None, digest)


class _File(NamedTuple):
    name: str
    data: bytes

    def member(self) -> Member:
        header = tar.member_header(self.name, len(self.data))
        return Member(self.name, len(self.data), header, self.data, Digest.of(self.data))


class _Link(NamedTuple):
    name: str
    target: str

    def member(self) -> Member:
        return Member(self.name, 0, tar.link_header(self.name, self.target), b"", None)


@dataclass(frozen=True, slots=True)
class _Made(Collection[Member]):
    """Members that are made anew at each iteration: kept headers would be most of the memory of an image's metadata."""

    entries: tuple[_File | _Link, ...]

    def __iter__(self) -> Iterator[Member]:
        return (entry.member() for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, member: object) -> bool:
        return any(member == each for each in self)


@dataclass(frozen=True, slots=True)
class ManifestItem:
    """One element of ``manifest.json``.

    Attributes:
        image_id: The digest of the config.
        config: The config's name in the archive.
        repo_tags: ``name:tag``, in the order they came: with registry and ``library/`` spelled out in a ``docker`` archive,
            as short as Docker shows them in an ``oci`` archive.
        layers: The layers' names in the archive, base first.
    """

    image_id: Digest
    config: str
    repo_tags: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Addition:
    """The changes that a builder's ``commit`` records once ``members`` are in the archive."""

    members: Collection[Member] = ()
    blobs: Mapping[Digest, Member] = field(default_factory=dict)
    legacy_ids: frozenset[str] = frozenset()
    item: ManifestItem | None = None
    entries: Mapping[tuple[Digest, str], gojson.Struct] = field(default_factory=dict)
    repositories: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def head(self) -> bytes:
        """All bytes before the data of the last member: its header, and the members before it, whose data are known."""
        *before, last = self.members
        return b"".join((*(member.literal for member in before), last.header))

    def made(self) -> Addition:
        """Return the addition with its members in memory, for a caller that iterates over them more than once."""
        return replace(self, members=tuple(self.members))


# ── images ──


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it can be put: a config whose digest and size were checked, and its layers.

    Attributes:
        config: The config.
        layers: The layers, base first.
        repo_tags: Its names.
        manifest: The manifest, where the caller has one.
        index: The index that the manifest was chosen from; None where there was none.
    """

    config: ImageConfig
    layers: tuple[Descriptor, ...]
    repo_tags: tuple[Reference, ...]
    manifest: ImageManifest | None = None
    index: ImageIndex | None = None


def read_image(
    config: bytes,
    image: ImageManifest | Sequence[Descriptor],
    repo_tags: Iterable[str] = (),
    index: ImageIndex | None = None,
) -> Image:
    """Check config, layers and names of an image, before anything of it is written.

    Raises:
        InvalidDocumentError: ``config`` is no image config.
        ContentTooLargeError: It is larger than 4 MiB.
        DigestMismatchError, SizeMismatchError: It is not the config that the manifest names.
        InvalidReferenceError: A repo tag is no reference, or has a digest.
        InvalidInputError: There are not as many layers as diff IDs.
    """
    references = parse_repo_tags(repo_tags)
    parsed = ImageConfig.parse(config)
    manifest = None
    if isinstance(image, ImageManifest):
        manifest, image = image, image.layers
        _check_config(parsed, manifest.config)
    layers = tuple(image)
    for layer in layers:
        if not isinstance(layer, Descriptor):
            raise TypeError(f"a layer of an image is a Descriptor, not {type(layer).__qualname__}")
    if len(layers) != len(parsed.diff_ids):
        raise InvalidInputError(
            f"image {parsed.digest} has {len(layers)} layers, but {len(parsed.diff_ids)} diff IDs in its config"
        )
    if not isinstance(index, ImageIndex | None):
        raise TypeError(f"index is an ImageIndex or None, not {type(index).__qualname__}")
    return Image(parsed, layers, references, manifest, index)


def _check_config(config: ImageConfig, expected: Descriptor) -> None:
    if expected.size is not None and len(config.raw) != expected.size:
        raise SizeMismatchError(expected.size, len(config.raw), what=f"config {expected.digest}")
    actual = Digest.of(config.raw, expected.digest.algorithm)
    if actual != expected.digest:
        raise DigestMismatchError(expected.digest, actual, what="config", descriptor=expected)


# ── the builder ──


class Names:
    """The image that each name in an archive stands for: one name, one image.

    Docker and containerd give a name that stands there twice to the last image, podman and skopeo to the first.
    """

    def __init__(self) -> None:
        self._images: dict[str, Digest] = {}

    def check(self, image_id: Digest, repo_tags: Iterable[str]) -> None:
        """Refuse an image that would share a name with another one.

        Raises:
            NameConflictError: One of ``repo_tags`` stands for another image.
        """
        for tag in repo_tags:
            other = self._images.get(tag, image_id)
            if other != image_id:
                raise NameConflictError(tag, (other, image_id))

    def record(self, image_id: Digest, repo_tags: Iterable[str]) -> None:
        """Note the names of an image that was checked."""
        self._images.update(dict.fromkeys(repo_tags, image_id))


class Builder(abc.ABC):
    """The content of an archive so far, and the members that would follow.

    Pure: it does no I/O. An :class:`Addition` is valid until the next commit.
    """

    def __init__(self) -> None:
        self._blobs: dict[Digest, Member] = {}
        self._items: dict[Digest, ManifestItem] = {}
        self._names = Names()

    @property
    def items(self) -> tuple[ManifestItem, ...]:
        """The images that are in, in the order in which they came."""
        return tuple(self._items.values())

    def blob(self, digest: Digest) -> Member | None:
        """Return the member that holds the blob ``digest``, or None."""
        return self._blobs.get(digest)

    @abc.abstractmethod
    def prepare_blob(self, digest: Digest, size: int, media_type: str) -> Addition:
        """Return the member of a layer that is not in yet; it is the last of the addition."""

    @abc.abstractmethod
    def prepare_image(self, image: Image, stored: Sequence[Digest]) -> Addition:
        """Return the members of an image whose layers are in.

        Args:
            image: The image, as :func:`read_image` has checked it.
            stored: For each layer the digest under which it is in the archive.

        Raises:
            NameConflictError: A repo tag stands for another image that is in.
            InvalidInputError: A layer is not in, or one layer would stand for two diff IDs.
        """

    @abc.abstractmethod
    def prepare_end(self) -> Addition:
        """Return the members that close an archive; :data:`tar.END_OF_ARCHIVE` follows them."""

    @abc.abstractmethod
    def commit(self, addition: Addition) -> None:
        """Record that the members of ``addition`` are in the archive."""


class DockerBuilder(Builder):
    """The builder of a ``docker`` archive."""

    def __init__(self) -> None:
        super().__init__()
        self._legacy_ids: set[str] = set()
        self._repositories: dict[str, dict[str, str]] = {}

    def blob_name(self, digest: Digest, media_type: str) -> str:
        """Return the name that a layer gets; the extension comes from the media type alone."""
        return digest.encoded + _EXTENSIONS[compression(media_type)]

    def prepare_blob(self, digest: Digest, size: int, media_type: str) -> Addition:
        """Return the member of a layer that is not in yet."""
        member = blob_member(self.blob_name(digest, media_type), digest, size)
        return Addition((member,), blobs={digest: member})

    def prepare_image(self, image: Image, stored: Sequence[Digest]) -> Addition:
        """Return config and legacy metadata; arguments and errors as :meth:`Builder.prepare_image`.

        Raises:
            ImageConflictError: The same config is in with other layers.
        """
        paths = layer_paths(self._blobs, image, stored)
        old = self._items.get(image.config.digest)
        if old is not None and old.layers != paths:
            raise ImageConflictError(image.config.digest)
        added = [tag.repo_tag for tag in image.repo_tags]
        self._names.check(image.config.digest, added)
        tags = [*(old.repo_tags if old else ()), *added]
        name = f"{image.config.digest.encoded}.json"
        legacy = _legacy_layers(image.config, stored)
        entries: list[_File | _Link] = [] if old else [_File(name, image.config.raw)]
        # Images share legacy IDs: those that are in already are left out. Within one image they are all different.
        new = {identity: (path, data) for (identity, data), path in zip(legacy, paths, strict=True)}
        new = {identity: value for identity, value in new.items() if identity not in self._legacy_ids}
        for identity, (path, data) in new.items():
            entries += _legacy_entries(identity, path, data)
        top = legacy[-1][0] if legacy else None
        return Addition(
            _Made(tuple(entries)),
            legacy_ids=frozenset(new),
            item=ManifestItem(image.config.digest, name, tuple(dict.fromkeys(tags)), paths),
            repositories=_repositories(image.repo_tags, top),
        )

    def prepare_end(self) -> Addition:
        """Return the members that close an archive; :data:`tar.END_OF_ARCHIVE` follows them."""
        items = [
            gojson.Struct([("Config", item.config), ("RepoTags", item.repo_tags), ("Layers", item.layers)])
            for item in self._items.values()
        ]
        return Addition(
            _Made(
                (
                    _File("manifest.json", gojson.encode(items)),
                    _File("repositories", gojson.encode(self._repositories)),
                )
            )
        )

    def commit(self, addition: Addition) -> None:
        """Record that the members of ``addition`` are in the archive."""
        self._blobs.update(addition.blobs)
        self._legacy_ids |= addition.legacy_ids
        if addition.item is not None:
            self._items[addition.item.image_id] = addition.item
            self._names.record(addition.item.image_id, addition.item.repo_tags)
        for name, tags in addition.repositories.items():
            self._repositories.setdefault(name, {}).update(tags)


def check_no_document(digest: Digest, member: Member | None) -> None:
    """Refuse a layer whose blob is in an archive already, as the config or the manifest of another image.

    Raises:
        InvalidInputError: It is.
    """
    if member is not None and member.data is not None:
        raise InvalidInputError(
            f"blob {digest} is the config or manifest of one image, and a layer of another"
        )


def layer_paths(blobs: Mapping[Digest, Member], image: Image, stored: Sequence[Digest]) -> tuple[str, ...]:
    """Return the names of an image's layers in the archive, base first.

    Args:
        blobs: The members of the blobs that are in.
        image: The image.
        stored: For each layer the digest under which it is in the archive.

    Raises:
        InvalidInputError: A layer is not in, or one layer would stand for two diff IDs.
    """
    paths: list[str] = []
    diff_ids: dict[str, Digest] = {}
    for digest, diff_id in zip(stored, image.config.diff_ids, strict=True):
        member = blobs.get(digest)
        if member is None:
            raise InvalidInputError(f"layer {digest} is not in the archive: put it before its image")
        # containers/image refuses to read an archive in which one path serves two diff IDs.
        if diff_ids.setdefault(member.name, diff_id) != diff_id:
            raise InvalidInputError(
                f"layer {digest} stands for two diff IDs of image {image.config.digest}: "
                f"{diff_ids[member.name]} and {diff_id}"
            )
        paths.append(member.name)
    return tuple(paths)


# ── v1 metadata ──


def _legacy_layers(config: ImageConfig, stored: Sequence[Digest]) -> list[tuple[str, bytes]]:
    """Return legacy ID and ``json`` of each layer, base first.

    The ID is the SHA-256 of the layer's v1 metadata together with a seed: the recursion of OCI chain IDs, but
    over the digests of what is *stored*, so it is a chain ID only where the layers are plain.
    """
    layers: list[tuple[str, bytes]] = []
    seed = ""
    for index, digest in enumerate(stored):
        seed = str(Digest.of(f"{seed} {digest}".encode())) if seed else str(digest)
        metadata: dict[str, gojson.Value] = {}
        if index == len(stored) - 1:
            metadata |= {name: gojson.Raw(token) for name, token in config.legacy_attributes.items()}
        if layers:
            metadata["parent"] = layers[-1][0]
        identity = hashlib.sha256(gojson.encode(metadata | {_LAYER_ATTRIBUTE: seed})).hexdigest()
        layers.append((identity, gojson.encode(metadata | {"id": identity})))
    return layers


def _legacy_entries(identity: str, layer_path: str, data: bytes) -> list[_File | _Link]:
    return [
        _Link(f"{identity}/layer.tar", f"../{layer_path}"),
        _File(f"{identity}/VERSION", b"1.0"),
        _File(f"{identity}/json", data),
    ]


def _repositories(tags: Iterable[Reference], top: str | None) -> dict[str, dict[str, str]]:
    repositories: dict[str, dict[str, str]] = {}
    if top is not None:
        for reference in tags:
            repositories.setdefault(reference.name, {})[str(reference.tag)] = top
    return repositories
