"""Subscribing to results when somebody waits for them, rather than for each that exists.

Celery's Redis backend subscribes to every result object that a group or chord makes, one command each, and
unsubscribes when it is thrown away, which is at once where nobody waits.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from celery import states
from celery.backends.redis import ResultConsumer
from kombu.utils.compat import detect_environment

LOOK_ANYWAY = 3.0
"""Seconds after which one who waits looks at what is stored, whatever was heard."""

_TOGETHER = 500  # results that are looked at in one trip


class LateConsumer(ResultConsumer):
    """Celery's, with subscriptions put off until a wait begins, and then made in one command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._put_off: set[str] = set()
        # Under gevent and eventlet Celery reads results in the background, whether or not somebody waits.
        self._waits_are_seen = detect_environment() == "default"  # type: ignore[no-untyped-call]

    def consume_from(self, task_id: str) -> Any:
        """A result object exists."""
        if not self._waits_are_seen:
            return super().consume_from(task_id)
        with self._locked():
            if self._get_key_for_task(task_id) not in self.subscribed_to:
                self._put_off.add(task_id)
        return None

    def cancel_for(self, task_id: str) -> None:
        """A result object is done with; must not block."""
        if task_id in self._put_off:
            self._put_off.discard(task_id)
        else:
            super().cancel_for(task_id)

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        """Somebody waits: subscribe, then look at what is there already, so that none is missed."""
        self._subscribe()
        super().on_wait_for_pending(result, **kwargs)

    def _subscribe(self) -> None:
        with self._locked():
            put_off, self._put_off = self._put_off, set()
            if not put_off:
                return
            first = put_off.pop()
            super().consume_from(first)  # which also makes the connection, at the first time
            keys = {self._get_key_for_task(task_id) for task_id in put_off} - self.subscribed_to
            if keys:
                self.subscribed_to |= keys
                self._pending_unsubscribe -= keys
                with self.reconnect_on_error():
                    self._pubsub.subscribe(*keys)

    def drain_events_until(self, p: Any, timeout: float | None = None, on_interval: Any = None) -> Iterator[Any]:
        """Celery's, with a look at what is stored now and then.

        Redis may serve the look that comes with a subscription before the subscription, which went over another
        connection; what is published between the two is heard by nobody, and was waited for in vain.
        """
        looked = time.monotonic()
        for one in super().drain_events_until(p, timeout=timeout, on_interval=on_interval):
            yield one
            if time.monotonic() - looked > LOOK_ANYWAY and not p.ready:
                self._look()
                looked = time.monotonic()

    def _look(self) -> None:
        keys = list(self.subscribed_to)
        with contextlib.suppress(*self._connection_errors):
            for start in range(0, len(keys), _TOGETHER):
                for text in filter(None, self.backend.client.mget(keys[start:start + _TOGETHER])):
                    meta = self._decode_result(text)
                    if meta["status"] in states.READY_STATES:
                        self.on_state_change(meta, None)

    def on_after_fork(self) -> None:
        """A forked child waits for nothing yet."""
        self._put_off = set()
        super().on_after_fork()
