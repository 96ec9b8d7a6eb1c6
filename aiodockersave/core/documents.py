"""The three documents that tie an image together: index, manifest, config.

::

    ImageIndex ──manifests──▶ ImageManifest ──config──▶ ImageConfig (its digest is the image ID)
                                            ──layers──▶ layer blobs  (diff_ids: their plain digests)

Documents keep their raw bytes, because their digest is the digest of those bytes and a document that was parsed
and written again is another one.

Field names are matched as Go's ``encoding/json`` matches them, without regard to case, since that is what
every consumer does; a field that stands there in two spellings is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

from . import gojson
from .errors import (
    ContentTooLargeError,
    InvalidDigestError,
    InvalidDocumentError,
    InvalidInputError,
    InvalidPlatformError,
    PlatformNotFoundError,
)
from .model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Digest,
    Platform,
)
from .text import listed, quoted

__all__ = [
    "LEGACY_ATTRIBUTES",
    "MAX_DOCUMENT_SIZE",
    "ImageConfig",
    "ImageIndex",
    "ImageManifest",
    "parse_descriptor",
    "parse_document",
]

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
"""The attributes of the config that a docker archive's legacy metadata copies (containers/image, docker/internal/tarfile)."""

_UNKNOWN = Platform("unknown", "unknown")

_FIELDS = {
    gojson.fold(name): name
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
        *(
            "manifests",
            "mediaType",
            "os",
            "os.features",
            "os.version",
            "platform",
            "rootfs",
            "schemaVersion",
            "size",
        ),
        *("subject", "urls", "variant"),
    )
}

_MAX_ANNOTATIONS = 64 << 10
"""Characters of annotations in one entry of an index that an archive repeats; real ones have some hundred."""
_SURROGATE = re.compile("[\ud800-\udfff]")  # Go reads each as U+FFFD, so that two such keys may be one
_BYTES = "application/octet-stream"
"""The media type of a config that has none, as in some images of 2015."""


class _Fields:
    """The fields of one JSON object that we know, with errors that say which is wrong."""

    def __init__(self, obj: object, media_type: str, what: str) -> None:
        if not isinstance(obj, Mapping):
            raise InvalidDocumentError(media_type, f"{what} is no JSON object")
        self._media_type = media_type
        self._values: dict[str, object] = {}
        self._twice: set[str] = set()
        for key, value in obj.items():
            name = _FIELDS.get(gojson.fold(key))
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

    def text_or_none(self, name: str) -> str | None:
        return None if self.get(name) is None else self.text(name)

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

    def descriptor(self, name: str, default_type: str | None = None) -> Descriptor:
        if self.get(name) is None:
            raise self.fault(name, "is missing")
        return _descriptor(self.get(name), self._media_type, default_type)

    def descriptors(self, name: str) -> tuple[Descriptor, ...]:
        if name not in self:
            raise self.fault(name, "is missing")
        return tuple(parse_descriptor(item, self._media_type) for item in self.items(name))

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

    def platform_token(self) -> bytes | None:
        """Return the platform as Go encodes it, fields that are empty left out; None where there is none, or an odd one."""
        if self.get("platform") is None:
            return None
        fields = _Fields(self.get("platform"), self._media_type, "a platform")
        order = ("architecture", "os", "os.version", "os.features", "variant")
        try:
            values: dict[str, Any] = {
                name: fields.texts(name) if name == "os.features" else fields.text_or_none(name) or ""
                for name in order
            }
        except InvalidDocumentError:
            return None
        always = ("architecture", "os")
        return gojson.encode(
            gojson.Struct([(name, values[name]) for name in order if values[name] or name in always])
        )

    def own_platform(self) -> Platform | None:
        parts = [self.get(name) for name in ("os", "architecture", "variant", "os.version")]
        try:
            return Platform(*("" if part is None else part for part in parts))  # type: ignore[arg-type]  # it checks
        except (InvalidPlatformError, TypeError):
            return None


def parse_descriptor(obj: object, media_type: str) -> Descriptor:
    """Read a descriptor out of a document.

    Args:
        obj: The parsed JSON of the descriptor.
        media_type: The media type of the document that holds it, for the error.

    Raises:
        InvalidDocumentError: It is no descriptor, or one of its fields is not valid.
    """
    return _descriptor(obj, media_type, None)


def _descriptor(obj: object, media_type: str, default_type: str | None) -> Descriptor:
    fields = _Fields(obj, media_type, "a descriptor")
    size = fields.get("size")
    if type(size) is not int:
        raise fields.fault("size", "is no whole number of at most 63 bits")
    try:
        return Descriptor(
            default_type
            if default_type and fields.get("mediaType") in (None, "")
            else fields.text("mediaType"),
            Digest.parse(fields.text("digest")),
            size,
            fields.platform("platform"),
            fields.annotations(),
            tuple(fields.texts("urls")),
        )
    except InvalidInputError as error:
        raise InvalidDocumentError(media_type, str(error)) from None


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
        artifact_type: The type of an artifact that is no image, or None.
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
            media_type: The type that the sender named. It must agree with the document's own ``mediaType``.

        Raises:
            ContentTooLargeError: It is larger than 4 MiB.
            InvalidDocumentError: It is no image manifest, or not a valid one.
        """
        return _manifest(raw, *_open_document(raw, media_type, MANIFEST_TYPES))

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of this document."""
        return Descriptor(self.media_type, self.digest, len(self.raw))


class IndexEntry(NamedTuple):
    """The words of an index about one of its manifests, besides type, digest and size.

    Attributes:
        annotations: Free text by key. Not to be changed.
        platform: The platform, as Go writes the one that stands there, with all that :class:`.Platform` normalises; None
            where there is none.
    """

    annotations: Mapping[str, str]
    platform: bytes | None


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

        The exact variant wins, then the next lower one that the processor runs (arm v7, v6, v5). Among equals the first
        counts. If a version is wanted, an entry that names one comes before an entry that names none. Attestations are
        no choice, and a manifest that names no platform is one only if there is no other.

        Raises:
            PlatformNotFoundError: There is none.
        """
        choices = [manifest for manifest in self.manifests if not _is_attestation(manifest)]
        if len(choices) == 1 and choices[0].platform is None:
            return choices[0]
        for wanted in platform.fallbacks():
            found = [each for each in choices if each.platform is not None and wanted.runs(each.platform)]
            if found:
                exact = [each for each in found if each.platform and each.platform.os_version]
                return exact[0] if wanted.os_version and exact else found[0]
        nameless = listed(str(each.digest) for each in choices if each.platform is None)
        advice = f"some say no platform, and can be named by their digests: {nameless}" if nameless else ""
        raise PlatformNotFoundError(
            platform, [each.platform for each in choices if each.platform is not None], advice
        )

    def entry(self, digest: Digest) -> IndexEntry | None:
        """Return the words of this index about one of its manifests; None where the index does not name it."""
        fields = _Fields(
            gojson.parse(self.raw, self.media_type, unique=True), self.media_type, "the document"
        )
        for item in fields.items("manifests"):
            found = _Fields(item, self.media_type, "a descriptor")
            if found.get("digest") == str(digest):
                return IndexEntry(_free_annotations(found), found.platform_token())
        return None


def _free_annotations(fields: _Fields) -> dict[str, str]:
    """Return the annotations of an index's entry that an archive may repeat: none that a reader takes for a name.

    Raises:
        InvalidDocumentError: They have more than 65,536 characters: an archive repeats them for each name.
    """
    annotations = fields.annotations()
    if sum(len(key) + len(value) for key, value in annotations.items()) > _MAX_ANNOTATIONS:
        raise fields.fault("annotations", f"of an entry has more than {_MAX_ANNOTATIONS} characters")
    return {
        _SURROGATE.sub("\ufffd", key): value
        for key, value in annotations.items()
        if key != REF_NAME and not key.startswith(("io.containerd.", "containerd.io/"))
    }


def _is_attestation(manifest: Descriptor) -> bool:
    """Tell BuildKit's provenance from images; buildx marks it both ways (moby/buildkit, attestation-storage.md)."""
    if manifest.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
        return True
    return manifest.platform == _UNKNOWN


def parse_document(raw: bytes, media_type: str | None = None) -> ImageManifest | ImageIndex:
    """Parse the document that a reference leads to; arguments and errors as :meth:`ImageManifest.parse`."""
    found, fields = _open_document(raw, media_type, MANIFEST_TYPES | INDEX_TYPES)
    return (_index if found in INDEX_TYPES else _manifest)(raw, found, fields)


def _manifest(raw: bytes, media_type: str, fields: _Fields) -> ImageManifest:
    return ImageManifest(
        raw,
        media_type,
        Digest.of(raw),
        fields.descriptor("config", _BYTES),
        fields.descriptors("layers"),
        fields.annotations(),
        fields.text_or_none("artifactType"),
        None if fields.get("subject") is None else fields.descriptor("subject"),
    )


def _index(raw: bytes, media_type: str, fields: _Fields) -> ImageIndex:
    return ImageIndex(raw, media_type, Digest.of(raw), fields.descriptors("manifests"), fields.annotations())


def _open_document(raw: bytes, media_type: str | None, accepted: frozenset[str]) -> tuple[str, _Fields]:
    """Read the fields that manifests and indexes have in common; return the media type too."""
    _check_size(raw, "manifest")
    if media_type not in (None, *MANIFEST_TYPES, *INDEX_TYPES):
        raise InvalidDocumentError(
            OCI_MANIFEST, f"{quoted(media_type)} is no manifest's or index's media type"
        )
    label = media_type or (OCI_INDEX if accepted <= INDEX_TYPES else OCI_MANIFEST)
    fields = _Fields(gojson.parse(raw, label, unique=True), label, "the document")
    found = _agreed_type(fields, media_type)
    if found not in accepted:
        is_index = found in INDEX_TYPES
        raise InvalidDocumentError(
            found, "it is an index, not a manifest" if is_index else "it is a manifest, not an index"
        )
    return found, fields


def _agreed_type(fields: _Fields, media_type: str | None) -> str:
    """Find the document's media type, and refuse a document that can be read in two ways (CVE-2021-41190)."""
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
        raise fields.fault("mediaType", f"is {quoted(own)}, which does not agree with what the document is")
    return found


def _check_size(raw: bytes, what: str) -> None:
    if not isinstance(raw, bytes):
        raise TypeError(f"a document is bytes, not {type(raw).__name__}")
    if len(raw) > MAX_DOCUMENT_SIZE:
        raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what=what)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's config: its platform and its layers (OCI image-spec, config.md).

    Attributes:
        raw: The document, as it was received.
        digest: Its SHA-256, which is the image ID.
        platform: The platform of the image; None where the config names none.
        diff_ids: The digests of the plain layers, base first.
        legacy_attributes: The tokens of the seven top-level members that go into a docker archive's legacy
            metadata, as Go's ``encoding/json`` copies them; ``null`` where the config has none. Not to be
            changed.
        has_variant: Whether the config says a variant of the processor; ``platform`` has one for ``arm`` in any case.
    """

    raw: bytes = field(repr=False)
    digest: Digest
    platform: Platform | None
    diff_ids: tuple[Digest, ...]
    legacy_attributes: Mapping[str, bytes] = field(hash=False, repr=False)
    has_variant: bool = True

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Parse and check a config. Members that this package does not use are not looked at.

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
            _says(fields, "variant"),
        )

    @property
    def image_id(self) -> Digest:
        """The image ID: the digest of the config."""
        return self.digest

    def contradicts(self, platform: Platform) -> bool:
        """Tell whether the config names a platform whose images do not run on ``platform``.

        Lower variants that the same processor runs are accepted. A field that the config lacks is not compared, nor are
        versions of operating systems.
        """
        own = self.platform
        if own is None:
            return False
        if not self.has_variant:
            return (own.os, own.architecture) != (platform.os, platform.architecture)
        return all(
            (own.os, own.architecture, own.variant) != (each.os, each.architecture, each.variant)
            for each in platform.fallbacks()
        )


def _config_platform(fields: _Fields) -> Platform | None:
    names = ("os", "architecture", "variant", "os.version")
    try:
        values = {name: _value(fields, name) for name in names}
    except InvalidDocumentError:
        return None
    return _Fields(values, OCI_CONFIG, "the config").own_platform()


def _says(fields: _Fields, name: str) -> bool:
    """Tell whether a field has a value that is not empty."""
    try:
        return bool(_value(fields, name))
    except InvalidDocumentError:
        return False


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
