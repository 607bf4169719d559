"""How many messages a worker of the asyncio pool holds: as many as its pool has slots for, and a few to see more."""

from collections.abc import Callable
from typing import Any


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
