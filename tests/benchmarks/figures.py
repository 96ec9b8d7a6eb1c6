"""The figures that a benchmark finds, and the bars that they are held against."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """The options of the command line for all benchmarks.

    Attributes:
        runs: How often what is timed is run.
        scale: How large images are, beside the ones that bars are meant for.
        save_options: Passed to each ``save``, as ``--jobs=4``.
        seed: Chooses the moments of kills.
        kills: How many there are.
        folder: Where archives are written; a new one in the temporary directory by default.
        plot: Where the picture goes, if wanted.
        before: A checkout of an older commit, to be measured beside.
    """

    runs: int = 5
    scale: float = 1.0
    save_options: tuple[str, ...] = ()
    seed: int = 1
    kills: int = 20
    folder: Path | None = None
    plot: Path | None = None
    before: Path | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Settings:
        """Take the options of the same names."""
        options = vars(arguments)
        return cls(**{name: options[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Figure:
    """One number with its bar.

    Attributes:
        name: What was measured.
        value: What came out.
        bar: What it must not exceed, or reach.
        unit: Of both.
        at_least: Whether more is better.
    """

    name: str
    value: float
    bar: float
    unit: str = ""
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it keeps to its bar."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        verdict = "met" if self.is_met else "MISSED"
        return f"{self.name:64} {self.value:9.2f}{self.unit}   {relation} {self.bar:g}{self.unit}: {verdict}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns: the first to the left, numbers to the right, nothing for None."""
    cells = [list(head), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip(), flush=True)


def _text(cell: object) -> str:
    return "" if cell is None else f"{cell:,.2f}" if isinstance(cell, float) else str(cell)
