"""The thread of a process that renews its turns' leases, and in a worker sees to what processes that died left."""

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from callsheet.tasks.turns.records import Claim
from callsheet.tasks.turns.redis import RedisStore

logger = logging.getLogger(__name__)


class Keeper:
    """Renews what is held, also while the process's loop is blocked; sleeps while there is nothing to do."""

    def __init__(self, store: RedisStore, publish: Callable[[list[str]], None], interval: float) -> None:
        self._store, self._publish, self._interval = store, publish, interval
        self._held: dict[str, tuple[Claim, int, float]] = {}  # by the call's id
        self._watching: Callable[[], object] | None = None
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def hold(self, claim: Claim, token: int) -> None:
        """Keep a turn from now on; any thread."""
        self._held[claim.call_id] = (claim, token, time.monotonic())
        self._start()

    def drop(self, claim: Claim) -> None:
        """Keep it no longer; any thread."""
        self._held.pop(claim.call_id, None)

    def watch(self, also: Callable[[], object]) -> None:
        """From now on see that turns pass on whose lease is over, and for which calls wait; any thread.

        Args:
            also: done likewise, each time.
        """
        self._watching = also
        self._start()

    def unwatch(self) -> None:
        """Leave that to others again."""
        self._watching = None

    def _start(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._keep, name="callsheet-turns", daemon=True)
                    self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def _keep(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(self._interval)
            try:
                self._renew()
                if (also := self._watching) is not None:
                    self._look_after()
                    also()
            except (RedisError, OSError) as exc:
                logger.warning("turns_kept: Redis does not answer (%s); trying again.", type(exc).__name__)
            except Exception:
                logger.exception("turns_kept: the leases of this process's turns could not be renewed")
            if not self._held and not self._watching:
                self._wake.clear()
                if self._held or self._watching:
                    self._wake.set()

    def _renew(self) -> None:
        now = time.monotonic()
        old = [(claim, token) for claim, token, since in list(self._held.values()) if now - since >= self._interval]
        for (claim, token), kept in zip(old, self._store.renew(old) if old else [], strict=True):
            known = self._held.get(claim.call_id)
            if not kept and known is not None and known[1] == token:
                self.drop(claim)
                logger.warning("turn_lost agent=%s id=%s call=%s: this process did not run for longer than "
                               "CALLSHEET_TURN_LEASE; what the reply changes will not be kept.", claim.label,
                               claim.agent_id, claim.call_id)

    def _look_after(self) -> None:
        messages = self._store.look_after()
        if messages:
            logger.info("turns_passed_on count=%d: their processes had stopped.", len(messages))
            self._publish(messages)
