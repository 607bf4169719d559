"""Agents whose replies tell exactly what they were given; for comparing pipelines."""

import asyncio
import os
import time
from typing import Any

from celery import current_task

from callsheet import AgentBase, Msg
from tests.agents.side import note, opened, side


def told(value: Any) -> str:
    """A message, or lists of them, as text; the error that stands for a failed branch without its ids."""
    if isinstance(value, list):
        return "[" + ",".join(map(told, value)) + "]"
    if value is None:
        return "-"
    error = value.metadata.get("error") if value.metadata else None
    if error:
        return f"!{error['type'].rpartition('.')[2]}@{error['branch']}"
    return value.get_text_content() or ""


class Tag(AgentBase):
    """Puts its name around what it was given."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Any = None, mood: str = "") -> Msg:
        return Msg(self.name, f"{self.name}{mood}({told(msg)})", "assistant")


class CpuTag(AgentBase):
    """The same on a cpu worker."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Any = None, mood: str = "") -> Msg:
        return Msg(self.name, f"{self.name}{mood}({told(msg)})", "assistant")


class Broken(AgentBase):
    """Raises."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Any = None, mood: str = "") -> Msg:
        raise ValueError(f"{self.name} broke")


class Odd(BaseException):
    """Of the kind that `except Exception` does not catch."""


ODD = {error.__name__: error for error in (MemoryError, Odd)}


class Raises(AgentBase):
    """Raises what is not met every day."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind

    async def reply(self, msg: Any = None) -> Msg:
        raise ODD[self.kind]("too much")


class CpuRaises(AgentBase):
    """The same on a cpu worker."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind

    def reply(self, msg: Any = None) -> Msg:
        raise ODD[self.kind]("too much")


class Several(AgentBase):
    """Replies with a list, or with None where `count` is 0."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count

    async def reply(self, msg: Any = None, mood: str = "") -> list[Msg] | None:
        return [Msg(self.name, f"{self.name}{i}", "assistant") for i in range(self.count)] or None


class Timed(AgentBase):
    """Takes `seconds` and tells when it began and ended."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name = name
        self.seconds = seconds

    async def reply(self, msg: Any = None) -> Msg:
        began = time.time()
        await asyncio.sleep(self.seconds)
        return Msg(self.name, told(msg), "assistant", metadata={"began": began, "ended": time.time()})


class Gated(AgentBase):
    """Notes that it began, waits for a key, notes that it ended (or was cancelled)."""

    def __init__(self, name: str, gate: str, notes: str = "") -> None:
        self.name = name
        self.gate = gate
        self.notes = notes

    async def reply(self, msg: Any = None) -> Msg:
        note(self.notes, f"{self.name} began")
        note(self.notes and f"{self.notes}:ids", current_task.request.id)
        try:
            await opened(self.gate)
        except asyncio.CancelledError:
            note(self.notes, f"{self.name} cancelled")
            raise
        note(self.notes, f"{self.name} ended")
        return Msg(self.name, f"{self.name}:open", "assistant")


class Noting(AgentBase):
    """Notes that it ran."""

    def __init__(self, name: str, notes: str) -> None:
        self.name = name
        self.notes = notes

    async def reply(self, msg: Any = None) -> Msg:
        note(self.notes, self.name)
        return Msg(self.name, told(msg), "assistant")


class Dies(AgentBase):
    """Ends its process without a word."""

    def __init__(self, name: str, notes: str = "", times: int = 1_000_000) -> None:
        self.name = name
        self.notes = notes
        self.times = times

    def reply(self, msg: Any = None) -> Msg:
        note(self.notes, str(os.getpid()))
        if not self.notes or side().llen(self.notes) <= self.times:
            os._exit(7)
        return Msg(self.name, "alive", "assistant")
