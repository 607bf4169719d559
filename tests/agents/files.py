"""Agents that wait for a file, and say in one when they start: Redis may be out of reach."""

import asyncio
import time
from pathlib import Path

from callsheet import AgentBase, Msg


def started(folder: str, text: str) -> None:
    with (Path(folder) / "started").open("a") as file:
        file.write(f"{text}\n")


class Patient(AgentBase):
    """Replies once there is a file `go` in the folder."""

    def __init__(self, folder: str) -> None:
        self.name, self.folder = "patient", folder

    async def reply(self, msg: Msg) -> Msg:
        started(self.folder, msg.get_text_content() or "")
        while not (Path(self.folder) / "go").exists():
            await asyncio.sleep(0.02)
        return Msg(self.name, f"done {msg.get_text_content()}", "assistant")


class PatientInAProcess(AgentBase):
    """The same on a cpu worker."""

    def __init__(self, folder: str) -> None:
        self.name, self.folder = "patient", folder

    def reply(self, msg: Msg) -> Msg:
        started(self.folder, msg.get_text_content() or "")
        while not (Path(self.folder) / "go").exists():
            time.sleep(0.02)
        return Msg(self.name, f"done {msg.get_text_content()}", "assistant")
