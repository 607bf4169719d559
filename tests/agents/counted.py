"""A module of a user's that counts with prometheus_client itself, and an agent that does all that metrics tell."""

import asyncio
from pathlib import Path

from prometheus_client import Counter

from callsheet import AgentBase, Msg
from callsheet.models import OpenAIChatModel

Counter("drafts", "Drafts that a user's own module counts.").inc(3)


class Counted(AgentBase):
    """Asks a model, prints nothing, and may wait for a file before it ends."""

    def __init__(self, name: str, gate: str = "", fail: bool = False) -> None:
        self.name, self.gate, self.fail = name, gate, fail
        self.model = OpenAIChatModel("gpt-small", stream=False)

    async def reply(self, msg: Msg) -> Msg:
        answer = await self.model([{"role": "user", "content": msg.get_text_content()}])
        while self.gate and not Path(self.gate).exists():
            await asyncio.sleep(0.02)
        if self.fail:
            raise ValueError("it was asked to fail")
        return Msg(self.name, answer.content, "assistant")


class CountedInProcess(Counted, queue="cpu"):
    """The same in a process of a cpu worker."""


class Listens(Counted):
    """One that sits in hubs."""

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Hears, and keeps nothing."""
