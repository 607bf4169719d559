"""Running one call of a tool: whatever the function is and gives, an async generator of responses comes of it; also
where it fails, or is cancelled."""

import asyncio
import contextvars
import inspect
import logging
import random
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

from celery.exceptions import SoftTimeLimitExceeded, TaskPredicate

from callsheet.errors import CallsheetError, ToolFailed
from callsheet.resources.context import parking
from callsheet.settings import get_settings
from callsheet.tools.arguments import call_arguments
from callsheet.tools.registered import RegisteredToolFunction
from callsheet.tools.response import (
    LONGEST_TRACE,
    Grown,
    OutOfTime,
    ToolResponse,
    failed_response,
    failure_text,
    failure_words,
    interrupted_response,
    response_of,
    safe,
)
from callsheet.tools.threads import Errand, elsewhere, in_thread, tool_threads

logger = logging.getLogger(__name__)
#: A worker's ways to end a task: none of a tool's failures.
PASS_THROUGH = (SoftTimeLimitExceeded, TaskPredicate)
_CANCELLED_ITSELF = "Error: the tool broke off: something that it waited for was cancelled"
_END = object()

Responses = AsyncGenerator[ToolResponse, None]
Meaning = Literal["interrupt", "interrupt, then raise", "failure", "raise"]


class NotTheTool(Exception):
    """What kept a tool from running is nothing that a model could mend; its cause is raised in its place."""


async def responses(tool: RegisteredToolFunction, arguments: dict[str, Any]) -> Responses:
    """The responses of one call: the tool's, or one that tells the model why there are none.

    Args:
        tool: what is called.
        arguments: the model's, known to fit.

    Raises:
        CallsheetError: it has a queue, and its call could not be sent there.
        asyncio.CancelledError: the reply was ended by a time limit or a shutdown.
    """
    so_far: list[ToolResponse] = []  # the last one of this try
    try:
        async with aclosing(_tried(tool, arguments, so_far)) as found:
            async for response in found:
                so_far[:] = [response]
                yield response
    except PASS_THROUGH:
        raise
    except NotTheTool as exc:
        assert exc.__cause__ is not None
        raise exc.__cause__ from None
    except OutOfTime:
        logger.warning("tool_timeout tool=%s timeout=%g", tool.name, tool.timeout)
        yield failed_response(f"Error: the tool {tool.name} did not end within {tool.timeout:g} s and was broken off",
                              so_far)
    except Exception as exc:
        logger.warning("tool_failed tool=%s %s", tool.name, failure_words(exc))
        logger.debug("%s", safe("".join(traceback.format_exception(exc)), LONGEST_TRACE))
        yield failed_response(failure_text(exc), so_far)
    except asyncio.CancelledError as exc:
        meaning = meaning_of(exc)
        if meaning == "raise":
            raise
        if meaning == "failure":
            yield failed_response(_CANCELLED_ITSELF, so_far)
        else:
            yield interrupted_response(so_far)
        if meaning == "interrupt, then raise":
            raise


class ReplyInterrupts:
    """The interrupts of one reply, as its tools meet them.

    Args:
        count: gives how many there were.
    """

    __slots__ = ("_met", "count")

    def __init__(self, count: Callable[[], int]) -> None:
        self.count = count
        self._met: WeakKeyDictionary[asyncio.Task[Any], int] | None = None

    def met(self, task: "asyncio.Task[Any]") -> int:
        """How many of them tools in this task have answered."""
        return self._met.get(task, 0) if self._met is not None else 0

    def meet(self, task: "asyncio.Task[Any]") -> None:
        """A tool in this task answers what there is."""
        self._met = self._met if self._met is not None else WeakKeyDictionary()
        self._met[task] = self.count()


#: The interrupts of the reply in whose course code runs; None outside of replies. Set by what runs replies.
reply_interrupts: ContextVar[ReplyInterrupts | None] = ContextVar("callsheet_reply_interrupts", default=None)


def meaning_of(cancelled: asyncio.CancelledError) -> Meaning:
    """What to make of a cancellation that struck a tool.

    In a reply only the agent's interrupt is one; a time limit or a shutdown passes through, and what the tool
    cancelled itself is a failure of the tool. Outside of replies there is nothing to tell an interrupt by: the
    interrupted response is given, and then the cancellation, if somebody cancelled this task.
    """
    task = asyncio.current_task()
    if isinstance(cancelled, Exception) or task is None:  # the former is a soft time limit
        return "raise"
    interrupts = reply_interrupts.get()
    if interrupts is None:
        return "interrupt, then raise" if task.cancelling() else "interrupt"
    if interrupts.count() > interrupts.met(task):
        interrupts.meet(task)
        return "interrupt"
    return "raise" if task.cancelling() > interrupts.met(task) else "failure"


async def _tried(tool: RegisteredToolFunction, arguments: dict[str, Any], so_far: list[ToolResponse]) -> Responses:
    """The responses of the first try that does not raise; each try's take the place of those of the one before."""
    deadline = None if tool.timeout is None else asyncio.get_running_loop().time() + tool.timeout
    for attempt in range(tool.retries + 1):
        try:
            async with aclosing(_once(tool, arguments, deadline)) as found:
                async for response in found:
                    yield response
            return
        except (OutOfTime, NotTheTool, *PASS_THROUGH):
            raise
        except Exception as exc:
            if attempt == tool.retries or isinstance(exc, asyncio.CancelledError):
                raise
            logger.info("tool_retry tool=%s attempt=%d error=%s", tool.name, attempt + 1, type(exc).__name__)
        so_far.clear()
        settings = get_settings()
        longest = min(settings.retry_backoff * 2**attempt, settings.retry_backoff_max)
        async with parking():
            await within(asyncio.sleep(random.uniform(longest / 2, longest)), deadline)  # noqa: S311 - spreads load


def _once(tool: RegisteredToolFunction, arguments: dict[str, Any], deadline: float | None) -> Responses:
    if tool.queue is not None and not elsewhere().is_here(tool.queue):
        return _sent(tool, arguments, deadline)
    args, kwargs = call_arguments(tool, arguments)
    return unified(tool.original_func, args, kwargs, deadline)


async def _sent(tool: RegisteredToolFunction, arguments: dict[str, Any], deadline: float | None) -> Responses:
    left = None if deadline is None else max(0.001, deadline - asyncio.get_running_loop().time())
    try:
        yield await within(elsewhere().run(Errand(tool=tool, arguments=arguments, timeout=left)), deadline)
    except ToolFailed:
        raise
    except CallsheetError as exc:
        raise NotTheTool from exc


async def unified(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any],
                  deadline: float | None) -> Responses:
    """What a function gives, as responses: a plain value, an awaitable, a generator or an async generator.

    Plain code runs in a thread, a plain generator's steps too.

    Args:
        function: what is called.
        args: of the call.
        kwargs: of the call.
        deadline: in the loop's time, or None.

    Raises:
        OutOfTime: the deadline has passed.
    """
    context = contextvars.copy_context()
    if runs_on_loop(function):
        value = function(*args, **kwargs)
    else:
        value = await within(in_thread(partial(function, *args, **kwargs), context), deadline)
    async with aclosing(spread_out(value, context, deadline)) as found:
        async for response in found:
            yield response


async def spread_out(value: Any, context: contextvars.Context, deadline: float | None) -> Responses:
    """What a call gave, as responses; a plain generator's steps run in a thread, in `context`."""
    while inspect.isawaitable(value):
        value = await within(value, deadline)
    if isinstance(value, AsyncIterator):
        steps = _async_steps(value, deadline)
    elif isinstance(value, Generator):
        steps = _thread_steps(value, context, deadline)
    else:
        yield response_of(value)
        return
    grown = Grown()
    async with aclosing(steps):
        async for item in steps:
            yield grown.take(item)
    rest = grown.end()
    if rest is not None:
        yield rest


def runs_on_loop(function: Callable[..., Any]) -> bool:
    """Whether calling it only makes a coroutine or a generator, which is run afterwards."""
    while isinstance(function, partial):
        function = function.func
    called = function if inspect.isroutine(function) else inspect.getattr_static(function, "__call__", function)
    return (inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)
            or inspect.isgeneratorfunction(called))


async def within(work: Awaitable[Any], deadline: float | None) -> Any:
    """What `work` gives before the deadline, in the loop's time.

    Raises:
        OutOfTime: it has passed.
    """
    if deadline is None:
        return await work
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise OutOfTime from None
        raise


async def _async_steps(source: AsyncIterator[Any], deadline: float | None) -> AsyncGenerator[Any, None]:
    try:
        while (item := await within(anext(source, _END), deadline)) is not _END:
            yield item
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _thread_steps(source: Generator[Any, Any, Any], context: contextvars.Context,
                        deadline: float | None) -> AsyncGenerator[Any, None]:
    try:
        while (item := await within(in_thread(lambda: next(source, _END), context), deadline)) is not _END:
            yield item
    finally:
        if getattr(source, "gi_frame", source) is not None:  # it has not ended: what it holds is let go in a thread
            tool_threads().submit(source.close)
