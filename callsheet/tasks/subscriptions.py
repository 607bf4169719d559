"""Subscribing to results when somebody waits for them, rather than for each that exists.

Celery's Redis backend subscribes to every result object that a group or chord makes, one command each, and
unsubscribes when it is thrown away, which is at once where nobody waits.
"""

from typing import Any

from celery.backends.redis import ResultConsumer
from kombu.utils.compat import detect_environment


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

    def on_after_fork(self) -> None:
        """A forked child waits for nothing yet."""
        self._put_off = set()
        super().on_after_fork()
