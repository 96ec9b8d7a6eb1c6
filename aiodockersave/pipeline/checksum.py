"""The SHA-256 of a whole archive in a file: one more pass over its bytes, for callers who ask for it."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

from aiodockersave.core.errors import SinkError
from aiodockersave.core.model import Digest

if TYPE_CHECKING:
    from aiodockersave._aio import Worker
    from aiodockersave.blobs.open_file import OpenFile

__all__ = ["sha256_of"]

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
