"""How the asyncio pool ends: warm, which waits for what runs, and cold, which leaves it to be delivered again.

Both block the thread of Celery's hub, and a cold shutdown does so inside a signal handler that may have interrupted
a warm one. So nothing here waits on a lock: it looks, pumps callbacks and sleeps a little.
"""

import logging
import time
from typing import TYPE_CHECKING

from celery.concurrency.prefork import _run_ready_callbacks

from callsheet.workers.calls import Fate
from callsheet.workers.threadcalls import ThreadCall

if TYPE_CHECKING:
    from callsheet.workers.pool import AsyncioPool

logger = logging.getLogger(__name__)

THREAD_PATIENCE = 1.0  # seconds that a cold shutdown waits for threads, which may never end


class Shutdown:
    """The end of one pool.

    Args:
        pool: the pool.
    """

    def __init__(self, pool: "AsyncioPool") -> None:
        self._pool = pool
        self._over = False
        self._terminating = False
        self._last_busy = 0.0
        self._handed_back = False

    def stop(self) -> None:
        """Wait for the running calls, acknowledging as they end. Waiting ones go back to the broker.

        While calls are parked the waiting ones run, because they may be what the parked ones wait for.
        """
        pool = self._pool
        self._last_busy = time.monotonic()
        while not self._over and not pool.cold:
            if not pool.slots.parked:
                pool.drop_line()
            if not pool.running:
                break
            self._hand_back_stranded()
            self._pump()
            pool.pause()
        if pool.cold:
            self.terminate()
        else:
            self._finish()

    def finish_within(self, seconds: float, idle: bool) -> None:
        """Let what runs end, acknowledging as it does, for `seconds` at most; if `idle`, also when nothing runs."""
        pool, end = self._pool, time.monotonic() + seconds
        with pool.slots.lent():
            while time.monotonic() < end and (idle or pool.running):
                self._pump(timers=False)
                pool.pause()
            self._pump(timers=False)

    def terminate(self) -> None:
        """Cancel what runs, without a word to Celery, so that unacknowledged messages are delivered again."""
        with self._pool.slots.lent():
            self._terminate()

    def _terminate(self) -> None:
        pool = self._pool
        if self._over:
            return
        hard, self._terminating = self._terminating, True  # an exception of Celery's has left the wait below
        pool.drop_line()
        pool.to_hub.drain()
        started = time.monotonic()
        for call in pool.running:
            pool.end(call, Fate.DROPPED)
        while not self._over and not hard and pool.running:
            self._pump()
            waited = time.monotonic() - started
            threads_only = all(isinstance(call, ThreadCall) for call in pool.running)
            if waited > pool.cancel_grace or (threads_only and waited > THREAD_PATIENCE):
                names = ", ".join(call.name for call in pool.running[:10])
                logger.warning("Shutting down although %d cancelled calls go on: %s", len(pool.running), names)
                break
            pool.pause()
        self._finish()

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._pump()
            self._pool.halt()
            self._pump()

    def _pump(self, timers: bool = True) -> None:
        pool = self._pool
        pool.to_hub.drain()
        if pool.hub is None:
            return
        try:
            if timers and not pool.cold:  # a signal handler may have interrupted the timers
                pool.hub.fire_timers()
            _run_ready_callbacks(pool.hub)  # the acknowledgements that Celery's callbacks left for the hub
        except Exception:
            logger.exception("A callback of the hub raised during shutdown")

    def _hand_back_stranded(self) -> None:
        """Give up on calls that wait for what nobody here will run."""
        pool = self._pool
        if pool.slots.used or pool.slots.waiting:
            self._last_busy = time.monotonic()
        elif not self._handed_back and time.monotonic() - self._last_busy > pool.parked_grace:
            self._handed_back = True
            logger.warning("%d calls have only waited for %g s, for other workers or for nobody: their messages go "
                           "back to the broker.", pool.slots.parked, pool.parked_grace)
            if pool.consumer is not None:
                pool.consumer.cancel_active_requests()
