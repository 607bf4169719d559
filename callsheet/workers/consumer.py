"""The worker and its consumer: Celery's, which no message stops, and which say why they refuse one."""

import json
import logging
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.apps import worker
from celery.bootsteps import CLOSE, TERMINATE
from celery.exceptions import CPendingDeprecationWarning, NotRegistered
from celery.worker import state
from celery.worker.consumer import consumer
from kombu.common import ignore_errors
from kombu.exceptions import ContentDisallowed, DecodeError

from callsheet.errors import CallRefused
from callsheet.messages.printable import printable
from callsheet.resources import dead_letters
from callsheet.resources.trouble import in_words, is_lasting, is_trouble, refusal
from callsheet.settings import get_settings
from callsheet.tasks.patience import trouble
from callsheet.workers.broker.ledger import begin_shutdown
from callsheet.workers.broker.reading import OVERSIZE, Unreadable, check_body
from callsheet.workers.events import PAUSE, EventDispatcher
from callsheet.workers.later import Waiting
from callsheet.workers.prefetch import Suspects

logger = logging.getLogger(__name__)

_REST = 5.0  # seconds before a broker that refused is asked again, unless it is known to work by then


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
        # Stock kombu takes any KeyError for a lost connection.
        broken = tuple(kind for kind in self.connection_errors + self.channel_errors if kind is not KeyError)

        def on_task_received(message: Any, begins: bool = False) -> Any:
            try:
                size = _size(message)
                if limit and size > limit:
                    return self.refuse(message, f"it is {size:,} bytes, and a worker takes {limit:,} at most", "Send a "
                                       "reference (a path, an address) in place of the data, or raise "
                                       "CALLSHEET_PAYLOAD_MAX for the workers: they take twice that")
                in_headers = "task" in message.headers
                if in_headers or _identity(message)[1]:
                    check_body(message.payload, in_headers)
                held = not begins and (waiting.takes(message) or suspects.takes(message))
                return None if held else handle(message)
            except broken:
                raise
            except DecodeError as exc:
                return self.on_decode_error(message, exc)
            except Exception as exc:  # whatever it is, the next message is another one
                return self.on_invalid_task(None, message, exc)

        return on_task_received

    def add_task_queue(self, queue: str, *args: Any, **options: Any) -> None:
        """Celery's, as a command asks for it; a queue that cannot be consumed from ends nothing, and is left alone."""
        try:
            super().add_task_queue(queue, *args, **options)
        except Exception as exc:
            if is_trouble(exc):
                raise
            logger.exception("The queue %r cannot be consumed from", queue)
            self.cancel_task_queue(queue)
            self.app.amqp.queues.pop(queue, None)

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
        if lasting := is_lasting(exc):  # what only a person mends; a look at Redis finds nothing wrong
            logger.critical("%s", in_words(exc, get_settings()))
        else:
            trouble().notice(exc)
        end = time.monotonic() + _REST * (1 + lasting)
        while (lasting or trouble().on) and time.monotonic() < end:
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
        """Refuse what cannot be read; a broadcast, which is everybody's, is dropped."""
        if self.task_consumer is not None and message.channel is not self.task_consumer.channel:
            logger.error("A broadcast to %s cannot be read: %s", self.hostname, _first_line(exc))
        elif isinstance(exc, Unreadable):
            self.on_invalid_task(None, message, exc)
        else:
            self.refuse(message, f"its body is not the {message.content_type} that it is said to be "
                        f"({_first_line(exc)})", "Publish it through Celery")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a message of another shape, or of content that workers do not read."""
        if isinstance(exc, ContentDisallowed):
            self.refuse(message, f"its content type is {message.content_type!r}, and workers read JSON only",
                        "Publish it with serializer='json'")
        else:
            why = _first_line(exc) if isinstance(exc, Unreadable) else f"{type(exc).__name__}: {_first_line(exc)}"
            self.refuse(message, f"it is no message of Celery's task protocol ({why})",
                        "Publish it through Celery 4 or later")

    def refuse(self, message: Any, why: str, remedy: str, error: Exception | None = None) -> None:
        """Say why, store the failure, and drop the message; in this order, so that a crash leaves no caller waiting.

        Args:
            message: of kombu.
            why: what is wrong with it.
            remedy: what to do.
            error: to store in place of a CallRefused with this text.
        """
        task_id, name = _identity(message)
        queue = message.delivery_info.get("routing_key")
        text = (f"A message on the queue {queue!r}{f', of task {name}[{task_id}],' if task_id else ''} was refused by "
                f"{self.hostname}: {why}. {remedy}.")
        logger.error("%s", printable(text).replace("\n", "␊"))
        error = error or CallRefused(text)
        if task_id:
            self._tell(message, task_id, error)
        ledger = getattr(message.channel, "ledger", None)
        held = ledger.held.get(message.delivery_tag) if ledger is not None else None
        dead_letters.add(str(queue), held.raw if held is not None and held.raw else _text(message), why, task_id, name,
                         str(self.hostname))
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=error)

    def _tell(self, message: Any, task_id: str, error: Exception) -> None:
        """Store a refusal; where the rest of the message does not let it be, as that of a task without a canvas."""
        for request in (_request(message, task_id), None):
            try:
                self.app.backend.mark_as_failure(task_id, error, request=request)
                break
            except Exception:
                logger.exception("The refusal of %s could not be stored", task_id)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=task_id, exception=repr(error))


class Worker(worker.Worker):
    """Celery's worker.

    Celery sleeps through `worker_soft_shutdown_timeout`, and hears only afterwards of the calls that have ended. Here
    they are acknowledged as they end, so that a kill meanwhile repeats none of them; what has not begun goes to other
    workers first; and the worker goes on as soon as nothing runs.
    """

    pool: Any
    consumer: Any

    def _process_task(self, req: Any) -> None:
        """Celery's, also when a place becomes free; a request that cannot be begun is refused, and ends nothing."""
        try:
            super()._process_task(req)
        except Exception as exc:
            if is_trouble(exc):
                raise
            logger.exception("%s cannot be begun", req.id)
            state.task_ready(req)
            getattr(self, "_quick_release", lambda: None)()
            self.consumer.on_invalid_task(None, req.message, exc)

    def wait_for_soft_shutdown(self) -> None:
        """Wait for what runs, for `worker_soft_shutdown_timeout` seconds at most.

        With `worker_enable_soft_shutdown_on_idle` for all of them, whatever runs. In a signal's handler.
        """
        conf = self.app.conf
        seconds, idle = float(conf.worker_soft_shutdown_timeout), bool(conf.worker_enable_soft_shutdown_on_idle)
        if seconds > 0 and (idle or state.active_requests):
            logger.warning("Initiating Soft Shutdown, terminating in %s seconds", seconds)
            if self.consumer.task_consumer:
                ignore_errors(self.consumer, self.consumer.task_consumer.cancel)  # type: ignore[no-untyped-call]
            waiting = unbegun(self.consumer)
            self.pool.drop_line()
            hand_back(waiting)
            self.pool.finish_within(seconds, idle)


def unbegun(consumer: Any) -> list[Any]:
    """The requests that a worker on its way out has taken and not begun: others may have them at once.

    None with other pools, which may have handed them to their processes.
    """
    line = getattr(consumer.pool, "line", None)
    if line is None:
        return []
    limited = [request for bucket in consumer.task_buckets.values() if bucket for request, _ in bucket.contents]
    found = [*(call.request for call in line), *state.scheduled_requests, *limited]
    return list(dict.fromkeys(request for request in found if request is not None))


def hand_back(requests: list[Any]) -> None:
    """Have them delivered again, in their order."""
    for request in reversed(requests):
        request.reject(requeue=True)


def _text(message: Any) -> str:
    """A refused message as the dead letters keep it: its body in the clear, and no more of it than they take."""
    raw = getattr(message, "_raw", None) or {"headers": message.headers}
    body = (message.body or raw.get("body") or "")[:dead_letters.MOST_TEXT]
    shown = body.decode(errors="backslashreplace") if isinstance(body, bytes) else str(body)
    return json.dumps({**raw, "body": shown}, default=repr)


def _size(message: Any) -> int:
    """Bytes of the body; of one that the transport left in Redis, too."""
    left = message.headers.get(OVERSIZE)
    return left if isinstance(left, int) else len(message.body or "")


def _identity(message: Any) -> tuple[str, str]:
    """The task's id and name, "" where they cannot be read."""
    found = message.headers
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
        check_body(message.payload, True)
        embed = message.payload[2] or {}
    except Exception:
        embed = {}
    known = {**message.headers, **embed}
    return Context(known, id=task_id, args=(), kwargs={}, delivery_info=dict(message.delivery_info))


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
