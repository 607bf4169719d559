"""A small review team for the job trees: pipelines, children, children's children, failures and retries."""

import asyncio
import os
import signal
from pathlib import Path

from callsheet import AgentBase, Msg, SequentialPipeline
from callsheet.models import OpenAIChatModel


class Writer(AgentBase):
    """Asks a model, after a while."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds
        self.model = OpenAIChatModel("gpt-small", stream=False)

    async def reply(self, msg: Msg | list[Msg]) -> Msg:
        await asyncio.sleep(self.seconds)
        answer = await self.model([{"role": "user", "content": "A long question. It goes on. And it ends here."}])
        return Msg(self.name, answer.content, "assistant")


class Lead(AgentBase):
    """Has others work: awaits two at once, submits a pipeline and waits for it; may wait for a file before it ends."""

    def __init__(self, name: str, gate: str = "", depth: int = 1, seconds: float = 0.0) -> None:
        self.name, self.gate, self.depth, self.seconds = name, gate, depth, seconds

    async def reply(self, msg: Msg | list[Msg]) -> Msg:
        ask = Msg(self.name, "work", "user")
        below = [Writer("draft", self.seconds), Lead("deputy", self.gate, self.depth - 1, self.seconds)
                 if self.depth else Waits("waits", self.gate)]
        await asyncio.gather(*(agent(ask) for agent in below))
        await SequentialPipeline([Writer("one", self.seconds), Measures("two")]).submit(ask)
        return Msg(self.name, "done", "assistant")


class Waits(AgentBase):
    """Waits for a file, if it is given one."""

    def __init__(self, name: str, gate: str = "") -> None:
        self.name, self.gate = name, gate

    async def reply(self, msg: Msg) -> Msg:
        while self.gate and not Path(self.gate).exists():
            await asyncio.sleep(0.02)
        return Msg(self.name, "done", "assistant")


class Measures(AgentBase):
    """Plain code, in a process of a cpu worker."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg | list[Msg]) -> Msg:
        return Msg(self.name, str(sum(range(300_000))), "assistant")


class Breaks(AgentBase):
    """Fails, with a secret in what it says."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg | list[Msg]) -> Msg:
        raise ValueError(f"{self.name} cannot go on with api_key=sk-abcdefghijklmnop1234 " + "and so on " * 60)


class Dies(AgentBase, queue="cpu"):
    """Takes its process with it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg) -> Msg:
        os.kill(os.getpid(), signal.SIGKILL)
        return msg


class Remembers(Waits):
    """One with state, whose replies run one at a time."""

    def __init__(self, name: str, gate: str = "") -> None:
        super().__init__(name, gate)
        self.turns = 0
        self.register_state("turns")

    async def reply(self, msg: Msg) -> Msg:
        self.turns += 1
        return await Waits.reply(self, msg)
