"""Images that were prepared, brought to their target: into a file beside it, or through a writer into a stream.

Each way has rooms of its own, and needs none of the others': so they are loaded one by one, see :func:`load`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from aiodockersave._aio import Worker
from aiodockersave.blobs.expansion import SharedExpansion
from aiodockersave.core.plan import Report
from aiodockersave.sinks.atomic_file import Target, open_stream, opened

from .checksum import sha256_of
from .progress import Meter, Progress, SaveFinished, SaveStarted
from .resolve import check_layers
from .syncing import Syncer
from .tracker import Books

if TYPE_CHECKING:
    from aiodockersave.archive.writer import WriterOptions
    from aiodockersave.core.model import Format, Layers, Limits
    from aiodockersave.core.plan import Plan
    from aiodockersave.sinks.adapters import AnySink

    from .prefetch import Ahead
    from .resolve import Prepared

__all__ = ["Settings", "load", "save_prepared"]


class Settings(NamedTuple):
    """The options of a save, as :func:`~aiodockersave.save` takes them."""

    format: Format
    layers: Layers
    jobs: int
    resume: bool
    fsync: bool
    stage_memory: int
    stage_dir: str | os.PathLike[str] | None
    limits: Limits
    verify_diff_ids: bool
    checksum: bool


def load(*, layers: Layers, is_path: bool, verify_diff_ids: bool = False) -> None:
    """Load what is needed for a kind of target, which takes a while: for a thread."""
    if not is_path:
        modules = ["sinks.adapters", "pipeline.to_sink" if layers == "keep" else "pipeline.through_writer"]
    else:
        modules = ["pipeline.to_file"] if layers == "keep" else ["pipeline.to_file_decompressed"]
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
    """Write the archive of what was prepared; arguments, errors and cancel as :func:`~aiodockersave.save`."""
    if settings.verify_diff_ids:
        check_layers(prepared.images)  # a blob is read for one of its images only
    meter = Meter(progress, prepared.layers)
    meter.tell(SaveStarted(prepared, meter.total))
    books = Books(prepared, meter, ahead)
    if isinstance(target, str | os.PathLike):
        etag = prepared.plan.etag if settings.resume and prepared.plan is not None else None
        async with opened(Target(target, fsync=settings.fsync, etag=etag)) as place:
            if place.is_file:
                report = await _ToFile(place, prepared, books, settings).run()
            else:
                report = await _stream_into(place, prepared, books, settings)
    else:
        report = await _stream(target, prepared, books, settings)
    meter.tell(SaveFinished(report))
    return report


async def _stream_into(target: Target, prepared: Prepared, books: Books, settings: Settings) -> Report:
    await Worker("aiodockersave-load").run(load, layers=settings.layers, is_path=False)
    from aiodockersave.sinks.adapters import target_sink  # noqa: PLC0415 - see the head of this file

    return await _stream(target_sink(await open_stream(target)), prepared, books, settings, target)


async def _stream(
    sink: AnySink, prepared: Prepared, books: Books, settings: Settings, target: Target | None = None
) -> Report:
    if prepared.plan is not None:
        from .to_sink import write_plan  # noqa: PLC0415 - see the head of this file

        return await write_plan(
            sink,
            prepared.plan,
            books,
            jobs=settings.jobs,
            checksum=settings.checksum,
            verify=settings.limits._replace(share=SharedExpansion()) if settings.verify_diff_ids else None,
        )
    from aiodockersave.archive.writer import ArchiveWriter  # noqa: PLC0415

    from .through_writer import stream_images  # noqa: PLC0415

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
    writer = ArchiveWriter(sink, **options) if target is None else ArchiveWriter.at(target, sink, **options)
    return await stream_images(writer, prepared, books, jobs=settings.jobs)


class _ToFile:
    """A save to a file beside the target."""

    def __init__(self, target: Target, prepared: Prepared, books: Books, settings: Settings) -> None:
        if target.file is None:
            raise AssertionError("the target is not open")
        self._file = target.file
        self._target = target
        self._prepared = prepared
        self._books = books
        self._settings = settings

    async def run(self) -> Report:
        """Bring it under its name."""
        worker = Worker("aiodockersave-file")
        settings = self._settings
        sha256 = None
        async with Syncer(self._target, is_wanted=settings.fsync) as syncer:
            plan = await self._fill(worker, syncer)
            if settings.checksum:
                sha256 = await sha256_of(self._file, plan.size, worker)
        await worker.run(self._target.sync, plan.size)
        await worker.run(self._target.publish)
        return Report(plan.size, plan.members, plan.images, sha256)

    async def _fill(self, worker: Worker, syncer: Syncer) -> Plan:
        settings = self._settings
        plan = self._prepared.plan
        if plan is None:
            from .to_file_decompressed import file_plain  # noqa: PLC0415 - see the head of this file

            return await file_plain(
                self._file,
                self._prepared,
                self._books,
                format=settings.format,
                jobs=settings.jobs,
                limits=settings.limits._replace(share=SharedExpansion()),
                space=self._target.space(),
                written=syncer.written,
            )
        from .to_file import file_kept  # noqa: PLC0415 - see the head of this file

        await worker.run(self._target.check_space, plan.size)
        await file_kept(
            self._file,
            plan,
            self._books,
            jobs=settings.jobs,
            resume=settings.resume,
            verify=settings.limits._replace(share=SharedExpansion()) if settings.verify_diff_ids else None,
            written=syncer.written,
        )
        return plan
