"""Saving from sources and callbacks that are worse than they should be: what they do to errors, cancels and their end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiodockersave import Descriptor, Digest, InvalidInputError, SourceError, plan_archive, save
from aiodockersave._aio import run_together
from aiodockersave.core.model import OCI_LAYER_GZIP, Layers
from aiodockersave.pipeline.progress import Event, LayerFinished
from aiodockersave.sinks.part_file import part_name
from tests.support.images import Image, Layer, ListSink, archive_of, make_image, make_layer
from tests.support.stores import Store, StoreFailedError

LIMIT = 60.0  # seconds for anything that is waited for
CHUNK = 16 << 10


def _layer(seed: int, size: int = 50_000) -> Layer:
    return make_layer({"data": random.Random(seed).randbytes(size)})


def _layer_like_estargz(seed: int) -> Layer:
    layer = _layer(seed)
    blob = layer.blob + gzip.compress(b"", mtime=0)
    return replace(layer, blob=blob, descriptor=Descriptor(OCI_LAYER_GZIP, Digest.of(blob), len(blob)))


IMAGE = make_image(*map(_layer, range(3)), repo_tags=["a:1"])


class WrappingStore(Store):
    """Makes an error of its own of all that goes wrong while a blob is open, also of what it is told."""

    @contextlib.asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            async with super().open_blob(descriptor, start=start, stop=stop) as chunks:
                yield chunks
        except Exception as exc:
            raise SourceError("the blob cannot be had") from exc


class HangingStore(Store):
    """Fails with the first layer of an image; the others wait for ever, and do not end when they are closed."""

    def __init__(self, image: Image) -> None:
        super().__init__({"image": image}, chunk_size=CHUNK)
        self._first = image.layers[0].descriptor
        self._are_waiting = asyncio.Event()
        self.is_closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open_blob(
        self, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if descriptor == self._first:
            await self._are_waiting.wait()
            raise StoreFailedError
        try:
            self._are_waiting.set()
            await asyncio.Event().wait()
            yield self._chunks(descriptor.digest, 0)
        finally:
            self.is_closing.set()
            await asyncio.Event().wait()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar"


async def test_layers_that_end_with_an_empty_member_are_read_once(target: Path) -> None:
    image = make_image(*map(_layer_like_estargz, range(3)), repo_tags=["a:1"])
    store = Store({"image": image}, chunk_size=CHUNK)
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), target, layers="decompress", jobs=3, fsync=False)
    assert target.read_bytes() == await archive_of([image], layers="decompress")
    assert len(store.openings) == len(image.layers)


async def test_wrong_bytes_of_a_part_file_are_fetched_again_whatever_the_source_makes_of_it(
    target: Path,
) -> None:
    archive, plan = await archive_of([IMAGE]), plan_archive([IMAGE.spec])
    blob = next(segment for segment in plan.segments if segment.descriptor is not None)
    flipped = bytearray(archive[: blob.offset + blob.size // 2])
    flipped[blob.offset + 5] ^= 1
    (target.parent / part_name(target.name, plan.etag)).write_bytes(flipped)
    store = WrappingStore({"image": IMAGE}, chunk_size=CHUNK)
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), target, resume=True, fsync=False)
    assert target.read_bytes() == archive


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("jobs", [1, 2])
async def test_a_callback_that_cancels_the_running_task_cancels_the_save(layers: Layers, jobs: int) -> None:
    def cancel(event: Event) -> None:
        task = asyncio.current_task()
        if isinstance(event, LayerFinished) and task is not None:
            task.cancel()

    store = Store({"image": IMAGE}, chunk_size=CHUNK)
    saving = asyncio.ensure_future(
        save(store.requests(), ListSink(), layers=layers, jobs=jobs, progress=cancel)
    )
    await asyncio.wait([saving], timeout=LIMIT)
    assert saving.cancelled()
    assert store.open_now == 0


async def test_a_call_that_is_cancelled_from_within_ends_those_beside_it() -> None:
    ended = asyncio.Event()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    both = asyncio.ensure_future(run_together(cancelled, waiting))
    await asyncio.wait([both], timeout=LIMIT)
    assert both.cancelled()
    assert ended.is_set()


async def test_of_several_that_fail_at_once_each_is_looked_at(target: Path) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    store = Store({"image": IMAGE})
    for layer in IMAGE.layers:
        store.fails_at[layer.descriptor.digest] = -1
    with pytest.raises(StoreFailedError):
        await save(store.requests(), target, layers="decompress", jobs=3, fsync=False)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_cancel_scope_gets_through_to_what_hangs_while_it_is_closed(
    target: Path, layers: Layers
) -> None:
    store = HangingStore(IMAGE)

    async def run() -> bool:
        with scope:
            await save(store.requests(), target, layers=layers, jobs=3, fsync=False)
        return scope.cancelled_caught

    scope = anyio.CancelScope()
    running = asyncio.ensure_future(run())
    await asyncio.wait_for(store.is_closing.wait(), LIMIT)
    await asyncio.sleep(0.01)  # until it waits for all that is being closed
    scope.cancel()
    done, _ = await asyncio.wait([running], timeout=LIMIT)
    assert done, "it still waits"
    assert running.result()
    assert list(target.parent.iterdir()) == []


# ── images that contradict each other ──

BASE = IMAGE.layers[0]
LONGER = replace(BASE, descriptor=replace(BASE.descriptor, size=len(BASE.blob) + 1))
OTHER_PLAIN = replace(BASE, diff_id=Digest.of(b"another plain tar"))
CONTRADICTIONS = {
    "two sizes": ([make_image(BASE), make_image(LONGER)], f"blob {BASE.descriptor.digest} has two sizes"),
    "two diff IDs": (
        [make_image(BASE), make_image(OTHER_PLAIN)],
        f"layer {BASE.descriptor.digest} stands for two diff IDs",
    ),
    "two diff IDs in one image": (
        [make_image(BASE, OTHER_PLAIN)],
        f"layer {BASE.descriptor.digest} stands for two diff IDs",
    ),
}


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "stream"])
@pytest.mark.parametrize(("images", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
async def test_images_that_contradict_each_other_are_refused_before_a_layer_is_read(
    target: Path, images: list[Image], message: str, is_file: bool
) -> None:
    store = Store({str(number): image for number, image in enumerate(images)})
    with pytest.raises(InvalidInputError, match=message) as caught:
        await save(store.requests(), target if is_file else ListSink(), layers="decompress")
    assert caught.value.__notes__ == [f"image {len(images) - 1}"]
    assert store.openings == []
    assert list(target.parent.iterdir()) == []
