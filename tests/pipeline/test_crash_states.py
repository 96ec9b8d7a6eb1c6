"""A part file after a crash of the machine is resumed, whichever blocks the disk had not written yet.

The writes of a save are recorded. A crash behind the n-th of them leaves what was synced before, and of every block of
4,096 bytes that was not: all, nothing, or some of its sectors of 512 bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import plan_archive, save
from aiodockersave.blobs import file_region
from aiodockersave.pipeline import saving
from aiodockersave.sinks.part_file import part_name
from tests.support.images import Image, archive_of, make_image, make_layer
from tests.support.stores import Store

LIMIT = 200.0  # seconds for all saves of one test
BLOCK = 4096
SECTOR = 512
SECTORS = BLOCK // SECTOR

Change = Callable[[bytearray], None]


@dataclass
class Recorder:
    """Keeps what is done to files, in order; syncs and renames as words."""

    done: list[Change | str] = field(default_factory=list)

    def record(self, patch: pytest.MonkeyPatch) -> None:
        pwrite, ftruncate, replace = os.pwrite, os.ftruncate, os.replace

        def write(fd: int, data: Any, offset: int) -> int:
            size = pwrite(fd, data, offset)
            self.done.append(_writing(bytes(data[:size]), offset))
            return size

        def truncate(fd: int, size: int) -> None:
            ftruncate(fd, size)
            self.done.append(lambda file: _resize(file, size))

        def rename(*args: Any, **kwargs: Any) -> None:
            if "dst_dir_fd" in kwargs:  # others do without
                self.done.append("rename")
            replace(*args, **kwargs)

        def syncing(name: str, call: Callable[[int], None]) -> Callable[[int], None]:
            def sync(fd: int) -> None:
                self.done.append(name)  # what is written meanwhile may not be on the disk
                call(fd)

            return sync

        patch.setattr(os, "pwrite", write)
        patch.setattr(os, "ftruncate", truncate)
        patch.setattr(os, "replace", rename)
        patch.setattr(os, "fsync", syncing("sync", os.fsync))
        patch.setattr(os, "fdatasync", syncing("sync", os.fdatasync))

    def files(self, *, before: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Return what is on the disk for sure, and what the file seems to be, after each step up to the rename."""
        file, synced = bytearray(before), before
        for step in self.done:
            if step == "rename":
                return
            if isinstance(step, str):
                synced = bytes(file)
            else:
                step(file)
            yield synced, bytes(file)


def _writing(data: bytes, offset: int) -> Change:
    def write(file: bytearray) -> None:
        _resize(file, max(len(file), offset))
        file[offset : offset + len(data)] = data

    return write


def _resize(file: bytearray, size: int) -> None:
    del file[size:]
    file += bytes(size - len(file))


def crashed(synced: bytes, file: bytes, sectors: Callable[[int], range]) -> bytes:
    """Return what is there after a crash, given which sectors of each unsynced block were written."""
    old = synced[: len(file)] + bytes(len(file) - len(synced))
    left = bytearray(old)
    for number, start in enumerate(unsynced(old, file)):
        for sector in sectors(number):
            at = start + sector * SECTOR
            left[at : at + SECTOR] = file[at : at + SECTOR]
    return bytes(left)


def unsynced(old: bytes, file: bytes) -> list[int]:
    return [at for at in range(0, len(file), BLOCK) if old[at : at + BLOCK] != file[at : at + BLOCK]]


# What of a block was written: nothing, everything, or some, from its beginning or up to its end.
BEGINNINGS = [range(count) for count in range(SECTORS + 1)]
FATES = [*BEGINNINGS, *(range(count, SECTORS) for count in range(1, SECTORS))]


class Desk:
    """A folder with a part file as a crash has left it."""

    def __init__(self, folder: Path, image: Image) -> None:
        self.target = folder / "a.tar"
        self.part = folder / part_name("a.tar", plan_archive([image.spec]).etag)
        self.store = Store({"image": image}, chunk_size=1000)

    async def save(self, *, fsync: bool = False, jobs: int = 1) -> None:
        await save(self.store.requests(), self.target, resume=True, fsync=fsync, jobs=jobs)

    async def go_on_from(self, state: bytes, whole: bytes, *, jobs: int = 1) -> None:
        self.target.unlink(missing_ok=True)
        self.part.write_bytes(state)
        await self.save(jobs=jobs)
        assert self.target.read_bytes() == whole
        assert not self.part.exists()


TINY = make_image(make_layer(random.Random(1).randbytes(5000), None), repo_tags=["a:1"])
LARGE = make_image(
    *(make_layer(random.Random(number).randbytes(40_000 + number), None) for number in range(3)),
    repo_tags=["a:1"],
)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_region, "BATCH_SIZE", 2000)


async def recorded(desk: Desk, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Recorder:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        recorder.record(patch)
        await desk.save(**options)
    return recorder


async def test_every_crash_of_a_tiny_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, whole = Desk(tmp_path, TINY), await archive_of([TINY])
    recorder = await recorded(desk, monkeypatch)
    states = {  # each once: a sector that was not written to is the same either way
        crashed(synced, file, fates.__getitem__)
        for synced, file in recorder.files()
        for fates in itertools.product(BEGINNINGS, repeat=len(unsynced(bytes(len(file)), file)))
    }
    assert len(states) > 500
    async with asyncio.timeout(LIMIT):
        for state in sorted(states):
            await desk.go_on_from(state, whole)


@pytest.mark.parametrize("jobs", [1, 3])
async def test_crashes_of_a_larger_save(jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some portions are on the disk for sure, the rest is not; and what goes on may crash as well."""
    monkeypatch.setattr(saving, "_PORTION", 30_000)
    desk, whole = Desk(tmp_path, LARGE), await archive_of([LARGE])
    recorder = await recorded(desk, monkeypatch, fsync=True, jobs=jobs)
    assert recorder.done.count("sync") > 1
    chance = random.Random(jobs)
    files = list(recorder.files())
    async with asyncio.timeout(LIMIT):
        for _ in range(60):
            state = crashed(*chance.choice(files), lambda _: chance.choice(FATES))
            desk.part.write_bytes(state)
            again = await recorded(desk, monkeypatch, jobs=jobs)
            assert desk.target.read_bytes() == whole
            second = list(again.files(before=state))
            if second:
                state = crashed(*chance.choice(second), lambda _: chance.choice(FATES))
                await desk.go_on_from(state, whole, jobs=jobs)


@pytest.mark.parametrize("fsync", [True, False])
async def test_what_is_renamed_is_on_the_disk(
    fsync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is not synced at all, which shows that this can fail."""
    desk = Desk(tmp_path, LARGE)
    recorder = await recorded(desk, monkeypatch, fsync=fsync)
    *_, (synced, file) = recorder.files()
    assert file == desk.target.read_bytes()
    assert (synced == file) == fsync
