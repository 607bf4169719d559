"""Answers in a form given as a pydantic model: checked, and asked for once more where they do not fit."""

from typing import Any

from pydantic import BaseModel, ValidationError

from callsheet.models.base import ChatUsage
from callsheet.models.errors import EndpointError

SHOWN_PROBLEMS = 5
"""Fields that are named of those that do not fit."""


class Misfit(Exception):
    """An answer that does not have the form asked for, and may be asked for again; never leaves the models.

    Args:
        answer: what the model said.
        problems: what does not fit, a field after the other.
        error: what the caller gets if the second answer does not fit either.
        usage: of this call.
    """

    def __init__(self, answer: str, problems: str, error: EndpointError, usage: ChatUsage | None = None) -> None:
        super().__init__(answer, problems, error)
        self.answer = answer
        self.problems = problems
        self.error = error
        self.usage = usage

    def request(self) -> str:
        """What the model is told, to answer again."""
        return (f"That answer does not have the form asked for. What is wrong with it: {self.problems}. "
                "Give the whole answer again in that form, corrected, and nothing else.")


def problems_of(exc: ValidationError) -> str:
    """What does not fit, in words."""
    errors = exc.errors(include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, error['loc'])) or 'the whole'}: {error['msg']}"
                     for error in errors[:SHOWN_PROBLEMS])


def read_fitting(model: type[BaseModel], text: str) -> dict[str, Any]:
    """The data of an answer's text, which may stand in a code fence.

    Raises:
        ValidationError: it does not fit.
    """
    fenced = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    return model.model_validate_json(fenced).model_dump(mode="json")


def added(one: ChatUsage | None, other: ChatUsage | None) -> ChatUsage | None:
    """What two calls cost together; `metadata` is the later one's."""
    if one is None or other is None:
        return one or other
    return ChatUsage(one.input_tokens + other.input_tokens, one.output_tokens + other.output_tokens,
                     one.time + other.time, metadata=other.metadata)
