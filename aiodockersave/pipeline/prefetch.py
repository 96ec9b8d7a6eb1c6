"""Prefetch the first layers of an image while its config is on the way, which saves a round trip.

::

    manifest ─┬▶ config ─▶ all is checked ─▶ layers are read
              └▶ the first layers are opened ─────▲

Prefetching only opens layers. No layer is read before everything is checked: bytes that come early wait
inside the source. An opened layer that nobody claims is closed unread.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from aiodockersave._aio import Worker, close_all, drop_tasks, end_tasks, run_up_to_wait
from aiodockersave.sinks.path import find
from aiodockersave.sources import Source, SupportsEarlyBlobs

if TYPE_CHECKING:
    from types import TracebackType

    from aiodockersave.blobs.content import OpenBlob
    from aiodockersave.core.documents import ImageManifest
    from aiodockersave.core.model import Descriptor, Digest, Layers

__all__ = ["NO_FILE", "Ahead", "Order", "Place", "look_at"]

_METADATA: Final = 1 << 20
"""Bytes to reserve for metadata, besides those for each layer and the config: more than an archive has."""
_METADATA_OF_LAYER: Final = 16 << 10
"""Bytes to reserve for the metadata of each layer."""
_CONFIGS: Final = 4
"""Times to count the config's size: for its own member, the legacy copy, and a reserve for escapes."""


class Order:
    """The order in which a save reads its blobs.

    Args:
        layers: Whether layers are kept or decompressed.
        is_file: Whether the archive goes into a regular file.
    """

    def __init__(self, layers: Layers, *, is_file: bool) -> None:
        self._is_largest_first = is_file and layers == "keep"

    def first(self, layers: Sequence[Descriptor], count: int) -> list[Descriptor]:
        """Return the first ``count`` layers in the order in which the save reads them, each digest once."""
        known: dict[Digest, Descriptor] = {}
        for layer in layers:
            known.setdefault(layer.digest, layer)
        blobs = list(known.values())
        if self._is_largest_first:
            blobs.sort(key=lambda layer: -(layer.size or 0))
        return blobs[:count]


class Place(NamedTuple):
    """The place where an archive will be written.

    Attributes:
        is_file: Whether the target is a regular file, or will be one.
        space: The number of free bytes there; None if it is not known.
    """

    is_file: bool
    space: int | None


NO_FILE: Final = Place(is_file=False, space=None)


async def look_at(target: str | os.PathLike[str]) -> Place:
    """Find out where an archive will be written; errors of the target are raised later, when it is opened.

    Cancel: is raised when the look has ended.
    """

    def look() -> Place:
        try:
            spot = find(os.fsdecode(target))
        except IsADirectoryError:
            return NO_FILE
        except OSError:
            return Place(is_file=True, space=None)
        with spot:
            if spot.there is not None and not stat.S_ISREG(spot.there.st_mode):
                return NO_FILE
            try:
                there = os.statvfs(spot.directory)
            except OSError:
                return Place(is_file=True, space=None)
            return Place(is_file=True, space=there.f_bavail * there.f_frsize if there.f_blocks else None)

    return await Worker("aiodockersave-file").run(look)


class Ahead:
    """Opens layers as soon as a manifest names them; its ``async with`` block closes unclaimed layers.

    Args:
        order: The order in which the save reads layers.
        jobs: The number of layers to open early.
        space: The bytes that are free for the archive; None to open layers whatever their size.
    """

    def __init__(self, order: Order, *, jobs: int, space: int | None) -> None:
        self._order = order
        self._jobs = jobs
        self._space = space
        self._asked: dict[Digest, _Asked] = {}

    def ask(self, source: SupportsEarlyBlobs, manifest: ImageManifest) -> None:
        """Start to open the first layers of an image, unless the archive might not fit into the space."""
        sizes = [layer.size or 0 for layer in (*manifest.layers, *[manifest.config] * _CONFIGS)]
        needed = sum(sizes) + _METADATA + _METADATA_OF_LAYER * len(manifest.layers)
        if self._space is not None and needed > self._space:
            return
        for layer in self._order.first(manifest.layers, self._jobs):
            if layer.digest not in self._asked:
                self._asked[layer.digest] = _Asked(source.open_blob(layer))

    def opener(self, source: Source, layer: Descriptor) -> OpenBlob:
        """Return a function that opens a blob; its first call gives the prefetched one, if there is one."""
        asked = self._asked.get(layer.digest)
        if asked is None:
            return source.open_blob

        def open_blob(
            descriptor: Descriptor, /, **wanted: Any
        ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
            if asked.is_claimed or wanted:
                return source.open_blob(descriptor, **wanted)
            return asked

        return open_blob

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        """Close the layers that nobody has claimed; raise an error of that, or note it on ``fault``."""
        unclaimed = [asked for asked in self._asked.values() if not asked.is_claimed]
        if isinstance(fault, GeneratorExit):
            for asked in unclaimed:
                asked.drop()  # the coroutine is being closed: nothing can be awaited any more
            return
        errors: list[Exception] = []
        await close_all(
            [
                partial(end_tasks, [asked.task for asked in unclaimed]),
                *[partial(asked.close, errors=errors) for asked in unclaimed],
            ]
        )
        for error in errors:
            if fault is None:
                raise error
            fault.add_note(f"while cleaning up: {error}")


class _Asked:
    """A prefetched blob: a task of its own opens it, and whoever claims it reads and closes it.

    Attributes:
        task: The task that opens the blob.
        is_claimed: Whether somebody has claimed the blob and will close it.

    Args:
        blob: The context manager that a source's ``open_blob`` has returned.
    """

    def __init__(self, blob: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        self._blob = blob
        self.is_claimed = False
        self.task = asyncio.ensure_future(self._open())

    async def _open(self) -> AsyncIterator[bytes]:
        return await self._blob.__aenter__()

    async def __aenter__(self) -> AsyncIterator[bytes]:
        self.is_claimed = True
        try:
            return await self.task
        except GeneratorExit:
            self.drop()
            raise
        except BaseException as exc:
            errors: list[Exception] = []
            await close_all([partial(end_tasks, [self.task]), partial(self.close, exc, errors=errors)])
            for error in errors:
                exc.add_note(f"while cleaning up: {error}")
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._blob.__aexit__(kind, fault, traceback)

    async def close(self, fault: BaseException | None = None, *, errors: list[Exception]) -> None:
        """Close the blob if it was opened; its task must have ended. Errors are added to ``errors``."""
        if not self.task.cancelled() and self.task.exception() is None:
            try:
                await self._blob.__aexit__(type(fault) if fault else None, fault, None)
            except Exception as exc:  # noqa: BLE001 - the caller reports it
                if exc is not fault:
                    errors.append(exc)

    def drop(self) -> None:
        """Close the blob as far as possible without waiting."""
        if self.task.done():
            run_up_to_wait(self.close(errors=[]))
        else:
            drop_tasks([self.task])
