"""How a worker's main process deals with a task whose process was lost."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeLimitExceeded
from celery.states import READY_STATES
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.encoding import safe_repr

from callsheet.resources import dead_letters
from callsheet.resources.timings import Outcome
from callsheet.tasks.base import LOST
from callsheet.tasks.records import Noted, noted
from callsheet.tasks.results import AGENT_ATTRIBUTE
from callsheet.tasks.shown import hidden

logger = logging.getLogger(__name__)

#: The first of the numbers that calls on the asyncio pool have for process ids: above those of all processes, so that
#: nobody can signal a process by what `inspect active` shows for a call.
FIRST_PID = 1 << 32
_REPLY = "callsheet.reply"
_DIED = "died"  # header: how often the process that ran the task died, of which its worker's main process knows
_TELLING = ("exception", "traceback")
_LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)


class SecondChanceRequest(Request):
    """A delivered task.

    One whose process dies is given to another process once; if that dies too, the task fails. Celery's
    `reject_on_worker_lost` would have it kill processes for ever.
    """

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Celery's, at a shutdown; a call that has ended, of which Celery has yet to hear, is left as it ended."""
        give_up = getattr(pool, "give_up", None)
        if give_up is None or give_up(self):
            super().cancel(pool, signal, emit_retry)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Celery's; what is stored after a hard limit tells where the call ran."""
        if not soft:
            self._note("failed")
        with self._settled(TimeLimitExceeded(timeout), stored=soft):
            super().on_timeout(soft, timeout)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Celery's; what is stored of a call that ran tells where."""
        self._note("cancelled")
        super().terminate(pool, signal)

    def _note(self, outcome: Outcome) -> None:
        """Keep the record of an agent's call whose process, or coroutine, does not come to that."""
        if self.time_start and self.agent and noted(self._context) is None:
            pid = self.worker_pid if self.worker_pid and self.worker_pid < FIRST_PID else os.getpid()
            record = Noted(self._context, self.agent, self.args[-1].get("sent"), self.time_start, pid)
            if pid != os.getpid():  # else the coroutine counts
                record.count(outcome)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Celery's, after the second chance; the error tells which agent it was, if it was one."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        label = self.agent
        if label and not hasattr(error, AGENT_ATTRIBUTE):
            setattr(error, AGENT_ATTRIBUTE, label)
        if isinstance(error, _LOST):
            if not (self._already_cancelled or self._already_revoked or self._success_was_stored()):
                if self._has_a_second_chance():
                    state.task_ready(self)
                    self.reject(requeue=True)
                    return None
                dead_letters.add(str(self.delivery_info.get("routing_key")), self.body, str(error), self.id, self.name,
                                 self.hostname)
            self._note("failed")
        if return_ok and exc_info.internal and not self._success_was_stored():
            return_ok = False  # the tracer itself raised, such as over steps that follow: nothing is stored yet
        with self._settled(error, stored=return_ok):
            return super().on_failure(exc_info, send_failed_event, return_ok)

    def let_go(self) -> None:
        """Another worker has the message by now, of which nothing is told: the transport knows that it is not ours."""
        state.task_ready(self)
        self.acknowledge()

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Celery's; what raises in it does not keep the task from running, or its message from being settled."""
        try:
            super().on_accepted(pid, time_accepted)
        except Exception:
            logger.exception("Task %s[%s]: its start could not be told", self.name, self.id)

    @contextmanager
    def _settled(self, error: BaseException, stored: bool) -> Iterator[None]:
        """Settle the message in spite of what the block raises, as Celery's does over a MemoryError.

        An error that left here would end a cpu worker, whose message would end the next; on an io worker the message
        would be held for ever.

        Args:
            error: with which the task ended.
            stored: whether that is its result already.
        """
        try:
            yield
        except Exception as exc:
            logger.error("Task %s[%s] ended with %r; noting that raised %r. Its message is settled all the same.",
                         self.name, self.id, error, exc, exc_info=not isinstance(exc, MemoryError))
            with suppress(Exception):
                # Its own failure may be there already, over which a callback of the task raised.
                if not stored and self.task.backend.get_state(self.id) not in READY_STATES:
                    self.task.backend.mark_as_failure(self.id, error, request=self._context,
                                                      store_result=self.store_errors)
            with suppress(Exception):
                self.acknowledge()
            shown = safe_repr(error)  # type: ignore[no-untyped-call]
            self.send_event("task-failed", exception=shown, traceback="")

    def _has_a_second_chance(self) -> bool:
        """Whether its process died for the first time, however often its message was delivered; notes that it did."""
        if self.acknowledged:
            return False
        if state.should_terminate is not None:  # a worker that shuts down cold kills its processes itself
            return True
        headers = self.message.headers
        if LOST not in headers:  # a stock transport puts messages back as they came, and tells no more than this
            return not self.delivery_info.get("redelivered")
        died, headers[_DIED] = headers.get(_DIED), True  # it goes back with the message
        return not died

    def info(self, safe: bool = False) -> Any:
        """Celery's, for `inspect` and Flower; an agent's call with its arguments as people read them."""
        return super().info(safe or self._type == _REPLY)

    def send_event(self, type: str, **fields: Any) -> None:
        """Celery's; errors without secrets."""
        if self._eventer and self._eventer.enabled and self.task.send_events:
            for name in _TELLING:
                if name in fields:
                    fields[name] = hidden(fields[name])
            try:
                self._eventer.send(type, uuid=self.id, **fields)
            except Exception:  # who watches misses one; the task's message is settled
                logger.exception("Task %s[%s]: %s could not be told", self.name, self.id, type)

    @property
    def agent(self) -> str:
        """Whose call it is, as `Class(name)`; empty for a task of the user's own."""
        data = self.args[-1] if self.args and self._type == _REPLY else None
        return str(data.get("label", "")) if isinstance(data, dict) else ""
