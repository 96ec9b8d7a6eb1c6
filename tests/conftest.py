"""What holds for every test: nothing is left behind, and nothing blocks the loop's thread.

Also the two kinds of tests that are not always run: ``interop`` (real programs) and ``slow``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from blockbuster import BlockBuster, BlockBusterFunction, BlockingError
from pytest_asyncio import is_async_test

from aiodockersave.core.model import Platform
from aiodockersave.sources import default_platform
from tests.interop.programs import require_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

FOR_IMAGES = Platform(
    "linux", "amd64"
)  # what the configs of the tests' images say, unless a test wants another
LEFT_FILES = (".*.tmp", "*.part")  # what `open_archive` and a resumable save call their unfinished files
GRACE = 60.0  # seconds that what is ending already, a thread or a descriptor, may take on a busy machine


# On top of the profile that hypothesis chose (it has one for CI): no limit of 200 ms for an example, and no complaint
# that examples are made slowly, since a busy machine would break both; pytest's limit for the whole test stays. And no explanation of failures: it
# traces every line, and its own calls of the file system would count as the package's (`nothing_blocks`).
hypothesis.settings.register_profile(
    "patient",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[*hypothesis.settings().suppress_health_check, hypothesis.HealthCheck.too_slow],
    phases=[phase for phase in hypothesis.settings().phases if phase is not hypothesis.Phase.explain],
)
hypothesis.settings.load_profile("patient")


# ── which tests run ──


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure() -> None:
    """Make what is inherited the same everywhere."""
    if (
        default_platform() != FOR_IMAGES
    ):  # else every command of every test would say that the images are for another
        os.environ.setdefault("AIODOCKERSAVE_PLATFORM", str(FOR_IMAGES))
    # Signals as in the foreground: what nohup, or a shell for a job behind, ignores would be inherited.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        slow = {item for item in items if item.get_closest_marker("slow")}
        config.hook.pytest_deselected(items=[item for item in items if item in slow])
        items[:] = [item for item in items if item not in slow]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("interop"):
        for program in marker.args:
            require_program(program)


# ── nothing is left behind ──


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task running or an async generator open."""
    loop = asyncio.get_running_loop()
    tasks_before, generators_before = asyncio.all_tasks(), _open_generators(loop)
    yield
    tasks = asyncio.all_tasks() - tasks_before - {asyncio.current_task()}
    left = [repr(thing) for thing in (*tasks, *_open_generators(loop) - generators_before)]
    assert not left, "left on the loop: " + "; ".join(left)


def _open_generators(loop: asyncio.AbstractEventLoop) -> set[object]:
    # The set that `loop.shutdown_asyncgens` works through; other loops than asyncio's own have none.
    known = getattr(loop, "_asyncgens", ())
    return {generator for generator in known if generator.ag_frame is not None}


@pytest.fixture(autouse=True)
def _no_tasks_left_by_async_tests(request: pytest.FixtureRequest, nothing_left: None) -> None:
    if is_async_test(request.node):  # the others have no loop
        request.getfixturevalue("no_tasks_left")


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give this process and its children a temporary folder of their own, so that leftovers show."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, _temporary_folder: Path) -> Iterator[None]:
    """Fail a test that leaves a thread, a file descriptor or a temporary file.

    Set up first and torn down last, that is, after the test's loop was closed.
    """
    threads_before = set(threading.enumerate())
    descriptors_before = _open_descriptors()
    temporary_before = set(_temporary_folder.iterdir())
    yield
    left = [
        *_wait_until_none(
            lambda: [repr(thread) for thread in threading.enumerate() if thread not in threads_before]
        ),
        *_wait_until_none(lambda: sorted(_open_descriptors() - descriptors_before)),
        *(str(path) for path in set(_temporary_folder.iterdir()) - temporary_before),
    ]
    # pytest has taken them away where the run ends at this test (-x).
    folder: Path | None = (getattr(request.node, "funcargs", None) or {}).get("tmp_path")
    if folder is not None:
        left += [str(path) for pattern in LEFT_FILES for path in folder.rglob(pattern)]
    assert not left, "left behind: " + "; ".join(left)


def _wait_until_none(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + GRACE
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _open_descriptors() -> set[str]:
    """Name every open file descriptor with what it points at; empty where there is no ``/proc``."""
    found = set()
    try:
        listing = os.listdir("/proc/self/fd")  # noqa: PTH208
    except OSError:
        return set()
    for number in listing:
        try:
            found.add(f"descriptor {number}: {os.readlink(f'/proc/self/fd/{number}')}")  # noqa: PTH115
        except OSError:  # the descriptor of the listing itself
            continue
    return found


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Take back what a command that ran in this process has made of the package's logger."""
    logger = logging.getLogger("aiodockersave")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


# ── nothing blocks the loop's thread ──

# Calls that blockbuster does not know by itself, and the library makes.
MORE_BLOCKING_CALLS = (
    "builtins.open",
    "io.open",  # what pathlib calls
    "os.fdatasync",
    "os.fsync",
    "os.ftruncate",
    "os.open",
    "os.pread",
    "os.preadv",
    "os.pwrite",
    "os.pwritev",
    "os.truncate",
)

# Where the package may block its loop, with the reason: (end of the file's name, function).
MAY_BLOCK: tuple[tuple[str, str], ...] = (
    # The import of an optional dependency, once, when it is first needed.
    ("<frozen importlib._bootstrap>", "_find_and_load"),
    # asyncio starts a program in the loop's thread: a fork, and a wait until it is the program.
    ("asyncio/unix_events.py", "_start"),
    # Where a record goes is the application's matter, and how its handlers write.
    ("logging/__init__.py", "callHandlers"),
    # What is open already is looked at and opened anew through /proc: no disk is asked.
    ("aiodockersave/sinks/adapters.py", "_is_readable"),
    ("aiodockersave/sinks/pipes.py", "_open_anew"),
    # Sends what there is room for, whatever the mode of the descriptor (MSG_DONTWAIT).
    ("aiodockersave/sinks/pipes.py", "_send_now"),
    # Cleans up where no thread can be started.
    ("aiodockersave/_aio.py", "submit_always"),
    # Where a coroutine is closed, and nothing can be awaited: what no thread works on is closed at once, a write is waited for.
    ("aiodockersave/_aio.py", "_run_quietly"),
    ("aiodockersave/_aio.py", "finish"),
    # Opens a FIFO without waiting for its reader.
    ("aiodockersave/sinks/atomic_file.py", "open_stream"),
)


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[BlockBuster]:
    """Fail a test in which code of the package blocks the thread of a running loop.

    Only calls with a frame of the package on the stack count: tests may block as they like. The error
    is raised where the call is made, and kept as well, since the code under test may handle it.

    Set up before ``monkeypatch`` and torn down behind it, with a patch of its own: what a test has patched of ``os``
    would come back otherwise as it was found, that is, watched for ever.
    """
    seen: list[str] = []
    init = BlockingError.__init__

    def remember(self: BlockingError, func: str) -> None:
        stack = [frame for frame in traceback.extract_stack() if "aiodockersave" in frame.filename]
        where = f"{stack[-1].filename}:{stack[-1].lineno}" if stack else "unknown"
        seen.append(f"{func} at {where}")
        init(self, func)

    blockbuster = BlockBuster("aiodockersave")
    for name in MORE_BLOCKING_CALLS:
        blockbuster.functions[name] = BlockBusterFunction(None, name, scanned_modules="aiodockersave")
    for function in blockbuster.functions.values():
        for filename, allowed in MAY_BLOCK:
            function.can_block_in(filename, allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockingError, "__init__", remember)
        blockbuster.activate()
        yield blockbuster
        blockbuster.deactivate()
    assert not seen, "blocked the loop: " + "; ".join(seen)
