"""What images are made of: digests, descriptors, platforms, and the three documents that tie them.

Everything here is a frozen value that was checked when it was made: a :class:`Digest` that exists is valid, so
it may become part of a path or a URL. Documents keep their raw bytes, because their digest is the digest of
those bytes and a document that was parsed and written again is another one. Nothing here reads or fetches.

::

    ImageIndex ──manifests──▶ ImageManifest ──config──▶ ImageConfig (its digest is the image ID)
                                            ──layers──▶ layer blobs  (diff_ids: their plain digests)

Field names are matched as Go's ``encoding/json`` matches them, without regard to case, since that is what
every consumer does; a field that stands there in two spellings is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, cast

from . import gojson
from .errors import (
    ContentTooLargeError,
    InvalidDigestError,
    InvalidDocumentError,
    InvalidInputError,
    InvalidPlatformError,
    PlatformNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import _Hash

# ── media types: OCI image-spec, media-types.md; distribution, manifest-v2-2.md ──

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_NONDISTRIBUTABLE_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_NONDISTRIBUTABLE_LAYER_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_NONDISTRIBUTABLE_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

MANIFEST_TYPES: Final = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
INDEX_TYPES: Final = frozenset({DOCKER_MANIFEST_LIST, OCI_INDEX})
FOREIGN_LAYER_TYPES: Final = frozenset(
    {
        DOCKER_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP,
        OCI_NONDISTRIBUTABLE_LAYER,
        OCI_NONDISTRIBUTABLE_LAYER_GZIP,
        OCI_NONDISTRIBUTABLE_LAYER_ZSTD,
    }
)
LAYER_TYPES: Final = FOREIGN_LAYER_TYPES | {
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
}

MAX_DOCUMENT_SIZE: Final = 4 * 1024 * 1024
"""Bytes of a manifest, index or config that are read into memory (containers/image has the same limit)."""

LEGACY_ATTRIBUTES: Final = (
    "architecture",
    "config",
    "container",
    "container_config",
    "created",
    "docker_version",
    "os",
)
"""What a docker archive's legacy metadata copies from the config (containers/image, docker/internal/tarfile)."""


def compression(media_type: str) -> Literal["gzip", "zstd"] | None:
    """Tell the compression that a media type names; None for plain and for unknown types."""
    if media_type.endswith((".tar.gzip", "+gzip")):
        return "gzip"
    if media_type.endswith((".zstd", "+zstd")):
        return "zstd"
    return None


def is_layer_media_type(media_type: str) -> bool:
    """Tell whether this is the media type of an image's layer, foreign layers included."""
    return media_type in LAYER_TYPES


# ── digests ──

_HEX = {"sha256": re.compile("[0-9a-f]{64}"), "sha512": re.compile("[0-9a-f]{128}")}


@dataclass(frozen=True, slots=True, order=True, repr=False)
class Digest:
    """A valid digest, ``algorithm:encoded`` (OCI image-spec, descriptor.md § Digests).

    Attributes:
        algorithm: ``sha256`` or ``sha512``.
        encoded: The hash, in lower-case hex.
    """

    algorithm: str
    encoded: str

    def __post_init__(self) -> None:
        _check_type(self.algorithm, str, "algorithm")
        _check_type(self.encoded, str, "encoded")
        pattern = _HEX.get(self.algorithm)
        if pattern is None or not pattern.fullmatch(self.encoded):
            raise InvalidDigestError(str(self), _digest_fault(self.algorithm, self.encoded))

    @classmethod
    def parse(cls, text: str | Digest) -> Digest:
        """Parse ``algorithm:encoded``; a :class:`Digest` is returned as it is.

        Raises:
            InvalidDigestError: It is no digest of a known algorithm.
        """
        if isinstance(text, Digest):
            return text
        if not isinstance(text, str):
            raise TypeError(f"a digest is a str or a Digest, not {type(text).__name__}")
        algorithm, colon, encoded = text.partition(":")
        if not colon:
            raise InvalidDigestError(text, "there is no ':' between algorithm and hash")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Compute the digest of bytes."""
        if algorithm not in _HEX:
            raise InvalidDigestError(algorithm, _digest_fault(algorithm, ""))
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> _Hash:
        """Return a new ``hashlib`` object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"

    def __repr__(self) -> str:
        return f"Digest({self.algorithm}:{self.encoded[:12]}…)"


def _digest_fault(algorithm: str, encoded: str) -> str:
    if algorithm not in _HEX:
        return "the algorithm must be sha256 or sha512"
    if not re.fullmatch("[0-9a-f]*", encoded.lower()) or not encoded.isascii():
        return "the hash has characters other than 0-9 and a-f"
    if encoded != encoded.lower():
        return "the hash must be in lower case"
    size = 64 if algorithm == "sha256" else 128
    return f"the hash has {len(encoded)} characters, {algorithm} has {size}"


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """Compute the chain ID of a stack of layers (OCI image-spec, config.md § Layer ChainID).

    Args:
        diff_ids: The digests of the plain layers, base first. Digests of compressed blobs give a number
            that is no chain ID.

    Raises:
        InvalidInputError: There are no layers.
    """
    if not diff_ids:
        raise InvalidInputError("an image without layers has no chain ID")
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = Digest.of(f"{chain} {diff_id}".encode())
    return chain


# ── platforms ──

_PLATFORM_PART = re.compile("[A-Za-z0-9_.-]+")
_ARCHITECTURES = {
    "aarch64": ("arm64", ""),
    "armel": ("arm", "v6"),
    "armhf": ("arm", "v7"),
    "i386": ("386", ""),
    "x86-64": ("amd64", ""),
    "x86_64": ("amd64", ""),
}
# The first is what an architecture without variant means, and, but for arm, is left out.
_DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
_FALLBACKS = {
    ("amd64", "v4"): ("v3", "v2", ""),
    ("amd64", "v3"): ("v2", ""),
    ("amd64", "v2"): ("",),
    ("arm", "v8"): ("v7", "v6", "v5"),
    ("arm", "v7"): ("v6", "v5"),
    ("arm", "v6"): ("v5",),
    ("arm64", "v9"): ("",),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on (OCI image-spec, image-index.md), normalised as containerd does it.

    ``linux/aarch64`` and ``linux/arm64/v8`` are both ``linux/arm64``; ``linux/arm`` is ``linux/arm/v7``.

    Attributes:
        os: Operating system, such as ``linux``.
        architecture: Processor, by its name in Go, such as ``amd64``.
        variant: Variant of the processor, such as ``v7``, or empty.
        os_version: Version of the operating system (Windows), or empty.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __post_init__(self) -> None:
        for part in (self.os, self.architecture, self.variant, self.os_version):
            _check_type(part, str, "a part of a platform")
        for part in (self.os, self.architecture, self.variant or "-", self.os_version or "-"):
            if not _PLATFORM_PART.fullmatch(part):
                raise InvalidPlatformError(str(self), "each part is made of A-Z a-z 0-9 _ . and -")
        os = self.os.lower()
        architecture, variant = _normalise(self.architecture.lower(), self.variant.lower())
        object.__setattr__(self, "os", "darwin" if os == "macos" else os)
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "variant", variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``os/architecture[/variant]``.

        Raises:
            InvalidPlatformError: It has another form.
        """
        if not isinstance(text, str):
            raise TypeError(f"a platform is a str, not {type(text).__name__}")
        parts = text.split("/")
        if len(parts) not in (2, 3) or "" in parts:
            raise InvalidPlatformError(text, "write os/architecture[/variant], such as linux/arm64")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def fallbacks(self) -> Iterator[Platform]:
        """Yield what runs on this platform too, the best first."""
        yield self
        for variant in _FALLBACKS.get((self.architecture, self.variant), ()):
            yield replace(self, variant=variant)

    def runs(self, image: Platform) -> bool:
        """Tell whether an image is for exactly this platform; without ``os_version`` any will do."""
        return image == (self if self.os_version else replace(self, os_version=image.os_version))


def _normalise(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = _ARCHITECTURES.get(architecture, (architecture, variant))
    default = _DEFAULT_VARIANTS.get(architecture)
    if default is None:
        return architecture, variant
    if variant[:1].isdigit():
        variant = f"v{variant}"
    variant = variant.removesuffix(".0") or default
    return architecture, "" if variant == default and architecture != "arm" else variant


# ── descriptors ──


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Type, digest and size of stored content (OCI image-spec, descriptor.md).

    Attributes:
        media_type: What the content is.
        digest: The digest of the content as it is stored.
        size: Its size in bytes, as it is stored; None where it is not known.
        platform: What it runs on, in the descriptors of an index.
        annotations: Free text by key. Not to be changed.
        urls: Where else the content is, for foreign layers.
    """

    media_type: str
    digest: Digest
    size: int | None
    platform: Platform | None = None
    # A plain dict, not a proxy: descriptors travel inside errors, which can be pickled.
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_type(self.media_type, str, "media_type")
        _check_type(self.digest, Digest, "digest")
        _check_type(self.platform, (Platform, type(None)), "platform")
        _check_type(self.size, (int, type(None)), "size")
        _check_type(self.annotations, Mapping, "annotations")
        _check_type(self.urls, (tuple, list), "urls")
        if not self.media_type or not self.media_type.isascii() or not self.media_type.isprintable():
            raise InvalidInputError(f"not a media type: {self.media_type!r:.100}")
        if self.size is not None and not 0 <= self.size < 2**63:
            raise InvalidInputError("the size is negative or has more than 63 bits")
        object.__setattr__(self, "annotations", dict(self.annotations))
        object.__setattr__(self, "urls", tuple(self.urls))

    @classmethod
    def parse(cls, obj: object, media_type: str) -> Descriptor:
        """Read a descriptor out of a document.

        Args:
            obj: The parsed JSON of the descriptor.
            media_type: The media type of the document that holds it, for the error.

        Raises:
            InvalidDocumentError: It is no descriptor, or one of its fields is not valid.
        """
        fields = _Fields(obj, media_type, "a descriptor")
        size = fields.get("size")
        if type(size) is not int:
            raise fields.fault("size", "is no whole number of at most 63 bits")
        try:
            return cls(
                fields.text("mediaType"),
                Digest.parse(fields.text("digest")),
                size,
                fields.platform("platform"),
                fields.annotations(),
                tuple(fields.texts("urls")),
            )
        except InvalidInputError as error:
            raise InvalidDocumentError(media_type, str(error)) from None


def _check_type(value: object, types: type | tuple[type, ...], name: str) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError(f"{name} must not be of type {type(value).__name__}")


# ── documents ──

_FIELDS = {
    name.casefold(): name
    for name in (
        *(
            "annotations",
            "architecture",
            "artifactType",
            "config",
            "diff_ids",
            "digest",
            "fsLayers",
            "layers",
        ),
        *("manifests", "mediaType", "os", "os.version", "platform", "rootfs", "schemaVersion", "size"),
        *("subject", "urls", "variant"),
    )
}


class _Fields:
    """The fields of one JSON object that we know, with errors that say which is wrong."""

    def __init__(self, obj: object, media_type: str, what: str) -> None:
        if not isinstance(obj, Mapping):
            raise InvalidDocumentError(media_type, f"{what} is no JSON object")
        self._media_type = media_type
        self._values: dict[str, object] = {}
        self._twice: set[str] = set()
        for key, value in obj.items():
            name = _FIELDS.get(key.casefold())
            if name in self._values:
                self._twice.add(name)
            elif name is not None:
                self._values[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> object:
        """Return a field's value, None where there is none."""
        if name in self._twice:
            raise self.fault(name, "stands twice, in two spellings")
        return self._values.get(name)

    def fault(self, name: str, reason: str) -> InvalidDocumentError:
        return InvalidDocumentError(self._media_type, f"the field {name} {reason}")

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise self.fault(name, "is missing or no text")
        return value

    def items(self, name: str) -> list[object]:
        """Return a list; ``null`` is how Go writes an empty one."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fault(name, "is no list")
        return value

    def texts(self, name: str) -> list[str]:
        items = self.items(name)
        if not all(isinstance(item, str) for item in items):
            raise self.fault(name, "is no list of texts")
        return cast("list[str]", items)

    def descriptor(self, name: str) -> Descriptor:
        if self.get(name) is None:
            raise self.fault(name, "is missing")
        return Descriptor.parse(self.get(name), self._media_type)

    def descriptors(self, name: str) -> tuple[Descriptor, ...]:
        if name not in self:
            raise self.fault(name, "is missing")
        return tuple(Descriptor.parse(item, self._media_type) for item in self.items(name))

    def annotations(self) -> dict[str, str]:
        values = self.get("annotations")
        if values is None:
            return {}
        if not isinstance(values, dict) or not all(
            isinstance(value, str | None) for value in values.values()
        ):
            raise self.fault("annotations", "is no object of texts")
        return {key: value or "" for key, value in values.items()}

    def platform(self, name: str) -> Platform | None:
        """Read a platform; one that is empty or odd, as in the indexes of artifacts, counts as none."""
        if self.get(name) is None:
            return None
        return _Fields(self.get(name), self._media_type, "a platform").own_platform()

    def own_platform(self) -> Platform | None:
        parts = [self.get(name) for name in ("os", "architecture", "variant", "os.version")]
        try:
            return Platform(*("" if part is None else part for part in parts))  # type: ignore[arg-type]  # it checks
        except (InvalidPlatformError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """The document that lists an image's config and layers.

    OCI image-spec, manifest.md; distribution, Image Manifest Version 2, Schema 2.

    Attributes:
        raw: The document, as it was received.
        media_type: Its media type.
        digest: Its SHA-256.
        config: Descriptor of the config.
        layers: Descriptors of the layers, base first.
        annotations: Free text by key. Not to be changed.
        artifact_type: What it is if it is no image, or None.
        subject: The manifest that this one is about, or None.
    """

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    artifact_type: str | None = None
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> ImageManifest:
        """Parse and check a manifest.

        Args:
            raw: The document.
            media_type: What its sender said that it is. It must agree with the document's own ``mediaType``.

        Raises:
            ContentTooLargeError: It is larger than 4 MiB.
            InvalidDocumentError: It is no image manifest, or not a valid one.
        """
        return _manifest(raw, *_open_document(raw, media_type, MANIFEST_TYPES))

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of this document."""
        return Descriptor(self.media_type, self.digest, len(self.raw))


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The document that lists one image's manifests for several platforms.

    OCI image-spec, image-index.md; Docker calls it a manifest list.

    Attributes:
        raw: The document, as it was received.
        media_type: Its media type.
        digest: Its SHA-256.
        manifests: Descriptors of the manifests.
        annotations: Free text by key. Not to be changed.
    """

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> ImageIndex:
        """Parse and check an index; arguments and errors as :meth:`ImageManifest.parse`."""
        return _index(raw, *_open_document(raw, media_type, INDEX_TYPES))

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of this document."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    def select(self, platform: Platform) -> Descriptor:
        """Choose the manifest for a platform.

        The exact variant wins, then the next lower one that the processor runs (arm v7, v6, v5). Among
        equals the first counts. Attestations are no choice, and a manifest that names no platform is
        one only where there is no other.

        Raises:
            PlatformNotFoundError: There is none.
        """
        choices = [manifest for manifest in self.manifests if not _is_attestation(manifest)]
        if len(choices) == 1 and choices[0].platform is None:
            return choices[0]
        for wanted in platform.fallbacks():
            for choice in choices:
                if choice.platform is not None and wanted.runs(choice.platform):
                    return choice
        raise PlatformNotFoundError(platform, [choice.platform for choice in choices if choice.platform])


def _is_attestation(manifest: Descriptor) -> bool:
    """Tell BuildKit's provenance from images; buildx marks it both ways (moby/buildkit, attestation-storage.md)."""
    if manifest.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
        return True
    return manifest.platform == Platform("unknown", "unknown")


def parse_document(raw: bytes, media_type: str | None = None) -> ImageManifest | ImageIndex:
    """Parse what a registry answers for a reference; arguments and errors as :meth:`ImageManifest.parse`."""
    found, fields = _open_document(raw, media_type, MANIFEST_TYPES | INDEX_TYPES)
    return (_index if found in INDEX_TYPES else _manifest)(raw, found, fields)


def _manifest(raw: bytes, media_type: str, fields: _Fields) -> ImageManifest:
    return ImageManifest(
        raw,
        media_type,
        Digest.of(raw),
        fields.descriptor("config"),
        fields.descriptors("layers"),
        fields.annotations(),
        None if fields.get("artifactType") is None else fields.text("artifactType"),
        None if fields.get("subject") is None else fields.descriptor("subject"),
    )


def _index(raw: bytes, media_type: str, fields: _Fields) -> ImageIndex:
    return ImageIndex(raw, media_type, Digest.of(raw), fields.descriptors("manifests"), fields.annotations())


def _open_document(raw: bytes, media_type: str | None, accepted: frozenset[str]) -> tuple[str, _Fields]:
    """Read what manifests and indexes have in common; return the media type too."""
    _check_size(raw, "manifest")
    if media_type not in (None, *MANIFEST_TYPES, *INDEX_TYPES):
        raise InvalidDocumentError(
            OCI_MANIFEST, f"{media_type!r:.100} is no manifest's or index's media type"
        )
    fields = _Fields(
        gojson.parse(raw, media_type or OCI_MANIFEST, unique=True), media_type or OCI_MANIFEST, "the document"
    )
    found = _agreed_type(fields, media_type)
    if found not in accepted:
        is_index = found in INDEX_TYPES
        raise InvalidDocumentError(
            found, "it is an index, not a manifest" if is_index else "it is a manifest, not an index"
        )
    return found, fields


def _agreed_type(fields: _Fields, media_type: str | None) -> str:
    """Find the document's media type, and refuse what can be read in two ways (CVE-2021-41190)."""
    version = fields.get("schemaVersion")
    if version == 1 or "fsLayers" in fields:
        raise fields.fault(
            "schemaVersion", "is 1: Docker's schema 1 is not supported, only schema 2 and OCI are"
        )
    if version != 2 or not isinstance(version, int):
        raise fields.fault("schemaVersion", "is not 2")
    is_index = "manifests" in fields
    if is_index and ("layers" in fields or "config" in fields):
        raise fields.fault("manifests", "stands beside config or layers: it is both an index and a manifest")
    own = fields.get("mediaType")
    found = media_type or (OCI_INDEX if is_index else OCI_MANIFEST) if own in (None, "") else own
    known = INDEX_TYPES if is_index else MANIFEST_TYPES
    if not isinstance(found, str) or found not in known or media_type not in (None, found):
        raise fields.fault("mediaType", f"is {own!r:.100}, which does not agree with what the document is")
    return found


def _check_size(raw: bytes, what: str) -> None:
    if not isinstance(raw, bytes):
        raise TypeError(f"a document is bytes, not {type(raw).__name__}")
    if len(raw) > MAX_DOCUMENT_SIZE:
        raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what=what)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's config: what it runs on and which layers it is made of (OCI image-spec, config.md).

    Attributes:
        raw: The document, as it was received.
        digest: Its SHA-256, which is the image ID.
        platform: What the image runs on; None where the config does not say it.
        diff_ids: The digests of the plain layers, base first.
        legacy_attributes: The tokens of the seven top-level members that go into a docker archive's legacy
            metadata, as Go's ``encoding/json`` copies them; ``null`` where the config has none. Not to be
            changed.
    """

    raw: bytes = field(repr=False)
    digest: Digest
    platform: Platform | None
    diff_ids: tuple[Digest, ...]
    legacy_attributes: Mapping[str, bytes] = field(hash=False, repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Parse and check a config. What the config is not asked for here is not looked at.

        Raises:
            ContentTooLargeError: It is larger than 4 MiB.
            InvalidDocumentError: It is no JSON object (or ``null``), or its diff IDs are not valid.
        """
        _check_size(raw, "config")
        tokens = gojson.raw_object(raw, OCI_CONFIG) or {}
        fields = _Fields(tokens, OCI_CONFIG, "the config")
        return cls(
            raw,
            Digest.of(raw),
            _config_platform(fields),
            _diff_ids(fields),
            {name: tokens.get(name, b"null") for name in LEGACY_ATTRIBUTES},
        )

    @property
    def image_id(self) -> Digest:
        """The image ID: the digest of the config."""
        return self.digest


def _config_platform(fields: _Fields) -> Platform | None:
    names = ("os", "architecture", "variant", "os.version")
    try:
        values = {name: _value(fields, name) for name in names}
    except InvalidDocumentError:
        return None
    return _Fields(values, OCI_CONFIG, "the config").own_platform()


def _diff_ids(fields: _Fields) -> tuple[Digest, ...]:
    rootfs = _value(fields, "rootfs")
    if rootfs is None:
        return ()
    try:
        return tuple(map(Digest.parse, _Fields(rootfs, OCI_CONFIG, "rootfs").texts("diff_ids")))
    except InvalidDigestError as error:
        raise InvalidDocumentError(OCI_CONFIG, str(error)) from None


def _value(fields: _Fields, name: str) -> object:
    token = fields.get(name)
    return gojson.parse(token, OCI_CONFIG) if isinstance(token, bytes) else None
