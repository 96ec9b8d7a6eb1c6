"""Keep a file descriptor open until the last thread that uses it is done.

The idea to know first: the system soon gives the number of a closed descriptor to another file. A thread that
still works on the closed file would write into that other file. So each use is counted, and the descriptor
stays open until the last use has ended::

    with file as fd:
        os.pwrite(fd, data, offset)
"""

from __future__ import annotations

import errno
import os

__all__ = ["OpenFile"]


class OpenFile:
    """An open file descriptor, with a count of its uses.

    There is no lock: an interrupt between two lines could leave a lock locked, and the garbage collector may
    close this object at any point. Appending to a list and popping from it are atomic, and their order makes
    this safe: a user adds its use before it checks for closed, and ``close`` sets closed before it checks for
    uses.

    Args:
        fd: The descriptor, which this object owns from now on.
    """

    def __init__(self, fd: int) -> None:
        self._fds = [fd]  # the thread that pops it closes it
        self._fd = fd
        self._uses: list[None] = []
        self._is_closed = False

    @property
    def fd(self) -> int:
        """The descriptor, for the thread of the file's owner, where nobody can close it during the use.

        A signal handler raises in the main thread, perhaps while a ``with`` block is entered or left. Such a
        use would never end, so code outside a thread of its own uses this property instead.
        """
        return self._fd

    def __enter__(self) -> int:
        """Return the descriptor, which stays open until the block is left.

        Raises:
            OSError: The file is closed.
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
        """Close the descriptor as soon as it has no use; a second call does nothing.

        Raises:
            OSError: The system reported an error on closing.
        """
        self._is_closed = True
        if not self._uses:
            self._close()

    def _close(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:  # another thread closed it first
            return
        os.close(fd)
