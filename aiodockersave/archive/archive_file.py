"""Write an archive to a path, where it appears when it is whole or not at all."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType

from aiodockersave.core.model import MAX_EXPANSION, Format, Layers
from aiodockersave.sinks.adapters import target_sink
from aiodockersave.sinks.atomic_file import Target, open_stream, opened

from .writer import ArchiveWriter, WriterOptions


def open_archive(
    path: str | os.PathLike[str],
    *,
    fsync: bool = True,
    format: Format = "docker",
    layers: Layers = "keep",
    stage_memory: int = 8 << 20,
    stage_dir: str | os.PathLike[str] | None = None,
    max_plain_size: int | None = None,
    max_expansion: int | None = MAX_EXPANSION,
    verify_diff_ids: bool = False,
    checksum: bool = False,
) -> AbstractAsyncContextManager[ArchiveWriter]:
    """Write an archive to a path, where it appears when it is whole or not at all.

    The writer fills a private temporary file beside the target. ``close()``, which the end of the block
    calls, renames that file over the target; an existing file is never touched before that. Temporary files
    that a killed process has left there are removed. If the existing file is the caller's own, its mode is
    kept, up to ``0o777``, as far as the new file has the same group and access control list: nobody gains
    access. Of a symbolic link the target is replaced, not the link. A target that is no regular file
    (``/dev/null``, a FIFO) is written into. In a directory that others may write to, a link or a FIFO must
    belong to the caller or to root.

    Args:
        path: The path of the archive.
        fsync: Whether to sync file and directory to the disk.
        format: As for :class:`ArchiveWriter`, and so are all options below.
        layers: Whether blobs are kept as they are, or stored as plain tars.
        stage_memory: Bytes of memory for content that is staged.
        stage_dir: The directory for staged content that exceeds ``stage_memory``.
        max_plain_size: The largest plain tar of a layer to accept when decompressing, in bytes.
        max_expansion: The most plain bytes to accept for each compressed one, beyond the first 64 MiB of a
            layer.
        verify_diff_ids: Whether to verify the plain tar of each layer that is kept as it is.
        checksum: Whether the report has the SHA-256 of the archive.

    Raises:
        PermissionError: Another user has prepared something at the path, or the object there may not be
            replaced.
        InsufficientSpaceError: A layer that is decompressed, or of unknown size, would leave too little free
            space.
        OSError: The file cannot be created, or the disk is full.

    Cancel: the old file is untouched and no temporary file is left, unless the archive had its final name
    already.
    """
    return _OpenArchive(
        Target(path, fsync=fsync),
        {
            "format": format,
            "layers": layers,
            "stage_memory": stage_memory,
            "stage_dir": stage_dir,
            "max_plain_size": max_plain_size,
            "max_expansion": max_expansion,
            "verify_diff_ids": verify_diff_ids,
            "checksum": checksum,
        },
    )


class _OpenArchive:
    """Open the target and its writer when the block is entered, and close both when it is left."""

    # Not an async generator: up to Python 3.12 a waiting one does not notice that its coroutine is closed.

    def __init__(self, target: Target, options: WriterOptions) -> None:
        self._target = target
        self._options = options
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> ArchiveWriter:
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(opened(self._target))
            sink = target_sink(await open_stream(target))
            archive = await stack.enter_async_context(ArchiveWriter.at(target, sink, **self._options))
            self._stack = stack.pop_all()
        return archive

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, fault, traceback)
