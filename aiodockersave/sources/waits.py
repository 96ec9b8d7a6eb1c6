"""The waits of a source, so that people can be told what they wait for.

A source notes each wait while it lasts. Nobody is called: who wants to know looks, so that a wait of a millisecond costs a
microsecond.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeAlias, runtime_checkable

__all__ = ["Sleep", "SupportsWaits", "Wait", "Waits"]

Sleep: TypeAlias = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that a source waits for.

    Attributes:
        what: The content that is to be fetched, such as ``manifest docker.io/library/alpine:3.20``.
        reason: What is waited for, such as ``no answer yet``.
        seconds: How long it has been waited for.
        limit: The seconds after which the wait ends, or is given up.
    """

    what: str
    reason: str
    seconds: float
    limit: float


@runtime_checkable
class SupportsWaits(Protocol):
    """A source that tells what it waits for."""

    def waits(self) -> Sequence[Wait]:
        """Return the waits of this moment, the longest first. Called on the event loop."""
        ...


class Waits:
    """The waits of one source.

    Args:
        sleep: Waits for a number of seconds.
    """

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self._sleep = sleep
        self._now: dict[_Noted, None] = {}

    def noted(self, what: str, reason: str, limit: float) -> _Noted:
        """Return a context manager that notes a wait; arguments as for :class:`Wait`."""
        return _Noted(self._now, what, reason, limit)

    async def pause(self, what: str, reason: str, seconds: float) -> None:
        """Wait for a number of seconds.

        Cancel: ends the wait.
        """
        with self.noted(what, reason, seconds):
            await self._sleep(seconds)

    def listed(self) -> list[Wait]:
        """Return the waits of this moment, the longest first."""
        now = time.monotonic()
        return [Wait(each.what, each.reason, now - each.begun, each.limit) for each in self._now]


class _Noted:
    """A wait, while the block runs."""

    __slots__ = ("_now", "begun", "limit", "reason", "what")

    def __init__(self, now: dict[_Noted, None], what: str, reason: str, limit: float) -> None:
        self._now = now
        self.what = what
        self.reason = reason
        self.limit = limit
        self.begun = 0.0

    def __enter__(self) -> None:
        self.begun = time.monotonic()
        self._now[self] = None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._now.pop(self, None)
