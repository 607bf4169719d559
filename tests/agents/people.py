"""Agents that ask people, for the tests of UserAgent."""

from typing import Any

from pydantic import BaseModel, Field, field_validator

from callsheet import AgentBase, Msg, UserAgent
from callsheet.agents import UserInputBase, UserInputData
from callsheet.memory import InMemoryMemory
from tests.agents.side import note, opened


class Address(BaseModel):
    """Where to send it."""

    street: str = Field(description="With the number.")
    floor: int = 0

    @field_validator("street")
    @classmethod
    def _numbered(cls, value: str) -> str:
        if not any(char.isdigit() for char in value):
            raise ValueError("a street without a number")
        return value


class Interviews(AgentBase):
    """Asks a person several things by plain calls of its reply, and waits at a gate before the last."""

    def __init__(self, name: str, questions: int = 2, gate: str = "", notes: str = "", awaits: bool = False) -> None:
        self.name, self.questions, self.gate, self.notes, self.awaits = name, questions, gate, notes, awaits
        self.user = UserAgent("bob")

    async def reply(self, msg: Any = None) -> Msg:
        answers = []
        note(self.notes, "begins")
        for number in range(self.questions):
            if number == self.questions - 1:
                await opened(self.gate)
            asked = Msg(self.name, f"question {number}", "assistant")
            heard = await self.user(asked) if self.awaits else await self.user.reply(asked)
            note(self.notes, f"heard {heard.content}")
            answers.append(heard.content)
        return Msg(self.name, ", ".join(answers), "assistant")

    async def handle_interrupt(self, msg: Any = None) -> Msg:
        return Msg(self.name, "interrupted", "assistant")


class Remembers(AgentBase):
    """With state: one turn at a time, also while a person thinks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory = InMemoryMemory()

    async def reply(self, msg: Msg) -> Msg:
        await self.memory.add(msg)
        heard = await UserAgent("bob").reply(msg)
        await self.memory.add(heard)
        said = [one.content for one in await self.memory.get_memory()]
        return Msg(self.name, " ".join(map(str, said)), "assistant")


class Fails(AgentBase):
    """Fails once after it was answered."""

    def __init__(self, key: str) -> None:
        self.key = key

    async def reply(self, msg: Msg) -> Msg:
        from tests.agents.side import side

        heard = await UserAgent("bob").reply(msg)
        if side().incr(self.key) == 1:
            raise ConnectionError("no luck")
        return Msg("fails", heard.content, "assistant")


class Counts(AgentBase):
    """Counts what a fan-out gave, and the characters of the first."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msgs: Any) -> Msg:
        flat = [msg for item in msgs for msg in (item if isinstance(item, list) else [item])]
        return Msg(self.name, f"{len(flat)} messages, the first {len(flat[0].content)}", "assistant")


def says_yes(msg: Msg, agent_name: str) -> str:
    return f"{agent_name}: yes to {msg.content}"


async def gives_address(structured_model: type[BaseModel], **_: Any) -> UserInputData:
    return UserInputData([{"type": "text", "text": "here"}], {"street": "Main 1"})


class Parrot(UserInputBase):
    """An input method in AgentScope's form."""

    def __init__(self, word: str) -> None:
        self.word = word

    async def __call__(self, agent_id: str, agent_name: str, *args: Any, **kwargs: Any) -> UserInputData:
        return UserInputData([{"type": "text", "text": f"{self.word} {agent_name}"}])
