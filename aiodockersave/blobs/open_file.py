"""A descriptor that threads work on: closed behind the last of them.

The idea to know first: the number of a descriptor that was closed is soon another file's. A thread that is at work when its
file is closed would write into that one. So each use is counted, and the number stays taken until the last has ended::

    with file as fd:
        os.pwrite(fd, data, offset)
"""

from __future__ import annotations

import errno
import os

__all__ = ["OpenFile"]


class OpenFile:
    """An open descriptor.

    There is no lock: an interrupt between two lines could leave it locked, and the garbage collector may close this
    wherever it comes in. Items of lists are put and taken at once, and the order is what counts: who uses the file says so
    before he looks whether it is closed, and who closes it says so before he looks whether it is used.

    Args:
        fd: The descriptor, which is this object's own from here on.
    """

    def __init__(self, fd: int) -> None:
        self._fds = [fd]  # whoever takes it closes it
        self._fd = fd
        self._uses: list[None] = []
        self._is_closed = False

    @property
    def fd(self) -> int:
        """The descriptor, for the thread of the file's owner: there it cannot be closed meanwhile.

        A signal handler raises in the main thread, and may do so while a block is entered or left. Such a use would never
        end; so what is not in a thread of its own asks here.
        """
        return self._fd

    def __enter__(self) -> int:
        """Return the descriptor, which stays open until the block is left.

        Raises:
            OSError: It is closed.
        """
        self._uses.append(None)
        if self._is_closed:
            self.__exit__()
            raise OSError(errno.EBADF, "the file was closed meanwhile")
        return self._fd

    def __exit__(self, *_: object) -> None:
        self._uses.pop()
        if self._is_closed and not self._uses:
            self._close()

    def close(self) -> None:
        """Close it, when nobody uses it any more; a second call does nothing.

        Raises:
            OSError: The system has found a fault while it was closed.
        """
        self._is_closed = True
        if not self._uses:
            self._close()

    def _close(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:  # another thread was first
            return
        os.close(fd)
