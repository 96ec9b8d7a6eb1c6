"""Resolve images at their sources, check them, and plan their archive.

Every fault that can be known ahead is found here: a reference that leads nowhere, or to no image, a tag that is no name,
one layer with two sizes or two diff IDs. No layer is read. The modules that check and plan are loaded in a thread, when
the first image was found.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from aiodockersave._aio import Worker, run_together, running_task
from aiodockersave.core.errors import (
    DockerSaveError,
    InvalidInputError,
    NameConflictError,
    PlatformNotFoundError,
)
from aiodockersave.core.model import Descriptor, Digest, Format, Layers, Platform, check_format
from aiodockersave.core.reference import parse_repo_tags
from aiodockersave.core.text import cut, one_line, shown
from aiodockersave.sources import ResolvedImage, Source, default_platform, opens_early

if TYPE_CHECKING:
    from aiodockersave.core.docker_archive import Image
    from aiodockersave.core.plan import Plan

    from .prefetch import Ahead

__all__ = [
    "ImageRequest",
    "Prepared",
    "PreparedImage",
    "check_layers",
    "listed_requests",
    "naming",
    "note_image",
    "prepare",
    "prepare_all",
]

logger = logging.getLogger("aiodockersave")

_RESOLVED_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to put into an archive.

    Attributes:
        source: Where it comes from.
        reference: The name of the image, as the source defines it.
        tags: The names that it gets, such as ``example.com/app:1.0``; None for those that the source suggests.
        name: The name of the image in messages; the reference by default.
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
        request: The request.
        resolved: The image as the source has it.
        image: Config, layers and tags, as they go into the archive.
    """

    request: ImageRequest
    resolved: ResolvedImage
    image: Image

    @property
    def repo_tags(self) -> tuple[str, ...]:
        """Its names, with registry and tag."""
        return tuple(tag.repo_tag for tag in self.image.repo_tags)


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


async def prepare(
    images: ImageRequest | Sequence[ImageRequest],
    *,
    format: Format = "docker",
    layers: Layers = "keep",
    platform: Platform | None = None,
    allow_other_platform: bool = False,
) -> Prepared:
    """Resolve images, check them, and plan their archive; no layer is read.

    Arguments and errors as :func:`~aiodockersave.save`.

    Cancel: nothing of a source is open.
    """
    return await prepare_all(
        listed_requests(images),
        format=format,
        layers=layers,
        platform=platform,
        allow_other_platform=allow_other_platform,
        ahead=None,
    )


def listed_requests(images: ImageRequest | Sequence[ImageRequest]) -> Sequence[ImageRequest]:
    """Return the images that a caller asks for, of which there may be one.

    Raises:
        InvalidInputError: There is none.
        TypeError: One of them is something else.
    """
    if not isinstance(images, ImageRequest | Iterable):
        raise TypeError(f"images are ImageRequests, not {type(images).__qualname__}")
    requests = [images] if isinstance(images, ImageRequest) else list(images)
    if not requests:
        raise InvalidInputError("there is no image to save: pass at least one ImageRequest")
    for each in requests:
        if not isinstance(each, ImageRequest):
            raise TypeError(f"images are ImageRequests, not {type(each).__qualname__}")
    return requests


async def prepare_all(
    images: Sequence[ImageRequest],
    *,
    format: Format,
    layers: Layers,
    platform: Platform | None,
    allow_other_platform: bool,
    ahead: Ahead | None,
) -> Prepared:
    """As :func:`prepare`; ``ahead`` asks for the first layers as soon as a manifest names them.

    Cancel: as :func:`prepare`; the blobs that ``ahead`` has opened stay open.
    """
    running_task()
    check_format(format, layers)
    if not isinstance(platform, Platform | None):
        raise TypeError(
            f"platform is a Platform or None, not {type(platform).__qualname__}: pass Platform.parse('linux/arm64')"
        )
    for request in images:
        if request.tags is not None:
            with naming(request):
                parse_repo_tags(request.tags)  # before anything is asked for
    is_default = platform is None
    platform = platform or default_platform()
    worker = Worker("aiodockersave-plan")
    found: dict[int, PreparedImage] = {}
    waiting = iter(enumerate(images))

    async def run() -> None:
        for index, request in waiting:
            with naming(request):
                resolved = await _resolve(request, platform, ahead)
                found[index] = checked = await worker.run(_check, request, resolved)
                # The digest of a manifest is a choice already: a warning will do.
                is_chosen = str(resolved.digest) in request.reference
                if not (is_default or allow_other_platform or is_chosen):
                    _check_platform(checked, platform)

    await run_together(*[run] * min(_RESOLVED_AT_ONCE, len(images)))
    prepared = tuple(found[index] for index in range(len(images)))
    _check_names(prepared, format)
    _warn_of_platforms(prepared, platform, is_default=is_default)
    plan = None
    if layers == "keep":
        plan = await worker.run(_plan, prepared, format)
    else:
        check_layers(prepared)
    return Prepared(prepared, plan)


async def _resolve(request: ImageRequest, platform: Platform, ahead: Ahead | None) -> ResolvedImage:
    source = request.source
    if ahead is not None and opens_early(source):
        return await source.resolve_early(request.reference, platform, partial(ahead.ask, source))
    return await source.resolve(request.reference, platform)


def _plan(images: Sequence[PreparedImage], format: Format) -> Plan:
    from aiodockersave.core.plan import plan_images  # noqa: PLC0415 - see the head of this file

    return plan_images([each.image for each in images], format=format)


def _check(request: ImageRequest, resolved: ResolvedImage) -> PreparedImage:
    from aiodockersave.core.docker_archive import read_image  # noqa: PLC0415 - see the head of this file

    image = read_image(resolved.config, resolved.manifest, _tags(request, resolved), resolved.index)
    return PreparedImage(request, resolved, image)


def _check_platform(image: PreparedImage, platform: Platform) -> None:
    """Refuse an image that is for another platform: a source takes a single one whatever it is for."""
    config = image.image.config
    if config.platform is not None and config.contradicts(platform):
        own = str(config.platform)
        is_known = image.resolved.secrets.hide(own, own=(platform.os, platform.architecture)) == own
        advice = "to take it all the same, pass allow_other_platform=True"
        raise PlatformNotFoundError(platform, [config.platform] if is_known else [], advice)


def _warn_of_platforms(images: Sequence[PreparedImage], platform: Platform, *, is_default: bool) -> None:
    whose = ", which is this machine's platform" if is_default else ""
    for each in images:
        config = each.image.config
        if config.contradicts(platform):
            name = cut(one_line(str(each.request)), 300)
            own = shown(str(config.platform), secrets=each.resolved.secrets)
            logger.warning(
                "image %s is for %s, not for %s%s; it is taken all the same", name, own, platform, whose
            )


def _check_names(images: Sequence[PreparedImage], format: Format) -> None:
    """Check that each name is that of one image; the plan does so too, but does not know what the images are called.

    A ``docker`` archive knows images by their configs, an ``oci`` archive by their manifests.
    """
    if len(images) < 2:
        return
    from aiodockersave.core.docker_archive import Names  # noqa: PLC0415 - see the head of this file

    names = Names()

    def identity(image: PreparedImage) -> Digest:
        return image.resolved.digest if format == "oci" else image.image.config.image_id

    for each in images:
        try:
            names.check(identity(each), each.repo_tags)
        except NameConflictError as exc:
            for other in images:
                if exc.name in other.repo_tags and identity(other) in exc.image_ids:
                    note_image(exc, other.request)
            raise
        names.record(identity(each), each.repo_tags)


def check_layers(images: Sequence[PreparedImage]) -> None:
    """Look whether images agree on their layers; where these are kept as they are, the plan does on their sizes.

    Raises:
        InvalidInputError: A blob has two sizes, or two diff IDs.
    """
    known: dict[Digest, tuple[int | None, Digest]] = {}
    for each in images:
        with naming(each.request):
            for layer, diff_id in zip(each.image.layers, each.image.config.diff_ids, strict=True):
                size, other = known.setdefault(layer.digest, (layer.size, diff_id))
                if layer.size != size:
                    raise InvalidInputError(
                        f"blob {layer.digest} has two sizes: {size} and {layer.size} bytes are promised"
                    )
                if diff_id != other:
                    raise InvalidInputError(
                        f"layer {layer.digest} stands for two diff IDs: {other} and {diff_id}"
                    )


def _tags(request: ImageRequest, resolved: ResolvedImage) -> Sequence[str]:
    return resolved.default_tags if request.tags is None else request.tags


@contextlib.contextmanager
def naming(request: ImageRequest) -> Generator[None, None, None]:
    """Note on our errors which image they are about."""
    try:
        yield
    except DockerSaveError as exc:
        note_image(exc, request)
        raise


def note_image(error: DockerSaveError, request: ImageRequest) -> None:
    """Note on an error which image it is about."""
    error.add_note(f"image {cut(one_line(str(request)), 300)}")
