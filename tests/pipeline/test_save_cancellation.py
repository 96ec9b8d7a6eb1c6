"""A whole save, interrupted at every suspension of every task that it starts.

``save`` reads several blobs at once, each in a task of its own, so there are more suspensions than those of the task
that called it. At each of them the caller is cancelled. Afterwards the target is the old one or whole, and nothing is
left: no task, no file, no open blob, no call in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from blockbuster import BlockBuster

from aiodockersave import Digest, _aio, save
from aiodockersave.archive import transaction
from aiodockersave.blobs import file_region, staging, transfer
from aiodockersave.pipeline import prefetch, resolve, saving, to_file
from aiodockersave.sinks import adapters, atomic_file
from tests.support.images import Image, ListSink, MemorySink, archive_of, make_image, make_layer
from tests.support.interruption import (
    TasksDriver,
    TickWorker,
    Way,
    by_cancel_scope,
    by_task_cancel,
    by_task_cancel_when_ready,
    by_timeout,
    outcome_of,
)
from tests.support.scenario import SUSPENSIONS_AFTER
from tests.support.stores import EarlyStore, Store

T = TypeVar("T")

LIMIT = 60.0  # seconds for anything that is waited for
OLD = b"the archive that was here before"
ROOMS = (_aio, atomic_file, prefetch, transfer, to_file, transaction, resolve, saving, adapters, staging)


IMAGE = make_image(make_layer(b"one" * 400, None), make_layer({"two": b"2"}), repo_tags=["a:1"])
TWO = make_image(IMAGE.layers[0], make_layer(b"3" * 512), author="two", repo_tags=["b:2"])


@dataclass
class Case:
    """One kind of save.

    Attributes:
        name: The test's id.
        options: Those of ``save``.
        make_sink: Makes a sink of the caller's; None for a path.
        images: What is saved.
        new_store: Where it comes from.
    """

    name: str
    options: dict[str, Any]
    make_sink: Callable[[], Any] | None = None
    images: dict[str, Image] = field(default_factory=lambda: {"one": IMAGE})
    new_store: Callable[..., Store] = Store

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("keep", {"jobs": 2}),
    Case("keep, one job", {"jobs": 1}),
    Case("keep, several images", {"jobs": 3}, images={"one": IMAGE, "two": TWO}),
    Case("resume", {"jobs": 2, "resume": True}),
    Case("decompress", {"jobs": 2, "layers": "decompress"}),
    Case("decompress, one job", {"jobs": 1, "layers": "decompress"}),
    Case("fsync and checksum", {"jobs": 2, "fsync": True, "checksum": True}),
    Case("asked early", {"jobs": 2}, new_store=partial(EarlyStore, rounds=3)),
    Case(
        "asked early, decompress",
        {"jobs": 2, "layers": "decompress"},
        new_store=partial(EarlyStore, rounds=3),
    ),
    Case("asked early, into a stream", {"jobs": 2}, ListSink, new_store=partial(EarlyStore, rounds=3)),
    Case("into a stream", {"jobs": 2}, ListSink),
    Case("into a stream, decompressed", {"jobs": 2, "layers": "decompress"}, ListSink),
    Case("into a sink with powers", {"jobs": 2, "layers": "decompress"}, MemorySink),
]


@pytest.fixture(autouse=True)
def _small_and_on_one_thread(monkeypatch: pytest.MonkeyPatch, nothing_blocks: BlockBuster) -> Iterator[None]:
    """Several batches for each blob, and threads that are none: the same run twice is the same run."""
    nothing_blocks.deactivate()  # what a thread would do is done by the loop
    for room in ROOMS:
        monkeypatch.setattr(room, "Worker", partial(TickWorker, ticks=2))
    monkeypatch.setattr(file_region, "BATCH_SIZE", 600)
    monkeypatch.setattr(file_region, "PIECE", 2000)
    monkeypatch.setattr(saving, "_PORTION", 1000)
    yield
    assert TickWorker.unfinished == 0


class Desk:
    """A folder with an old archive, and saves that replace it, or write into a sink."""

    def __init__(self, folder: Path, case: Case, whole: bytes) -> None:
        self.target = folder / "a.tar"
        self.case = case
        self.whole = whole
        self.sink = case.make_sink() if case.make_sink else None
        self.store = case.new_store(case.images, chunk_size=60)
        self.has_ended = False
        self.raised: BaseException | None = None
        if self.sink is None:
            self.target.write_bytes(OLD)

    async def save(self) -> None:
        tasks = asyncio.all_tasks()
        options: dict[str, Any] = {"fsync": False, "progress": lambda _: None} | self.case.options
        try:
            await save(self.store.requests(), self.target if self.sink is None else self.sink, **options)
        except BaseException as exc:
            self.raised = exc
            raise
        finally:
            # As it is in the moment in which the call ends.
            self.has_ended = True
            assert asyncio.all_tasks() - tasks == set()
            assert TickWorker.unfinished == 0
            assert self.store.open_now == 0

    def check(self) -> bool:
        """Look at what is there, and tell whether it is whole."""
        if self.sink is not None:
            data = self.sink.getvalue()
            assert self.whole.startswith(data)
            return bool(data == self.whole)
        data = self.target.read_bytes()
        assert data in (OLD, self.whole)
        names = {path.name for path in self.target.parent.iterdir()} - {"a.tar"}
        if self.case.options.get("resume") and data == OLD:
            assert all(name.endswith(".part") for name in names)
            notes = getattr(self.raised, "__notes__", [])
            assert bool(names) == any("is kept in" in note for note in notes)
        else:
            assert names == set()
        return data == self.whole


async def interrupt_everywhere(case: Case, way: Way, folder: Path, *, twice: bool) -> None:
    whole = await archive_of(case.images.values(), layers=case.options.get("layers", "keep"))
    outcomes = set()
    at = 0
    while True:
        at += 1
        desk = Desk(folder, case, whole)
        driver = TasksDriver(at, twice=twice)
        try:
            async with asyncio.timeout(LIMIT):
                await asyncio.create_task(way(driver, desk.save))
            assert desk.has_ended
            is_whole = desk.check()
            assert driver.suspensions_after <= SUSPENSIONS_AFTER
            assert is_whole or driver.thrown, "it has ended, and the archive is not there"
            if case.options.get("resume") and not is_whole:
                await desk.save()
                assert desk.check()
        except BaseException as exc:
            exc.add_note(f"interrupted at suspension {at} of {driver.suspensions}")
            raise
        outcomes.add(is_whole)
        if driver.suspensions < at:
            break
    assert outcomes == {False, True}
    assert at > 20


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", [by_task_cancel, by_timeout, by_cancel_scope])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_every_suspension_of_every_task(case: Case, way: Way, twice: bool, tmp_path: Path) -> None:
    try:
        await interrupt_everywhere(case, way, tmp_path, twice=twice)
    finally:
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("way", [by_task_cancel, by_timeout])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_every_suspension_where_nobody_uses_anyio(
    case: Case, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There can be no cancel scope then, and none is made."""
    monkeypatch.delitem(sys.modules, "anyio")
    try:
        await interrupt_everywhere(case, way, tmp_path, twice=True)
    finally:
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_every_suspension_when_what_is_waited_for_is_ready(case: Case, tmp_path: Path) -> None:
    try:
        await interrupt_everywhere(case, by_task_cancel_when_ready, tmp_path, twice=False)
    finally:
        for path in tmp_path.iterdir():
            path.unlink()


# ── what hangs ──


class HangingStore(Store):
    """Does not end to close a blob until it is cancelled once more."""

    def __init__(self, images: dict[str, Image]) -> None:
        super().__init__(images)
        self.is_closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open_blob(self, *args: Any, **options: Any) -> Any:
        async with super().open_blob(*args, **options) as chunks:
            try:
                yield chunks
            except asyncio.CancelledError:
                self.is_closing.set()
                await asyncio.Event().wait()


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("is_stream", [False, True], ids=["file", "stream"])
async def test_a_source_that_hangs_while_it_is_closed_can_be_cancelled(
    is_stream: bool, jobs: int, layers: Any, tmp_path: Path
) -> None:
    """One more cancel reaches each of the blobs that are being closed."""
    target: Any = ListSink() if is_stream else tmp_path / "a.tar"
    store = HangingStore({"one": IMAGE})
    reading = []

    async def hang(digest: Digest, position: int) -> None:
        reading.append(digest)
        await asyncio.Event().wait()

    store.on_chunk = hang
    saving = asyncio.ensure_future(
        outcome_of(save(store.requests(), target, layers=layers, jobs=jobs, fsync=False))
    )
    async with asyncio.timeout(LIMIT):
        while len(reading) < jobs:
            await asyncio.sleep(0)
    saving.cancel()
    async with asyncio.timeout(LIMIT):
        await store.is_closing.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not saving.done()
    saving.cancel()
    async with asyncio.timeout(LIMIT):
        assert isinstance(await saving, asyncio.CancelledError)
    assert store.open_now == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_save_that_is_closed_leaves_no_temporary_file(jobs: int, layers: Any, tmp_path: Path) -> None:
    """As where a loop was stopped, and its coroutines are closed: nothing can be awaited any more."""
    store = Store({"one": IMAGE})

    async def until_inside() -> asyncio.Task[Any]:
        inside = asyncio.Event()

        async def hang(digest: Digest, position: int) -> None:
            inside.set()
            await asyncio.Event().wait()

        store.on_chunk = hang
        task = asyncio.ensure_future(
            save(store.requests(), tmp_path / "a.tar", layers=layers, jobs=jobs, fsync=False)
        )
        await asyncio.wait_for(inside.wait(), LIMIT)
        for _ in range(20):
            await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(until_inside())
    tasks: list[Any] = [task, *(asyncio.all_tasks(loop) - {task})]
    loop.close()
    for each in tasks:
        each._log_destroy_pending = False
        with contextlib.suppress(RuntimeError):  # of the store, which would wait
            each.get_coro().close()
    assert list(tmp_path.iterdir()) == []
