"""Images before their archive is written: what sources have is resolved, checked and planned.

Everything that can be known ahead is found out here: a reference that is not there, an image that is none, a tag that
is no name, one layer with two sizes or two diff IDs. No layer is read. What checks and plans is loaded in a thread, when
the first image was found.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from ._aio import Worker, run_together, running_task
from ._text import cut, one_line
from .errors import DockerSaveError, InvalidInputError
from .model import Descriptor, Digest, Format, Layers, Platform, check_choice
from .reference import parse_repo_tags
from .sources import ResolvedImage, Source, opens_early

if TYPE_CHECKING:
    from .ahead import Ahead
    from .formats import Image
    from .plan import Plan

__all__ = ["ImageRequest", "Prepared", "PreparedImage", "default_platform", "naming", "prepare"]

_RESOLVED_AT_ONCE: Final = 4
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
    _ahead: Ahead | None = None,
) -> Prepared:
    """Resolve images, check them, and plan their archive; no layer is read.

    Arguments and errors as :func:`~aiodockersave.save`.

    Cancel: nothing of a source is open.
    """
    running_task()
    check_choice("format", format, Format)
    check_choice("layers", layers, Layers)
    for request in images:
        if request.tags is not None:
            with naming(request):
                parse_repo_tags(request.tags)  # before anything is asked for
    platform = platform or default_platform()
    worker = Worker("aiodockersave-plan")
    found: dict[int, PreparedImage] = {}
    waiting = iter(enumerate(images))

    async def run() -> None:
        for index, request in waiting:
            with naming(request):
                resolved = await _resolve(request, platform, _ahead)
                found[index] = await worker.run(_check, request, resolved)

    if images:
        await run_together(*[run] * min(_RESOLVED_AT_ONCE, len(images)))
    prepared = tuple(found[index] for index in range(len(images)))
    plan = None
    if layers == "keep":
        plan = await worker.run(_plan, prepared, format)
    else:
        _check_layers(prepared)
    return Prepared(prepared, plan)


async def _resolve(request: ImageRequest, platform: Platform, ahead: Ahead | None) -> ResolvedImage:
    source = request.source
    if ahead is not None and opens_early(source):
        return await source.resolve_early(request.reference, platform, partial(ahead.ask, source))
    return await source.resolve(request.reference, platform)


def _plan(images: Sequence[PreparedImage], format: Format) -> Plan:
    from .plan import plan_images  # noqa: PLC0415 - see the head of this file

    return plan_images([each.image for each in images], format=format)


def _check(request: ImageRequest, resolved: ResolvedImage) -> PreparedImage:
    from .formats import read_image  # noqa: PLC0415 - see the head of this file

    image = read_image(resolved.config, resolved.manifest, _tags(request, resolved))
    return PreparedImage(request, resolved, image)


def _check_layers(images: Sequence[PreparedImage]) -> None:
    """Look whether images agree on their layers; where these are kept as they are, the plan does."""
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
        exc.add_note(f"image {cut(one_line(str(request)), 300)}")
        raise
