"""Agents that note each of their runs in a folder that the message names."""

import asyncio
from pathlib import Path

from callsheet import AgentBase, Msg, SequentialPipeline


class Counted(AgentBase):
    """Texts with `wait` in them wait for the file `gate`; those with `fail` fail until there is a file `mended`."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        text, folder = msg.get_text_content() or "", Path(str(msg.metadata["folder"]))
        with (folder / "runs").open("a") as runs:
            runs.write(f"{self.name} {text}\n")
        while "wait" in text and not (folder / "gate").exists():
            await asyncio.sleep(0.02)
        if "fail" in text and not (folder / "mended").exists():
            raise ValueError("not mended")
        return Msg(self.name, f"{self.name}:{text}", "assistant", metadata=msg.metadata)


class Count(AgentBase):
    """Counts words on the cpu worker."""

    def reply(self, msg: Msg) -> Msg:
        return Msg("count", str(len((msg.get_text_content() or "").split())), "assistant", metadata=msg.metadata)


first, second = Counted("first"), Counted("second")
chain = SequentialPipeline([first, second])
agent = Counted("only")
count = Count()
