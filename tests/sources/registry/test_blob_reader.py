"""A blob across attempts, addresses and ranges: decisions as tables, transfers against registries that fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiodockersave import (
    BlobNotFoundError,
    Descriptor,
    DigestMismatchError,
    InvalidInputError,
    Platform,
    RegistryError,
    SizeMismatchError,
    TransferError,
)
from aiodockersave.core.text import NO_SECRETS
from aiodockersave.sources.registry import RegistrySource, Retries, Timeouts
from aiodockersave.sources.registry.blob_reader import BlobReader, Verdict, Wanted, judge
from aiodockersave.sources.waits import Waits
from tests.support.clock import LoopClock
from tests.support.faulty_registry import (
    FaultyRegistry,
    drop,
    drop_at_once,
    flip,
    ignore_range,
    label_gzip,
    no_length,
    redirect,
    refuse,
    resize,
    start_at,
)
from tests.support.images import make_image, make_layer

# ── decisions ──

REST = Wanted(40, 100, 100)
WHOLE = Wanted(0, 100, 100)
MIDDLE = Wanted(40, 60, 100)
Row = tuple[Wanted, int, dict[str, Any], Verdict | None]


def ranges(*values: str, **more: str) -> dict[str, Any]:
    return {"ranges": values, **more}


OTHER_SIZE = "it has another size"
VERDICTS: dict[str, Row] = {
    # the whole
    "200 for the whole": (WHOLE, 200, {}, Verdict(0, 100)),
    "200 with its length": (WHOLE, 200, {"length": "100"}, Verdict(0, 100)),
    "200 for the rest": (REST, 200, {"length": "100"}, Verdict(40, 100)),
    "200 for the middle": (MIDDLE, 200, {}, Verdict(40, 100)),
    "200 longer": (WHOLE, 200, {"length": "101"}, Verdict(refusal=OTHER_SIZE, actual_size=101)),
    "200 shorter": (REST, 200, {"length": "60"}, Verdict(refusal=OTHER_SIZE, actual_size=60)),
    "200 with odd length": (
        WHOLE,
        200,
        {"length": "1e2"},
        Verdict(refusal="its Content-Length is not a number"),
    ),
    "200 with negative length": (
        WHOLE,
        200,
        {"length": "-1"},
        Verdict(refusal="its Content-Length is not a number"),
    ),
    "identity": (WHOLE, 200, {"encoding": " Identity "}, Verdict(0, 100)),
    "gzip": (
        WHOLE,
        200,
        {"encoding": "gzip"},
        Verdict(refusal="it answers with Content-Encoding gzip, which was not asked for"),
    ),
    # a part
    "206 exact": (REST, 206, ranges("bytes 40-99/100", length="60"), Verdict(0, 100)),
    "206 of the middle": (MIDDLE, 206, ranges("bytes 40-59/100", length="20"), Verdict(0, 60)),
    "206 for the whole": (WHOLE, 206, ranges("bytes 0-99/100"), Verdict(0, 100)),
    "206 starts early": (REST, 206, ranges("bytes 0-99/100", length="100"), Verdict(40, 100)),
    "206 in blocks": (MIDDLE, 206, ranges("bytes 32-63/100"), Verdict(8, 64)),
    "206 starts late": (
        REST,
        206,
        ranges("bytes 41-99/100"),
        Verdict(refusal="it answers with other bytes (41-99) than were asked for"),
    ),
    "206 ends early": (
        REST,
        206,
        ranges("bytes 40-98/100"),
        Verdict(refusal="it answers with other bytes (40-98) than were asked for"),
    ),
    "206 of another": (REST, 206, ranges("bytes 40-99/101"), Verdict(refusal=OTHER_SIZE, actual_size=101)),
    "206 of unknown size": (
        REST,
        206,
        ranges("bytes 40-99/*"),
        Verdict(refusal="it answers a range without a proper Content-Range"),
    ),
    "206 without range": (
        REST,
        206,
        ranges(),
        Verdict(refusal="it answers a range without a proper Content-Range"),
    ),
    "206 with two ranges": (
        REST,
        206,
        ranges("bytes 40-99/100", "bytes 40-99/100"),
        Verdict(refusal="it answers a range without a proper Content-Range"),
    ),
    "206 in parts": (
        REST,
        206,
        ranges("bytes 40-99/100", content_type="multipart/byteranges; boundary=x"),
        Verdict(refusal="it answers a range in several parts"),
    ),
    "206 of other length": (
        REST,
        206,
        ranges("bytes 40-99/100", length="61"),
        Verdict(refusal="its Content-Length does not fit its Content-Range"),
    ),
    "206 gzip": (
        REST,
        206,
        ranges("bytes 40-99/100", encoding="gzip"),
        Verdict(refusal="it answers with Content-Encoding gzip, which was not asked for"),
    ),
    # none of that
    "416 shorter": (REST, 416, ranges("bytes */40"), Verdict(refusal=OTHER_SIZE, actual_size=40)),
    "416": (REST, 416, ranges(), Verdict(refusal="it refuses the range, which the blob has")),
    "416 right size": (
        REST,
        416,
        ranges("bytes */100"),
        Verdict(refusal="it refuses the range, which the blob has"),
    ),
    "204": (WHOLE, 204, {}, None),
    "304": (WHOLE, 304, {}, None),
    "404": (WHOLE, 404, {"encoding": "gzip"}, None),
    "500": (REST, 500, {"length": "100"}, None),
}


@pytest.mark.parametrize(("wanted", "status", "headers", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_judge(wanted: Wanted, status: int, headers: dict[str, Any], expected: Verdict | None) -> None:
    assert judge(wanted, status, **headers) == expected


@pytest.mark.parametrize(
    ("wanted", "header"),
    [(WHOLE, None), (REST, "bytes=40-"), (MIDDLE, "bytes=40-59"), (Wanted(0, 1, 2), "bytes=0-0")],
)
def test_ranges_are_asked_for(wanted: Wanted, header: str | None) -> None:
    assert wanted.range == header


# ── reading ──

IMAGE = make_image(make_layer({"noise": random.Random(1).randbytes(400_000)}))
LAYER, BLOB = IMAGE.layers[0].descriptor, IMAGE.layers[0].blob
SIZE = len(BLOB)
SILENCE = 10.0  # seconds of a clock that is put forward where the registry falls silent
AMD64 = Platform("linux", "amd64")


class Naps:
    """A replacement for sleep that records the delays."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


class Scene:
    """A registry, mirrors of it, and a source that has resolved the image."""

    def __init__(self, registry: FaultyRegistry, mirrors: list[FaultyRegistry]) -> None:
        self.registry = registry
        self.mirrors = mirrors
        self.naps = Naps()
        self.source = RegistrySource(
            plain_http=True,
            mirrors=[mirror.here.url for mirror in mirrors],
            timeouts=Timeouts(connect=30, silence=SILENCE),
            retries=Retries(attempts=4),
            sleep=self.naps.sleep,
        )

    async def resolve(self) -> None:
        await self.source.resolve(f"{self.registry.address}/team/app:1", AMD64)
        for registry in (self.registry, *self.mirrors):
            registry.asks.clear()

    async def read(self, start: int = 0, stop: int | None = None, descriptor: Descriptor = LAYER) -> bytes:
        async with self.source.open_blob(descriptor, start=start, stop=stop) as chunks:
            return b"".join([chunk async for chunk in chunks])

    def ranges(self, registry: FaultyRegistry | None = None) -> list[str | None]:
        return [ask.headers.get("Range") for ask in (registry or self.registry).asks]


@pytest.fixture
async def scenes() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def build(*mirrors: FaultyRegistry) -> Scene:
            registry = await stack.enter_async_context(FaultyRegistry({"team/app:1": IMAGE}))
            for mirror in mirrors:
                await stack.enter_async_context(mirror)
            clock = LoopClock()
            registry.on_silence = lambda: clock.put_forward(SILENCE + 1)
            scene = Scene(registry, list(mirrors))
            stack.push_async_callback(scene.source.aclose)
            await scene.resolve()
            return scene

        yield build


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, None),
        (0, SIZE),
        (1, None),
        (SIZE - 1, None),
        (SIZE, None),
        (0, 0),
        (0, 1),
        (1000, 1001),
        (7, SIZE - 7),
        (5, SIZE + 9),
    ],
)
@pytest.mark.parametrize("ranges_work", [True, False])
async def test_any_range_is_read(scenes: Any, start: int, stop: int | None, ranges_work: bool) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [] if ranges_work else [ignore_range()]
    assert await scene.read(start, stop) == BLOB[start:stop]
    assert len(scene.registry.asks) == (BLOB[start:stop] != b"")


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (3, 2), (SIZE + 1, None)])
async def test_impossible_ranges_are_refused(scenes: Any, start: int, stop: int | None) -> None:
    scene: Scene = await scenes()
    with pytest.raises(InvalidInputError):
        await scene.read(start, stop)


async def test_a_transfer_is_resumed_where_it_broke(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [drop(0.5, "close").often(10)]
    assert await scene.read() == BLOB
    first, *rest = scene.ranges()
    assert first is None
    assert len(rest) == 10  # more than the attempts, since each brought something
    starts = [int((header or "").removeprefix("bytes=").removesuffix("-")) for header in rest]
    assert starts == sorted(starts)
    assert starts[0] == SIZE // 2
    assert len(scene.naps.seconds) == 10


@pytest.mark.parametrize("fault", [ignore_range(), start_at(-1000), start_at(-SIZE)], ids=str)
async def test_bytes_that_were_read_already_are_skipped(scenes: Any, fault: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [drop(0.7, "close").often(1), fault]
    assert await scene.read() == BLOB


async def test_a_registry_without_ranges_is_not_read_for_ever(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [ignore_range(), drop(0.9, "close")]
    with pytest.raises(TransferError, match="more than 2 times its size") as caught:
        await scene.read()
    assert isinstance(caught.value.__cause__, RegistryError)
    # One and a bit: the second answer would have to be read whole before it could bring anything new.
    assert len(scene.registry.asks) == 3


@pytest.mark.parametrize(
    "fault",
    [
        drop_at_once(),
        drop_at_once("reset"),
        drop_at_once("stall"),
        refuse(500),
        refuse(429, retry_after="3"),
        refuse(408),
    ],
    ids=str,
)
async def test_attempts_without_progress_are_bounded(scenes: Any, fault: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [fault]
    with pytest.raises((TransferError, RegistryError)) as caught:
        await scene.read()
    assert scene.registry.address in str(caught.value)
    assert str(LAYER.digest) in str(caught.value)
    assert len(scene.naps.seconds) == 3


async def test_an_orderly_end_before_the_end_is_a_wrong_size(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [resize(-1000, has_length=False)]
    with pytest.raises(SizeMismatchError) as caught:
        await scene.read()
    assert (caught.value.expected, caught.value.actual) == (SIZE, SIZE - 1000)


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("by", [1, 100_000])
async def test_no_more_bytes_than_the_descriptor_promises(scenes: Any, has_length: bool, by: int) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [resize(by, has_length=has_length)]
    data = b""
    with pytest.raises(SizeMismatchError):
        async with scene.source.open_blob(LAYER) as chunks:
            async for chunk in chunks:
                data += chunk
    assert BLOB.startswith(data)


class TwoPieces:
    """A place whose answer has a second piece, though the first has the whole range."""

    def __init__(self, *pieces: bytes) -> None:
        self.status = 200
        self.secrets = NO_SECRETS
        self.is_closed = False
        self._pieces = [*pieces, b""]

    async def open(self, what: str, path: str, headers: object) -> TwoPieces:
        return self

    async def chunk(self) -> bytes:
        return self._pieces.pop(0)

    def headers(self, name: str) -> list[str]:
        return []

    def header(self, name: str) -> None:
        return None

    def close(self) -> None:
        self.is_closed = True


async def test_excess_bytes_are_noticed() -> None:
    place: Any = TwoPieces(b"12345", b"6")
    descriptor = Descriptor(LAYER.media_type, LAYER.digest, 5)
    reader = BlobReader("blob", descriptor, Wanted(0, 5, 5), [place], Retries(), Waits(Naps().sleep))
    assert await anext(reader) == b"12345"
    with pytest.raises(SizeMismatchError) as caught:
        await anext(reader)
    assert caught.value.actual == 6
    reader.close()
    assert place.is_closed


async def test_bodies_without_a_length(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [no_length(), drop(0.5, "close").often(1)]
    assert await scene.read() == BLOB


async def test_encoded_bodies_are_refused(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [label_gzip()]
    with pytest.raises(RegistryError, match="Content-Encoding gzip"):
        await scene.read()


async def test_an_empty_blob_is_not_asked_for(scenes: Any) -> None:
    scene: Scene = await scenes()
    empty = Descriptor(LAYER.media_type, LAYER.digest, 0)
    assert await scene.read(descriptor=empty) == b""
    assert scene.registry.asks == []


async def test_a_blob_of_unknown_size_is_refused(scenes: Any) -> None:
    scene: Scene = await scenes()
    with pytest.raises(InvalidInputError, match="size"):
        await scene.read(descriptor=Descriptor(LAYER.media_type, LAYER.digest, None))


async def test_only_blobs_of_images_that_were_resolved(scenes: Any) -> None:
    scene: Scene = await scenes()
    with pytest.raises(BlobNotFoundError, match="resolve its image first"):
        await scene.read(descriptor=make_layer({"other": b""}).descriptor)


async def test_a_blob_is_read_only_inside_its_block(scenes: Any) -> None:
    scene: Scene = await scenes()
    async with scene.source.open_blob(LAYER) as chunks:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await anext(chunks)


async def test_leaving_the_block_early_closes_the_connection(scenes: Any) -> None:
    scene: Scene = await scenes()
    async with scene.source.open_blob(LAYER) as chunks:
        assert await anext(chunks)
        assert scene.registry.connections == 1
    async with asyncio.timeout(60):
        while scene.registry.connections:
            await asyncio.sleep(0)


async def test_a_connection_is_used_again(scenes: Any) -> None:
    scene: Scene = await scenes()
    for _ in range(3):
        assert await scene.read() == BLOB
        assert await scene.read(10, 20) == BLOB[10:20]
    assert scene.registry.connections == 1


async def test_after_a_redirect_the_registry_is_asked_again(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [redirect("{elsewhere}{path}?signature=x"), drop(0.5, "close").often(1)]
    assert await scene.read() == BLOB
    assert len(scene.registry.asks) == 2  # a signed address may have expired
    assert [ask.headers.get("Range") for ask in scene.registry.other.asks] == [None, f"bytes={SIZE // 2}-"]


# ── several addresses ──


def mirror(*faults: Any, has: bool = True) -> FaultyRegistry:
    return FaultyRegistry({"team/app:1": IMAGE} if has else {}, faults)


async def test_mirrors_are_asked_first_and_in_order(scenes: Any) -> None:
    scene: Scene = await scenes(mirror(has=False), mirror())
    assert await scene.read() == BLOB
    assert [len(registry.asks) for registry in (*scene.mirrors, scene.registry)] == [1, 1, 0]


async def test_another_address_resumes_in_the_middle(scenes: Any) -> None:
    scene: Scene = await scenes(
        mirror(drop(0.25, "close").of("blob")), mirror(drop(0.5, "close").of("blob").often(1))
    )
    assert await scene.read() == BLOB
    assert scene.ranges(scene.mirrors[0])[:1] == [None]
    assert scene.ranges(scene.mirrors[1])[0] == f"bytes={SIZE // 4}-"
    assert scene.ranges(scene.registry)[0] == f"bytes={SIZE // 4 + (SIZE - SIZE // 4) // 2}-"
    assert scene.naps.seconds == []


@pytest.mark.parametrize("fault", [refuse(403), refuse(404), resize(1), label_gzip()], ids=str)
async def test_a_mirror_that_refuses_is_passed_over(scenes: Any, fault: Any) -> None:
    scene: Scene = await scenes(mirror(fault))
    assert await scene.read() == BLOB
    assert scene.naps.seconds == []


async def test_a_mirror_out_of_reach_is_not_asked_for_every_blob(scenes: Any) -> None:
    gone = mirror()
    scene: Scene = await scenes(gone)
    await gone.stop()
    try:
        for _ in range(3):
            assert await scene.read() == BLOB
    finally:
        await gone.start()
    assert len(scene.registry.asks) == 3
    assert scene.naps.seconds == []


async def test_the_registrys_own_refusal_counts(scenes: Any) -> None:
    scene: Scene = await scenes(mirror(has=False))
    scene.registry.faults = [refuse(404)]
    with pytest.raises(BlobNotFoundError, match=scene.registry.address):
        await scene.read()


async def test_wrong_bytes_are_passed_on_to_the_reader(scenes: Any) -> None:
    scene: Scene = await scenes()
    scene.registry.faults = [flip(0.5)]
    data = await scene.read()
    assert len(data) == SIZE
    assert data != BLOB


async def test_a_wrong_config_of_a_mirror_is_passed_over() -> None:
    async with (
        mirror(flip(0.5).of("config", "manifest")) as wrong,
        FaultyRegistry({"team/app:1": IMAGE}) as right,
    ):
        async with RegistrySource(plain_http=True, mirrors=[wrong.here.url]) as source:
            image = await source.resolve(f"{right.address}/team/app@{IMAGE.manifest.digest}", AMD64)
        assert image.config == IMAGE.config
        assert [ask.kind for ask in wrong.asks] == ["manifest", "config"]
        right.faults = [flip(0.5).of("config")]
        async with RegistrySource(plain_http=True, mirrors=[wrong.here.url]) as source:
            with pytest.raises(DigestMismatchError):
                await source.resolve(f"{right.address}/team/app:1", AMD64)
