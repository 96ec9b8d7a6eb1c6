"""The heap of the command's process: one for all threads, and free memory is given back."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiodockersave import cli
from aiodockersave.cli import heap
from aiodockersave.pipeline import save as pipeline
from tests.support.images import make_image, make_layer, write_layout
from tests.support.interruption import outcome_of

LIMIT = 60.0  # seconds for anything that is waited for
THREADS = """
import ctypes, sys, threading
from aiodockersave.cli import heap

if sys.argv[1] == "set up":
    heap.set_up()
kept = [bytes(4 << 20)]
threads = [threading.Thread(target=lambda: kept.append(bytes(1000))) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""
needs_glibc = pytest.mark.skipif(
    heap._function("mallopt") is None or heap._function("malloc_stats") is None, reason="needs glibc"
)


@needs_glibc
@pytest.mark.parametrize("how", ["set up", "as it is"])
def test_threads_share_one(how: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", THREADS, how], check=True, capture_output=True, text=True, timeout=LIMIT
    ).stderr
    mapped = re.search(r"max mmap bytes *= *(\d+)", told)
    assert mapped is not None, told
    found = told.count("Arena ") == 1, int(mapped[1]) < 4 << 20  # what is large is in it too
    assert found == ((True, True) if how == "set up" else (False, False)), told


class Trimmer:
    """Stands for ``malloc_trim``.

    Attributes:
        threads: Those that called it, each time.
    """

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self, pad: int) -> int:
        assert pad == 0
        self.threads.append(threading.current_thread())
        return 1


@pytest.fixture
def trimmer(monkeypatch: pytest.MonkeyPatch) -> Trimmer:
    trimmer = Trimmer()
    functions: dict[str, Callable[..., int]] = {"malloc_trim": trimmer}
    monkeypatch.setattr(heap, "_function", functions.get)
    monkeypatch.setattr(heap, "_PERIOD", 0.001)
    return trimmer


async def called_some_times(trimmer: Trimmer) -> None:
    async with asyncio.timeout(LIMIT):
        while len(trimmer.threads) < 3:
            await asyncio.sleep(0.001)


async def test_given_back_in_a_thread_while_the_block_runs(trimmer: Trimmer) -> None:
    async with heap.giving_back():
        await called_some_times(trimmer)
    calls = len(trimmer.threads)
    assert threading.current_thread() not in trimmer.threads
    await asyncio.sleep(0.02)
    assert len(trimmer.threads) == calls
    assert not [thread for thread in threading.enumerate() if thread.name == "aiodockersave-heap"]


async def test_an_error_in_the_block_ends_it(trimmer: Trimmer) -> None:
    async def fail() -> None:
        async with heap.giving_back():
            await called_some_times(trimmer)
            raise OSError("full")

    assert str(await outcome_of(fail())) == "full"
    assert len(asyncio.all_tasks()) == 1


async def test_a_cancel_ends_it(trimmer: Trimmer) -> None:
    async def wait() -> None:
        async with heap.giving_back():
            await asyncio.Event().wait()

    task = asyncio.ensure_future(outcome_of(wait()))
    await called_some_times(trimmer)
    task.cancel()
    assert isinstance(await task, asyncio.CancelledError)
    assert len(asyncio.all_tasks()) == 1


def test_the_command_sets_it_up_and_gives_back_until_all_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    save = pipeline.save

    async def saving(*args: Any, **options: Any) -> Any:
        report = await save(*args, **options)
        done.append("saved")
        return report

    monkeypatch.setattr(pipeline, "save", saving)

    @asynccontextmanager
    async def giving_back() -> AsyncIterator[None]:
        done.append("begun")
        yield
        done.append("ended")

    monkeypatch.setattr(heap, "set_up", lambda: done.append("set up"))
    monkeypatch.setattr(heap, "giving_back", giving_back)
    layout = tmp_path / "layout"
    layout.mkdir()
    write_layout(layout, {"one": make_image(make_layer({"a": b"b"}))})
    assert cli.main(["save", f"oci:{layout}:one=a:1", "-o", str(tmp_path / "a.tar"), "--quiet"]) == 0
    assert done == ["set up", "begun", "saved", "ended"]


async def test_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    heap.set_up()
    async with heap.giving_back():
        assert len(asyncio.all_tasks()) == 1


def test_a_function_that_the_c_library_lacks_is_none() -> None:
    assert heap._function("no_such_function_of_any_library") is None
