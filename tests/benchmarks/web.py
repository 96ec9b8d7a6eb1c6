"""A download through ``plan_response`` beside a bare aiohttp handler that passes the same blobs through unverified.

Both are handlers of one server, which takes the blobs from a docker-registry on loopback; curl takes what it sends, and
forgets it. Alternating, in one run.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from tests.interop.programs import ProgramError, ended_at_last

from .figures import Figure, Settings, print_table
from .images import MB, stored_images
from .processes import TIME_LIMIT

RATE_BAR, RATE_AIM = 0.50, 0.65
"""The part of the bare handler's rate that ours must reach, and the part that it should reach."""
MEMORY_BAR = 120.0  # MiB of the server's peak
CLIENTS = 20
PING_INTERVAL = 0.005  # seconds between an answer and the next ping
WAYS = {"pass": "a bare handler that passes blobs through", "plan": "plan_response"}


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int

    def url(self, path: str) -> str:
        """Return the address of a handler."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def peak(self) -> float:
        """Return its VmHWM in MiB."""
        with urllib.request.urlopen(self.url("peak"), timeout=TIME_LIMIT) as response:
            return int(response.read()) / 2**20

    def start_download(self, path: str) -> subprocess.Popen[bytes]:
        """Start a client, which says how many bytes came."""
        argv = ["curl", "--silent", "--fail", "-o", "/dev/null", "-w", "%{size_download}", self.url(path)]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def finish(client: subprocess.Popen[bytes]) -> int:
    """Wait for a client; return the bytes that came.

    Raises:
        ProgramError: Not all came.
    """
    said, _ = client.communicate(timeout=TIME_LIMIT)
    if client.returncode:
        raise ProgramError([str(part) for part in client.args], f"exit code {client.returncode}", said)  # type: ignore[union-attr]
    return int(said)


@contextlib.contextmanager
def running_server(reference: str) -> Iterator[Server]:
    """Run the server in a process of its own, until the block is left."""
    argv = [sys.executable, "-m", "tests.benchmarks.web_server", reference]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        with ended_at_last(process):
            if not (port := process.stdout.readline()):
                raise ProgramError(argv, f"exit code {process.wait(TIME_LIMIT)}", b"")
            yield Server(int(port))


# ── how fast ──


def rate_of(server: Server, path: str) -> float:
    """Download once; return bytes per second."""
    start = time.perf_counter()
    received = finish(server.start_download(path))
    return received / (time.perf_counter() - start)


def measure_rates(server: Server, runs: int) -> dict[str, list[float]]:
    """Download by both ways in turn, every other time the other way round; the first time does not count."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(runs + 1):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            rate = rate_of(server, way)
            if number:
                rates[way].append(rate)
    return rates


# ── what a second handler notices ──


class Pinger(threading.Thread):
    """Asks the second handler again and again, over one connection.

    Attributes:
        delays: Seconds that each answer took.
    """

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.delays: list[float] = []
        self._server = server
        self._ended = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=TIME_LIMIT)
        with contextlib.closing(connection):
            while not self._ended.wait(PING_INTERVAL):
                start = time.perf_counter()
                connection.request("GET", "/ping")
                connection.getresponse().read()
                self.delays.append(time.perf_counter() - start)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def ping_during(server: Server, way: str | None) -> float:
    """Return the 99th percentile of a ping in milliseconds, during a download or while nothing else is asked."""
    pinger = Pinger(server)
    pinger.start()
    try:
        if way is None:
            time.sleep(2)
        else:
            finish(server.start_download(way))
    finally:
        pinger.stop()
    return statistics.quantiles(pinger.delays, n=100)[98] * 1000


def measure_pings(server: Server, runs: int) -> dict[str | None, float]:
    """Return medians, by way; None for idle."""
    ways = (None, *WAYS)
    found: dict[str | None, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            found[way].append(ping_during(server, way))
    return {way: statistics.median(values) for way, values in found.items()}


# ── memory ──


def peak_of(reference: str, way: str, clients: int) -> tuple[float, float]:
    """Return the peak of a new server in MiB, before any client and with so many at once."""
    with running_server(reference) as server:
        before = server.peak()
        running = [server.start_download(way) for _ in range(clients)]
        try:
            for client in running:
                finish(client)
        finally:
            for client in running:
                client.kill()
        return before, server.peak()


def main(settings: Settings) -> list[Figure]:
    """Measure rates, pings and memory."""
    with stored_images("large", scale=settings.scale) as (image,):
        print(f"{image}; medians of {settings.runs}")
        with running_server(image.reference) as server:
            rates = measure_rates(server, settings.runs)
            pings = measure_pings(server, settings.runs)
        peaks = {way: peak_of(image.reference, way, CLIENTS) for way in WAYS}
    ratio = statistics.median(ours / bare for ours, bare in zip(rates["plan"], rates["pass"], strict=True))
    table = [
        (
            what,
            statistics.median(rates[way]) / MB,
            min(rates[way]) / MB,
            max(rates[way]) / MB,
            pings[way],
            *peaks[way],
        )
        for way, what in WAYS.items()
    ]
    print_table(("", "MB/s", "min", "max", "ping p99 ms", "MiB at start", f"MiB, {CLIENTS} clients"), table)
    print(f"ping p99 while idle: {pings[None]:.2f} ms")
    print(f"plan_response has {ratio:.0%} of the bare handler's rate; {RATE_AIM:.0%} is aimed at")
    return [
        Figure("plan_response's part of a bare handler's rate", ratio, RATE_BAR, at_least=True),
        Figure(f"the server's peak memory, {CLIENTS} clients at once", peaks["plan"][1], MEMORY_BAR, " MiB"),
    ]
