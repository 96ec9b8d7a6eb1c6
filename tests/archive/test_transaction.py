"""Where bytes go in an archive: pieces, headers written last, layers above 8 GiB, checksums, and how it is undone."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import ArchiveWriter, ContentError, Digest, SinkError, open_archive, plan_archive
from aiodockersave.archive import transaction as output
from aiodockersave.archive.transaction import OneBatch, Output, Transaction, check_promise
from aiodockersave.blobs.content import MAX_BATCH_SIZE
from aiodockersave.core import tar
from aiodockersave.core.docker_archive import Addition, blob_member
from aiodockersave.sinks import adapters
from aiodockersave.sinks.protocol import Adapter
from tests.sinks.test_adapters import ROOT, is_open
from tests.support.images import Layer, ListSink, MemorySink, archive_of, make_image, make_layer, put

RANDOM = random.Random(4)
SMALL = make_layer(b"small", None)
LARGE = make_layer(RANDOM.randbytes(2_500_000), "gzip")
IMAGE = make_image(SMALL, LARGE, repo_tags=["example.com/app:1.0"])


class RewindSink(ListSink):
    """Can take back what was written, and nothing else."""

    def rewind(self, position: int, /) -> None:
        self.writes = [b"".join(self.writes)[:position]]


class UnreadableSink(MemorySink):
    """Can rewind and patch; cannot be read."""

    read = None  # type: ignore[assignment]

    def move(self, source: int, target: int, size: int, /) -> None:
        self.patch(target, bytes(self.data[source : source + size]))


# ── powers ──


@pytest.mark.parametrize(
    ("sink", "checksum", "can_rewind", "can_patch"),
    [
        (ListSink, False, False, False),
        (RewindSink, False, True, False),
        (RewindSink, True, True, False),
        (MemorySink, False, True, True),
        (MemorySink, True, True, True),
    ],
)
async def test_powers(sink: type[Any], checksum: bool, can_rewind: bool, can_patch: bool) -> None:
    found = Output(sink(), checksum=checksum)
    assert (found.can_rewind, found.can_patch) == (can_rewind, can_patch)


async def test_a_sink_may_say_how_much_it_handed_over_and_has_promised() -> None:
    class Promising(ListSink, Adapter):
        handed_over = 5
        expected_size = 100

    found = Output(Promising(), checksum=False)
    assert (found.handed_over, found.expected_size) == (5, 100)
    check_promise(found, 100)
    with pytest.raises(SinkError, match="the archive has 99 bytes, but the response promises 100"):
        check_promise(found, 99)

    class Odd(ListSink):
        handed_over = "no number"
        expected_size = None

    found = Output(Odd(), checksum=False)
    assert (found.handed_over, found.expected_size) == (None, None)


# ── pieces ──


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ([0], []),
        ([1], [1]),
        ([512, MAX_BATCH_SIZE, 100], [MAX_BATCH_SIZE + 612]),
        ([MAX_BATCH_SIZE + MAX_BATCH_SIZE // 2], [MAX_BATCH_SIZE + MAX_BATCH_SIZE // 2]),
        ([MAX_BATCH_SIZE + MAX_BATCH_SIZE // 2 + 1], [MAX_BATCH_SIZE, MAX_BATCH_SIZE // 2 + 1]),
        ([3 * MAX_BATCH_SIZE, 7], [MAX_BATCH_SIZE, MAX_BATCH_SIZE, MAX_BATCH_SIZE + 7]),
    ],
)
async def test_what_is_written_is_joined_and_cut(sizes: list[int], pieces: list[int]) -> None:
    sink = ListSink()
    transaction = Transaction(Output(sink, checksum=True))
    parts = [RANDOM.randbytes(size) for size in sizes]
    await transaction.write(*parts, last=True)
    assert [len(data) for data in sink.writes] == pieces
    assert sink.getvalue() == b"".join(parts)
    assert transaction.cursor == sum(sizes)
    assert await transaction.checksum() == Digest.of(b"".join(parts))
    await transaction.close()


async def test_a_transaction_is_touched_by_its_first_write() -> None:
    sink = RewindSink()
    transaction = Transaction(Output(sink, checksum=False))
    touched = [transaction.touched]
    assert await transaction.undo(ContentError())  # nothing to do
    await transaction.write(b"data")
    touched.append(transaction.touched)
    assert await transaction.undo(ContentError())
    touched.append(transaction.touched)
    assert touched == [False, True, False]
    assert transaction.cursor == 0
    assert sink.getvalue() == b""
    await transaction.close()


async def test_a_commit_says_where_the_members_are() -> None:
    found = Output(ListSink(), checksum=False)
    member = blob_member("layer.tar", SMALL.diff_id, 5)
    for number in range(2):
        transaction = Transaction(found)
        await transaction.write_data(member.header, b"small", OneBatch(b"small"), pad=True)
        transaction.commit(Addition((member,)))
        assert found.position == 1024 * (number + 1)
    assert [(member.offset, member.data_offset, member.size) for member in found.members] == [
        (0, 512, 5),
        (1024, 1536, 5),
    ]
    assert await OneBatch(b"small").next() == b"small"


async def test_a_sink_that_cannot_rewind_is_not_undone() -> None:
    transaction = Transaction(Output(ListSink(), checksum=False))
    await transaction.write(b"data")
    assert not await transaction.undo(ContentError())


async def test_a_rewind_that_fails_is_a_note() -> None:
    class Stuck(RewindSink):
        def rewind(self, position: int, /) -> None:
            raise OSError("stuck")

    transaction = Transaction(Output(Stuck(), checksum=False))
    await transaction.write(b"data")
    fault = ContentError("first")
    assert not await transaction.undo(fault)
    assert fault.__notes__ == ["the archive could not be rewound: OSError: stuck"]


async def test_only_what_can_do_it_is_patched_and_read() -> None:
    found = Output(ListSink(), checksum=True)
    with pytest.raises(AssertionError, match="cannot be patched"):
        await Transaction(found).patch_head(512, bytes(512), 5)
    with pytest.raises(AssertionError, match="cannot be read"):
        await found.read_back(0)


# ── a header written last ──


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("known", ["known", "size unknown", "unknown"])
@pytest.mark.parametrize(
    "sink", [MemorySink, ListSink, RewindSink], ids=["patched", "staged", "staged, rewinds"]
)
@pytest.mark.parametrize("checksum", [False, True], ids=["", "checksum"])
async def test_headers_last_give_the_same_bytes(
    layers: Any, known: str, sink: type[Any], checksum: bool
) -> None:
    target = sink()
    async with ArchiveWriter(target, layers=layers, checksum=checksum) as archive:
        for layer in IMAGE.layers:
            descriptor = {
                "known": layer.descriptor,
                "size unknown": replace(layer.descriptor, size=None),
                "unknown": None,
            }[known]
            stored = await archive.put_layer(layer.blob, descriptor)
            assert stored == (layer.plain_descriptor if layers == "decompress" else layer.descriptor)
        await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)
    expected = await archive_of([IMAGE], layers=layers)
    assert target.getvalue() == expected
    assert archive.report is not None
    assert archive.report.sha256 == (Digest.of(expected) if checksum else None)
    assert archive.report.size == len(expected)


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("checksum", [False, True], ids=["", "checksum"])
async def test_an_unknown_layer_that_is_in_already_is_taken_back(layers: Any, checksum: bool) -> None:
    sink = MemorySink()
    async with ArchiveWriter(sink, layers=layers, checksum=checksum) as archive:
        first = await archive.put_layer(LARGE.blob, LARGE.descriptor)
        size = len(sink.data)
        assert await archive.put_layer(LARGE.blob) == first
        assert len(sink.data) == size
        await archive.put_layer(SMALL.blob)
        await archive.put_image(IMAGE.config, IMAGE.manifest)
    assert archive.report is not None
    assert len([member for member in archive.report.members if member.name.endswith((".tar", ".gz"))]) == 4
    assert archive.report.sha256 == (Digest.of(sink.getvalue()) if checksum else None)


async def test_a_second_copy_that_cannot_be_taken_back_breaks_the_archive() -> None:
    class Stuck(MemorySink):
        def rewind(self, position: int, /) -> None:
            raise OSError("stuck")

    archive = ArchiveWriter(Stuck())
    await archive.put_layer(LARGE.blob, LARGE.descriptor)
    with pytest.raises(SinkError, match="its second copy cannot be taken back") as caught:
        await archive.put_layer(LARGE.blob)
    assert "the archive could not be rewound: OSError: stuck" in caught.value.__notes__
    assert not is_open(archive)


async def test_a_sink_that_cannot_be_read_is_patched_unless_a_checksum_is_wanted() -> None:
    for checksum in (False, True):
        sink = UnreadableSink()
        archive = ArchiveWriter(sink, layers="decompress", checksum=checksum)
        await put(archive, IMAGE)
        await archive.close()
        assert sink.getvalue() == await archive_of([IMAGE], layers="decompress")


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_the_checksum_is_that_of_the_file(known: bool, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with path.open("w+b", buffering=0) as file:
        archive = ArchiveWriter(file, checksum=True)
        await archive.put_layer(LARGE.blob, LARGE.descriptor if known else None)
        await archive.put_layer(SMALL.blob, SMALL.descriptor)
        await archive.close()
    assert archive.report is not None
    assert archive.report.sha256 == Digest.of(path.read_bytes())


# ── layers of 8 GiB and more ──


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sizes above 100,000 bytes need PAX, and moves be of odd steps."""
    monkeypatch.setattr(tar, "MAX_OCTAL_SIZE", 100_000)
    monkeypatch.setattr(output, "_MOVE_SIZE", 300_007)
    monkeypatch.setattr(adapters, "_MOVE_SIZE", 65_537)


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("sink", ["wb", "w+b", "open_archive", MemorySink, ListSink])
async def test_a_size_beyond_octal(layers: Any, known: bool, sink: Any, tmp_path: Path) -> None:
    path = tmp_path / "archive"

    async def write(archive: ArchiveWriter) -> None:
        for layer in IMAGE.layers:
            await archive.put_layer(layer.blob, layer.descriptor if known else None)
        await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)

    if sink == "open_archive":
        async with open_archive(path, layers=layers, checksum=True) as archive:
            await write(archive)
        data = path.read_bytes()
    elif isinstance(sink, str):
        with path.open(sink) as file:
            async with ArchiveWriter(file, layers=layers, checksum=True) as archive:
                await write(archive)
        data = path.read_bytes()
    else:
        target = sink()
        async with ArchiveWriter(target, layers=layers, checksum=True) as archive:
            await write(archive)
        data = target.getvalue()
    assert archive.report is not None
    assert archive.report.sha256 == Digest.of(data)
    assert archive.report.size == len(data)
    _check_large(data, LARGE, layers)
    if layers == "keep":
        plan = plan_archive([IMAGE.spec])
        assert (plan.size, plan.members) == (len(data), archive.report.members)


@pytest.mark.usefixtures("low_limit")
async def test_a_move_minds_what_is_behind_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"." * 10_000_000)
    with path.open("r+b") as file:
        file.seek(1000)
        async with ArchiveWriter(file) as archive:
            await archive.put_layer(SMALL.blob)
            await archive.put_layer(LARGE.blob)
            await archive.put_image(IMAGE.config, IMAGE.manifest, IMAGE.repo_tags)
    expected = await archive_of([IMAGE])
    assert path.read_bytes() == b"." * 1000 + expected + b"." * (10_000_000 - 1000 - len(expected))


def _check_large(data: bytes, layer: Layer, layers: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (member,) = (each for each in archive if each.size > 100_000)
        assert set(member.pax_headers) == {"size"}
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == (layer.plain if layers == "decompress" else layer.blob)


@pytest.mark.usefixtures("low_limit")
async def test_a_fault_in_a_move_is_rewound() -> None:
    class Failing(MemorySink):
        fails = True

        def move(self, source: int, target: int, size: int, /) -> None:
            super().move(source, target, size)
            if self.fails:
                raise OSError("full")

    sink = Failing()
    archive = ArchiveWriter(sink)
    with pytest.raises(OSError, match="full"):
        await archive.put_layer(LARGE.blob)
    assert is_open(archive)
    assert not sink.data
    sink.fails = False
    await archive.put_layer(LARGE.blob)
    await archive.close()
    _check_large(sink.getvalue(), LARGE, "keep")


HUGE = """
import asyncio, hashlib, json, sys
from aiodockersave import ArchiveWriter, Descriptor, Digest

SIZE = 8 * 2**30 + 4096
BLOCK = bytes(2**20)
LAYER = "application/vnd.oci.image.layer.v1.tar"
kept, position = [], 0

async def write(data):
    global position
    if position < 4096 or position + len(data) > SIZE:
        kept.append((position, data))
    position += len(data)

async def source():
    for _ in range(SIZE // len(BLOCK)):
        yield BLOCK
    yield BLOCK[:SIZE % len(BLOCK)]

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))  # KiB

async def main():
    async with ArchiveWriter(write) as archive:
        await archive.put_layer(b"small")  # everything is imported
        idle = peak()
        await archive.put_layer(source(), Descriptor(LAYER, Digest.parse(sys.argv[1]), SIZE))
        busy = peak()
    member = archive.report.members[1]
    print(json.dumps({
        "name": member.name, "size": member.size, "offset": member.offset, "data_offset": member.data_offset,
        "total": archive.report.size, "written": position, "growth": busy - idle,
        "start": b"".join(data for _, data in kept if _ < 4096)[:4096].hex(),
        "end": kept[-1][1].hex(),
    }))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_layer_above_8_gib() -> None:
    size = 8 * 2**30 + 4096
    sha256 = hashlib.sha256()
    for _ in range(size // 2**20):
        sha256.update(bytes(2**20))
    sha256.update(bytes(size % 2**20))
    digest = Digest("sha256", sha256.hexdigest())
    command = [sys.executable, "-c", HUGE, str(digest)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=500, check=True)
    found = json.loads(run.stdout)
    assert found["name"] == f"{digest.encoded}.tar"
    assert (found["size"], found["offset"], found["data_offset"]) == (size, 1024, 1024 + 1536)
    assert found["total"] == found["written"]
    assert found["growth"] < 16 << 10  # KiB
    with tarfile.open(fileobj=io.BytesIO(bytes.fromhex(found["start"]))) as archive:
        assert archive.next() is not None
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.pax_headers) == (found["name"], size, {"size": str(size)})
    assert bytes.fromhex(found["end"]).endswith(bytes(1024))


def test_a_writer_can_be_made_before_the_loop_runs() -> None:
    sink = ListSink()
    archive = ArchiveWriter(sink)

    async def main() -> None:
        async with archive:
            await put(archive, IMAGE)

    asyncio.run(main())
    assert sink.getvalue() == asyncio.run(archive_of([IMAGE]))
