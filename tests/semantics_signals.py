"""The semantics tests' app in a worker that notes each of Celery's signals."""

import threading

from celery import signals

from tests.semantics_app import app, store

__all__ = ["app"]


def told(key, what):
    store.rpush(f"signals:{key}", what)


@signals.task_received.connect
def _received(request, **_):
    told(request.id, "received")


@signals.task_prerun.connect
def _prerun(task_id, task, **_):
    told(task_id, f"prerun {task.request.id == task_id}")


@signals.task_postrun.connect
def _postrun(task_id, state, **_):
    told(task_id, f"postrun {state}")


@signals.task_success.connect
def _success(sender, **_):
    told(sender.request.id, "success")


@signals.task_failure.connect
def _failure(task_id, exception, **_):
    told(task_id, f"failure {type(exception).__name__}")


@signals.task_retry.connect
def _retry(request, **_):
    told(request.id, "retry")


@signals.task_revoked.connect
def _revoked(request, terminated, expired, **_):
    told(request.id, f"revoked {terminated} {expired}")


@signals.worker_init.connect
def _init(sender, **_):
    told(f"worker:{sender.hostname}", "init")


@signals.worker_process_init.connect
def _process_init(sender, **_):
    told(f"worker:{sender}", f"process_init {threading.current_thread() is threading.main_thread()}")


@signals.worker_process_shutdown.connect
def _process_shutdown(sender, **_):
    told(f"worker:{sender}", "process_shutdown")


@signals.worker_ready.connect
def _ready(sender, **_):
    told(f"worker:{sender.hostname}", "ready")


@signals.worker_shutting_down.connect
def _shutting_down(sender, **_):
    told(f"worker:{sender}", "shutting_down")


@signals.worker_shutdown.connect
def _shutdown(sender, **_):
    told(f"worker:{sender.hostname}", "shutdown")
