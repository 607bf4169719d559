"""Agents for the tests of jobs: that nest, print, fail for a while, take long, or misbehave."""

import asyncio
import os
import time
from typing import Any

from callsheet import AgentBase, Msg, SequentialPipeline
from tests.agents.basic import Echo
from tests.agents.side import note, opened_sync, side


class Relay(AgentBase):
    """Asks the agent that it was given."""

    def __init__(self, name: str, child: AgentBase | None = None) -> None:
        self.name = name
        self.child = child

    async def reply(self, msg: Msg) -> Msg:
        heard = await self.child(msg) if self.child else msg
        return Msg(self.name, f"{self.name}({heard.get_text_content()})", "assistant")


class Spread(AgentBase):
    """Asks several agents at once."""

    def __init__(self, name: str, children: list[AgentBase]) -> None:
        self.name = name
        self.children = children

    async def reply(self, msg: Msg) -> Msg:
        heard = await asyncio.gather(*(child(msg) for child in self.children))
        return Msg(self.name, "+".join(m.get_text_content() or "" for m in heard), "assistant")


class AsksInPlainCode(AgentBase):
    """A cpu agent that waits for an io agent."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg) -> Msg:
        heard = Echo("bob").submit(msg).get(timeout=10)
        return Msg(self.name, f"{self.name}({heard.content})", "assistant")


class AsksOnCpu(AgentBase, queue="cpu"):
    """An async agent on a cpu worker that awaits others."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        one, two = await asyncio.gather(Echo("bob")(msg), SequentialPipeline([Echo("x"), Echo("y")])(msg))
        return Msg(self.name, f"{one.content} {two.content}", "assistant", metadata={"pid": os.getpid()})


class Flaky(AgentBase):
    """Fails the first `times` times."""

    def __init__(self, key: str, times: int = 2) -> None:
        self.key = key
        self.times = times

    async def reply(self, msg: Any = None) -> Msg:
        tried = side().incr(self.key)
        if tried <= self.times:
            raise ConnectionError(f"try {tried} fails")
        return Msg("flaky", str(tried), "assistant")


class CpuFlaky(AgentBase):
    """The same in plain code."""

    def __init__(self, key: str, times: int = 2) -> None:
        self.key = key
        self.times = times

    def reply(self, msg: Any = None) -> Msg:
        tried = side().incr(self.key)
        if tried <= self.times:
            raise ConnectionError(f"try {tried} fails")
        return Msg("flaky", str(tried), "assistant")


class Busy(AgentBase):
    """Plain code that runs until a key is set."""

    def __init__(self, gate: str, notes: str = "") -> None:
        self.gate = gate
        self.notes = notes

    def reply(self, msg: Any = None) -> Msg:
        note(self.notes, str(os.getpid()))
        opened_sync(self.gate)
        note(self.notes, "ended")
        return Msg("busy", "done", "assistant")


class Printer(AgentBase):
    """Prints a message chunk by chunk, then a second one; waits at a gate between the two."""

    def __init__(self, name: str, chunks: int = 3, gate: str = "", pause: float = 0.0) -> None:
        self.name = name
        self.chunks = chunks
        self.gate = gate
        self.pause = pause

    async def reply(self, msg: Any = None) -> Msg:
        out = Msg(self.name, "", "assistant")
        for number in range(self.chunks):
            out.content += f"{number} "
            await self.print(out, last=number == self.chunks - 1)
            await asyncio.sleep(self.pause)
        while self.gate and not side().exists(self.gate):
            await asyncio.sleep(0.01)
        await self.print(Msg(self.name, "bye", "assistant"))
        return out


class CpuPrinter(Printer, queue="cpu"):
    """The same on a cpu worker."""


class PrintsAndFails(AgentBase):
    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Any = None) -> Msg:
        await self.print(Msg(self.name, "before", "assistant"))
        raise ValueError("after printing")


class Wrong(AgentBase):
    """Replies with something that is no message."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def reply(self, msg: Any = None) -> Any:
        return {"str": "text", "dict": {"a": 1}, "int": 3, "generator": (x for x in "ab"), "object": object(),
                "list": [Msg("a", "b", "user"), "text"]}[self.kind]


class CpuWrong(AgentBase):
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def reply(self, msg: Any = None) -> Any:
        return {"str": "text", "dict": {"a": 1}}[self.kind]


class Large(AgentBase):
    """Replies with `size` characters, and tells how many it got."""

    def __init__(self, size: int, notes: str = "") -> None:
        self.size = size
        self.notes = notes

    async def reply(self, msg: Any = None) -> Msg:
        heard = sum(len(m.content) for m in msg) if isinstance(msg, list) else len(msg.content) if msg else 0
        note(self.notes, str(heard))
        return Msg("large", "x" * self.size, "assistant", metadata={"heard": heard})


class Known(AgentBase):
    """Was given much to know."""

    def __init__(self, facts: Any) -> None:
        self.facts = facts

    async def reply(self, msg: Any = None) -> Msg:
        return Msg("known", str(len(self.facts)), "assistant")


class Clock(AgentBase):
    """Tells when it ran."""

    async def reply(self, msg: Any = None) -> Msg:
        return Msg("clock", repr(time.time()), "assistant")


class Order(AgentBase):
    """Notes its message."""

    def __init__(self, notes: str) -> None:
        self.notes = notes

    async def reply(self, msg: Msg) -> Msg:
        note(self.notes, msg.get_text_content() or "")
        return msg


class Catches(AgentBase):
    """Catches what the agent that it asks raises."""

    def __init__(self, child: AgentBase) -> None:
        self.child = child

    async def reply(self, msg: Msg) -> Msg:
        try:
            await self.child(msg)
        except Exception as exc:
            return Msg("catches", f"{type(exc).__name__}: {str(exc).splitlines()[0]}", "assistant")
        return msg




class SleeperOnCpu(AgentBase):
    """Sleeps in a process of a cpu worker."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def reply(self, msg: Msg | None = None) -> Msg:
        time.sleep(self.seconds)
        return Msg("sleeper", "awake", "assistant")
