"""Agents and models for the tests of streams of prints."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from callsheet import AgentBase, Msg
from callsheet.models import ChatModelBase, ChatResponse
from tests.agents.side import note, opened, side


class Dictates(AgentBase):
    """Prints a message of `words` words, one word more each time; notes the number of the run first."""

    def __init__(self, name: str, words: int, pause: float = 0.0, gate: str = "", gate_at: int = 0,
                 notes: str = "") -> None:
        self.name, self.words, self.pause = name, words, pause
        self.gate, self.gate_at, self.notes = gate, gate_at, notes

    async def reply(self, msg: Any = None) -> Msg:
        note(self.notes)
        out = Msg(self.name, "", "assistant")
        for number in range(self.words):
            if self.gate and number == self.gate_at:
                await opened(self.gate)
            out.content += f"{number} "
            await self.print(out, last=number == self.words - 1)
            if self.pause:
                await asyncio.sleep(self.pause)
        return out


class Delegates(AgentBase):
    """Has another agent print by a plain call of its reply, in a subtask, and in a thread with a loop of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msg: Any = None) -> Msg:
        inner = [Dictates(f"{self.name}.{number}", 3) for number in range(3)]
        await inner[0].reply()
        await asyncio.gather(inner[1].reply())
        await asyncio.to_thread(lambda: asyncio.run(inner[2].reply()))
        out = Msg(self.name, "done", "assistant")
        await self.print(out)
        return out


class Computes(AgentBase):
    """Prints in plain code."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Any = None) -> Msg:
        out = Msg(self.name, "", "assistant")
        for number in range(3):
            out.content += f"{number} "
            asyncio.run(self.print(out, number == 2))
        return out


class Recalls(Computes):
    """The same with state."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.count = 0
        self.register_state("count")


class FailsHalfway(AgentBase):
    """Prints half a message and raises, as often as told."""

    def __init__(self, name: str, key: str, times: int = 1) -> None:
        self.name, self.key, self.times = name, key, times
        self.tries = 0  # of this process, where there is no Redis

    async def reply(self, msg: Msg) -> Msg:
        out = Msg(self.name, "half", "assistant")
        await self.print(out, last=False)
        tried = side().incr(self.key)
        if tried <= self.times:
            raise ConnectionError("broken off")
        out.content = "half and half"
        await self.print(out)
        return out


class Whispers(ChatModelBase):
    """Answers with growing text, a word at a time."""

    def __init__(self, words: int, pause: float) -> None:
        super().__init__("whispers", True)
        self.words, self.pause = words, pause

    async def __call__(self, messages: list[dict[str, Any]], *args: Any, **kwargs: Any
                       ) -> AsyncGenerator[ChatResponse, None]:
        return self._growing()

    async def _growing(self) -> AsyncGenerator[ChatResponse, None]:
        response = ChatResponse(content=[])
        for number in range(1, self.words + 1):
            yield replace(response, content=[{"type": "text", "text": " ".join(map(str, range(number)))}])
            await asyncio.sleep(self.pause)
