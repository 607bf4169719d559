"""The task class: `async def` tasks that run on the asyncio pool, in a prefork child, eagerly, or awaited."""

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import celery
from celery import uuid
from celery._state import get_current_task
from celery.utils.imports import symbol_by_name
from celery.utils.threads import LocalManager
from pydantic import BaseModel

from callsheet.errors import UsageError
from callsheet.resources.loops import running_loop
from callsheet.tasks.aside import aside, current
from callsheet.tasks.bridge import call_ident, drive, in_plain_code, in_strand
from callsheet.tasks.loop import run_in_thread, run_private
from callsheet.tasks.patience import patiently

_retrying: ContextVar[bool] = ContextVar("callsheet_retrying", default=False)
LOST = "lost"  # header: how often the worker that held the message was lost
DRIVEN = "_callsheet_driven"  # set on a request whose body has been started
HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


class Task(celery.Task):
    """A Celery task whose body may be `async def`; for `Celery(task_cls="callsheet.tasks.base:Task")`.

    Everything that Celery offers a plain task holds for an async one: retries, canvases, callbacks, time limits,
    `self.request`. Called in async code, `await my_task(x)` is a plain await of the function. `on_failure` and the
    other handlers may be `async def` too.

    Attributes:
        is_async: whether `run` was defined with `async def`.
    """

    abstract = True
    is_async = False
    Request = "callsheet.tasks.request:SecondChanceRequest"

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Celery's; where a task of a worker sends another, or itself again, it waits for a Redis in trouble."""
        if len(args) < 3 and not options.get("task_id"):
            options["task_id"] = uuid()  # the same however often it is tried

        def send() -> Any:
            return super(Task, self).apply_async(*args, **options)

        if _retrying.get() and in_strand():
            return patiently(lambda: aside(self.app, send))
        return patiently(send)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Celery's; on the asyncio pool a thread publishes the next try, and the loop goes on meanwhile."""
        token = _retrying.set(True)
        try:
            return super().retry(*args, **options)
        finally:
            _retrying.reset(token)

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """Celery's; what is sent again tells how many workers died under it."""
        request = self.request if request is None else request
        lost = getattr(request, LOST, None)
        if lost:
            options["headers"] = {**(request.headers or {}), **(options.get("headers") or {}), LOST: lost}
        return super().signature_from_request(request, *args, **options)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in HANDLERS:
            if inspect.iscoroutinefunction(handler := cls.__dict__.get(name)):
                setattr(cls, name, _sync_handler(handler))
        if inspect.iscoroutinefunction(call := cls.__dict__.get("__call__")):
            cls.__call__ = _sync_run(call, False)
        cls.reject_on_worker_lost = False  # a request of ours gives a second chance, where Celery's gives any number
        if cls.Request != Task.Request:
            cls.Request = _with_second_chance(symbol_by_name(cls.Request))
        given = cls.__dict__.get("run")
        static = isinstance(given, staticmethod)
        function = given.__func__ if isinstance(given, staticmethod) else given
        if function is None:
            return
        dumps = cls.__dict__.get("_dump_pydantic_arguments") is not None
        # With pydantic=True Celery wraps the function in a plain one, which returns its coroutine.
        inner = inspect.unwrap(function) if dumps else function
        if inspect.isasyncgenfunction(inner):
            raise UsageError(f"Task {function.__qualname__} is an async generator, which has no result to store: "
                             "return a list, or emit events while it runs.")
        cls.is_async = inspect.iscoroutinefunction(inner)
        if cls.is_async:
            run = _sync_run(function, dumps)
            cls.run = staticmethod(run) if static else run

    @classmethod
    def on_bound(cls, app: celery.Celery) -> None:
        """Celery has given the class its stack of requests: let subtasks of a call find the call's request there."""
        super().on_bound(app)
        LocalManager([cls.request_stack], call_ident)


@functools.cache
def mixed(base: Any) -> Any:
    """A base class for tasks of ours: `base`, with `Task` mixed in where it is not one of them yet."""
    if issubclass(base, Task):
        return base
    # Those of Celery's are ours there; those of `base` are looked through as if they were written in this class.
    own = {name: given for name in ("run", "__call__", *HANDLERS)
           if (given := inspect.getattr_static(base, name, None)) not in (None, inspect.getattr_static(Task, name))}
    try:
        return type(base.__name__, (base, Task), {**own, "__module__": base.__module__, "__doc__": base.__doc__})
    except TypeError as exc:
        raise UsageError(f"{base.__module__}.{base.__qualname__} cannot be a task's base class here ({exc}): derive it "
                         "from callsheet.tasks.base.Task, or from celery.Task and no other kind of class.") from exc


def _with_second_chance(request: type) -> Any:
    ours: type = symbol_by_name(Task.Request)
    return next((one for one, other in ((ours, request), (request, ours)) if issubclass(one, other)),
                None) or type(request.__name__, (request, ours), {})


def _sync_run(function: Callable[..., Coroutine[Any, Any, Any]], dumps: bool) -> Callable[..., Any]:
    """`run` as Celery's tracer calls it: it returns the result, or in async code the coroutine."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        coro = function(*args, **kwargs)
        if dumps:
            coro = _dumped(coro)
        if _called_by_tracer(run):
            if in_strand():
                return drive(coro)
            # A loop runs in this thread: the task is executed eagerly, by async code that wants its result now.
            return run_in_thread(_as_current(get_current_task(), coro)) if running_loop() else run_private(coro)
        return _given(coro)

    return run


def _sync_handler(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def handler(*args: Any, **kwargs: Any) -> Any:
        return _given(function(*args, **kwargs))

    return handler


def _given(coro: Coroutine[Any, Any, Any]) -> Any:
    """To async code the coroutine, to await; to plain code, such as Celery's that calls an errback, the result."""
    if in_plain_code():
        return drive(coro)
    return coro if running_loop() else run_private(coro)


def _called_by_tracer(run: Callable[..., Any]) -> bool:
    """Whether this is the tracer's call of the current task, rather than a call by the task's own code."""
    task = get_current_task()
    if task is None or run not in (type(task).run, type(task).__call__):
        return False
    request = task.request_stack.top
    if request is None or request.called_directly or DRIVEN in request.__dict__:
        return False
    request.__dict__[DRIVEN] = True
    return True


def _as_current(task: celery.Task, coro: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    """The coroutine as this task's, in a thread whose task stacks are empty."""
    request = task.request_stack.top

    async def run() -> Any:
        with current(task, request):
            return await coro

    return run()


async def _dumped(coro: Coroutine[Any, Any, Any]) -> Any:
    result = await coro
    return result.model_dump(mode="json") if isinstance(result, BaseModel) else result
