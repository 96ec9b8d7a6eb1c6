"""Portions on their way to the disk: one at a time, and what the disk refuses is not forgotten."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiodockersave.pipeline import saving
from aiodockersave.pipeline.saving import Syncer
from aiodockersave.sinks.atomic_file import Target
from tests.support.interruption import outcome_of

LIMIT = 60.0  # seconds for anything that is waited for
PORTION = 1000


@pytest.fixture(autouse=True)
def _small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_PORTION", PORTION)


class Disk:
    """Counts what is sent to the disk, waits where it is told to, and refuses what it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.synced = 0
        self.refuses = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        patch.setattr(os, "fdatasync", self._sync)

    def _sync(self, fd: int) -> None:
        assert self.may_go_on.wait(LIMIT)
        self.synced += 1
        if self.refuses:
            raise OSError(errno.EIO, "refused")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path / "a.tar", fsync=True)
    target.open()
    yield target
    target.close()


async def test_each_portion_is_synced(target: Target, disk: Disk) -> None:
    async with Syncer(target, is_wanted=True) as syncer:
        for expected, size in [(0, PORTION - 1), (1, 1), (1, PORTION - 1), (2, 5 * PORTION)]:
            syncer.written(size)
            await syncer.wait()
            assert disk.synced == expected
    assert disk.synced == 2


async def test_one_portion_is_synced_at_a_time(target: Target, disk: Disk) -> None:
    disk.may_go_on.clear()
    async with Syncer(target, is_wanted=True) as syncer:
        for _ in range(10):
            syncer.written(PORTION)
            await asyncio.sleep(0)
        disk.may_go_on.set()
    assert disk.synced == 1


@pytest.mark.parametrize("reason", ["not wanted", "not possible"])
async def test_nothing_is_synced_where_it_is_not_wanted_or_not_possible(
    reason: str, target: Target, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "not possible":
        monkeypatch.delattr(os, "fdatasync")
    async with Syncer(target, is_wanted=reason != "not wanted") as syncer:
        syncer.written(10 * PORTION)
    assert disk.synced == 0


async def test_a_refused_sync_is_raised_at_the_next_portion(target: Target, disk: Disk) -> None:
    disk.refuses = True
    with pytest.raises(OSError, match="refused") as caught:
        async with Syncer(target, is_wanted=True) as syncer:
            syncer.written(PORTION)
            assert str(await outcome_of(syncer.wait())) == "[Errno 5] refused"
            assert target.sync_failed
            syncer.written(PORTION - 1)
            syncer.written(1)
            raise AssertionError
    assert disk.synced == 1
    assert not hasattr(caught.value, "__notes__")


async def test_a_refused_sync_is_raised_at_the_end(target: Target, disk: Disk) -> None:
    disk.refuses = True
    with pytest.raises(OSError, match="refused"):
        async with Syncer(target, is_wanted=True) as syncer:
            syncer.written(PORTION)
    assert target.sync_failed


async def test_a_refused_sync_does_not_hide_another_fault(target: Target, disk: Disk) -> None:
    disk.refuses = True
    with pytest.raises(LookupError) as caught:
        async with Syncer(target, is_wanted=True) as syncer:
            syncer.written(PORTION)
            raise LookupError
    assert caught.value.__notes__ == ["while cleaning up: [Errno 5] refused"]


async def test_a_cancel_is_not_swallowed_and_waits(target: Target, disk: Disk) -> None:
    disk.refuses = True
    disk.may_go_on.clear()

    async def sync() -> None:
        async with Syncer(target, is_wanted=True) as syncer:
            syncer.written(PORTION)
            await asyncio.Event().wait()

    task = asyncio.ensure_future(outcome_of(sync()))
    await asyncio.sleep(0.01)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    disk.may_go_on.set()
    async with asyncio.timeout(LIMIT):
        error = await task
    assert isinstance(error, asyncio.CancelledError)
    assert disk.synced == 1


async def test_a_disk_that_refused_is_not_asked_again(target: Target, disk: Disk) -> None:
    disk.refuses = True
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(target.sync_portion)
    await asyncio.to_thread(target.sync_portion)
    disk.refuses = False  # it would say yes by now, though bytes are lost
    with pytest.raises(OSError, match="the disk has refused some of the bytes"):
        await asyncio.to_thread(target.sync, 0)
    assert disk.synced == 1
