"""Which messages a worker holds, and which of them it begins.

On the asyncio pool it holds as many as the pool has slots for, and a few to see more (`Prefetch`). A message whose
workers were lost before begins alone, or nearly so, until it is known that its call did not kill them (`Suspects`).
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

APART = 10.0  # seconds after which the next suspect begins, though the one before it still runs
_LOOK = 0.2  # seconds between two looks whether it does


def room_for(slots: int, most: int, multiplier: int) -> int:
    """Messages that an autoscaled worker may hold, by the size of its pool.

    A quarter above its slots, and at least two: Celery's autoscaler adds slots when it sees more messages than slots,
    at each message that arrives. The rest is left to other workers until this one has slots for it.

    Args:
        slots: of the pool, now.
        most: slots that autoscaling allows.
        multiplier: Celery's `worker_prefetch_multiplier`.
    """
    return min(most, slots + max(2, slots // 4)) * multiplier


class Prefetch:
    """Keeps the consumer's prefetch count in step with the pool.

    Celery lets an autoscaled worker fetch for the largest size that its pool may have. Here the count follows the
    size as it is. Without autoscaling the count is Celery's. Parked calls raise either: they hold their messages, and
    a tree of calls that is deeper than the prefetch count would wait for ever.

    All changes are made relative to what the consumer has, because Celery raises the count too, for messages with an
    ETA.

    Args:
        slots: tells the size of the pool.
        post: has a function run on the consumer's thread.
    """

    def __init__(self, slots: Callable[[], int], post: Callable[..., None]) -> None:
        self._slots = slots
        self._post = post
        self._consumer: Any = None
        self._parked = 0
        self._added = 0  # to what Celery has set
        self._base = 0  # what Celery has set

    # From any thread

    def park(self, by: int) -> None:
        """So many calls more, or fewer, are parked."""
        self._post(self._park, by)

    def resized(self) -> None:
        """The pool has grown or shrunk."""
        self._post(self._follow)

    # On the consumer's thread

    def attach(self, consumer: Any) -> None:
        """A consumer has started, with a count of Celery's."""
        self._consumer = consumer
        self._added = 0
        self._base = consumer.qos.value
        scaler = consumer.controller.autoscaler
        if scaler:  # what it does when it is given other bounds
            scaler._update_consumer_prefetch_count = lambda _: self.resized()
        self._follow()

    def detach(self) -> None:
        """The consumer has stopped, and its count is void."""
        self._consumer = None

    def _park(self, by: int) -> None:
        self._parked += by
        self._follow()

    def _follow(self) -> None:
        consumer = self._consumer
        if consumer is None or not self._base:  # no consumer, or no limit
            return
        wanted = self._parked
        scaler = consumer.controller.autoscaler
        if scaler:
            wanted += room_for(self._slots(), scaler.max_concurrency, consumer.prefetch_multiplier) - self._base
        before = consumer.qos.value
        if wanted > self._added:
            consumer.qos.increment_eventually(wanted - self._added)
        elif wanted < self._added:
            consumer.qos.decrement_eventually(self._added - wanted)
        self._added += consumer.qos.value - before  # Celery has limits of its own


class Suspects:
    """Messages of one consumer whose workers were lost before; `begin` hands one to Celery."""

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
