"""Targets in directories that others may write to: a stranger who prepares files there gains nothing.

He may put a link, a FIFO or a file where the archive is to be, or on the way there, before a save or between any two of its steps.
No file of the caller's is written to or replaced by that, no byte is sent to the stranger, and the archive has no mode of
his choice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
from blockbuster import BlockBuster

from aiodockersave import open_archive, plan_archive, save
from aiodockersave.pipeline.prefetch import look_at
from tests.support.images import archive_of, put
from tests.support.stores import Store
from tests.support.strangers import IMAGE, STRANGER, THIRD, give, needs_root, save_as

PRECIOUS = b"precious"
Save: TypeAlias = Callable[[Path], Awaitable[None]]


async def by_open_archive(path: Path) -> None:
    async with open_archive(path) as archive:
        await put(archive, IMAGE)


async def by_save(path: Path) -> None:
    await save(Store({"image": IMAGE}).requests(), path)


async def by_resumable_save(path: Path) -> None:
    await save(Store({"image": IMAGE}).requests(), path, resume=True)


both_ways = pytest.mark.parametrize("way", [by_open_archive, by_save], ids=["open_archive", "save"])
every_way = pytest.mark.parametrize(
    "way", [by_open_archive, by_save, by_resumable_save], ids=["open_archive", "save", "save, resume"]
)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@dataclass
class Room:
    """A directory for everybody, and one with a file that nobody may touch."""

    folder: Path
    home: Path
    readers: list[int] = field(default_factory=list)

    @property
    def target(self) -> Path:
        return self.folder / "app.tar"

    @property
    def victim(self) -> Path:
        return self.home / "victim"

    def fifo(self, path: Path) -> None:
        """Make a FIFO that somebody reads."""
        os.mkfifo(path, 0o666)
        self.readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    def received(self) -> bytes:
        """Return the bytes that came out of the FIFO that was made last."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.readers[-1], 1 << 16):
                data += chunk
        return data

    def assert_untouched(self) -> None:
        assert self.victim.read_bytes() == PRECIOUS
        assert os.listdir(self.home) == ["victim"]  # noqa: PTH208

    def close(self) -> None:
        while self.readers:
            os.close(self.readers.pop())


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path / "room", tmp_path / "home")
    room.folder.mkdir()
    room.home.mkdir()
    room.victim.write_bytes(PRECIOUS)
    room.folder.chmod(0o1777)
    yield room
    room.close()


# ── writers of a directory, and owners of its files ──


@dataclass(frozen=True)
class Directory:
    name: str
    mode: int
    owner: int | None
    is_shared: bool

    def make_of(self, folder: Path) -> None:
        folder.chmod(self.mode)
        if self.owner is not None:
            give(folder, self.owner)


DIRECTORIES = [
    Directory("private", 0o755, None, is_shared=False),
    Directory("private, secret", 0o700, None, is_shared=False),
    Directory("as /tmp", 0o1777, None, is_shared=True),
    Directory("for everybody", 0o777, None, is_shared=True),
    Directory("for a group", 0o775, None, is_shared=True),
    Directory("for a group, sticky", 0o3775, None, is_shared=True),
    Directory("a stranger's", 0o755, STRANGER, is_shared=True),
    Directory("a stranger's, secret", 0o700, STRANGER, is_shared=True),
]


def _link(room: Room, owner: int) -> Path:
    room.target.symlink_to(room.victim)
    give(room.target, owner)
    return room.victim


def _link_to_nothing(room: Room, owner: int) -> Path:
    room.target.symlink_to(room.home / "new")
    give(room.target, owner)
    return room.home / "new"


def _relative_link(room: Room, owner: int) -> Path:
    room.target.symlink_to("../home/victim")
    give(room.target, owner)
    return room.victim


def _chain(room: Room, owner: int) -> Path:
    (room.folder / "second").symlink_to(room.victim)
    room.target.symlink_to("second")
    give(room.folder / "second", owner)
    return room.victim


def _link_of_links(room: Room, owner: int) -> Path:
    (room.folder / "way").symlink_to(room.home)
    room.target.symlink_to("way/victim")
    give(room.folder / "way", owner)
    return room.victim


LINKS = [_link, _link_to_nothing, _relative_link, _chain, _link_of_links]


@needs_root
@both_ways
@pytest.mark.parametrize("owner", [0, STRANGER, THIRD], ids=["one's own", "a stranger's", "another's"])
@pytest.mark.parametrize("make", LINKS, ids=lambda make: make.__name__.strip("_"))
@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda directory: directory.name)
async def test_links(
    directory: Directory, make: Callable[[Room, int], Path], owner: int, way: Save, room: Room
) -> None:
    directory.make_of(room.folder)
    end = make(room, owner)
    names = sorted(os.listdir(room.folder))  # noqa: PTH208
    if directory.is_shared and owner:
        with pytest.raises(PermissionError, match=rf"a link, and of another user \(uid {owner}\)") as caught:
            await way(room.target)
        assert Path(caught.value.filename).parent == room.folder
        assert "write to another place" in str(caught.value)
        room.assert_untouched()
    else:
        await way(room.target)
        assert end.read_bytes() == await archive_of([IMAGE])
        assert not end.is_symlink()
    assert sorted(os.listdir(room.folder)) == names  # noqa: PTH208


@needs_root
@both_ways
@pytest.mark.parametrize("owner", [0, STRANGER], ids=["one's own", "a stranger's"])
@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda directory: directory.name)
async def test_a_link_on_the_way(directory: Directory, owner: int, way: Save, room: Room) -> None:
    directory.make_of(room.folder)
    (room.folder / "way").symlink_to(room.home)
    give(room.folder / "way", owner)
    if directory.is_shared and owner:
        with pytest.raises(PermissionError) as caught:
            await way(room.folder / "way" / "app.tar")
        assert caught.value.filename == str(room.folder / "way")
        room.assert_untouched()
    else:
        await way(room.folder / "way" / "app.tar")
        assert (room.home / "app.tar").read_bytes() == await archive_of([IMAGE])


@needs_root
@both_ways
@pytest.mark.parametrize("owner", [0, STRANGER], ids=["one's own", "a stranger's"])
@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda directory: directory.name)
async def test_fifos(directory: Directory, owner: int, way: Save, room: Room) -> None:
    directory.make_of(room.folder)
    room.fifo(room.target)
    give(room.target, owner)
    if directory.is_shared and owner:
        with pytest.raises(PermissionError, match=rf"of another user \(uid {owner}\)") as caught:
            await way(room.target)
        assert caught.value.filename == str(room.target)
        assert room.received() == b""
    else:
        await way(room.target)
        assert room.received() == await archive_of([IMAGE])
    assert room.target.is_fifo()


@needs_root
@both_ways
@pytest.mark.parametrize("kind", ["character device", "socket"])
async def test_other_things_of_a_stranger(kind: str, way: Save, room: Room) -> None:
    with contextlib.suppress(PermissionError):  # no devices in this container
        os.mknod(
            room.target,
            0o666 | (stat.S_IFSOCK if kind == "socket" else stat.S_IFCHR),
            Path(os.devnull).stat().st_rdev,
        )
        give(room.target)
        with pytest.raises(PermissionError, match="no regular file, and of another user"):
            await way(room.target)


@both_ways
@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o755], ids=oct)
async def test_links_and_fifos_of_one_s_own_are_followed(mode: int, way: Save, room: Room) -> None:
    room.folder.chmod(mode)
    _link(room, os.geteuid())
    await way(room.target)
    assert room.victim.read_bytes() == await archive_of([IMAGE])
    room.fifo(room.folder / "fifo")
    await way(room.folder / "fifo")
    assert room.received() == await archive_of([IMAGE])


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}"])
async def test_a_link_to_an_open_file_is_written_into(path: str, room: Room) -> None:
    """The system's own links, which lead to no path."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    room.readers.append(reader)
    saved = os.dup(1)
    try:
        if path == "/dev/stdout":
            os.dup2(writer, 1)
        await by_open_archive(Path(path.format(writer, pid=os.getpid())))
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)
    assert room.received() == await archive_of([IMAGE])


@needs_root
@both_ways
async def test_a_stranger_s_file_is_replaced_and_not_written_into(way: Save, room: Room) -> None:
    room.target.write_bytes(b"a stranger's")
    give(room.target)
    with room.target.open("rb") as old:
        await way(room.target)
        assert old.read() == b"a stranger's"
    assert room.target.stat().st_uid == os.geteuid()
    assert room.target.read_bytes() == await archive_of([IMAGE])


@needs_root
async def test_the_early_look_follows_no_stranger_s_link(room: Room) -> None:
    room.target.symlink_to(os.devnull)
    assert not (await look_at(room.target)).is_file
    give(room.target)
    assert await look_at(room.target) == (True, None)


# ── between any two steps of a save ──

CALLS = ("fchmod", "fstat", "listdir", "open", "readlink", "replace", "stat")


class Race:
    """Does something just before the n-th call of the file system that a save makes."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, do: Callable[[], None]) -> None:
        self.is_over = False
        self._left = at
        self._do = do
        for name in CALLS:
            patch.setattr(os, name, self._before(getattr(os, name)))

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def raced(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self.is_over:
                self.is_over = True
                self._do()
            return call(*args, **kwargs)

        return raced


def _nothing(_: Room, __: Path) -> None:
    pass


def _file(_: Room, path: Path) -> None:
    path.write_bytes(b"old")


def _own_fifo(room: Room, path: Path) -> None:
    room.fifo(path)


def _own_link(room: Room, path: Path) -> None:
    (room.folder / "real").write_bytes(b"old")
    path.symlink_to("real")


def _stranger_s_link(room: Room, path: Path) -> None:
    path.symlink_to(room.victim)
    give(path)


def _stranger_s_fifo(room: Room, path: Path) -> None:
    room.fifo(path)
    give(path)


def _stranger_s_directory(_: Room, path: Path) -> None:
    path.mkdir()
    give(path)


def _another_fifo_of_one_s_own(room: Room, path: Path) -> None:
    """As one that a stranger has moved here."""
    room.fifo(path)


Make: TypeAlias = Callable[[Room, Path], None]


def _name(make: Make) -> str:
    return make.__name__.strip("_").replace("_", " ")


@needs_root
@pytest.mark.timeout(120)
@pytest.mark.parametrize("before", [_nothing, _file, _own_link, _own_fifo], ids=_name)
@pytest.mark.parametrize(
    "after",
    [_stranger_s_link, _stranger_s_fifo, _stranger_s_directory, _another_fifo_of_one_s_own],
    ids=_name,
)
@pytest.mark.parametrize("how", ["removed", "moved"])
async def test_a_file_that_is_replaced_between_two_steps(
    how: str,
    before: Make,
    after: Make,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    nothing_blocks: BlockBuster,
) -> None:
    nothing_blocks.deactivate()  # the stranger's steps are counted as ours otherwise
    is_looked_at = False
    for at in range(200):
        before(room, room.target)

        def replace() -> None:
            if os.path.lexists(room.target):
                if how == "removed":  # the next one may have the same inode, where nobody has this one open
                    room.close()
                    room.target.unlink()
                else:
                    room.target.rename(room.folder / "moved")
            after(room, room.target)

        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            race = Race(patch, at, replace)
            await by_open_archive(room.target)
        room.assert_untouched()
        if race.is_over and room.folder.joinpath("app.tar").is_fifo():
            received = room.received()
            # One's own that is there before the look is a target like any other.
            assert received == b"" or after is _another_fifo_of_one_s_own
            assert not is_looked_at or received == b"" or how == "removed"
            is_looked_at = not received
        for path in room.folder.iterdir():
            assert not path.name.endswith(".tmp")
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                path.rmdir()
        if not race.is_over:
            assert at > 10, "it was not in between anything"
            return
    raise AssertionError("a save makes no end of calls")


@needs_root
@pytest.mark.timeout(120)
async def test_a_directory_on_the_way_that_is_replaced_between_two_steps(
    room: Room, monkeypatch: pytest.MonkeyPatch, nothing_blocks: BlockBuster
) -> None:
    """The archive is in the one that was there, or nowhere."""
    nothing_blocks.deactivate()  # as above
    way, moved = room.folder / "way", room.folder / "moved"
    whole = await archive_of([IMAGE])
    results = set()
    for at in range(200):
        way.mkdir()

        def replace() -> None:
            way.rename(moved)
            way.symlink_to(room.home)
            give(way)

        with monkeypatch.context() as patch:
            race = Race(patch, at, replace)
            try:
                await by_open_archive(way / "app.tar")
            except PermissionError as error:
                assert error.filename == str(way)
        found = {path: path.read_bytes() for path in room.folder.rglob("app.tar")}
        room.assert_untouched()
        results.add("refused" if not found else "made")
        assert set(found.values()) <= {whole}
        for path in found:
            path.unlink()
        if not race.is_over:
            assert results == {"refused", "made"}
            return
        moved.rmdir()
        way.unlink()
    raise AssertionError("a save makes no end of calls")


def _given_away(room: Room) -> None:
    """As one that is removed and made anew: file systems give the same number again."""
    give(room.target)


def _moved_here(room: Room) -> None:
    room.fifo(room.folder / "another")
    (room.folder / "another").rename(room.target)


def _link_that_leads_nowhere(room: Room) -> None:
    room.target.unlink()
    room.target.symlink_to("nothing")


@needs_root
@pytest.mark.parametrize(
    "replace", [_given_away, _moved_here, _link_that_leads_nowhere], ids=lambda make: make.__name__.strip("_")
)
async def test_a_fifo_that_is_replaced_after_the_look(
    replace: Callable[[Room], None], room: Room, monkeypatch: pytest.MonkeyPatch, nothing_blocks: BlockBuster
) -> None:
    nothing_blocks.deactivate()
    room.fifo(room.target)
    open_ = os.open

    def replace_first(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if path == "app.tar" and flags & os.O_WRONLY:
            replace(room)
        return open_(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", replace_first)
        with pytest.raises(PermissionError, match="somebody has replaced it meanwhile") as caught:
            await by_open_archive(room.target)
    assert caught.value.filename == str(room.target)
    assert room.received() == b""


@needs_root
@every_way
async def test_a_link_that_is_there_for_the_rename_is_replaced(
    way: Save, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def put_a_link_first(*args: Any, **kwargs: Any) -> None:
        _stranger_s_link(room, room.target)
        replace(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", put_a_link_first)
        await way(room.target)
    assert not room.target.is_symlink()
    assert room.target.read_bytes() == await archive_of([IMAGE])
    room.assert_untouched()


@every_way
async def test_a_file_of_somebody_else_s_is_not_put_under_the_target_s_name(
    way: Save, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file under the temporary name is no archive by then, and not ours to remove."""
    fsync = os.fsync

    def swap(fd: int) -> None:
        fsync(fd)
        (path,) = (path for path in room.folder.iterdir() if path.name.startswith("."))
        path.unlink()
        path.write_bytes(b"a stranger's")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", swap)
        with pytest.raises(Exception, match="somebody has removed or replaced it meanwhile"):
            await way(room.target)
    (left,) = room.folder.iterdir()
    assert left.read_bytes() == b"a stranger's"
    left.unlink()


# ── modes ──


@dataclass(frozen=True)
class Mode:
    name: str
    old: int
    kept: int | None
    owner: int = 0
    folder: int = 0o755
    has_second_name: bool = False


MODES = [
    Mode("one's own", 0o640, 0o640),
    Mode("one's own, for everybody", 0o666, 0o666),
    Mode("one's own, read-only", 0o444, 0o444),
    Mode("one's own, in a directory for everybody", 0o604, 0o604, folder=0o1777),
    Mode("one's own, setuid and setgid", 0o6755, 0o755),
    Mode("one's own, sticky", 0o1644, 0o644),
    Mode("a stranger's", 0o666, None, STRANGER, 0o1777),
    Mode("a stranger's, setuid", 0o6777, None, STRANGER, 0o1777),
    Mode("a stranger's, in a private directory", 0o666, None, STRANGER),
    Mode("one's own with a second name", 0o666, 0o666, has_second_name=True),
    Mode("one's own that a stranger may have linked here", 0o666, None, 0, 0o1777, has_second_name=True),
]


@every_way
@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
async def test_the_mode_of_an_archive(mode: Mode, way: Save, room: Room) -> None:
    """The mode is that of an old file of one's own, and never more than permissions to read, write and execute."""
    if mode.owner and os.geteuid():
        pytest.skip("needs root, to make files of another user")
    room.folder.chmod(mode.folder)
    room.target.touch()
    if mode.owner:
        give(room.target, mode.owner)
    room.target.chmod(mode.old)
    if mode.has_second_name:
        (room.home / "second").hardlink_to(room.target)
    await way(room.target)
    there = room.target.stat()
    assert there.st_uid == os.geteuid()
    assert oct(stat.S_IMODE(there.st_mode)) == oct(0o640 if mode.kept is None else mode.kept)


GROUPS = [(0o660, 0o600), (0o2664, 0o604), (0o604, 0o600), (0o646, 0o604), (0o677, 0o607)]


@needs_root
@every_way
@pytest.mark.parametrize(("old", "kept"), GROUPS, ids=oct)
async def test_the_permissions_of_one_group_are_not_given_to_another(
    old: int, kept: int, way: Save, room: Room
) -> None:
    """The members of the old group are among all others then, and get no more than they had."""
    for group, expected in ((THIRD, kept), (os.getegid(), old & 0o777)):
        room.target.touch()
        os.chown(room.target, -1, group)
        room.target.chmod(old)
        await way(room.target)
        there = room.target.stat()
        assert (there.st_gid, oct(stat.S_IMODE(there.st_mode))) == (os.getegid(), oct(expected))
        room.target.unlink()


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a list as Linux keeps it: a version, then a tag, permissions and an ID for each entry."""
    nobody = 0xFFFFFFFF
    base = [(1, 6, nobody), (4, 0, nobody), (0x10, 6, nobody), (0x20, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in sorted([*base, *entries]))


@needs_root
@every_way
async def test_an_access_control_list_is_not_taken_for_the_group_s_permissions(way: Save, room: Room) -> None:
    """With a list, the group's part of a mode is the most that anybody in it may do."""
    named = acl((2, 6, STRANGER))
    for of_old, of_directory, kept in (
        (named, None, 0o600),
        (None, named, 0o600),
        (named, named, 0o660),
        (named, acl((2, 6, THIRD)), 0o600),
        (None, None, 0o660),
    ):
        room.target.touch()
        room.target.chmod(0o660)
        try:
            if of_old is not None:
                os.setxattr(room.target, "system.posix_acl_access", of_old)
            if of_directory is not None:
                os.setxattr(room.folder, "system.posix_acl_default", of_directory)
        except (OSError, AttributeError):
            pytest.skip("no access control lists here")
        await way(room.target)
        assert oct(stat.S_IMODE(room.target.stat().st_mode)) == oct(kept)
        room.target.unlink()
        if of_directory is not None:
            os.removexattr(room.folder, "system.posix_acl_default")


def _refuse(*_: Any) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@every_way
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077], ids=oct)
@pytest.mark.parametrize("is_told", [True, False], ids=["the kernel tells the umask", "it does not"])
async def test_private_until_it_is_whole(
    mask: int, is_told: bool, way: Save, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else reads a private image that is not finished; its mode comes just before its name."""
    modes: list[tuple[str, int]] = []
    before = os.umask(mask)
    replace, sync, umask, open_ = os.replace, os.fsync, os.umask, open

    def look(when: str) -> None:
        modes.extend(
            (when, stat.S_IMODE(path.stat().st_mode))
            for path in room.folder.iterdir()
            if path.name.startswith(".")
        )

    def look_and_sync(fd: int) -> None:
        look("unfinished")
        sync(fd)

    def replace_and_look(*args: Any, **kwargs: Any) -> None:
        look("whole")
        replace(*args, **kwargs)

    def no_umask(_: int) -> int:
        raise AssertionError("other threads make files meanwhile")

    def open_nothing_of_proc(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return open_(path, *args, **kwargs)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", look_and_sync)
            patch.setattr(os, "replace", replace_and_look)
            patch.setattr(os, "umask", no_umask)
            if not is_told:
                patch.setattr("builtins.open", open_nothing_of_proc)
            await way(room.target)
    finally:
        umask(before)
    assert set(modes) == {("unfinished", 0o600), ("whole", 0o666 & ~mask)}
    assert stat.S_IMODE(room.target.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(room.folder) == ["app.tar"]  # noqa: PTH208


@every_way
async def test_private_again_where_it_does_not_get_its_name(
    way: Save, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    close = os.close

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a hidden name", None, "another")

    def look(fd: int) -> None:
        there = os.fstat(fd)
        if stat.S_ISREG(there.st_mode):
            modes.append(stat.S_IMODE(there.st_mode))
        close(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        patch.setattr(os, "close", look)
        with pytest.raises(OSError, match="Input/output error") as caught:
            await way(room.target)
    assert caught.value.filename == str(room.target)
    assert modes[-1] == 0o600
    for path in room.folder.iterdir():
        assert path.suffix == ".part"
        path.unlink()


# The default ACL of a directory, as Linux keeps it: version 2, then (tag, permissions, ID) for owner, group and others.
_NO_ID = b"\xff\xff\xff\xff"
_ACL = b"\2\0\0\0" + b"".join(
    bytes([tag, 0, permissions, 0]) + _NO_ID for tag, permissions in ((1, 6), (4, 6), (32, 0))
)


@every_way
@pytest.mark.usefixtures("umask")
async def test_a_directory_s_default_acl_is_asked_in_place_of_the_umask(way: Save, room: Room) -> None:
    try:
        os.setxattr(room.folder, "system.posix_acl_default", _ACL)
    except (OSError, AttributeError):
        pytest.skip("no ACLs here")
    (room.folder / "other").touch()
    expected = stat.S_IMODE((room.folder / "other").stat().st_mode)
    assert expected == 0o660
    await way(room.target)
    assert stat.S_IMODE(room.target.stat().st_mode) == expected


@every_way
async def test_a_file_system_without_modes(way: Save, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT, or a share of Windows: every file has the same mode, and another one is refused."""
    fstat = os.fstat

    def show(fd: int) -> os.stat_result:
        there = fstat(fd)
        if not stat.S_ISREG(there.st_mode):
            return there
        _, made_of = cast("tuple[Any, Any]", there.__reduce__())
        values, more = made_of
        return os.stat_result((stat.S_IFREG | 0o777, *values[1:]), more)

    monkeypatch.setattr(os, "fstat", show)
    monkeypatch.setattr(os, "fchmod", _refuse)
    await way(room.target)
    assert room.target.read_bytes() == await archive_of([IMAGE])


# ── part files ──

PART = f".app.tar.{plan_archive([IMAGE.spec]).etag[:16]}.part"


@pytest.fixture
async def received() -> bytes:
    """Bytes that an interrupted save has received, or somebody says that it has."""
    whole = await archive_of([IMAGE])
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o755, 0o700], ids=oct)
async def test_a_part_file_of_one_s_own_is_gone_on_with_in_private(
    mode: int, received: bytes, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that an earlier version has made, by umask."""
    part = room.folder / PART
    part.write_bytes(received)
    part.chmod(mode)
    modes: list[int] = []
    write = os.pwrite

    def write_and_look(fd: int, *args: Any) -> int:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return write(fd, *args)

    store = Store({"image": IMAGE})
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write_and_look)
        await save(store.requests(), room.target, resume=True)
    assert room.target.read_bytes() == await archive_of([IMAGE])
    assert store.given.total() < store.size
    assert set(modes) == {0o600}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o664, 0o666, 0o777], ids=oct)
async def test_a_part_file_that_others_may_write_to(mode: int, received: bytes, room: Room) -> None:
    part = room.folder / PART
    part.write_bytes(received)
    part.chmod(mode)
    with pytest.raises(Exception, match=rf"others may write to it \(mode {mode:04o}\)") as caught:
        await by_resumable_save(room.target)
    assert getattr(caught.value, "path", None) == str(part)
    assert "remove it, or save without it" in str(caught.value)
    assert part.read_bytes() == received
    assert stat.S_IMODE(part.stat().st_mode) == mode
    assert not room.target.exists()
    part.unlink()


def _part(path: Path, received: bytes, mode: int) -> None:
    path.write_bytes(received)
    path.chmod(mode)


STRANGE_PARTS: dict[str, Callable[[Path, bytes], object]] = {
    "by umask": lambda path, received: _part(path, received, 0o644),
    "private": lambda path, received: _part(path, received, 0o600),
    "for everybody": lambda path, received: _part(path, received, 0o666),
    "empty": lambda path, _: _part(path, b"", 0o644),
    "a FIFO": lambda path, _: os.mkfifo(path, 0o666),
    "a link": lambda path, _: path.symlink_to("/etc/passwd"),
    "a directory": lambda path, _: path.mkdir(),
}


@needs_root
@pytest.mark.parametrize("folder", [0o1777, 0o755], ids=oct)
@pytest.mark.parametrize("kind", STRANGE_PARTS)
async def test_a_part_file_of_a_stranger_s(kind: str, folder: int, received: bytes, room: Room) -> None:
    room.folder.chmod(folder)
    part = room.folder / PART
    STRANGE_PARTS[kind](part, received)
    give(part)
    before = part.lstat()
    with pytest.raises(Exception, match=rf"another user has made it \(uid {STRANGER}\)") as caught:
        await by_resumable_save(room.target)
    assert getattr(caught.value, "path", None) == str(part)
    assert part.lstat() == before
    assert os.listdir(room.folder) == [PART]  # noqa: PTH208
    if part.is_dir() and not part.is_symlink():
        part.rmdir()
    else:
        part.unlink()
    await by_resumable_save(room.target)
    assert room.target.read_bytes() == await archive_of([IMAGE])


@needs_root
async def test_a_part_file_that_a_stranger_puts_there_meanwhile(
    received: bytes, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = room.folder / PART
    part.write_bytes(received)
    open_ = os.open

    def swap(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == PART and part.stat().st_uid != STRANGER:
            part.unlink()
            part.write_bytes(received)
            give(part)
        return open_(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swap)
        with pytest.raises(Exception, match="another user has made it"):
            await by_resumable_save(room.target)
    part.unlink()


@needs_root
async def test_part_files_where_one_is_another_user(
    received: bytes, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root on a network file system: new files belong to nobody, and so do those that were made before."""
    part = room.folder / PART
    part.write_bytes(received)
    monkeypatch.setattr(os, "geteuid", lambda: THIRD)
    store = Store({"image": IMAGE})
    await save(store.requests(), room.target, resume=True)
    assert room.target.read_bytes() == await archive_of([IMAGE])
    assert store.given.total() < store.size


# ── as another user ──


def _for_strangers(room: Room) -> None:
    room.folder.chmod(0o1777)
    room.home.chmod(0o755)


@needs_root
def test_a_sticky_directory_says_early_what_may_not_be_replaced(room: Room) -> None:
    room.target.write_bytes(b"root's")
    room.target.chmod(0o666)
    ended = save_as(STRANGER, room.folder, "app.tar")
    assert ended.error == "PermissionError"
    assert "it is another user's, and only he can replace it in this directory" in ended.text
    assert ended.path == str(room.target)
    assert room.target.read_bytes() == b"root's"
    assert os.listdir(room.folder) == ["app.tar"]  # noqa: PTH208
    room.folder.chmod(0o777)
    assert save_as(STRANGER, room.folder, "app.tar").error == ""
    there = room.target.stat()
    assert (there.st_uid, stat.S_IMODE(there.st_mode)) == (STRANGER, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@needs_root
def test_a_group_of_which_another_user_is_no_member(room: Room) -> None:
    room.target.touch()
    os.chown(room.target, STRANGER, THIRD)
    room.target.chmod(0o664)
    assert save_as(STRANGER, room.folder, "app.tar").error == ""
    there = room.target.stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (STRANGER, STRANGER, 0o604)


@needs_root
@pytest.mark.parametrize(
    ("owner", "is_followed"),
    [(STRANGER, True), (0, True), (THIRD, False)],
    ids=["one's own", "root's", "another's"],
)
def test_another_user_follows_links_of_his_own_and_of_root(owner: int, is_followed: bool, room: Room) -> None:
    (room.folder / "link").symlink_to("app.tar")
    give(room.folder / "link", owner)
    ended = save_as(STRANGER, room.folder, "link")
    assert ended.error == ("" if is_followed else "PermissionError")
    assert room.target.exists() == is_followed
    if not is_followed:
        assert ended.path == str(room.folder / "link")


@needs_root
@pytest.mark.parametrize("owner", [0, STRANGER, THIRD])
async def test_a_namespace_shows_root_as_another_user(
    owner: int, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a user namespace: the owner of "/" can do everything anyway."""
    room.target.symlink_to("real.tar")
    give(room.target, owner)
    look = os.stat

    def show(path: Any, **options: Any) -> os.stat_result:
        there = look(path, **options)
        return os.stat_result((*there[:4], STRANGER, *there[5:])) if path == "/" else there

    monkeypatch.setattr(os, "stat", show)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if owner == THIRD:
        with pytest.raises(PermissionError, match=f"uid {THIRD}"):
            await by_open_archive(room.target)
    else:
        room.folder.chmod(0o777)
        await by_open_archive(room.target)
        assert (room.folder / "real.tar").read_bytes() == await archive_of([IMAGE])


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666], ids=oct)
def test_a_part_file_of_root_s_is_another_s(mode: int, room: Room) -> None:
    """Also one that cannot be opened is refused by name."""
    part = room.folder / PART
    part.write_bytes(b"root's")
    part.chmod(mode)
    ended = save_as(STRANGER, room.folder, "app.tar", resume=True)
    assert ended.error == "PartFileError"
    assert ended.path == str(part)
    assert "another user has made it (uid 0)" in ended.text
    assert part.read_bytes() == b"root's"
    part.unlink()
