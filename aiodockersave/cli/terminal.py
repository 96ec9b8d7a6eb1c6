"""What people see: messages and progress as lines on standard error, data on standard output."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator

from aiodockersave.model import Descriptor, Digest
from aiodockersave.pipeline import (
    Event,
    LayerAdvanced,
    LayerFinished,
    LayerReused,
    Prepared,
    SaveStarted,
)
from aiodockersave.plan import Plan, Report

_PATIENCE = 5.0
"""Seconds after which a layer that is still being read gets a line."""


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey: control characters, and those that turn text around.

    Args:
        text: The text, perhaps somebody else's.
        keep: Characters that stay as they are.
    """
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class Terminal:
    """Standard error for people, standard output for data; either may be closed."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._show_log(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)

    def _show_log(self, level: int) -> None:
        """Print what the library says while it works: one bad credential, another attempt."""
        handler = _LogHandler()
        log = logging.getLogger("aiodockersave")
        log.handlers = [each for each in log.handlers if not isinstance(each, _LogHandler)] + [handler]
        log.setLevel(level)

    def say(self, line: str) -> None:
        """Print a line, unless only errors are wanted."""
        if not self._quiet:
            print_error(line)

    def fail(self, line: str, error: BaseException) -> None:
        """Print in one line what failed; with ``--verbose`` also where."""
        print_error(f"aiodockersave: {line}")
        if self._verbose:
            print_error("".join(traceback.format_exception(error)).rstrip(), keep="\n")


class _LogHandler(logging.Handler):
    """Prints each record as one line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(f"aiodockersave: {record.getMessage()}")


def print_error(text: str, keep: str = "") -> None:
    """Print a line on standard error. That nobody reads it must not stop the work."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(printable(text, keep) + "\n")
            sys.stderr.flush()


def print_data(text: str) -> None:
    """Print lines on standard output.

    Raises:
        OSError: They could not be written.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed")
    sys.stdout.write(printable(text, keep="\n") + "\n")
    sys.stdout.flush()


# ── progress ──


class Reporter:
    """Progress as lines: one when a layer is in, and one now and then while a large layer is read.

    Attributes:
        prepared: What is saved, once that is known.
    """

    def __init__(self, terminal: Terminal, *, lines: bool) -> None:
        self.prepared: Prepared | None = None
        self._terminal = terminal
        self._lines = lines
        self._numbers: dict[Digest, int] = {}
        self._total = 0
        self._read = 0
        self._layer_read = 0
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        """Take an event of the pipeline."""
        match event:
            case SaveStarted(prepared):
                self._start(prepared)
            case LayerAdvanced(layer, size):
                self._read += size
                self._layer_read += size
                if time.monotonic() - self._last_line > _PATIENCE:
                    self._print(layer, f"{_amount(self._layer_read)} of {_amount(layer.size or 0)}")
            case LayerFinished(layer):
                self._print(layer, _amount(self._layer_read))
                self._layer_read = 0
            case LayerReused(layer):
                self._print(layer, "is in already")
            case _:
                pass

    def _start(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self._numbers = {layer.digest: i for i, layer in enumerate(prepared.layers, 1)}
        self._total = sum(layer.size or 0 for layer in prepared.layers)
        self._last_line = time.monotonic()

    def _print(self, layer: Descriptor, text: str) -> None:
        self._last_line = time.monotonic()
        if self._lines:
            percent = min(100, 100 * self._read // self._total) if self._total else 100
            number = f"{self._numbers[layer.digest]}/{len(self._numbers)}"
            self._terminal.say(
                f"{percent:3}%  layer {number}  {layer.digest.algorithm}:{layer.digest.encoded[:12]}  {text}"
            )


def _amount(size: int) -> str:
    """Return a size as people read it: three digits and a decimal unit."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{size} B" if units[0] == "B" else f"{value:.3g} {units[0]}"


# ── results ──


def summary(target: str, report: Report, prepared: Prepared) -> str:
    """Return the line that ends a save."""
    images = ", ".join(
        f"image {each.image.config.image_id} (manifest {each.resolved.digest})" for each in prepared.images
    )
    return f"{target}: {report.size} bytes, {report.sha256}, {images}"


def plan_text(prepared: Prepared, plan: Plan) -> str:
    """Return a plan for people."""
    return "\n".join(_plan_lines(prepared, plan))


def _plan_lines(prepared: Prepared, plan: Plan) -> Iterator[str]:
    yield f"size  {plan.size}"
    yield f"etag  {plan.etag}"
    for each in prepared.images:
        tags = " ".join(tag.repo_tag for tag in each.image.repo_tags)
        yield f"image {each.image.config.image_id} (manifest {each.resolved.digest}) {tags}".rstrip()
    width = len(str(plan.size))
    for member in plan.members:
        yield f"{member.offset:{width}}  {member.size:{width}}  {member.name}"


def plan_json(prepared: Prepared, plan: Plan) -> str:
    """Return a plan for programs."""
    document = {
        "size": plan.size,
        "etag": plan.etag,
        "images": [
            {
                "reference": str(each.request),
                "image_id": str(each.image.config.image_id),
                "manifest_digest": str(each.resolved.digest),
                "repo_tags": [tag.repo_tag for tag in each.image.repo_tags],
                "layers": [str(layer.digest) for layer in each.image.layers],
            }
            for each in prepared.images
        ],
        "members": [
            {
                "name": member.name,
                "offset": member.offset,
                "data_offset": member.data_offset,
                "size": member.size,
                "digest": str(member.digest) if member.digest else None,
            }
            for member in plan.members
        ],
    }
    return json.dumps(document, indent=2)
