"""Blobs into their places: what is found there, what is written, and what becomes of a thread that helps."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import (
    ContentTooLargeError,
    DecompressionError,
    Descriptor,
    DigestMismatchError,
    SinkError,
    plan_archive,
)
from aiodockersave.blobs import placing
from aiodockersave.blobs.in_place import move_back, write_at, write_literals
from aiodockersave.blobs.open_file import OpenFile
from aiodockersave.blobs.placing import Crew, KeptBlob, Lane, PlainBlob, RegionFullError, Relay
from aiodockersave.core.model import MAX_EXPANSION, Limits
from tests.support.images import Compression, Layer, make_image, make_layer

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


@pytest.fixture(params=[1, 2], ids=["alone", "helped"])
def lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    crew = Crew(request.param)
    crew.busy = 1
    lane = Lane(crew)
    yield lane
    lane.close()


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "PIECE", 300)
    monkeypatch.setattr(placing, "_LAST_ZEROS", 50)


def content_of(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def batches(data: bytes, size: int = 400) -> list[list[bytes]]:
    """Cut into batches of two chunks."""
    return [[data[at : at + size // 2], data[at + size // 2 : at + size]] for at in range(0, len(data), size)]


# ── the file ──


def test_short_writes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    data = random_bytes(100)
    write_at(fd, data, START)
    write_at(fd, memoryview(data), START + 100)
    write_at(fd, b"", 1000)
    assert content_of(fd) == bytes(START) + data + data


@pytest.mark.parametrize("shift", [1, 100, 1024, 5000])
def test_moved_back(fd: int, shift: int) -> None:
    """Also where old and new place overlap."""
    data = random_bytes(1000)
    write_at(fd, data, START)
    move_back(shared(fd), START, shift, len(data))
    assert content_of(fd)[START + shift :] == data


def test_short_reads(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_bytes(1000)
    write_at(fd, data, START)
    pread = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
        move_back(shared(fd), START, 100, len(data))
    assert content_of(fd)[START + 100 :] == data


def test_a_file_that_was_cut_cannot_be_moved(fd: int) -> None:
    write_at(fd, b"x" * 50, START)
    with pytest.raises(SinkError, match="shorter than what was written to it, at byte 150"):
        move_back(shared(fd), START, 100, 51)


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
    for batch in batches(data):
        placement.take(batch)
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


# ── plain ──


def plain(
    fd: int | None, layer: Layer, lane: Lane, *, region: int | None = None, limit: int | None = None
) -> PlainBlob:
    file = None if fd is None else shared(fd)
    limits = Limits(limit, MAX_EXPANSION)
    return PlainBlob(file, START, layer.descriptor, layer.diff_id, lane, region=region, limits=limits)


def take_all(placement: PlainBlob, blob: bytes) -> int:
    try:
        for batch in batches(blob):
            placement.take(batch)
        return placement.finish()
    finally:
        placement.close()


KINDS: Sequence[Compression] = (None, "gzip", "zstd")
each_kind = pytest.mark.parametrize("kind", KINDS)
DATA = random_bytes(2000)


@each_kind
@pytest.mark.parametrize("region", [None, 2000, 2001])
def test_a_plain_blob(fd: int, lane: Lane, kind: Compression, region: int | None) -> None:
    layer = make_layer(DATA, kind, members=3)
    assert take_all(plain(fd, layer, lane, region=region), layer.blob) == 2000
    assert content_of(fd) == bytes(START) + DATA


@each_kind
def test_an_empty_one(fd: int, lane: Lane, kind: Compression) -> None:
    layer = make_layer(b"", kind)
    assert take_all(plain(fd, layer, lane), layer.blob) == 0
    assert content_of(fd) == b""


@each_kind
def test_one_that_is_only_verified(lane: Lane, kind: Compression) -> None:
    layer = make_layer(DATA, kind)
    assert take_all(plain(None, layer, lane), layer.blob) == 2000
    wrong = make_layer(DATA[1:], kind)
    with pytest.raises(DigestMismatchError):
        take_all(plain(None, layer, lane), wrong.blob)


@each_kind
@pytest.mark.parametrize("region", [0, 1, 300, 1999])
def test_a_region_that_is_too_small(fd: int, lane: Lane, kind: Compression, region: int) -> None:
    """Nothing is written behind it."""
    write_at(fd, b"\xff" * 5000, 0)
    layer = make_layer(DATA, kind)
    with pytest.raises(RegionFullError):
        take_all(plain(fd, layer, lane, region=region), layer.blob)
    assert content_of(fd)[START + region :] == b"\xff" * (5000 - START - region)


@each_kind
def test_a_limit(fd: int, lane: Lane, kind: Compression) -> None:
    layer = make_layer(DATA, kind)
    assert take_all(plain(fd, layer, lane, limit=2000), layer.blob) == 2000
    with pytest.raises(ContentTooLargeError):
        take_all(plain(fd, layer, lane, limit=1999), layer.blob)


@pytest.mark.parametrize("lane", [2], indirect=True, ids=["helped"])
def test_a_limit_where_the_disk_is_slow(fd: int, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that wait to be written count."""
    layer = make_layer(random_bytes(1000), None)
    may_write = threading.Event()
    pwrite = os.pwrite

    def write(fd: int, data: Any, offset: int) -> int:
        assert may_write.wait(LIMIT)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    placement = plain(fd, layer, lane, limit=999)
    try:
        placement.take([layer.blob[:500]])
        with pytest.raises(ContentTooLargeError):
            placement.take([layer.blob[500:]])
    finally:
        may_write.set()
        placement.close()


def with_descriptor(layer: Layer, blob: bytes) -> Layer:
    return Layer(blob, layer.plain, make_layer(blob, None).descriptor, layer.diff_id)


def test_wrong_in_either_way(fd: int, lane: Lane) -> None:
    layer, other = make_layer(DATA), make_layer(DATA[::-1])
    with pytest.raises(DigestMismatchError, match="diff ID"):
        take_all(plain(fd, with_descriptor(layer, other.blob), lane), other.blob)
    with pytest.raises(DigestMismatchError, match="blob"):
        take_all(plain(fd, layer, lane), make_layer(DATA, "zstd").blob)
    with pytest.raises(DecompressionError):
        take_all(plain(fd, layer, lane), layer.blob[:-1])


def test_an_error_of_the_disk_comes_out(fd: int, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: Any, offset: int) -> int:
        raise OSError("full")

    layer = make_layer(DATA, None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match="full"):
            take_all(plain(fd, layer, lane), layer.blob)
    assert take_all(plain(fd, layer, lane), layer.blob) == 2000  # its lane is as good as new
    assert content_of(fd)[START:] == DATA


def test_stopped_in_the_middle_of_a_bomb(fd: int, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(bytes(1 << 20))
    placement = plain(fd, layer, lane)
    pwrite = os.pwrite

    def write(fd: int, data: Any, offset: int) -> int:
        placement.stop()
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    placement.take([layer.blob])
    placement.close()
    assert os.fstat(fd).st_size <= START + 3 * placing._RELAY_DEPTH * placing.PIECE  # of a MiB


# ── a thread that helps ──


@pytest.fixture
def crew() -> Crew:
    return Crew(1)


@pytest.fixture
def relay(crew: Crew) -> Iterator[Relay]:
    relay = Relay("test", crew)
    yield relay
    relay.close()


def test_calls_are_made_in_order_by_one_thread(relay: Relay) -> None:
    calls: list[tuple[Any, str]] = []
    for number in range(20):
        relay.put(lambda data: calls.append((data, threading.current_thread().name)), bytes([number]))
    relay.finish()
    assert calls == [(bytes([number]), "aiodockersave-test") for number in range(20)]


def fail(_: object) -> None:
    raise ZeroDivisionError


def test_a_call_that_fails_is_told_and_the_last(relay: Relay) -> None:
    calls: list[object] = []
    relay.put(fail, b"")
    with pytest.raises(ZeroDivisionError):
        for _ in range(100):
            relay.put(calls.append, b"")
    with pytest.raises(ZeroDivisionError):
        relay.finish()
    assert calls == []
    relay.drop()
    relay.put(calls.append, b"x")
    relay.finish()
    assert calls == [b"x"]


def test_what_waits_is_dropped(relay: Relay) -> None:
    """And what the call that runs fails with as well."""
    is_running, may_end = threading.Event(), threading.Event()
    calls: list[object] = []

    def run(_: object) -> None:
        is_running.set()
        assert may_end.wait(LIMIT)
        raise ZeroDivisionError

    relay.put(run, b"")
    relay.put(calls.append, b"dropped")
    assert is_running.wait(LIMIT)
    dropping = threading.Thread(target=relay.drop)
    dropping.start()
    while not relay._is_dropping:
        pass
    may_end.set()
    dropping.join(LIMIT)
    relay.put(calls.append, b"next")
    relay.finish()
    assert calls == [b"next"]


def test_where_no_processor_is_left_a_call_is_made_at_once(crew: Crew, relay: Relay) -> None:
    calls: list[tuple[Any, str]] = []

    def note(data: bytes) -> None:
        time.sleep(0.001)  # the next one would be quicker
        calls.append((data, threading.current_thread().name))

    here = threading.current_thread().name
    for number in range(20):
        crew.busy = number // 5 % 2
        relay.put(note, bytes([number]))
        if crew.busy:
            assert calls[-1] == (bytes([number]), here)
    relay.finish()
    assert [data for data, _ in calls] == [bytes([number]) for number in range(20)]
    assert [name for _, name in calls] == (["aiodockersave-test"] * 5 + [here] * 5) * 2
    crew.busy = 1
    with pytest.raises(ZeroDivisionError):
        relay.put(fail, b"")
    relay.finish()  # it was told


def test_a_call_is_not_made_behind_one_that_failed(crew: Crew, relay: Relay) -> None:
    calls: list[object] = []
    relay.put(fail, b"")
    crew.busy = 1
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            relay.put(calls.append, b"")
    assert calls == []


def test_nothing_is_begun_for_nothing(relay: Relay) -> None:
    before = threading.active_count()
    relay.finish()
    relay.drop()
    relay.close()
    assert threading.active_count() == before


def test_one_that_is_closed_ends(relay: Relay) -> None:
    before = threading.active_count()
    for _ in range(2):
        relay.put(lambda _: None, b"")
        assert threading.active_count() == before + 1
        relay.close()
        assert threading.active_count() == before
        relay._is_dropping = False  # as in a new one


def test_one_that_nobody_has_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an interrupt came between two lines, and nobody could close it."""
    monkeypatch.setattr(placing, "_LOOK_AGAIN", 0.01)
    before = set(threading.enumerate())
    relay = Relay("test", Crew(1))
    relay.put(lambda _: None, b"")
    (thread,) = set(threading.enumerate()) - before
    del relay
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_a_thread_that_cannot_start(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Refusing)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            relay.put(lambda _: None, b"")
    relay.finish()  # nothing is waited for


def test_a_descriptor_without_a_size(fd: int) -> None:
    descriptor = make_layer(b"", None).descriptor
    placement = KeptBlob(shared(fd), 0, Descriptor(descriptor.media_type, descriptor.digest, None))
    assert placement.find() == 0
    assert placement.is_whole()
