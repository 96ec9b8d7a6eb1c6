"""Write an archive to a path: into a file beside the target, which replaces the target when it is complete.

::

    open    .NAME.<8 hex>.tmp beside the target (O_EXCL, O_NOFOLLOW)
            or .NAME.<16 hex of the ETag>.part, which may be there: a part file
    lock    the file; remove temporary files that nobody has locked, since their writers were killed
    sync    compare the length, fsync          ┐ an error here is final: the kernel has dropped the pages
    publish set mode, rename over the target   │ from here on the file stays
            fsync the directory                ┘
    tidy    remove part files beside the target that nobody works on: nobody needs them now
    close   unlink the file, unless it was published or is a part file to keep

All steps use one open descriptor of the directory, so swapping a parent directory meanwhile changes nothing.
A symbolic link's target is replaced, not the link. A file that is not regular is written into, and never
replaced. A path that another user may have tampered with is refused, see :mod:`.path`.

Until the file is published only its owner can read it. Then it gets the mode of an ordinary new file. If it
replaces a file of the user's own, it gets that file's mode, unless that would give somebody more access.

All methods block, except :func:`opened` and :func:`open_stream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Callable

from aiodockersave._aio import Worker, running_task, wait_out
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.blobs.space import Space
from aiodockersave.core.errors import InsufficientSpaceError, InvalidInputError, PartFileError, SinkError

from .part_file import open_part, part_name, remove_parts
from .path import Spot, find
from .temporary import PRIVATE, is_still, mode_of_new, named_by_acl, open_temporary, remove_stale

_FIFO_POLL = 0.02
"""Seconds between two tries to open a FIFO that nobody reads yet: the system signals no event to wait for."""
_MODES = 0o777
"""The bits of an old file's mode that are kept: all but set-user-ID, set-group-ID and sticky."""


class Target:
    """One path that an archive is written to.

    Attributes:
        file: The file to write, once :meth:`open` has returned; None for a FIFO, which :func:`open_stream` opens.
        published: Whether the archive has its final name.
        sync_failed: Whether the disk refused bytes; the archive must not be published then.
        left: The part file that :meth:`close` has left for another save to resume; None for none.

    Args:
        path: The target.
        fsync: Whether to call fsync for the file and its directory.
        etag: The ETag of the archive's plan, to write a part file; None to write a temporary file.
        begin_anew: Whether to drop the content of an existing part file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: bool,
        etag: str | None = None,
        begin_anew: bool = False,
    ) -> None:
        self.path = os.fsdecode(path)
        self.file: OpenFile | None = None
        self.published = False
        self.sync_failed = False
        self.left: str | None = None
        self._fsync = fsync
        self._etag = etag
        self._begin_anew = begin_anew
        self._spot: Spot | None = None
        self._directory: OpenFile | None = None
        self._temporary: str | None = None
        self._mode: int | None = None

    def open(self) -> None:
        """Make the temporary file, open the part file, or open a target that is not regular.

        Raises:
            PermissionError: The path may have been tampered with, or the old file may not be replaced.
            OSError: The directory is missing or cannot be written to, or the path is a directory.
        """
        try:
            self._spot = spot = find(self.path)
            if spot.there is None or stat.S_ISREG(spot.there.st_mode):
                self._open_beside(spot)
            elif self._etag is not None:
                raise InvalidInputError(
                    f"{self.path!r:.300} is no regular file: nothing of it could be kept to resume"
                )
            elif not stat.S_ISFIFO(spot.there.st_mode):
                self.file = OpenFile(spot.open(os.O_WRONLY | os.O_NOCTTY))
        except BaseException:
            self.close()
            raise

    def open_fifo(self) -> int:
        """Open a FIFO for writing, without waiting for its reader.

        Raises:
            OSError: Nobody reads it yet (ENXIO), or it cannot be opened.
        """
        if self._spot is None:
            raise AssertionError("the target is not open")
        return self._spot.open(os.O_WRONLY | os.O_NONBLOCK)

    @property
    def is_file(self) -> bool:
        """Whether the archive is written into a file beside the target."""
        return self._temporary is not None

    def _open_beside(self, spot: Spot) -> None:
        try:
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=spot.directory)
        except OSError as exc:
            exc.filename = spot.folder
            raise
        self._directory = OpenFile(directory)
        # 1. Check that the target may be replaced, and make the file.
        _check_replaceable(spot, os.fstat(directory))
        old = _old_to_follow(spot)
        try:
            mode = None if old is not None else mode_of_new(directory, spot.name)
            fd = self._make(spot, directory)
        except OSError as exc:
            if isinstance(exc.filename, str):
                exc.filename = os.path.join(spot.folder, exc.filename)
            raise
        # 2. Decide on the mode that the file gets when it is published.
        if mode is None and old is not None:
            mode = _mode_as(old, spot, fd)
        there = os.fstat(fd)
        # A file system without modes shows other bits than PRIVATE, and may refuse to set any.
        self._mode = mode if not stat.S_IMODE(there.st_mode) & ~PRIVATE else None
        # 3. Remove the files of killed saves.
        with contextlib.suppress(OSError):  # if the directory cannot be listed, the files stay
            remove_stale(directory, spot.name, fd)

    def _make(self, spot: Spot, directory: int) -> int:
        """Open the temporary file or the part file, and return its descriptor."""
        if self._etag is None:
            fd, self._temporary = open_temporary(directory, spot.name)
        else:
            name = part_name(spot.name, self._etag)
            fd = open_part(directory, name, spot.name, folder=spot.folder, begin_anew=self._begin_anew)
            self._temporary = name
        self.file = OpenFile(fd)
        return fd

    @property
    def _beside(self) -> str:
        """The path of the file beside the target."""
        if self._spot is None or self._temporary is None:
            raise AssertionError("the target is not open")
        return os.path.join(self._spot.folder, self._temporary)

    def check_space(self, size: int) -> None:
        """Check that a file of ``size`` bytes has room on its file system.

        Raises:
            InsufficientSpaceError: There is not enough room.
            PartFileError: The part file is longer than that, so no save of this archive has left it.
        """
        if self.file is not None and self._temporary is not None:
            with self.file as fd:
                file, there = os.fstat(fd), os.fstatvfs(fd)
            if file.st_size > size:
                raise PartFileError(
                    self._beside, f"it is longer than the archive will be, {size} bytes; remove it"
                )
            available = there.f_bavail * there.f_frsize
            needed = size - file.st_blocks * 512  # st_blocks counts 512 bytes on every file system
            if there.f_blocks and needed > available:  # f_blocks is 0 if the file system does not know
                raise InsufficientSpaceError(self.path, needed, available)

    def space(self) -> Space | None:
        """Return the free space for the growing file; None if no file beside the target is open."""
        file = self.file
        if file is None or self._temporary is None:
            return None
        return Space(lambda: _look_at_space(file), self.path)

    def sync(self, size: int) -> None:
        """Check the file's size, and flush its bytes to the disk.

        Raises:
            OSError: The disk refused some. Do not call fsync again: it would report success.
            SinkError: The file's size differs from the number of bytes that were written.
        """
        if self._temporary is None or self.file is None:
            return
        if self.sync_failed:
            raise OSError(errno.EIO, "the disk has refused some of the bytes", self.path)
        with self.file as fd:
            actual = os.fstat(fd).st_size
        if actual != size:
            raise SinkError(f"{self.path} has {actual} bytes on disk, but {size} were written")
        if self._fsync:
            self._sync(os.fsync)

    def sync_portion(self) -> None:
        """Flush the bytes that were written so far to the disk; raises OSError as :meth:`sync` does."""
        if not self.sync_failed:
            self._sync(os.fdatasync)

    def _sync(self, call: Callable[[int], None]) -> None:
        if self.file is None:
            raise AssertionError("the target is not open")
        with self.file as fd:
            try:
                call(fd)
            except OSError:
                self.sync_failed = True
                raise

    def publish(self) -> None:
        """Rename the file to the target's name; ``published`` tells whether it was, even after an error."""
        if self._temporary is None:
            self.published = True
            return
        spot = self._spot
        if spot is None or self._directory is None or self.file is None:
            raise AssertionError("the target is not open")
        with self.file as fd, self._directory as directory:
            # 1. Set the mode, and rename the file; private again if that fails.
            self._check_still(fd, directory, self._temporary)
            self._set_mode(fd, self._mode)
            try:
                os.replace(self._temporary, spot.name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError as exc:
                with contextlib.suppress(OSError):
                    self._set_mode(fd, PRIVATE)
                raise OSError(
                    exc.errno, exc.strerror, spot.path
                ) from exc  # without the temporary file's name
            self.published = True
            self._temporary = None
            # 2. Make the new name durable. From here on an error no longer takes the file away.
            if self._fsync:
                os.fsync(directory)
            # 3. Remove part files that nobody needs any more.
            with contextlib.suppress(OSError):  # if the directory cannot be listed, the files stay
                remove_parts(directory, spot.name, fd)

    def _check_still(self, fd: int, directory: int, name: str) -> None:
        """Check that the name still leads to our file: no other file may get the target's name."""
        if is_still(fd, directory, name):
            return
        if self._etag is None:
            raise FileNotFoundError(
                errno.ENOENT, "somebody has removed or replaced it meanwhile; save once more", self._beside
            )
        raise PartFileError(self._beside, "somebody has removed or replaced it meanwhile; save once more")

    def _set_mode(self, fd: int, mode: int | None) -> None:
        # Called just before the rename: a process that is killed while the disk is slow leaves a private
        # file.
        if mode is not None and self._mode is not None:
            os.fchmod(fd, mode)

    def close(self) -> None:
        """Close all descriptors; remove the file unless it was published, or is a part file to keep."""
        file, self.file = self.file, None
        spot, self._spot = self._spot, None
        directory, self._directory = self._directory, None
        temporary, self._temporary = self._temporary, None
        with contextlib.ExitStack() as stack:
            if spot is not None:
                stack.callback(spot.close)
            if directory is not None:
                stack.callback(directory.close)
            if file is not None:
                stack.callback(file.close)  # unlocks the file, once no thread uses it any more
                if spot is not None and directory is not None and temporary is not None:
                    fd = stack.enter_context(file)
                    self._leave(fd, stack.enter_context(directory), temporary, spot.folder)

    def __del__(self) -> None:
        """Close if an interrupt kept the owner from it: a signal handler may raise between any two lines."""
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: __init__ was interrupted
            self.close()

    def _leave(self, fd: int, directory: int, name: str, folder: str) -> None:
        """Remove the file beside the target, unless it is a part file that another save can resume."""
        if not is_still(fd, directory, name):
            return  # somebody has removed our file, and another save may have made a new one
        # After a failed sync the file is useless: bytes may be missing that pages in memory still show.
        if self._etag is not None and not self.sync_failed and os.fstat(fd).st_size > 0:
            self.left = os.path.join(folder, name)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _look_at_space(file: OpenFile) -> os.statvfs_result:
    with file as fd:
        return os.fstatvfs(fd)


def _check_replaceable(spot: Spot, directory: os.stat_result) -> None:
    """Check that a sticky directory lets us replace the old file; the rename would fail, but only at the end.

    Raises:
        PermissionError: The old file may not be replaced.
    """
    users = {0, directory.st_uid, spot.there.st_uid if spot.there is not None else os.geteuid()}
    if directory.st_mode & stat.S_ISVTX and os.geteuid() not in users:
        raise PermissionError(
            errno.EPERM,
            "it is another user's, and only he can replace it in this directory; write to another name or place",
            spot.path,
        )


def _old_to_follow(spot: Spot) -> os.stat_result | None:
    """Return the old file, whose mode the new one follows; None if another user may have chosen that mode.

    Another user may have chosen it if the file is that user's, or if it has a second name and others may
    write to its directory.
    """
    old = spot.there
    if old is None or old.st_uid != os.geteuid() or (old.st_nlink > 1 and spot.is_shared):
        return None
    return old


def _mode_as(old: os.stat_result, spot: Spot, fd: int) -> int:
    """Return the old file's mode, reduced so that nobody gets more access to the new file than to the old.

    If the new file has another group, no group permission is kept. Others then get no permission that the old
    group lacked, since its members are among the others now. Access control lists are not copied. If the
    lists of the two files differ, only the owner's permissions are kept.
    """
    mode = stat.S_IMODE(old.st_mode) & _MODES
    if named_by_acl(spot.directory, spot.name) != named_by_acl(fd):
        return mode & stat.S_IRWXU
    if old.st_gid != os.fstat(fd).st_gid:
        forbidden = ~mode >> 3 & stat.S_IRWXO
        return mode & ~(stat.S_IRWXG | forbidden)
    return mode


async def open_stream(target: Target) -> OpenFile:
    """Return the target's file; open a FIFO once somebody reads it.

    Cancel: comes during the wait for a reader; nothing is open.
    """
    while target.file is None:
        try:
            target.file = OpenFile(target.open_fifo())
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            await asyncio.sleep(_FIFO_POLL)
    return target.file


class opened:  # noqa: N801 - read as what the target is
    """Open a target for a block, and always close it. A note on an exception names the part file left there.

    Cancel: raised when the target is closed.
    """

    # A class, since up to Python 3.12 a waiting async generator does not learn that its coroutine is closed.

    def __init__(self, target: Target) -> None:
        self._target = target
        self._worker = Worker("aiodockersave-file")

    async def __aenter__(self) -> Target:
        running_task()
        try:
            await self._worker.run(self._target.open)
        except BaseException as exc:
            await self._close_for(exc)
            raise
        return self._target

    async def __aexit__(self, _: object, fault: BaseException | None, __: object) -> None:
        await self._close_for(fault)

    async def _close_for(self, fault: BaseException | None) -> None:
        if isinstance(fault, GeneratorExit):  # the coroutine is being closed: nothing can be awaited any more
            self._worker.leave(self._target.close)  # runs at once, or after an `open` that still runs
            return
        try:
            closed = self._worker.submit_always(self._target.close)
        except RuntimeError:  # no loop runs any more, and another exception has replaced the GeneratorExit
            self._worker.leave(self._target.close)
            return
        try:
            await wait_out(closed)
        except OSError as error:
            if fault is None:
                raise
            fault.add_note(f"while cleaning up: {error}")
        except asyncio.CancelledError as again:
            self._note_what_is_left(again)
            raise
        self._note_what_is_left(fault)

    def _note_what_is_left(self, fault: BaseException | None) -> None:
        left = self._target.left
        if left is not None and fault is not None and not isinstance(fault, PartFileError):
            fault.add_note(
                f"the part that was received is kept in {left}; the same save with resume=True resumes there"
            )
