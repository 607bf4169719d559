"""Answers in a form given as a pydantic model: checked, and asked for once more where they do not fit."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from callsheet.messages.forms import form_of
from callsheet.models.base import ChatUsage
from callsheet.models.errors import EndpointError

SHOWN_PROBLEMS = 5
"""Fields that are named of those that do not fit."""

MOST_STARTS = 64
"""Places in an answer at which data are looked for."""

_THOUGHTS = re.compile(r"</think(?:ing)?>|\[/THINK\]")
_START = re.compile(r"[{\[]")
_decoder = json.JSONDecoder()


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
    """The data of an answer's text, which may stand in a code fence, behind thoughts or amid prose.

    Raises:
        ValidationError: it does not fit.
    """
    form, wrong = form_of(model), None
    for candidate in _candidates(text):
        try:
            return form.read(candidate)
        except ValidationError as exc:
            if wrong is None or wrong.errors()[0]["type"] == "json_invalid":
                wrong = exc  # what is JSON, and does not fit, tells more
    assert wrong is not None
    raise wrong


def _candidates(text: str) -> Iterator[str]:
    """Where an answer's data may be: all of it, or a JSON text behind its thoughts, the last first."""
    yield text.strip()
    after = _THOUGHTS.split(text)[-1]
    found: list[str] = []
    start = 0
    for _ in range(MOST_STARTS):
        beginning = _START.search(after, start)
        if beginning is None:
            break
        try:
            _, start = _decoder.raw_decode(after, beginning.start())
            found.append(after[beginning.start():start])
        except (ValueError, RecursionError):
            start = beginning.start() + 1
    yield from reversed(found)


def added(one: ChatUsage | None, other: ChatUsage | None) -> ChatUsage | None:
    """What two calls cost together; `metadata` is the later one's."""
    if one is None or other is None:
        return one or other
    return ChatUsage(one.input_tokens + other.input_tokens, one.output_tokens + other.output_tokens,
                     one.time + other.time, metadata=other.metadata)
