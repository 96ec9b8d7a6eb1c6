"""From images to an archive: what sources have is resolved, planned, and brought to a file or into a sink.

::

    ImageRequest ─prepare▶ Prepared ─┬▶ a file    blobs at their offsets, several at once    kept_file, plain_file
                                     └▶ a stream  one after the other, read ahead            streaming

The target is opened when everything is known that can be known before a layer is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ._aio import Worker, running_task
from ._target import Target, open_stream
from .archive_file import opened
from .books import Books
from .errors import InvalidInputError, PartFileError
from .following import Follower
from .formats import Format, Layers
from .kept_file import file_kept
from .model import Platform
from .plain_file import file_plain
from .plan import Report
from .preparing import ImageRequest, Prepared, prepare
from .progress import Meter, Progress, SaveFinished, SaveStarted
from .sinks import AnySink, descriptor_sink
from .streaming import stream_images
from .syncing import Syncer
from .writer import ArchiveWriter

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["save"]

DEFAULT_JOBS = 2
"""Blobs that are read at once: two keep two processors busy, and more are no quicker where the processor is the limit."""
MAX_JOBS = 64


async def save(
    images: Sequence[ImageRequest],
    target: str | os.PathLike[str] | AnySink,
    *,
    format: Format = "docker",
    layers: Layers = "keep",
    platform: Platform | None = None,
    jobs: int = DEFAULT_JOBS,
    resume: bool = False,
    fsync: bool = True,
    stage_memory: int = 8 << 20,
    stage_dir: str | os.PathLike[str] | None = None,
    max_plain_size: int | None = None,
    checksum: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write images from sources into one archive.

    Its bytes depend on images, tags, ``format`` and ``layers`` alone, never on the target, ``jobs`` or timing.

    Args:
        images: What goes in, in this order.
        target: A path, as :func:`open_archive` takes it, or any sink.
        format: The layout of the archive.
        layers: ``"keep"`` stores layers as the source has them, ``"decompress"`` as plain tars.
        platform: Which of an image's platforms is taken; ``linux`` on this machine's architecture by default.
        jobs: How many blobs are read at once, from 1 to 64; into a stream one is written while the next is read.
        resume: Whether a save that was interrupted is gone on with, and this one can be, should it be interrupted: what
            was received is kept in ``.NAME.<16 hex>.part`` beside the target, and an exception has a note that says so.
            Only for a path, and with ``layers="keep"``.
        fsync: Whether a path's file and directory are brought to the disk.
        stage_memory: Bytes of memory for content that is staged, which is only on the way into a stream.
        stage_dir: Where content goes that is staged and too large for memory.
        max_plain_size: The largest layer to accept when decompressing, in bytes.
        checksum: Whether the report has the SHA-256 of the archive.
        progress: Called with each event, see :mod:`aiodockersave.progress`.

    Returns:
        What is in the archive.

    Raises:
        SourceError: An image or a blob is not there, or is no image.
        ContentError: What a source gave is not what was promised.
        InvalidDocumentError: A manifest or config is not valid.
        InvalidInputError: A tag is no name, or a layer has two sizes.
        InsufficientSpaceError: The archive will not fit, as far as its size is known ahead.
        PartFileError: What an interrupted save has left is of another archive, or in use.
        OSError: The target cannot be written.

    Errors of this package have a note that names the image.

    Cancel: as :func:`open_archive` for a path: it has its old file, or the whole new one; with ``resume`` the part file
    stays beside it, if anything was received. A sink of the caller's is left as ``ArchiveWriter.abort()`` leaves it.
    Nothing of a source is open, and no thread writes any more.
    """
    running_task()
    is_path = isinstance(target, str | os.PathLike)
    if not 1 <= jobs <= MAX_JOBS:
        raise InvalidInputError(f"jobs={jobs}: it is from 1 to {MAX_JOBS}")
    if resume and not (is_path and layers == "keep"):
        raise InvalidInputError(
            "only a file can be gone on with, and only with layers kept as they are: its size is not known ahead otherwise"
        )
    prepared = await prepare(images, format=format, layers=layers, platform=platform)
    meter = Meter(progress, prepared.layers)
    meter.tell(SaveStarted(prepared, meter.total))

    new_writer = partial(
        ArchiveWriter,
        format=format,
        layers=layers,
        stage_memory=stage_memory,
        stage_dir=stage_dir,
        max_plain_size=max_plain_size,
        checksum=checksum,
    )
    if isinstance(target, str | os.PathLike):
        etag = prepared.plan.etag if resume and prepared.plan is not None else None
        async with _noting_what_is_left(Target(target, fsync=fsync, etag=etag)) as place:
            if place.is_file:
                saving = _Saving(
                    place, prepared, meter, format=format, jobs=jobs, max_plain_size=max_plain_size
                )
                report = await saving.run(fsync=fsync, resume=resume, checksum=checksum)
            else:
                writer = new_writer(descriptor_sink(await open_stream(place)), _target=place)
                report = await stream_images(writer, prepared, Books(prepared, meter), jobs=jobs)
    else:
        report = await stream_images(new_writer(target), prepared, Books(prepared, meter), jobs=jobs)
    meter.tell(SaveFinished(report))
    return report


@contextlib.asynccontextmanager
async def _noting_what_is_left(target: Target) -> AsyncGenerator[Target, None]:
    """Open a target as :func:`opened` does; an exception has a note of the part file that is left."""
    try:
        async with opened(target):
            yield target
    except BaseException as exc:
        if target.left is not None and not isinstance(exc, PartFileError):
            exc.add_note(
                f"what was received is kept in {target.left}; the same save with --resume goes on from there"
            )
        raise


class _Saving:
    """A save to a file beside the target."""

    def __init__(
        self,
        target: Target,
        prepared: Prepared,
        meter: Meter,
        *,
        format: Format,
        jobs: int,
        max_plain_size: int | None,
    ) -> None:
        if target.fd is None:
            raise AssertionError("the target is not open")
        self._fd = target.fd
        self._target = target
        self._prepared = prepared
        self._books = Books(prepared, meter)
        self._format = format
        self._jobs = jobs
        self._max_plain_size = max_plain_size

    async def run(self, *, fsync: bool, resume: bool, checksum: bool) -> Report:
        """Bring it under its name."""
        worker = Worker("aiodockersave-file")
        sha256 = None
        async with Syncer(self._target, is_wanted=fsync) as syncer, Follower(self._fd) as follower:
            # What is gone on with may be replaced while it is followed.
            followed = follower if checksum and not resume else None
            plan = await self._file(worker, syncer, followed, resume=resume)
            if checksum:
                sha256 = await follower.finish(plan.segments)
        await worker.run(self._target.sync, plan.size)
        await worker.run(self._target.publish)
        return Report(plan.size, plan.members, plan.images, sha256)

    async def _file(self, worker: Worker, syncer: Syncer, follower: Follower | None, *, resume: bool) -> Plan:
        if self._prepared.plan is None:
            return await file_plain(
                self._fd,
                self._prepared,
                self._books,
                format=self._format,
                jobs=self._jobs,
                max_plain_size=self._max_plain_size,
                follower=follower,
                written=syncer.written,
            )
        plan = self._prepared.plan
        await worker.run(self._target.check_space, plan.size)
        await file_kept(
            self._fd,
            plan,
            self._books,
            jobs=self._jobs,
            resume=resume,
            follower=follower,
            written=syncer.written,
        )
        return plan
