"""Private files that are changed: whole, private, and never another user's."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from aiodockersave.sinks import private_file
from aiodockersave.sinks.private_file import change_private
from tests.support.strangers import STRANGER, give, needs_root

LIMIT = 60.0  # seconds for anything that is waited for


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def change(path: Path, new: bytes | None = b"new", *, limit: int = 100) -> list[bytes]:
    """Change a file; return what its content was."""
    seen: list[bytes] = []

    def made_of(old: bytes) -> bytes | None:
        seen.append(old)
        return new

    assert change_private(str(path), made_of, limit=limit) == (new is not None)
    return seen


@pytest.mark.parametrize("mode", [None, 0o600, 0o644, 0o666])
def test_a_file_is_replaced_and_private(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "a.json"
    if mode is not None:
        path.write_bytes(b"old")
        path.chmod(mode)
    assert change(path) == [b"old" if mode else b""]
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["a.json"]


def test_no_change_touches_nothing(tmp_path: Path) -> None:
    assert change(tmp_path / "a.json", None) == [b""]
    assert names_in(tmp_path) == []


def test_an_error_of_the_change_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(_: bytes) -> bytes:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        change_private(str(path), fail, limit=100)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.json"]


def test_an_error_of_the_disk_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        change(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.json"]


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b.json").write_bytes(b"old")
    (tmp_path / "a.json").symlink_to("real/b.json")
    assert change(tmp_path / "a.json") == [b"old"]
    assert (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "real" / "b.json").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("kind", "error"),
    [("directory", IsADirectoryError), ("fifo", OSError), ("large", OSError), ("missing directory", FileNotFoundError)],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, kind: str, error: type[OSError]) -> None:
    path = tmp_path / "folder" / "a.json"
    if kind != "missing directory":
        path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(bytes(101))
    with pytest.raises(error):
        change(path)
    if kind == "large":
        assert path.read_bytes() == bytes(101)


@needs_root
@pytest.mark.parametrize("kind", ["file", "readable file", "link", "link to nothing", "link on the way"])
def test_what_a_stranger_has_put_there(tmp_path: Path, kind: str) -> None:
    """In a directory that all may write to, a stranger's file is not kept, and his link is not followed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.json").write_bytes(b"own")
    path = shared / "a.json"
    if "file" in kind:
        path.write_bytes(b"his")
        path.chmod(0o644 if kind == "readable file" else 0o600)
    elif kind == "link on the way":
        path = shared / "folder" / "a.json"
        path.parent.symlink_to(own)
        give(path.parent)
    else:
        path.symlink_to(own / ("a.json" if kind == "link" else "b.json"))
    if kind != "link on the way":
        give(path)
    with pytest.raises(PermissionError, match="another user") as caught:
        change(path)
    assert f"uid {STRANGER}" in str(caught.value)
    assert (own / "a.json").read_bytes() == b"own"
    assert names_in(own) == ["a.json"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def add(_: int) -> None:
        change_private(str(path), lambda old: old + b"x", limit=1000)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert path.read_bytes() == b"x" * 16


def test_a_lock_that_stays_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_file, "_LOCK_LIMIT", 0.0)
    path = tmp_path / "a.json"
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is changing it"):
            change(path)
    finally:
        os.close(held)
    assert change(path) == [b""]
