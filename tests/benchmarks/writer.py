"""The speed of a verified ``put_layer``, beside that of the processor, and the delay of the loop meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from queue import Queue

from aiodockersave import ArchiveWriter, Descriptor, Digest, open_archive
from aiodockersave.core.model import OCI_LAYER

from .figures import Figure, Settings

SIZE = 512 << 20  # bytes of one layer
PIECE = 1 << 20  # bytes hashed or written at once by the loops that we compare with
RUNS = 7
BEAT = 0.005  # seconds between two heartbeats


async def nowhere(data: bytes) -> None:
    """Take bytes and forget them."""


def hash_alone(data: bytes) -> None:
    """Hash in one thread: the most that any verified copy can do on one processor."""
    sha256 = hashlib.sha256()
    for start in range(0, len(data), PIECE):
        sha256.update(memoryview(data)[start : start + PIECE])
    sha256.hexdigest()


def hash_and_write(data: bytes, path: Path) -> None:
    """Hash in one thread and write in another: what a program made for this file alone would do."""
    pieces: Queue[memoryview | None] = Queue(4)

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            while (piece := pieces.get()) is not None:
                file.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    sha256 = hashlib.sha256()
    for start in range(0, len(data), PIECE):
        piece = memoryview(data)[start : start + PIECE]
        pieces.put(piece)
        sha256.update(piece)
    pieces.put(None)
    thread.join()


async def put_nowhere(data: bytes, layer: Descriptor) -> None:
    async with ArchiveWriter(nowhere) as archive:
        await archive.put_layer(data, layer)


async def put_into_file(data: bytes, layer: Descriptor, path: Path) -> None:
    async with open_archive(path, fsync=False) as archive:
        await archive.put_layer(data, layer)


async def with_heartbeat(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the seconds that ``work`` takes, and the 99th percentile of a heartbeat's delay meanwhile, in seconds."""
    delays: list[float] = []

    async def beat() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT
            await asyncio.sleep(BEAT)
            delays.append(loop.time() - due)

    heart = asyncio.create_task(beat())
    await asyncio.sleep(0)
    start = time.perf_counter()
    await work()
    taken = time.perf_counter() - start
    heart.cancel()
    await asyncio.gather(heart, return_exceptions=True)
    return taken, statistics.quantiles(delays, n=100)[98]


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(settings: Settings) -> list[Figure]:
    data = os.urandom(32 << 20) * (SIZE >> 25)
    layer = Descriptor(OCI_LAYER, Digest.of(data), len(data))
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "archive.tar")
        for _ in range(RUNS):
            note("hash", timed(lambda: hash_alone(data)))
            taken, delay = asyncio.run(with_heartbeat(lambda: put_nowhere(data, layer)))
            note("null", taken)
            note("null p99", delay)
            note("loop", timed(lambda: hash_and_write(data, path)))
            path.unlink()
            taken, delay = asyncio.run(with_heartbeat(lambda: put_into_file(data, layer, path)))
            note("file", taken)
            note("file p99", delay)
            path.unlink()
            note("idle p99", asyncio.run(with_heartbeat(lambda: asyncio.sleep(0.5)))[1])
    medians = {name: statistics.median(values) for name, values in rows.items()}
    print(f"one layer of {SIZE >> 20} MiB from memory, medians of {RUNS}")
    print(f"{'hashlib.sha256, one thread':44} {medians['hash']:7.3f} s")
    for name, what, limit in (
        ("null", "put_layer to a sink that forgets", "hash"),
        ("file", "put_layer to a file, without fsync", "loop"),
    ):
        if name == "file":
            print(f"{'hash in one thread, write in another':44} {medians['loop']:7.3f} s")
        ratio = statistics.median(a / b for a, b in zip(rows[limit], rows[name], strict=True))
        print(f"{what:44} {medians[name]:7.3f} s   {ratio:4.0%} of the rate above")
    for name in ("null p99", "file p99", "idle p99"):
        print(f"{'heartbeat, ' + name:44} {medians[name] * 1000:7.2f} ms")
    return []
