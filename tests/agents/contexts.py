"""Agents that tell in whose call they run."""

import json
from typing import Any

from callsheet import AgentBase, Msg
from callsheet.resources.context import current_call


def context() -> dict[str, Any]:
    mine = current_call()
    return {"job": mine.job, "call": mine.call, "agent": mine.agent, "tenant": mine.tenant,
            "priority": mine.priority, "deadline": mine.deadline, "local": mine.local}


class Tells(AgentBase):
    """Tells its own context and its child's: the child is awaited."""

    def __init__(self, name: str, child: AgentBase | None = None) -> None:
        self.name, self.child = name, child

    async def reply(self, msg: Msg | None = None) -> Msg:
        told = [context()]
        if self.child is not None:
            told += json.loads((await self.child(msg)).get_text_content())
        return Msg(self.name, json.dumps(told), "assistant")


class TellsPlainly(AgentBase):
    """As Tells, in plain code."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg | None = None) -> Msg:
        return Msg(self.name, json.dumps([context()]), "assistant")


class SubmitsTeller(AgentBase):
    """Tells the context of a job that it submits and waits for."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg | None = None) -> Msg:
        told = [context(), *json.loads((await Tells("child").submit(msg)).get_text_content())]
        return Msg(self.name, json.dumps(told), "assistant")
