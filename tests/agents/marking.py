"""Agents that note in files what they do, for connections to Redis that break at any command."""

from typing import Any

from callsheet import AgentBase, Msg, MsgHub
from callsheet.memory import InMemoryMemory
from tests.agents.gated import mark


class Marks(AgentBase):
    """Notes that it runs; says its name behind what it heard."""

    def __init__(self, folder: str, name: str, fails: bool = False) -> None:
        self.folder = folder
        self.name = name
        self.fails = fails

    async def reply(self, msg: Any = None) -> Msg:
        return self.said(msg)

    def said(self, msg: Any) -> Msg:
        mark(self.folder, "ran", self.name)
        if self.fails:
            raise ValueError("no luck")
        texts = [part.get_text_content() or "" for part in (msg if isinstance(msg, list) else [msg])]
        failed = any("error" in part.metadata for part in (msg if isinstance(msg, list) else [msg]))
        return Msg(self.name, f"({'+'.join(texts) if not failed else 'caught'}){self.name}", "assistant")


class CpuMarks(Marks):
    """The same in plain code."""

    def reply(self, msg: Any = None) -> Msg:
        return self.said(msg)


class Remembers(Marks):
    """An agent with state: counts its calls."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        self.memory = InMemoryMemory()
        self.count = 0
        self.register_state("count")

    async def observe(self, msg: Any) -> None:
        await self.memory.add(msg)

    async def reply(self, msg: Any = None) -> Msg:
        self.count += 1
        await self.print(Msg(self.name, f"call {self.count}", "assistant"))
        return Msg(self.name, f"{self.said(msg).content}{self.count}", "assistant")


class Hosts(Marks):
    """Has two agents with memory talk in a hub, and says how many messages the second had heard."""

    async def reply(self, msg: Any = None) -> Msg:
        one, two = Remembers(self.folder, f"{self.name}.one"), Listens(self.folder, f"{self.name}.two")
        async with MsgHub([one, two]):
            await one(Msg("host", "go", "user"))
            heard = await two(Msg("host", "go", "user"))
        return Msg(self.name, f"{self.said(msg).content}{heard.content}", "assistant")


class Listens(Remembers):
    """Says how many messages it has heard of others."""

    async def reply(self, msg: Any = None) -> Msg:
        mark(self.folder, "ran", self.name)
        return Msg(self.name, str(len(await self.memory.get_memory())), "assistant")
