"""Attempts across the addresses that have the same content: which is asked next, and when.

The decisions are plain functions of what has failed so far; the only thing that waits is :meth:`Turns.failed`. An
address that *refuses* (404, 403, a wrong size) is asked no more; one that *breaks* (a dropped connection, 429, 5xx) gets
another turn. There is no wait before an address is asked that has not failed since there was progress last.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aiodockersave.core.errors import DockerSaveError, InvalidInputError, RateLimitedError, TransferError

__all__ = ["InterruptedTransfer", "Retries", "Turns"]

P = TypeVar("P")
T = TypeVar("T")

logger = logging.getLogger("aiodockersave")

Sleep = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Retries:
    """The limits on asking a registry again.

    Attributes:
        attempts: Requests in a row, to each address, that bring nothing new; the last one's failure is final.
        min_delay: The wait before the second attempt, in seconds; it doubles with each further one.
        max_delay: The longest of these waits, in seconds.
        retry_after_limit: The longest wait that a registry may ask for, in seconds. One that asks for more
            is not waited for: :class:`RateLimitedError` is raised at once.
    """

    attempts: int = 5
    min_delay: float = 0.5
    max_delay: float = 30.0
    retry_after_limit: float = 300.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.min_delay <= self.max_delay or self.retry_after_limit < 0:
            raise InvalidInputError("retries need at least one attempt and delays that are not negative")

    def delay(self, rounds: int) -> float:
        """Return the wait after ``rounds`` fruitless rounds, shortened by up to a quarter at random.

        The chance keeps many clients from coming back in the same moment.
        """
        longest = min(self.max_delay, self.min_delay * 2.0 ** min(rounds - 1, 60))
        return longest * random.uniform(0.75, 1.0)  # noqa: S311 - no secret


class InterruptedTransfer(Exception):  # noqa: N818 - it does not leave this room
    """A request or its answer broke off; asking again may help.

    Attributes:
        error: What it was, fit to be the cause of an error.
        retry_after: After how many seconds the registry wants to be asked again, or None.
        is_final: Whether ``error`` itself is raised when nothing helps, since it says more than ``TransferError``.
    """

    def __init__(
        self, error: DockerSaveError, *, retry_after: float | None = None, is_final: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after
        self.is_final = is_final or isinstance(error, RateLimitedError)


class Turns(Generic[P]):
    """The addresses of one content, in the order in which they are asked.

    Args:
        what: What is fetched, for the error.
        places: The addresses. The refusal of the last one, the registry itself, is the error where no other helps.
        retries: When to give up.
        sleep: Waits for seconds.

    Attributes:
        failures: How many attempts broke off since there was progress.
        last_error: What broke off the last one, whether or not there was progress since.
    """

    def __init__(self, what: str, places: Sequence[P], retries: Retries, sleep: Sleep) -> None:
        self._what = what
        self._places = list(places)
        self._registry = self._places[-1]
        self._refusal: DockerSaveError | None = None
        self._retries = retries
        self._sleep = sleep
        self._turn = 0
        self.failures = 0
        self.last_error: DockerSaveError | None = None
        self._wanted_delay = 0.0

    @property
    def place(self) -> P:
        """The address that is asked now."""
        return self._places[self._turn]

    async def run(self, ask: Callable[[P], Awaitable[T]]) -> T:
        """Ask one place after the other until one answers.

        Raises:
            DockerSaveError: None does.
        """
        while True:
            try:
                return await ask(self.place)
            except (InterruptedTransfer, DockerSaveError) as exc:
                fault = exc
            await self.failed(fault)

    def progressed(self) -> None:
        """Note that something new came: the count of attempts starts again."""
        self.failures = 0
        self._wanted_delay = 0.0

    async def failed(self, fault: InterruptedTransfer | DockerSaveError) -> None:
        """Let the next address have its turn, after a wait if need be.

        Raises:
            DockerSaveError: Nobody is left, or the attempts are used up.
        """
        delay = self.next_turn(fault)
        logger.info("%s; next attempt in %.1f s", fault, delay)
        if delay > 0:
            await self._sleep(delay)

    def next_turn(self, fault: InterruptedTransfer | DockerSaveError) -> float:
        """Decide what :meth:`failed` does; return how long to wait."""
        if isinstance(fault, DockerSaveError):
            return self._drop(fault)
        self.last_error = fault.error
        wanted = fault.retry_after or 0.0
        if wanted > self._retries.retry_after_limit:
            return self._drop(fault.error)
        self.failures += 1
        self._wanted_delay = max(self._wanted_delay, wanted)
        if self.failures >= self._retries.attempts * len(self._places):
            if self._refusal is not None:
                raise self._refusal
            raise self._given_up(fault) from fault.error if not fault.is_final else None
        self._turn = (self._turn + 1) % len(self._places)
        rounds, rest = divmod(self.failures, len(self._places))
        if rest:
            return 0.0
        delay = max(self._retries.delay(rounds), self._wanted_delay)
        self._wanted_delay = 0.0
        return delay

    def _drop(self, error: DockerSaveError) -> float:
        if self.place is self._registry:
            self._refusal = error
        if len(self._places) == 1:
            raise self._refusal or error
        del self._places[self._turn]
        self._turn %= len(self._places)
        return 0.0

    def _given_up(self, fault: InterruptedTransfer) -> DockerSaveError:
        if fault.is_final:
            return fault.error
        return TransferError(self._what, self.failures, str(fault.error))
