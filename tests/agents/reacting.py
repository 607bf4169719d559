"""What ReAct agents on workers need: a form, and a tool that waits."""

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
