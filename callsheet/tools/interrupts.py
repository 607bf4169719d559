"""What a cancellation means where a tool runs."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal
from weakref import WeakKeyDictionary

Meaning = Literal["interrupt", "interrupt, then raise", "failure", "raise"]


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
