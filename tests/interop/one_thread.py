"""Run the command with all file work in one thread and a temporary file of a known name.

strace counts calls per thread, and names the files it watches: with both fixed, "the third write" is one call of the run,
and the same one every time. ``python one_thread.py ARGUMENTS…`` is ``aiodockersave ARGUMENTS…``.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from queue import SimpleQueue
from typing import Any

from aiodockersave import _aio
from aiodockersave.__main__ import main

TOKEN = "deadbeef"


def use_one_thread() -> None:
    """Give all workers the same thread, which never ends."""
    calls: SimpleQueue[Any] = SimpleQueue()
    thread = threading.Thread(target=_aio._serve, args=(calls, None), daemon=True)
    thread.start()
    setattr(_aio.Worker, "held", lambda _: contextlib.nullcontext())  # noqa: B010 - a method of another type
    begin = _aio.Worker.__init__

    def begin_shared(worker: _aio.Worker, name: str) -> None:
        begin(worker, name)
        worker._calls, worker._thread = calls, thread

    setattr(_aio.Worker, "__init__", begin_shared)  # noqa: B010


if __name__ == "__main__":
    secrets.token_hex = lambda nbytes=None: TOKEN
    use_one_thread()
    main()
