"""Celery's tracer on the asyncio pool: its failures take little memory."""

import sys
import traceback
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals
from celery.app import trace
from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception


class Failure(ExceptionInfo):
    """Billiard's account of an exception, with the traceback itself.

    Billiard copies the traceback for pickling, a megabyte or so with the positions of every instruction. Where many
    calls fail at once and all wait for their failures to be stored, that is a gigabyte. Nothing is pickled here.
    """

    def __init__(self, exc_info: Any = None, internal: bool = False) -> None:
        kind, error, found = exc_info or sys.exc_info()
        self.type, self.tb, self.internal = kind, found, internal
        self.traceback = "".join(traceback.format_exception(kind, error, found))
        self.exception = ExceptionWithTraceback(error, self.traceback)


class Info(trace.TraceInfo):
    """Celery's way with what a task raised; word for word, with that account."""

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **_: Any) -> Failure:
        """The task asks for another try."""
        kind, _error, found = sys.exc_info()
        reason: Any = self.retval
        info = Failure((kind, reason, found))
        if store_errors:
            task.backend.mark_as_retry(req.id, reason.exc, info.traceback, request=req)
        task.on_retry(reason.exc, req.id, req.args, req.kwargs, info)
        signals.task_retry.send(sender=task, request=req, reason=reason, einfo=info)
        trace.info(trace.LOG_RETRY, {"id": req.id, "name": trace.get_task_name(req, task.name), "exc": str(reason)})
        trace.traceback_clear(info.exception)
        return info

    def handle_failure(self, task: Any, req: Any, store_errors: bool = True, call_errbacks: bool = True) -> Failure:
        """The task has failed."""
        retval: Any = self.retval
        error: Any = get_pickleable_exception(retval)
        if error.__traceback__ is None:  # it is another exception, made from the task's
            error.__traceback__ = sys.exc_info()[2]
        info = Failure((get_pickleable_etype(type(retval)), error, error.__traceback__))
        task.backend.mark_as_failure(req.id, error, info.traceback, request=req, store_result=store_errors,
                                     call_errbacks=call_errbacks)
        task.on_failure(error, req.id, req.args, req.kwargs, info)
        signals.task_failure.send(sender=task, task_id=req.id, exception=error, args=req.args, kwargs=req.kwargs,
                                  traceback=error.__traceback__, einfo=info)
        self._log_error(task, req, info)
        trace.traceback_clear(error)
        return info


def trace_lightly(app: Any, hostname: str) -> None:
    """Give each task a tracer that accounts so for its failures, in place of the one that the consumer gave it."""
    for name, task in app.tasks.items():
        # Looked up now: what watches tasks may have wrapped it.
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, Info=Info, app=app)
