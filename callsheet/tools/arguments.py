"""A model's arguments for a tool: checked, and put together with the preset ones."""

import importlib
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from callsheet.messages import ToolUseBlock
from callsheet.messages.forms import form_of
from callsheet.tools.registered import RegisteredToolFunction
from callsheet.tools.signature import problems_of, shown

logger = logging.getLogger(__name__)
_SHOWN = 10  # problems that are named of those there are


class Misfit(Exception):
    """A model's arguments do not fit; its text is for the model. Never leaves the tools."""


def given(tool: RegisteredToolFunction, call: ToolUseBlock) -> dict[str, Any]:
    """The arguments that a model gave, once they are known to fit.

    Raises:
        Misfit: they do not; names each argument that is wrong, and what there is.
    """
    data: Mapping[str, Any] = call
    found = data.get("input")
    found = {} if found is None else found
    if not isinstance(found, dict) or data.get("raw_input"):
        raise Misfit(f"The arguments of {tool.name} are not one whole JSON object: "
                     f"{shown(data.get('raw_input') or found)}. Give them again.")
    problems = list(_problems(tool, found))
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "".join(f"\n  {line}" for line in problems[:_SHOWN])
        raise Misfit(f"The arguments of {tool.name} do not fit:{listed}{more}\n{_takes(tool)}")
    return found


def _problems(tool: RegisteredToolFunction, found: dict[str, Any]) -> Iterator[str]:
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
            yield f"{name}: this is not for you to give"
    if signature is None:
        yield from _by_schema(tool, own)
        return
    for name in own:
        known = name in signature.fields or name in tool.preset_kwargs
        if not known and (not signature.open or name == signature.star):
            yield f"{name}: there is no such argument"
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


def _by_schema(tool: RegisteredToolFunction, found: dict[str, Any]) -> Iterator[str]:
    """What does not fit a schema that somebody gave; whether that is one is not known."""
    try:
        yield from misfits(tool.json_schema["function"]["parameters"], found)
    except Exception as exc:  # whatever a broken schema leads to: the tool itself then says what is wrong
        logger.warning("tool_schema_broken tool=%s error=%s: its arguments are not checked", tool.name,
                       type(exc).__name__)


def misfits(schema: Any, data: Any) -> Iterator[str]:
    """What of some data does not fit a JSON schema from elsewhere; its regular expressions are not looked at.

    Raises:
        Exception: of any class; the schema is none.
    """
    checker = _lenient()(schema, registry=importlib.import_module("referencing").Registry())
    for error in checker.iter_errors(data):
        where = ".".join(map(str, error.absolute_path))
        said = error.message if len(error.message) <= 200 else f"{error.message[:200]}..."
        yield f"{where}: {said}" if where else said


@cache
def _lenient() -> Any:
    """JSON schema's rules but those of regular expressions, by which a server could keep this process busy for ever.

    Loaded when it is first needed: it takes long, and most tools have a function's schema.
    """
    module = importlib.import_module("jsonschema")
    return module.validators.extend(module.Draft202012Validator, {
        "pattern": _unchecked, "patternProperties": _unchecked, "unevaluatedProperties": _unchecked,
        "additionalProperties": _additional(module)})


def _unchecked(*_: Any) -> Iterator[Any]:
    return iter(())


def _additional(module: Any) -> Any:
    stock = module.Draft202012Validator.VALIDATORS["additionalProperties"]

    def check(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
        return iter(()) if "patternProperties" in schema else iter(stock(validator, rule, instance, schema) or ())

    return check
