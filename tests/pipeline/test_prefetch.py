"""Layers that are asked for while the config is on the way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiodockersave import (
    Descriptor,
    DigestMismatchError,
    ImageRequest,
    InsufficientSpaceError,
    InvalidDocumentError,
    Platform,
    RegistrySource,
    ResolvedImage,
    SourceError,
    SupportsEarlyBlobs,
    save,
)
from aiodockersave.pipeline import prefetch
from aiodockersave.pipeline.prefetch import Ahead, Order, Place, look_at
from aiodockersave.pipeline.progress import Event, LayerStarted, SaveStarted
from aiodockersave.sources import opens_early
from tests.support.attempts import no_sleep
from tests.support.faulty_registry import FaultyRegistry, refuse
from tests.support.images import Image, ListSink, archive_of, make_image, make_layer
from tests.support.stores import EarlyStore, Store, StoreFailedError

LIMIT = 60.0  # seconds for anything that is waited for
OLD = b"the archive that was here before"
NOISE = random.Random(1)
LAYERS = [make_layer(NOISE.randbytes(size * 512), "gzip") for size in (3, 9, 2, 7, 5)]
IMAGE = make_image(*LAYERS, repo_tags=["a:1"])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(OLD)
    return path


async def save_store(store: Store, target: Any, **options: Any) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), target, fsync=False, progress=events.append, **options)
    assert store.open_now == 0
    data = target.read_bytes() if isinstance(target, Path) else target.getvalue()
    assert data == await archive_of(store.images.values(), layers=options.get("layers", "keep"))
    return events


def early(store: EarlyStore) -> list[int]:
    """Return which of the layers were asked for early."""
    digests = [layer.descriptor.digest for layer in LAYERS]
    return [digests.index(digest) for digest in store.asked_early]


# ── which ──

DECOMPRESS = {"layers": "decompress"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 3]),
        ({"jobs": 1}, []),
        ({"jobs": 4}, [1, 3, 4, 0]),
        ({"jobs": 64}, [1, 3, 4, 0, 2]),
        ({"resume": True}, []),
        (DECOMPRESS, [0, 1]),
        ({**DECOMPRESS, "jobs": 4}, [0, 1, 2, 3]),
        ({**DECOMPRESS, "jobs": 1}, []),
    ],
    ids=str,
)
async def test_as_many_layers_are_prefetched_as_are_read_at_once(
    options: dict[str, Any], expected: list[int], target: Path
) -> None:
    """Those that are read first, each once."""
    store = EarlyStore({"image": IMAGE})
    await save_store(store, target, **options)
    assert early(store) == expected
    assert len(store.openings) == len(LAYERS)
    assert store.most_open <= options.get("jobs", 2)


@pytest.mark.parametrize(("options", "expected"), [({}, [0, 1]), ({**DECOMPRESS, "jobs": 3}, [0, 1, 2])])
async def test_a_stream_gets_its_first_layers_prefetched(
    options: dict[str, Any], expected: list[int]
) -> None:
    store = EarlyStore({"image": IMAGE})
    await save_store(store, ListSink(), **options)
    assert early(store) == expected
    assert len(store.openings) == len(LAYERS)


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_a_path_that_is_not_a_regular_file_gets_its_first_layers_prefetched(layers: str) -> None:
    """It is written in order, whatever its path looks like."""
    store = EarlyStore({"image": IMAGE})
    async with asyncio.timeout(LIMIT):
        await save(store.requests(), os.devnull, layers=layers, fsync=False, jobs=3)  # type: ignore[arg-type]
    assert early(store) == [0, 1, 2]
    assert store.most_open == 3


def test_a_digest_with_two_descriptors_is_read_by_the_first() -> None:
    """It is read by the first."""
    first = LAYERS[0].descriptor
    other = replace(first, urls=("https://example.com/elsewhere",))
    (chosen,) = Order("keep", is_file=False).first([first, other], 2)
    assert chosen is first


async def test_several_images_are_not_prefetched(target: Path) -> None:
    store = EarlyStore({"one": IMAGE, "two": make_image(*LAYERS[:2], author="two")})
    await save_store(store, target)
    assert store.asked_early == []


async def test_a_layer_that_an_image_has_twice_is_prefetched_once(target: Path) -> None:
    store = EarlyStore({"image": make_image(LAYERS[0], LAYERS[0], LAYERS[1])})
    await save_store(store, target, jobs=3)
    assert early(store) == [1, 0]
    assert len(store.openings) == 2


async def test_an_image_without_layers_is_not_prefetched(target: Path) -> None:
    store = EarlyStore({"image": make_image()})
    await save_store(store, target)
    assert store.openings == []


# ── what is promised all the same ──


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_nothing_is_read_or_told_before_all_is_known(layers: str, target: Path) -> None:
    store = EarlyStore({"image": IMAGE}, rounds=100)
    events = await save_store(store, target, layers=layers)
    assert store.given_early == 0
    assert [type(event) for event in events[:2]] == [SaveStarted, LayerStarted]


async def space_for(image: Image, target: Path, monkeypatch: pytest.MonkeyPatch, spare: int) -> list[int]:
    """Save with so much space; return what was asked for early."""
    store = EarlyStore({"image": image})
    sizes = sum(layer.descriptor.size or 0 for layer in image.layers) + 4 * len(image.config)
    space = sizes + len(image.layers) * prefetch._METADATA_OF_LAYER + prefetch._METADATA + spare

    async def told(_: object) -> Place:
        return Place(is_file=True, space=space)

    monkeypatch.setattr("aiodockersave.pipeline.save.look_at", told)
    await save_store(store, target)
    return early(store)


async def test_layers_that_may_not_fit_are_not_prefetched(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await space_for(IMAGE, target, monkeypatch, 0) == [1, 3]
    assert await space_for(IMAGE, target, monkeypatch, -1) == []


async def test_the_space_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    for name in ("new", "old"):
        is_file, space = await look_at(tmp_path / name)
        assert is_file
        assert space is not None
        assert 0 < space <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert await look_at(tmp_path / "missing" / "new") == (True, None)
    assert await look_at("/proc/new") == (True, None)  # says nothing of itself
    assert await look_at(os.devnull) == await look_at(tmp_path) == (False, None)


@pytest.mark.parametrize("layers", ["keep", "decompress"])
async def test_layers_that_do_not_fit_are_not_prefetched(
    layers: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And said as ever."""
    look, look_beside = os.fstatvfs, os.statvfs

    class Full:
        def __init__(self, there: os.statvfs_result) -> None:
            self.f_blocks, self.f_frsize, self.f_bavail = there.f_blocks, 1, 5000

    monkeypatch.setattr(os, "fstatvfs", lambda fd: Full(look(fd)))
    monkeypatch.setattr(os, "statvfs", lambda path: Full(look_beside(path)))
    store = EarlyStore({"image": IMAGE})
    with pytest.raises(InsufficientSpaceError):
        await save_store(store, target, layers=layers)
    assert store.openings == []


# ── what goes wrong ──


@pytest.mark.parametrize("rounds", [0, 1, 2, 10])
async def test_an_image_that_is_refused_leaves_nothing_open(rounds: int, target: Path) -> None:
    store = EarlyStore({"image": IMAGE}, rounds=rounds)
    store.config_error = SourceError("no config")
    with pytest.raises(SourceError, match="no config"):
        await save_store(store, target, jobs=4)
    assert store.open_now == 0
    assert target.read_bytes() == OLD


async def test_a_config_that_is_not_json_leaves_nothing_open(target: Path) -> None:
    broken = make_image(*LAYERS)
    store = EarlyStore({"image": broken})
    resolve = store.resolve

    async def resolve_wrong(*args: Any) -> Any:
        found = await resolve(*args)
        object.__setattr__(found, "config", b"{")
        return found

    store.resolve = resolve_wrong  # type: ignore[method-assign, assignment]
    with pytest.raises(InvalidDocumentError):
        await save_store(store, target, jobs=4)
    assert len(store.openings) == 4
    assert store.open_now == store.given.total() == 0


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("number", [0, 1, 3])
async def test_a_layer_that_cannot_be_opened_ends_the_save(number: int, layers: str, target: Path) -> None:
    """It is said when its turn comes, of the image that it is of."""
    store = EarlyStore({"image": IMAGE})
    store.fails_at[LAYERS[number].descriptor.digest] = -1
    with pytest.raises(StoreFailedError):
        await save_store(store, target, layers=layers, jobs=4)
    assert store.open_now == 0
    assert target.read_bytes() == OLD


class UnclosableStore(EarlyStore):
    """Complains when a blob is closed."""

    @contextlib.asynccontextmanager
    async def open_blob(self, descriptor: Descriptor, **_: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().open_blob(descriptor) as chunks:
            yield chunks
        raise OSError("cannot be closed")

    async def resolve_early(self, *args: Any) -> ResolvedImage:
        return await super().resolve_early(*args)

    async def resolve(self, *args: Any) -> ResolvedImage:
        return await super().resolve(*args)


@pytest.mark.parametrize("way", ["cancel", "timeout", "config"])
async def test_an_error_while_closing_is_a_note(way: str, target: Path) -> None:
    store = UnclosableStore({"image": IMAGE}, rounds=10 if way == "config" else 10**6)
    store.config_error = SourceError("no config")
    task = asyncio.ensure_future(save(store.requests(), target, jobs=4))
    expected: type[BaseException] = {"config": SourceError}.get(way, asyncio.CancelledError)
    if way == "timeout":
        expected = TimeoutError
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):  # not a verdict: whenever it is over, this is what comes out
                await task
    else:
        if way == "cancel":
            async with asyncio.timeout(LIMIT):
                while store.open_now < 4:
                    await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(expected) as caught:
            await task
        notes = getattr(caught.value, "__notes__", [])
        assert notes.count("while cleaning up: cannot be closed") == 4
        assert task.cancelled() == (way == "cancel")
    assert store.open_now == 0
    assert target.read_bytes() == OLD


async def test_one_that_fails_and_is_never_asked_for_is_not_complained_of(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EarlyStore({"image": IMAGE})
    store.config_error = SourceError("no config")
    store.fails_at = dict.fromkeys(store.blobs, -1)
    with pytest.raises(SourceError, match="no config"):
        await save_store(store, target, jobs=4)
    gc.collect()
    assert caplog.records == []


async def test_what_is_read_once_more_is_opened_anew(target: Path) -> None:
    """A hint that lies makes the layers behind it be given up."""
    told = len(LAYERS[0].plain) + 512
    store = EarlyStore({"image": IMAGE})
    lying = LAYERS[0].blob[:-4] + told.to_bytes(4, "little")
    store.blobs[LAYERS[0].descriptor.digest] = lying
    with pytest.raises(DigestMismatchError):
        await save_store(store, target, jobs=4)
    store.blobs[LAYERS[0].descriptor.digest] = LAYERS[0].blob
    await save_store(store, target, jobs=4)


def asked_of(store: EarlyStore, jobs: int = 1) -> Ahead:
    asked = Ahead(Order("keep", is_file=False), jobs=jobs, space=None)
    asked.ask(store, IMAGE.manifest)
    return asked


async def test_a_prefetched_blob_is_claimed_once() -> None:
    store = EarlyStore({"image": IMAGE})
    layer = LAYERS[0].descriptor
    async with asked_of(store) as asked:
        open_blob = asked.opener(store, layer)
        for times in (1, 2):
            async with open_blob(layer) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == LAYERS[0].blob
            assert len(store.openings) == times
        async with open_blob(layer, start=1000) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == LAYERS[0].blob[1000:]
        other = LAYERS[1].descriptor
        async with asked.opener(store, other)(other) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == LAYERS[1].blob


async def test_a_manifest_that_comes_twice_is_prefetched_once() -> None:
    store = EarlyStore({"image": IMAGE})
    async with asked_of(store, jobs=3) as asked:
        asked.ask(store, IMAGE.manifest)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(store.openings) == store.open_now == 3
    assert store.open_now == 0


async def test_a_part_does_not_claim_the_whole() -> None:
    store = EarlyStore({"image": IMAGE})
    layer = LAYERS[0].descriptor
    async with asked_of(store) as asked:
        async with asked.opener(store, layer)(layer, start=1000) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == LAYERS[0].blob[1000:]
        assert store.open_now == 1  # the whole waits
    assert store.open_now == 0


class Quick:
    """A blob that is closed without waiting, and only by being left."""

    def __init__(self, store: QuickStore, descriptor: Descriptor) -> None:
        self._store = store
        self._descriptor = descriptor

    async def __aenter__(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        self._store.open_now += 1
        return self._store._chunks(self._descriptor.digest, 0)

    async def __aexit__(self, *_: object) -> None:
        self._store.open_now -= 1
        if self._store.is_broken:
            raise OSError("cannot be closed")


class QuickStore(EarlyStore):
    """Gives such blobs; one that is broken complains when they are closed."""

    is_broken = False

    def open_blob(self, descriptor: Descriptor, **_: Any) -> Quick:  # type: ignore[override]
        return Quick(self, descriptor)


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_cancel_in_the_moment_in_which_it_is_open(is_broken: bool) -> None:
    store = QuickStore({"image": IMAGE})
    store.is_broken = is_broken
    layer = LAYERS[0].descriptor
    caught: list[BaseException] = []
    async with asked_of(store) as asked:

        async def claim() -> None:
            try:
                async with asked.opener(store, layer)(layer):
                    raise AssertionError("it was cancelled before")
            except BaseException as exc:
                caught.append(exc)
                raise

        task = asyncio.ensure_future(claim())
        asked._asked[layer.digest].task.add_done_callback(lambda _: task.cancel())
        await asyncio.wait([task])
        assert task.cancelled()
        assert store.open_now == 0
    notes = getattr(caught[0], "__notes__", [])
    assert notes == (["while cleaning up: cannot be closed"] if is_broken else [])


@pytest.mark.parametrize("claims", [False, True])
@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
async def test_a_coroutine_that_is_closed_leaves_nothing_open(rounds: int, claims: bool) -> None:
    """Nothing can be awaited then."""
    store = QuickStore({"image": IMAGE})

    async def use() -> None:
        async with asked_of(store) as asked:
            if claims:
                async with asked.opener(store, LAYERS[0].descriptor)(LAYERS[0].descriptor):
                    await asyncio.get_running_loop().create_future()
            await asyncio.get_running_loop().create_future()

    coroutine = use()
    coroutine.send(None)
    for _ in range(rounds):
        await asyncio.sleep(0)
    assert store.open_now == (rounds > 1)
    coroutine.close()
    for _ in range(10):
        await asyncio.sleep(0)
    assert store.open_now == 0


# ── a registry ──


@pytest.mark.parametrize(("jobs", "expected"), [(1, 0), (3, 3)])
async def test_a_registry_is_asked_while_the_config_comes(jobs: int, expected: int, target: Path) -> None:
    asked_then: list[str] = []
    async with (
        FaultyRegistry({"team/app:1": IMAGE}, [refuse(503).of("config").often(3)]) as registry,
        RegistrySource(plain_http=True, sleep=no_sleep) as source,
    ):

        def note(event: Event) -> None:
            if isinstance(event, SaveStarted):
                asked_then.extend(ask.path for ask in registry.asks)

        request = ImageRequest(source, f"{registry.address}/team/app:1", ["a:1"])
        await save([request], target, jobs=jobs, fsync=False, progress=note)
        assert target.read_bytes() == await archive_of([IMAGE])
        digests = [layer.descriptor.digest for layer in LAYERS]
        assert sum(str(digest) in path for digest in digests for path in asked_then) == expected
        assert sum("blobs" in ask.path and ask.path not in asked_then for ask in registry.asks) >= 2


@pytest.mark.parametrize("path", [None, os.devnull], ids=["a file", "no file"])
async def test_a_lent_session_is_not_kept_from_the_config(path: str | None, target: Path) -> None:
    """It may have few connections, and a blob that waits unread keeps one."""
    layers = [make_layer(NOISE.randbytes(size << 20), None) for size in (2, 4, 3)]
    image = make_image(*layers, repo_tags=["a:1"])
    async with (
        asyncio.timeout(LIMIT),
        FaultyRegistry({"team/app:1": image}, [refuse(503).of("config").often(1)]) as registry,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as session,
        RegistrySource(plain_http=True, session=session, sleep=no_sleep) as source,
    ):
        request = ImageRequest(source, f"{registry.address}/team/app:1", ["a:1"])
        await save([request], path or target, fsync=False)
        assert [ask.kind for ask in registry.asks[:4]] == ["manifest", "config", "config", "blob"]
    assert path or target.read_bytes() == await archive_of([image])


class Checked(RegistrySource):
    """Refuses images."""

    async def resolve(self, reference: str, platform: Platform | None = None) -> ResolvedImage:
        raise SourceError("not signed")


class Wrapped:
    """Refuses images, and has all else of another."""

    def __init__(self) -> None:
        self._source = EarlyStore({"image": IMAGE})

    resolve, open_blob = Checked.resolve, EarlyStore.open_blob

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


@pytest.mark.parametrize("new_source", [Checked, Wrapped])
async def test_a_source_of_which_a_verb_was_changed(new_source: Any, target: Path) -> None:
    with pytest.raises(SourceError, match="not signed"):
        await save([ImageRequest(new_source(), "image")], target)


class Changed(RegistrySource):
    """Opens blobs in a way of its own, which may be bound to its task."""

    open_blob = EarlyStore.open_blob


def test_sources_with_the_method_of_their_own_class_are_asked_early() -> None:
    sources: list[Any] = [RegistrySource(), EarlyStore({}), QuickStore({}), Store({}), Changed(), Wrapped()]
    assert [opens_early(each) for each in sources] == [True, True, False, False, False, False]


def powers(source: Sequence[type]) -> list[bool]:
    return [issubclass(each, SupportsEarlyBlobs) for each in source]


def test_the_protocol_of_early_blobs_knows_its_sources() -> None:
    assert powers([RegistrySource, EarlyStore, Store]) == [True, True, False]
