"""Standard error on terminals and pipes: painted bars, readers who do not read, signals meanwhile."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import logging
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

from aiodockersave.cli import printing
from aiodockersave.cli.bars import Bars
from aiodockersave.cli.printing import Printer
from aiodockersave.cli.terminal import Terminal
from aiodockersave.pipeline.progress import LayerAdvanced, LayerFinished, LayerStarted, SaveFinished
from tests.cli.test_program import ENDINGS, LIMIT, execute, started, wait_until
from tests.cli.test_reporters import MB, REPORT, begin, make_layers, read_events
from tests.support.images import make_image, make_layer, write_layout

SIZE = 30 << 20
HIDE_CURSOR = "\x1b[?25l"
ESCAPE = re.compile(r"\x1b\[(\?25[lh]|\d*[AJm]|[\d;]*m)")


class Screen:
    """A terminal as far as these programs need one: no limit of height, and no sequence that is not known.

    Attributes:
        rows: What is to be seen.
        frames: What was to be seen after each write that painted.
        text: All that came, as it came.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self.frames: list[list[str]] = []
        self.text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._pending = ""
        self._row = self._column = 0

    def feed(self, data: bytes) -> None:
        text = self._pending + self._decode(data)
        self.text += text[len(self._pending) :]
        self._pending = ""
        while text:
            if text[0] == "\x1b":
                match = ESCAPE.match(text)
                if match is None:
                    assert len(text) < 12, f"unknown sequence: {text[:12]!r}"
                    self._pending = text
                    break
                self._obey(match[1])
                text = text[match.end() :]
            else:
                self._put(text[0])
                text = text[1:]
        self.frames.append(self.seen)

    @property
    def seen(self) -> list[str]:
        """The rows that are not empty."""
        return [row.rstrip() for row in self.rows if row.strip()]

    def _obey(self, sequence: str) -> None:
        number, kind = sequence[:-1], sequence[-1]
        if kind == "A":
            self._row -= int(number)
            assert self._row >= 0
        elif kind == "J":
            self.rows[self._row :] = [self.rows[self._row][: self._column]]

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._row += 1
            self.rows += [""] * (self._row + 1 - len(self.rows))
        else:
            if self._column == self.columns:  # as terminals wrap: when one more comes
                self._column = 0
                self._put("\n")
            row = self.rows[self._row].ljust(self._column)
            self.rows[self._row] = row[: self._column] + char + row[self._column + 1 :]
            self._column += 1


class Pty:
    """A pseudo-terminal with a screen.

    Attributes:
        writer: The descriptor for a program.
        screen: What is to be seen, as far as it was read.
    """

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.reader, self.writer = pty.openpty()
        os.set_blocking(self.reader, False)
        self.screen = Screen(columns)
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int = 24) -> None:
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def look(self) -> Screen:
        """Read all bytes that are there."""
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.reader, 65536):
                self.screen.feed(data)
        return self.screen

    def wait_for(self, condition: Callable[[Screen], Any]) -> None:
        wait_until(lambda: condition(self.look()))

    def close(self) -> None:
        os.close(self.reader)
        with contextlib.suppress(OSError):
            os.close(self.writer)


@pytest.fixture
def tty() -> Iterator[Pty]:
    made = Pty()
    yield made
    made.close()


# ── this process's standard error is a terminal ──


@contextlib.contextmanager
def standard_error(descriptor: int, **options: Any) -> Iterator[TextIO]:
    """Have a copy of a descriptor as standard error, in place of what pytest sets when a test begins."""
    with (
        os.fdopen(os.dup(descriptor), "w", **options) as file,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stderr", file)
        yield file


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """It is used with a standard error that a test sets."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(printing, "DELAY", 0.0)
    made = Terminal(quiet=False, verbose=False)
    yield made
    made.printer.close()


@contextlib.contextmanager
def bars_on(tty: Pty, terminal: Terminal) -> Iterator[Bars]:
    """Show bars on a terminal; afterwards everything is printed."""
    with standard_error(tty.writer):
        with Bars(terminal) as report:
            yield report
        terminal.printer.close()


def is_bar(row: str) -> bool:
    return re.fullmatch(r"([0-9a-f]{12}|\d+/\d+ layers *) [━╸╺ ]{8,}.*\d%.*", row) is not None


def test_log_lines_are_above_the_bars(tty: Pty, terminal: Terminal) -> None:
    layers = make_layers(*[MB] * 5)
    log = logging.getLogger("aiodockersave")
    with bars_on(tty, terminal) as report:
        begin(report, layers)
        for layer in layers:
            report(LayerStarted(layer))
        tty.wait_for(lambda screen: len(screen.seen) == 6)
        log.warning("bad \x1b[2J[red]markup[/red]")
        log.info("not wanted")
        terminal.say("x" * 100)  # longer than a row
        tty.wait_for(lambda screen: len(screen.seen) == 9)
        first, *rest = tty.screen.seen
        assert first == r"aiodockersave: bad \x1b[2J[red]markup[/red]"
        assert rest[:2] == ["x" * 80, "x" * 20]
        assert all(map(is_bar, rest[2:]))
        for i, layer in enumerate(layers[:3], 1):
            report(LayerFinished(layer, i * MB))
        tty.wait_for(lambda screen: len(screen.seen) == 6)
        assert tty.screen.seen[-1].startswith("3/5 layers")
        report(LayerFinished(layers[3], 4 * MB))
        report(LayerFinished(layers[4], 5 * MB))
        report(SaveFinished(REPORT))
    shown = tty.look().seen
    assert shown[:3] == [first, *rest[:2]]
    (last,) = shown[3:]
    assert re.fullmatch(r"100%  5 layers, 5 MB in \d+:\d\d", last)
    assert HIDE_CURSOR not in tty.screen.text


def test_lines_from_many_threads_are_whole(tty: Pty, terminal: Terminal) -> None:
    layers = make_layers(*[MB] * 3)
    lines = {f"aiodockersave: thread {i} line {j}" for i in range(4) for j in range(50)}

    def write(i: int) -> None:
        for j in range(50):
            logging.getLogger("aiodockersave").warning("thread %d line %d", i, j)

    with bars_on(tty, terminal) as report:
        begin(report, layers)
        for layer in layers:
            report(LayerStarted(layer))
        tty.wait_for(lambda screen: len(screen.seen) == 4)
        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for i in range(200):
            report(LayerAdvanced(layers[0], i, i))
        tty.wait_for(lambda screen: len(screen.seen) == 204)
        for thread in threads:
            thread.join()
        assert set(tty.screen.seen[:-4]) == lines
        assert all(map(is_bar, tty.screen.seen[-4:]))
    assert set(tty.look().seen) == lines


@pytest.mark.parametrize("lines", [2, 3, 10])
def test_a_low_terminal_shows_the_total(tty: Pty, terminal: Terminal, lines: int) -> None:
    tty.resize(80, lines)
    layers = make_layers(*[MB] * 64)
    with bars_on(tty, terminal) as report:
        begin(report, layers)
        for layer in layers:
            report(LayerStarted(layer))
        tty.wait_for(lambda screen: len(screen.seen) == lines - 1)
        assert tty.screen.seen[-1].startswith("0/64 layers")
    assert tty.look().seen == []


def test_a_terminal_of_no_size_is_taken_for_a_usual_one(tty: Pty, terminal: Terminal) -> None:
    tty.resize(0, 0)
    with bars_on(tty, terminal) as report:
        begin(report, make_layers(MB))
        tty.wait_for(lambda screen: screen.seen)
        assert 70 < len(tty.screen.seen[0]) < 80


def test_a_save_that_is_over_soon_shows_no_bars(
    tty: Pty, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printing, "DELAY", 3600.0)
    (layer,) = layers = make_layers(MB)
    with bars_on(tty, terminal) as report:
        begin(report, layers)
        report(LayerStarted(layer))
        report(LayerFinished(layer, MB))
        report(SaveFinished(REPORT))
    assert re.fullmatch(r"100%  1 layer, 1 MB in \d+:\d\d\r\n", tty.look().text)


def test_a_display_that_fails_ends_nothing(tty: Pty, terminal: Terminal) -> None:
    class Broken:
        def rows(self, size: os.terminal_size, encoding: str) -> Sequence[str]:
            raise ZeroDivisionError("division by zero")

    with standard_error(tty.writer):
        terminal.printer.show(Broken())
        tty.wait_for(lambda screen: screen.seen)
        terminal.say("more")
        terminal.printer.close()
    assert tty.look().seen == [
        "aiodockersave: progress is not shown: ZeroDivisionError: division by zero",
        "more",
    ]


def test_a_terminal_that_is_gone_ends_nothing(tty: Pty, terminal: Terminal) -> None:
    with bars_on(tty, terminal) as report:
        begin(report, make_layers(MB))
        tty.wait_for(lambda screen: screen.seen)
        os.close(tty.reader)
        terminal.say("nobody sees it")
        tty.reader = os.open(os.devnull, os.O_RDONLY)


# ── pipes ──


class Pipe:
    """A pipe for standard error.

    Attributes:
        reader: For the test.
        writer: A descriptor.
    """

    def __init__(self) -> None:
        reader, self.writer = os.pipe()
        self.reader = os.fdopen(reader, "rb")
        self._is_open = True

    def fill(self) -> int:
        """Write until there is no more room, and return how much that was."""
        os.set_blocking(self.writer, False)
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += os.write(self.writer, b"\n" * 4096)
        os.set_blocking(self.writer, True)
        return filled

    def close_writer(self) -> None:
        if self._is_open:
            os.close(self.writer)
            self._is_open = False

    def read_all(self) -> bytes:
        """Read until no writer is left."""
        self.close_writer()
        return self.reader.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.reader.close()
    made.close_writer()


def test_a_pipe_that_nobody_reads_holds_up_nothing(pipe: Pipe) -> None:
    filled = pipe.fill()
    printer = Printer()
    with standard_error(pipe.writer):
        for i in range(5000):
            printer.print(f"perhaps {i}", may_drop=True)
        printer.print("surely")
        assert printer._queue.qsize() <= printing._MOST_WAITING + 1
        printer.close(patience=0.01)
        printer.print("too late")
        pipe.close_writer()
        data = b"".join(iter(pipe.reader.readline, b"surely\n"))  # what waited comes now
        assert printer._thread is not None
        printer._thread.join(LIMIT)
    assert data[filled:].startswith(b"perhaps 0\nperhaps 1\n")


def test_a_pipe_without_a_reader(pipe: Pipe) -> None:
    pipe.reader.close()
    printer = Printer()
    with standard_error(pipe.writer):
        for i in range(100):
            printer.print(f"{i}")
        printer.close()
        printer.print("late")


def test_a_pipe_that_somebody_made_non_blocking(pipe: Pipe) -> None:
    filled = pipe.fill()
    os.set_blocking(pipe.writer, False)
    printer = Printer()
    with standard_error(pipe.writer):
        for i in range(100):
            printer.print(f"{i}")
        wait_until(lambda: printer._queue.qsize() < 100)  # the first is tried, and there is no room
        pipe.reader.read(filled)
        printer.close()
    assert pipe.read_all() == b"".join(b"%d\n" % i for i in range(100))


def test_after_the_end_lines_are_written_at_once(pipe: Pipe) -> None:
    printer = Printer()
    with standard_error(pipe.writer):
        printer.print("one")
        printer.close()
        printer.print("two")
    assert pipe.read_all() == b"one\ntwo\n"


def test_a_printer_that_prints_nothing_has_no_thread() -> None:
    printer = Printer()
    printer.close()
    assert printer._thread is None


def test_text_that_the_encoding_does_not_have(pipe: Pipe) -> None:
    printer = Printer()
    with standard_error(pipe.writer, encoding="ascii"):
        printer.print("é\udcff")
        printer.close()
    assert pipe.read_all() == b"\\xe9\\udcff\n"


# ── the command ──


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("layout")
    write_layout(folder, {"one": make_image(make_layer({"data": random.Random(1).randbytes(SIZE)}, None))})
    return f"oci:{folder}=a:1"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


ENVIRONMENT = {**os.environ, "TERM": "xterm-256color"} | {"NO_COLOR": ""}


@contextlib.contextmanager
def saving(image: str, fifo: Path, tty: Pty, **variables: str) -> Iterator[tuple[Any, Any]]:
    """Save to a FIFO that is read as far as a test wants it, with standard error on a terminal."""
    with (
        started("save", image, "-o", fifo, stderr=tty.writer, env=ENVIRONMENT | variables) as process,
        fifo.open("rb", buffering=0) as reader,
    ):
        yield process, reader


def read(reader: Any, size: int) -> None:
    while size > 0:
        data = reader.read(min(size, 65536))
        assert data
        size -= len(data)


def percents_of(frames: Sequence[Sequence[str]], name: str) -> list[int]:
    found = [re.search(r"(\d+)%", row) for frame in frames for row in frame if re.match(name, row)]
    return [int(match[1]) for match in found if match]


def test_bars_of_a_save(large: str, fifo: Path, tty: Pty) -> None:
    with saving(large, fifo, tty) as (process, reader):
        read(reader, SIZE // 3)
        tty.wait_for(lambda screen: len(screen.seen) == 2)
        assert all(map(is_bar, tty.screen.seen))
        tty.resize(40)
        tty.screen.columns = 40
        tty.wait_for(lambda screen: len(screen.seen) == 2 and all(len(row) < 40 for row in screen.seen))
        assert all(map(is_bar, tty.screen.seen))
        tty.resize(120)
        tty.screen.columns = 120
        tty.wait_for(lambda screen: all(len(row) > 80 for row in screen.seen))
        while reader.read(1 << 20):
            pass
        assert process.wait(LIMIT) == 0
    total, *summary = tty.look().seen
    assert re.fullmatch(r"100%  1 layer, 31\.5 MB in \d+:\d\d", total)
    assert "".join(summary).startswith(f"{fifo}: ")  # it may be wrapped
    for name in ("0/1", "[0-9a-f]{12}"):
        percents = percents_of(tty.screen.frames, name)
        assert percents == sorted(percents)
        assert percents
    assert HIDE_CURSOR not in tty.screen.text


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", ENDINGS)
def test_signals_take_the_bars_down(
    large: str, fifo: Path, tty: Pty, number: signal.Signals, count: int
) -> None:
    code, line = ENDINGS[number]
    with saving(large, fifo, tty) as (process, reader):
        read(reader, SIZE // 3)
        tty.wait_for(lambda screen: len(screen.seen) == 2)
        for _ in range(count):
            process.send_signal(number)
        assert process.wait(LIMIT) == code
    assert tty.look().seen == [line]
    assert tty.screen.text.endswith(f"{line}\r\n")
    assert HIDE_CURSOR not in tty.screen.text


def test_an_error_takes_the_bars_down(large: str, fifo: Path, tty: Pty) -> None:
    with saving(large, fifo, tty) as (process, reader):
        read(reader, SIZE // 3)
        tty.wait_for(lambda screen: len(screen.seen) == 2)
        reader.close()
        assert process.wait(LIMIT) == 8
    line = f"aiodockersave: {fifo}: Broken pipe; whoever read it has left"
    assert "".join(tty.look().seen) == line


def test_no_color(large: str, fifo: Path, tty: Pty) -> None:
    with saving(large, fifo, tty, NO_COLOR="1") as (process, reader):
        read(reader, SIZE // 3)
        tty.wait_for(lambda screen: len(screen.seen) == 2)
        assert all(map(is_bar, tty.screen.seen))
        while reader.read(1 << 20):
            pass
        assert process.wait(LIMIT) == 0
    assert not re.search(r"\x1b\[[0-9;]*m", tty.look().text)


def test_colours(large: str, fifo: Path, tty: Pty) -> None:
    with saving(large, fifo, tty) as (_, reader):
        read(reader, SIZE // 3)
        tty.wait_for(lambda screen: "\x1b[0m" in screen.text)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_lines(large: str, tmp_path: Path, tty: Pty, term: str) -> None:
    with started(
        "save", large, "-o", tmp_path / "a.tar", stderr=tty.writer, env=ENVIRONMENT | {"TERM": term}
    ) as process:
        assert process.wait(LIMIT) == 0
    assert "\x1b" not in tty.look().text
    assert re.match(r"100%  layer 1/1  sha256:[0-9a-f]{12}  31\.5 MB", tty.screen.seen[0])


def test_rich_is_not_imported_where_there_are_no_bars(large: str) -> None:
    code = (
        "import sys\nfrom aiodockersave import cli\n"
        f"code = cli.main(['save', {large!r}, '-o', '/dev/null'])\n"
        "print(code, 'rich' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert result.stdout == "0 False\n"


@pytest.mark.parametrize("form", ["auto", "plain", "json"])
def test_standard_error_without_a_reader_stops_nothing(large: str, tmp_path: Path, form: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = execute("save", large, "-o", tmp_path / "a.tar", "--progress", form, stderr=writer)
    finally:
        os.close(writer)
    assert result.returncode == 0
    assert (tmp_path / "a.tar").stat().st_size > SIZE


def test_standard_error_that_nobody_reads_stops_nothing(large: str, tmp_path: Path, pipe: Pipe) -> None:
    """The archive is there before the first line is read, and then every line comes."""
    filled = pipe.fill()
    target = tmp_path / "a.tar"
    with started("save", large, "-o", target, "--progress", "json", stderr=pipe.writer) as process:
        wait_until(target.exists)
        assert process.poll() is None
        events = read_events(pipe.read_all()[filled:].decode())
        assert process.wait(LIMIT) == 0
    assert [each["event"] for each in events][-2:] == ["save_finished", "message"]


@pytest.mark.parametrize("number", ENDINGS)
def test_standard_error_that_nobody_reads_is_no_trap(
    large: str, fifo: Path, pipe: Pipe, number: signal.Signals
) -> None:
    pipe.fill()
    with (
        started("save", large, "-o", fifo, "--progress", "json", stderr=pipe.writer) as process,
        fifo.open("rb", buffering=0) as archive,
    ):
        read(archive, SIZE // 3)
        process.send_signal(number)
        assert process.wait(LIMIT) == ENDINGS[number][0]


@pytest.mark.parametrize("number", ENDINGS)
def test_json_says_which_signal_ended_it(large: str, fifo: Path, number: signal.Signals) -> None:
    code, line = ENDINGS[number]
    with (
        started("save", large, "-o", fifo, "--progress", "json") as process,
        fifo.open("rb", buffering=0) as archive,
    ):
        read(archive, SIZE // 3)
        process.send_signal(number)
        assert process.wait(LIMIT) == code
        error = read_events(process.communicate()[1].decode())[-1]
    message = line.removeprefix("aiodockersave: ")
    assert error == {"event": "error", "message": message, "exit_code": code, "traceback": None}
