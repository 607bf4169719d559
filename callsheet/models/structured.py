"""Answers in a form given as a pydantic model: how providers are asked for one, and what of an answer fits it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from callsheet.messages.forms import form_of
from callsheet.messages.pairing import tool_name
from callsheet.models.base import ChatUsage
from callsheet.models.errors import EndpointError

SHOWN_PROBLEMS = 5
"""Fields that are named of those that do not fit."""

MOST_STARTS = 64
"""Places in an answer at which data are looked for."""

_THOUGHTS = re.compile(r"</think(?:ing)?>|\[/THINK\]")
_START = re.compile(r"[{\[]")
_decoder = json.JSONDecoder()
_NOT_STRICT = frozenset({"oneOf", "allOf", "not", "if", "prefixItems", "uniqueItems", "patternProperties",
                         "propertyNames", "contains", "dependentRequired", "dependentSchemas", "unevaluatedProperties"})
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})


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


def response_format(model: type[BaseModel]) -> dict[str, Any]:
    """The `response_format` that makes an endpoint answer with this model's data."""
    loose = form_of(model).schema
    schema, strict = _strict(loose)
    return {"type": "json_schema",
            "json_schema": {"name": tool_name(model.__name__), "schema": schema if strict else loose, "strict": strict}}


def as_tool(model: type[BaseModel]) -> dict[str, Any]:
    """A tool whose arguments are this model's data, for endpoints without `response_format`."""
    return {"type": "function",
            "function": {"name": tool_name(model.__name__), "parameters": form_of(model).schema,
                         "description": (model.__doc__ or "Give the answer in this form.").strip()}}


def _strict(node: Any) -> tuple[Any, bool]:
    """The schema with every object closed and every field required, and whether that could be done.

    It cannot where keys or values are free, as in `dict[str, Any]`, nor with keywords that are not enforced.
    """
    if isinstance(node, list):
        parts = [_strict(item) for item in node]
        return [part for part, _ in parts], all(fine for _, fine in parts)
    if not isinstance(node, dict):
        return node, True
    if "$ref" in node:
        return {"$ref": node["$ref"]}, True  # nothing may stand beside a reference
    fine = bool(node) and not _NOT_STRICT & node.keys()
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "default" or (key == "format" and value not in _FORMATS):
            continue  # which strict endpoints refuse
        if key in ("properties", "$defs"):  # their keys are names, not keywords
            named = {name: _strict(part) for name, part in value.items()}
            out[key] = {name: part for name, (part, _) in named.items()}
            fine = fine and all(ok for _, ok in named.values())
        elif key in ("enum", "const", "required", "additionalProperties"):
            out[key] = value
        else:
            out[key], ok = _strict(value)
            fine = fine and ok
    if node.get("type") == "object":
        fine = fine and "properties" in node and not node.get("additionalProperties")
        out["additionalProperties"] = False
        out["required"] = list(out.get("properties", ()))
    return out, fine
