"""A save to a file that was interrupted is resumed: at every kind of byte, after every kind of fault.

Bytes in the part file are either right, and not fetched again, or their digest tells that they are wrong. The matrix is
{fault} × {a byte inside each segment of the plan, and at its borders}: blobs are received at their offsets, and the known
bytes around them (headers, padding, metadata, the end) are written behind the last blob, whatever members they are of. In
each case the end is the same archive, byte for byte, and until then the target is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import random
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import (
    DigestMismatchError,
    InvalidInputError,
    PartFileError,
    PartFileLockedError,
    Report,
    plan_archive,
    save,
)
from aiodockersave.blobs import file_region
from aiodockersave.core.plan import Segment
from aiodockersave.pipeline import saving, to_file
from aiodockersave.pipeline.progress import Event, LayerRetried, LayerStarted
from aiodockersave.sinks.part_file import part_name
from tests.support.images import Image, ListSink, archive_of, make_image, make_layer, noise
from tests.support.interruption import outcome_of
from tests.support.stores import Store, StoreFailedError

LIMIT = 60.0  # seconds for anything that is waited for
OLD = b"the archive that was here before"
BATCH = 512
CHUNK = 300
LAST_ZEROS = 256


IMAGE = make_image(make_layer(noise(1, 3001), None), make_layer(noise(2, 2047)), repo_tags=["a:1"])
OTHER = make_image(IMAGE.layers[0], make_layer(noise(3, 1500)), repo_tags=["a:1"])
PLAN = plan_archive([IMAGE.spec])
BLOBS = [segment for segment in PLAN.segments if segment.descriptor is not None]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, pieces and calls for each blob."""
    monkeypatch.setattr(file_region, "BATCH_SIZE", BATCH)
    monkeypatch.setattr(file_region, "BEHIND", 3 * BATCH)
    monkeypatch.setattr(file_region, "_LEAST_BEHIND", 2 * BATCH)
    monkeypatch.setattr(file_region, "PIECE", 700)
    monkeypatch.setattr(file_region, "_LAST_ZEROS", LAST_ZEROS)
    monkeypatch.setattr(to_file, "_READ_BACK", 900)


# ── places ──


@dataclass(frozen=True)
class Spot:
    """One byte of the archive."""

    name: str
    at: int


def spots() -> Iterator[Spot]:
    """Return bytes of each segment of the plan: in the middle, and at its borders."""
    for number, segment in enumerate(PLAN.segments):
        name = f"segment {number}, {'known bytes' if segment.descriptor is None else 'a blob'}"
        points = {"first": 0, "second": 1, "middle": segment.size // 2, "last": segment.size - 1}
        yield from (Spot(f"{name}, {point}", segment.offset + at) for point, at in points.items())


SPOTS = list(spots())
MIDDLES = [spot for spot in SPOTS if spot.name.endswith("middle")]
each_spot = pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.name)
each_middle = pytest.mark.parametrize("spot", MIDDLES, ids=lambda spot: spot.name)


def jobs_of(spot: Spot) -> int:
    return 1 + spot.at % 2


# ── the desk: a target with an old archive, and the part file beside it ──


class Desk:
    """A folder where a save is interrupted and resumed."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "a.tar"
        self.target.write_bytes(OLD)
        self.store = Store({"image": IMAGE}, chunk_size=CHUNK)
        self.events: list[Event] = []

    @property
    def part(self) -> Path:
        return self.part_of(IMAGE)

    def part_of(self, image: Image) -> Path:
        return self.target.with_name(part_name("a.tar", plan_archive([image.spec]).etag))

    async def save(self, *, jobs: int = 1, fsync: bool = False, **options: Any) -> Report:
        async with asyncio.timeout(LIMIT):
            return await save(
                self.store.requests(),
                self.target,
                resume=True,
                jobs=jobs,
                fsync=fsync,
                progress=self.events.append,
                **options,
            )

    async def save_again(self, image: Image = IMAGE, **options: Any) -> int:
        """Go on to the end, and check it; return how many bytes were fetched."""
        before = self.store.given.total()
        await self.save(**options)
        assert self.target.read_bytes() == await archive_of([image])
        assert [path.name for path in self.target.parent.iterdir()] == ["a.tar"]
        assert self.store.open_now == 0
        return self.store.given.total() - before

    def assert_kept(self, error: BaseException | None = None) -> None:
        """The part file is there, the target is untouched, nothing is open, and a note of the error names the part file."""
        assert self.target.read_bytes() == OLD
        assert {path.name for path in self.target.parent.iterdir()} == {"a.tar", self.part.name}
        assert self.store.open_now == 0
        if error is not None:
            assert any(f"kept in {self.part};" in note for note in getattr(error, "__notes__", ()))

    def to_fetch(self) -> int:
        """Return how many bytes have to be fetched, by what is in the part file."""
        return sum(_to_fetch(blob, self.part.read_bytes()) for blob in BLOBS)


def _to_fetch(blob: Segment, file: bytes) -> int:
    assert blob.descriptor is not None
    right = next(layer.blob for layer in IMAGE.layers if layer.descriptor == blob.descriptor)
    there = file[blob.offset :][: blob.size].rstrip(b"\0")  # zeros at the end count as missing
    missing = blob.size - len(there)
    if missing <= LAST_ZEROS and right == there + bytes(missing):
        return 0
    if right.startswith(there):
        return missing
    return missing % blob.size + blob.size  # what seems to be missing first, then all


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield Desk(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()


class Disk:
    """Does something just before one byte of the file is written; what comes before it is there by then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, do: Callable[[], object]) -> None:
        self.is_reached = False
        self._write = os.pwrite
        self._at = at
        self._do = do
        monkeypatch.setattr(os, "pwrite", self._pwrite)

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        before = self._at - offset
        if self.is_reached or not 0 <= before < len(data):
            return self._write(fd, data, offset)
        if before:
            return self._write(fd, memoryview(data)[:before], offset)
        self.is_reached = True
        self._do()
        return self._write(fd, data, offset)


def most_fetched(jobs: int) -> int:
    """Bytes that one interruption may cost: what the thread may have, and a batch that is gathered, a chunk too large."""
    behind = max(2, 3 // jobs) * BATCH
    return jobs * (behind + BATCH + CHUNK)


# ── the matrix: what must give the right archive ──


@each_spot
async def test_a_killed_save_is_resumed(desk: Desk, monkeypatch: pytest.MonkeyPatch, spot: Spot) -> None:
    """The file as it is at the moment of a SIGKILL: a copy that is made in the middle of a write."""
    copy = desk.target.with_name("copy")
    with monkeypatch.context() as patch:
        disk = Disk(patch, spot.at, lambda: shutil.copyfile(desk.part, copy))
        await desk.save(jobs=jobs_of(spot))
    assert disk.is_reached
    copy.rename(desk.part)
    desk.target.write_bytes(OLD)
    to_fetch = desk.to_fetch()
    assert await desk.save_again(jobs=3 - jobs_of(spot)) == to_fetch


@each_spot
async def test_a_cancelled_save_is_resumed(desk: Desk, monkeypatch: pytest.MonkeyPatch, spot: Spot) -> None:
    loop = asyncio.get_running_loop()
    # Looked at inside the task: whoever awaits a cancelled task has a CancelledError of his own, without notes.
    saving = asyncio.ensure_future(outcome_of(desk.save(jobs=jobs_of(spot))))

    def cancel() -> None:
        is_cancelled = threading.Event()
        loop.call_soon_threadsafe(saving.cancel)
        loop.call_soon_threadsafe(is_cancelled.set)
        assert is_cancelled.wait(LIMIT)

    with monkeypatch.context() as patch:
        Disk(patch, spot.at, cancel)
        error = await saving
    assert isinstance(error, asyncio.CancelledError)
    desk.assert_kept(error)
    to_fetch = desk.to_fetch()
    assert await desk.save_again(jobs=jobs_of(spot)) == to_fetch
    assert desk.store.given.total() <= desk.store.size + most_fetched(jobs_of(spot))


@each_spot
async def test_a_part_file_that_was_cut_is_resumed(desk: Desk, spot: Spot) -> None:
    desk.part.write_bytes((await archive_of([IMAGE]))[: spot.at])
    to_fetch = desk.to_fetch()
    assert await desk.save_again(jobs=jobs_of(spot)) == to_fetch


@each_spot
async def test_a_part_file_with_a_wrong_byte_is_resumed(desk: Desk, spot: Spot) -> None:
    stop = PLAN.size if spot.at % 2 else BLOBS[1].offset + 1000
    state = bytearray((await archive_of([IMAGE]))[: max(stop, spot.at + 2)])
    state[spot.at] ^= 0x55
    desk.part.write_bytes(state)
    to_fetch = desk.to_fetch()
    assert await desk.save_again(jobs=jobs_of(spot)) == to_fetch


@each_spot
async def test_a_part_file_with_a_hole_is_resumed(desk: Desk, spot: Spot) -> None:
    """A disk that lies, or crashes, leaves zeros where bytes were written."""
    state = bytearray(await archive_of([IMAGE]))
    size = min(random.Random(spot.at).choice([1, 64, 512, 2000]), PLAN.size - spot.at)
    state[spot.at : spot.at + size] = bytes(size)
    desk.part.write_bytes(state)
    to_fetch = desk.to_fetch()
    assert await desk.save_again(jobs=jobs_of(spot)) == to_fetch


# ── the matrix: what is an error, and goes on after it ──


@each_spot
async def test_a_save_that_filled_the_disk_is_resumed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, spot: Spot
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        Disk(patch, spot.at, refuse)
        with pytest.raises(OSError) as caught:
            await desk.save(jobs=jobs_of(spot))
    assert caught.value.errno == errno.ENOSPC
    if desk.part.exists():
        desk.assert_kept(caught.value)
        to_fetch = desk.to_fetch()
    else:  # nothing was received
        assert spot.at == BLOBS[0].offset
        to_fetch = desk.store.size
    assert await desk.save_again(jobs=jobs_of(spot)) == to_fetch
    assert desk.store.given.total() <= desk.store.size + most_fetched(jobs_of(spot))


@contextlib.contextmanager
def limit_on_files(size: int) -> Iterator[None]:
    """No file of this process can be longer: a write up to there is short, the next fails (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@each_middle
async def test_a_save_that_reached_a_limit_on_files_is_resumed(desk: Desk, spot: Spot) -> None:
    """The kernel's own short writes and errors."""
    with limit_on_files(spot.at), pytest.raises(OSError) as caught:
        await desk.save(jobs=jobs_of(spot))
    assert caught.value.errno == errno.EFBIG
    assert not desk.part.exists() or desk.part.stat().st_size <= spot.at
    if desk.part.exists():
        desk.assert_kept(caught.value)
    await desk.save_again(jobs=jobs_of(spot))
    assert desk.store.given.total() <= desk.store.size + most_fetched(jobs_of(spot))


FAILING = [
    (number, at) for number, blob in enumerate(BLOBS) for at in (-1, 0, 1, BATCH, blob.size // 2, blob.size)
]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("number", "at"), FAILING)
async def test_a_save_whose_source_failed_is_resumed(desk: Desk, number: int, at: int, jobs: int) -> None:
    """It breaks off when it is opened (-1), behind a byte, or behind all of them."""
    descriptor = BLOBS[number].descriptor
    assert descriptor is not None
    desk.store.fails_at[descriptor.digest] = at
    with pytest.raises(StoreFailedError) as caught:
        await desk.save(jobs=jobs)
    desk.store.fails_at.clear()
    if desk.part.exists():
        desk.assert_kept(caught.value)
        assert await desk.save_again(jobs=jobs) <= desk.store.size
    else:
        assert not getattr(caught.value, "__notes__", ())
        assert await desk.save_again(jobs=jobs) == desk.store.size
    assert desk.store.given.total() <= desk.store.size + most_fetched(jobs)


@pytest.mark.parametrize(("state", "more"), [("whole", 1), ("zeros", 512), ("garbage", 1 << 20)])
async def test_a_part_file_longer_than_the_archive_is_refused(desk: Desk, state: str, more: int) -> None:
    """No save of this archive has left that: it is not written to, and removed by who knows what it is."""
    left = {
        "whole": await archive_of([IMAGE]) + noise(5, more),
        "zeros": bytes(PLAN.size + more),
        "garbage": noise(6, PLAN.size + more),
    }[state]
    desk.part.write_bytes(left)
    with pytest.raises(PartFileError, match=f"{desk.part}: it is longer than the archive") as caught:
        await desk.save()
    desk.assert_kept()
    assert not hasattr(caught.value, "__notes__")
    assert desk.part.read_bytes() == left
    assert desk.store.openings == []
    desk.part.unlink()
    await desk.save_again()


@each_middle
async def test_the_part_file_of_another_archive_is_not_used(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spot: Spot
) -> None:
    """It stays until the archive is in place: the save may be interrupted, too."""
    other = desk.part_of(OTHER)
    left = (await archive_of([OTHER]))[: spot.at]
    other.write_bytes(left)
    await interrupt(desk, monkeypatch, spot.at)
    assert (desk.target.read_bytes(), other.read_bytes()) == (OLD, left)
    assert f"{other} is of another archive: a tag has moved" in caplog.text
    to_fetch = desk.to_fetch()
    assert await desk.save_again(jobs=jobs_of(spot)) == to_fetch


async def interrupt(desk: Desk, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    def fail() -> None:
        raise StoreFailedError

    with monkeypatch.context() as patch:
        Disk(patch, at, fail)
        with pytest.raises(StoreFailedError):
            await desk.save()


@each_middle
async def test_a_tag_that_has_moved_does_not_mix_images(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, spot: Spot
) -> None:
    """Bytes of one image are never mixed with another's; and if the tag moves back, they are used."""
    await interrupt(desk, monkeypatch, spot.at)
    left = desk.part.read_bytes()
    there, desk.store = desk.store, Store({"image": OTHER}, chunk_size=CHUNK)
    desk.store.fails_at = dict.fromkeys(desk.store.blobs, -1)
    with pytest.raises(StoreFailedError):
        await desk.save()
    assert desk.target.read_bytes() == OLD
    assert desk.part.read_bytes() == left
    if spot.at % 2:
        desk.store = there
        to_fetch = desk.to_fetch()
        assert await desk.save_again() == to_fetch
    else:
        desk.store.fails_at = {}
        await desk.save_again(OTHER)


@each_middle
async def test_two_saves_at_once_do_not_share_a_part_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, spot: Spot
) -> None:
    """The second is told so, and the first is not disturbed."""
    loop = asyncio.get_running_loop()
    is_there, may_go_on = asyncio.Event(), threading.Event()

    def wait() -> None:
        loop.call_soon_threadsafe(is_there.set)
        assert may_go_on.wait(LIMIT)

    with monkeypatch.context() as patch:
        Disk(patch, spot.at, wait)
        first = asyncio.ensure_future(desk.save())
        try:
            await asyncio.wait_for(is_there.wait(), LIMIT)
            before = desk.part.read_bytes()
            with pytest.raises(PartFileLockedError, match=f"{desk.part}: another save is writing it"):
                await save(desk.store.requests(), desk.target, resume=True)
            assert desk.part.read_bytes() == before
            assert desk.target.read_bytes() == OLD
        finally:
            may_go_on.set()
            await first
    assert desk.target.read_bytes() == await archive_of([IMAGE])
    assert desk.store.given.total() == desk.store.size
    assert [path.name for path in desk.target.parent.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("target", ["path", "stream"])
async def test_decompressed_layers_cannot_be_resumed(desk: Desk, target: str) -> None:
    options: dict[str, Any] = {"layers": "decompress"} if target == "path" else {}
    place: Any = desk.target if target == "path" else ListSink()
    with pytest.raises(InvalidInputError, match="only a file can be resumed, and only with layers kept"):
        await save(desk.store.requests(), place, resume=True, **options)
    assert [path.name for path in desk.target.parent.iterdir()] == ["a.tar"]


# ── more than once ──


async def test_interrupted_again_and_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time somewhere else, and what was received once is not fetched again."""
    moments = sorted(random.Random(20).sample(range(BLOBS[1].offset, BLOBS[1].offset + BLOBS[1].size), 8))
    whole = await archive_of([IMAGE])
    for at in moments:
        await interrupt(desk, monkeypatch, at)
        desk.assert_kept()
        assert desk.part.read_bytes()[BLOBS[1].offset : at] == whole[BLOBS[1].offset : at]
    await desk.save_again()
    assert desk.store.given.total() <= desk.store.size + len(moments) * most_fetched(1)


async def test_an_image_without_layers_is_resumed(desk: Desk) -> None:
    image = make_image(repo_tags=["a:1"])
    desk.store = Store({"image": image})
    desk.part_of(image).write_bytes((await archive_of([image]))[:700])
    assert await desk.save_again(image, jobs=4) == 0


async def test_resumed_bytes_are_reported(desk: Desk) -> None:
    whole = await archive_of([IMAGE])
    desk.part.write_bytes(whole[: BLOBS[1].offset + 100])
    await desk.save_again()
    started = {event.layer: event.resumed for event in desk.events if isinstance(event, LayerStarted)}
    assert started == {IMAGE.layers[0].descriptor: 3001, IMAGE.layers[1].descriptor: 100}


async def test_a_complete_part_file_fetches_nothing(desk: Desk) -> None:
    """As after a kill just before the rename: nothing is fetched, nothing is even opened."""
    desk.part.write_bytes(await archive_of([IMAGE]))
    assert await desk.save_again(checksum=True, fsync=True) == 0
    assert desk.store.openings == []


async def test_a_wrong_blob_is_fetched_again_and_reported(desk: Desk) -> None:
    whole = bytearray((await archive_of([IMAGE]))[: BLOBS[0].offset + 1000])
    whole[BLOBS[0].offset + 10] ^= 1
    desk.part.write_bytes(whole)
    await desk.save_again()
    retried = [event for event in desk.events if isinstance(event, LayerRetried)]
    assert retried == [LayerRetried(IMAGE.layers[0].descriptor, 1)]


async def test_a_source_that_has_other_bytes(desk: Desk) -> None:
    """The part file is right, the source is not: that is said, and what is right stays."""
    whole = await archive_of([IMAGE])
    state = whole[: BLOBS[0].offset + 1000]
    desk.part.write_bytes(state)
    digest = IMAGE.layers[0].descriptor.digest
    desk.store.blobs[digest] = bytes(3001)
    with pytest.raises(DigestMismatchError) as caught:
        await desk.save()
    desk.assert_kept(caught.value)
    desk.store.blobs[digest] = IMAGE.layers[0].blob
    await desk.save_again()


@pytest.mark.parametrize("there", [0, 1, CHUNK, 1500, 3000])
async def test_a_source_that_cannot_start_inside(desk: Desk, there: int) -> None:
    """It is read from its first byte, and what is there already is passed over."""
    desk.store.starts_inside = False
    desk.part.write_bytes((await archive_of([IMAGE]))[: BLOBS[0].offset + there])
    assert await desk.save_again() == desk.store.size
    assert [start for _, start in desk.store.openings] == [0, 0]


@pytest.mark.parametrize("start", [0, 700])
async def test_a_source_that_gives_no_parts_and_no_whole(desk: Desk, start: int) -> None:
    class Refusing(Store):
        def open_blob(self, descriptor: Any, *, start: int = 0, stop: int | None = None) -> Any:
            raise NotImplementedError(f"nothing from {start}")

    desk.store = Refusing({"image": IMAGE})
    if start:
        desk.part.write_bytes((await archive_of([IMAGE]))[: BLOBS[0].offset + start])
    with pytest.raises(NotImplementedError, match="nothing from 0"):
        await desk.save()


# ── zeros ──


@pytest.mark.parametrize("zeros", [1, LAST_ZEROS, LAST_ZEROS + 1])
@pytest.mark.parametrize("there", ["nothing", "all but zeros", "some zeros", "all", "all and metadata"])
async def test_a_blob_that_ends_in_zeros(desk: Desk, zeros: int, there: str) -> None:
    """They cannot be told from what was never written: a few are taken for its own, more are fetched again."""
    image = make_image(make_layer(noise(9, 1000) + b"\1" + bytes(zeros), None), repo_tags=["a:1"])
    desk.store = Store({"image": image}, chunk_size=CHUNK)
    whole = await archive_of([image])
    (blob,) = (each for each in plan_archive([image.spec]).segments if each.descriptor is not None)
    begin, stop = blob.offset, blob.offset + blob.size
    there_at = {
        "nothing": begin,
        "all but zeros": stop - zeros,
        "some zeros": stop - zeros // 2,
        "all": stop,
        "all and metadata": len(whole),
    }[there]
    desk.part_of(image).write_bytes(whole[:there_at])
    fetched = await desk.save_again(image)
    if there == "nothing":
        assert fetched == blob.size
    else:
        assert fetched == (zeros if zeros > LAST_ZEROS else 0)


@pytest.mark.parametrize("size", [0, 1, LAST_ZEROS, LAST_ZEROS + 1])
async def test_a_blob_of_nothing_but_zeros(desk: Desk, size: int) -> None:
    image = make_image(make_layer(bytes(size), None), IMAGE.layers[0], repo_tags=["a:1"])
    desk.store = Store({"image": image}, chunk_size=CHUNK)
    desk.part_of(image).write_bytes((await archive_of([image]))[:600])
    await desk.save_again(image)


async def test_the_zeros_at_the_end_of_a_real_tar(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain tar ends with a record of zeros, 10 KiB: with the real limit it is whole."""
    monkeypatch.undo()
    layer = make_layer({"file": b"x" * 600}, None)
    assert layer.blob.endswith(bytes(5000))
    image = make_image(layer, repo_tags=["a:1"])
    desk.store = Store({"image": image})
    desk.part_of(image).write_bytes(await archive_of([image]))
    assert await desk.save_again(image) == 0


# ── the part file itself ──


async def test_nothing_received_leaves_no_part_file(desk: Desk) -> None:
    desk.store.fails_at = {layer.descriptor.digest: -1 for layer in IMAGE.layers}
    with pytest.raises(StoreFailedError) as caught:
        await desk.save(jobs=2)
    assert [path.name for path in desk.target.parent.iterdir()] == ["a.tar"]
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("kind", ["symbolic link", "FIFO", "directory", "hard link"])
async def test_something_else_at_the_name_of_the_part_file(desk: Desk, kind: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    if kind == "symbolic link":
        desk.part.symlink_to(victim)
    elif kind == "FIFO":
        os.mkfifo(desk.part)
    elif kind == "directory":
        desk.part.mkdir()
    else:
        desk.part.hardlink_to(victim)
    try:
        with pytest.raises((OSError, PartFileError)) as caught:
            await desk.save()
        assert str(desk.part) in str(caught.value)
        assert isinstance(caught.value, PartFileError) == (kind in ("FIFO", "hard link"))
        assert victim.read_bytes() == b"precious"
        assert desk.target.read_bytes() == OLD
    finally:
        victim.unlink()
        if kind == "directory":
            desk.part.rmdir()
        else:
            desk.part.unlink()
    await desk.save_again()


@pytest.mark.parametrize("then", ["nothing", "another save", "a file"])
async def test_a_part_file_that_is_removed_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The file under its name is another's by then: it is neither put under the target's name, nor removed."""
    another: list[Any] = []

    def remove() -> None:
        desk.part.unlink()
        if then == "a file":
            desk.part.write_bytes(b"another's")
        elif then == "another save":
            fd = os.open(desk.part, os.O_RDWR | os.O_CREAT)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, b"another's", 0)
            another.append(fd)

    with monkeypatch.context() as patch:
        Disk(patch, BLOBS[1].offset, remove)
        with pytest.raises(PartFileError, match="somebody has removed or replaced it meanwhile") as caught:
            await desk.save()
    for fd in another:
        os.close(fd)
    assert not hasattr(caught.value, "__notes__")
    assert desk.target.read_bytes() == OLD
    assert (desk.part.read_bytes() if desk.part.exists() else b"") == (
        b"" if then == "nothing" else b"another's"
    )
    await desk.save_again()


async def test_a_part_file_that_is_published_under_a_lockers_nose(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking it, another save ends: what is locked then is the archive, and left alone."""
    desk.part.write_bytes((await archive_of([IMAGE]))[:3000])
    whole = await archive_of([IMAGE])
    flock = fcntl.flock
    published: list[int] = []

    def publish_first(fd: int, how: int) -> None:
        if not published:
            desk.part.rename(desk.target)
            desk.target.write_bytes(whole)
            published.append(os.fstat(fd).st_ino)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", publish_first)
    assert await desk.save_again() == desk.store.size
    assert published != [desk.target.stat().st_ino]


async def test_a_part_file_that_never_stays(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def remove_first(fd: int, how: int) -> None:
        desk.part.unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with pytest.raises(PartFileLockedError):
        await desk.save()
    assert desk.target.read_bytes() == OLD


async def test_a_file_system_without_locks(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OSError, match=str(desk.part)) as caught:
            await desk.save()
    assert caught.value.errno == errno.ENOLCK
    desk.part.unlink()


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
async def test_bytes_that_the_disk_refused_are_not_resumed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The kernel shows pages that it has dropped: a part file with such bytes is removed."""

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        patch.setattr(saving, "_PORTION", 1000)
        with pytest.raises(OSError) as caught:
            await desk.save(fsync=True)
    assert caught.value.errno == errno.EIO
    assert not hasattr(caught.value, "__notes__")
    assert desk.target.read_bytes() == OLD
    assert [path.name for path in desk.target.parent.iterdir()] == ["a.tar"]
    await desk.save_again(fsync=True)


async def test_a_target_that_is_a_link_has_its_part_file_beside_the_real_file(
    desk: Desk, tmp_path: Path
) -> None:
    """The part file is beside what the link leads to, and the note names it there."""
    folder = tmp_path / "folder"
    folder.mkdir()
    link, desk.target = desk.target, folder / "real"
    link.unlink()
    link.symlink_to(desk.target)
    last = min(IMAGE.layers, key=lambda layer: len(layer.blob))  # the others are in the file by then
    desk.store.fails_at[last.descriptor.digest] = len(last.blob) // 2
    with pytest.raises(StoreFailedError) as caught:
        await save(desk.store.requests(), link, resume=True, jobs=1)
    (part,) = folder.iterdir()
    assert any(str(part) in note for note in caught.value.__notes__)
    desk.store.fails_at.clear()
    await save(desk.store.requests(), link, resume=True)
    assert [path.name for path in folder.iterdir()] == ["real"]
    assert desk.target.read_bytes() == await archive_of([IMAGE])
    shutil.rmtree(folder)


async def test_a_target_that_is_not_a_file_is_refused(desk: Desk) -> None:
    with pytest.raises(InvalidInputError, match="no regular file"):
        await save(desk.store.requests(), "/dev/null", resume=True)
