"""Agents with state, for the tests of turns."""

import asyncio
import os
import time
from typing import Any

from callsheet import AgentBase, Msg
from callsheet.memory import InMemoryMemory
from tests.agents.side import note, opened, opened_sync, side


class Clerk(AgentBase):
    """Counts and remembers what it hears; what it is to do beside stands in the message's metadata."""

    def __init__(self, name: str = "clerk", memory: InMemoryMemory | None = None) -> None:
        self.name = name
        self.count = 0
        self.visits = 0  # not registered
        self.memory = memory or InMemoryMemory()
        self.register_state("count")

    async def reply(self, msg: Msg) -> Msg:
        told = msg.metadata
        before = len(await self.memory.get_memory())
        await self.memory.add(msg)
        count = self.count
        if "note" in told:
            note(told["note"], f"{msg.content} {os.getpid()}")
        if "gate" in told:
            await opened(told["gate"])
        if "clear" in told:
            await self.memory.clear()
        await asyncio.sleep(told.get("sleep", 0))
        if "times" in told and side().incr(told["times"][0]) <= told["times"][1]:
            raise ValueError("not yet")
        if told.get("fail"):
            raise ValueError("no luck today")
        if "unkept" in told:
            self.count = object()  # type: ignore[assignment]
        else:
            self.count = count + 1  # read before the wait: two at once would lose one
        self.visits += 1
        answer = Msg(self.name, f"{self.count}:{before}", "assistant", metadata={"visits": self.visits,
                                                                               "pid": os.getpid()})
        await self.memory.add(answer)
        return answer

    async def handle_interrupt(self, msg: Msg) -> Msg:
        answer = Msg(self.name, "interrupted", "assistant")
        await self.memory.add(answer)
        return answer


class CpuClerk(AgentBase):
    """The same in plain code on a cpu worker."""

    def __init__(self, name: str = "clerk") -> None:
        self.name = name
        self.count = 0
        self.heard: list[str] = []
        self.register_state("count")
        self.register_state("heard")

    def reply(self, msg: Msg) -> Msg:
        told, count = msg.metadata, self.count
        self.heard.append(str(msg.content))
        if "note" in told:
            note(told["note"], f"{msg.content} {os.getpid()}")
        if "gate" in told:
            opened_sync(told["gate"])
        time.sleep(told.get("sleep", 0))
        if told.get("fail"):
            raise ValueError("no luck today")
        self.count = count + 1
        return Msg(self.name, f"{self.count}:{len(self.heard)}", "assistant", metadata={"pid": os.getpid()})


class AsyncOnCpu(Clerk, queue="cpu"):
    """Async on a cpu worker."""


class Other(AgentBase):
    """Of another class."""

    def __init__(self, name: str = "other") -> None:
        self.name = name
        self.memory = InMemoryMemory()

    async def reply(self, msg: Msg) -> Msg:
        return msg


class SelfCaller(AgentBase):
    """Awaits an agent with its own id, in one way or another."""

    def __init__(self, name: str, way: str) -> None:
        self.name, self.way = name, way
        self.count = 0
        self.register_state("count")

    async def reply(self, msg: Msg) -> Msg:
        self.count += 1
        if msg.content == "stop":
            return Msg(self.name, "stopped", "assistant")
        again: Any = SelfCaller(self.name, self.way).with_id(self.id)
        stop = Msg("u", "stop", "user")
        if self.way == "await":
            return await again(stop)
        if self.way == "job":
            return await again.submit(stop)
        if self.way == "chain":
            return await Asker("b", again)(stop)
        if self.way == "submitted chain":
            return await Asker("b", again).submit(stop)
        job = again.submit(stop)
        return Msg(self.name, job.id, "assistant")


class Asker(AgentBase):
    """Without state; asks another."""

    def __init__(self, name: str, other: AgentBase) -> None:
        self.name, self.other = name, other

    async def reply(self, msg: Msg) -> Any:
        return await self.other(msg)


class Built(Clerk):
    """Notes each time that it is built, with the process."""

    def __init__(self, name: str, notes: str, memory: InMemoryMemory | None = None) -> None:
        super().__init__(name, memory)
        note(notes, f"{name} {os.getpid()}")


async def halves(messages: list[Msg], summary: str) -> tuple[str, int] | None:
    """A policy: of more than six messages two stay, and a count of the others."""
    if len(messages) <= 6:
        return None
    gone = len(messages) - 2 + int(summary.partition(" ")[0] or 0)
    return f"{gone} messages before", 2


async def raises(messages: list[Msg], summary: str) -> tuple[str, int] | None:
    """A policy that has a bad day."""
    raise ConnectionError("the model that summarises is away")
