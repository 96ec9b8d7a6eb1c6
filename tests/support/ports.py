"""Ports for servers that are told theirs, and take it only once they run."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Return a port that nobody has, and that the system gives to nobody else until a slow server takes it."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):  # below those that it gives away
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("there is no free port")
