"""The steps of running one call on a worker."""

import asyncio
import contextlib
import contextvars
import functools
import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from callsheet.agents import AgentBase
from callsheet.agents.asking import asker
from callsheet.agents.base import printer
from callsheet.agents.running import checked_reply, run_reply
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Writer
from callsheet.resources.payloads import store_async
from callsheet.settings import Settings
from callsheet.tasks import payloads
from callsheet.tasks.bridge import unseated
from callsheet.tasks.call import AgentCall, Gathering
from callsheet.tasks.events import current_stream
from callsheet.tasks.gather import gathered, piped_input
from callsheet.tasks.interrupts import Running
from callsheet.tasks.loop import on_process_loop
from callsheet.tasks.patience import ended, patient
from callsheet.tasks.people.asker import JobAsker
from callsheet.tasks.prints import EventWriter
from callsheet.tasks.scope import Scope, current_scope
from callsheet.tasks.turns.desk import Turn
from callsheet.tasks.turns.hearing import hear


def parts_of(call: AgentCall, value: Any, with_agent: bool = True) -> list[Any]:
    """What large payloads may stand in for; without the agent where it is there already."""
    branches = call.gathering.branches if call.gathering else None
    return [call.agent if with_agent else None, call.args, call.kwargs, value, branches]


def filled(call: AgentCall, parts: list[Any]) -> AgentCall:
    """The call with its payloads in their places."""
    agent, args, kwargs, _, _ = parts
    return AgentCall(agent=agent, args=args, kwargs=kwargs, label=call.label, job=call.job, piped=call.piped)


def arguments(call: AgentCall, parts: list[Any], settings: Settings, backend: Any
              ) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `reply`."""
    return filled(call, parts).arguments(_input(call, parts, backend), settings)


def prepared(call: AgentCall, parts: list[Any], settings: Settings, backend: Any
             ) -> tuple[AgentBase, tuple[Any, ...], dict[str, Any]]:
    """The agent and the arguments of `reply`."""
    return filled(call, parts).build(_input(call, parts, backend), settings)


def _input(call: AgentCall, parts: list[Any], backend: Any) -> Any:
    value, branches = parts[3:]
    if call.gathering is not None:
        value = gathered(value, Gathering(branches=branches, on_error=call.gathering.on_error), backend)
    return piped_input(value)


def written(call: AgentCall, reply: Any, settings: Settings) -> tuple[Any, dict[str, bytes]]:
    """A reply as JSON data, and the large payloads to store before it is handed on."""
    return payloads.pack(Writer().write(reply, f"the reply of {call.label}"), settings, f"The reply of {call.label}")


async def stored(blobs: dict[str, bytes], settings: Settings) -> None:
    """The large payloads of a reply that has ended are stored; on any loop."""
    if blobs:
        with ended():
            await patient(lambda: on_process_loop(lambda: store_async(blobs, settings)))


async def import_aside(agent: Any, settings: Settings) -> None:
    """Import the agent's module in a thread, the first time: what it imports may take long, and the loop is shared."""
    ref = agent.get("$new") if isinstance(agent, dict) else None
    module = ref.partition(":")[0] if isinstance(ref, str) else ""
    if module and module not in sys.modules and AllowList(settings.modules).admits(module):
        with contextlib.suppress(Exception):  # building the agent raises it again, with a better text
            await asyncio.to_thread(importlib.import_module, module)


async def with_prints(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                      settings: Settings, entry: Running | None = None, turn: Turn | None = None) -> Any:
    """The reply, with what the agent prints sent to the job's event stream; `turn`: what it hears before."""
    writer = _writer(call, settings)
    try:
        with _printing_to(writer):
            if turn is not None and turn.news:
                await hear(turn, _in_thread)
            if call.observe:
                return None
            if entry is not None:
                entry.begin(agent)
            return await run_reply(agent, args, kwargs, _in_thread)
    finally:
        with ended():
            await writer.close()


def plain_reply(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                settings: Settings) -> Any:
    """As `with_prints`, of a plain `def reply` that runs in this thread."""
    writer = _writer(call, settings)
    try:
        with _printing_to(writer):
            return checked_reply(agent, agent.reply(*args, **kwargs))
    finally:
        with ended():
            writer.close_plain()


def _writer(call: AgentCall, settings: Settings) -> EventWriter:
    return EventWriter(current_scope.get() or Scope(call.job, "", "", False), settings)


@contextlib.contextmanager
def _printing_to(writer: EventWriter) -> Iterator[None]:
    """In the block agents print, and ask people, by way of the job's events."""
    token, stream = printer.set(writer.add), current_stream.set(writer.scope.job)
    asking = asker.set(JobAsker(writer))
    try:
        yield
    finally:
        printer.reset(token)
        current_stream.reset(stream)
        asker.reset(asking)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for `def reply` on an io worker; the pool's slots bound how many are in use."""
    return ThreadPoolExecutor(max_workers=10_000, thread_name_prefix="callsheet-reply")


async def _in_thread(function: Any) -> Any:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, unseated, function)
