"""A model's arguments for a tool: checked, and put together with the preset ones."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

from pydantic import ValidationError

from callsheet.messages import ToolUseBlock
from callsheet.messages.forms import form_of
from callsheet.messages.msg import shown
from callsheet.messages.quick import numbers_share_a_hash
from callsheet.tools.registered import RegisteredToolFunction
from callsheet.tools.schemas import Path, Problem, misfits
from callsheet.tools.signature import problems_of

logger = logging.getLogger(__name__)
_SHOWN, _MOST = 10, 100  # problems that are named, and looked for


class Misfit(Exception):
    """A model's arguments do not fit; its text is for the model. Never leaves the tools."""


def given(tool: RegisteredToolFunction, call: ToolUseBlock) -> dict[str, Any]:
    """The arguments that a model gave, once they are known to fit.

    Null for what need not be given, as models say that they do not give it, is left out.

    Raises:
        Misfit: they do not; names each argument that is wrong, and what there is.
    """
    data: Mapping[str, Any] = call
    found = data.get("input")
    found = {} if found is None else found
    if not isinstance(found, dict) or data.get("raw_input"):
        raise Misfit(f"The arguments of {tool.name} are not one whole JSON object: "
                     f"{shown(data.get('raw_input') or found)}. Give them again.")
    if numbers_share_a_hash(found):
        raise Misfit(f"The arguments of {tool.name} hold too many different numbers of one hash.")
    problems = list(islice(_problems(tool, found), _MOST))
    if problems and any(problem.nulls for problem in problems):
        lean = _without(found, [path for problem in problems for path in problem.nulls])
        if next(_problems(tool, lean), None) is None:
            return lean
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "".join(f"\n  {line}" for line in problems[:_SHOWN])
        raise Misfit(f"The arguments of {tool.name} do not fit:{listed}{more}\n{_takes(tool)}")
    return found


def _without(found: dict[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """The arguments without what is null at these paths, in which also names of alternatives may stand."""
    lean = deepcopy(found)
    for path in paths:
        node: Any = lean
        owner: Any = None
        for part in path:
            if isinstance(node, dict) and part in node:
                owner, name, node = node, part, node[part]
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                owner, node = None, node[part]
        if node is None and owner is not None:
            del owner[name]
    return lean


def _problems(tool: RegisteredToolFunction, found: dict[str, Any]) -> Iterator[Problem]:
    signature = tool.signature
    own = found
    if tool.extended_model is not None:
        form = form_of(tool.extended_model)
        own = {name: value for name, value in found.items() if name not in form.schema.get("properties", {})}
        # Where any name is taken, one that the schema does not show may be a field's too.
        mine = signature.fields if signature is not None and signature.open else own
        try:
            form.read({name: value for name, value in found.items() if name not in mine})
        except ValidationError as exc:
            yield from problems_of(exc)
    for name in own:
        if name in tool.preset_kwargs:
            yield Problem(f"{name}: this is not for you to give")
    if signature is None:
        yield from _by_schema(tool, own)
        return
    for name in own:
        known = name in signature.fields or name in tool.preset_kwargs
        if not known and (not signature.open or name == signature.star):
            yield Problem(f"{name}: there is no such argument", [(name,)])
    try:
        signature.converted(own)
    except ValidationError as exc:
        yield from problems_of(exc)


def _takes(tool: RegisteredToolFunction) -> str:
    parameters = tool.extended_json_schema["function"]["parameters"]
    required = parameters.get("required", ())
    names = [f"{name} (required)" if name in required else name for name in parameters["properties"]]
    return f"It takes {', '.join(names) or 'no arguments'}."


def call_arguments(tool: RegisteredToolFunction, found: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments of the function's call, of those that `given` gave and the preset ones."""
    signature = tool.signature
    if signature is None:
        return [], {**found, **tool.preset_kwargs}
    if tool.extended_model is not None and not signature.open:
        # What the function does not take was for the model to think of.
        found = {name: value for name, value in found.items() if name in signature.fields}
    return signature.spread({**signature.converted(found), **tool.preset_kwargs})


def _by_schema(tool: RegisteredToolFunction, found: dict[str, Any]) -> Iterator[Problem]:
    """What does not fit a schema that somebody gave; whether that is one is not known."""
    try:
        yield from misfits(tool.json_schema["function"]["parameters"], found)
    except Exception as exc:  # whatever a broken schema leads to: the tool itself then says what is wrong
        logger.warning("tool_schema_broken tool=%s error=%s: its arguments are not checked", tool.name,
                       type(exc).__name__)
