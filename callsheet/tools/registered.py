"""What a toolkit keeps of a tool and of a group of tools."""

import math
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from callsheet.errors import ToolError, UsageError
from callsheet.messages import ToolUseBlock
from callsheet.messages.forms import form_of
from callsheet.settings.queues import wrong_with_name
from callsheet.tools.response import ToolResponse
from callsheet.tools.signature import Signature, signature_of, without_titles

ToolFunction = Callable[..., Any]
Postprocess = Callable[[ToolUseBlock, ToolResponse], ToolResponse | Awaitable[ToolResponse | None] | None]
NamesakeStrategy = Literal["override", "skip", "raise", "rename"]


@dataclass
class ToolGroup:
    """A group of tools that are offered to the model together."""

    name: str  # of the group
    active: bool  # whether its tools are offered
    description: str  # what they are for, for the model that chooses among groups
    notes: str | None = None  # how to use them, for the system prompt


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a function's schema is made."""

    description: str | None = None  # in place of the docstring's
    schema: dict[str, Any] | None = None
    """In place of the function's own; arguments are then checked against it and handed on as they are."""
    long: bool = True  # whether the docstring's long description belongs to it
    positional: bool = False  # whether a model may give the function's `*args`
    keyword: bool = False  # whether a model may give its `**kwargs`

    def signature(self, function: ToolFunction, hidden: frozenset[str]) -> Signature:
        """What the function takes."""
        return signature_of(function, hidden=hidden, long=self.long, positional=self.positional, keyword=self.keyword)

    def json_schema(self, name: str, function: ToolFunction, hidden: frozenset[str]) -> dict[str, Any]:
        """The schema as models are given it."""
        if self.schema is not None:
            whole = deepcopy(self.schema)
        else:
            signature = self.signature(function, hidden)
            told = {"description": signature.description} if signature.description else {}
            whole = {"type": "function",
                     "function": {"name": name, **told, "parameters": deepcopy(signature.parameters)}}
        whole["function"]["name"] = name
        if self.description:
            whole["function"]["description"] = self.description
        parameters = whole["function"].setdefault("parameters", {})
        parameters.setdefault("type", "object")
        parameters.setdefault("properties", {})
        for parameter in hidden:
            parameters["properties"].pop(parameter, None)
        if "required" in parameters:
            parameters["required"] = [one for one in parameters["required"] if one not in hidden]
            if not parameters["required"]:
                del parameters["required"]
        return dict(whole)


@dataclass
class RegisteredToolFunction:
    """A tool of a toolkit."""

    name: str  # what the model calls it
    group: str  # "basic", or one of the toolkit's groups
    source: Literal["function", "mcp_server"]
    original_func: ToolFunction  # what is called
    json_schema: dict[str, Any]  # as models are given it, without `preset_kwargs`
    preset_kwargs: dict[str, Any] = field(default_factory=dict)  # arguments that the model neither sees nor gives
    original_name: str | None = None  # the function's own name, or the server's, where the tool has another
    extended_model: type[BaseModel] | None = None  # more arguments that the model is asked for
    mcp_name: str | None = None  # of the MCP client that it comes from
    postprocess_func: Postprocess | None = None  # gets the model's call and each response; may give another response
    timeout: float | None = None
    """Seconds for a call, its retries and its wait for a thread or a worker included."""
    retries: int = 0  # how often a call that raised is tried again
    queue: str | None = None  # of the workers that run it; None: where the agent runs
    reading: Reading = Reading()  # how its schema is made

    def __post_init__(self) -> None:
        number = isinstance(self.timeout, (int, float)) and not isinstance(self.timeout, bool)
        if self.timeout is not None and not (number and math.isfinite(self.timeout) and self.timeout > 0):
            raise UsageError(f"The tool {self.name}: timeout={self.timeout!r}: seconds over 0 are needed.")
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise UsageError(f"The tool {self.name}: retries={self.retries!r}: a whole number, 0 or more, is needed.")
        if self.queue is not None:
            wrong = wrong_with_name(self.queue) if isinstance(self.queue, str) else f"{self.queue!r} is no text"
            if self.source != "function":
                wrong = wrong or "a tool of an MCP server has none"
            if wrong:
                raise UsageError(f"The tool {self.name}: queue={self.queue!r}: {wrong}.")

    @property
    def signature(self) -> Signature | None:
        """What the function takes; None where a schema was given in its place."""
        if self.reading.schema is not None:
            return None
        return self.reading.signature(self.original_func, frozenset(self.preset_kwargs))

    @property
    def extended_json_schema(self) -> dict[str, Any]:
        """`json_schema` with the arguments of the extended model.

        Raises:
            ToolError: an argument or a definition of the same name is there already.
        """
        if self.extended_model is None:
            return self.json_schema
        more = without_titles(form_of(self.extended_model).schema)
        merged = deepcopy(self.json_schema)
        parameters = merged["function"]["parameters"]
        for name, schema in more.get("properties", {}).items():
            if name in parameters["properties"]:
                raise ToolError(f"The tool {self.name} has an argument {name!r} of its own. Rename that field of "
                                f"{self.extended_model.__name__}.")
            parameters["properties"][name] = schema
        for name, schema in more.get("$defs", {}).items():
            if parameters.setdefault("$defs", {}).setdefault(name, schema) != schema:
                raise ToolError(f"The tool {self.name} has another definition {name!r} of its own. Rename that class, "
                                f"which {self.extended_model.__name__} uses.")
        if more.get("required"):
            parameters["required"] = [*parameters.get("required", ()), *more["required"]]
        return merged


def names_in(given: Any, what: str) -> list[str]:
    """A name or a list of names as a list.

    Raises:
        UsageError: it is neither.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{what} is {given!r:.200}: a name or a list of names is needed.")
    return names
