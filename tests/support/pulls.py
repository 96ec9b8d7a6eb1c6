"""Streams that are pulled, interrupted wherever they can be: while they are read, and while they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from anyio import ClosedResourceError

from aiodockersave.archive.stream import ByteStream
from tests.support.interruption import Driver, TasksDriver, TickWorker, Way, by_task_group, outcome_of

from .blobs import FakeSource

MakePull = Callable[[], "Pull"]


class Pull:
    """Reads a stream to its end, and looks whether anything is left when it was closed.

    Attributes:
        source: Where its blobs come from.
        stream: The stream.
        found: What was read.
    """

    def __init__(self, source: FakeSource, stream: ByteStream) -> None:
        self.source = source
        self.stream = stream
        self.found = b""

    async def read(self) -> None:
        async for chunk in self.stream:
            self.found += chunk

    async def run(self) -> None:
        others = asyncio.all_tasks()
        try:
            async with self.stream:
                await self.read()
        finally:
            self.check(others)

    def check(self, others: set[asyncio.Task[object]]) -> None:
        assert asyncio.all_tasks() <= others
        assert self.source.open_now == 0
        assert TickWorker.unfinished == 0, "a thread still works for it"


async def suspensions_of(make: MakePull, driver: type[Driver] = Driver) -> int:
    counting = driver()
    await counting.drive(make().run())
    return counting.suspensions


async def interrupt_everywhere(
    make: MakePull, way: Way, whole: bytes, *, twice: bool, least: int, most_after: int
) -> None:
    """Interrupt at every suspension of the reader's task, then at those of all tasks."""
    kinds = [Driver, TasksDriver]
    if twice and way is by_task_group:
        kinds.remove(TasksDriver)  # the second cancel may come before the group's own, which is late
    for kind in kinds:
        suspensions = await suspensions_of(make, kind)
        assert suspensions > least
        for at in range(1, suspensions + 1):
            pull, driver = make(), kind(at, twice=twice)
            await asyncio.create_task(way(driver, pull.run))
            assert driver.thrown or at >= suspensions - 1
            assert driver.suspensions_after < most_after
            assert whole.startswith(pull.found)


async def cancel_a_read_everywhere(make: MakePull, way: Way, whole: bytes) -> None:
    """Cancel one read at each suspension: the next ones lose nothing."""
    for at in range(1, await suspensions_of(make) + 1):
        pull = make()
        await asyncio.create_task(way(Driver(at), pull.read))
        await pull.run()
        assert pull.found == whole


async def close_elsewhere_everywhere(make: MakePull, whole: bytes) -> None:
    """Close from another task at each suspension."""
    for at in range(1, await suspensions_of(make) + 1):
        pull, driver = make(), Driver(at)
        others = asyncio.all_tasks()
        closing: list[asyncio.Task[None]] = []
        driver.fire = partial(_close_elsewhere, pull.stream, closing)
        outcome = await outcome_of(driver.drive(pull.read()))
        await closing[0]
        pull.check(others)
        assert isinstance(outcome, ClosedResourceError) or pull.found == whole
        assert whole.startswith(pull.found)


def _close_elsewhere(stream: ByteStream, closing: list[asyncio.Task[None]]) -> None:
    closing.append(asyncio.create_task(stream.aclose()))


async def interrupt_closing_everywhere(make: MakePull, way: Way, taken: int) -> None:
    """Interrupt ``aclose()`` at each suspension, when ``taken`` chunks were read."""
    counting = Driver()
    await _close(make(), way, taken, counting)
    assert counting.suspensions > 0
    for at in range(1, counting.suspensions + 1):
        await _close(make(), way, taken, Driver(at))


async def _close(pull: Pull, way: Way, taken: int, driver: Driver) -> None:
    for _ in range(taken):
        await anext(pull.stream)
    others = asyncio.all_tasks()
    await asyncio.create_task(way(driver, pull.stream.aclose))
    pull.check(others)
