"""One archive, written step by step, that can be interrupted anywhere and then says where it stands.

Two images with a shared layer, a layer of many batches, a staged one, one of unknown size, the metadata, the
end. Contents and sinks are in memory and suspend wherever real ones would; they keep what happened to them.

:meth:`Scenario.check` is the state table of :mod:`aiodockersave.archive.writer`: judged by what the sink was given when
the first fault came, not by what the writer says.
"""

from __future__ import annotations

import asyncio
import enum
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import pytest

from aiodockersave import ArchiveWriter, Report, WriterBrokenError, _aio
from aiodockersave.archive import transaction
from aiodockersave.blobs import content, staging, thread_queue, transfer
from aiodockersave.core.tar import BLOCK_SIZE, END_OF_ARCHIVE
from aiodockersave.sinks.protocol import Adapter
from tests.support.images import Compression, Layer, make_image, make_layer, noise
from tests.support.interruption import (
    Driver,
    ThreadedTickWorker,
    TickWorker,
    outcome_of,
    step,
    suspend,
    suspend_until_ready,
)

CHUNK_SIZE = 700
REWIND_TICKS = 24
SUSPENSIONS_AFTER = 16
"""So many suspensions may follow a cancel. A wait that absorbs one delivery after the other has ``REWIND_TICKS``."""

Chunks = list[bytes | BaseException]
"""The chunks that a content gives, one after the other; exceptions are raised."""


def use_small_limits(patch: pytest.MonkeyPatch) -> None:
    """Make small data take the ways of large ones, and let no thread make a run differ from another."""
    patch.setattr(content, "BATCH_SIZE", 1024)
    for room in (content, transaction, staging):
        patch.setattr(room, "MAX_BATCH_SIZE", 2048)
    patch.setattr(thread_queue, "INLINE_SIZE", 1024)
    patch.setattr(_aio, "YIELD_BYTES", _aio._CHUNK_COST)  # a turn of the loop for every chunk
    patch.setattr(transfer, "Worker", TickWorker)
    patch.setattr(staging, "Worker", ThreadedTickWorker)


# ── contents ──


class FakeContent:
    """A content that counts who opens and closes it, and keeps what it was told.

    Attributes:
        opened: How often it was opened.
        closed: How often it was closed.
        told: What ``__aexit__`` was given, or was thrown into a generator.
    """

    def __init__(self, chunks: Chunks, log: list[str]) -> None:
        self.opened = 0
        self.closed = 0
        self.told: list[BaseException | None] = []
        self.chunks = chunks
        self._log = log

    def open(self) -> object:
        """Return what is read; this method is what the writer is given."""
        return self

    def _tell(self, fault: BaseException | None) -> None:
        self.told.append(fault)
        if fault is not None:
            self._log.append("told")

    async def _give(self, chunk: bytes | BaseException) -> bytes:
        await suspend()
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk


class GeneratedContent(FakeContent):
    """An async generator, from a function."""

    def open(self) -> AsyncGenerator[bytes, None]:
        return self._generate()

    async def _generate(self) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        try:
            for chunk in self.chunks:
                given = await self._give(chunk)
                try:
                    yield given
                except BaseException as exc:
                    self._tell(exc)
                    raise
        finally:
            self.closed += 1


class ManagedContent(FakeContent):
    """A context manager of an object with ``read(n)``, as a file or a response is."""

    async def __aenter__(self) -> Self:
        await suspend_until_ready()
        self.opened += 1
        self._rest = iter(self.chunks)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._tell(exc)
        try:
            await suspend_until_ready()
        finally:
            self.closed += 1

    async def read(self, size: int) -> bytes:
        return await self._give(next(self._rest, b""))


# ── sinks ──


class FakeSink(Adapter):
    """Keeps what it is given. A write suspends before and after it takes its data.

    Attributes:
        data: The bytes that are there.
        writes: How often it was written to.
        touches: Changes with whatever makes it unknown how much of a write was taken.
        can_rewind: Whether it can take bytes back.
        is_writing: Whether a write is under way.
        fail_at: The write, counted from 1, that takes half of its data and raises.
    """

    can_rewind = False

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_writing = False
        self.fail_at = 0
        self.log: list[str] = []
        self.writes = 0

    @property
    def touches(self) -> int:
        return self.writes

    async def write(self, data: bytes, /) -> int | None:
        self.writes += 1
        if self.writes == self.fail_at:
            self.data += data[: len(data) // 2]
            raise OSError("no space left in the fake")
        self.is_writing = True
        try:
            await suspend_until_ready()
            self.data += data
            await suspend()
        finally:
            self.is_writing = False
        return None


class PartialSink(FakeSink):
    """Takes less than it is given."""

    async def write(self, data: bytes, /) -> int:
        data = data[:600]
        await super().write(data)
        return len(data)


class CountingSink(FakeSink):
    """Says how much is out of its hands: a write that is interrupted before that has taken nothing."""

    handed_over = 0

    @property
    def touches(self) -> int:
        return self.handed_over

    async def write(self, data: bytes, /) -> None:
        await suspend_until_ready()
        self.data += data
        self.handed_over += len(data)


class RewindingSink(FakeSink):
    """Can take back what was written last, which takes its time."""

    can_rewind = True

    def __init__(self) -> None:
        super().__init__()
        self.worker = TickWorker("rewind", REWIND_TICKS)

    def rewind(self, position: int, /) -> None:
        self.log.append("rewound")
        del self.data[position:]


class PatchableSink(RewindingSink):
    """Can be written over, and read back."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = TickWorker("patch", 3)

    def patch(self, position: int, data: bytes, /) -> None:
        self.data[position : position + len(data)] = data

    def move(self, source: int, target: int, size: int, /) -> None:
        self.patch(target, self.read(source, size))

    def read(self, position: int, size: int, /) -> bytes:
        return bytes(self.data[position : position + size])


class UnrewindableSink(RewindingSink):
    """Says that it can rewind, and fails to."""

    can_rewind = False

    def rewind(self, position: int, /) -> None:
        super().rewind(len(self.data))
        raise OSError("cannot be cut")


# ── the scenario ──


class Left(enum.Enum):
    """How much of its bytes the call that raised had written when the fault came."""

    NOTHING = enum.auto()
    PART = enum.auto()
    ALL = enum.auto()


@dataclass(frozen=True)
class Step:
    """One call of the writer.

    Attributes:
        run: Makes the call.
        layer: The layer that it puts, if it does.
    """

    run: Callable[[], Awaitable[object]]
    layer: Layer | None = None


@dataclass(frozen=True)
class Reference:
    """The result of the scenario when nothing interrupts it.

    Attributes:
        data: The archive.
        report: The writer's report of it.
        ends: How large the archive is after each step.
        suspensions: How often it suspends.
        writes: How often it writes to the sink.
        contents: How many chunks are read of each content.
    """

    data: bytes = field(repr=False)
    report: Report | None
    ends: tuple[int, ...]
    suspensions: int
    writes: int
    contents: tuple[int, ...]


Spoil = Callable[[int, Chunks], Chunks]
"""Change the chunks of the n-th content that is made, counted from 0."""


def _keep(number: int, chunks: Chunks) -> Chunks:
    return chunks


class Scenario:
    """The calls of one writer, in order.

    Attributes:
        step: How many are done.
        error: What the last one raised.
        contents: All contents that were made.
        ends: The size of the archive after each step, as far as it has come.
    """

    def __init__(
        self,
        sink: FakeSink,
        reference: Reference | None = None,
        *,
        compression: Compression = None,
        spoil: Spoil = _keep,
        **options: Any,
    ) -> None:
        self.sink = sink
        self.archive = ArchiveWriter(sink, **options)
        self.step = 0
        self.error: BaseException | None = None
        self.contents: list[FakeContent] = []
        self.ends: list[int] = []
        self._reference = reference
        self._spoil = spoil
        self._left: Left | None = None
        self._start = (0, 0)
        self._steps = self._make_steps(_layers(compression), decompress=options.get("layers") == "decompress")

    def _make_steps(self, layers: dict[str, Layer], *, decompress: bool) -> Sequence[Step]:
        def put(name: str, kind: type[FakeContent], **options: bool) -> Step:
            layer = layers[name]
            descriptor = replace(layer.descriptor, size=None) if name == "unknown" else layer.descriptor

            async def run() -> None:
                made = self._make_content(kind, layer.blob)
                await self.archive.put_layer(made.open, descriptor, diff_id=layer.diff_id, **options)

            return Step(run, layer)

        def put_image(*names: str, tag: str) -> Step:
            image = make_image(*(layers[name] for name in names))
            return Step(lambda: self.archive.put_image(image.config, image.manifest, [tag]))

        return (
            put("shared", ManagedContent),
            put("large", GeneratedContent),
            put_image("shared", "large", tag="example.com/first:1.0"),
            put("shared", ManagedContent),
            put("staged", ManagedContent, stage=True),
            put("wide", ManagedContent),
            put("unknown", GeneratedContent),
            put_image("shared", "staged", "wide", "unknown", tag="example.com/second:1.0"),
            Step(self.archive.close),
        )

    def _make_content(self, kind: type[FakeContent], data: bytes) -> FakeContent:
        chunks: Chunks = [data[i : i + CHUNK_SIZE] for i in range(0, len(data), CHUNK_SIZE)]
        made = kind(self._spoil(len(self.contents), chunks), self.sink.log)
        self.contents.append(made)
        return made

    async def run(self) -> None:
        """Make the calls that are not done. What one raises is kept in ``error``, and raised."""
        while self.step < len(self._steps):
            self.sink.log.clear()
            self._left = None
            self._start = (len(self.sink.data), self.sink.touches)
            try:
                await self._steps[self.step].run()
            except BaseException as exc:
                self.error = exc
                self.on_fault()
                self._check_nothing_open()
                raise
            self._check_nothing_open()
            self.ends.append(len(self.sink.data))
            self.step += 1

    def on_fault(self) -> None:
        """Take down how far the call has come; only the first fault counts."""
        if self._left is None and self._reference is not None:
            touched = self.sink.touches != self._start[1]
            all_out = (
                len(self.sink.data) == self._reference.ends[self.step]
                and not self.sink.is_writing
                and self.step < len(self._steps) - 1  # close() is not done with the last byte
            )
            self._left = (Left.ALL if all_out else Left.PART) if touched else Left.NOTHING

    def _check_nothing_open(self) -> None:
        assert TickWorker.unfinished == 0, "a thread still works for a call that has ended"
        assert all(each.opened == each.closed for each in self.contents), "a content is still open"

    # ── what must hold afterwards ──

    async def check(self) -> None:
        """Check that the writer is in the state that the table names, and what it can still do."""
        reference = self._reference
        assert reference is not None
        assert len(asyncio.all_tasks()) == 1, "a task still runs"
        if self.error is None:
            return self._check_complete(reference)
        assert self._left is not None
        assert self.sink.log != ["told", "rewound"], "the content is told before the archive is whole again"
        if self._left is Left.PART and not self.sink.can_rewind:
            return await self._check_broken(reference)
        self._check_open(reference)
        return await self._check_can_go_on(reference)

    def _check_complete(self, reference: Reference) -> None:
        assert bytes(self.sink.data) == reference.data
        assert self.archive.report == reference.report

    def _check_open(self, reference: Reference) -> None:
        committed = self._left is Left.ALL
        layer = self._steps[self.step].layer
        if layer is not None:
            assert self.archive.has_blob(layer.descriptor.digest) is committed
        assert committed or len(self.sink.data) == self._start[0]
        assert reference.data.startswith(self.sink.data)
        assert self.archive.report is None
        self.step += committed

    async def _check_can_go_on(self, reference: Reference) -> None:
        self._spoil = _keep
        self.sink.fail_at = 0
        self.error = None
        await self.run()
        self._check_complete(reference)

    async def _check_broken(self, reference: Reference) -> None:
        data = bytes(self.sink.data)
        if self._spoil is _keep:
            assert reference.data.startswith(data)
        else:
            assert reference.data.startswith(data[: self._start[0]])
            assert len(data) < reference.ends[self.step], "the last batch is written when all is verified"
        blocks = data[: len(data) // BLOCK_SIZE * BLOCK_SIZE]
        assert data == reference.data or not blocks.endswith(END_OF_ARCHIVE)
        notes = getattr(self.error, "__notes__", [])
        assert any("could not be rewound" in note for note in notes) is ("rewound" in self.sink.log)
        touches, contents = self.sink.touches, len(self.contents)
        for each in self._steps:
            error = await outcome_of(_at_once(each.run()))
            assert isinstance(error, WriterBrokenError)
            assert error.__cause__ is self.error
            assert error.position == self._start[0]
        step(self.archive.abort())
        assert self.archive.report is None
        assert (bytes(self.sink.data), self.sink.touches) == (data, touches)
        assert not any(each.opened for each in self.contents[contents:])


async def _at_once(waiting: Any) -> None:
    step(waiting)


@functools.cache  # a scenario is made for each suspension
def _layers(compression: Compression) -> dict[str, Layer]:
    # Chunks: as few as make a first, a middle and a last batch, since each suspension costs a whole scenario.
    sizes = {"shared": 1, "large": 11, "staged": 6, "wide": 4, "unknown": 6}
    return {
        name: make_layer(noise(name, chunks * CHUNK_SIZE - 100), compression)
        for name, chunks in sizes.items()
    }


async def reference_of(make_sink: Callable[[], FakeSink], **options: Any) -> Reference:
    """Run the scenario without an interruption."""
    driver = Driver()
    scenario = Scenario(make_sink(), **options)
    await driver.drive(scenario.run())
    return Reference(
        bytes(scenario.sink.data),
        scenario.archive.report,
        tuple(scenario.ends),
        driver.suspensions,
        scenario.sink.writes,
        tuple(len(each.chunks) if each.opened else 0 for each in scenario.contents),
    )
