"""Agents that call a model, and count what it told them they used."""

import asyncio
import os
from typing import Any

from callsheet import AgentBase, Msg
from callsheet.models import OpenAIChatModel
from tests.hanging import for_ever


class Spends(AgentBase):
    """Makes calls, then has children do the same: awaited, or submitted and waited for; tells the tokens of all."""

    def __init__(self, name: str, calls: int = 1, children: list[AgentBase] | None = None, submit: bool = False,
                 fail: bool = False) -> None:
        self.name, self.calls, self.children = name, calls, children or []
        self.submit_them, self.fail = submit, fail
        self.model = OpenAIChatModel("gpt-small", stream=False)

    async def reply(self, msg: Msg | list[Msg] | None = None) -> Msg:
        text = f"{self.name} asks something of some length. It ends here."
        answers: list[Any] = await asyncio.gather(*(self.model([{"role": "user", "content": text}])
                                                    for _ in range(self.calls)))
        tokens = [sum(answer.usage.input_tokens for answer in answers),
                  sum(answer.usage.output_tokens for answer in answers)]
        given = msg if isinstance(msg, list) else [msg] if msg is not None else []
        children = [child.submit(Msg("m", "x", "user")) if self.submit_them else child(Msg("m", "x", "user"))
                    for child in self.children]
        for told in [*given, *await asyncio.gather(*children)]:
            for index, count in enumerate((told.metadata or {}).get("tokens", (0, 0))):
                tokens[index] += count
        if os.environ.get("SPENDERS_HOLD"):
            await for_ever()
        if self.fail:
            raise ValueError(f"{self.name} fails after it spent")
        return Msg(self.name, "done", "assistant", metadata={"tokens": tokens})


class Queues(AgentBase):
    """Asks once, of an endpoint at which calls wait for their turn."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = OpenAIChatModel("m", endpoint="capped", stream=False, generate_kwargs={"user": "1 0.4"})

    async def reply(self, msg: Msg) -> Msg:
        await self.model([{"role": "user", "content": "x"}])
        return Msg(self.name, "done", "assistant")


class SpendsInProcess(Spends, queue="cpu"):
    """The same in a process of a cpu worker."""


class Idle(AgentBase):
    """Calls nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg | None = None) -> Msg:
        return Msg(self.name, "nothing", "assistant")
