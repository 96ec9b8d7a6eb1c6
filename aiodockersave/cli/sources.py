"""The sources that a command line names. Registries share one, so that what they have in common is asked once."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from aiodockersave.pipeline.resolve import ImageRequest

from . import heap
from .image_argument import ImageArgument, LayoutImage

if TYPE_CHECKING:
    from aiodockersave.sources import Source
    from aiodockersave.sources.registry import RegistrySource


class RegistryOptions(NamedTuple):
    """The options for registries, by their names on the command line."""

    plain_http: bool
    ca_file: str | None
    cert_dir: str | None
    authfile: str | None
    mirrors: tuple[str, ...]

    def open(self) -> RegistrySource:
        """Return the source of all registries."""
        from aiodockersave.sources.credentials import DockerCredentials  # noqa: PLC0415 - not for layouts
        from aiodockersave.sources.registry import RegistrySource  # noqa: PLC0415

        return RegistrySource(
            credentials=DockerCredentials(authfile=self.authfile),
            plain_http=self.plain_http,
            ca_file=self.ca_file,
            cert_dir=self.cert_dir,
            mirrors=self.mirrors,
        )


def get_ready(images: Sequence[ImageArgument]) -> None:
    """Do what takes long and would hold up an event loop, before there is one."""
    heap.set_up()
    if not all(isinstance(image, LayoutImage) for image in images):
        from aiodockersave.sources.registry.answers import load_aiohttp  # noqa: PLC0415 - not for layouts

        load_aiohttp()
    if not gc.isenabled():  # as the entry has it, until all is imported
        gc.freeze()
        gc.enable()


class Sources:
    """Sources for the images of one command, closed with it."""

    def __init__(self, options: RegistryOptions) -> None:
        self._options = options
        self._registry: RegistrySource | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def requests(self, images: Sequence[ImageArgument]) -> list[ImageRequest]:
        """Return the images with their sources.

        Cancel: what was opened is closed at the end of the block.
        """
        return [
            ImageRequest(await self._source(image), image.reference, image.tags, str(image))
            for image in images
        ]

    async def _source(self, image: ImageArgument) -> Source:
        if isinstance(image, LayoutImage):
            from aiodockersave.sources.oci_layout import OciLayoutSource  # noqa: PLC0415 - not for registries

            return OciLayoutSource(image.directory)
        if self._registry is None:
            self._registry = await self._stack.enter_async_context(self._options.open())
        return self._registry
