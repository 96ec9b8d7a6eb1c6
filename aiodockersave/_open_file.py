"""A descriptor that threads work on: closed behind the last of them.

The idea to know first: the number of a descriptor that was closed is soon another file's. A thread that is at work when its
file is closed would write into that one. So each use is counted, and the number stays taken until the last has ended::

    with file as fd:
        os.pwrite(fd, data, offset)
"""

from __future__ import annotations

import errno
import os
import threading

__all__ = ["OpenFile"]


class OpenFile:
    """An open descriptor.

    Args:
        fd: The descriptor, which is this object's own from here on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._uses = 0
        self._is_closed = False
        # Reentrant: it may be closed by the garbage collector, wherever that comes in.
        self._lock = threading.RLock()

    def __enter__(self) -> int:
        """Return the descriptor, which stays open until the block is left.

        Raises:
            OSError: It is closed.
        """
        with self._lock:
            if self._is_closed:
                raise OSError(errno.EBADF, "the file was closed meanwhile")
            self._uses += 1
        return self._fd

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._uses -= 1
            self._close_unused()

    def close(self) -> None:
        """Close it, when nobody uses it any more; a second call does nothing.

        Raises:
            OSError: The system has found a fault while it was closed.
        """
        with self._lock:
            self._is_closed = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._is_closed and not self._uses and self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
