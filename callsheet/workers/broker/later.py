"""Messages that are to start later than a worker should hold them: kept in Redis, whole, until shortly before.

A worker that took them would hold each in memory, under a lease, and fetch one message more for it. So they lie in a
zset by task id and a hash beside it, as they came from their queue; every process that consumes looks a few times a
lead for those whose time has come, and puts them back on their queues.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from callsheet.resources import dead_letters
from callsheet.workers.broker.layout import BRING_BACK, PUT_AWAY, REVOKE, REVOKED, Delivery, Layout

logger = logging.getLogger(__name__)

HORIZON = 3600.0
LEAD = 10.0  # seconds before its time at which a message is back on its queue, at most
AT_ONCE = 200  # messages, or task ids, in one script
SAY_AGAIN = 60.0  # seconds between two lines that messages were put away
FAILURES = (RedisError, OSError)

_Away = tuple[str, str, float, str, str]  # tag, task id, when it goes back, list, what follows it in the unacked hash


class Later:
    """What is to start later, of one broker.

    Args:
        client: of Redis.
        layout: where the broker keeps messages.
        horizon: seconds from now up to which workers hold messages themselves.
        release: told the tag of each message that was put away.

    Attributes:
        lead: seconds before its time at which a message is back on its queue.
    """

    def __init__(self, client: Any, layout: Layout, horizon: float, release: Callable[[str], object]) -> None:
        self.lead = min(LEAD, horizon / 2)
        self._client, self._layout, self._release = client, layout, release
        self._gathered: deque[_Away] = deque()
        self._revoked: deque[str] = deque()
        self.wake = threading.Event()  # the thread
        # Held from when messages are put away until they are released. A signal's handler may interrupt its holder.
        self.releasing = threading.RLock()
        self._count, self._said = 0, -SAY_AGAIN

    # Consumers

    def put_away(self, delivery: Delivery, task_id: str, at: float) -> None:
        """Put a message away until `at`, in unix seconds. Until Redis has it, it stays under delivery."""
        queue = delivery.queue
        self._gathered.append((delivery.tag, task_id, at, self._layout.list_for(queue, delivery.payload),
                               self._layout.rest(queue)))
        self.wake.set()

    def revoke(self, task_ids: Iterable[str]) -> None:
        """Have those of the messages dropped, for good, that belong to revoked tasks.

        They go back to their queues at once, marked: whoever takes one drops it as Celery does, and tells chains and
        chords. Where the broker is away, as soon as it is there again.
        """
        self._revoked.extend(task_ids)
        try:
            self.flush()
        except FAILURES as exc:
            logger.warning("Revoked tasks that were to start later are dropped once the broker answers: %s", exc)
            self.wake.set()

    def flush(self) -> None:
        """Put away what was gathered, now.

        Raises:
            RedisError, OSError: the broker cannot be reached; nothing is lost.
        """
        if self._gathered or self._revoked:
            with self.releasing:
                self._flush_gathered()
                self._flush_revoked()

    def _flush_gathered(self) -> None:
        layout, gathered = self._layout, self._gathered
        while gathered:
            batch = [gathered[number] for number in range(min(len(gathered), AT_ONCE))]
            PUT_AWAY.run(self._client, [*layout.registry, *layout.later], [part for away in batch for part in away])
            for tag, *_ in batch:
                gathered.popleft()
                self._release(tag)
            self._count += len(batch)

    def _flush_revoked(self) -> None:
        while self._revoked:
            ids = [self._revoked[number] for number in range(min(len(self._revoked), AT_ONCE))]
            REVOKE.run(self._client, self._layout.later, [f'"{REVOKED}": true', *ids])
            for _ in ids:
                self._revoked.popleft()

    def bring_back(self) -> float | None:
        """Put messages that have their time back on their queues; returns when the next one has, in unix seconds."""
        while True:
            count, following, odd = BRING_BACK.run(self._client, self._layout.later, [time.time(), AT_ONCE])
            for value in odd:
                logger.critical("Removed from %r what is no message: %r", self._layout.later[1], value[:200])
                dead_letters.add(self._layout.later[1], value, "it is none of the messages that start later")
            if count < AT_ONCE:
                return float(following) if following else None

    def turn(self) -> float:
        """What the ledger's thread does each time; returns the seconds until the next one."""
        pause = self.lead / 2
        try:
            self.flush()
            following = self.bring_back()
            if following is not None:
                pause = min(pause, max(0.01, following - time.time()))
            self._tell()
        except FAILURES as exc:
            logger.debug("The broker cannot be asked for what is to start: %s", exc)
            pause = min(1.0, pause)
        except Exception:
            logger.exception("What is to start later could not be looked after")
        return pause

    def _tell(self) -> None:
        now = time.monotonic()
        if self._count and now - self._said > SAY_AGAIN:
            logger.info("%d messages that are to start later are kept in Redis until then.", self._count)
            self._count, self._said = 0, now
