"""aiohttp, loaded late, or as quickly as it can be."""

from __future__ import annotations

import ssl
import sys
from typing import Any, Final

from aiodockersave.core.errors import MissingDependencyError

__all__ = ["load_aiohttp", "load_aiohttp_for_us_alone"]


_LOADING: Final = ("load_default_certs", "set_default_verify_paths")
"""The methods that read authorities into a TLS context."""


def load_aiohttp() -> Any:
    """Import aiohttp, which takes long, when it is first needed.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import aiohttp  # noqa: PLC0415 - see above
    except ImportError:
        raise MissingDependencyError("a registry as a source", "registry") from None
    return aiohttp


def load_aiohttp_for_us_alone() -> None:
    """Import aiohttp without the authorities of its default TLS contexts, which takes a fifth of its import.

    For a process in which nobody uses these contexts (they trust nobody then), and before it has another thread: every
    connection of ours brings a context of its own.

    Raises:
        MissingDependencyError: It is not installed.
    """
    if "aiohttp" in sys.modules:
        return
    own = {name: vars(ssl.SSLContext).get(name) for name in _LOADING}
    for name in own:
        setattr(ssl.SSLContext, name, lambda *_: None)
    try:
        load_aiohttp()
    finally:
        for name, method in own.items():
            if method is None:  # it is a base class's
                delattr(ssl.SSLContext, name)
            else:
                setattr(ssl.SSLContext, name, method)
