"""The Celery task that runs an agent's reply."""

import asyncio
import contextlib
import contextvars
import functools
import importlib
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from callsheet.agents import AgentBase
from callsheet.agents.base import printer
from callsheet.agents.running import checked_reply, run_reply
from callsheet.errors import BadReply, BranchFailed, CannotTravel, PayloadExpired, UsageError
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Writer
from callsheet.resources.books import books
from callsheet.resources.context import call_context
from callsheet.settings import Settings, get_settings
from callsheet.tasks import payloads
from callsheet.tasks.base import Task
from callsheet.tasks.bridge import drive, in_strand, unseated
from callsheet.tasks.call import AgentCall, Gathering
from callsheet.tasks.events import EventWriter, current_stream
from callsheet.tasks.gather import gathered, piped_input
from callsheet.tasks.interrupts import Running, interruptible
from callsheet.tasks.loop import on_process_loop, run_private, wait_on_process_loop
from callsheet.tasks.results import AGENT_ATTRIBUTE, STARTED_ATTRIBUTE

#: What trying again cannot mend, and the end of the time that the call was given.
NOT_RETRIED = (CannotTravel, BadReply, BranchFailed, PayloadExpired, UsageError, SoftTimeLimitExceeded)


def shown(label: str) -> dict[str, str]:
    """A call's name and arguments for logs and Flower: people can read them, and they show no content."""
    return {"shadow": label.partition("(")[0] or ReplyTask.name, "argsrepr": f"({label})", "kwargsrepr": "{}"}

LONGEST_ASKED = 3600.0
"""Seconds that an endpoint's wish puts off the next try at most."""


class ReplyTask(Task):
    """`callsheet.reply(value, call)`: builds the agent, runs its reply, returns what it gave as JSON data.

    On the asyncio pool an `async def reply` runs on the loop and a `def reply` in a thread; in a prefork child each
    runs in the child's main thread, where Celery's time limits reach it.
    """

    name = "callsheet.reply"
    resultrepr_maxsize = 128  # characters of a reply in logs and Flower

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Celery's, with what `shown` gives."""
        data = args[-1] if args else {}
        options |= shown(data.get("label", "") if isinstance(data, dict) else "")
        if isinstance(data, dict) and args:
            args = (*args[:-1], {**data, "sent": time.time()})
        return super().apply_async(args, kwargs, **options)

    def run(self, value: Any, call_data: dict[str, Any]) -> Any:
        """Run one call.

        Args:
            value: what a pipeline hands on; None for a single call.
            call_data: an AgentCall on the wire.
        """
        setattr(self.request, STARTED_ATTRIBUTE, time.time())
        call, settings = AgentCall.from_wire(call_data), get_settings()
        try:
            with call_context(call.running(self.request.id, (self.request.timelimit or (None, None))[1])):
                out = self._reply(call, value, settings)
            _settle_usage()
            return out
        except (Retry, Ignore, Reject):
            raise
        except Exception as exc:
            _settle_usage()
            setattr(exc, AGENT_ATTRIBUTE, call.label)
            if isinstance(exc, NOT_RETRIED) or self.request.retries >= call.retries:
                raise
            raise self.retry(exc=exc, countdown=retry_pause(self.request.retries, settings, exc),
                             max_retries=call.retries) from exc

    def _reply(self, call: AgentCall, value: Any, settings: Settings) -> Any:
        if in_strand():
            return drive(_on_loop(call, value, settings, self.backend, self.request.id))
        agent, args, kwargs = _prepared(call, payloads.load(_parts(call, value), settings), settings, self.backend)
        if agent.is_async():
            return run_private(_in_child(call, agent, args, kwargs, settings))
        out, blobs = _written(call, checked_reply(agent, agent.reply(*args, **kwargs)), settings)
        payloads.store(blobs, settings)
        return out


# `run` is a plain def, but on the asyncio pool its place is the loop.
ReplyTask.is_async = True


def _settle_usage() -> None:
    """See that what the call's requests took is in Redis before its result, or its next step, is."""
    if books.idle:
        return
    if in_strand():
        drive(books.settled())
    else:
        wait_on_process_loop(books.settled())


def retry_pause(retries: int, settings: Settings, error: BaseException | None = None) -> float:
    """Seconds before the next try: doubling, with jitter, so that callers that failed together part.

    Where the error says when an endpoint can be called again (`retry_after`), not before, up to an hour.
    """
    longest = min(settings.retry_backoff * 2**retries, settings.retry_backoff_max)
    pause = random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, guards nothing
    asked = getattr(error, "retry_after", None)
    return pause + min(asked, LONGEST_ASKED) if isinstance(asked, (int, float)) and asked > 0 else pause


def _parts(call: AgentCall, value: Any) -> list[Any]:
    return [call.agent, call.args, call.kwargs, value, call.gathering.branches if call.gathering else None]


def _prepared(call: AgentCall, parts: list[Any], settings: Settings, backend: Any
              ) -> tuple[AgentBase, tuple[Any, ...], dict[str, Any]]:
    agent, args, kwargs, value, branches = parts
    full = AgentCall(agent=agent, args=args, kwargs=kwargs, label=call.label, job=call.job, piped=call.piped)
    if call.gathering is not None:
        value = gathered(value, Gathering(branches=branches, on_error=call.gathering.on_error), backend)
    return full.build(piped_input(value), settings)


def _written(call: AgentCall, reply: Any, settings: Settings) -> tuple[Any, dict[str, bytes]]:
    return payloads.pack(Writer().write(reply, f"the reply of {call.label}"), settings, f"The reply of {call.label}")


async def _on_loop(call: AgentCall, value: Any, settings: Settings, backend: Any, call_id: str) -> Any:
    with interruptible(call_id) as entry:
        parts = await payloads.load_async(_parts(call, value), settings)
        await _import_aside(parts[0], settings)
        agent, args, kwargs = _prepared(call, parts, settings, backend)
        reply = await _with_prints(call, agent, args, kwargs, settings, entry)
    out, blobs = _written(call, reply, settings)
    await payloads.store_async(blobs, settings)
    return out


async def _import_aside(agent: Any, settings: Settings) -> None:
    """Import the agent's module in a thread, the first time: what it imports may take long, and the loop is shared."""
    ref = agent.get("$new") if isinstance(agent, dict) else None
    module = ref.partition(":")[0] if isinstance(ref, str) else ""
    if module and module not in sys.modules and AllowList(settings.modules).admits(module):
        with contextlib.suppress(Exception):  # building the agent raises it again, with a better text
            await asyncio.to_thread(importlib.import_module, module)


async def _in_child(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                    settings: Settings) -> Any:
    out, blobs = _written(call, await _with_prints(call, agent, args, kwargs, settings), settings)
    await on_process_loop(payloads.store_async(blobs, settings))
    return out


async def _with_prints(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                       settings: Settings, entry: Running | None = None) -> Any:
    """The reply, with what the agent prints sent to the job's event stream."""
    writer = EventWriter(call.job, settings)
    token, stream = printer.set(writer.add), current_stream.set(call.job)
    try:
        if entry is not None:
            entry.begin(agent)
        return await run_reply(agent, args, kwargs, _in_thread)
    finally:
        printer.reset(token)
        current_stream.reset(stream)
        await writer.close()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for `def reply` on an io worker; the pool's slots bound how many are in use."""
    return ThreadPoolExecutor(max_workers=10_000, thread_name_prefix="callsheet-reply")


async def _in_thread(function: Any) -> Any:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, unseated, function)
