"""The file of an archive: whole under its name or not there, on every kind of path."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiodockersave import ArchiveWriter, SinkError, WriterBrokenError, WriterClosedError, _aio, open_archive
from aiodockersave.sinks.atomic_file import Target
from tests.support.images import archive_of, make_image, make_layer, put

TIME_LIMIT = 60.0  # seconds; nothing here takes one, but on a machine that stalls
IMAGE = make_image(make_layer(b"plain" * 1000), repo_tags=["example.com/app:1.0"])
OLD = b"the old file"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


async def save(path: Any, **options: Any) -> ArchiveWriter:
    async with open_archive(path, **options) as archive:
        await put(archive, IMAGE)
    return archive


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ── files at the path before ──


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("old_mode", [None, 0o640, 0o604, 0o400], ids=["new", "0640", "0604", "0400"])
async def test_the_mode_is_the_old_file_s_or_by_umask(old_mode: int | None, tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    if old_mode is not None:
        path.write_bytes(OLD)
        path.chmod(old_mode)
    await save(path)
    assert mode_of(path) == (0o640 if old_mode is None else old_mode)
    assert path.read_bytes() == await archive_of([IMAGE])


@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "path", "bytes"])
async def test_every_kind_of_path(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    await save(kind(tmp_path / "app.tar"))
    assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE])


async def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_archive("app.tar") as archive:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")  # the folder was opened when the archive was
        await put(archive, IMAGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.tar", "elsewhere"]
    assert not list((tmp_path / "elsewhere").iterdir())


async def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(OLD)
    with path.open("rb") as old:
        async with open_archive(path) as archive:
            await put(archive, IMAGE)
            assert path.read_bytes() == OLD
            (temporary,) = (each for each in tmp_path.iterdir() if each != path)
            assert temporary.name.startswith(".app.tar.")
            assert temporary.name.endswith(".tmp")
            assert len(temporary.name) == len(".app.tar.12345678.tmp")
            await archive.close()
            assert path.read_bytes() == await archive_of([IMAGE])
            assert list(tmp_path.iterdir()) == [path]
        assert old.read() == OLD  # replaced, not written over


@pytest.mark.parametrize("chain", [1, 2])
async def test_the_target_of_a_symbolic_link_is_replaced(chain: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target = tmp_path / "data" / "app.tar"
    target.write_bytes(OLD)
    link = tmp_path / "link0"
    link.symlink_to(Path("data") / "app.tar")
    for number in range(1, chain):
        link = tmp_path / f"link{number}"
        link.symlink_to(f"link{number - 1}")
    async with open_archive(link) as archive:
        await put(archive, IMAGE)
        assert len(list((tmp_path / "data").iterdir())) == 2  # beside the target, not beside the link
    assert link.is_symlink()
    assert target.read_bytes() == link.read_bytes() == await archive_of([IMAGE])


async def test_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("app.tar")
    await save(link)
    assert link.is_symlink()
    assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE])


async def test_a_hard_link_keeps_the_old_bytes(tmp_path: Path) -> None:
    path, other = tmp_path / "app.tar", tmp_path / "other.tar"
    path.write_bytes(OLD)
    other.hardlink_to(path)
    await save(path)
    assert other.read_bytes() == OLD


@pytest.mark.parametrize(
    "name", ["a" * 255, "ä" * 127, "a" * 240 + ".tar"], ids=["ascii", "two bytes", "suffix"]
)
async def test_a_name_as_long_as_names_may_be(name: str, tmp_path: Path) -> None:
    await save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_devices_are_written_into() -> None:
    archive = await save("/dev/null")
    assert archive.report is not None
    assert archive.report.size == len(await archive_of([IMAGE]))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left on device"):
        await save("/dev/full")


Looks = Callable[[Path, int], Awaitable[None]]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Wait until so many attempts were made to open a path."""
    opened: Counter[str] = Counter()
    open_ = os.open

    def noting(path: Any, *args: Any, **options: Any) -> int:
        opened[Path(path).name] += 1  # by a descriptor of its directory
        return open_(path, *args, **options)

    monkeypatch.setattr(os, "open", noting)

    async def until_looked_at(path: Path, times: int) -> None:
        async with asyncio.timeout(TIME_LIMIT):
            while opened[path.name] < times:
                await asyncio.sleep(0.001)

    return until_looked_at


async def test_a_fifo_is_opened_when_somebody_reads(tmp_path: Path, looks: Looks) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    saving = asyncio.create_task(save(fifo))
    await looks(fifo, 2)
    assert not saving.done()
    received = await asyncio.wait_for(asyncio.to_thread(fifo.read_bytes), TIME_LIMIT)
    await saving
    assert received == await archive_of([IMAGE])
    assert fifo.is_fifo()


async def test_a_fifo_that_nobody_reads_can_be_cancelled(tmp_path: Path, looks: Looks) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    saving = asyncio.create_task(save(fifo))
    await looks(fifo, 2)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(saving, TIME_LIMIT)


async def test_a_fifo_that_vanishes(tmp_path: Path, looks: Looks) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    saving = asyncio.create_task(save(fifo))
    await looks(fifo, 1)
    fifo.unlink()
    with pytest.raises(FileNotFoundError):
        await asyncio.wait_for(saving, TIME_LIMIT)


# ── paths that cannot be ──


def _folder(path: Path) -> Path:
    return path


def _missing(path: Path) -> Path:
    return path / "missing" / "app.tar"


def _below_a_file(path: Path) -> Path:
    (path / "file").touch()
    return path / "file" / "app.tar"


def _loop(path: Path) -> Path:
    (path / "loop").symlink_to("loop")
    return path / "loop"


def _too_long(path: Path) -> Path:
    return path / ("a" * 256)


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (_folder, errno.EISDIR),
        (_missing, errno.ENOENT),
        (_below_a_file, errno.ENOTDIR),
        (_loop, errno.ELOOP),
        (_too_long, errno.ENAMETOOLONG),
    ],
    ids=["folder", "missing folder", "below a file", "loop of links", "too long"],
)
async def test_paths_that_cannot_be_written(
    make: Callable[[Path], Path], number: int, tmp_path: Path
) -> None:
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError) as caught:
        await save(path)
    assert caught.value.errno == number
    assert caught.value.filename is not None
    assert sorted(tmp_path.iterdir()) == before


async def test_an_error_of_the_temporary_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that is read-only: which tests of root cannot have."""
    open_ = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path}/.app.tar."):
        await save(tmp_path / "app.tar")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        await save(tmp_path / "app.tar")


# ── other processes meanwhile ──


async def test_names_of_temporary_files_that_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link or file at the temporary name is never opened: another name is taken."""
    victim = tmp_path / "victim"
    victim.write_bytes(OLD)
    tokens = iter(["00000000", "11111111", "22222222"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(tokens))
    (tmp_path / ".app.tar.00000000.tmp").symlink_to(victim)
    with (tmp_path / ".app.tar.11111111.tmp").open("wb", buffering=0) as another:
        another.write(OLD)
        fcntl.flock(another, fcntl.LOCK_EX)
        async with open_archive(tmp_path / "app.tar"):
            assert (tmp_path / ".app.tar.22222222.tmp").exists()
    assert victim.read_bytes() == OLD
    assert (tmp_path / ".app.tar.11111111.tmp").read_bytes() == OLD
    for token in ("00000000", "11111111"):
        (tmp_path / f".app.tar.{token}.tmp").unlink()


async def test_no_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "00000000")
    (tmp_path / ".app.tar.00000000.tmp").touch()
    with pytest.raises(FileExistsError, match="no free name for a temporary file"):
        await save(tmp_path / "app.tar")
    (tmp_path / ".app.tar.00000000.tmp").unlink()


@pytest.mark.parametrize("outcome", ["success", "failure"])
async def test_a_folder_that_is_swapped_meanwhile(outcome: str, tmp_path: Path) -> None:
    """All happens in the folder that was opened, wherever it is called meanwhile."""
    folder, moved, other = tmp_path / "folder", tmp_path / "moved", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "app.tar").write_bytes(OLD)
    with contextlib.suppress(LookupError):
        async with open_archive(folder / "app.tar") as archive:
            folder.rename(moved)
            folder.symlink_to(other)
            await put(archive, IMAGE)
            if outcome == "failure":
                raise LookupError
    assert (other / "app.tar").read_bytes() == OLD
    assert [path.name for path in moved.iterdir()] == (["app.tar"] if outcome == "success" else [])


async def test_a_temporary_file_that_somebody_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(OLD)
    with pytest.raises(FileNotFoundError):
        async with open_archive(path) as archive:
            await put(archive, IMAGE)
            next(tmp_path.glob(".app.tar.*.tmp")).unlink()
    assert path.read_bytes() == OLD
    with contextlib.suppress(LookupError):  # and where it is not needed any more
        async with open_archive(path):
            next(tmp_path.glob(".app.tar.*.tmp")).unlink()
            raise LookupError


async def test_a_temporary_file_that_somebody_changed(tmp_path: Path) -> None:
    """A disk that lies, or another program: a file that lacks bytes is not published."""
    path = tmp_path / "app.tar"
    path.write_bytes(OLD)
    with pytest.raises(SinkError, match=r"app\.tar has 100 bytes on disk, but \d+ were written"):
        async with open_archive(path) as archive:
            await put(archive, IMAGE)
            file = next(tmp_path.glob(".app.tar.*.tmp"))
            sync = Target.sync

            def cut(self: Target, size: int) -> None:
                os.truncate(file, 100)
                sync(self, size)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Target, "sync", cut)
                await archive.close()
    assert path.read_bytes() == OLD


# ── the disk ──


class Disk:
    """Says which of our calls came in which order, and fails the one that it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.fails: str | None = None
        fsync, replace, unlink, close = os.fsync, os.replace, os.unlink, os.close

        def sync(fd: int) -> None:
            self._note("fsync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync")
            fsync(fd)

        def rename(*args: Any, **kwargs: Any) -> None:
            if "dst_dir_fd" in kwargs:  # others do without
                self._note("rename")
            replace(*args, **kwargs)

        def remove(*args: Any, **kwargs: Any) -> None:
            if "dir_fd" in kwargs:
                self._note("unlink")
            unlink(*args, **kwargs)

        def close_file(fd: int) -> None:
            is_ours = stat.S_ISREG(os.fstat(fd).st_mode)
            close(fd)
            if is_ours:
                self._note("close")

        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "replace", rename)
        patch.setattr(os, "unlink", remove)
        patch.setattr(os, "close", close_file)

    def _note(self, event: str) -> None:
        self.events.append(event)
        if event == self.fails:
            self.fails = None
            raise OSError(errno.EIO, f"{event} failed")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_bytes_are_on_the_disk_before_the_name(disk: Disk, tmp_path: Path) -> None:
    await save(tmp_path / "app.tar")
    assert disk.events == ["fsync", "rename", "fsync folder", "close"]


async def test_without_fsync(disk: Disk, tmp_path: Path) -> None:
    await save(tmp_path / "app.tar", fsync=False)
    assert disk.events == ["rename", "close"]


async def test_a_failure_removes_the_file(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        async with open_archive(tmp_path / "app.tar") as archive:
            await put(archive, IMAGE)
            raise LookupError
    assert disk.events == ["unlink", "close"]
    assert not list(tmp_path.iterdir())


async def test_a_disk_that_refuses_bytes_is_not_asked_again(disk: Disk, tmp_path: Path) -> None:
    """The kernel has dropped the pages that it could not write: the next fsync would succeed."""
    path = tmp_path / "app.tar"
    path.write_bytes(OLD)
    disk.fails = "fsync"
    with pytest.raises(OSError, match="fsync failed"):
        async with open_archive(path) as archive:
            await put(archive, IMAGE)
            with pytest.raises(OSError, match="fsync failed"):
                await archive.close()
            with pytest.raises(WriterBrokenError) as caught:
                await archive.close()
            assert caught.value.__cause__ is not None
            raise caught.value.__cause__
    assert path.read_bytes() == OLD
    assert disk.events == ["fsync", "unlink", "close"]


async def test_a_rename_that_fails_may_be_tried_again(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(OLD)
    disk.fails = "rename"
    async with open_archive(path) as archive:
        await put(archive, IMAGE)
        with pytest.raises(OSError, match="rename failed"):
            await archive.close()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == await archive_of([IMAGE])
    assert disk.events == ["fsync", "rename", "fsync", "rename", "fsync folder", "close"]


async def test_the_file_stays_where_its_folder_cannot_be_synced(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    disk.fails = "fsync folder"
    with pytest.raises(OSError, match="fsync folder failed"):
        async with open_archive(path) as archive:
            await put(archive, IMAGE)
    assert archive.report is not None
    assert path.read_bytes() == await archive_of([IMAGE])
    with pytest.raises(WriterClosedError, match="is closed: the archive is complete"):
        await archive.put_layer(b"more")


@pytest.mark.parametrize("what", ["close", "unlink"])
async def test_an_error_while_cleaning_up_is_a_note(disk: Disk, what: str, tmp_path: Path) -> None:
    with pytest.raises(LookupError) as caught:
        async with open_archive(tmp_path / "app.tar"):
            disk.fails = what
            raise LookupError
    assert f"while cleaning up: [Errno 5] {what} failed" in caught.value.__notes__
    for path in tmp_path.glob(".app.tar.*.tmp"):
        assert what == "unlink"
        path.unlink()


async def test_an_error_while_closing_a_whole_file_is_raised(disk: Disk, tmp_path: Path) -> None:
    """A close that fails is lost bytes where the disk is asked last, as NFS does it."""
    disk.fails = "close"
    with pytest.raises(OSError, match="close failed"):
        await save(tmp_path / "app.tar")
    assert (tmp_path / "app.tar").read_bytes() == await archive_of([IMAGE])


# ── the target alone ──


def test_a_target_that_was_not_opened_has_nothing_to_close(tmp_path: Path) -> None:
    target = Target(tmp_path / "app.tar", fsync=True)
    target.sync(0)
    target.close()
    target.close()
    assert not list(tmp_path.iterdir())


def test_a_device_is_published_by_being_written() -> None:
    target = Target("/dev/null", fsync=True)
    target.open()
    target.sync(5)
    target.publish()
    assert target.published
    target.close()


async def test_nothing_is_left_of_a_sink_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use one of 'docker'"):
        async with open_archive(tmp_path / "app.tar", format="zip"):  # type: ignore[arg-type]
            raise AssertionError
    assert not list(tmp_path.iterdir())


def test_a_name_that_ends_with_a_slash_is_no_file(tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/new/", fsync=False)
    with pytest.raises(IsADirectoryError):
        target.open()
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_is_closed_leaves_no_temporary_file(tmp_path: Path) -> None:
    """As where a loop was stopped, and its coroutines are closed: nothing can be awaited any more."""

    async def write(inside: asyncio.Event) -> None:
        async with open_archive(tmp_path / "out.tar") as archive:
            await archive.put_layer(b"a layer")
            inside.set()
            await asyncio.Event().wait()

    async def until_inside() -> asyncio.Task[None]:
        inside = asyncio.Event()
        task = asyncio.create_task(write(inside))
        await asyncio.wait_for(inside.wait(), TIME_LIMIT)
        return task

    loop = asyncio.new_event_loop()
    task: Any = loop.run_until_complete(until_inside())
    loop.close()
    task._log_destroy_pending = False
    task.get_coro().close()
    assert list(tmp_path.iterdir()) == []


async def test_nothing_hangs_or_stays_if_no_thread_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def write() -> None:
        async with open_archive(tmp_path / "out.tar") as archive:
            monkeypatch.setattr(_aio, "threading", SimpleNamespace(Thread=Refusing))
            await archive.put_layer(b"a layer")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        await asyncio.wait_for(write(), TIME_LIMIT)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
