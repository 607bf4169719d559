"""What the autoscaler works out from one reading of the pool to the next."""

import math
import time
from typing import Any

from callsheet.workers.gauges import Reading

_MEMORY = 10.0  # seconds after which half of what was seen is forgotten
_LITTLE = 0.01  # calls: of fewer nothing can be said
_MANY = 20  # calls under way from which their memory can be told from the worker's own


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
            self._part = (self._part + min(1.0, max(0.0, turns / begun))) / 2 if self._part else min(
                1.0, max(0.0, turns / begun))
        if not reading.turns:
            self._part = 0.0
            return None
        useful = math.ceil((1 - self._part) * max(0, waiting - reading.returning))
        return max(1, reading.busy + reading.returning + useful)
