"""The worker's consumer: Celery's, which no message stops, and which says why it refuses one."""

import logging
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.bootsteps import CLOSE, TERMINATE
from celery.exceptions import CPendingDeprecationWarning, NotRegistered
from celery.worker import state
from celery.worker.consumer import consumer
from kombu.exceptions import ContentDisallowed

from callsheet.errors import CallRefused
from callsheet.resources import dead_letters
from callsheet.resources.trouble import refusal
from callsheet.tasks.patience import trouble
from callsheet.workers.broker.layout import OVERSIZE
from callsheet.workers.broker.ledger import begin_shutdown
from callsheet.workers.events import PAUSE, EventDispatcher
from callsheet.workers.handback import hand_back, unbegun
from callsheet.workers.later import Waiting
from callsheet.workers.suspects import Suspects

logger = logging.getLogger(__name__)

#: What Celery's strategies raise over a message whose parts are of other kinds than they should be.
_REST = 5.0  # seconds before a broker that refused is asked again, unless it is known to work by then
_MALFORMED = (TypeError, ValueError, LookupError, AttributeError)


class Consumer(consumer.Consumer):
    """Celery's consumer.

    A message whose body or headers have another shape than Celery's would end Celery's consumer, go back to its queue
    with the connection, and end the next worker. Here it is refused: logged, dropped, and where its id can be read,
    the refusal is stored as the call's result, so that nobody waits for one that never comes.
    """

    _events_sent = 0.0  # when, on the monotonic clock
    _suspects: Suspects | None = None

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Celery's handler, with an end for what it does not expect."""
        handle = super().create_task_handler(*args, **kwargs)
        waiting = Waiting(self)
        self._suspects = suspects = Suspects(self, lambda message: on_task_received(message, begins=True))
        limit = (self.app.conf.broker_transport_options or {}).get("message_max")

        def on_task_received(message: Any, begins: bool = False) -> Any:
            try:
                size = _size(message)
                if limit and size > limit:
                    return self.refuse(message, f"it is {size:,} bytes, and a worker takes {limit:,} at most", "Send a "
                                       "reference (a path, an address) in place of the data, or raise "
                                       "CALLSHEET_PAYLOAD_MAX for the workers: they take twice that")
                held = not begins and (waiting.takes(message) or suspects.takes(message))
                return None if held else handle(message)
            except self.connection_errors:
                raise
            except _MALFORMED as exc:
                return self.on_invalid_task(None, message, exc)

        return on_task_received

    def on_close(self) -> None:
        """When the connection is lost, or the worker ends, whose messages then go to others at once."""
        leaving = self.controller.blueprint.state in (CLOSE, TERMINATE)
        waiting = unbegun(self) if leaving else []
        if leaving:
            begin_shutdown()
            if self._suspects is not None:
                self._suspects.leave()
            if isinstance(self.event_dispatcher, EventDispatcher):
                self.event_dispatcher.at_once()
        super().on_close()
        hand_back(waiting)

    def on_send_event_buffered(self) -> None:
        """An event waits for others: for the end of this turn of the loop, or where many come, a little longer."""
        if self.hub:
            self.hub.call_soon(self._send_events_soon)  # timers are the hub's own thread's

    def _send_events_soon(self) -> None:
        rest = self._events_sent + PAUSE - time.monotonic()
        if rest > 0:
            self.hub.call_later(rest, self._flush_events)
        else:
            self._flush_events()

    def _flush_events(self) -> None:
        self._events_sent = time.monotonic()
        super()._flush_events()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Celery's; a broker that answers, and refuses, is not asked again at once."""
        # That running calls go on is meant, in Celery 6 too. Celery asks for each of its warnings to be shown.
        warnings.filterwarnings("ignore", re.escape(consumer.CANCEL_TASKS_BY_DEFAULT), CPendingDeprecationWarning)
        super().on_connection_error_after_connected(exc)
        self._rest(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Likewise."""
        super().on_connection_error_before_connected(exc)
        self._rest(exc)

    def _rest(self, exc: Exception) -> None:
        if not refusal(exc):
            return
        trouble().notice(exc)
        end = time.monotonic() + _REST
        while trouble().on and time.monotonic() < end:
            state.maybe_shutdown()
            time.sleep(0.1)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a task that this worker does not know; the result is Celery's NotRegistered."""
        task_id, name = _identity(message)
        self.refuse(message, f"received unregistered task of type {name!r}", "Name the module that defines it in "
                    "CALLSHEET_MODULES of this worker, or have it sent to a queue whose workers know it",
                    NotRegistered(name))
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Refuse what names no task."""
        self.refuse(message, "it names no task", "Something other than Celery or Callsheet writes to this queue: have "
                    "it write elsewhere")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Refuse a body that is not what it is said to be."""
        self.refuse(message, f"its body is not the {message.content_type} that it is said to be ({_first_line(exc)})",
                    "Publish it through Celery")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a message of another shape, or of content that workers do not read."""
        if isinstance(exc, ContentDisallowed):
            self.refuse(message, f"its content type is {message.content_type!r}, and workers read JSON only",
                        "Publish it with serializer='json'")
        else:
            self.refuse(message, f"it is no message of Celery's task protocol ({type(exc).__name__}: "
                        f"{_first_line(exc)})", "Publish it through Celery 4 or later")

    def refuse(self, message: Any, why: str, remedy: str, error: Exception | None = None) -> None:
        """Say why, store the failure, and drop the message; in this order, so that a crash leaves no caller waiting.

        Args:
            message: of kombu.
            why: what is wrong with it.
            remedy: what to do.
            error: to store in place of a CallRefused with this text.
        """
        task_id, name = _identity(message)
        queue = (message.delivery_info or {}).get("routing_key")
        text = (f"A message on the queue {queue!r}{f', of task {name}[{task_id}],' if task_id else ''} was refused by "
                f"{self.hostname}: {why}. {remedy}.")
        logger.error("%s", text)
        error = error or CallRefused(text)
        if task_id:
            try:
                self.app.backend.mark_as_failure(task_id, error, request=_request(message, task_id))
            except Exception:
                logger.exception("The refusal of %s[%s] could not be stored", name, task_id)
            if self.event_dispatcher:
                self.event_dispatcher.send("task-failed", uuid=task_id, exception=repr(error))
        dead_letters.add(str(queue), message.body or b"", why, task_id, name, str(self.hostname))
        message.reject_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=error)


def _size(message: Any) -> int:
    """Bytes of the body; of one that the transport left in Redis, too."""
    headers = message.headers
    left = headers.get(OVERSIZE) if isinstance(headers, dict) else None
    return left if isinstance(left, int) else len(message.body or "")


def _identity(message: Any) -> tuple[str, str]:
    """The task's id and name, "" where they cannot be read."""
    found = message.headers if isinstance(message.headers, dict) else {}
    if "task" not in found:  # protocol 1 has them in the body
        try:
            found = message.payload if isinstance(message.payload, dict) else {}
        except Exception:
            found = {}
    task_id, name = found.get("id"), found.get("task")
    return (task_id if isinstance(task_id, str) else ""), (name if isinstance(name, str) else "")


def _request(message: Any, task_id: str) -> Context:
    """What the result backend wants to know: with the steps that follow, as far as the body can be read."""
    try:
        embed = message.payload[2]
    except Exception:
        embed = None
    known = {**message.headers, **(embed if isinstance(embed, dict) else {})}
    return Context(known, id=task_id, args=(), kwargs={}, delivery_info=dict(message.delivery_info or {}))


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
