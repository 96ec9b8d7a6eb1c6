"""People are told of long waits, while a save or a plan runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from aiodockersave import Event, ImageRequest, OciLayoutSource, Wait, Waiting, save
from aiodockersave.core.model import Platform
from aiodockersave.pipeline import waiting
from aiodockersave.pipeline.waiting import TellingWaits
from aiodockersave.sources import ResolvedImage
from tests.support.images import make_image, make_layer, write_layout

LIMIT = 60.0
IMAGE = make_image(make_layer(b"layer", None), repo_tags=["a:1"])
LONG = Wait("manifest a", "no answer yet", 2.5, 90.0)
SHORT = Wait("manifest b", "no answer yet", 1.5, 90.0)


class Slow(OciLayoutSource):
    """Resolves when it may, and says that it waits until then."""

    def __init__(self, directory: Path, *, is_open: bool = False) -> None:
        super().__init__(directory)
        self.may_go_on = asyncio.Event()
        self._is_looked_at = False
        if is_open:
            self.may_go_on.set()

    def waits(self) -> Sequence[Wait]:
        assert not self._is_looked_at, "a look is one for each source"
        self._is_looked_at = True
        asyncio.get_running_loop().call_soon(self._looked_at)
        return [] if self.may_go_on.is_set() else [LONG, SHORT]

    def _looked_at(self) -> None:
        self._is_looked_at = False

    async def resolve(self, reference: str, platform: Platform | None = None) -> ResolvedImage:
        await self.may_go_on.wait()
        return await super().resolve(reference, platform)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "INTERVAL", 0.001)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", {"one": IMAGE})


async def test_a_save_tells_its_long_waits_time_and_again(layout: Path, tmp_path: Path) -> None:
    source = Slow(layout)
    events: list[Event] = []

    def progress(event: Event) -> None:
        events.append(event)
        if len(events) == 3:
            source.may_go_on.set()

    async with asyncio.timeout(LIMIT):
        # Two images of one source, which is asked once.
        images = [ImageRequest(source, "one", ["a:1"]), ImageRequest(source, "one", ["b:1"])]
        await save(images, tmp_path / "a.tar", progress=progress)
    assert events[:3] == [Waiting(LONG)] * 3
    assert not any(isinstance(event, Waiting) for event in events[3:])


async def test_what_the_callback_raises_ends_the_save(layout: Path, tmp_path: Path) -> None:
    def progress(event: Event) -> None:
        raise KeyError("no more")

    async with asyncio.timeout(LIMIT):
        with pytest.raises(KeyError, match="no more"):
            await save(ImageRequest(Slow(layout), "one"), tmp_path / "a.tar", progress=progress)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert not (tmp_path / "a.tar").exists()


async def test_a_cancel_of_somebody_else_stays_one(layout: Path, tmp_path: Path) -> None:
    def progress(event: Event) -> None:
        saving.cancel()
        raise KeyError("no more")

    saving = asyncio.create_task(
        save(ImageRequest(Slow(layout), "one"), tmp_path / "a.tar", progress=progress)
    )
    async with asyncio.timeout(LIMIT):
        with pytest.raises(asyncio.CancelledError):
            await saving


async def test_an_error_of_the_block_comes_first(layout: Path) -> None:
    told: list[Event] = []

    async def fail() -> None:
        async with TellingWaits([Slow(layout)], told.append):
            while not told:
                await asyncio.sleep(0.001)
            raise OSError("first")

    async with asyncio.timeout(LIMIT):
        with pytest.raises(OSError, match="first"):
            await fail()


@pytest.mark.parametrize("is_told", [True, False], ids=["quick", "nobody asks"])
async def test_nothing_is_told_where_nothing_is_long(layout: Path, is_told: bool) -> None:
    told: list[Event] = []
    async with TellingWaits([Slow(layout, is_open=is_told)], told.append if is_told else None):
        await asyncio.sleep(0.05)
    assert told == []
