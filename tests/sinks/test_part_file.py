"""The name of a part file, other files in its place, and its lock."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiodockersave import InsufficientSpaceError, InvalidInputError, PartFileError, PartFileLockedError
from aiodockersave.sinks.atomic_file import Target
from aiodockersave.sinks.part_file import open_part, part_name
from aiodockersave.sinks.temporary import is_still, name_beside

ETAG = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


@contextmanager
def opened_part(folder: Path, name: str = "a.tar", etag: str = ETAG) -> Iterator[int]:
    directory = os.open(folder, os.O_RDONLY)
    try:
        fd = open_part(directory, part_name(name, etag), name, folder=str(folder))
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(directory)


@pytest.fixture(autouse=True)
def _no_part_files_left(tmp_path: Path) -> Iterator[None]:
    yield
    for path in tmp_path.glob(".*"):
        path.unlink()


# ── names ──


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.tar", ".a.tar.0123456789abcdef.part"),
        ("ä" * 127, "." + "ä" * 116 + ".0123456789abcdef.part"),
        ("x" * 255, "." + "x" * 232 + ".0123456789abcdef.part"),
        ("ä\x1b[.*", ".ä\x1b[.*.0123456789abcdef.part"),
    ],
    ids=["short", "cut between characters", "cut", "odd"],
)
def test_names(name: str, expected: str, tmp_path: Path) -> None:
    """Beside the target, hidden, and never too long for a file system."""
    assert part_name(name, ETAG) == expected
    assert len(os.fsencode(expected)) <= 255
    with opened_part(tmp_path, name):
        assert [path.name for path in tmp_path.iterdir()] == [expected]


def test_a_name_that_is_cut_inside_a_character(tmp_path: Path) -> None:
    name = "a" + "ä" * 127
    assert len(os.fsencode(name_beside(name, ".tmp"))) == 255
    with opened_part(tmp_path, name):
        (found,) = tmp_path.iterdir()
        assert found.name == part_name(name, ETAG)


# ── others beside the same target ──


@pytest.mark.parametrize("name", ["a.tar", "[a]*.tar", "a??.tar", "?" * 16, "x" * 255])
def test_one_of_another_archive_is_told_of(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / part_name(name, OTHER)
    other.write_bytes(b"other")
    with opened_part(tmp_path, name):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, part_name(name, ETAG)])
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{other} is of another archive: a tag has moved")
    assert other.read_bytes() == b"other"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_stranger_s_is_not_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not removed either."""
    other = tmp_path / part_name("a.tar", OTHER)
    other.touch()
    os.chown(other, 12345, -1)
    with opened_part(tmp_path, "a.tar"):
        assert caplog.records == []


@pytest.mark.parametrize(
    "other",
    [
        part_name("b.tar", OTHER),
        part_name("xa.tar", OTHER),
        ".a.tar.fedcba98.tmp",
        ".a.tar.fedcba987654321.part",
        ".a.tar.fedcba9876543210.part.bak",
        ".a.tar.FEDCBA9876543210.part",
        "a.tar.fedcba9876543210.part",
    ],
)
def test_part_files_of_another_target_are_ignored(other: str, tmp_path: Path) -> None:
    (tmp_path / other).touch()
    with opened_part(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / other).unlink()


# ── locks ──


def test_one_at_a_time(tmp_path: Path) -> None:
    with opened_part(tmp_path) as fd:
        os.pwrite(fd, b"received", 0)
        with pytest.raises(PartFileLockedError) as caught, opened_part(tmp_path):
            raise AssertionError
        assert (
            str(caught.value)
            == f"{tmp_path}/{part_name('a.tar', ETAG)}: another save is writing it at the moment"
        )
    with opened_part(tmp_path) as fd:
        assert os.pread(fd, 100, 0) == b"received"


def test_a_lock_that_came_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another save renames the part file between our opening and locking: a new one is made."""
    part = tmp_path / part_name("a.tar", ETAG)
    flock = fcntl.flock
    renamed: list[int] = []

    def rename_first(fd: int, how: int) -> None:
        if not renamed:
            part.rename(tmp_path / "a.tar")
            renamed.append(fd)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", rename_first)
    with opened_part(tmp_path) as fd:
        assert os.path.samestat(os.fstat(fd), part.stat())
        assert not os.path.samestat(os.fstat(fd), (tmp_path / "a.tar").stat())


def test_whether_a_name_is_still_that_of_a_file(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    try:
        assert is_still(fd, directory, "a")
        (tmp_path / "b").symlink_to("a")
        assert not is_still(fd, directory, "b")
        (tmp_path / "a").rename(tmp_path / "c")
        assert not is_still(fd, directory, "a")
        (tmp_path / "a").touch()
        assert not is_still(fd, directory, "a")
        assert is_still(fd, directory, "c")
    finally:
        os.close(fd)
        os.close(directory)


# ── as a target ──


def target_of(folder: Path) -> Target:
    return Target(folder / "a.tar", fsync=False, etag=ETAG)


@pytest.mark.parametrize("received", [b"", b"received"], ids=["nothing", "something"])
def test_a_part_file_with_bytes_is_left(received: bytes, tmp_path: Path) -> None:
    target = target_of(tmp_path)
    target.open()
    assert target.file is not None
    with target.file as fd:
        os.pwrite(fd, received, 0)
    target.close()
    part = tmp_path / part_name("a.tar", ETAG)
    assert part.exists() == bool(received)
    assert target.left == (str(part) if received else None)


def test_a_part_file_is_removed_before_it_is_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another save could lock it, and write into a file without a name."""
    target = target_of(tmp_path)
    target.open()
    unlink = os.unlink

    def look(name: str, *, dir_fd: int) -> None:
        with pytest.raises(PartFileLockedError), opened_part(tmp_path):
            raise AssertionError
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", look)
        target.close()
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_replaced_is_left_alone(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    target.open()
    part = tmp_path / part_name("a.tar", ETAG)
    part.unlink()
    part.write_bytes(b"another's")
    with pytest.raises(PartFileError, match=re.escape(f"{part}: somebody has removed or replaced it")):
        target.publish()
    assert not target.published
    target.close()
    assert target.left is None
    assert part.read_bytes() == b"another's"


def test_the_published_file_has_the_mode_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch(0o640)
    target = target_of(tmp_path)
    target.open()
    target.publish()
    target.close()
    assert (tmp_path / "a.tar").stat().st_mode & 0o777 == 0o640


# ── room ──


def test_too_little_room(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    target.open()
    assert target.file is not None
    with target.file as fd:
        os.pwrite(fd, b"x" * 10_000, 0)
        blocks = os.fstat(fd).st_blocks
    there = os.statvfs(tmp_path)
    size = there.f_bavail * there.f_frsize * 2
    with pytest.raises(InsufficientSpaceError) as caught:
        target.check_space(size)
    assert caught.value.errno == errno.ENOSPC
    assert size - caught.value.needed == blocks * 512  # what is there needs no more room
    target.check_space(10_000)
    with pytest.raises(PartFileError, match="longer than the archive will be, 9999 bytes"):
        target.check_space(9999)
    target.close()


def test_a_file_system_that_says_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(tmp_path)
    target.open()
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result([0] * 11))
    target.check_space(1 << 60)
    target.close()


def test_a_device_has_no_part_file() -> None:
    with pytest.raises(InvalidInputError, match="nothing of it could be kept"):
        Target("/dev/null", fsync=False, etag=ETAG).open()
    target = Target("/dev/null", fsync=False)
    target.open()
    target.check_space(1 << 60)  # it has room for everything
    target.close()
