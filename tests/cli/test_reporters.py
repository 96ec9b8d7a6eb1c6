"""The progress that the command shows: bars on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave import Digest, cli
from aiodockersave.cli import reporters
from aiodockersave.cli.bars import Bars
from aiodockersave.cli.json_lines import JsonLines
from aiodockersave.cli.reporters import PlainLines, Reporter, Tally, amount, clock
from aiodockersave.cli.terminal import Terminal
from aiodockersave.cli.work import new_reporter
from aiodockersave.core.model import OCI_LAYER, Descriptor
from aiodockersave.core.plan import Report
from aiodockersave.pipeline.progress import (
    Event,
    LayerAdvanced,
    LayerFinished,
    LayerRetried,
    LayerReused,
    LayerStarted,
    Meter,
    SaveFinished,
    SaveStarted,
    Waiting,
)
from aiodockersave.pipeline.resolve import Prepared
from aiodockersave.sources.waits import Wait
from tests.support.images import make_image, make_layer, write_layout

MB = 1_000_000
BASE = make_layer({"etc/name": b"base\n"})
IMAGE = make_image(BASE, make_layer({"app": b"app\n"}, "zstd"))
LARGE_SIZE = 30 << 20
REPORT = Report(10_240, (), (), Digest.of(b"an archive"))


# ── saves that are made up ──


def make_layers(*sizes: int | None) -> list[Descriptor]:
    return [Descriptor(OCI_LAYER, Digest.of(b"%d" % i), size) for i, size in enumerate(sizes)]


class MadeUp(Prepared):
    """Layers without images."""

    def __init__(self, blobs: Sequence[Descriptor]) -> None:
        super().__init__(images=(), plan=None)
        object.__setattr__(self, "blobs", tuple(blobs))

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return cast("tuple[Descriptor, ...]", vars(self)["blobs"])


def begin(report: Callable[[Event], None], layers: Sequence[Descriptor]) -> None:
    report(SaveStarted(MadeUp(layers), sum(layer.size or 0 for layer in layers)))


# ── counting ──


@st.composite
def saves(draw: st.DrawFn) -> tuple[list[Descriptor], list[Event]]:
    """Layers, and the events of a meter when they are read at once, in pieces, some of them twice."""
    sizes = draw(st.lists(st.integers(0, 50) | st.none(), min_size=1, max_size=6))
    layers = make_layers(*sizes)
    events: list[Event] = []
    meter = Meter(events.append, layers)
    positions = {}
    for layer in draw(st.permutations(layers)):
        positions[layer.digest] = draw(st.integers(0, layer.size or 0))
        meter.started(layer, positions[layer.digest])
    for layer, size in draw(st.lists(st.tuples(st.sampled_from(layers), st.integers(0, 20)), max_size=40)):
        if size == 0:
            meter.retried(layer)
            positions[layer.digest] = 0
        positions[layer.digest] = min(positions[layer.digest] + size, layer.size or 50)
        meter._told[layer.digest] = 0.0  # long ago
        meter.advanced(layer, positions[layer.digest])
    for layer in layers:
        meter.finished(layer)
    return layers, events


@given(saves(), st.randoms(use_true_random=False), st.booleans())
def test_nothing_goes_back_and_all_ends_at_100_percent(
    save: tuple[list[Descriptor], list[Event]], chance: random.Random, shuffled: bool
) -> None:
    layers, events = save
    if shuffled:
        chance.shuffle(events)
    tally = Tally()
    begin(tally.take, layers)
    percents, counts = [tally.percent], {layer.digest: [0] for layer in layers}
    for event in events:
        assert (tally.percent == 100) is (len(tally.finished) == len(layers))
        tally.take(event)
        percents.append(tally.percent)
        for digest, done in counts.items():
            done.append(tally.layers[digest].done)
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert all(done == sorted(done) for done in counts.values())
    assert not tally.running
    tally.take(SaveFinished(REPORT))
    assert tally.percent == 100


def test_a_save_without_layers_is_done_at_the_end() -> None:
    tally = Tally()
    begin(tally.take, [])
    assert tally.percent == 0
    tally.take(SaveFinished(REPORT))
    assert tally.percent == 100


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB"), (999_500, "1 MB"),
        (12_345_678, "12.3 MB"), (8 << 30, "8.59 GB"), (2**63 - 1, "9.22e+03 PB"), (1234.5, "1.23 kB"),
    ],
)  # fmt: skip
def test_amounts(size: float, shown: str) -> None:
    assert amount(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (359_999, "99:59:59"),
     (1e9, ">99 h")],
)  # fmt: skip
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


# ── which form ──


class FakeTerminalFile(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


FORMS = [
    # form, is a terminal, TERM, rich is there, quiet, what shows it
    ("auto", True, "xterm", True, False, Bars),
    ("auto", True, "xterm", True, True, Reporter),
    ("auto", True, "xterm", False, False, PlainLines),
    ("auto", True, "dumb", True, False, PlainLines),
    ("auto", True, "unknown", True, False, PlainLines),
    ("auto", True, "", True, False, PlainLines),
    ("auto", False, "xterm", True, False, PlainLines),
    ("plain", True, "xterm", True, False, PlainLines),
    ("none", True, "xterm", True, False, Reporter),
    ("json", True, "xterm", True, False, JsonLines),
]


@pytest.mark.parametrize(("form", "is_terminal", "term", "has_rich", "quiet", "kind"), FORMS)
def test_the_form(
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    is_terminal: bool,
    term: str,
    has_rich: bool,
    quiet: bool,
    kind: type[Reporter],
) -> None:
    monkeypatch.setattr(sys, "stderr", FakeTerminalFile() if is_terminal else io.StringIO())
    monkeypatch.setenv("TERM", term)
    if not has_rich:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert type(new_reporter(form, Terminal(quiet=quiet, verbose=False))) is kind


def test_without_standard_error_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    terminal = Terminal(quiet=False, verbose=False)
    reporter = new_reporter("auto", terminal)
    assert type(reporter) is PlainLines
    with reporter:
        begin(reporter, [])
        terminal.say("nobody hears it")
    terminal.printer.close()


# ── plain lines ──


Lines = Callable[[], list[str]]


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal(quiet=False, verbose=False, as_json=getattr(request, "param", None) == "json")
    yield made
    made.printer.close()


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str], terminal: Terminal) -> Lines:
    """Closes the printer, and returns the lines that it printed."""

    def read() -> list[str]:
        terminal.printer.close()
        return capfd.readouterr().err.splitlines()

    return read


def test_plain_lines_say_what_was_resumed_reused_and_retried(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, lines: Lines
) -> None:
    monkeypatch.setattr(reporters, "PATIENCE", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)  # no rate yet
    one, two = layers = make_layers(3 * MB, 1 * MB)
    name = {layer.digest: f"{layer.digest!s:.19}" for layer in layers}
    with PlainLines(terminal) as report:
        begin(report, layers)
        report(LayerReused(two))
        report(LayerStarted(one, 2 * MB))
        report(LayerAdvanced(one, 2 * MB + 1, 2 * MB + 1))
        report(LayerRetried(one, 1))
        report(LayerStarted(two))
        report(LayerFinished(two, 3 * MB + 1))
        report(LayerRetried(one, 2))
        report(LayerFinished(one, 4 * MB))
        report(SaveFinished(REPORT))
    assert lines() == [
        f"  0%  layer 2/2  {name[two.digest]}  is there more than once, and stored once",
        f" 50%  layer 1/2  {name[one.digest]}  2 MB of 3 MB, 2 MB of it resumed",
        f" 50%  layer 1/2  {name[one.digest]}  2 MB of 3 MB, 2 MB of it resumed, 1 retry",
        f" 75%  layer 2/2  {name[two.digest]}  1 MB",
        f" 75%  layer 1/2  {name[one.digest]}  2 MB of 3 MB, 2 MB of it resumed, 2 retries",
        f"100%  layer 1/2  {name[one.digest]}  3 MB, 2 MB of it resumed, 2 retries",
    ]


def test_a_running_layer_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, lines: Lines
) -> None:
    """Each by itself: two layers, 60 seconds, ten events a second."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    one, two = layers = make_layers(600, 600)
    report = PlainLines(terminal)
    begin(report, layers)
    for layer in layers:
        report(LayerStarted(layer))
    for i in range(600):
        now[0] += 0.1
        report(LayerAdvanced(one, i, 2 * i))
        report(LayerAdvanced(two, i, 2 * i))
    monkeypatch.undo()
    said = lines()
    for i, layer in enumerate(layers, 1):
        of_it = [line for line in said if f"layer {i}/2  {layer.digest!s:.19}" in line]
        assert 60 / reporters.PATIENCE - 2 < len(of_it) <= 60 / reporters.PATIENCE
        assert of_it[5].endswith("  300 B of 600 B, 10 B/s, 0:30 left")


def test_a_long_wait_has_a_line_now_and_then(terminal: Terminal, lines: Lines) -> None:
    report = PlainLines(terminal)
    for what, seconds in (
        ("one", 2.0), ("one", 3.0), ("two", 2.4), ("one", 31.9), ("one", 32.0), ("one", 33.0), ("one", 2.0)
    ):  # fmt: skip
        report(Waiting(Wait(f"manifest {what}", "no answer yet", seconds, 90.0)))
    assert lines() == [
        f"waiting, {seconds} s of at most 90 s: no answer yet (manifest {what})"
        for what, seconds in (("one", 2), ("two", 2), ("one", 32), ("one", 2))
    ]


# ── JSON ──

DIGEST = {"type": "string", "pattern": "^sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})$"}
SIZE = {"type": "integer", "minimum": 0}
SIZE_OR_NULL = {"type": ["integer", "null"], "minimum": 0}
TEXT = {"type": "string"}
TOTAL = {"total_done": SIZE, "total": SIZE}
LAYER = {"digest": DIGEST, "size": SIZE_OR_NULL}


def as_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


EVENTS: dict[str, dict[str, Any]] = {
    "save_started": {
        "total": SIZE,
        "layers": {"type": "array", "items": as_object(LAYER)},
        "images": {
            "type": "array",
            "items": as_object(
                {
                    "reference": TEXT,
                    "image_id": DIGEST,
                    "manifest_digest": DIGEST,
                    "repo_tags": {"type": "array", "items": TEXT},
                }
            ),
        },
    },
    "layer_started": {**LAYER, "resumed": SIZE},
    "layer_advanced": {**LAYER, "done": SIZE, **TOTAL},
    "layer_retried": {"digest": DIGEST, "retries": {"type": "integer", "minimum": 1}},
    "layer_finished": {**LAYER, **TOTAL},
    "layer_reused": {"digest": DIGEST},
    "image_finished": {"reference": TEXT, "image_id": DIGEST},
    "save_finished": {
        "size": SIZE,
        "sha256": {**DIGEST, "type": ["string", "null"]},
        **TOTAL,
        "left_as_is": {"type": "boolean"},
    },
    "waiting": {"what": TEXT, "reason": TEXT, "seconds": {"type": "number"}, "limit": {"type": "number"}},
    "message": {"level": {"enum": ["info", "warning", "error"]}, "message": TEXT},
    "error": {
        "message": TEXT,
        "exit_code": {"enum": [1, 2, 4, 5, 6, 7, 8, 129, 130, 143]},
        "traceback": {"type": ["string", "null"]},
    },
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "oneOf": [as_object({"event": {"const": name}, **fields}) for name, fields in EVENTS.items()],
}

TYPES = {
    "boolean": bool,
    "number": float,
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "null": type(None),
}


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """Tell whether a validator would accept a value, by the keywords that the schema uses."""
    wanted = schema.get("type", [])
    types = [TYPES[each] for each in ([wanted] if isinstance(wanted, str) else wanted)]
    if types and type(value) not in types:
        return False
    checks: dict[str, Callable[[Any], bool]] = {
        "const": lambda wanted: value == wanted,
        "enum": lambda wanted: value in wanted,
        "minimum": lambda wanted: value is None or value >= wanted,
        "pattern": lambda wanted: value is None or re.search(wanted, value) is not None,
        "items": lambda wanted: all(satisfies(each, wanted) for each in value),
        "required": lambda wanted: set(wanted) <= set(value),
        "properties": lambda wanted: all(
            satisfies(each, wanted[key]) for key, each in value.items() if key in wanted
        ),
        "additionalProperties": lambda wanted: wanted or set(value) <= set(schema["properties"]),
        "oneOf": lambda wanted: sum(satisfies(value, each) for each in wanted) == 1,
    }
    assert set(schema) <= {"type", "$schema", *checks}
    return all(check(schema[keyword]) for keyword, check in checks.items() if keyword in schema)


def read_events(text: str) -> list[dict[str, Any]]:
    events = []
    for line in text.splitlines():
        assert line.isascii()
        assert line.isprintable()
        events.append(json.loads(line))
        assert satisfies(events[-1], SCHEMA), line
    return events


@pytest.mark.parametrize(
    "event",
    [
        {"event": "layer_reused"},
        {"event": "layer_reused", "digest": "sha256:0"},
        {"event": "layer_reused", "digest": str(Digest.of(b"")), "more": 1},
        {"event": "image_reused", "digest": str(Digest.of(b""))},
        {"event": "layer_retried", "digest": str(Digest.of(b"")), "retries": "1"},
        {"event": "layer_retried", "digest": str(Digest.of(b"")), "retries": 0},
    ],
    ids=str,
)
def test_the_checker_refuses(event: dict[str, Any]) -> None:
    assert not satisfies(event, SCHEMA)


@pytest.mark.parametrize("terminal", ["json"], indirect=True)
def test_json_of_every_event(terminal: Terminal, lines: Lines) -> None:
    one, two = layers = make_layers(3 * MB, None)
    digests = [str(layer.digest) for layer in layers]
    with JsonLines(terminal) as report:
        begin(report, layers)
        report(LayerReused(two))
        report(LayerStarted(one, 2 * MB))
        report(LayerAdvanced(one, 2 * MB + 1, 2 * MB + 1))
        report(LayerRetried(one, 1))
        report(Waiting(Wait("blob x", "no more bytes yet", 2.04, 60.0)))
        report(LayerFinished(one, 3 * MB))
        terminal.note("warning", "\x1b[31m\u202e\udcff\n")
        report(SaveFinished(REPORT))
        terminal.say("done")
    total = {"total_done": 3 * MB, "total": 3 * MB}
    one_json, two_json = ({"digest": str(layer.digest), "size": layer.size} for layer in layers)
    assert read_events("\n".join(lines())) == [
        {"event": "save_started", "total": 3 * MB, "layers": [one_json, two_json], "images": []},
        {"event": "layer_reused", "digest": digests[1]},
        {"event": "layer_started", **one_json, "resumed": 2 * MB},
        {"event": "layer_advanced", **one_json, "done": 2 * MB + 1, **total, "total_done": 2 * MB + 1},
        {"event": "layer_retried", "digest": digests[0], "retries": 1},
        {"event": "waiting", "what": "blob x", "reason": "no more bytes yet", "seconds": 2.0, "limit": 60.0},
        {"event": "layer_finished", **one_json, **total},
        {"event": "message", "level": "warning", "message": "\x1b[31m\u202e\udcff\n"},
        {
            "event": "save_finished",
            "size": REPORT.size,
            "sha256": str(REPORT.sha256),
            **total,
            "left_as_is": False,
        },
        {"event": "message", "level": "info", "message": "done"},
    ]


@pytest.fixture
def layout(tmp_path: Path) -> str:
    folder = tmp_path / "layout"
    folder.mkdir()
    write_layout(folder, {"one": IMAGE, "two": make_image(BASE)})
    return f"oci:{folder}"


@pytest.mark.parametrize("layers", ["keep", "decompress"])
@pytest.mark.parametrize("is_stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("checksum", [[], ["--checksum"]], ids=["", "checksum"])
def test_json_of_a_save(
    capfdbinary: pytest.CaptureFixture[bytes],
    layout: str,
    tmp_path: Path,
    layers: str,
    is_stream: bool,
    checksum: list[str],
) -> None:
    output = "-" if is_stream else str(tmp_path / "a.tar")
    images = [f"{layout}:one=a:1", f"{layout}:two"]
    assert cli.main(["save", *images, "-o", output, "--layers", layers, "--progress", "json", *checksum]) == 0
    captured = capfdbinary.readouterr()
    archive = captured.out if is_stream else Path(output).read_bytes()
    assert (captured.out == b"") is not is_stream
    events = read_events(captured.err.decode())
    first, by_name = events[0], {name: [each for each in events if each["event"] == name] for name in EVENTS}
    size = sum(len(layer.blob) for layer in IMAGE.layers)
    assert first["event"] == "save_started"
    assert first["total"] == size
    assert [(each["digest"], each["size"]) for each in first["layers"]] == [
        (str(layer.descriptor.digest), len(layer.blob)) for layer in IMAGE.layers
    ]
    assert [each["reference"] for each in first["images"]] == [f"{layout}:one", f"{layout}:two"]
    digests = {str(layer.descriptor.digest) for layer in IMAGE.layers}
    for name in ("layer_started", "layer_finished"):
        assert {each["digest"] for each in by_name[name]} == digests
    assert [each["digest"] for each in by_name["layer_reused"]] == [str(BASE.descriptor.digest)]
    assert [each["reference"] for each in by_name["image_finished"]] == [f"{layout}:one", f"{layout}:two"]
    done = [each["total_done"] for each in events if "total_done" in each]
    assert done == sorted(done)
    (last,) = by_name["save_finished"]
    assert (last["total_done"], last["total"]) == (size, size)
    assert (last["size"], last["sha256"]) == (len(archive), str(Digest.of(archive)) if checksum else None)
    messages = [each["message"] for each in by_name["message"]]
    assert len(messages) == 2  # a missing name, and what was saved
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert "manifest.json" in tar.getnames()


@pytest.mark.parametrize("options", [[], ["--verbose"], ["--quiet"]], ids=" ".join)
def test_json_of_a_failure(
    capfd: pytest.CaptureFixture[str], layout: str, tmp_path: Path, options: list[str]
) -> None:
    output = str(tmp_path / "a.tar")
    assert cli.main(["save", f"{layout}:\x1b", "-o", output, "--progress", "json", *options]) == 4
    (error,) = read_events(capfd.readouterr().err)
    assert (error["event"], error["exit_code"]) == ("error", 4)
    assert "none of that name; there are: one, two" in error["message"]
    assert (error["traceback"] is not None) is (options == ["--verbose"])


# ── rows ──


def visible(row: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", row)


@pytest.fixture
def running_bars(terminal: Terminal) -> Bars:
    report = Bars(terminal)
    layers = make_layers(*[100 * MB] * 64)
    report.tally.take(SaveStarted(MadeUp(layers), 6400 * MB))
    for layer in layers[:60]:
        report.tally.take(LayerStarted(layer))
    report.tally.take(LayerAdvanced(layers[0], 45 * MB, 45 * MB))
    report.tally.take(LayerRetried(layers[1], 2))
    return report


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("no_color", ["", "1"])
def test_rows_fit_into_any_terminal(
    monkeypatch: pytest.MonkeyPatch, running_bars: Bars, encoding: str, no_color: str
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    for columns in (1, 2, 13, 17, 20, 26, 27, 39, 40, 41, 60, 80, 81, 100, 300):
        for lines in (1, 2, 3, 24, 100):
            rows = running_bars.rows(os.terminal_size((columns, lines)), encoding)
            assert 1 <= len(rows) <= max(1, lines - 1)
            assert all(len(visible(row)) < max(columns, 2) for row in rows)
            assert {len(visible(row)) for row in rows} == {len(visible(rows[0]))}
            "".join(rows).encode(encoding)
            assert ("\x1b" in "".join(rows)) is (columns > 27 and not no_color)
            assert visible(rows[-1]).startswith("0/64 layers"[: columns - 1])


def test_a_long_wait_has_a_row(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, running_bars: Bars
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    size = os.terminal_size((40, 4))
    early = Bars(terminal)
    for report, others in ((early, 0), (running_bars, 3)):
        report(Waiting(Wait("manifest", "no\x1b[31m answer yet", 2.0, 90.0)))
        row, *rest = report.rows(size, "utf-8")
        assert row == r"waiting, 2 s of at most 90 s: no\x1b[31"
        assert len(rest) == max(0, others - 1)
        now[0] += 2.0
        assert len(report.rows(size, "utf-8")) == others
    monkeypatch.undo()
    early.end()


@pytest.mark.parametrize(
    ("columns", "rest"),
    [
        (20, ["5feceb66ffc8   45%", "6b86b273ff34    0%", "0/64 layers     0%"]),
        (30, ["5feceb66ffc8 ━━━━╸━━━━━   45%", "6b86b273ff34 ━━━━━━━━━━    0%", "0/64 layers  ━━━━━━━━━━    0%"]),
        (40, ["5feceb66ffc8 ━━━━╸━━━━━━   45%     -:--", "6b86b273ff34", "0/64"]),
    ],
)  # fmt: skip
def test_a_narrow_terminal_lacks_columns(running_bars: Bars, columns: int, rest: list[str]) -> None:
    rows = running_bars.rows(os.terminal_size((columns, 4)), "utf-8")
    for row, expected in zip(rows, rest, strict=True):
        assert visible(row).replace("╺", "━")[: len(expected)] == expected


def test_a_wide_terminal_shows_everything(monkeypatch: pytest.MonkeyPatch, running_bars: Bars) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    size = os.terminal_size((100, 4))
    running_bars.rows(size, "utf-8")
    now[0] = 2.0
    first, second = list(running_bars.tally.layers.values())[:2]
    running_bars(LayerAdvanced(first.layer, 65 * MB, 65 * MB))
    one, two, total = map(visible, running_bars.rows(size, "utf-8"))
    assert one.split()[2:] == ["65%", "65", "MB/100", "MB", "10", "MB/s", "0:04"]  # 35 MB to go
    assert two.split()[2:] == ["0%", "0", "B/100", "MB", "0", "B/s", "retry", "2"]
    assert total.split()[3:] == ["1%", "65", "MB/6.4", "GB", "10", "MB/s", "10:34"]
    running_bars(LayerAdvanced(second.layer, 1 * MB, 66 * MB))  # it goes on
    two = visible(running_bars.rows(size, "utf-8")[1])
    assert two.split()[2:] == ["1%", "1", "MB/100", "MB", "500", "kB/s", "3:18"]
