"""What a pool tells of its load: the asyncio pool by itself, any other by what Celery knows of its requests."""

import os
from dataclasses import dataclass
from typing import Any

from celery.worker import state

from callsheet.resources.limits.gates import waiting as waiting_for_turns


@dataclass(frozen=True, slots=True)
class Reading:
    """A pool at a moment.

    Attributes:
        size: slots or processes.
        busy: calls that have one; parked ones have none.
        returning: calls that were parked and wait for a slot to go on with.
        waiting: calls that the worker has taken and not begun.
        begun: calls begun since the start.
        ended: calls ended since the start.
        held: calls under way, the parked ones included.
        turns: calls that wait for their turn under an endpoint's limits; they are parked.
        lag: seconds that the event loop is late, or None.
    """

    size: int
    busy: int
    returning: int
    waiting: int
    begun: int
    ended: int
    held: int
    turns: int = 0
    lag: float | None = None


class ProcessGauge:
    """Reads pools of processes, and all that are not ours.

    Args:
        pool: Celery's.
    """

    idle_costs = True
    most_added = 8  # processes at once, ten times a second at most: Celery ends a pool that starts 100 in a second

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def read(self) -> Reading:
        """The pool now; the consumer's thread."""
        active, begun = len(state.active_requests), state.all_total_count[0]
        waiting = max(0, len(state.reserved_requests) - active)
        return Reading(self._pool.num_processes, active, 0, waiting, begun, begun - active, active)

    def has_room(self) -> bool:
        """Whether a call that comes need not wait; asked for each message."""
        active = len(state.active_requests)
        return active < self._pool.num_processes and len(state.reserved_requests) <= active

    def pids(self) -> list[int]:
        """Processes of the worker, its own first."""
        processes = getattr(getattr(self._pool, "_pool", None), "_pool", None) or ()  # billiard's, once it has started
        return list(dict.fromkeys([os.getpid(), *(process.pid for process in tuple(processes) if process.pid)]))


class SlotGauge:
    """Reads the asyncio pool.

    Args:
        pool: an AsyncioPool.
    """

    idle_costs = False
    most_added = 1 << 30

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def read(self) -> Reading:
        """The pool now; any thread."""
        pool, slots = self._pool, self._pool.slots
        with slots.lock:
            held, returning = slots.used + slots.parked, slots.returning
            return Reading(slots.limit, slots.used, returning, len(slots.waiting), pool.finished + held,
                           pool.finished, held, sum(waiting_for_turns().values()), pool.lag)

    def has_room(self) -> bool:
        """Whether a call that comes need not wait; asked for each message."""
        slots = self._pool.slots
        return bool(slots.used < slots.limit and not slots.waiting)

    def pids(self) -> list[int]:
        """The worker's process: its calls have none of their own."""
        return [os.getpid()]


def pool_name(pool: Any) -> str:
    """What kind of pool it is, in one word."""
    return "asyncio" if hasattr(pool, "slots") else type(pool).__module__.rpartition(".")[2]


def slot_numbers(pool: Any) -> dict[str, float]:
    """Slots, calls and loop of a pool, by the names of their metrics."""
    seen = gauge_of(pool).read()
    numbers: dict[str, float] = {"slots": seen.size or 0, "slots_used": seen.busy, "slots_waiting": seen.waiting}
    if not hasattr(pool, "slots"):
        return numbers
    return {**numbers, "parked": pool.slots.parked, "parked_most": pool.slots.max_parked, "threads": pool.crew.count,
            "loop_lag_seconds": pool.lag, "loop_blocked": pool.blocked}


def gauge_of(pool: Any) -> ProcessGauge | SlotGauge:
    """The gauge for a pool."""
    return SlotGauge(pool) if hasattr(pool, "slots") else ProcessGauge(pool)
