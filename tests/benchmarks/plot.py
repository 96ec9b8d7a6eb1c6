"""The picture of what `speed` measured last: seconds as bars, ours beside skopeo's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .figures import Figure, Settings
from .speed import PEERS, notes_of

OURS, THEIRS, INK = "#1f77b4", "#b8bec6", "#24292f"
TITLES = {
    "decompress": ("plain layers", "save --layers decompress", "skopeo copy … docker-archive:"),
    "keep": ("layers as they are", "save --layers keep", "skopeo copy … dir:"),
}


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw one panel for each image, and write it as what the name ends in (``.svg``, ``.png``)."""
    import matplotlib as mpl  # needed here only

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "aiodockersave", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(measured), 1, figsize=(8, 1.9 * len(measured)), sharex=True)
    for panel, found in zip(panels, measured.values(), strict=True):
        _draw_panel(panel, found)
    longest = max(row["seconds"] for found in measured.values() for row in found["rows"])
    panels[-1].set_xlim(0, 1.35 * longest)  # room for what is written behind bars
    panels[-1].set_xlabel("seconds, medians: whole processes, registry on loopback, no fsync", color=INK)
    figure.tight_layout()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, facecolor="white", metadata=metadata, dpi=150)
    plt.close(figure)


def _draw_panel(panel: Any, found: dict[str, Any]) -> None:
    bars = list(_bars(found["rows"]))[::-1]  # the first on top
    panel.barh(
        range(len(bars)),
        [seconds for _, seconds, _, _ in bars],
        color=[OURS if ours else THEIRS for *_, ours in bars],
        height=0.72,
    )
    for place, (_, seconds, note, _) in enumerate(bars):
        panel.annotate(
            f"{seconds:.2f} s{note}",
            (seconds, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    panel.set_yticks(range(len(bars)), [label for label, *_ in bars], color=INK)
    panel.set_title(found["image"].partition(": ")[2], loc="left", fontsize=10, color=INK)
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _bars(rows: list[dict[str, Any]]) -> Any:
    """Yield label, seconds, what is written behind, and whether it is ours."""
    for mode, peer in PEERS.items():
        _, ours, theirs = TITLES[mode]
        peer_seconds = next(row["seconds"] for row in rows if row["kind"] == peer)
        seconds = next(row["seconds"] for row in rows if row["kind"] == mode and _is_drawn(row["name"]))
        yield theirs, peer_seconds, "", False
        yield ours, seconds, f", {peer_seconds / seconds:.1f} times as fast", True


def _is_drawn(name: str) -> bool:
    # As skopeo, which brings nothing to the disk and computes no checksum of the whole.
    return "--no-fsync" in name and "--checksum" not in name


def main(settings: Settings) -> list[Figure]:
    """Draw, where a name is given."""
    if settings.plot is None:
        print("no --plot FILE: nothing is drawn")
        return []
    measured = json.loads(notes_of(settings).read_text())
    draw(measured, settings.plot)
    print(f"drawn: {settings.plot}")
    return []
