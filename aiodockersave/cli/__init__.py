"""The command line: arguments to calls, errors to exit codes (:mod:`.exit_codes`)."""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys

import click

from . import exit_codes
from .commands import command
from .printing import PROGRAM, give_up_output, print_error


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, the process's own by default, and return the exit code."""
    before = {number: signal.getsignal(number) for number in exit_codes.ENDING}
    # Until a loop takes it over, Ctrl-C ends the process at once, as SIGTERM does: there is nothing to clean up yet, and
    # a KeyboardInterrupt in the middle of an import is no pretty sight.
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = exit_codes.SIGNAL + signal.SIGINT
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        pass
    finally:
        if arguments is not None:  # a process that ends takes no further signal either
            for number, handler in before.items():
                if handler is not None:  # one that was not set from Python
                    signal.signal(number, handler)
    return code


def _run(arguments: list[str]) -> int:
    """Run a command line; where standard output cannot be written, end in one line."""
    streams = sys.stdout, sys.stderr
    try:
        code = _call(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout, sys.stderr = streams
        give_up_output()
        if isinstance(error, BrokenPipeError):
            return exit_codes.READER_LEFT
        print_error(f"{PROGRAM}: standard output: {error.strerror or error}")
        return exit_codes.TARGET
    return code


def _call(arguments: list[str]) -> int:
    output = sys.stdout
    try:
        code: int | None = command.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        _report_wrong_use(error, as_json=_wants_json(arguments))
        return error.exit_code
    except click.Abort:
        return exit_codes.SIGNAL + signal.SIGINT
    except SystemExit:
        if sys.stdout is output:  # the end of shell completion
            raise
        raise BrokenPipeError from None  # click has wrapped standard output, whose reader has left
    return code or 0


def _wants_json(arguments: list[str]) -> bool:
    """Tell whether ``--progress json`` was asked for, by arguments that click could not read."""
    values = [each.partition("=")[2] for each in arguments if each.startswith("--progress=")]
    values += [value for option, value in itertools.pairwise(arguments) if option == "--progress"]
    return "json" in (values or [os.environ.get(f"{PROGRAM}_PROGRESS".upper(), "")])


def _report_wrong_use(error: click.ClickException, *, as_json: bool) -> None:
    if as_json:
        from .terminal import Terminal  # noqa: PLC0415 - with it comes the library

        terminal = Terminal(quiet=True, verbose=False, as_json=True)
        terminal.fail(error.format_message(), error, error.exit_code)
        terminal.printer.close()
        return
    text = io.StringIO()
    error.show(file=text)
    print_error(text.getvalue().rstrip(), keep="\n\t")
