"""aiohttp, loaded when it is first needed."""

from __future__ import annotations

from typing import Any

from aiodockersave.core.errors import MissingDependencyError

__all__ = ["load_aiohttp"]


def load_aiohttp() -> Any:
    """Import aiohttp, which takes long.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import aiohttp  # noqa: PLC0415 - see above
    except ImportError:
        raise MissingDependencyError("a registry as a source", "registry") from None
    return aiohttp
