"""Whole processes beside skopeo's, from a registry on loopback into files, in alternating order.

skopeo brings nothing to the disk, so what is compared is ``--no-fsync``; the default is shown beside it, and what the
SHA-256 of the whole archive costs. For skopeo, whatever it is told, ``dir:`` keeps layers as they are and
``docker-archive:`` decompresses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .figures import Figure, Settings, print_table
from .images import Stored, cache_folder, stored_images
from .processes import NAME, Usage, clean_up, save_command, skopeo_command, timed

BARS = {
    ("large", "decompress"): 0.33,
    ("huge", "decompress"): 0.33,
    ("large", "keep"): 0.52,
    ("huge", "keep"): 0.42,
}
"""The part of skopeo's time that ours may take."""
QUIET = 0.7
"""The machine's load in the last minute up to which a ratio of seconds means something."""
PEERS = {"decompress": "docker-archive", "keep": "dir"}
OPTIONS = (("--no-fsync",), ("--no-fsync", "--checksum"), ())


@dataclass(frozen=True)
class Contender:
    """A program with its options.

    Attributes:
        name: As it stands in the table.
        kind: What it makes: a way of skopeo's, or one of our ``--layers``.
        options: Of ours.
    """

    name: str
    kind: str
    options: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is measured, and not measured against."""
        return self.kind in PEERS

    def command(self, image: Stored, target: Path) -> list[str]:
        """Return what is run."""
        if self.is_ours:
            return save_command(image.reference, target, f"--layers={self.kind}", *self.options)
        suffix = f":{NAME}" if self.kind == "docker-archive" else ":measured" if self.kind == "oci" else ""
        return skopeo_command(image.reference, f"{self.kind}:{target}{suffix}")


@dataclass(frozen=True)
class Row:
    """The time of one contender: seconds, medians unless said otherwise."""

    name: str
    kind: str
    seconds: float
    fastest: float
    slowest: float
    cpu: float

    @classmethod
    def of(cls, contender: Contender, runs: list[Usage]) -> Row:
        seconds = [run.seconds for run in runs]
        return cls(
            contender.name,
            contender.kind,
            statistics.median(seconds),
            min(seconds),
            max(seconds),
            statistics.median(run.cpu for run in runs),
        )


def notes_of(settings: Settings) -> Path:
    """Return where the last medians at this scale are kept."""
    return cache_folder() / f"speed-{settings.scale * 100:g}.json"


def contenders(save_options: tuple[str, ...]) -> Iterator[Contender]:
    """Yield skopeo's ways and all of ours."""
    for mode, peer in PEERS.items():
        yield Contender(f"skopeo copy … {peer}:", peer)
        if mode == "keep":
            yield Contender("skopeo copy … oci:", "oci")
        for options in OPTIONS:
            name = " ".join(("save", f"--layers {mode}", *options, *save_options))
            yield Contender(name, mode, (*options, *save_options))


def measure(image: Stored, settings: Settings, folder: Path) -> list[Row]:
    """Run all of them on one image, round after round."""
    all_of_them = list(contenders(settings.save_options))
    runs: dict[Contender, list[Usage]] = {contender: [] for contender in all_of_them}
    digests: dict[str, set[str]] = {}
    for number in range(settings.runs):
        # Every other round the other way round, so that none always follows the same one.
        for contender in all_of_them if number % 2 == 0 else reversed(all_of_them):
            target = folder / "target"
            runs[contender].append(timed(contender.command(image, target)))
            if number == 0 and target.is_file():
                kind = PEERS.get(contender.kind, contender.kind)
                digests.setdefault(kind, set()).add(_sha256(target))
            clean_up(target)
    if any(len(found) != 1 for found in digests.values()):
        raise AssertionError(f"archives that must be the same, and skopeo's, are not: {digests}")
    return [Row.of(contender, taken) for contender, taken in runs.items()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report(name: str, rows: list[Row]) -> list[Figure]:
    """Print the table of one image, and return what its bars are for."""
    peers = {row.kind: row for row in rows}
    table: list[tuple[object, ...]] = []
    figures = []
    for row in rows:
        peer = PEERS.get(row.kind)
        ratio = row.seconds / peers[peer].seconds if peer else None
        cpu = row.cpu / peers[peer].cpu if peer else None
        verdict = ""
        if ratio is not None and "--no-fsync" in row.name:
            figure = Figure(
                f"{name}, {row.name.removeprefix('save --layers ')} ÷ skopeo {peer}:",
                ratio,
                BARS[name, row.kind],
            )
            figures.append(figure)
            verdict = f"{figure.bar}: {'met' if figure.is_met else 'MISSED'}"
        table.append((row.name, row.seconds, row.fastest, row.slowest, ratio, verdict, row.cpu, cpu))
    print_table(("seconds", "median", "min", "max", "ratio", "bar", "CPU", "ratio"), table)
    return figures


def main(settings: Settings) -> list[Figure]:
    """Measure both images; keep the medians for the picture."""
    if (busy := os.getloadavg()[0]) > QUIET:
        print(f"the machine is not idle (load {busy:.1f}): ratios of seconds mean little, of CPU more")
    figures: list[Figure] = []
    measured = {}
    with (
        stored_images(*("large", "huge"), scale=settings.scale) as images,
        tempfile.TemporaryDirectory(dir=settings.folder) as folder,
    ):
        for name, image in zip(("large", "huge"), images, strict=True):
            print(f"\n{image}; medians of {settings.runs}")
            rows = measure(image, settings, Path(folder))
            figures += report(name, rows)
            measured[name] = {"image": str(image), "rows": [asdict(row) for row in rows]}
    notes_of(settings).write_text(json.dumps(measured, indent=1))
    return figures
