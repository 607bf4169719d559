"""What a cancellation means where a tool runs."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Literal

#: Whether the reply in whose course code runs was interrupted; None outside of replies. Set by what runs replies.
reply_interrupted: ContextVar[Callable[[], bool] | None] = ContextVar("callsheet_reply_interrupted", default=None)

Meaning = Literal["interrupt", "interrupt, then raise", "failure", "raise"]


def meaning_of(cancelled: asyncio.CancelledError) -> Meaning:
    """What to make of a cancellation that struck a tool.

    In a reply only the agent's interrupt is one; a time limit or a shutdown passes through, and what the tool
    cancelled itself is a failure of the tool. Outside of replies there is nothing to tell an interrupt by: the
    interrupted response is given, and then the cancellation, if somebody cancelled this task.
    """
    if isinstance(cancelled, Exception):  # a soft time limit
        return "raise"
    task = asyncio.current_task()
    asked = task is not None and task.cancelling() > 0
    interrupted = reply_interrupted.get()
    if interrupted is None:
        return "interrupt, then raise" if asked else "interrupt"
    if interrupted():
        return "interrupt"
    return "raise" if asked else "failure"
