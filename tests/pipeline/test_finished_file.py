"""``save(…, resume=True)`` where the archive is in place already: it is left as it is, or begun anew."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import Digest, InvalidInputError, Report, plan_archive, save
from aiodockersave.pipeline import saving
from aiodockersave.pipeline.progress import Event, LayerFinished, LayerStarted, SaveFinished, SaveStarted
from aiodockersave.sinks import finished_file
from aiodockersave.sinks.part_file import part_name
from aiodockersave.sinks.temporary import lock
from tests.support.images import archive_of, make_image, make_layer, noise
from tests.support.stores import Store, StoreFailedError

IMAGE = make_image(make_layer(noise(1, 3001), None), make_layer(noise(2, 2047)), repo_tags=["a:1"])
OTHER = make_image(make_layer(noise(3, 1500)), repo_tags=["a:1"])
PLAN = plan_archive([IMAGE.spec])
KNOWN = [segment for segment in PLAN.segments if segment.data is not None]
BLOBS = [segment for segment in PLAN.segments if segment.data is None]


class Shelf:
    """A folder with a finished archive, and the source that it came from."""

    def __init__(self, folder: Path, whole: bytes) -> None:
        self.target = folder / "a.tar"
        self.whole = whole
        self.put(whole)
        self.store = Store({"image": IMAGE})
        self.events: list[Event] = []

    def put(self, data: bytes) -> None:
        """Put a file under the target's name."""
        self.target.write_bytes(data)
        os.utime(self.target, ns=(1, 1))

    @property
    def part(self) -> Path:
        return self.target.with_name(part_name("a.tar", PLAN.etag))

    async def save(self, **options: Any) -> Report:
        given: dict[str, Any] = {"resume": True, "fsync": False, "progress": self.events.append}
        return await save(self.store.requests(), self.target, **given | options)

    def is_as_it_was(self) -> bool:
        assert [path.name for path in self.target.parent.iterdir()] == ["a.tar"]
        return self.target.stat().st_mtime_ns == 1


@pytest.fixture
async def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, await archive_of([IMAGE]))


async def assert_saved_anew(shelf: Shelf, **options: Any) -> None:
    report = await shelf.save(**options)
    assert not report.left_as_is
    assert not shelf.is_as_it_was()
    assert shelf.target.read_bytes() == shelf.whole
    assert shelf.store.given.total() == shelf.store.size


# ── left as it is ──


@pytest.mark.parametrize("checksum", [False, True])
async def test_a_finished_file_is_left_as_it_is(shelf: Shelf, checksum: bool) -> None:
    report = await shelf.save(checksum=checksum)
    sha256 = Digest.of(shelf.whole) if checksum else None
    assert report == Report(PLAN.size, PLAN.members, PLAN.images, sha256, left_as_is=True)
    assert shelf.is_as_it_was()
    assert shelf.store.openings == []


async def test_its_progress_is_that_of_a_whole_save(shelf: Shelf) -> None:
    report = await shelf.save()
    assert isinstance(shelf.events[0], SaveStarted)
    assert shelf.events[-1] == SaveFinished(report)
    layers = [layer.descriptor for layer in IMAGE.layers]
    assert [each for each in shelf.events if isinstance(each, LayerStarted)] == [
        LayerStarted(layer, layer.size or 0) for layer in layers
    ]
    last = [each for each in shelf.events if isinstance(each, LayerFinished)][-1]
    assert last.total_done == shelf.store.size


async def test_a_link_to_it_is_followed(shelf: Shelf, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to("a.tar")
    report = await save(shelf.store.requests(), link, resume=True)
    assert report.left_as_is
    link.unlink()
    assert shelf.is_as_it_was()


@pytest.mark.parametrize("blob", BLOBS, ids=["first", "second"])
async def test_blobs_are_not_read(shelf: Shelf, blob: Any) -> None:
    data = bytearray(shelf.whole)
    data[blob.offset] ^= 1
    shelf.put(bytes(data))
    assert (await shelf.save()).left_as_is
    assert shelf.target.read_bytes() == data


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
async def test_the_mode_of_an_ordinary_new_file_will_do(shelf: Shelf, umask: int) -> None:
    before = os.umask(umask)
    try:
        shelf.target.chmod(0o666 & ~umask)
        assert (await shelf.save()).left_as_is
    finally:
        os.umask(before)


async def test_part_files_beside_it_are_removed(shelf: Shelf) -> None:
    for image in (IMAGE, OTHER):
        name = part_name("a.tar", plan_archive([image.spec]).etag)
        shelf.target.with_name(name).write_bytes(b"left")
    assert (await shelf.save()).left_as_is
    assert shelf.is_as_it_was()


async def test_a_part_file_that_is_being_written_stays(shelf: Shelf) -> None:
    fd = os.open(shelf.part, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        assert lock(fd)
        assert (await shelf.save()).left_as_is
        assert shelf.part.exists()
    finally:
        os.close(fd)
        shelf.part.unlink()


# ── not the archive, or not to be trusted ──


def places() -> list[int]:
    """Return bytes that are no blob's: the first and last of each segment, and one in its middle."""
    return [
        segment.offset + at for segment in KNOWN for at in sorted({0, segment.size // 2, segment.size - 1})
    ]


@pytest.mark.parametrize("at", places())
async def test_another_byte_that_is_no_blobs(shelf: Shelf, at: int) -> None:
    data = bytearray(shelf.whole)
    data[at] ^= 1
    shelf.put(bytes(data))
    await assert_saved_anew(shelf)


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"\0", lambda _: b""], ids=["shorter", "longer", "empty"]
)
async def test_another_size(shelf: Shelf, change: Callable[[bytes], bytes]) -> None:
    shelf.put(change(shelf.whole))
    await assert_saved_anew(shelf)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
async def test_a_file_that_others_may_write_to(shelf: Shelf, mode: int) -> None:
    before = os.umask(0o022)
    try:
        shelf.target.chmod(mode)
        await assert_saved_anew(shelf)
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_file_of_another_user(shelf: Shelf) -> None:
    os.chown(shelf.target, 12345, -1)
    await assert_saved_anew(shelf)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to any group")
async def test_a_file_that_another_group_may_write_to(shelf: Shelf) -> None:
    before = os.umask(0o002)
    try:
        os.chown(shelf.target, -1, 12345)
        shelf.target.chmod(0o664)
        await assert_saved_anew(shelf)
    finally:
        os.umask(before)


def set_list(path: Path, kind: str, *entries: tuple[int, int, int]) -> None:
    """Give a path a Linux ACL: tags, permissions and IDs."""
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", acl)
    except (OSError, AttributeError):
        pytest.skip("no access control lists here")


NOBODY = 0xFFFFFFFF


async def test_a_file_that_a_list_lets_another_user_write_to(shelf: Shelf) -> None:
    """Its mode is an ordinary one: the list's mask stands in the group's place."""
    before = os.umask(0o002)
    try:
        entries = (1, 6, NOBODY), (2, 6, 12345), (4, 4, NOBODY), (16, 6, NOBODY), (32, 4, NOBODY)
        set_list(shelf.target, "access", *entries)
        assert stat.S_IMODE(shelf.target.stat().st_mode) == 0o664
        await assert_saved_anew(shelf)
    finally:
        os.umask(before)


async def test_the_mode_of_a_new_file_by_the_directory_s_list_will_do(shelf: Shelf) -> None:
    """A default ACL takes the place of the umask."""
    set_list(shelf.target.parent, "default", (1, 7, NOBODY), (4, 7, NOBODY), (32, 5, NOBODY))
    shelf.target.unlink()
    assert not (await shelf.save()).left_as_is
    assert stat.S_IMODE(shelf.target.stat().st_mode) & 0o022 == 0o020
    assert (await shelf.save()).left_as_is


# ── interrupted ──


async def test_what_is_opened_when_nobody_waits_any_more_is_closed(shelf: Shelf) -> None:
    """The coroutine was closed while the thread was about to open the file."""
    finished = finished_file.FinishedFile(shelf.target)
    with finished:
        pass
    with pytest.raises(OSError, match="closed meanwhile"):
        await asyncio.to_thread(finished.open, PLAN.segments, PLAN.size)


@pytest.mark.parametrize("checksum", [False, True])
async def test_a_cancel_leaves_nothing_open(
    shelf: Shelf, checksum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is being looked at, or hashed: no descriptor stays (each test is looked at for that)."""
    name, room = ("_hash_step", saving) if checksum else ("_has", finished_file)
    work, begun = getattr(room, name), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        time.sleep(0.1)
        return work(*arguments)

    monkeypatch.setattr(room, name, slow)
    task = asyncio.create_task(shelf.save(checksum=checksum))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shelf.is_as_it_was()


async def test_diff_ids_are_to_be_verified(shelf: Shelf) -> None:
    await assert_saved_anew(shelf, verify_diff_ids=True)


async def test_without_resume(shelf: Shelf) -> None:
    await assert_saved_anew(shelf, resume=False)


# ── begun anew ──


async def test_a_finished_file_is_fetched_again(shelf: Shelf) -> None:
    await assert_saved_anew(shelf, restart=True)


async def test_a_part_file_is_dropped(shelf: Shelf) -> None:
    shelf.put(b"old")
    shelf.part.write_bytes(shelf.whole[: BLOBS[1].offset + 5])
    shelf.part.chmod(0o600)
    await assert_saved_anew(shelf, restart=True)


async def test_a_restart_can_be_resumed(shelf: Shelf) -> None:
    shelf.store.fails_at = {IMAGE.layers[1].descriptor.digest: -1}
    with pytest.raises(StoreFailedError):
        await shelf.save(restart=True, jobs=1)
    assert shelf.part.exists()
    shelf.target.unlink()
    shelf.store.fails_at = {}
    await shelf.save()
    assert shelf.target.read_bytes() == shelf.whole
    assert shelf.store.given == {digest: len(blob) for digest, blob in shelf.store.blobs.items()}


async def test_a_restart_is_one_of_a_save_that_resumes(shelf: Shelf) -> None:
    with pytest.raises(InvalidInputError, match="restart=True is for a save with resume=True"):
        await shelf.save(resume=False, restart=True)
    assert shelf.is_as_it_was()


# ── without resume, too ──


async def test_a_cut_name_s_part_file_may_be_another_target_s(shelf: Shelf) -> None:
    first, second = (shelf.target.with_name(f"{'x' * 238}-{kind}.tar") for kind in ("amd64", "arm64"))
    part = first.with_name(part_name(first.name, PLAN.etag))
    part.write_bytes(b"left")
    await save(Store({"image": OTHER}).requests(), second, fsync=False)
    assert part.read_bytes() == b"left"
    part.unlink()
    second.unlink()


async def test_an_archive_in_place_ends_the_part_files_beside_it(shelf: Shelf) -> None:
    shelf.part.write_bytes(b"left")
    await assert_saved_anew(shelf, resume=False)
