"""Saving into a stream: in the order of the plan, with the next blobs read ahead, and nothing left of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Self

import pytest

from aiodockersave import Descriptor, Digest, DigestMismatchError, save
from aiodockersave.core.model import Layers
from aiodockersave.pipeline import to_sink
from aiodockersave.pipeline.progress import (
    Event,
    ImageFinished,
    LayerAdvanced,
    LayerFinished,
    LayerRetried,
    LayerStarted,
)
from tests.support.images import (
    Compression,
    ListSink,
    MemorySink,
    RewindSink,
    archive_of,
    make_image,
    make_layer,
)
from tests.support.stores import Store, StoreFailedError

LIMIT = 60.0  # seconds for anything that is waited for
KINDS: list[Compression] = ["gzip", "zstd", None]
LAYERS = [make_layer(random.Random(number).randbytes(3000), KINDS[number % 3]) for number in range(6)]
IMAGES = {
    "one": make_image(*LAYERS[:4], repo_tags=["a:1"]),
    "two": make_image(LAYERS[0], *LAYERS[4:], author="two", repo_tags=["b:2"]),
    "again": make_image(*LAYERS[:4], repo_tags=["c:3"]),
    "none": make_image(author="none"),
}
MODES: tuple[Layers, ...] = ("keep", "decompress")
each_mode = pytest.mark.parametrize("layers", MODES)


@pytest.fixture
def store() -> Store:
    return Store(IMAGES)


async def save_into(store: Store, sink: Any, **options: Any) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), sink, progress=events.append, **options)
    assert store.open_now == 0
    return events


@pytest.mark.parametrize("make_sink", [ListSink, RewindSink, MemorySink])
@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@each_mode
async def test_a_stream_is_the_archive(store: Store, make_sink: Any, jobs: int, layers: Layers) -> None:
    """And each layer is read once, in order, no more of them at once than jobs."""
    sink = make_sink()
    events = await save_into(store, sink, layers=layers, jobs=jobs)
    assert sink.getvalue() == await archive_of(IMAGES.values(), layers=layers)
    assert [digest for digest, _ in store.openings] == [layer.descriptor.digest for layer in LAYERS]
    assert store.most_open <= jobs
    finished = [event.layer for event in events if isinstance(event, LayerFinished)]
    assert finished == [layer.descriptor for layer in LAYERS]
    assert [event.image.request.reference for event in events if isinstance(event, ImageFinished)] == [
        *IMAGES
    ]


@each_mode
async def test_the_next_layers_are_read_ahead(store: Store, layers: Layers) -> None:
    """While the first is read, others are as well, as many as may be."""
    is_ahead = asyncio.Event()

    async def wait(digest: Digest, position: int) -> None:
        if store.open_now == 4:
            is_ahead.set()
        if position:
            await is_ahead.wait()

    store.on_chunk = wait
    await save_into(store, ListSink(), layers=layers, jobs=4)
    assert store.most_open == 4


async def test_what_is_ahead_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is not read further than its part of the buffer while the first stands still."""
    monkeypatch.setattr(to_sink, "_BUFFER", 2000)
    first, second = (layer.descriptor.digest for layer in LAYERS[:2])

    async def wait(digest: Digest, position: int) -> None:
        if digest == first and position > 1000 and store.given[second] == 0:
            for _ in range(300):
                await asyncio.sleep(0)
            assert 0 < store.given[second] <= 1000 + 2 * store.chunk_size

    store.on_chunk = wait
    await save_into(store, ListSink(), jobs=2)


async def test_layers_are_staged_side_by_side(store: Store) -> None:
    """Two at once where sizes are not known ahead, and they are put in in their order."""
    started: list[Digest] = []
    is_second_at_its_end = asyncio.Event()
    first, second = (layer.descriptor.digest for layer in LAYERS[:2])

    async def wait(digest: Digest, position: int) -> None:
        last = position + store.chunk_size >= len(store.blobs[digest])
        if digest == second and last:
            is_second_at_its_end.set()
        if digest == first and last:
            await is_second_at_its_end.wait()

    store.on_chunk = wait
    sink = ListSink()
    events = await save_into(store, sink, layers="decompress", jobs=2)
    assert sink.getvalue() == await archive_of(IMAGES.values(), layers="decompress")
    started = [event.layer.digest for event in events if isinstance(event, LayerStarted)]
    assert started == [layer.descriptor.digest for layer in LAYERS]


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("fails_at", [-1, 0, 1500])
@pytest.mark.parametrize("number", [0, 3, 5], ids=["first", "in the middle", "last"])
@each_mode
async def test_a_source_that_fails_leaves_the_beginning_of_the_archive(
    layers: Layers, number: int, fails_at: int, jobs: int, store: Store
) -> None:
    """The stream has the beginning of the archive by then, without its end."""
    store.fails_at[LAYERS[number].descriptor.digest] = fails_at
    sink = ListSink()
    with pytest.raises(StoreFailedError):
        await save_into(store, sink, layers=layers, jobs=jobs)
    whole = await archive_of(IMAGES.values(), layers=layers)
    assert whole.startswith(sink.getvalue())
    assert len(sink.getvalue()) < len(whole) - 1024
    assert store.open_now == 0


@pytest.mark.parametrize("fails_at", [-1, 0, 1500])
async def test_a_sink_that_can_be_cut_is_as_it_was(fails_at: int, store: Store, tmp_path: Path) -> None:
    store.fails_at[LAYERS[4].descriptor.digest] = fails_at
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"the caller's own")
        with pytest.raises(StoreFailedError):
            await save_into(store, file)
        assert (tmp_path / "file").read_bytes() == b"the caller's own"
        del store.fails_at[LAYERS[4].descriptor.digest]
        await save_into(store, file)
    assert (tmp_path / "file").read_bytes() == b"the caller's own" + await archive_of(IMAGES.values())


@pytest.mark.parametrize("number", range(6))
async def test_a_wrong_blob_never_leaves_as_a_whole(number: int, store: Store) -> None:
    """Its last chunk stays back, and nothing comes behind it."""
    layer = LAYERS[number]
    store.blobs[layer.descriptor.digest] = layer.blob[:-1] + bytes([layer.blob[-1] ^ 1])
    sink = ListSink()
    with pytest.raises(DigestMismatchError):
        await save_into(store, sink)
    assert (await archive_of(IMAGES.values())).startswith(sink.getvalue())
    assert layer.blob[:-1] not in sink.getvalue()


@each_mode
async def test_a_wrong_blob_is_an_error_of_its_image(store: Store, layers: Layers) -> None:
    digest = LAYERS[5].descriptor.digest
    store.blobs[digest] = bytes(len(store.blobs[digest]))
    with pytest.raises(DigestMismatchError) as caught:
        await save_into(store, ListSink(), layers=layers, jobs=3)
    assert caught.value.__notes__ == ["image two"]


class FullSink(ListSink):
    """Fails at one of its writes."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    async def write(self, data: bytes, /) -> None:
        if len(self.writes) == self._at:
            raise OSError("full")
        await super().write(data)


@pytest.mark.parametrize("jobs", [1, 3])
@each_mode
async def test_a_sink_that_fails_leaves_no_blob_open(layers: Layers, jobs: int) -> None:
    counting = ListSink()
    await save_into(Store(IMAGES), counting, layers=layers, jobs=jobs)
    for at in range(len(counting.writes)):
        store = Store(IMAGES)
        with pytest.raises(OSError, match="full"):
            await save_into(store, FullSink(at), layers=layers, jobs=jobs)
        assert store.open_now == 0


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("empty", [0, 1, 2])
async def test_an_empty_layer_is_told_in_its_turn(empty: int, jobs: int) -> None:
    layers = [*LAYERS[:2]]
    layers.insert(empty, make_layer(b"", None))
    store = Store({"one": make_image(*layers)})
    events = await save_into(store, ListSink(), jobs=jobs)
    told = [event for event in events if isinstance(event, LayerStarted | LayerFinished)]
    expected = [(kind, layer.descriptor) for layer in layers for kind in (LayerStarted, LayerFinished)]
    assert [(type(event), event.layer) for event in told] == expected
    counts = [event.total_done for event in events if isinstance(event, LayerAdvanced | LayerFinished)]
    assert counts == sorted(counts)
    assert counts[-1] == store.size


class AskingAgain:
    """The chunks of a blob for which a source has to ask again before each."""

    def __init__(self, blob: bytes) -> None:
        self.retries = 0
        self._chunks = [blob[:100], blob[100:200], blob[200:]]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        self.retries += 1
        return self._chunks.pop(0)


class AskingAgainStore(Store):
    """Says how often it asked again."""

    @contextlib.asynccontextmanager
    async def open_blob(self, descriptor: Descriptor, **_: Any) -> AsyncGenerator[AskingAgain, None]:
        yield AskingAgain(self.blobs[descriptor.digest])


@each_mode
async def test_retries_are_told(layers: Layers) -> None:
    images = {"one": make_image(LAYERS[0])}
    events = await save_into(AskingAgainStore(images), ListSink(), layers=layers)
    retries = [event.retries for event in events if isinstance(event, LayerRetried)]
    assert retries == [1, 2, 3]
