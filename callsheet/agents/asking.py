"""How an agent gets an answer from a person: what supplies one, and what runs the agent has to offer."""

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from callsheet.agents.base import AgentBase
from callsheet.messages import Msg, Recorded
from callsheet.messages.blocks import ContentBlock


@dataclass
class UserInputData:
    """What a person answered.

    Attributes:
        blocks_input: the answer as content blocks.
        structured_input: the data of a `structured_model`, if one was asked for.
    """

    blocks_input: list[ContentBlock] | None = None
    structured_input: dict[str, Any] | None = None


class UserInputBase(Recorded):
    """Base of what supplies a person's answers. It travels with its agent, as the arguments of its constructor."""

    @abstractmethod
    async def __call__(self, agent_id: str, agent_name: str, *args: Any,
                       structured_model: type[BaseModel] | None = None, **kwargs: Any) -> UserInputData:
        """Get an answer.

        Args:
            agent_id: of the agent that asks.
            agent_name: likewise.
            args: nothing yet.
            structured_model: the form of data that the answer must have.
            kwargs: `msg`, what is to be answered: a Msg, a list of them or None.
        """


class Asker(Protocol):
    """Whoever runs the agent, where that has a way to ask a person."""

    async def ask(self, agent: AgentBase, msg: Msg | list[Msg] | None,
                  structured_model: type[BaseModel] | None) -> UserInputData:
        """Ask, and wait for the answer, however long that takes."""

    def waiting(self) -> AbstractAsyncContextManager[object]:
        """To be put around a wait for a person: what the agent holds is given back meanwhile."""


#: Set while a call runs as a job on a worker.
asker: ContextVar[Asker | None] = ContextVar("callsheet_asker", default=None)


def question_of(msg: Msg | list[Msg] | None) -> Msg | None:
    """The message to be answered: the last of several."""
    if isinstance(msg, list):
        return msg[-1] if msg else None
    return msg
