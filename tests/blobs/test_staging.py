"""Stages: received as a whole before their turn, in memory that all of them share, then in a file."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import ArchiveWriter, ContentError, InvalidInputError
from aiodockersave.blobs.content import MAX_BATCH_SIZE
from aiodockersave.blobs.staging import Memory, Stage
from tests.sinks.test_adapters import ROOT, on_small_disk
from tests.support.images import ListSink, archive_of, make_image, make_layer

TIME_LIMIT = 60.0  # seconds; nothing here takes one, but on a machine that stalls
RANDOM = random.Random(3)
BATCHES = [RANDOM.randbytes(size) for size in (1, 300_000, 7, MAX_BATCH_SIZE, 512)]
LARGE = make_layer(RANDOM.randbytes(2_000_000), None)


def stage_files() -> list[str]:
    """Return the unnamed temporary files that are open."""
    return open_below(tempfile.gettempdir())


def open_below(folder: str) -> list[str]:
    targets = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return [target for target in targets if target.startswith(folder)]


async def read_all(stage: Stage) -> bytes:
    data = b""
    while True:
        batch = await stage.next()
        assert len(batch) <= MAX_BATCH_SIZE
        data += batch
        if stage.done:
            return data


@pytest.mark.parametrize("memory", [1 << 30, 300_001, 300_000, 1, 0], ids=str)
@pytest.mark.parametrize("batches", [BATCHES, BATCHES[:1], [b""]], ids=["several", "one", "empty"])
async def test_what_goes_in_comes_out(memory: int, batches: list[bytes]) -> None:
    shared = Memory(memory)
    stage = Stage(shared, None)
    for batch in batches:
        await stage.append(batch)
        assert shared._free >= 0
    assert stage.size == sum(map(len, batches))
    assert bool(stage_files()) == (stage.size > memory)
    assert await read_all(stage) == b"".join(batches)
    await stage.close()
    assert shared.take(memory)
    assert not stage_files()


async def test_a_closed_stage_gives_back_what_was_not_read() -> None:
    shared = Memory(1000)
    stage = Stage(shared, None)
    await stage.append(bytes(400))
    await stage.append(bytes(500))
    assert not shared.take(101)
    assert await stage.next() == bytes(400)
    assert shared.take(500)
    shared.give_back(500)
    await stage.close()
    assert shared.take(1000)


async def test_two_stages_share_the_memory() -> None:
    shared = Memory(1000)
    one, other = Stage(shared, None), Stage(shared, None)
    await one.append(b"1" * 600)
    await other.append(b"2" * 300)
    assert not stage_files()
    await other.append(b"3" * 300)  # moves out as a whole
    assert len(stage_files()) == 1
    await one.append(b"4" * 400)
    assert len(stage_files()) == 1
    assert await read_all(one) == b"1" * 600 + b"4" * 400
    assert await read_all(other) == b"2" * 300 + b"3" * 300
    for stage in (one, other):
        await stage.close()
    assert shared.take(1000)


async def test_the_file_has_no_name_and_is_where_it_was_asked_for(tmp_path: Path) -> None:
    stage = Stage(Memory(0), tmp_path)
    await stage.append(b"data")
    assert not list(tmp_path.iterdir())
    assert len(open_below(str(tmp_path))) == 1
    await stage.close()


async def test_a_cancelled_write_is_waited_for() -> None:
    stage = Stage(Memory(0), None)
    begun, may_end = threading.Event(), threading.Event()
    spill = stage._spill

    def slow(batch: bytes | memoryview) -> None:
        begun.set()
        assert may_end.wait(TIME_LIMIT)
        spill(batch)

    stage._spill = slow  # type: ignore[method-assign]
    appending = asyncio.create_task(stage.append(b"data"))
    await asyncio.to_thread(begun.wait, TIME_LIMIT)
    appending.cancel()
    await asyncio.sleep(0)
    assert not appending.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert stage_files()
    await stage.close()
    assert not stage_files()


# ── through the writer ──


def unknown(number: int) -> Any:
    layer = make_layer(RANDOM.randbytes(1_000_000 + number), None)
    return layer, replace(layer.descriptor, size=None)


async def test_two_staged_layers_keep_to_the_bound() -> None:
    """``stage_memory`` is for all of a writer's stages together."""
    all_read = asyncio.Event()
    may_end = asyncio.Event()
    reading = 0
    held: list[int] = []

    async def content(data: bytes) -> AsyncIterator[bytes]:
        nonlocal reading
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]
            held.append(limit - archive._memory._free)
        reading += 1
        if reading == 2:
            all_read.set()
        await may_end.wait()

    limit = 600_000
    archive = ArchiveWriter(ListSink(), stage_memory=limit)
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            layer, descriptor = unknown(number)
            tasks.create_task(archive.put_layer(content(layer.blob), descriptor))
        await asyncio.wait_for(all_read.wait(), TIME_LIMIT)
        assert stage_files()
        may_end.set()
    assert 0 < max(held) <= limit
    assert archive._memory._free == limit
    assert not stage_files()


@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["in a file", "in memory"])
@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_staged_layer_is_the_same_layer(memory: int, layers: Any) -> None:
    layer = make_layer(LARGE.blob, "gzip")
    image = make_image(layer)
    for given in (layer.descriptor, replace(layer.descriptor, size=None), None):
        sink = ListSink()
        async with ArchiveWriter(sink, layers=layers, stage_memory=memory) as archive:
            stored = await archive.put_layer(layer.blob, given, diff_id=layer.diff_id, stage=True)
            assert stored == (layer.plain_descriptor if layers == "decompress" else layer.descriptor)
            await archive.put_image(image.config, image.manifest)
        assert sink.getvalue() == await archive_of([image], layers=layers)


@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["in a file", "in memory"])
async def test_a_fault_of_a_staged_layer_leaves_nothing(memory: int) -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink, stage_memory=memory)
    with pytest.raises(ContentError):
        await archive.put_layer(LARGE.blob[:-1], LARGE.descriptor, stage=True)
    assert not sink.writes
    assert not stage_files()
    assert archive._memory._free == memory
    await archive.put_layer(LARGE.blob, LARGE.descriptor, stage=True)
    await archive.close()


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink, stage_memory=0, stage_dir=tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        await archive.put_layer(LARGE.blob)
    assert not sink.writes
    (tmp_path / "missing").mkdir()
    await archive.put_layer(LARGE.blob)
    await archive.close()


FULL_STAGE = """
import asyncio, os, sys
from aiodockersave import ArchiveWriter

async def main(folder):
    written = []
    async def write(data):
        written.append(data)
    async with ArchiveWriter(write, stage_memory=1000, stage_dir=folder) as archive:
        try:
            await archive.put_layer(bytes(300_000))
        except OSError as exc:
            print(type(exc).__name__, len(written), os.listdir(folder), archive._memory._free)
        await archive.put_layer(bytes(20_000))
    print(os.statvfs(folder).f_bfree * os.statvfs(folder).f_bsize)

asyncio.run(main(sys.argv[1]))
"""


def test_a_folder_that_is_full(tmp_path: Path) -> None:
    command = [*on_small_disk(tmp_path), sys.executable, "-c", FULL_STAGE, str(tmp_path)]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=60, check=True, text=True).stdout
    assert out.splitlines() == ["InsufficientSpaceError 0 [] 1000", "65536"]


@pytest.mark.parametrize("size", [-1, True, "8M", 1.5])
def test_sizes_that_are_none(size: Any) -> None:
    error = InvalidInputError if isinstance(size, int) and size < 0 else TypeError
    with pytest.raises(error, match=f"stage_memory={size!r}: use a number of bytes"):
        ArchiveWriter(ListSink(), stage_memory=size)
    with pytest.raises(error, match=f"max_plain_size={size!r}: use a number of bytes"):
        ArchiveWriter(ListSink(), max_plain_size=size)
