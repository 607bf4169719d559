"""Calls whose workers died time and again: which of them it is that kills its worker.

All that a worker held is lost with it, and nobody knows what did it. So those that have lost a worker for the last
time but one begin one after the other in a worker, and Redis is told before each: whose worker then dies is known.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from callsheet.errors import PoisonedCall
from callsheet.settings import get_settings
from callsheet.tasks.base import LOST
from callsheet.workers.broker.later import FAILURES
from callsheet.workers.broker.layout import ALONE, BESIDE, POISONED, suspected

APART = 10.0  # seconds after which the next one begins, though the one before it still runs
_LOOK = 0.2  # seconds between two looks whether it does


class Suspects:
    """Those of one consumer.

    Args:
        consumer: ours.
        begin: hands a message to Celery.
    """

    def __init__(self, consumer: Any, begin: Callable[[Any], Any]) -> None:
        self._consumer, self._begin = consumer, begin
        self._limit = get_settings().max_deaths
        self._line: deque[Any] = deque()
        self._running: list[Any] = []
        self._until = 0.0

    def takes(self, message: Any) -> bool:
        """Give up a call that kills its workers, and have a suspect wait for its turn; False for all others."""
        if POISONED in message.headers:
            self._give_up(message)
            return True
        if not suspected(message.headers, self._limit) or getattr(message.channel, "ledger", None) is None:
            return False
        self._line.append(message)
        if len(self._line) == 1:
            self._look()
        return True

    def _look(self) -> None:
        self._running = [one for one in self._running if one.delivery_tag in one.channel.ledger.held]
        if self._line and (not self._running or time.monotonic() > self._until):
            message = self._line.popleft()
            self._running.append(message)
            self._until = time.monotonic() + APART
            if self._mark(BESIDE if len(self._running) > 1 else ALONE):
                self._begin(message)
        if self._line:
            self._consumer.hub.call_later(_LOOK, self._look)

    def _mark(self, how: str) -> bool:
        """Tell Redis how they run; False where the last one is another worker's by now."""
        return bool([one.channel.ledger.mark_begun(one.delivery_tag, how) for one in self._running][-1])

    def leave(self) -> None:
        """The worker was told to end: what is killed from now on did not do it."""
        with suppress(*FAILURES):
            if self._running:
                self._mark("")

    def _give_up(self, message: Any) -> None:
        headers = message.headers
        who, count = headers.get("shadow") or headers.get("task"), headers.get(LOST)
        why = f"{count} workers died while they ran it: killed, out of memory, or crashed in native code"
        remedy = ("It is not tried again. See the workers' logs; what it was given is among the dead letters "
                  "(docs/workers.md)")
        self._consumer.refuse(message, why, remedy, PoisonedCall(
            f"The call of {who} was given up: {why}. {remedy}.", "", "", "", str(who), str(headers.get("id"))))
