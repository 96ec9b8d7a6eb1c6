"""An archive ahead of time: its members, its exact size, its ETag.

Where layers are kept as they are, an archive is a pure function of configs, descriptors and tags. A plan is
the builder of :mod:`aiodockersave.core.docker_archive` run to its end, with every commit at once: the bytes that
:class:`~aiodockersave.ArchiveWriter` writes for the same images, layers in manifest order, image after image.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Protocol

from . import tar
from .docker_archive import Addition, Image, ManifestItem, Member, check_no_document, read_image
from .documents import ImageIndex, ImageManifest
from .errors import InvalidInputError
from .formats import new_builder
from .model import Descriptor, Digest, Format


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image of an archive to plan.

    Attributes:
        config: The config's bytes.
        image: The manifest that names config and layers, or the layers alone.
        repo_tags: Names such as ``example.com/app:1.0``.
        index: The index that the manifest was chosen from, where there is one: ``format="oci"`` repeats its words about
            the manifest.
    """

    config: bytes
    image: ImageManifest | Sequence[Descriptor]
    repo_tags: Sequence[str] = ()
    index: ImageIndex | None = None


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """The place of a member in an archive.

    Attributes:
        name: Its name.
        offset: Where its header starts, in bytes from the start of the archive.
        data_offset: Where its data start, in bytes from the start of the archive.
        size: The size of its data, in bytes.
        digest: The digest of its data; None for a symbolic link.
    """

    name: str
    offset: int
    data_offset: int
    size: int
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of an archive's bytes: known ones, or one blob's.

    Attributes:
        offset: Where it starts, in bytes from the start of the archive.
        size: Its size in bytes.
        data: The bytes, or None for a blob.
        descriptor: The blob, or None for known bytes.
    """

    offset: int
    size: int
    data: bytes | None = field(repr=False)
    descriptor: Descriptor | None


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of a segment that a range has.

    Attributes:
        segment: The segment.
        start: Where the part starts, in bytes from the start of the segment.
        stop: Where it ends.
    """

    segment: Segment
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the segment."""
        return self.size == self.segment.size


@dataclass(frozen=True, slots=True)
class Plan:
    """An archive that need not exist yet.

    Attributes:
        size: Its size in bytes.
        etag: 64 hexadecimal digits, the same wherever the same archive is planned: the SHA-256 over the known
            bytes with each blob's data replaced by its digest and size.
        members: Where each member is, in order.
        segments: All of its bytes, in order, without gaps.
        images: Its images, as ``manifest.json`` has them.
    """

    size: int
    etag: str
    members: tuple[ArchiveMember, ...]
    segments: tuple[Segment, ...]
    images: tuple[ManifestItem, ...]

    def parts(self, start: int = 0, stop: int | None = None) -> tuple[Part, ...]:
        """Return the parts of segments that the bytes from ``start`` up to ``stop``, or to the end, consist of, in order.

        An empty blob is among them where the range holds bytes before and behind it.

        Raises:
            InvalidInputError: There is no such range in the archive.
        """
        stop = self.size if stop is None else stop
        if not 0 <= start <= stop <= self.size:
            raise InvalidInputError(
                f"no range of an archive of {self.size} bytes: start={start}, stop={stop}"
            )
        if start == stop:
            return ()
        first = bisect_right(self.segments, start, key=_offset) - 1
        end = bisect_left(self.segments, stop, key=_offset)
        return tuple(
            Part(segment, max(start - segment.offset, 0), min(stop - segment.offset, segment.size))
            for segment in self.segments[first:end]
        )


def _offset(segment: Segment) -> int:
    return segment.offset


@dataclass(frozen=True, slots=True)
class Report:
    """The contents of a closed archive.

    Attributes:
        size: The size of the archive, in bytes.
        members: Where each member is, in order.
        images: Its images, as ``manifest.json`` has them.
        sha256: The SHA-256 of the whole archive, where ``checksum=True`` asked for it.
        left_as_is: Whether the archive was there already, and no blob was read: see ``resume`` of
            :func:`~aiodockersave.save`.
    """

    size: int
    members: tuple[ArchiveMember, ...]
    images: tuple[ManifestItem, ...]
    sha256: Digest | None
    left_as_is: bool = False

    def __str__(self) -> str:
        """Return a line: names, size and, where it is known, the SHA-256."""
        names = ", ".join(tag for image in self.images for tag in image.repo_tags)
        unnamed = f"{len(self.images)} image{'s' * (len(self.images) != 1)} without a name"
        checksum = f", {self.sha256}" if self.sha256 else ""
        return f"{names or unnamed}: {self.size} bytes in {len(self.members)} members{checksum}"


class SupportsPlan(Protocol):
    """An image that says all that a plan needs, as :class:`~aiodockersave.ResolvedImage` does."""

    @property
    def config(self) -> bytes:
        """The config's bytes."""

    @property
    def manifest(self) -> ImageManifest:
        """The manifest."""

    @property
    def default_tags(self) -> Sequence[str]:
        """The names that the image gets."""


def plan_archive(images: Iterable[ImageSpec | SupportsPlan], *, format: Format = "docker") -> Plan:
    """Plan the archive of ``images`` with layers kept as they are; nothing is read.

    Args:
        images: Images with their names, or images that a source has resolved, with the names that it suggests.
        format: The layout of the archive.

    Raises:
        InvalidInputError: The size of a layer is not known, or one layer has two sizes.
        InvalidDocumentError, ContentError, ImageConflictError, NameConflictError: As ``ArchiveWriter.put_image``
            raises them.
    """
    return plan_images(map(_read, images), format=format)


def _read(image: ImageSpec | SupportsPlan) -> Image:
    if isinstance(image, ImageSpec):
        return read_image(image.config, image.image, image.repo_tags, image.index)
    if not hasattr(image, "manifest"):
        raise TypeError(
            f"images to plan are ImageSpecs or what a source has resolved, not {type(image).__qualname__}"
        )
    return read_image(image.config, image.manifest, image.default_tags, getattr(image, "index", None))


def plan_images(images: Iterable[Image], *, format: Format) -> Plan:
    """Plan the archive of images that were read already, as :func:`plan_archive` does."""
    builder = new_builder(format)
    layout = _Layout() if format == "docker" else _SortedLayout()
    for image in images:
        for layer in image.layers:
            size = check_size(layer, builder.blob(layer.digest))
            if size is not None:
                addition = builder.prepare_blob(layer.digest, size, layer.media_type)
                layout.add(addition, layer)
                builder.commit(addition)
        addition = builder.prepare_image(image, [layer.digest for layer in image.layers])
        layout.add(addition)
        builder.commit(addition)
    layout.add(builder.prepare_end())
    return layout.finish(builder.items)


def check_size(layer: Descriptor, member: Member | None) -> int | None:
    """Return the size of a layer that is to be added; None if ``member`` holds it already.

    Raises:
        InvalidInputError: The size is unknown, or not the one that the layer in the archive has, or the blob is no layer there.
    """
    if member is not None:
        check_no_document(layer.digest, member)
        if layer.size not in (None, member.size):
            raise InvalidInputError(
                f"blob {layer.digest} has two sizes: {member.size} bytes in the archive, {layer.size} promised"
            )
        return None
    if layer.size is None:
        raise InvalidInputError(f"the size of blob {layer.digest} is not known: a plan needs it")
    return layer.size


class _Layout:
    """Members put one after the other."""

    def __init__(self) -> None:
        self._position = 0
        self._members: list[ArchiveMember] = []
        self._segments: list[Segment] = []
        self._literal = BytesIO()

    def add(self, addition: Addition, blob: Descriptor | None = None) -> None:
        for member in addition.members:
            self._put(member, blob)

    def _put(self, member: Member, blob: Descriptor | None) -> None:
        self._members.append(located(member, self._position))
        if member.data is None:
            self._add_blob(member, blob)
        else:
            self._literal.write(member.literal)
        self._position += member.total_size

    def _add_blob(self, member: Member, blob: Descriptor | None) -> None:
        self._literal.write(member.header)
        offset = self._position + len(member.header)
        self._flush(offset)
        self._segments.append(Segment(offset, member.size, None, blob))
        self._literal.write(tar.padding(member.size))

    def _flush(self, stop: int) -> None:
        data = self._literal.getvalue()  # never empty: a header goes before each blob, the end after the last
        self._segments.append(Segment(stop - len(data), len(data), data, None))
        self._literal = BytesIO()

    def finish(self, images: tuple[ManifestItem, ...]) -> Plan:
        self._literal.write(tar.END_OF_ARCHIVE)
        size = self._position + len(tar.END_OF_ARCHIVE)
        self._flush(size)
        return Plan(size, _etag(self._segments), tuple(self._members), tuple(self._segments), images)


class _SortedLayout(_Layout):
    """Members in the order of their names, as containerd sorts them."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[Member, Descriptor | None]] = []

    def add(self, addition: Addition, blob: Descriptor | None = None) -> None:
        self._found += [(member, blob) for member in addition.members]

    def finish(self, images: tuple[ManifestItem, ...]) -> Plan:
        for member, blob in sorted(self._found, key=lambda found: found[0].name):
            self._put(member, blob)
        return super().finish(images)


def located(member: Member, offset: int) -> ArchiveMember:
    """Return the place of a member whose header starts at ``offset``."""
    return ArchiveMember(member.name, offset, offset + len(member.header), member.size, member.digest)


def _etag(segments: Iterable[Segment]) -> str:
    # The lengths in front keep bytes and blobs apart: no two archives hash the same text.
    sha256 = hashlib.sha256()
    for segment in segments:
        if segment.descriptor is not None:
            sha256.update(f"blob {segment.descriptor.digest} {segment.size}\n".encode())
        else:
            sha256.update(b"bytes %d\n" % segment.size)
            sha256.update(segment.data or b"")
    return sha256.hexdigest()


__all__ = [
    "ArchiveMember",
    "ImageSpec",
    "Part",
    "Plan",
    "Report",
    "Segment",
    "SupportsPlan",
    "plan_archive",
    "plan_images",
]
