"""The parts of images: digests, platforms, and the descriptors that tie content to them.

Everything here is a frozen value that was checked when it was made: a :class:`Digest` that exists is valid, so
it may become part of a path or a URL. Nothing here reads or fetches.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from .errors import InvalidDigestError, InvalidInputError, InvalidPlatformError
from .text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import _Hash

__all__ = [
    "DOCKER_CONFIG",
    "DOCKER_FOREIGN_LAYER",
    "DOCKER_FOREIGN_LAYER_GZIP",
    "DOCKER_LAYER",
    "DOCKER_LAYER_GZIP",
    "DOCKER_LAYER_ZSTD",
    "DOCKER_MANIFEST",
    "DOCKER_MANIFEST_LIST",
    "FOREIGN_LAYER_TYPES",
    "INDEX_TYPES",
    "LAYER_TYPES",
    "MANIFEST_TYPES",
    "MAX_EXPANSION",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "OCI_NONDISTRIBUTABLE_LAYER",
    "OCI_NONDISTRIBUTABLE_LAYER_GZIP",
    "OCI_NONDISTRIBUTABLE_LAYER_ZSTD",
    "Descriptor",
    "Digest",
    "Format",
    "Layers",
    "Limits",
    "Platform",
    "Share",
    "chain_id",
    "check_choice",
    "check_format",
    "check_limits",
    "compression",
    "is_layer_media_type",
]

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


# ── names of images in layouts ──

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation that names an image in an OCI image layout (OCI image-spec, annotations.md); Docker puts the tag there."""
CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The annotation with an image's whole name, which containerd and Docker import it by."""

# ── formats, layers, limits ──

Format = Literal["docker", "oci"]
"""The layout of an archive: that of containers/image, or that of Docker's containerd store."""
Layers = Literal["keep", "decompress"]
"""The ways to store layers: as they are, or as plain tars."""


MAX_EXPANSION: Final = 1100
"""Plain bytes that are accepted for each compressed one, beyond the first 64 MiB of a layer.

Deflate cannot make more than 1,032 of one, so this never refuses gzip. zstd makes 32,768 of one and more: there it is what
tells an attack from all but huge sparse files.
"""


Share = Callable[[object, int], bool]
"""A function that is called with a layer and the plain bytes by which that layer exceeds its expansion ratio. It returns
whether all layers together are still within their common limit."""


class Limits(NamedTuple):
    """The limits on how far layers may expand, see :class:`~aiodockersave.ArchiveWriter`; ``share`` is what they have in common."""

    max_plain_size: int | None = None
    max_expansion: int | None = MAX_EXPANSION
    share: Share | None = None


def check_limits(*, max_plain_size: object, max_expansion: object) -> None:
    """Raise :class:`InvalidInputError` unless limits of what is decompressed are numbers that make sense, or None."""
    for name, value, least, unit in (
        ("max_plain_size", max_plain_size, 0, "bytes"),
        ("max_expansion", max_expansion, 1, "plain bytes for one compressed"),
    ):
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: use a number of {unit}")
        if value < least:
            raise InvalidInputError(f"{name}={value!r}: use a number of {unit}, {least} or more")


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is one of a ``Literal``'s ``choices``."""
    allowed = get_args(choices)
    if value not in allowed:
        raise InvalidInputError(f"{name}={value!r}: use one of {', '.join(map(repr, allowed))}")


def check_format(format: Format, layers: Layers) -> None:
    """Check that a format exists and can store layers in this way.

    Raises:
        InvalidInputError: There is no such format, or no such way, or the two do not go together.
    """
    check_choice("format", format, Format)
    check_choice("layers", layers, Layers)
    if format == "oci" and layers == "decompress":
        raise InvalidInputError(
            "format='oci' keeps the manifest and its digest, which plain layers would change: pass layers='keep', or "
            "format='docker'"
        )


# ── digests ──

_HEX = {"sha256": re.compile("[0-9a-f]{64}"), "sha512": re.compile("[0-9a-f]{128}")}


# With weak references: a source keeps, for as long as a digest lives, which repository it came from.
@dataclass(frozen=True, slots=True, order=True, repr=False, weakref_slot=True)
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
_PLATFORM = re.compile(
    r"(?P<os>[^/()]+)(?:\((?P<first>[^/()]+)\))?/(?P<architecture>[^/:]+)(?:/(?P<variant>[^/:]+))?(?::(?P<last>[^/:]+))?"
)
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
    """A platform that an image runs on (OCI image-spec, image-index.md), normalised as containerd does it.

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
        """Parse ``os[(version)]/architecture[/variant]``, as containerd writes it, or with ``:version`` at its end, as crane does.

        Raises:
            InvalidPlatformError: It has another form.
        """
        if not isinstance(text, str):
            raise TypeError(f"a platform is a str, not {type(text).__name__}")
        found = _PLATFORM.fullmatch(text)
        if found is None or (found["first"] and found["last"]):
            raise InvalidPlatformError(
                text, "write os/architecture[/variant], such as linux/arm64, or windows/amd64:10.0.20348"
            )
        version = found["first"] or found["last"] or ""
        return cls(found["os"], found["architecture"], found["variant"] or "", version)

    def __str__(self) -> str:
        version = f"({self.os_version})" if self.os_version else ""
        return "/".join(filter(None, (f"{self.os}{version}", self.architecture, self.variant)))

    def fallbacks(self) -> Iterator[Platform]:
        """Yield the platforms whose images run on this one, the best first."""
        yield self
        for variant in _FALLBACKS.get((self.architecture, self.variant), ()):
            yield replace(self, variant=variant)

    def runs(self, image: Platform) -> bool:
        """Tell whether an image is for exactly this platform.

        A version is compared where both have one, by its whole parts: 10.0.20348 is every build of that.
        """
        # Field by field: an index may list thousands.
        return (
            self.architecture == image.architecture
            and self.os == image.os
            and self.variant == image.variant
            and (
                self.os_version in ("", image.os_version)
                or not image.os_version
                or image.os_version.startswith(f"{self.os_version}.")
            )
        )


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
        media_type: The type of the content.
        digest: The digest of the content as it is stored.
        size: Its size in bytes, as it is stored; None where it is not known.
        platform: The platform of the content, in the descriptors of an index.
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
            raise InvalidInputError(f"not a media type: {quoted(self.media_type)}")
        if self.size is not None and not 0 <= self.size < 2**63:
            raise InvalidInputError("the size is negative or has more than 63 bits")
        object.__setattr__(self, "annotations", dict(self.annotations))
        object.__setattr__(self, "urls", tuple(self.urls))


def _check_type(value: object, types: type | tuple[type, ...], name: str) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError(f"{name} must not be of type {type(value).__name__}")
