from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.sinks.adapters import target_sink
from tests.support.interruption import Interrupting


@pytest.fixture
def fd(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as exc:
        assert exc.errno == errno.EBADF
        return False
    return True


def test_closed_behind_the_last_use(fd: int) -> None:
    file = OpenFile(fd)
    with file as first:
        with file as second:
            assert first == second == fd
            file.close()
        assert is_open(fd)
    assert not is_open(fd)
    file.close()  # does nothing


def test_no_use_of_a_closed_file(fd: int) -> None:
    file = OpenFile(fd)
    with file:
        file.close()
        with pytest.raises(OSError, match="closed meanwhile"), file:
            pass
        assert is_open(fd)
    assert not is_open(fd)


def test_an_interrupt_of_the_owner_leaves_no_use(tmp_path: Path) -> None:
    """A signal handler may raise at each line of what the main thread does with a file: it is closed all the same."""
    at, is_passed = 0, False
    while not is_passed:
        at += 1
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        file = OpenFile(fd)
        interrupting = Interrupting(at)
        is_passed = interrupting.is_passed_by(partial(target_sink, file))
        file.close()
        assert not is_open(fd), interrupting.where
    assert at > 6
