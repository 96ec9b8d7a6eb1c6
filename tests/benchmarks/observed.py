"""Run the command, and tell in a file that others map what only its process knows.

    python -m tests.benchmarks.observed FILE save IMAGE -o ARCHIVE …

Bytes are counted as the process takes them out of its sockets: what a kill leaves in the system's buffers was never had.
Nothing is imported that the command does not import, so that its memory is its own.
"""

from __future__ import annotations

import mmap
import socket
import struct
import sys
from typing import Any

FACTS = struct.Struct("=QQ")
"""The reported numbers: bytes received, and VmHWM in bytes once the command has ended."""


def count_received(facts: mmap.mmap) -> None:
    """Add up in `facts` what is read from sockets, by asyncio's transports too."""
    recv, recv_into = socket.socket.recv, socket.socket.recv_into
    received = 0

    def note(size: int) -> None:
        nonlocal received
        received += size
        FACTS.pack_into(facts, 0, received, 0)

    def counted_recv(self: socket.socket, *args: Any) -> bytes:
        data = recv(self, *args)
        note(len(data))
        return data

    def counted_recv_into(self: socket.socket, *args: Any) -> int:
        size = recv_into(self, *args)
        note(size)
        return size

    socket.socket.recv, socket.socket.recv_into = counted_recv, counted_recv_into  # type: ignore[method-assign, assignment]


def peak() -> int:
    """Return this process's VmHWM in bytes."""
    with open("/proc/self/status") as status:  # noqa: PTH123 - pathlib is not imported for this
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) << 10


def main() -> None:
    with open(sys.argv[1], "r+b") as file:  # noqa: PTH123
        facts = mmap.mmap(file.fileno(), FACTS.size)
    count_received(facts)
    from aiodockersave.__main__ import main as run

    sys.argv[:] = ["aiodockersave", *sys.argv[2:]]
    try:
        run()
    finally:
        FACTS.pack_into(facts, 0, FACTS.unpack(facts)[0], peak())


if __name__ == "__main__":
    main()
