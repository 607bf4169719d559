"""Running one call of an agent in this process: the same on an io worker, on a cpu worker and inline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from callsheet.agents.base import AgentBase
from callsheet.errors import BadReply
from callsheet.messages import Msg
from callsheet.tools.interrupts import reply_interrupted

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


async def run_reply(agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                    in_thread: InThread = asyncio.to_thread) -> Any:
    """The agent's reply; `handle_interrupt`'s where the agent was interrupted.

    A cancellation that is not an interrupt (a timeout, a shutdown) passes through.

    Args:
        agent: whose reply.
        args: of `reply`.
        kwargs: of `reply`.
        in_thread: how a plain `def reply` is run off the loop.

    Raises:
        BadReply: what it gave is not a Msg, a list of them or None.
    """
    if not agent.is_async():
        return checked_reply(agent, await in_thread(lambda: agent.reply(*args, **kwargs)))
    task = asyncio.current_task()
    assert task is not None
    agent._replies.add(task)
    told = reply_interrupted.set(lambda: task in agent._interrupted)
    try:
        reply = await agent.reply(*args, **kwargs)
        if task in agent._interrupted:  # too late: the reply is there
            await _swallow_cancel(task)
    except asyncio.CancelledError as exc:
        if task not in agent._interrupted or isinstance(exc, Exception):  # the latter is a soft time limit
            raise
        task.uncancel()
        reply = await agent.handle_interrupt(*args, **kwargs)
    finally:
        reply_interrupted.reset(told)
        agent._replies.discard(task)
        agent._interrupted.discard(task)
    return checked_reply(agent, reply)


async def _swallow_cancel(task: "asyncio.Task[Any]") -> None:
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        task.uncancel()


def checked_reply(agent: AgentBase, reply: Any) -> Any:
    """`reply` if it is a Msg, a list of them or None.

    Raises:
        BadReply: it is something else.
    """
    if reply is None or isinstance(reply, Msg):
        return reply
    if isinstance(reply, list) and all(isinstance(item, Msg) for item in reply):
        return reply
    kind = type(reply).__name__
    if isinstance(reply, list):
        odd = next(item for item in reply if not isinstance(item, Msg))
        kind = f"list with a {type(odd).__name__} in it"
    raise BadReply(f"{agent.label}.reply returned a {kind}: a Msg, a list of them or None is needed. Wrap the value: "
                   "Msg(self.name, text, \"assistant\").")
