"""The sources that a command line names. All registries share one source, so that each token is asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import aiodockersave
from aiodockersave.pipeline.resolve import ImageRequest
from aiodockersave.sources.oci_layout import OciLayoutSource

from . import heap
from .image_argument import ImageArgument, LayoutImage

if TYPE_CHECKING:
    from aiodockersave.sources.credentials import CredentialStore


class RegistryOptions(NamedTuple):
    """The options for registries, by their names on the command line."""

    plain_http: bool
    ca_file: str | None
    cert_dir: str | None
    authfile: str | None
    mirrors: tuple[str, ...] = ()

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Self:
        """Remove the options for registries from those of a command, and return them."""
        return cls(**{name: options.pop(name) for name in cls._fields if name in options})

    def open(self, given: CredentialStore | None = None) -> aiodockersave.RegistrySource:
        """Return the source of all registries, with the credentials that are given, or else those of Docker and podman.

        The package loads the names that are used here when they are used: a tiny save from a layout, which needs none of
        them, takes 113 ms of processor time instead of 135.
        """
        return aiodockersave.RegistrySource(
            credentials=given or aiodockersave.DockerCredentials(authfile=self.authfile),
            plain_http=self.plain_http,
            ca_file=self.ca_file,
            cert_dir=self.cert_dir,
            mirrors=self.mirrors,
        )


def get_ready(images: Sequence[ImageArgument]) -> None:
    """Set up the heap before there are threads, and load aiohttp before there is a loop that it would hold up."""
    heap.set_up()
    if not all(isinstance(image, LayoutImage) for image in images):
        load_client()


def load_client() -> None:
    """Load aiohttp before there is a loop that it would hold up."""
    from aiodockersave.sources.registry.answers import load_aiohttp  # noqa: PLC0415 - as in `open`

    load_aiohttp()


async def open_sources(
    images: Sequence[ImageArgument],
    options: RegistryOptions,
    stack: AsyncExitStack,
    given: CredentialStore | None = None,
) -> list[ImageRequest]:
    """Return the images with their sources, which ``stack`` closes; ``given`` is as for :meth:`RegistryOptions.open`.

    Cancel: ``stack`` closes the sources that were opened.
    """
    registry: aiodockersave.RegistrySource | None = None
    requests = []
    for image in images:
        source: aiodockersave.Source
        if isinstance(image, LayoutImage):
            source = OciLayoutSource(image.directory)
        else:
            if registry is None:
                registry = await stack.enter_async_context(options.open(given))
            source = registry
        requests.append(ImageRequest(source, image.reference, image.tags, str(image)))
    return requests
