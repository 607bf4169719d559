"""Plain code of a call that must not hold up the loop, such as Celery's publishing: in a thread, as the call's own."""

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from celery import Celery
from celery._state import get_current_task, pop_current_task, push_current_task

from callsheet.tasks.bridge import drive_unbroken, in_strand, unseated

T = TypeVar("T")
_THREADS = 16
_alone = threading.Lock()


def aside(app: Celery, function: Callable[[], T]) -> T:
    """Run plain code that ends a call; on the asyncio pool in a thread, while the loop goes on.

    A cancellation waits until it is done.
    """
    return drive_unbroken(begin_aside(app, function)) if in_strand() else function()


def begin_aside(app: Celery, function: Callable[[], T]) -> "asyncio.Future[T]":
    """Begin to run plain code in a thread, where it finds the current task and its request as here; on a loop."""
    task = get_current_task()
    request = task.request_stack.top if task is not None else None
    run = functools.partial(_as_current, app, task, request, function)
    return asyncio.wrap_future(_threads(os.getpid()).submit(contextvars.copy_context().run, unseated, run))


@functools.cache
def _threads(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="callsheet-aside")


def _as_current(app: Celery, task: Any, request: Any, function: Callable[[], T]) -> T:
    app.set_current()
    # A stock app takes several producers at a time, and threads that do so may wait for each other's for ever.
    one_at_a_time = nullcontext() if getattr(app, "one_producer", False) else _alone
    with one_at_a_time, nullcontext() if task is None else current(task, request):
        return function()


@contextmanager
def current(task: Any, request: Any) -> Iterator[None]:
    """In the block, code of a thread finds this task and its request, as Celery's own does."""
    push_current_task(task)
    task.request_stack.push(request)
    try:
        yield
    finally:
        task.request_stack.pop()
        pop_current_task()
