"""Open the first layers of an image while its config is on the way, which saves a round trip.

::

    manifest ─┬▶ config ─▶ all is checked ─▶ layers are read
              └▶ the first layers are opened ─────▲

No byte of a layer is read before everything is checked: until then bytes that arrive early wait in the source. A blob
that nobody claims is closed unread.
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
"""More bytes than an archive has beside its layers, those that follow aside."""
_METADATA_OF_LAYER: Final = 16 << 10
_CONFIGS: Final = 4
"""The estimate of an archive's size counts the config so often: its own member, the legacy copy, and a reserve for escapes."""


class Order:
    """Which blobs a save begins with.

    Args:
        layers: Whether they are kept.
        is_file: Whether they go into a regular file.
    """

    def __init__(self, layers: Layers, *, is_file: bool) -> None:
        self._is_largest_first = is_file and layers == "keep"

    def first(self, layers: Sequence[Descriptor], count: int) -> list[Descriptor]:
        """Return so many of them, in the order in which the save reads them."""
        known: dict[Digest, Descriptor] = {}
        for layer in layers:
            known.setdefault(layer.digest, layer)
        blobs = list(known.values())
        if self._is_largest_first:
            blobs.sort(key=lambda layer: -(layer.size or 0))
        return blobs[:count]


class Place(NamedTuple):
    """The place where an archive is to be.

    Attributes:
        is_file: Whether it is a regular file, or will be.
        space: How many bytes are free there; None where that cannot be told.
    """

    is_file: bool
    space: int | None


NO_FILE: Final = Place(is_file=False, space=None)


async def look_at(target: str | os.PathLike[str]) -> Place:
    """Look where an archive is to be; whether it can be there is found out later.

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
    """Asks for layers as soon as a manifest names them. Leave it with ``async with``.

    Args:
        order: Which come first.
        jobs: How many are asked for.
        space: Bytes that are free for the archive; None for any number.
    """

    def __init__(self, order: Order, *, jobs: int, space: int | None) -> None:
        self._order = order
        self._jobs = jobs
        self._space = space
        self._asked: dict[Digest, _Asked] = {}

    def ask(self, source: SupportsEarlyBlobs, manifest: ImageManifest) -> None:
        """Open the first layers of an image, unless the archive might not have room."""
        sizes = [layer.size or 0 for layer in (*manifest.layers, *[manifest.config] * _CONFIGS)]
        needed = sum(sizes) + _METADATA + _METADATA_OF_LAYER * len(manifest.layers)
        if self._space is not None and needed > self._space:
            return
        for layer in self._order.first(manifest.layers, self._jobs):
            if layer.digest not in self._asked:
                self._asked[layer.digest] = _Asked(source.open_blob(layer))

    def opener(self, source: Source, layer: Descriptor) -> OpenBlob:
        """Return the function that opens a blob: the first call gives the blob that was opened early, if it was."""
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
        """Close the blobs that nobody has claimed; raise the errors of that, or note them on a fault."""
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
    """A blob that is opened by a task of its own, and read and closed by whoever claims it.

    Attributes:
        task: Opens it.
        is_claimed: Whether somebody else sees to its end.

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
        """Close the blob, if it was opened; its task has ended. An error is appended to ``errors``."""
        if not self.task.cancelled() and self.task.exception() is None:
            try:
                await self._blob.__aexit__(type(fault) if fault else None, fault, None)
            except Exception as exc:  # noqa: BLE001 - told by whoever called
                if exc is not fault:
                    errors.append(exc)

    def drop(self) -> None:
        """Close it as far as that needs no waiting."""
        if self.task.done():
            run_up_to_wait(self.close(errors=[]))
        else:
            drop_tasks([self.task])
