"""The sources of images: the protocol, and what every source shares.

A **source** has two verbs. ``resolve`` turns a reference into one image for one platform: its manifest and
config. ``open_blob`` gives a blob's bytes. A source of your own is a few lines::

    class MySource:
        async def resolve(self, reference, platform):
            manifest = ImageManifest.parse(await self.get(reference))
            return ResolvedImage(reference, manifest, await self.get(manifest.config.digest))

        @asynccontextmanager
        async def open_blob(self, descriptor, *, start=0, stop=None):
            async with self.session.get(f"…/{descriptor.digest}") as response:
                yield response.content.iter_chunked(1 << 18)

A source need not verify blobs: whoever reads them does. Manifests and configs are verified where they are read,
since everything else follows from them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeGuard, runtime_checkable

from aiodockersave.core.documents import MAX_DOCUMENT_SIZE, ImageManifest
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

_CONFIG_TYPES = frozenset({DOCKER_CONFIG, OCI_CONFIG})
# What `uname` says and `Platform` does not know from elsewhere.
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
    """One image for one platform, as a source has it.

    Attributes:
        reference: What was asked for.
        manifest: Its manifest, with its raw bytes.
        config: The bytes of its config.
        default_tags: The names that it gets in an archive where the caller gives none.
        secrets: What was sent for it in confidence, which no message that quotes its config may repeat.

    Raises:
        UnsupportedImageError: It is no image: an artifact, an attestation, encrypted.
    """

    reference: str
    manifest: ImageManifest
    config: bytes = field(repr=False)
    default_tags: tuple[str, ...] = ()
    secrets: Secrets = field(default=NO_SECRETS, repr=False, compare=False)

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
            reference: Which image; what it may be is the source's own matter.
            platform: Which of several manifests is taken; a single one is taken whatever it is for.

        Raises:
            ImageNotFoundError: There is no such image.
            PlatformNotFoundError: It is not there for ``platform``.
            UnsupportedImageError: What is there is no image.

        Cancel: nothing stays open.
        """
        ...

    def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a blob; its bytes from ``start`` up to ``stop``, or to its end, are iterated inside the block.

        Raises:
            BlobNotFoundError: The source does not have it.
            NotImplementedError: The source cannot start inside a blob, or end there; the whole can be had.

        Cancel: nothing stays open.
        """
        ...


@runtime_checkable
class SupportsEarlyBlobs(Source, Protocol):
    """A power that a source may have besides: to open layers before all of their image is known.

    With it, the first layers are asked for while the config is on the way. They are opened in tasks of their own: what
    ``open_blob`` returns may be entered in one task, read and left in another.
    """

    async def resolve_early(
        self, reference: str, platform: Platform, found: Callable[[ImageManifest], None]
    ) -> ResolvedImage:
        """Find an image as :meth:`resolve` does, instead of which it is called.

        ``found`` is told the manifest, once or never, when layers of it can be opened. Errors are those of
        :meth:`resolve`, before and after.

        Cancel: nothing stays open, but what was opened because of ``found``.
        """
        ...


def opens_early(source: Source) -> TypeGuard[SupportsEarlyBlobs]:
    """Tell whether a source has that power, and for the methods that it has now: not for those of a class it refines."""
    kind = type(source)
    owners = {
        name: next((each for each in kind.__mro__ if name in vars(each)), object)
        for name in ("resolve_early", "resolve", "open_blob")
    }
    early = owners["resolve_early"]
    return early is not object and all(issubclass(early, owner) for owner in owners.values())


# ── what sources share ──


def default_platform() -> Platform:
    """Return ``linux`` on this machine's architecture."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine,)))


def check_supported(manifest: ImageManifest, what: str) -> None:
    """Refuse what has the form of an image and is none.

    An artifact is told by the media types of config and layers together: an attestation has an image's config.

    Raises:
        UnsupportedImageError: It is no image, or is encrypted.
    """
    for layer in manifest.layers:
        if layer.media_type.endswith("+encrypted"):
            raise UnsupportedImageError(what, f"layer {layer.digest} is encrypted; decrypt the image first")
    config = manifest.config.media_type
    strange = [layer.media_type for layer in manifest.layers if not is_layer_media_type(layer.media_type)]
    if config not in _CONFIG_TYPES:
        raise UnsupportedImageError(what, f"it is an artifact, not an image: its config is {cut(config)}")
    if strange:
        raise UnsupportedImageError(
            what, f"it is an artifact, not an image: it has a layer {cut(strange[0])}"
        )


def check_document_size(descriptor: Descriptor, what: str) -> None:
    """Refuse a document before it is read that does not belong into memory.

    Raises:
        ContentTooLargeError: It has more than 4 MiB.
    """
    if descriptor.size is not None and descriptor.size > MAX_DOCUMENT_SIZE:
        raise ContentTooLargeError(MAX_DOCUMENT_SIZE, what=f"{what} {descriptor.digest}")


def check_document(raw: bytes, descriptor: Descriptor, what: str) -> None:
    """Check that a document is the one that ``descriptor`` names.

    Raises:
        SizeMismatchError, DigestMismatchError: It is another.
    """
    if descriptor.size not in (None, len(raw)):
        raise SizeMismatchError(descriptor.size, len(raw), what=f"{what} {descriptor.digest}")
    actual = Digest.of(raw, descriptor.digest.algorithm)
    if actual != descriptor.digest:
        raise DigestMismatchError(descriptor.digest, actual, what=what, descriptor=descriptor)
