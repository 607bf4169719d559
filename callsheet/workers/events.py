"""Celery's events at a price that may stay on: a dict an event, written and published by the hundred."""

import contextlib
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher as CeleryDispatcher
from celery.events.event import Event
from celery.utils.time import utcoffset
from pydantic_core import PydanticSerializationError, to_json

#: Least seconds between two messages with events of tasks, and how many events one message has.
PAUSE, MOST = 0.1, 500
#: Celery's own, whose fields are texts and numbers.
_PLAIN = frozenset(f"task-{what}" for what in (
    "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "cancelled"))
_TYPE = itemgetter("type")


class EventDispatcher(CeleryDispatcher):
    """Celery's dispatcher; on a worker with an event loop, events of tasks are sent together.

    Celery collects them for one turn of the loop, 24 at most, and writes each with Python's encoder. Here the first
    goes after its turn, those that follow within 0.1 s wait as long, 500 at most, and pydantic's encoder writes all
    of them at once. What is sent is the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("buffer_limit", MOST)
        super().__init__(*args, **kwargs)
        self._utcoffset = utcoffset()

    def send(self, type: str, blind: bool = False, utcoffset: Callable[[], float] = utcoffset, retry: bool = False,
             retry_policy: Any = None, Event: Callable[..., Any] = Event, **fields: Any) -> Any:
        """See Celery's."""
        if type not in _PLAIN or "task" not in self.buffer_group:
            return super().send(type, blind, utcoffset, retry, retry_policy, Event, **fields)
        if not self.enabled or (self.groups and "task" not in self.groups):
            return None
        waiting = self._group_buffer["task"]
        if not waiting:
            self._utcoffset = utcoffset()
        fields["type"] = type
        fields["hostname"] = self.hostname
        fields["utcoffset"] = self._utcoffset
        fields["pid"] = self.pid
        fields["clock"] = self.clock.forward()
        if "timestamp" not in fields:
            fields["timestamp"] = time.time()
        waiting.append(fields)
        if len(waiting) >= self.buffer_limit:
            self.flush()
        elif len(waiting) == 1 and self.on_send_buffered:
            self.on_send_buffered()
        return None

    def at_once(self) -> None:
        """Send what waits, and from now on each event by itself: the worker ends."""
        self.buffer_limit = 1
        self.flush()

    def extend_buffer(self, other: CeleryDispatcher) -> None:
        """Take over what another has not sent; also what waited for others there, which Celery forgets."""
        super().extend_buffer(other)
        for group, events in other._group_buffer.items():
            self._group_buffer[group].extend(events)
            events.clear()

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> Any:
        body = self._written(event)
        if producer is None or body is None:
            return super()._publish(event, producer, routing_key, **options)
        try:
            return producer.publish(body, routing_key=routing_key, exchange=self.exchange.name, declare=[self.exchange],
                                    content_type="application/json", content_encoding="utf-8", headers=self.headers,
                                    delivery_mode=self.delivery_mode)
        except Exception:
            if not self.buffer_while_offline:
                raise
            self._outbound_buffer.append((event, routing_key))
            return None

    def _written(self, event: Any) -> bytes | None:
        """The JSON of many events; None where kombu's encoder, which knows more, is needed."""
        if self.serializer == "json" and type(event) is list and _PLAIN.issuperset(map(_TYPE, event)):
            with contextlib.suppress(PydanticSerializationError):  # such as half a character
                return to_json(event)
        return None


class Events(CeleryEvents):
    """Celery's `app.events`, with our dispatcher."""

    dispatcher_cls = "callsheet.workers.events:EventDispatcher"
