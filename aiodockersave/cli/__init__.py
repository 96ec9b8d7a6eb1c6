"""The command line: arguments to calls, errors to exit codes.

====  ================================================================================================
exit  meaning
====  ================================================================================================
0     done
1     failed: one line on standard error says what, and what to do
2     the command line is wrong
130   interrupted by SIGINT (Ctrl-C): nothing half-written is under the target's name
141   whoever read standard output has left
143   ended by SIGTERM or SIGHUP: as 130
====  ================================================================================================

Nothing is imported at once. ``--help`` needs no library to print what is known, and comes as quickly as Python starts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

HELP = """\
Usage: aiodockersave [OPTIONS] COMMAND [ARGS]...

  Write container images into archives for "docker load".

Options:
  --version  Show the version and exit.
  --help     Show this message and exit.

Commands:
  plan  Show size, ETag and members of an archive ahead of time.
  save  Save images into one archive.
"""
"""The help that click makes of :mod:`.commands`; a test compares the two."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line, the process's own by default, and return the exit code."""
    is_own_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--help"] and sys.stdout is not None:
        return _printing(_print_help)
    import signal  # noqa: PLC0415 - not for --help

    # Until a loop takes it over, Ctrl-C ends the process at once, as SIGTERM does: there is nothing to clean up yet, and
    # a KeyboardInterrupt in the middle of an import is no pretty sight.
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _printing(lambda: _run(arguments))
    except KeyboardInterrupt:
        return 130
    finally:
        if default and not is_own_process:  # a process that ends has nothing to say of a late Ctrl-C either
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _print_help() -> int:
    sys.stdout.write(HELP)
    return 0


def _printing(call: Callable[[], int]) -> int:
    """Run what prints on standard output, and end in one line where that cannot be written."""
    try:
        code = call()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        from .run import give_up_output  # noqa: PLC0415 - not for --help

        give_up_output()
        if isinstance(error, BrokenPipeError):
            return 141
        from .terminal import print_error  # noqa: PLC0415

        print_error(f"aiodockersave: standard output: {error.strerror or error}")
        return 1
    return code


def _run(arguments: list[str]) -> int:
    import click  # noqa: PLC0415 - not for --help

    from .commands import command  # noqa: PLC0415

    try:
        code: int | None = command.main(arguments, prog_name="aiodockersave", standalone_mode=False)
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except click.Abort:
        return 130
    return code or 0


def _show(error: click.ClickException) -> None:
    import io  # noqa: PLC0415 - not for --help

    from .terminal import print_error  # noqa: PLC0415

    text = io.StringIO()
    error.show(file=text)
    print_error(text.getvalue().rstrip(), keep="\n\t")
