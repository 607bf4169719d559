"""Small agents for the tests."""

import asyncio
import os
import time

from callsheet import AgentBase, Msg


class Echo(AgentBase):
    """Says what it heard, with its name before it."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg | list[Msg] | None = None) -> Msg:
        heard = msg if isinstance(msg, list) else [msg] if msg else []
        return Msg(self.name, f"{self.name}:" + "+".join(m.get_text_content() or "" for m in heard), "assistant")


class Compute(AgentBase):
    """Counts words on a cpu worker."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg) -> Msg:
        words = len((msg.get_text_content() or "").split())
        return Msg(self.name, f"{self.name}:{words}", "assistant", metadata={"pid": os.getpid(), "words": words})


class Failing(AgentBase):
    def __init__(self, name: str = "failing", times: int = 1_000_000, key: str = "") -> None:
        self.name = name

    async def reply(self, msg: Msg | None = None) -> Msg:
        raise ValueError("no luck today")


class Sleeper(AgentBase):
    def __init__(self, seconds: float, name: str = "sleeper") -> None:
        self.seconds = seconds
        self.name = name

    async def reply(self, msg: Msg | None = None) -> Msg:
        await asyncio.sleep(self.seconds)
        return Msg(self.name, "awake", "assistant", metadata={"at": time.time()})


class Chatty(AgentBase):
    """Prints, and has others print: one that it awaits, and one whose job it submits."""

    def __init__(self, name: str, depth: int = 1) -> None:
        self.name = name
        self.depth = depth

    async def reply(self, msg: Msg) -> Msg:
        if self.depth:
            await Chatty(f"{self.name}.awaited", 0)(msg)
            await Chatty(f"{self.name}.submitted", 0).submit(msg)
        out = Msg(self.name, "done", "assistant")
        await self.print(out)
        return out
