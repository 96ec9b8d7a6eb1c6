"""Exit codes, and the signals that end a command with one.

====  ================================================================================================
exit  meaning
====  ================================================================================================
0     done
1     failed for another reason than those below
2     the command line is wrong
4     not found: the image, or the platform
5     login required, or refused
6     the registry cannot be reached, is busy, or is broken
7     the content is wrong: a digest, a size, damage
8     the target cannot be written: space, permission
129   ended by SIGHUP
130   ended by SIGINT (Ctrl-C)
141   the reader of standard output has left
143   ended by SIGTERM
====  ================================================================================================

After any code but 0 one line on standard error says what failed and what to do (141 is silent), and nothing half-written is
under the target's name.
"""

from __future__ import annotations

import signal
from typing import Final

from aiodockersave.core.errors import (
    AuthenticationError,
    BlobNotFoundError,
    ContentError,
    ImageNotFoundError,
    InsufficientSpaceError,
    InvalidDocumentError,
    PartFileError,
    PlatformNotFoundError,
    RegistryError,
    SinkError,
    TransferError,
)

FAILED: Final = 1
WRONG_USE: Final = 2
NOT_FOUND: Final = 4
LOGIN: Final = 5
REGISTRY: Final = 6
CONTENT: Final = 7
TARGET: Final = 8
SIGNAL: Final = 128
"""Shells add this to the number of a signal for the exit code of a process that it ended."""
READER_LEFT: Final = SIGNAL + signal.SIGPIPE

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""

_CODES: Final[tuple[tuple[int, tuple[type[Exception], ...]], ...]] = (
    (NOT_FOUND, (ImageNotFoundError, PlatformNotFoundError)),
    (LOGIN, (AuthenticationError,)),
    (REGISTRY, (RegistryError, TransferError)),
    (CONTENT, (ContentError, InvalidDocumentError, BlobNotFoundError)),
    (TARGET, (InsufficientSpaceError, PartFileError, SinkError)),
)
"""The codes of this package's errors, in the order in which they are tried."""


def code_of(error: Exception) -> int:
    """Return the exit code for an error of this package."""
    return next((code for code, kinds in _CODES if isinstance(error, kinds)), FAILED)
