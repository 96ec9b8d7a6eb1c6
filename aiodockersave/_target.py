"""The file of an archive by its path: a temporary file beside the target that replaces it when it is whole.

::

    open    .NAME.<8 hex>.tmp beside the target (O_EXCL, O_NOFOLLOW)
    sync    length compared, fsync          ┐ an error here is final: the kernel has dropped the pages
    publish rename over the target          │ from here on the file stays
            fsync of the directory          ┘
    discard unlink

All of it happens below one descriptor of the directory, so a parent that is swapped meanwhile changes nothing. A
symbolic link's target is replaced, not the link. What is no regular file is written into, and never replaced.

All methods block, but for :func:`open_stream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import stat

from .errors import SinkError

_FIFO_POLL = 0.02
_NAME_MAX = 255
_TRIES = 16


class Target:
    """One path that an archive is written to.

    Attributes:
        fd: The descriptor to write to, once :meth:`open` has returned; None for what has to be opened by
            :func:`open_stream`.
        published: Whether the archive is under its name.
        sync_failed: Whether the disk refused bytes: nothing may be called whole any more.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool) -> None:
        self.path = os.fspath(path)
        self.fd: int | None = None
        self.published = False
        self.sync_failed = False
        self._fsync = fsync
        self._directory: int | None = None
        self._name = ""
        self._temporary: str | None = None

    def open(self) -> None:
        """Make the temporary file, or open what is no regular file.

        Raises:
            OSError: The directory is missing or cannot be written to, or the path is a directory.
        """
        try:
            old = os.stat(self.path)
        except FileNotFoundError:
            old = None
        if self._names_directory(old):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
        if old is None or stat.S_ISREG(old.st_mode):
            self._open_temporary(old)
        elif not stat.S_ISFIFO(old.st_mode):
            self.fd = os.open(self.path, os.O_WRONLY | os.O_NOCTTY)

    def _names_directory(self, old: os.stat_result | None) -> bool:
        if old is None:
            return not os.path.basename(self.path)  # as in "new/", of which realpath would make "new"
        return stat.S_ISDIR(old.st_mode)

    def _open_temporary(self, old: os.stat_result | None) -> None:
        parent, self._name = os.path.split(os.path.realpath(self.path))
        self._directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        for _ in range(_TRIES):
            name = _temporary_name(self._name)
            try:
                self.fd = os.open(name, flags, 0o666, dir_fd=self._directory)
            except FileExistsError:
                continue
            except OSError as exc:
                exc.filename = f"{parent}/{name}"
                raise
            self._temporary = name
            if old is not None:
                os.fchmod(self.fd, stat.S_IMODE(old.st_mode))
            return
        raise FileExistsError(errno.EEXIST, "no free name for a temporary file", self.path)

    def sync(self, size: int) -> None:
        """Bring the bytes to the disk.

        Raises:
            OSError: The disk refused some. It must not be asked again: it would say yes.
            SinkError: The file has another size than what was written to it.
        """
        if self._temporary is None or self.fd is None:
            return
        actual = os.fstat(self.fd).st_size
        if actual != size:
            raise SinkError(f"{self.path} has {actual} bytes on disk, but {size} were written")
        if self._fsync:
            try:
                os.fsync(self.fd)
            except OSError:
                self.sync_failed = True
                raise

    def publish(self) -> None:
        """Put the file under its name; ``published`` says whether that was done, also where this raises."""
        if self._temporary is None:
            self.published = True
            return
        os.replace(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self.published = True
        self._temporary = None
        if self._fsync and self._directory is not None:
            os.fsync(self._directory)

    def close(self) -> None:
        """Close what is open, and remove the temporary file unless it was published."""
        fd, self.fd = self.fd, None
        directory, self._directory = self._directory, None
        temporary, self._temporary = self._temporary, None
        with contextlib.ExitStack() as stack:
            if directory is not None:
                stack.callback(os.close, directory)
            if temporary is not None:
                stack.callback(_remove, temporary, directory)
            if fd is not None:
                stack.callback(os.close, fd)


def _remove(name: str, directory: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


async def open_stream(target: Target) -> int:
    """Return the descriptor; a FIFO is opened here, once somebody reads it. A cancel leaves nothing open."""
    while target.fd is None:
        try:
            target.fd = os.open(target.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            await asyncio.sleep(_FIFO_POLL)
    return target.fd


def _temporary_name(name: str) -> str:
    suffix = f".{secrets.token_hex(4)}.tmp"
    kept = os.fsencode(name)[: _NAME_MAX - len(suffix) - 1]
    return f".{os.fsdecode(kept)}{suffix}"
