"""What ReAct agents on workers need: a form, a tool that waits, and an answer that shows the prompt."""

from typing import Any

from pydantic import BaseModel, Field

from tests.agents.side import note, opened


class Total(BaseModel):
    """A sum."""

    amount: int = Field(ge=0)
    currency: str = "EUR"


async def wait_at(gate: str, notes: str) -> str:
    """Wait until a key is set."""
    note(notes, "waits")
    await opened(gate)
    return "passed"


def roles(messages: list[dict[str, Any]], **_: Any) -> str:
    """An answer that tells what the model was shown."""
    return " ".join(message["role"] for message in messages)
