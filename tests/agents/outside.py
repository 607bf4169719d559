"""Marks that something ran that should not have; under an allowed module, so that workers may import it."""

from tests.agents.side import side


def mark(text: str = "ran") -> str:
    """A function of an allowed module, which no message may have called."""
    side().rpush("marks", text)
    return text


class NoAgent:
    """A class of an allowed module that is not made to travel."""

    def __init__(self, *args: object) -> None:
        mark("NoAgent")
