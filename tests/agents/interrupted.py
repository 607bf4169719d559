"""Agents for the tests of interrupts."""

import asyncio
import sys
from typing import Any

from callsheet import AgentBase, Msg
from tests.agents.side import note, opened, opened_sync


class Talker(AgentBase):
    """Talks until a key is set; says what it was told when it was interrupted."""

    def __init__(self, name: str, gate: str, notes: str) -> None:
        self.name = name
        self.gate = gate
        self.notes = notes

    async def reply(self, msg: Any = None) -> Msg:
        note(self.notes, "talks")
        try:
            await opened(self.gate)
        except asyncio.CancelledError:
            note(self.notes, "broken off")
            raise
        return Msg(self.name, "all of it", "assistant")

    async def handle_interrupt(self, msg: Any = None) -> Msg:
        note(self.notes, "handles")
        said, = sys.exc_info()[1].args or [None]
        return Msg(self.name, f"{msg.content}, {said.content if said else 'nothing'}", "assistant")


class Waits(AgentBase):
    """Waits for another agent."""

    def __init__(self, child: AgentBase, notes: str) -> None:
        self.child = child
        self.notes = notes

    async def reply(self, msg: Msg) -> Msg:
        return await self.child(msg)

    async def handle_interrupt(self, msg: Msg) -> Msg:
        return Msg("waits", "enough", "assistant")


class Computes(AgentBase):
    """Plain code that runs until a key is set."""

    def __init__(self, gate: str, notes: str) -> None:
        self.gate = gate
        self.notes = notes

    def reply(self, msg: Any = None) -> Msg:
        note(self.notes, "computes")
        opened_sync(self.gate)
        return Msg("computes", "done", "assistant")


class ComputesOnIo(Computes, queue="io"):
    """The same in a thread of an io worker."""


class WaitsOnCpu(Talker, queue="cpu"):
    """An async reply in a process of a cpu worker."""
