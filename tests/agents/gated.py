"""Agents that wait at a gate which is a file, and note in files when they start and end: Redis may be out of reach."""

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from callsheet import AgentBase, ElasticGroup, Msg, MsgHub
from callsheet.hub.elastic_state import NOTICE
from tests.agents.basic import Echo
from tests.agents.hubs import Talker
from tests.hanging import for_ever


def mark(folder: str, what: str, name: str) -> None:
    """Add a line `name` to the file `what`."""
    with open(Path(folder) / what, "a") as file:
        file.write(f"{name}\n")


class Gated(AgentBase):
    """Ends once the folder has a file `gate`."""

    def __init__(self, folder: str, name: str = "gated", size: int = 0, gate: str = "gate") -> None:
        self.folder = folder
        self.name = name
        self.size = size
        self.gate = gate

    async def reply(self, msg: Any = None) -> Msg:
        mark(self.folder, "started", self.name)
        while not (Path(self.folder) / self.gate).exists():
            await asyncio.sleep(0.02)
        mark(self.folder, "ended", self.name)
        return Msg(self.name, "x" * self.size or "through", "assistant")


class CpuGated(AgentBase):
    """The same in plain code."""

    def __init__(self, folder: str, name: str = "gated", size: int = 0) -> None:
        self.folder = folder
        self.name = name
        self.size = size

    def reply(self, msg: Any = None) -> Msg:
        mark(self.folder, "started", self.name)
        while not (Path(self.folder) / "gate").exists():
            time.sleep(0.02)
        mark(self.folder, "ended", self.name)
        return Msg(self.name, "x" * self.size or "through", "assistant")


class Blocking(Gated):
    """Never lets its loop go on for longer than a moment, a second at a time, until the folder has a file `gate`."""

    async def reply(self, msg: Any = None) -> Msg:
        mark(self.folder, "started", self.name)
        gate = Path(self.folder) / "gate"
        while not gate.exists():
            moment = time.monotonic() + 1.0
            while time.monotonic() < moment and not gate.exists():
                time.sleep(0.02)
            await asyncio.sleep(0)
        return Msg(self.name, "through", "assistant")


class Asks(Gated):
    """Once through, asks another agent."""

    async def reply(self, msg: Msg) -> Msg:
        await Gated.reply(self, msg)
        return await Echo("bob")(msg)


class Prints(Gated):
    """Once through, prints."""

    async def reply(self, msg: Any = None) -> Msg:
        out = await Gated.reply(self, msg)
        await self.print(out)
        return out


class Chatters(Gated):
    """Prints now and then, until it is through and has printed six times."""

    async def reply(self, msg: Any = None) -> Msg:
        for number in range(6):
            mark(self.folder, "printed", str(number))
            await self.print(Msg("c", str(number), "assistant"))
            await asyncio.sleep(0.2)
        return await Gated.reply(self, msg)


class Convenes(Gated):
    """Once through, changes a hub in the ways that are not awaited."""

    async def reply(self, msg: Any = None) -> Msg:
        hub = MsgHub.open(f"of {self.name}")
        await Gated.reply(self, msg)
        return convened(hub)


class CpuConvenes(CpuGated):
    """The same in plain code."""

    def reply(self, msg: Any = None) -> Msg:
        hub = MsgHub.open(f"of {self.name}")
        CpuGated.reply(self, msg)
        return convened(hub)


def convened(hub: MsgHub) -> Msg:
    stays, goes = Talker("stays"), Talker("goes")
    hub.add([stays, goes])
    hub.broadcast_nowait(Msg("host", "welcome " + "x" * 100_000, "user"))
    hub.set_auto_broadcast(False)
    hub.delete(goes)
    return Msg("host", f"{len(hub.participants)} {hub.enable_auto_broadcast}", "assistant")


class GatedGroup(ElasticGroup):
    """Hears once it is through that a piece of work was done."""

    def __init__(self, folder: str) -> None:
        super().__init__(Talker("rev"), max=1)
        self.folder = folder

    async def reply(self, msg: Any = None) -> Any:
        if "ended" in msg.metadata[NOTICE]:
            await Gated(self.folder, "group").reply()
        return await super().reply(msg)


class FailsOnce(Gated):
    """Once through, raises the first time."""

    async def reply(self, msg: Any = None) -> Msg:
        await Gated.reply(self, msg)
        mark(self.folder, "tries", self.name)
        if (Path(self.folder) / "tries").read_text().count("\n") == 1:
            raise ConnectionError("the first try fails")
        return Msg(self.name, "the second try", "assistant")


class Stuck(Gated):
    """Once through, never ends."""

    async def reply(self, msg: Any = None) -> Msg:
        await Gated.reply(self, msg)
        await for_ever()
        raise AssertionError


class Unyielding(AgentBase):
    """Does not end at its soft time limit."""

    async def reply(self, msg: Any = None) -> Msg:
        with contextlib.suppress(SoftTimeLimitExceeded):
            await for_ever()
        await for_ever()
        raise AssertionError


class Ticks(AgentBase):
    """Marks every 50 ms that the loop turns, until the folder has a file `over`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    async def reply(self, msg: Any = None) -> Msg:
        while not (Path(self.folder) / "over").exists():
            mark(self.folder, "ticks", "tick")
            await asyncio.sleep(0.05)
        return Msg("ticks", "over", "assistant")


@shared_task(name="tests.gated_task")
async def gated_task(folder: str, name: str) -> str:
    """A user's own task that does the same."""
    await Gated(folder, name).reply()
    return name


class Keeps(Gated):
    """Counts its calls, as state."""

    def __init__(self, folder: str, name: str = "keeps") -> None:
        super().__init__(folder, name)
        self.count = 0
        self.register_state("count")

    async def reply(self, msg: Any = None) -> Msg:
        await Gated.reply(self, msg)
        self.count += 1
        return Msg(self.name, str(self.count), "assistant")


class CpuKeeps(Keeps, queue="cpu"):
    """The same in a process of a cpu worker."""


class Tells(AgentBase):
    """Takes a moment; notes in which process it begins and ends what."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    async def reply(self, msg: Msg) -> Msg:
        mark(self.folder, "begun", f"{msg.content} {os.getpid()}")
        await asyncio.sleep(self.seconds)
        mark(self.folder, "ended", str(msg.content))
        return Msg("tells", msg.content, "assistant")
