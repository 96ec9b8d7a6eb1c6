"""Servers make what they keep for the life of a process before tasks, threads and descriptors are counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .servers import App, granian_server


@pytest.fixture(scope="session")
def granian_is_warm() -> None:
    """Start granian once: its runtime keeps a pair of sockets for signals."""

    async def start() -> None:
        async with granian_server(App(_nothing, _nothing)):
            pass

    asyncio.run(start())


async def _nothing(*_: object) -> Any:
    raise NotImplementedError
