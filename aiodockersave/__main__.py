"""Run the command line: ``python -m aiodockersave``, and the ``aiodockersave`` program.

The one module that imports `cli`, and only when it runs. Without the extra that brings click it says
what to install.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import NoReturn

from .core.errors import MissingDependencyError

# What the extra brings: one of these missing is a matter of installing, any other a fault of ours.
_BROUGHT_BY_EXTRA = frozenset({"aiohttp", "click"})


def main() -> None:
    """Run the command line and exit with its code."""
    # What is imported stays: looking through it for garbage, then and at the end, takes a quarter of a short command.
    gc.disable()
    try:
        from .cli import main as run  # noqa: PLC0415 - not before it is known to be wanted

        sys.exit(run())
    except ModuleNotFoundError as error:
        if error.name not in _BROUGHT_BY_EXTRA:
            raise
        print(f"aiodockersave: {MissingDependencyError('the command line', 'cli')}", file=sys.stderr)
        sys.exit(1)
    finally:
        gc.freeze()


def program() -> None:
    """Run the command line in a process of its own, and end that as soon as nothing of ours is left.

    Taking down all modules, as Python does at last, takes 6 ms.
    """
    codes = [1]
    atexit.register(lambda: _leave(codes[0]))  # the first to be registered is the last to be called
    try:
        main()
    except SystemExit as ending:
        codes[0] = ending.code if isinstance(ending.code, int) else 1
        raise


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # what could not be printed was said already
            if stream is not None:
                stream.flush()
    os._exit(code)


if __name__ == "__main__":
    program()
