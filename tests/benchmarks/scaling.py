"""The cost of size, number of layers, jobs and latency: time per byte, and the command's peak memory.

``size`` is that of a layer in the archive: kept as it is, or decompressed from gzip. Images come from `piece_registry`.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .figures import Figure, Settings, print_table
from .piece_registry import Form, PieceImage, running_pieces, warm_up
from .processes import Observed, clean_up, only_supported, save_command, supports, timed

FORMS: dict[str, Form] = {"keep": "tar", "decompress": "gzip"}
MB = 10**6
SIZES = (1 * MB, 40 * MB, 400 * MB, 4000 * MB)  # bytes of one layer
COUNTS = ((1, 1 * MB), (16, 1 * MB), (64, 1 * MB), (500, 1 * MB), (500, 8 * MB))  # layers, bytes of each
JOBS = (1, 2, 4, 8)
LATENCIES = (0, 10, 100)  # milliseconds
TIME_BAR = 1.15
MEMORY_BAR = 8.0  # MiB
LATENCY_BAR = 2.5
TIMED = 3  # runs of each where time is compared, however many are wanted


@dataclass(frozen=True)
class Case:
    """One way of running the command."""

    mode: str
    layers: int
    size: int
    jobs: int | None = None
    latency: int = 0

    @property
    def image(self) -> PieceImage:
        """The images that it saves."""
        return PieceImage(FORMS[self.mode], self.layers, self.size, self.latency)


class Bench:
    """Runs cases against one registry."""

    def __init__(self, address: str, folder: Path, options: tuple[str, ...]) -> None:
        self._address = address
        self._target = folder / "target"
        self._options = options

    def seconds(self, case: Case, times: int = 1) -> float:
        """Run a case so many times as a user does; return the median of what it took."""
        warm_up(self._address, case.image)
        found = []
        for _ in range(times):
            found.append(
                timed(
                    save_command(case.image.reference(self._address), self._target, *self._how(case))
                ).seconds
            )
            clean_up(self._target)
        return statistics.median(found)

    def peak(self, case: Case, times: int = 1) -> float:
        """Run a case so many times; return its largest VmHWM in MiB."""
        warm_up(self._address, case.image)
        found = []
        for _ in range(times):
            with Observed(case.image.reference(self._address), self._target, *self._how(case)) as run:
                run.finish()
                found.append(run.peak / 2**20)
            clean_up(self._target)
        return max(found)

    def _how(self, case: Case) -> list[str]:
        jobs = [] if case.jobs is None else only_supported([f"--jobs={case.jobs}"])
        return [f"--layers={case.mode}", "--no-fsync", "--quiet", "--plain-http", *self._options, *jobs]


def measure_sizes(bench: Bench, mode: str, scale: float) -> tuple[list[Figure], list[float]]:
    """Compare one layer of each size; return figures, and peaks in MiB."""
    cases = {size: Case(mode, 1, int(size * scale)) for size in SIZES}
    seconds = {size: bench.seconds(case, TIMED) for size, case in cases.items()}
    peaks = {size: bench.peak(case) for size, case in cases.items()}
    table = [
        (
            f"{mode}, one layer of {size * scale / MB:,g} MB",
            seconds[size],
            seconds[size] / (size * scale) * 1e9,
            peaks[size],
        )
        for size in SIZES
    ]
    print_table(("", "seconds", "s per GB", "peak MiB"), table)
    *_, shorter, longer = SIZES
    ratio = (seconds[longer] / longer) / (seconds[shorter] / shorter)
    figure = Figure(f"{mode}: time per byte at 4 GB ÷ at 400 MB", ratio, TIME_BAR)
    return [figure], list(peaks.values())


def measure_counts(bench: Bench, mode: str, scale: float) -> list[float]:
    """Compare numbers of layers; return peaks in MiB."""
    table, peaks = [], []
    for layers, size in COUNTS:
        case = Case(mode, layers, int(size * scale))
        seconds = bench.seconds(case)
        peaks.append(bench.peak(case))
        table.append(
            (f"{mode}, {layers} of {size * scale / MB:g} MB", seconds, seconds / layers * 1000, peaks[-1])
        )
    print_table(("", "seconds", "ms per layer", "peak MiB"), table)
    return peaks


def measure_latency(bench: Bench, mode: str, scale: float) -> list[Figure]:
    """Compare jobs and latencies on 16 layers of 1 MB."""
    found = {
        (jobs, latency): bench.seconds(Case(mode, 16, int(MB * scale), jobs, latency), TIMED)
        for latency in LATENCIES
        for jobs in (JOBS if supports("--jobs") else JOBS[:1])
    }
    table = [
        (f"{mode}, 16 of {scale:g} MB, {latency} ms, {jobs} jobs", seconds)
        for (jobs, latency), seconds in found.items()
    ]
    print_table(("", "seconds"), table)
    if not supports("--jobs"):
        print("--jobs is not there: nothing to compare")
        return []
    times = found[1, 100] / found[4, 100]
    return [
        Figure(f"{mode}: 100 ms, 16 layers of 1 MB: 4 jobs beat 1", times, LATENCY_BAR, "×", at_least=True)
    ]


def main(settings: Settings) -> list[Figure]:
    """Measure both modes."""
    figures: list[Figure] = []
    with running_pieces() as address, tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        bench = Bench(address, Path(folder), settings.save_options)
        for mode in FORMS:
            found, peaks = measure_sizes(bench, mode, settings.scale)
            figures += found
            peaks += measure_counts(bench, mode, settings.scale)
            spread = max(peaks) - min(peaks)
            figures.append(Figure(f"{mode}: peak memory, largest - smallest", spread, MEMORY_BAR, " MiB"))
            figures += measure_latency(bench, mode, settings.scale)
    return figures
