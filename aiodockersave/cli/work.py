"""The work of each command: options become a call of the library, its result becomes lines for people or programs."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import AsyncExitStack
from typing import Any

import click

from aiodockersave.pipeline import save as pipeline
from aiodockersave.pipeline.resolve import prepare
from aiodockersave.pipeline.waiting import TellingWaits

from . import heap
from .bars import Bars
from .image_argument import ImageArgument
from .json_lines import JsonLines
from .passwords import given_credentials
from .printing import print_data
from .reporters import PlainLines, Reporter, WaitLines, amount
from .run import run
from .sources import RegistryOptions, get_ready, open_sources
from .terminal import Terminal, plan_json, plan_text, result_lines

_COMPRESSED = (".gz", ".tgz", ".zst", ".tzst", ".xz", ".bz2")
"""Ends of names that promise a compressed file."""


def save(
    *,
    images: list[ImageArgument],
    output: str,
    progress: str,
    resume: bool,
    restart: bool,
    no_fsync: bool,
    max_expansion: int | None,
    creds_stdin: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Save images into one archive, and return the exit code.

    Raises:
        click.UsageError: Options contradict each other, or the target is none.
    """
    target, name = _target(output), None if output == "-" else output
    can_resume = name is not None and options["layers"] == "keep"
    _check_resume(name, options["layers"], resume=resume, restart=restart)
    if options["format"] == "oci" and options["layers"] == "decompress":
        raise click.UsageError(
            "--format oci keeps the manifest and its digest, which plain layers would change: leave out --layers decompress, "
            "or use --format docker"
        )
    if max_expansion is not None:
        options["max_expansion"] = max_expansion or None
    registries = RegistryOptions.taken_from(options)
    given = given_credentials(images, registries) if creds_stdin else None
    get_ready(images)
    terminal = Terminal(quiet=quiet, verbose=verbose, as_json=progress == "json")
    reporter = new_reporter(progress, terminal)
    if name is not None and name.endswith(_COMPRESSED):
        terminal.note(
            "warning",
            f"{name} will not be compressed, though its name says so: use -o - and a compressor, or another name",
        )

    async def work() -> None:
        async with heap.giving_back(), AsyncExitStack() as stack:
            requests = await open_sources(images, registries, stack, given)
            with reporter:
                report = await pipeline.save(
                    requests,
                    target,
                    fsync=not no_fsync,
                    resume=resume,
                    restart=restart,
                    progress=reporter,
                    **options,
                )
        if reporter.prepared is not None:
            for line in result_lines(name or "standard output", report, reporter.prepared):
                terminal.say(line)

    def advice() -> str:
        """Say what an interrupt has cost that --resume would have kept."""
        received = reporter.tally.total_done
        if resume or not can_resume or not received or not _is_for_a_file(target):
            return ""
        return f"; --resume would have kept the {amount(received)} that were received"

    return run(work, terminal, target=name, advice=advice)


def _check_resume(name: str | None, layers: str, *, resume: bool, restart: bool) -> None:
    if resume and name is None:
        raise click.UsageError("--resume is for a file: an archive on standard output cannot be resumed")
    if resume and layers == "decompress":
        raise click.UsageError("--resume needs --layers keep: with decompress the size is not known ahead")
    if restart and not resume:
        raise click.UsageError("--restart is for --resume: without it every save begins anew")


def _is_for_a_file(path: str) -> bool:
    return os.path.isfile(path) or not os.path.lexists(path)


def _target(output: str) -> Any:
    if output != "-":
        if not output or output.endswith("/"):
            raise click.UsageError("-o takes the name of a file, or - for standard output")
        return output
    if sys.stdout is None:
        raise click.UsageError("standard output is closed")
    if sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal: use -o FILE, or send it through a pipe")
    return sys.stdout.buffer


def new_reporter(form: str, terminal: Terminal) -> Reporter:
    """Return the reporter for a form of progress; :mod:`.reporters` lists them."""
    if form == "json":
        return JsonLines(terminal)
    if form == "none" or terminal.is_quiet:
        return Reporter()
    return Bars(terminal) if form == "auto" and _can_show_bars() else PlainLines(terminal)


def _can_show_bars() -> bool:
    return (
        sys.stderr is not None
        and sys.stderr.isatty()
        and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}
        and importlib.util.find_spec("rich") is not None
    )


def plan(
    *,
    images: list[ImageArgument],
    as_json: bool,
    creds_stdin: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Show size, ETag and members of an archive ahead of time, and return the exit code."""
    registries = RegistryOptions.taken_from(options)
    given = given_credentials(images, registries) if creds_stdin else None
    get_ready(images)
    terminal = Terminal(quiet=quiet, verbose=verbose)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            requests = await open_sources(images, registries, stack, given)
            async with TellingWaits((each.source for each in requests), WaitLines(terminal)):
                prepared = await prepare(requests, **options)
        if prepared.plan is not None:
            print_data((plan_json if as_json else plan_text)(prepared, prepared.plan))

    return run(work, terminal, target=None)
