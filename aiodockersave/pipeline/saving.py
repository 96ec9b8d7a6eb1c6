"""Write images that were prepared to their target: into a file beside it, or into a stream.

Each way has modules of its own, and needs none of the others', so they are loaded one by one, see :func:`load`. Two things
that all files share are here: their bytes are sent to the disk while more are written, and their SHA-256 is one more pass.
"""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiodockersave._aio import Beside, Worker
from aiodockersave.blobs.space import SharedExpansion
from aiodockersave.core.errors import SinkError
from aiodockersave.core.model import Digest
from aiodockersave.core.plan import Report
from aiodockersave.sinks.atomic_file import Target, open_stream, opened

from .progress import Books, Meter, Progress, SaveFinished, SaveStarted
from .resolve import check_layers

if TYPE_CHECKING:
    from aiodockersave.archive.writer import WriterOptions
    from aiodockersave.blobs.open_file import OpenFile
    from aiodockersave.core.model import Format, Layers, Limits
    from aiodockersave.core.plan import Plan
    from aiodockersave.sinks.adapters import AnySink

    from .prefetch import Ahead
    from .resolve import Prepared

__all__ = ["Settings", "Syncer", "load", "save_prepared", "sha256_of"]

_STEP: Final = 32 << 20
"""Bytes that one blocking call hashes, some 20 ms: a cancel waits for its end."""
_PIECE: Final = 1 << 20
"""Bytes that are read at once: more make a larger buffer and no higher speed."""


async def sha256_of(file: OpenFile, size: int, worker: Worker) -> Digest:
    """Return the SHA-256 of the first ``size`` bytes of a file.

    Raises:
        SinkError: The file is shorter.
        OSError: It cannot be read.

    Cancel: is raised when the step that runs has ended.
    """
    hash_ = hashlib.sha256()
    with worker.held():
        for start in range(0, size, _STEP):
            await worker.run(_hash_step, file, hash_, start, min(start + _STEP, size))
    return Digest("sha256", hash_.hexdigest())


def _hash_step(file: OpenFile, hash_: Any, start: int, stop: int) -> None:
    with file as fd:
        while start < stop:
            data = os.pread(fd, min(_PIECE, stop - start), start)
            if not data:
                raise SinkError(f"the file is shorter than what was written to it, at byte {start}")
            hash_.update(data)
            start += len(data)


_PORTION: Final = 64 << 20
"""Bytes after which those before are sent to the disk, so that not all of them wait for the end."""


class Syncer(Beside):
    """Sends a file to the disk, portion by portion, while it is written.

    Args:
        target: The file. An error of the disk is final for it: the kernel has dropped the pages.
        is_wanted: Whether anything is done at all.
    """

    def __init__(self, target: Target, *, is_wanted: bool) -> None:
        super().__init__("aiodockersave-sync")
        self._target = target
        self._is_wanted = is_wanted and hasattr(os, "fdatasync")
        self._bytes = 0

    def written(self, size: int) -> None:
        """Count bytes that are being written; start to send a portion where it is time.

        Raises:
            OSError: The disk has refused an earlier one.
        """
        self._bytes += size
        if self._is_wanted and self._bytes >= _PORTION and self.is_free():
            self._bytes = 0
            self.start(self._target.sync_portion)


class Settings(NamedTuple):
    """The options of a save, as :func:`~aiodockersave.save` takes them."""

    format: Format
    layers: Layers
    jobs: int
    resume: bool
    restart: bool
    fsync: bool
    stage_memory: int
    stage_dir: str | os.PathLike[str] | None
    limits: Limits
    verify_diff_ids: bool
    checksum: bool

    @property
    def verify(self) -> Limits | None:
        """The limits for layers that are kept and whose plain tars are verified; None where they are not."""
        return self.limits._replace(share=SharedExpansion()) if self.verify_diff_ids else None


def load(*, layers: Layers, is_path: bool, verify_diff_ids: bool = False) -> None:
    """Load the modules for a kind of target; call it in a thread, since this takes a while."""
    decompressing = ["archive.writer", "pipeline.through_writer"]
    if not is_path:
        modules = ["sinks.adapters", *(["pipeline.to_sink"] if layers == "keep" else decompressing)]
    else:
        modules = ["pipeline.to_file"] if layers == "keep" else ["sinks.adapters", *decompressing]
        modules += ["core.decompression"] if layers == "decompress" or verify_diff_ids else []
    for module in modules:
        import_module(f"aiodockersave.{module}")


async def save_prepared(
    prepared: Prepared,
    target: str | os.PathLike[str] | AnySink,
    settings: Settings,
    progress: Progress | None,
    ahead: Ahead | None,
) -> Report:
    """Write the archive of prepared images; arguments, errors and cancel as :func:`~aiodockersave.save`."""
    if settings.verify_diff_ids:
        check_layers(prepared.images)  # a blob is read for one of its images only
    meter = Meter(progress, prepared.layers)
    meter.tell(SaveStarted(prepared, meter.total))
    books = Books(prepared, meter, ahead)
    if isinstance(target, str | os.PathLike):
        report = await _save_by_path(target, prepared, books, settings)
    elif prepared.plan is not None:
        report = await _write_plan(target, prepared.plan, books, settings)
    else:
        report = await _decompress(target, prepared, books, settings)
    meter.tell(SaveFinished(report))
    return report


async def _save_by_path(
    path: str | os.PathLike[str], prepared: Prepared, books: Books, settings: Settings
) -> Report:
    etag = None
    if settings.resume and prepared.plan is not None:
        if not settings.restart and not settings.verify_diff_ids:
            report = await _leave_as_is(path, prepared.plan, books, settings)
            if report is not None:
                return report
        etag = prepared.plan.etag
    async with opened(Target(path, fsync=settings.fsync, etag=etag, begin_anew=settings.restart)) as place:
        return await _save_at(place, prepared, books, settings)


async def _leave_as_is(
    path: str | os.PathLike[str], plan: Plan, books: Books, settings: Settings
) -> Report | None:
    """Leave a file as it is that is the archive already; return None where it is not."""
    from aiodockersave.sinks.finished_file import FinishedFile  # noqa: PLC0415 - few saves need it

    worker = Worker("aiodockersave-file")
    with FinishedFile(path) as finished:
        if not await worker.run(finished.open, plan.segments, plan.size):
            return None
        books.begin()
        for blob in books.blobs:
            books.meter.started(blob.layer, blob.layer.size or 0)
            books.finished(blob.layer)
        sha256 = await sha256_of(finished.file, plan.size, worker) if settings.checksum else None
    return Report(plan.size, plan.members, plan.images, sha256, left_as_is=True)


async def _save_at(target: Target, prepared: Prepared, books: Books, settings: Settings) -> Report:
    if target.is_file and prepared.plan is not None:
        return await _to_file(target, prepared.plan, books, settings)
    if not target.is_file:
        await Worker("aiodockersave-load").run(load, layers=settings.layers, is_path=False)
    from aiodockersave.sinks.adapters import target_sink  # noqa: PLC0415 - see the head of this file

    sink = target_sink(await open_stream(target))
    if prepared.plan is not None:
        return await _write_plan(sink, prepared.plan, books, settings)
    return await _decompress(sink, prepared, books, settings, target)


async def _write_plan(sink: AnySink, plan: Plan, books: Books, settings: Settings) -> Report:
    from .to_sink import write_plan  # noqa: PLC0415 - see the head of this file

    return await write_plan(
        sink, plan, books, jobs=settings.jobs, checksum=settings.checksum, verify=settings.verify
    )


async def _decompress(
    sink: AnySink, prepared: Prepared, books: Books, settings: Settings, target: Target | None = None
) -> Report:
    from aiodockersave.archive.writer import ArchiveWriter  # noqa: PLC0415 - see the head of this file

    from .through_writer import check_space, stream_images  # noqa: PLC0415

    options: WriterOptions = {
        "format": settings.format,
        "layers": settings.layers,
        "stage_memory": settings.stage_memory,
        "stage_dir": settings.stage_dir,
        "max_plain_size": settings.limits.max_plain_size,
        "max_expansion": settings.limits.max_expansion,
        "verify_diff_ids": settings.verify_diff_ids,
        "checksum": settings.checksum,
    }
    if target is None:
        return await stream_images(ArchiveWriter(sink, **options), prepared, books, jobs=settings.jobs)
    space = target.space()
    if space is not None:
        await Worker("aiodockersave-file").run(check_space, space, books)
    writer = ArchiveWriter.at(target, sink, **options)
    async with Syncer(target, is_wanted=settings.fsync and target.is_file) as syncer:
        # The disk is heard before the archive gets its name: an error of a portion is told once, and not to whoever asks next.
        return await stream_images(
            writer, prepared, books, jobs=settings.jobs, read=syncer.written, before_end=syncer.wait
        )


async def _to_file(target: Target, plan: Plan, books: Books, settings: Settings) -> Report:
    from .to_file import file_kept  # noqa: PLC0415 - see the head of this file

    if target.file is None:
        raise AssertionError("the target is not open")
    worker = Worker("aiodockersave-file")
    await worker.run(target.check_space, plan.size)
    sha256 = None
    async with Syncer(target, is_wanted=settings.fsync) as syncer:
        await file_kept(
            target.file,
            plan,
            books,
            jobs=settings.jobs,
            resume=settings.resume,
            verify=settings.verify,
            written=syncer.written,
        )
        if settings.checksum:
            sha256 = await sha256_of(target.file, plan.size, worker)
    await worker.run(target.sync, plan.size)
    await worker.run(target.publish)
    return Report(plan.size, plan.members, plan.images, sha256)
