"""Temporary files that a killed process has left: the next save to the same target removes them, and no others.

A kill, an OOM kill or a crash of the machine leaves ``.NAME.<8 hex>.tmp``, as large as what was received. Whoever writes one has
it locked: so what is not locked is nobody's any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from aiodockersave import open_archive
from tests.support.images import archive_of, put
from tests.support.killed import IMAGE, by_open_archive, by_resumable_save, by_save, run_killed
from tests.support.strangers import give, needs_root

LIMIT = 20.0  # seconds for anything that is waited for
OLD = b"the old file"
STALE = ".app.tar.0123abcd.tmp"
Save: TypeAlias = Callable[[Path], Awaitable[None]]

every_way = pytest.mark.parametrize(
    "way", [by_open_archive, by_save, by_resumable_save], ids=["open_archive", "save", "save, resume"]
)


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder
    for path in folder.glob(".*"):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


# ── killed ──

MOMENTS = {
    "made, and not locked yet": ("flock", 1, "before"),
    "locked": ("flock", 1, "after"),
    "before the disk has it": ("fsync", 1, "before"),
    "after the disk has it": ("fsync", 1, "after"),
    "before its mode is set": ("fchmod", 1, "before"),
    "before the rename": ("replace", 1, "before"),
}


@pytest.mark.parametrize("way", ["open_archive", "save"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_next_save_removes_the_files_of_a_killed_one(moment: str, way: str, folder: Path) -> None:
    target = folder / "app.tar"
    target.write_bytes(OLD)
    ended = await asyncio.to_thread(run_killed, target, way, *MOMENTS[moment])
    assert ended == -signal.SIGKILL
    assert target.read_bytes() == OLD
    (left,) = (name for name in names_in(folder) if name != "app.tar")
    assert left.startswith(".app.tar.")
    assert left.endswith(".tmp")
    await (by_save if way == "open_archive" else by_open_archive)(target)
    assert names_in(folder) == ["app.tar"]
    assert target.read_bytes() == await archive_of([IMAGE])


async def test_killed_while_bytes_are_written_again_and_again(folder: Path) -> None:
    target = folder / "app.tar"
    for number in (1, 2, 5):
        ended = await asyncio.to_thread(run_killed, target, "save", "pwrite", number, "before")
        assert ended == -signal.SIGKILL
        assert len(names_in(folder)) == 1  # each removes what the one before has left
    await by_save(target)
    assert names_in(folder) == ["app.tar"]


async def test_killed_behind_the_rename(folder: Path) -> None:
    target = folder / "app.tar"
    assert await asyncio.to_thread(run_killed, target, "save", "replace", 1, "after") == -signal.SIGKILL
    assert names_in(folder) == ["app.tar"]
    assert target.read_bytes() == await archive_of([IMAGE])


# ── removed, and kept ──


@every_way
async def test_stale_files_are_removed(way: Save, folder: Path) -> None:
    for name in (STALE, ".app.tar.ffffffff.tmp", ".app.tar.00000000.tmp"):
        (folder / name).write_bytes(b"received")
    (folder / STALE).chmod(0o400)
    await way(folder / "app.tar")
    assert names_in(folder) == ["app.tar"]


@every_way
@pytest.mark.parametrize("name", ["[a]*.tar", "a?.tar", "?" * 16, "x" * 255, "ä" * 127, "a\nb.tar"])
async def test_names_of_every_kind(name: str, way: Save, folder: Path) -> None:
    (folder / name).touch()
    hidden = "." + os.fsdecode(os.fsencode(name)[: 255 - len(".01234567.tmp") - 1]) + ".01234567.tmp"
    (folder / hidden).touch()
    (folder / ".aa.tar.01234567.tmp").touch()
    await way(folder / name)
    assert names_in(folder) == [".aa.tar.01234567.tmp", name]


OTHER_NAMES = [
    ".app.tar.0123ABCD.tmp",
    ".app.tar.0123abc.tmp",
    ".app.tar.0123abcde.tmp",
    ".app.tar.0123abcg.tmp",
    ".app.tar.0123abcd.tmp.bak",
    ".app.tar.0123abcd.tmp\n",
    ".app.tar.0123abcd",
    ".app.tar.tmp",
    "app.tar.0123abcd.tmp",
    ".xapp.tar.0123abcd.tmp",
    ".appxtar.0123abcd.tmp",
    ".other.tar.0123abcd.tmp",
    ".app.tar.0123456789abcdef.tmp",
]


@every_way
async def test_names_that_are_not_ours(way: Save, folder: Path) -> None:
    for name in OTHER_NAMES:
        (folder / name).write_bytes(b"somebody's")
    await way(folder / "app.tar")
    assert names_in(folder) == sorted(["app.tar", *OTHER_NAMES])


def _locked(path: Path, stack: contextlib.ExitStack) -> None:
    file = stack.enter_context(path.open("wb"))
    fcntl.flock(file, fcntl.LOCK_EX)


def _locked_for_reading(path: Path, stack: contextlib.ExitStack) -> None:
    path.touch()
    file = stack.enter_context(path.open("rb"))
    fcntl.flock(file, fcntl.LOCK_SH)


def _link(path: Path, _: contextlib.ExitStack) -> None:
    (path.parent / "victim").write_bytes(OLD)
    path.symlink_to("victim")


def _two_names(path: Path, _: contextlib.ExitStack) -> None:
    (path.parent / "victim").write_bytes(OLD)
    path.hardlink_to(path.parent / "victim")


def _directory(path: Path, _: contextlib.ExitStack) -> None:
    path.mkdir()


def _fifo(path: Path, _: contextlib.ExitStack) -> None:
    os.mkfifo(path)


def _a_stranger_s(path: Path, _: contextlib.ExitStack) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make a file of another user")
    path.touch()
    give(path)


@every_way
@pytest.mark.parametrize(
    "make",
    [_locked, _locked_for_reading, _link, _two_names, _directory, _fifo, _a_stranger_s],
    ids=lambda make: make.__name__.strip("_").replace("_", " "),
)
async def test_files_that_may_be_in_use_are_kept(
    make: Callable[[Path, contextlib.ExitStack], None], way: Save, folder: Path
) -> None:
    with contextlib.ExitStack() as stack:
        make(folder / STALE, stack)
        before = (folder / STALE).lstat()
        await way(folder / "app.tar")
        assert (folder / STALE).lstat() == before
    assert (folder / "app.tar").read_bytes() == await archive_of([IMAGE])


@pytest.mark.parametrize("make", [_link, _fifo, _a_stranger_s], ids=lambda make: make.__name__.strip("_"))
async def test_files_that_cannot_be_stale_are_not_opened(
    make: Callable[[Path, contextlib.ExitStack], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open of a FIFO would be noticed at its other end."""
    opened: list[Any] = []
    open_ = os.open

    def note(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(path)
        return open_(path, *args, **kwargs)

    make(folder / STALE, contextlib.ExitStack())
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", note)
        await by_save(folder / "app.tar")
    assert opened
    assert STALE not in opened


@every_way
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EIO], ids=os.strerror)
async def test_a_file_system_without_locks(
    number: int, way: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save works all the same, unless it is to be gone on with; and nothing is known to be nobody's."""

    def refuse(_: int, __: int) -> None:
        raise OSError(number, os.strerror(number))

    (folder / STALE).touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    if way is by_resumable_save:
        with pytest.raises(OSError, match=os.strerror(number)):
            await way(folder / "app.tar")
    else:
        await way(folder / "app.tar")
        assert (folder / "app.tar").read_bytes() == await archive_of([IMAGE])
    assert (folder / STALE).exists()


@every_way
@pytest.mark.parametrize("call", ["listdir", "unlink"])
async def test_a_stale_file_that_cannot_be_removed_stays(
    call: str, way: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = getattr(os, call)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if args == (STALE,) or (
            call == "listdir" and isinstance(args[0], int) and way is not by_resumable_save
        ):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return original(*args, **kwargs)

    (folder / STALE).touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        await way(folder / "app.tar")
    assert (folder / "app.tar").read_bytes() == await archive_of([IMAGE])


# ── two at once ──


async def test_two_saves_to_one_target(folder: Path) -> None:
    """Neither removes the other's file, and the one that ends last is there."""
    target = folder / "app.tar"
    async with open_archive(target) as first, open_archive(target) as second:
        assert len(names_in(folder)) == 2
        await by_save(target)
        await by_resumable_save(target)
        assert len(names_in(folder)) == 3
        await put(first, IMAGE)
        await put(second, IMAGE)
    assert names_in(folder) == ["app.tar"]
    assert target.read_bytes() == await archive_of([IMAGE])


async def test_many_saves_to_one_target(folder: Path) -> None:
    target = folder / "app.tar"
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(
            *(by_save(target) for _ in range(20)), *(by_open_archive(target) for _ in range(20))
        )
    assert names_in(folder) == ["app.tar"]
    assert target.read_bytes() == await archive_of([IMAGE])


async def test_another_process_writes(folder: Path) -> None:
    """Stopped, it makes no step, and its file is its own all the same."""
    target = folder / "app.tar"
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from aiodockersave import open_archive\n"
        "from tests.support.images import put\n"
        "from tests.support.killed import IMAGE\n"
        "async def main():\n"
        "    async with open_archive(sys.argv[1]) as archive:\n"
        "        print('open', flush=True)\n"
        "        sys.stdin.readline()\n"
        "        await put(archive, IMAGE)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(target)),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT):
            assert await process.stdout.readline() == b"open\n"
            process.send_signal(signal.SIGSTOP)
            await by_save(target)
            assert len(names_in(folder)) == 2
            process.send_signal(signal.SIGCONT)
            await process.communicate(b"\n")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0
    assert names_in(folder) == ["app.tar"]
    assert target.read_bytes() == await archive_of([IMAGE])


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
async def test_a_file_that_is_made_and_not_locked_yet(
    moment: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another save takes it for one that was left: then its maker makes another."""
    target = folder / "app.tar"
    flock = fcntl.flock
    made: list[str] = []

    def be_late(fd: int, how: int) -> None:
        if made:
            return flock(fd, how)
        made.extend(names_in(folder))
        if moment == "before":
            other = threading.Thread(target=lambda: asyncio.run(by_save(target)))
            other.start()
            other.join(LIMIT)
            assert names_in(folder) == ["app.tar"]
            return flock(fd, how)
        with (folder / made[0]).open("rb") as another:  # it has the lock, and will remove it
            flock(another.fileno(), fcntl.LOCK_EX)
            (folder / made[0]).unlink()
            return flock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", be_late)
        async with open_archive(target) as archive:
            assert made[0] not in names_in(folder)
            await put(archive, IMAGE)
    assert len(made) == 1
    assert names_in(folder) == ["app.tar"]
    assert target.read_bytes() == await archive_of([IMAGE])


@every_way
async def test_a_file_that_is_published_while_it_is_looked_at(
    way: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that has its name by the time that it is locked is another's."""
    (folder / STALE).touch()
    stale = (folder / STALE).stat()
    flock = fcntl.flock

    def publish_first(fd: int, how: int) -> None:
        if os.path.samestat(os.fstat(fd), stale):
            (folder / STALE).rename(folder / "published")
            (folder / STALE).write_bytes(b"another's")
        flock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", publish_first)
        await way(folder / "app.tar")
    assert (folder / "published").exists()
    assert (folder / STALE).read_bytes() == b"another's"


@needs_root
@every_way
async def test_a_stranger_s_file_that_comes_in_its_place(
    way: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / STALE).touch()
    open_ = os.open

    def swap(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == STALE:
            (folder / STALE).unlink()
            (folder / STALE).write_bytes(b"a stranger's")
            give(folder / STALE)
        return open_(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swap)
        await way(folder / "app.tar")
    assert (folder / STALE).read_bytes() == b"a stranger's"


async def test_a_file_that_vanishes_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def remove_first(fd: int, how: int) -> None:
        for name in names_in(folder):
            (folder / name).unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with pytest.raises(FileExistsError, match="no free name for a temporary file"):
        await by_save(folder / "app.tar")
    assert names_in(folder) == []


@needs_root
async def test_a_stranger_s_files_stay_in_a_directory_for_everybody(folder: Path) -> None:
    folder.chmod(0o1777)
    (folder / STALE).write_bytes(b"a stranger's")
    give(folder / STALE)
    await by_save(folder / "app.tar")
    assert names_in(folder) == [STALE, "app.tar"]
