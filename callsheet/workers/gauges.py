"""What a pool tells of its load: the asyncio pool by itself, any other by what Celery knows of its requests.

And what the autoscaler makes of such readings over time: how long calls keep their slots, what one more of them takes,
and how many could make use of one.
"""

import math
import os
import time
from dataclasses import dataclass
from typing import Any

from celery.worker import state

from callsheet.resources.limits.gate import waiting as waiting_for_turns

_MEMORY = 10.0  # seconds after which half of what was seen is forgotten
_LITTLE = 0.01  # calls: of fewer nothing can be said
_MANY = 20  # calls under way from which their memory can be told from the worker's own


@dataclass(frozen=True, slots=True)
class Reading:
    """A pool at a moment."""

    size: int  # slots or processes
    busy: int  # calls that have one; parked ones have none
    returning: int  # calls that were parked and wait for a slot to go on with
    waiting: int  # calls that the worker has taken and not begun
    begun: int  # calls begun since the start
    ended: int  # calls ended since the start
    held: int  # calls under way, the parked ones included
    turns: int = 0  # calls that wait for their turn under an endpoint's limits; they are parked
    lag: float | None = None  # seconds that the event loop is late, or None


class ProcessGauge:
    """Reads pools of processes, and all that are not ours."""

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
    """Reads the asyncio pool."""

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
                           pool.finished, held, sum(waiting_for_turns().values()), pool.watch.lag)

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
            "loop_lag_seconds": pool.watch.lag, "loop_blocked": pool.watch.blocked}


def gauge_of(pool: Any) -> ProcessGauge | SlotGauge:
    """The gauge for a pool."""
    return SlotGauge(pool) if hasattr(pool, "slots") else ProcessGauge(pool)


def age_of(request: Any) -> float | None:
    """Seconds since an agent's call was sent; None where that says nothing of its queue, or is not known.

    Args:
        request: Celery's, just received. A call that was to wait, or comes a second time, is older than its wait.
    """
    args = request.args
    data = args[-1] if args else None
    sent = data.get("sent") if isinstance(data, dict) else None
    if not isinstance(sent, (int, float)) or request.eta or (request.delivery_info or {}).get("redelivered"):
        return None
    return max(0.0, time.time() - sent)


class BusyTime:
    """How long a call keeps its slot: the time that slots were busy, over the calls that ended meanwhile."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._ended = 0
        self._time = self._calls = 0.0

    def seconds(self, reading: Reading, now: float) -> float | None:
        """Seconds a call, lately; None where hardly any has ended."""
        if self._at is not None and now > self._at:
            passed = min(now - self._at, 60.0)
            kept = 0.5 ** (passed / _MEMORY)
            self._time = self._time * kept + reading.busy * passed
            self._calls = self._calls * kept + reading.ended - self._ended
        self._at, self._ended = now, reading.ended
        return self._time / self._calls if self._calls > _LITTLE else None


class UnitMemory:
    """What one more unit takes.

    Args:
        base: bytes of the worker before its first call, or None.
        idle_costs: whether a unit is a process, rather than a slot.
    """

    def __init__(self, base: int | None, idle_costs: bool) -> None:
        self._base = base
        self._idle_costs = idle_costs
        self._known: float | None = None

    def of(self, reading: Reading, used: int | None) -> float | None:
        """Bytes, or None where nothing is known yet.

        Args:
            reading: of the pool.
            used: bytes of the worker with all its processes.
        """
        if used is not None and self._base is not None:
            if self._idle_costs and reading.size:
                self._known = max(0.0, used - self._base) / reading.size
            elif reading.held >= _MANY:
                self._known = max(0.0, used - self._base) / reading.held
        return self._known


class WaitsForTurns:
    """What the endpoints' limits leave for the calls that wait to be begun.

    Where calls wait for their turn at an endpoint, those that the limits let through have their slots already. Of the
    calls that wait on the queue, the part that would go for such an endpoint would only wait on, parked: the same part,
    it is taken, as of the calls begun lately. The others can make use of slots.
    """

    def __init__(self) -> None:
        self._begun = self._turns = 0
        self._part = 0.0

    def quota(self, reading: Reading, waiting: int) -> int | None:
        """Slots that can be made use of; None while no call waits for its turn.

        Args:
            reading: of the pool.
            waiting: calls that wait for slots, here and on the queues.
        """
        begun, turns = reading.begun - self._begun, reading.turns - self._turns
        self._begun, self._turns = reading.begun, reading.turns
        if begun > 0:
            part = min(1.0, max(0.0, turns / begun))
            self._part = (self._part + part) / 2 if self._part else part
        if not reading.turns:
            self._part = 0.0
            return None
        useful = math.ceil((1 - self._part) * max(0, waiting - reading.returning))
        return max(1, reading.busy + reading.returning + useful)
