"""Counting what happened lately, and the retry budget that rests on it."""

import time
from collections.abc import Callable

SLOTS = 10
Clock = Callable[[], float]


class Recent:
    """How often something happened in the last `window` seconds, to a tenth of them.

    Args:
        window: seconds.
        clock: seconds that only grow.
    """

    __slots__ = ("_clock", "_counts", "_slot", "_width")

    def __init__(self, window: float, clock: Clock = time.monotonic) -> None:
        self._width = window / SLOTS
        self._clock = clock
        self._counts = [0] * SLOTS
        self._slot = int(clock() / self._width)

    def add(self, count: int = 1) -> None:
        """It happened `count` times now."""
        slot = int(self._clock() / self._width)
        if slot != self._slot:
            self._forget(slot)
        self._counts[slot % SLOTS] += count

    @property
    def total(self) -> int:
        """How often in the window."""
        self._forget(int(self._clock() / self._width))
        return sum(self._counts)

    def take(self) -> int:
        """The total; counting begins anew."""
        total = self.total
        self._counts = [0] * SLOTS
        return total

    def _forget(self, slot: int) -> None:
        for old in range(self._slot + 1, min(slot, self._slot + SLOTS) + 1):
            self._counts[old % SLOTS] = 0
        self._slot = max(slot, self._slot)


BUDGET_WINDOW = 30.0
"""Seconds within which a call earns its share of a retry."""


class RetryBudget:
    """Bounds what retries add to an endpoint's load; the idea is that of Finagle's RetryBudget.

    Each call earns a share of a retry, which lapses after half a minute; a few retries are there without any calls,
    so that a quiet process can retry at all. When an endpoint fails most of its calls, the retries of all callers
    together are then a small part of its load, not a multiple.

    Args:
        share: of a retry that a call earns, e.g. 0.1.
        minimum: retries in half a minute that need no calls.
        clock: seconds that only grow.
    """

    __slots__ = ("_calls", "_minimum", "_retries", "_share")

    def __init__(self, share: float, minimum: int, clock: Clock = time.monotonic) -> None:
        self._share = share
        self._minimum = minimum
        self._calls = Recent(BUDGET_WINDOW, clock)
        self._retries = Recent(BUDGET_WINDOW, clock)

    def earn(self) -> None:
        """A call was answered, or failed, for the first time."""
        self._calls.add()

    def spend(self) -> bool:
        """Take a retry; False where the budget has none left."""
        if self._retries.total + 1 > self._minimum + self._share * self._calls.total:
            return False
        self._retries.add()
        return True
