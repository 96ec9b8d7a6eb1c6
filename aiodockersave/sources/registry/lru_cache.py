"""A dictionary that forgets: what a long-running process keeps must not grow without bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Recent"]

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were used last, up to a weight in all.

    Args:
        limit: The weight that is kept; what alone weighs more is not kept.
        weigh: Tells the weight of a value; each weighs 1 by default.
    """

    def __init__(self, limit: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0

    def get(self, key: K) -> V | None:
        """Return a value, which counts as used; None if there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V) -> None:
        """Keep a value; what was not used for longest is forgotten for it."""
        self._weight -= self._values.pop(key, (value, 0))[1]
        weight = self._weigh(value)
        if weight > self._limit:
            return
        self._values[key] = value, weight
        self._weight += weight
        while self._weight > self._limit:
            self._weight -= self._values.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[V]:
        """Return all values, the one that was used last at the end."""
        return [value for value, _ in self._values.values()]
