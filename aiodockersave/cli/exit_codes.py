"""Exit codes, and the signals that end a command with one."""

from __future__ import annotations

import signal
from typing import Final

__all__ = ["ENDING", "FAILED", "INTERRUPTED", "READER_LEFT", "SIGNAL", "TERMINATED"]

FAILED: Final = 1
SIGNAL: Final = 128
"""Shells add this to the number of a signal for the exit code of a process that it ended."""
INTERRUPTED: Final = SIGNAL + signal.SIGINT
READER_LEFT: Final = SIGNAL + signal.SIGPIPE
TERMINATED: Final = SIGNAL + signal.SIGTERM

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""
