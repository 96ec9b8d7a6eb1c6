"""The lines that people see: messages on standard error, data on standard output."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from aiodockersave.core.plan import Plan, Report
from aiodockersave.core.text import message_line
from aiodockersave.pipeline.resolve import Prepared

from .printing import PROGRAM, Printer, printable


class Terminal:
    """Standard error for people, standard output for data; either may be closed.

    Args:
        quiet: Print nothing but errors.
        verbose: Print more, and what caused an error.
        as_json: Print JSON, as :mod:`.json_lines` describes it.

    Attributes:
        printer: Writes standard error; :func:`.run.run` closes it.
    """

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool = False) -> None:
        self.is_quiet = quiet
        self.printer = Printer()
        self._verbose = verbose
        self._as_json = as_json
        self._show_log(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)

    def _show_log(self, level: int) -> None:
        """Print the library's log: one bad credential, another attempt."""
        handler = _LogHandler(self)
        log = logging.getLogger("aiodockersave")
        log.handlers = [each for each in log.handlers if not isinstance(each, _LogHandler)] + [handler]
        log.setLevel(level)

    def say(self, line: str) -> None:
        """Print a line, unless only errors are wanted."""
        if not self.is_quiet:
            self._print("info", line, line)

    def note(self, level: str, line: str) -> None:
        """Print a line that begins with the program's name; ``level`` is that of a log, such as ``warning``."""
        self._print(level, line, f"{PROGRAM}: {line}")

    def fail(self, line: str, error: BaseException, code: int, *, is_internal: bool = False) -> None:
        """Print an error in one line; with ``--verbose`` print more.

        Args:
            line: The line.
            error: The error; with ``--verbose`` each of its causes is a line.
            code: The command's exit code.
            is_internal: The error is a fault of this program: with ``--verbose`` the traceback is wanted.
        """
        trace = "".join(traceback.format_exception(error)).rstrip() if self._verbose else None
        if self._as_json:
            self.put({"event": "error", "message": line, "exit_code": code, "traceback": trace})
            return
        self.printer.print(printable(f"{PROGRAM}: {line}"))
        if trace is not None:
            text = trace if is_internal else "\n".join(_causes(error))
            if text:
                self.printer.print(printable(text, keep="\n"))

    def put(self, event: Mapping[str, Any], *, may_drop: bool = False) -> None:
        """Print a JSON object as one line of ASCII without control characters."""
        self.printer.print(json.dumps(event), may_drop=may_drop)

    def _print(self, level: str, message: str, line: str) -> None:
        if self._as_json:
            self.put({"event": "message", "level": level, "message": message})
        else:
            self.printer.print(printable(line))


def _causes(error: BaseException) -> Iterator[str]:
    """Yield a line for each error that led to this one."""
    seen = {id(error)}
    while True:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield message_line(f"  caused by {type(cause).__name__}: {cause}")
        error = cause


class _LogHandler(logging.Handler):
    """Prints each record as one line on standard error."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.note(record.levelname.lower(), record.getMessage())


# ── results ──


def result_lines(target: str, report: Report, prepared: Prepared) -> Iterator[str]:
    """Yield the lines that end a save: one for each image without a name, and the summary."""
    for each in prepared.images:
        if each.request.tags is None and not each.image.repo_tags:
            yield f"{each.request} has no name in the archive; write {each.request}=NAME:TAG to give it one"
    images = ", ".join(
        f"image {each.image.config.image_id} (manifest {each.resolved.digest})" for each in prepared.images
    )
    checksum = f", {report.sha256}" if report.sha256 else ""
    left = ", left as it was: size and headers are right, blobs were not read" if report.left_as_is else ""
    yield f"{target}: {report.size} bytes{checksum}, {images}{left}"


def plan_text(prepared: Prepared, plan: Plan) -> str:
    """Return a plan for people."""
    return "\n".join(_plan_lines(prepared, plan))


def _plan_lines(prepared: Prepared, plan: Plan) -> Iterator[str]:
    yield f"size  {plan.size}"
    yield f"etag  {plan.etag}"
    for each in prepared.images:
        tags = " ".join(each.repo_tags)
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
                "repo_tags": list(each.repo_tags),
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
