"""Save images: resolve them, plan their archive, and write it to a file or into a sink.

::

    ImageRequest ─prepare▶ Prepared ─┬▶ a file       blobs at their offsets, several at once    to_file
                                     ├▶ a stream     the plan's bytes, blobs read ahead         to_sink
                                     └▶ decompressed one after the other, read ahead            through_writer

The target is opened when everything is known that can be known before a layer is read. The first layers may have been
opened by then (`prefetch`), so that they come without a wait. The steps after ``prepare`` are in `saving`, which is loaded
while sources are asked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiodockersave._aio import Beside, running_task
from aiodockersave.core.errors import InvalidInputError
from aiodockersave.core.model import MAX_EXPANSION, Limits, check_limits

from .prefetch import NO_FILE, Ahead, Order, look_at
from .progress import check_progress
from .resolve import ImageRequest, listed_requests, prepare_all
from .waiting import TellingWaits

if TYPE_CHECKING:
    from aiodockersave.core.model import Format, Layers, Platform
    from aiodockersave.core.plan import Report
    from aiodockersave.sinks.adapters import AnySink

    from .progress import Progress

__all__ = ["save"]

DEFAULT_JOBS = 2
"""Blobs that are read at once: two keep two processors busy, and more are no quicker where the processor is the limit."""
MAX_JOBS = 64


async def save(
    images: ImageRequest | Sequence[ImageRequest],
    target: str | os.PathLike[str] | AnySink,
    *,
    format: Format = "docker",
    layers: Layers = "keep",
    platform: Platform | None = None,
    allow_other_platform: bool = False,
    jobs: int = DEFAULT_JOBS,
    resume: bool = False,
    restart: bool = False,
    fsync: bool = True,
    stage_memory: int = 8 << 20,
    stage_dir: str | os.PathLike[str] | None = None,
    max_plain_size: int | None = None,
    max_expansion: int | None = MAX_EXPANSION,
    verify_diff_ids: bool = False,
    checksum: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write images from sources into one archive.

    The bytes depend on images, tags, ``format`` and ``layers`` alone, never on the target, ``jobs`` or timing.

    Args:
        images: One image or several, in the order of the archive.
        target: A path, as :func:`open_archive` takes it, or any sink.
        format: The layout of the archive: ``"docker"`` as containers/image writes it, ``"oci"`` as Docker's containerd store
            does, which keeps the manifest and its digest.
        layers: ``"keep"`` stores layers as the source has them, ``"decompress"`` as plain tars (not with ``"oci"``).
        platform: The platform to take of an image that is there for several. An image whose config names another one, on
            which its programs do not run, is an error, unless the reference has the digest of its manifest. The default
            is ``linux`` on this machine's architecture, and such an image is taken with a warning of the logger
            ``aiodockersave``.
        allow_other_platform: Whether to take such an image in any case, with that warning.
        jobs: The number of blobs that are read at once, from 1 to 64. Into a stream, or decompressed, one is written
            while the next ones are read ahead.
        resume: Whether to resume an interrupted save, and to keep what this one receives if it is interrupted: in
            ``.NAME.<16 hex>.part`` beside the target, which a note of the exception names. A target that is the archive
            already, by its size and all bytes that are no blob's, is left as it is, unless ``verify_diff_ids`` needs its
            blobs. Only for a path, and with ``layers="keep"``.
        restart: Whether, with ``resume``, to fetch everything anew: neither a part file nor a finished target counts.
        fsync: Whether to sync the file and the directory of a path to the disk.
        stage_memory: The bytes of memory for content that is staged, which only a stream needs.
        stage_dir: The directory for staged content that exceeds ``stage_memory``.
        max_plain_size: The largest plain tar of a layer to accept when decompressing, in bytes.
        max_expansion: The most plain bytes to accept for each compressed one, beyond the first 64 MiB of a layer; None
            for any number. gzip never exceeds the default. zstd does with sparse files: a layer with a file of 1 GB that
            is all zeros may need more.
        verify_diff_ids: Whether to verify the plain tars of layers that are kept, too, which takes as long as decompressing
            them. Without it, a layer that begins neither as a compressed one nor as a tar is reported, as a warning of
            the logger ``aiodockersave``. Layers that are decompressed are always verified.
        checksum: Whether to report the SHA-256 of the archive: one more pass over its bytes.
        progress: A function that is called with each event, see :mod:`aiodockersave.pipeline.progress`.

    Returns:
        The contents of the archive.

    Raises:
        PlatformNotFoundError: An image is not there for ``platform``, or says that it is for another one.
        SourceError: An image or a blob is not there, or the reference leads to no image.
        ContentError: A source gave other bytes than promised.
        InvalidDocumentError: A manifest or config is not valid.
        InvalidInputError: There is no image, a tag is no name, or a layer has two sizes.
        NameConflictError: One name was given to two images, whose references the notes name.
        ImageConflictError: One config came with two lists of layers.
        InsufficientSpaceError: The archive will not fit, as far as its size is known ahead; or decompressed layers would
            fill the disk, of which 64 MiB, or one in a hundred bytes, are left to others.
        PartFileError: The part file is in use, was made by another user, or others may write to it.
        OSError: The target cannot be written.

    Errors of this package have a note that names the image.

    Cancel: a path has its old file or the whole new one, as with :func:`open_archive`; with ``resume`` the part file stays
    beside it, if anything was received. A sink of the caller's has the beginning of the archive without its end; with
    layers kept, a sink that can be cut back is as it was before. No source is open, and no thread writes any more.
    """
    running_task()
    check_progress(progress)
    is_path = isinstance(target, str | os.PathLike)
    if not isinstance(jobs, int):
        raise TypeError(f"jobs is an int, not {type(jobs).__qualname__}")
    if not 1 <= jobs <= MAX_JOBS:
        raise InvalidInputError(f"jobs={jobs}: it is from 1 to {MAX_JOBS}")
    if resume and not (is_path and layers == "keep"):
        raise InvalidInputError(
            "only a file can be resumed, and only with layers kept as they are: otherwise its size is not known ahead"
        )
    if restart and not resume:
        raise InvalidInputError(
            "restart=True is for a save with resume=True; any other begins anew by itself"
        )
    check_limits(max_plain_size=max_plain_size, max_expansion=max_expansion)
    requests = listed_requests(images)
    verify_diff_ids = verify_diff_ids and layers == "keep"
    async with TellingWaits((each.source for each in requests), progress), AsyncExitStack() as stack:
        ahead = None
        if len(requests) == 1 and jobs > 1 and not resume:
            place = await look_at(target) if isinstance(target, str | os.PathLike) else NO_FILE
            order = Order(layers, is_file=place.is_file)
            # Where layers are decompressed, the archive is larger than what is compared with it.
            ahead = await stack.enter_async_context(Ahead(order, jobs=jobs, space=place.space))
        async with Beside("aiodockersave-load") as loading:
            loading.start(_load_saving, layers=layers, is_path=is_path, verify_diff_ids=verify_diff_ids)
            prepared = await prepare_all(
                requests,
                format=format,
                layers=layers,
                platform=platform,
                allow_other_platform=allow_other_platform,
                ahead=ahead,
            )
        from .saving import Settings, save_prepared  # noqa: PLC0415 - see the head of this file

        settings = Settings(
            format=format,
            layers=layers,
            jobs=jobs,
            resume=resume,
            restart=restart,
            fsync=fsync,
            stage_memory=stage_memory,
            stage_dir=stage_dir,
            limits=Limits(max_plain_size, max_expansion),
            verify_diff_ids=verify_diff_ids,
            checksum=checksum,
        )
        return await save_prepared(prepared, target, settings, progress, ahead)


def _load_saving(**how: Any) -> None:
    saving = import_module(".saving", __package__)
    saving.load(**how)
