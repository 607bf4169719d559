"""What waits on the queues of a worker, and what it takes of its machine: looked at in a thread of its own.

So neither a slow Redis nor a machine with many processes holds the consumer up. Nobody polls: a look is taken when the
autoscaler asks for one, at most once in a while.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from callsheet.resources.backlog import backlogs
from callsheet.resources.redis import sync_client
from callsheet.resources.trouble import in_words
from callsheet.settings import get_settings
from callsheet.workers.machine import Group, Processors, cores, memory_of, own_share_of

logger = logging.getLogger(__name__)

SAY_AGAIN = 60.0  # seconds between two lines about a Redis that tells no lengths
SHARES_EVERY = 5.0  # seconds between two looks at the memory of many processes: a millisecond of the kernel's each


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen."""

    at: float  # `time.monotonic()`
    backlog: int | None  # messages on the queues, or None
    received: int  # messages that the worker had taken by then
    memory: int | None  # bytes that it used, or None
    cpu: float | None  # share of the processors' time since the look before, or None


class Memory:
    """What a worker's memory is measured against: the setting, or its control group's limit where that is lower.

    Args:
        setting: bytes, or None.
        group: the control group.

    Attributes:
        limit: bytes, or None.
    """

    def __init__(self, setting: int | None, group: Group) -> None:
        allowed = group.memory_limit()
        self._whole_group = allowed is not None and (setting is None or allowed <= setting)
        self.limit = allowed if self._whole_group else setting
        self._group = group
        self._shares: tuple[float, int] | None = None

    def used(self, pids: Sequence[int]) -> int | None:
        """Bytes in use: by these processes, or by all of the control group where its limit holds."""
        if self._whole_group:
            return self._group.memory_used()
        if len(pids) == 1:
            return memory_of(pids[0])
        now = time.monotonic()
        if self._shares is None or now - self._shares[0] > SHARES_EVERY:
            self._shares = now, sum(own_share_of(pid) or 0 for pid in pids)
        return self._shares[1]


class Looker:
    """Looks when it is asked to.

    Args:
        memory: what to measure it against.
        whole: whether all processors count as the whole, rather than one.
        pids: tells the worker's processes.
        then: called after each look, by the thread.
    """

    def __init__(self, memory: Memory, whole: bool, pids: Callable[[], list[int]], then: Callable[[], None]) -> None:
        self.latest: Look | None = None
        self.memory = memory
        self._processors = Processors(cores(Group.own()) if whole else 1.0)
        self._pids = pids
        self._then = then
        self._said = 0.0
        self._asked = threading.Event()
        self._question: tuple[Sequence[str], int] = ((), 0)
        self._thread: threading.Thread | None = None

    def ask(self, queues: Sequence[str], received: int) -> None:
        """Take a look soon.

        Args:
            queues: that are of interest beside the machine.
            received: messages that the worker has taken by now.
        """
        self._question = queues, received
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="callsheet-autoscale", daemon=True)
            self._thread.start()
        self._asked.set()

    @property
    def due(self) -> bool:
        """Whether no look is under way."""
        return not self._asked.is_set()

    def _main(self) -> None:
        while True:
            self._asked.wait()
            try:
                self.latest = self._look(*self._question)
                self._asked.clear()
                self._then()
            except Exception:
                self._asked.clear()
                logger.exception("The load of this worker could not be looked at")

    def _look(self, queues: Sequence[str], received: int) -> Look:
        backlog, pids = self._backlog(queues) if queues else None, self._pids()
        return Look(time.monotonic(), backlog, received, self.memory.used(pids), self._processors.share(pids))

    def _backlog(self, queues: Sequence[str]) -> int | None:
        try:
            return sum(backlogs(queues, sync_client(get_settings())).values())
        except (RedisError, OSError) as exc:
            now = time.monotonic()
            if now - self._said > SAY_AGAIN:
                self._said = now
                logger.info("The length of the queues is not known for now. %s", in_words(exc, get_settings()))
            return None
