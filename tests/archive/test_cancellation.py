"""Every suspension, interrupted in every way: afterwards the writer is in the state that its table names."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import pytest

from aiodockersave import ContentError, DigestMismatchError, open_archive
from aiodockersave._aio import Worker
from aiodockersave.blobs import staging, transfer
from aiodockersave.sinks import adapters, atomic_file
from tests.support.images import archive_of, make_image, make_layer
from tests.support.interruption import (
    WAYS,
    Driver,
    Way,
    by_cancel_scope,
    by_task_cancel,
    by_task_cancel_when_ready,
)
from tests.support.scenario import (
    SUSPENSIONS_AFTER,
    Chunks,
    CountingSink,
    FakeSink,
    PartialSink,
    PatchableSink,
    RewindingSink,
    Scenario,
    UnrewindableSink,
    reference_of,
    use_small_limits,
)

P = ParamSpec("P")
T = TypeVar("T")

MakeSink = Callable[[], FakeSink]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_limits(monkeypatch)


async def interrupt_everywhere(
    way: Way, make_sink: MakeSink, *, twice: bool = False, may_finish: int = 1, **options: Any
) -> None:
    """Run the scenario once per suspension, and interrupt it there."""
    reference = await reference_of(make_sink, **options)
    for at in range(1, reference.suspensions + 1):
        scenario = Scenario(make_sink(), reference, **options)
        driver = Driver(at, twice=twice, on_hit=scenario.on_fault)
        try:
            await asyncio.create_task(way(driver, scenario.run))  # whose cancels are its own
            assert scenario.error is not None or at > reference.suspensions - may_finish
            assert driver.suspensions_after <= SUSPENSIONS_AFTER
            await scenario.check()
        except BaseException as exc:
            exc.add_note(
                f"interrupted at suspension {at} of {reference.suspensions}, in step {scenario.step}"
            )
            raise


@pytest.mark.parametrize("make_sink", [RewindingSink, FakeSink])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS)
async def test_every_suspension(way: Way, twice: bool, make_sink: MakeSink) -> None:
    await interrupt_everywhere(way, make_sink, twice=twice)


# What makes a writer take other ways: other powers of the sink, other options.
OTHER_WAYS: dict[str, tuple[MakeSink, dict[str, Any]]] = {
    "sink-takes-less": (PartialSink, {}),
    "sink-counts-what-it-handed-over": (CountingSink, {}),
    "header-last": (PatchableSink, {}),
    "header-last-read-back": (PatchableSink, {"checksum": True}),
    "header-last-decompress": (PatchableSink, {"layers": "decompress", "compression": "gzip"}),
    "decompress": (RewindingSink, {"layers": "decompress", "compression": "gzip"}),
    "decompress-no-rewind": (FakeSink, {"layers": "decompress", "compression": "zstd"}),
    "checksum": (RewindingSink, {"checksum": True}),
    "checksum-no-rewind": (FakeSink, {"checksum": True}),
    "oci": (RewindingSink, {"format": "oci"}),
    "oci-no-rewind": (FakeSink, {"format": "oci"}),
    "oci-header-last": (PatchableSink, {"format": "oci"}),
    "staged-in-a-file": (RewindingSink, {"stage_memory": 3000}),
    "staged-in-a-file-no-rewind": (FakeSink, {"stage_memory": 3000}),
}


@pytest.mark.parametrize(("make_sink", "options"), OTHER_WAYS.values(), ids=OTHER_WAYS.keys())
async def test_every_suspension_of_other_ways(make_sink: MakeSink, options: dict[str, Any]) -> None:
    await interrupt_everywhere(by_task_cancel, make_sink, **options)


# A cancel scope differs where something is waited out: a rewind, a patch, a file.
@pytest.mark.parametrize("name", ["header-last-read-back", "decompress", "checksum", "staged-in-a-file"])
async def test_every_suspension_of_other_ways_by_a_cancel_scope(name: str) -> None:
    make_sink, options = OTHER_WAYS[name]
    await interrupt_everywhere(by_cancel_scope, make_sink, **options)


@pytest.mark.parametrize("make_sink", [RewindingSink, FakeSink])
async def test_every_suspension_when_what_is_waited_for_is_ready(make_sink: MakeSink) -> None:
    await interrupt_everywhere(by_task_cancel_when_ready, make_sink)


async def test_every_suspension_where_the_rewind_fails() -> None:
    await interrupt_everywhere(by_task_cancel, UnrewindableSink)


# ── faults of sources and sinks ──


class SourceError(Exception):
    """The error that a content raises."""


def _flipped(chunk: bytes | BaseException) -> bytes:
    assert isinstance(chunk, bytes)
    return bytes((chunk[0] ^ 1,)) + chunk[1:]


# How the content goes wrong at its n-th chunk, and what comes of it.
FAULTS: dict[str, tuple[Callable[[Chunks, int], Chunks], type[Exception]]] = {
    "source-raises": (lambda chunks, at: [*chunks[:at], SourceError(), *chunks[at:]], SourceError),
    "wrong-digest": (
        lambda chunks, at: [*chunks[:at], _flipped(chunks[at]), *chunks[at + 1 :]],
        DigestMismatchError,
    ),
    "short": (lambda chunks, at: chunks[:at], ContentError),
    "long": (lambda chunks, at: [*chunks[:at], b"+", *chunks[at:]], ContentError),
}


@pytest.mark.parametrize("make_sink", [RewindingSink, FakeSink, PatchableSink])
@pytest.mark.parametrize(("fault", "error"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_content_that_fails_at_every_chunk(
    fault: Callable[[Chunks, int], Chunks], error: type[Exception], make_sink: MakeSink
) -> None:
    reference = await reference_of(make_sink)
    for spoilt, count in enumerate(reference.contents):
        for at in range(count):

            def spoil(number: int, chunks: Chunks, spoilt: int = spoilt, at: int = at) -> Chunks:
                return fault(chunks, at) if number == spoilt else chunks

            scenario = Scenario(make_sink(), reference, spoil=spoil)
            with pytest.raises(error):
                await scenario.run()
            await scenario.check()


@pytest.mark.parametrize("make_sink", [RewindingSink, FakeSink, PatchableSink, PartialSink])
async def test_a_sink_that_fails_at_every_write(make_sink: MakeSink) -> None:
    reference = await reference_of(make_sink)
    for at in range(1, reference.writes + 1):
        sink = make_sink()
        sink.fail_at = at
        scenario = Scenario(sink, reference)
        with pytest.raises(OSError, match="no space left in the fake"):
            await scenario.run()
        await scenario.check()


# ── real files, real threads ──


class CountingWorker(Worker):
    """A real thread; counts the calls that are under way in all of them."""

    unfinished: ClassVar[int] = 0
    _lock = threading.Lock()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        def counted() -> T:
            try:
                return call(*args, **kwargs)
            finally:
                self._count(-1)

        self._count(1)
        return super().submit(counted)

    def _count(self, change: int) -> None:
        with self._lock:
            CountingWorker.unfinished += change


@pytest.fixture
def _real_threads(monkeypatch: pytest.MonkeyPatch, _small_limits: None) -> None:
    for room in (atomic_file, transfer, adapters, staging):
        monkeypatch.setattr(room, "Worker", CountingWorker)


MOMENTS = 200
IMAGES = [
    make_image(
        *(make_layer(random.Random(f"{image} {layer}").randbytes(5000), "gzip") for layer in range(2)),
        repo_tags=[f"example.com/app:{image}"],
    )
    for image in range(2)
]


async def save_images(path: Path, **options: Any) -> None:
    try:
        async with open_archive(path, stage_memory=3000, **options) as archive:
            for image in IMAGES:
                for number, layer in enumerate(image.layers):
                    content = partial(slow_chunks, layer.blob)
                    await archive.put_layer(
                        content, layer.descriptor, diff_id=layer.diff_id, stage=number == 0
                    )
                await archive.put_image(image.config, image.manifest, image.repo_tags)
    finally:
        assert CountingWorker.unfinished == 0, "a thread still works for a call that has ended"


async def slow_chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 700):
        await asyncio.sleep(0)
        yield data[start : start + 700]


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.usefixtures("_real_threads")
async def test_two_hundred_moments_on_real_files(tmp_path: Path, layers: str) -> None:
    whole = await archive_of(IMAGES, layers=layers)
    counting = Driver()
    await counting.drive(save_images(tmp_path / "app.tar", layers=layers))
    assert (tmp_path / "app.tar").read_bytes() == whole
    chance = random.Random(layers)
    for moment in range(MOMENTS // 2):
        old = chance.choice([None, b"the old archive"])
        await interrupt_one_save(tmp_path / f"{moment}.tar", old, whole, chance, counting.suspensions, layers)


async def interrupt_one_save(
    path: Path, old: bytes | None, whole: bytes, chance: random.Random, suspensions: int, layers: str
) -> None:
    if old is not None:
        path.write_bytes(old)
    way = chance.choice((*WAYS, by_task_cancel_when_ready))
    driver = Driver(chance.randint(1, suspensions), twice=chance.random() < 0.5)
    await asyncio.create_task(
        way(driver, partial(save_images, path, layers=layers, fsync=chance.random() < 0.2))
    )
    found = path.read_bytes() if path.exists() else None
    assert found in ({old, whole} if driver.thrown else {whole})
    assert [entry.name for entry in path.parent.glob(f".{path.name}.*")] == []
