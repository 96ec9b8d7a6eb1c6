"""From images to an archive: what sources have is resolved, planned, and put through a writer into a sink.

::

    ImageRequest ──prepare──▶ Prepared (manifests, configs, tags, the plan) ──▶ layers, images, close

Everything that can be known ahead is found out before the target is opened: a reference that is not there, an image
that is none, a tag that is no name, one layer with two sizes. What follows reads each layer once, in the order of the
plan, image after image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from ._aio import Worker, running_task
from .archive_file import open_archive
from .content import Batch, OpenContent
from .errors import DockerSaveError
from .formats import Format, Image, Layers, check_choice, read_image
from .model import Descriptor, Platform
from .plan import ImageSpec, Plan, Report, plan_archive
from .sinks import AnySink
from .sources import ResolvedImage, Source
from .writer import ArchiveWriter

__all__ = [
    "Event",
    "ImageFinished",
    "ImageRequest",
    "LayerAdvanced",
    "LayerFinished",
    "LayerReused",
    "LayerStarted",
    "Prepared",
    "PreparedImage",
    "SaveStarted",
    "prepare",
    "save",
]

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
class ImageRequest:
    """One image to put into an archive.

    Attributes:
        source: Where it comes from.
        reference: What the source calls it.
        tags: The names that it gets, such as ``example.com/app:1.0``; None for those that the source suggests.
        name: What it is called in messages; the reference by default.
    """

    source: Source
    reference: str
    tags: Sequence[str] | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.reference


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that was found and checked.

    Attributes:
        request: What was asked for.
        resolved: What the source has.
        image: Config, layers and tags, as they go into the archive.
    """

    request: ImageRequest
    resolved: ResolvedImage
    image: Image


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known of an archive before it is written.

    Attributes:
        images: Its images, in order.
        plan: The archive ahead of time; None where layers are decompressed, since their sizes are not known then.
    """

    images: tuple[PreparedImage, ...]
    plan: Plan | None

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The blobs that are read, each once, in order."""
        return tuple({layer.digest: layer for image in self.images for layer in image.image.layers}.values())


# ── progress ──


@dataclass(frozen=True, slots=True)
class SaveStarted:
    """Everything is prepared; the target is opened next."""

    prepared: Prepared


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """A layer was opened."""

    layer: Descriptor


@dataclass(frozen=True, slots=True)
class LayerAdvanced:
    """Some of a layer was read: ``size`` bytes more of the blob."""

    layer: Descriptor
    size: int


@dataclass(frozen=True, slots=True)
class LayerFinished:
    """A layer is in the archive, verified."""

    layer: Descriptor


@dataclass(frozen=True, slots=True)
class LayerReused:
    """A layer was in the archive already, and was not read again."""

    layer: Descriptor


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """An image is in the archive with all its layers."""

    image: PreparedImage


Event = SaveStarted | LayerStarted | LayerAdvanced | LayerFinished | LayerReused | ImageFinished
Progress = Callable[[Event], None]
"""Called on the event loop, so it must not block. What it raises ends the save."""


# ── preparing ──


def default_platform() -> Platform:
    """Return ``linux`` on this machine's architecture."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine,)))


async def prepare(
    images: Sequence[ImageRequest],
    *,
    format: Format = "docker",
    layers: Layers = "keep",
    platform: Platform | None = None,
) -> Prepared:
    """Resolve images, check them, and plan their archive; no layer is read. Arguments and errors as :func:`save`."""
    running_task()
    check_choice("format", format, Format)
    check_choice("layers", layers, Layers)
    platform = platform or default_platform()
    worker = Worker("aiodockersave-plan")
    found = []
    for request in images:
        with _naming(request):
            resolved = await request.source.resolve(request.reference, platform)
            found.append(await worker.run(_check, request, resolved))
    plan = None
    if layers == "keep":
        specs = [
            ImageSpec(each.resolved.config, each.resolved.manifest, _tags(each.request, each.resolved))
            for each in found
        ]
        plan = await worker.run(plan_archive, specs, format=format)
    return Prepared(tuple(found), plan)


def _check(request: ImageRequest, resolved: ResolvedImage) -> PreparedImage:
    image = read_image(resolved.config, resolved.manifest, _tags(request, resolved))
    return PreparedImage(request, resolved, image)


def _tags(request: ImageRequest, resolved: ResolvedImage) -> Sequence[str]:
    return resolved.default_tags if request.tags is None else request.tags


@contextlib.contextmanager
def _naming(request: ImageRequest) -> Generator[None, None, None]:
    """Note on our errors which image they are about."""
    try:
        yield
    except DockerSaveError as exc:
        name = str(request)
        exc.add_note(f"image {name if name.isprintable() else ascii(name):.300}")
        raise


# ── saving ──


async def save(
    images: Sequence[ImageRequest],
    target: str | os.PathLike[str] | AnySink,
    *,
    format: Format = "docker",
    layers: Layers = "keep",
    platform: Platform | None = None,
    fsync: bool = True,
    stage_memory: int = 8 << 20,
    stage_dir: str | os.PathLike[str] | None = None,
    max_plain_size: int | None = None,
    checksum: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write images from sources into one archive.

    Args:
        images: What goes in, in this order.
        target: A path, as :func:`open_archive` takes it, or any sink.
        format: The layout of the archive.
        layers: ``"keep"`` stores layers as the source has them, ``"decompress"`` as plain tars.
        platform: Which of an image's platforms is taken; ``linux`` on this machine's architecture by default.
        fsync: Whether a path's file and directory are brought to the disk.
        stage_memory: Bytes of memory for content that is staged.
        stage_dir: Where content goes that is staged and too large for memory.
        max_plain_size: The largest layer to accept when decompressing, in bytes.
        checksum: Whether the report has the SHA-256 of the archive.
        progress: Called with each event.

    Returns:
        What is in the archive.

    Raises:
        SourceError: An image or a blob is not there, or is no image.
        ContentError: What a source gave is not what was promised.
        InvalidDocumentError: A manifest or config is not valid.
        InvalidInputError: A tag is no name, or a layer has two sizes.
        OSError: The target cannot be written.

    Errors of this package have a note that names the image.

    Cancel: as :func:`open_archive` for a path: it has its old file, or the whole new one. A sink of the caller's
    is left as ``ArchiveWriter.abort()`` leaves it. Nothing of a source is open.
    """
    prepared = await prepare(images, format=format, layers=layers, platform=platform)
    notify = progress or _ignore
    notify(SaveStarted(prepared))
    options = {
        "format": format,
        "layers": layers,
        "stage_memory": stage_memory,
        "stage_dir": stage_dir,
        "max_plain_size": max_plain_size,
        "checksum": checksum,
    }
    async with _open(target, options, fsync=fsync) as archive:
        for image in prepared.images:
            with _naming(image.request):
                await _put_image(archive, image, notify)
    return _checked_report(archive, prepared.plan)


def _open(
    target: str | os.PathLike[str] | AnySink, options: dict[str, Any], *, fsync: bool
) -> AbstractAsyncContextManager[ArchiveWriter]:
    if isinstance(target, str | os.PathLike):
        return open_archive(target, fsync=fsync, **options)
    return ArchiveWriter(target, **options)


async def _put_image(archive: ArchiveWriter, image: PreparedImage, notify: Progress) -> None:
    resolved, checked = image.resolved, image.image
    for layer, diff_id in zip(checked.layers, checked.config.diff_ids, strict=True):
        content = _Layer(image.request.source, layer, notify)
        await archive.put_layer(content.open, layer, diff_id=diff_id)
        notify(LayerFinished(layer) if content.was_opened else LayerReused(layer))
    await archive.put_image(resolved.config, resolved.manifest, [str(tag) for tag in checked.repo_tags])
    notify(ImageFinished(image))


def _checked_report(archive: ArchiveWriter, plan: Plan | None) -> Report:
    report = archive.report
    if report is None:
        raise AssertionError("the archive was left without being closed")
    if plan is not None and (report.size, report.members) != (plan.size, plan.members):
        raise AssertionError(f"the archive is not the planned one: {report.size} bytes, not {plan.size}")
    return report


def _ignore(_: Event) -> None:
    """Without a progress callback nobody is told."""


class _Layer:
    """A blob as content for a writer, which says how far it was read.

    Attributes:
        was_opened: Whether it was read; a layer that is in the archive already is not.
    """

    def __init__(self, source: Source, layer: Descriptor, notify: Progress) -> None:
        self.was_opened = False
        self._content = OpenContent(partial(source.open_blob, layer))
        self._layer = layer
        self._notify = notify

    def open(self) -> Self:
        """Be the callable that a writer calls when the layer's turn has come."""
        self.was_opened = True
        return self

    async def __aenter__(self) -> Self:
        try:
            await self._content.open()
            self._notify(LayerStarted(self._layer))
        except BaseException as exc:
            await self._close(exc)
            raise
        return self

    async def read(self, _: int) -> Batch:
        chunk = await self._content.read()
        if chunk:
            self._notify(LayerAdvanced(self._layer, len(chunk)))
        return chunk

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close(exc)

    async def _close(self, fault: BaseException | None) -> None:
        raised = await self._content.close(fault)
        if raised is not None:
            raise raised
