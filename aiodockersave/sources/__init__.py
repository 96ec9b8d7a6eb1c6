"""The protocol of image sources, and the checks that all sources share.

A **source** has two methods. ``resolve`` turns a reference into one image for one platform: its manifest and
config. ``open_blob`` gives a blob's bytes. A source of your own is a few lines::

    class MySource:
        async def resolve(self, reference, platform):
            manifest = ImageManifest.parse(await self.get(reference))
            return ResolvedImage(reference, manifest, await self.get(manifest.config.digest))

        @asynccontextmanager
        async def open_blob(self, descriptor, *, start=0, stop=None):
            async with self.session.get(f"…/{descriptor.digest}") as response:
                yield response.content.iter_chunked(1 << 18)

A source need not verify blobs: their reader does. It must verify manifests and configs, since everything else follows
from them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeGuard, runtime_checkable

from aiodockersave.core.documents import MAX_DOCUMENT_SIZE, ImageIndex, ImageManifest
from aiodockersave.core.errors import (
    ContentTooLargeError,
    DigestMismatchError,
    SizeMismatchError,
    UnsupportedImageError,
)
from aiodockersave.core.model import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    Descriptor,
    Digest,
    Platform,
    is_layer_media_type,
)
from aiodockersave.core.text import NO_SECRETS, Secrets, cut

__all__ = ["ResolvedImage", "Source", "SupportsEarlyBlobs", "default_platform"]

_log = logging.getLogger("aiodockersave")

_CONFIG_TYPES = frozenset({DOCKER_CONFIG, OCI_CONFIG})
# Of images that were pushed in 2015. The layers tell that these are images, and whoever reads the config parses it.
_VAGUE_CONFIG_TYPES = frozenset({"application/octet-stream", "application/json", "text/plain"})
# Names of `uname` that `Platform` does not know from elsewhere.
_MACHINES: Final = {
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """One image for one platform, as a source found it.

    Attributes:
        reference: The reference that was resolved.
        manifest: The image's manifest, with its raw bytes.
        config: The bytes of the image's config.
        default_tags: The repo tags of the image in an archive for which the caller names none.
        secrets: The texts that were sent in confidence to get the image. No message that quotes the config may show them.
        index: The index that the manifest was chosen from; None where the reference led to the manifest.

    Raises:
        UnsupportedImageError: The manifest is not that of an image (an artifact, an attestation), or has encrypted layers.
    """

    reference: str
    manifest: ImageManifest
    config: bytes = field(repr=False)
    default_tags: tuple[str, ...] = ()
    secrets: Secrets = field(default=NO_SECRETS, repr=False, compare=False)
    index: ImageIndex | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_supported(self.manifest, self.reference)

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return self.manifest.digest


@runtime_checkable
class Source(Protocol):
    """A place that images come from."""

    async def resolve(self, reference: str, platform: Platform) -> ResolvedImage:
        """Find an image.

        Args:
            reference: The name of the image, in a form that the source defines.
            platform: The platform whose manifest is taken out of an index. A single manifest is taken whatever its
                platform is.

        Raises:
            ImageNotFoundError: There is no such image.
            PlatformNotFoundError: The image is not there for ``platform``.
            UnsupportedImageError: The reference leads to something that is not an image.

        Cancel: nothing stays open.
        """
        ...

    def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a blob; iterate its bytes from ``start`` up to ``stop``, or to its end, inside the block.

        Args:
            descriptor: The blob.
            start: The offset of the first byte.
            stop: The offset behind the last byte; the end of the blob by default.

        Raises:
            BlobNotFoundError: The source does not have the blob.
            NotImplementedError: The source can only give whole blobs.

        Cancel: nothing stays open.
        """
        ...


@runtime_checkable
class SupportsEarlyBlobs(Source, Protocol):
    """A source that can open layers before all of their image is known.

    The first layers are asked for while the config is on the way. They are opened in tasks of their own, so the context
    manager that ``open_blob`` returns must allow that it is entered in one task, and read and left in another.
    """

    async def resolve_early(
        self, reference: str, platform: Platform, found: Callable[[ImageManifest], None]
    ) -> ResolvedImage:
        """Find an image as :meth:`resolve` does. This method is then called instead of :meth:`resolve`.

        Call ``found`` with the manifest, once or never, when its layers can be opened. Errors are those of :meth:`resolve`,
        before and after that call.

        Cancel: nothing stays open, except blobs that ``found`` has opened.
        """
        ...


def opens_early(source: Source) -> TypeGuard[SupportsEarlyBlobs]:
    """Tell whether a source has :meth:`~SupportsEarlyBlobs.resolve_early`, and it fits the other methods of the source.

    A subclass that overrides ``resolve`` or ``open_blob`` alone does not count: the inherited ``resolve_early`` would
    bypass its methods.
    """
    kind = type(source)
    owners = {
        name: next((each for each in kind.__mro__ if name in vars(each)), object)
        for name in ("resolve_early", "resolve", "open_blob")
    }
    early = owners["resolve_early"]
    return early is not object and all(issubclass(early, owner) for owner in owners.values())


# ── shared by all sources ──


def default_platform() -> Platform:
    """Return ``linux`` on this machine's architecture."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine,)))


def check_supported(manifest: ImageManifest, what: str) -> None:
    """Refuse a manifest that has the form of an image's and is that of something else.

    The media types of config and layers together tell: an attestation has an image's config, but other layers.

    Raises:
        UnsupportedImageError: The manifest is that of an artifact, or a layer is encrypted.
    """
    for layer in manifest.layers:
        if layer.media_type.endswith("+encrypted"):
            raise UnsupportedImageError(what, f"layer {layer.digest} is encrypted; decrypt the image first")
    config = manifest.config.media_type
    strange = [layer.media_type for layer in manifest.layers if not is_layer_media_type(layer.media_type)]
    if config not in _CONFIG_TYPES | (_VAGUE_CONFIG_TYPES if manifest.layers else frozenset()):
        raise UnsupportedImageError(what, f"it is an artifact, not an image: its config is {cut(config)}")
    if strange:
        raise UnsupportedImageError(
            what, f"it is an artifact, not an image: it has a layer {cut(strange[0])}"
        )


def check_document_size(descriptor: Descriptor, what: str) -> None:
    """Refuse a document before it is read, if it is too large to be held in memory.

    Raises:
        ContentTooLargeError: By its descriptor the document has more than 4 MiB.
    """
    if descriptor.size is not None and descriptor.size > MAX_DOCUMENT_SIZE:
        raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what=f"{what} {descriptor.digest}")


def check_manifest(raw: bytes, descriptor: Descriptor, what: str) -> None:
    """Check that a manifest or index is the one that ``descriptor`` names; errors as :func:`check_document`.

    A size that is wrong in the index above is a warning alone: the digest tells that these are the right bytes.
    """
    if Digest.of(raw, descriptor.digest.algorithm) == descriptor.digest:
        warn_of_size(raw, descriptor, what)
    else:
        check_document(raw, descriptor, what)  # raises; a wrong size says more than a wrong digest


def warn_of_size(raw: bytes, descriptor: Descriptor, what: str) -> None:
    """Warn of a manifest or index, whose digest is right, if its descriptor says another size."""
    if descriptor.size not in (None, len(raw)):
        _log.warning(
            "%s has %d bytes, not %d as its index says; its digest is right", what, len(raw), descriptor.size
        )


def check_document(raw: bytes, descriptor: Descriptor, what: str) -> None:
    """Check that a document is the one that ``descriptor`` names.

    Raises:
        SizeMismatchError, DigestMismatchError: ``raw`` is another document.
    """
    if descriptor.size not in (None, len(raw)):
        raise SizeMismatchError(descriptor.size, len(raw), what=f"{what} {descriptor.digest}")
    actual = Digest.of(raw, descriptor.digest.algorithm)
    if actual != descriptor.digest:
        raise DigestMismatchError(descriptor.digest, actual, what=what, descriptor=descriptor)
