"""Running one call of an agent in this process: the same on an io worker, on a cpu worker and inline."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from callsheet.agents.base import AgentBase
from callsheet.errors import BadReply
from callsheet.messages import Msg
from callsheet.tools.execution import ReplyInterrupts, reply_interrupts

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


async def run_reply(agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                    in_thread: InThread = asyncio.to_thread) -> Any:
    """The agent's reply; `handle_interrupt`'s where the agent was interrupted.

    A cancellation that is not an interrupt (a timeout, a shutdown) passes through.

    Raises:
        BadReply: what it gave is not a Msg, a list of them or None.
    """
    if not agent.is_async():
        return checked_reply(agent, await in_thread(lambda: agent.reply(*args, **kwargs)))
    task = asyncio.current_task()
    assert task is not None
    agent._replies.add(task)
    before = task.cancelling()
    interrupts = ReplyInterrupts(lambda: agent._interrupted.get(task, 0))
    told = reply_interrupts.set(interrupts)
    try:
        reply = await agent.reply(*args, **kwargs)
        if task in agent._interrupted:  # too late: the reply is there, or tools have answered it
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
    except asyncio.CancelledError as exc:
        times = _uncancelled(agent, task)
        # More cancellations than interrupts are somebody else's. A soft time limit is an Exception too.
        if not times or task.cancelling() > before or isinstance(exc, Exception):
            raise
        interrupts.count = lambda: 0  # while this one is handled, a cancellation is something else
        reply = await agent.handle_interrupt(*args, **kwargs)
    finally:
        reply_interrupts.reset(told)
        agent._replies.discard(task)
        _uncancelled(agent, task)
    return checked_reply(agent, reply)


def _uncancelled(agent: AgentBase, task: "asyncio.Task[Any]") -> int:
    """Take back the cancellations that were interrupts; how many there were."""
    times = agent._interrupted.pop(task, 0)
    for _ in range(times):
        task.uncancel()
    return times


def checked_reply(agent: AgentBase, reply: Any) -> Any:
    """`reply` if it is a Msg, a list of them or None."""
    if reply is None or isinstance(reply, Msg):
        return reply
    if isinstance(reply, list) and all(isinstance(item, Msg) for item in reply):
        return reply
    kind = type(reply).__name__
    if isinstance(reply, list):
        odd = next(item for item in reply if not isinstance(item, Msg))
        kind = f"list with a {type(odd).__name__} in it"
    remedy = "Wrap the value: Msg(self.name, text, \"assistant\")."
    if inspect.iscoroutine(reply):
        reply.close()  # or Python warns of it too
        remedy = ("Write `async def reply`, and `await` in it; a plain `def reply` calls another agent by "
                  "agent.submit(msg).get().")
    raise BadReply(f"{agent.label}.reply returned a {kind}: a Msg, a list of them or None is needed. {remedy}")
