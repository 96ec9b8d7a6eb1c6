"""Blobs into their places: what is found there, what is written, and what becomes of a thread that helps."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiodockersave import (
    Descriptor,
    DigestMismatchError,
    SinkError,
    plan_archive,
)
from aiodockersave.blobs import placing
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.blobs.placing import KeptBlob, write_at, write_literals
from tests.support.images import make_image, make_layer

LIMIT = 60.0  # seconds for anything that is waited for
START = 100  # where the place is in the file


_shared: list[OpenFile] = []


def shared(fd: int) -> OpenFile:
    """Return a file for threads, which is closed with the test's own descriptor."""
    _shared.append(OpenFile(os.dup(fd)))
    return _shared[-1]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    while _shared:
        _shared.pop().close()
    os.close(fd)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "PIECE", 300)
    monkeypatch.setattr(placing, "_LAST_ZEROS", 50)


def content_of(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# ── the file ──


def test_short_writes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    data = random_bytes(100)
    write_at(fd, data, START)
    write_at(fd, memoryview(data), START + 100)
    write_at(fd, b"", 1000)
    assert content_of(fd) == bytes(START) + data + data


def test_what_is_no_blobs(fd: int) -> None:
    image = make_image(make_layer(b"x" * 600, None))
    plan = plan_archive([image.spec])
    write_at(fd, b"x" * (plan.size + 10), 0)
    write_literals(shared(fd), plan.segments, plan.size)
    there = content_of(fd)
    assert len(there) == plan.size
    for segment in plan.segments:
        expected = segment.data if segment.data is not None else b"x" * 600
        assert there[segment.offset :][: segment.size] == expected


# ── kept ──


def kept(fd: int, data: bytes) -> KeptBlob:
    return KeptBlob(shared(fd), START, make_layer(data, None).descriptor)


def test_a_kept_blob(fd: int) -> None:
    data = random_bytes(1001)
    placement = kept(fd, data)
    for at in range(0, len(data), 400):
        placement.take([data[at : at + 200], data[at + 200 : at + 400]])
    assert placement.finish() == placement.position == 1001
    placement.stop()
    placement.close()
    assert content_of(fd) == bytes(START) + data


def test_a_kept_blob_that_is_wrong(fd: int) -> None:
    placement = kept(fd, random_bytes(1001))
    placement.take([random_bytes(1000)])
    with pytest.raises(DigestMismatchError, match="blob"):
        placement.finish()


@pytest.mark.parametrize("zeros", [0, 1, 49, 50, 51, 299, 300, 301, 700])
@pytest.mark.parametrize("there", [0, 1, 299, 300, 301, 1001])
@pytest.mark.parametrize("behind", [0, 2000], ids=["its end", "more behind it"])
def test_what_is_found(fd: int, there: int, zeros: int, behind: int) -> None:
    """All up to the last byte that is not zero, and nothing of what is behind the blob."""
    data = b"x" * there + bytes(zeros)
    write_at(fd, data, START)
    if behind:
        write_at(fd, b"next", START + len(data))
    assert kept(fd, data).find() == there


@pytest.mark.parametrize("size", [0, 50, START])
def test_a_file_that_ends_before_the_blob(fd: int, size: int) -> None:
    write_at(fd, b"x" * size, 0)
    assert kept(fd, b"data").find() == 0


@pytest.mark.parametrize("zeros", [0, 1, 49, 50, 51])
def test_whether_it_is_whole(fd: int, zeros: int) -> None:
    """A few zeros at the end are taken for its own where the digest says so, and are there then."""
    data = random_bytes(700) + b"x" + bytes(zeros)
    write_at(fd, data[:701], START)
    placement = kept(fd, data)
    placement.read_back(placement.find())
    assert placement.is_whole() == (zeros <= 50)
    if zeros <= 50:
        assert content_of(fd)[START:] == data
        assert placement.finish() == len(data)
    else:  # and it can be gone on with
        placement.take([bytes(zeros)])
        assert placement.finish() == len(data)


def test_what_is_wrong_is_not_whole(fd: int) -> None:
    data = random_bytes(700) + b"x"
    write_at(fd, b"y" + data[1:], START)
    placement = kept(fd, data)
    placement.read_back(701)
    assert not placement.is_whole()


def test_a_file_that_is_cut_while_it_is_read(fd: int) -> None:
    write_at(fd, b"x" * 500, START)
    placement = kept(fd, b"x" * 1000)
    with pytest.raises(SinkError, match="cut while it was read"):
        placement.read_back(501)


def test_a_descriptor_without_a_size(fd: int) -> None:
    descriptor = make_layer(b"", None).descriptor
    placement = KeptBlob(shared(fd), 0, Descriptor(descriptor.media_type, descriptor.digest, None))
    assert placement.find() == 0
    assert placement.is_whole()
