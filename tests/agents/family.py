"""Agents that tell which calls theirs come from."""

import asyncio
from typing import Any

from celery import current_task

import callsheet
from callsheet import AgentBase, FanoutPipeline, Msg, SequentialPipeline
from tests.agents.gated import CpuGated, Gated


def who() -> dict[str, Any]:
    request = current_task.request
    return {"id": request.id, "parent": request.parent_id, "root": request.root_id}


class Child(AgentBase):
    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Any = None) -> Msg:
        return Msg(self.name, "here", "assistant", metadata=who())


class CpuChild(AgentBase):
    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Any = None) -> Msg:
        return Msg(self.name, "here", "assistant", metadata=who())


class Parent(AgentBase):
    """Calls others in each way there is; tells what each said of itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        child = Child("c")
        heard = {"awaited": await child(msg), "submitted": await child.submit(msg), "cpu": await CpuChild("c")(msg),
                 "thread": await (await asyncio.to_thread(child.submit, msg)),
                 "mapped": await anext(aiter(callsheet.map(child, [msg]))),
                 "piped": await SequentialPipeline([child])(msg),
                 "branch": (await FanoutPipeline([child])(msg))[0]}
        return Msg(self.name, "all", "assistant",
                   metadata={"me": who(), **{way: reply.metadata for way, reply in heard.items()}})


class CpuParent(Parent, queue="cpu"):
    """The same in a process of a cpu worker."""


class Spills(AgentBase):
    """Puts what it should keep to itself into an error."""

    def __init__(self, key: str) -> None:
        self.key = key

    async def reply(self, msg: Any = None) -> Msg:
        raise ValueError(f"it is {self.key}")


class Panel(AgentBase):
    """Has a reviewer on each kind of worker at work at once, who wait at a gate that is a file."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder

    async def reply(self, msg: Msg) -> Msg:
        await asyncio.gather(Reviewer("alice", self.folder)(msg), Scorer("scores", self.folder)(msg))
        return Msg(self.name, "Accepted, with two remarks.", "assistant")


class Reviewer(Gated):
    def __init__(self, name: str, folder: str) -> None:
        super().__init__(folder, name)


class Scorer(CpuGated):
    def __init__(self, name: str, folder: str) -> None:
        super().__init__(folder, name)
