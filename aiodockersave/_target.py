"""The file of an archive by its path: a file beside the target that replaces it when it is whole.

::

    open    .NAME.<8 hex>.tmp beside the target (O_EXCL, O_NOFOLLOW)
            or .NAME.<16 hex of the ETag>.part, which may be there, locked: a part file
    sync    length compared, fsync          ┐ an error here is final: the kernel has dropped the pages
    publish rename over the target          │ from here on the file stays
            fsync of the directory          ┘
    close   unlink, but a part file that is kept

All of it happens below one descriptor of the directory, so a parent that is swapped meanwhile changes nothing. A
symbolic link's target is replaced, not the link. What is no regular file is written into, and never replaced.

All methods block. :func:`opened` and :func:`open_stream` do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import stat
from collections.abc import AsyncGenerator, Callable

from ._aio import Worker, running_task
from ._part_file import OPEN_BESIDE, is_still, name_beside, open_part, part_name
from .errors import InsufficientSpaceError, InvalidInputError, PartFileError, SinkError
from .space import Space

_FIFO_POLL = 0.02
_TRIES = 16


class Target:
    """One path that an archive is written to.

    Attributes:
        fd: The descriptor to write to, once :meth:`open` has returned; None for what has to be opened by
            :func:`open_stream`.
        published: Whether the archive is under its name.
        sync_failed: Whether the disk refused bytes: nothing may be called whole any more.
        left: The part file that :meth:`close` has left, so that another save can go on with it; None for none.

    Args:
        path: The target.
        fsync: Whether file and directory are brought to the disk.
        etag: The ETag of the archive's plan, for a part file instead of a temporary one; None for none.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool, etag: str | None = None) -> None:
        self.path = os.fspath(path)
        self.fd: int | None = None
        self.published = False
        self.sync_failed = False
        self.left: str | None = None
        self._fsync = fsync
        self._etag = etag
        self._directory: int | None = None
        self._parent = ""
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
            self._open_beside(old)
        elif self._etag is not None:
            raise InvalidInputError(
                f"{self.path!r:.300} is no regular file: nothing of it could be kept to go on"
            )
        elif not stat.S_ISFIFO(old.st_mode):
            self.fd = os.open(self.path, os.O_WRONLY | os.O_NOCTTY)

    def _names_directory(self, old: os.stat_result | None) -> bool:
        if old is None:
            return not os.path.basename(self.path)  # as in "new/", of which realpath would make "new"
        return stat.S_ISDIR(old.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether, once it is open, it is a file beside the target."""
        return self._temporary is not None

    def _open_beside(self, old: os.stat_result | None) -> None:
        self._parent, self._name = os.path.split(os.path.realpath(self.path))
        self._directory = os.open(self._parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._etag is None:
                self.fd, self._temporary = self._open_temporary(self._directory)
            else:
                name = part_name(self._name, self._etag)
                self.fd = open_part(self._directory, name, self._name, folder=self._parent)
                self._temporary = name
        except OSError as exc:
            if isinstance(exc.filename, str):
                exc.filename = f"{self._parent}/{exc.filename}"
            raise
        if old is not None:
            os.fchmod(self.fd, stat.S_IMODE(old.st_mode))

    def _open_temporary(self, directory: int) -> tuple[int, str]:
        for _ in range(_TRIES):
            name = name_beside(self._name, f".{secrets.token_hex(4)}.tmp")
            with contextlib.suppress(FileExistsError):
                return os.open(name, OPEN_BESIDE | os.O_EXCL, 0o666, dir_fd=directory), name
        raise FileExistsError(errno.EEXIST, "no free name for a temporary file", self._name)

    def check_space(self, size: int) -> None:
        """Look whether a file of ``size`` bytes has room where it is to be.

        Raises:
            InsufficientSpaceError: It has not.
            PartFileError: What is there is longer: no save of this archive has left it.
        """
        if self.fd is not None and self._temporary is not None:
            file, there = os.fstat(self.fd), os.fstatvfs(self.fd)
            if file.st_size > size:
                path = os.path.join(self._parent, self._temporary)
                raise PartFileError(path, f"it is longer than the archive will be, {size} bytes; remove it")
            available = there.f_bavail * there.f_frsize
            needed = size - file.st_blocks * 512  # POSIX counts in these, whatever the file system
            if there.f_blocks and needed > available:  # some file systems say nothing of themselves
                raise InsufficientSpaceError(self.path, needed, available)

    def space(self) -> Space | None:
        """Return the room for a file that grows, once it is open; None for what is no file beside the target."""
        return Space(self.fd, self.path) if self.fd is not None and self._temporary is not None else None

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
            self._sync(os.fsync)

    def sync_portion(self) -> None:
        """Bring to the disk what was written until now; errors as :meth:`sync`."""
        if not self.sync_failed:
            self._sync(os.fdatasync)

    def _sync(self, call: Callable[[int], None]) -> None:
        if self.fd is None:
            raise AssertionError("the target is not open")
        try:
            call(self.fd)
        except OSError:
            self.sync_failed = True
            raise

    def publish(self) -> None:
        """Put the file under its name; ``published`` says whether that was done, also where this raises."""
        if self._temporary is None:
            self.published = True
            return
        if self._directory is None or self.fd is None:
            raise AssertionError("the target is not open")
        if self._etag is not None and not is_still(self.fd, self._directory, self._temporary):
            path = os.path.join(self._parent, self._temporary)
            raise PartFileError(path, "somebody has removed or replaced it meanwhile; save once more")
        os.replace(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self.published = True
        self._temporary = None
        if self._fsync:
            os.fsync(self._directory)

    def close(self) -> None:
        """Close what is open, and remove the temporary file unless it was published, or is a part file to keep."""
        fd, self.fd = self.fd, None
        directory, self._directory = self._directory, None
        temporary, self._temporary = self._temporary, None
        with contextlib.ExitStack() as stack:
            if directory is not None:
                stack.callback(os.close, directory)
            if fd is not None:
                stack.callback(os.close, fd)
                if directory is not None and temporary is not None:
                    stack.callback(self._leave, fd, directory, temporary)  # before a part file is unlocked

    def _leave(self, fd: int, directory: int, name: str) -> None:
        """Remove the file beside the target, unless it is a part file that another save can go on with."""
        if self._etag is not None:
            if not is_still(fd, directory, name):
                return  # somebody has removed it, and another save may have begun one
            # What the disk refused may be missing, while its pages still show it.
            if not self.sync_failed and os.fstat(fd).st_size > 0:
                self.left = os.path.join(self._parent, name)
                return
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


@contextlib.asynccontextmanager
async def opened(target: Target) -> AsyncGenerator[Target, None]:
    """Open a target, and close it at the end, whatever happens."""
    running_task()
    worker = Worker("aiodockersave-file")
    try:
        await worker.run(target.open)
        yield target
    except GeneratorExit:
        target.close()  # nothing can be awaited any more
        raise
    except BaseException as exc:
        try:
            await worker.run_always(target.close)
        except OSError as error:
            exc.add_note(f"while cleaning up: {error}")
        raise
    else:
        await worker.run_always(target.close)
