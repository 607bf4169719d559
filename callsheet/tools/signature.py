"""A function's schema, from its signature and docstring, and its arguments, checked against it."""

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_type_hints
from weakref import WeakKeyDictionary

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from callsheet.errors import ToolError
from callsheet.messages.forms import QuietSchema
from callsheet.messages.msg import shown
from callsheet.tools.schemas import Problem

_CONFIG = ConfigDict(arbitrary_types_allowed=True)
_SUBSCHEMAS = ("properties", "$defs", "patternProperties")  # their keys are names, not keywords


@dataclass(frozen=True)
class Signature:
    """What a function takes, as a model is told it."""

    description: str  # from the docstring
    parameters: dict[str, Any]  # JSON schema of the arguments that a model gives
    model: type[BaseModel]  # checks and converts them
    fields: dict[str, str]  # the model's field of each argument; their names could be a pydantic model's own
    order: tuple[inspect.Parameter, ...]  # the function's parameters, each with its kind and default
    open: bool  # whether it takes any other arguments by name
    keyword: str | None = None  # the parameter for more named arguments, if a model may give them

    @property
    def star(self) -> str | None:
        """The parameter for more positional arguments."""
        return next((one.name for one in self.order if one.kind is inspect.Parameter.VAR_POSITIONAL), None)

    def converted(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A model's arguments as the function's annotations say; those that it does not name as they are.

        Raises:
            ValidationError: they do not fit.
        """
        checked = self.model.model_validate({name: given[name] for name in given if name in self.fields})
        own = {name: getattr(checked, field) for name, field in self.fields.items() if field in
               checked.model_fields_set}
        return {name: own.get(name, value) for name, value in given.items()}

    def spread(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Values by parameter as the arguments of a call."""
        left, args = dict(values), []
        more = left.pop(self.star, ()) if self.star else ()
        named = left.pop(self.keyword, {}) if self.keyword else {}
        for parameter in self.order:
            first = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            if (first or (more and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)) and (
                    parameter.name in left or parameter.default is not inspect.Parameter.empty):
                args.append(left.pop(parameter.name, parameter.default))
        return [*args, *more], {**named, **left}


_known: "WeakKeyDictionary[Any, dict[tuple[Any, ...], Signature]]" = WeakKeyDictionary()


def signature_of(function: Callable[..., Any], *, hidden: frozenset[str] = frozenset(), long: bool = True,
                 positional: bool = False, keyword: bool = False) -> Signature:
    """What a function takes; found once for each function of a process.

    Args:
        function: plain or async, a method, or an object with `__call__`.
        hidden: parameters that a model is not told of.
        long: whether its long description belongs to the description.
        positional: whether a model may give more positional arguments, as a list under the parameter's name.
        keyword: whether a model may give more named arguments, as an object under the parameter's name.

    Raises:
        ToolError: names the parameter whose annotation has no schema.
    """
    # A bound method is a new object at each look; its function is not.
    key = getattr(function, "__func__", function)
    options = (hidden, long, positional, keyword, isinstance(function, types.MethodType))
    try:
        made = _known.setdefault(key, {})
    except TypeError:  # it cannot be referred to weakly, or not hashed
        made = {}
    if options not in made:
        made[options] = _read(function, hidden, long, positional, keyword)
    return made[options]


def _read(function: Callable[..., Any], hidden: frozenset[str], long: bool, positional: bool,
          keyword: bool) -> Signature:
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    said = {param.arg_name.lstrip("*"): param.description for param in doc.params}
    order = _parameters(function, hidden)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    more: str | None = None
    for param in order:
        kind: Any = Any if param.annotation is inspect.Parameter.empty else param.annotation
        default = param.default
        taken = param.name not in hidden
        if param.kind is inspect.Parameter.VAR_POSITIONAL:
            taken = taken and positional
            kind, default = list[kind], []
        elif param.kind is inspect.Parameter.VAR_KEYWORD:
            more = param.name if keyword else None
            taken = taken and keyword
            kind, default = dict[str, kind], {}
        if not taken:
            continue
        names[param.name] = field = f"p{len(names)}"
        # Without one, that of the annotation stays.
        told: dict[str, Any] = {"description": said[param.name]} if said.get(param.name) else {}
        fields[field] = (kind, Field(alias=param.name, default=... if default is inspect.Parameter.empty else default,
                                     **told))
    model, schema = _modelled(function, fields)
    texts = [doc.short_description, doc.long_description if long else None]
    return Signature(description="\n".join(text for text in texts if text), parameters=without_titles(schema),
                     model=model, fields=names, order=tuple(order),
                     open=any(param.kind is inspect.Parameter.VAR_KEYWORD for param in order), keyword=more)


def _parameters(function: Callable[..., Any], hidden: frozenset[str]) -> list[inspect.Parameter]:
    """The function's parameters; names in their annotations stand for what they name, also within others."""
    try:
        found = list(inspect.signature(function).parameters.values())
    except Exception as exc:  # builtins without a signature
        raise ToolError(f"The tool {name_of(function)} has no signature that can be read: {exc}. Write a def around "
                        "it, or give json_schema.") from exc
    written = inspect.unwrap(function if inspect.isroutine(function) else type(function).__call__)
    if found and found[0].name == "self" and not inspect.ismethod(function) and "." in getattr(
            function, "__qualname__", "").rpartition("<locals>.")[2]:
        raise ToolError(f"The tool {function.__qualname__} is a method without its object. Register the method of an "
                        "object, e.g. tools.find.")
    given = {param.name: param.annotation for param in found
             if param.annotation is not inspect.Parameter.empty and param.name not in hidden}
    try:
        meant = get_type_hints(SimpleNamespace(__annotations__=given), getattr(written, "__globals__", {}),
                               include_extras=True)
    except NameError as exc:
        raise ToolError(f"An annotation of the tool {name_of(function)} cannot be resolved: {exc}. Import that name "
                        "where the program runs, not for type checkers alone, or give json_schema.") from exc
    except Exception as exc:  # annotations that are no expressions, or no types
        raise ToolError(f"An annotation of the tool {name_of(function)} cannot be read: {exc}. Annotate its parameters "
                        "with types, or give json_schema.") from exc
    return [param.replace(annotation=meant.get(param.name, inspect.Parameter.empty)) for param in found]


def _modelled(function: Callable[..., Any], fields: dict[str, Any]) -> tuple[type[BaseModel], dict[str, Any]]:
    """The pydantic model of a function's parameters, and its schema."""
    try:
        model = create_model("Arguments", __config__=_CONFIG, **fields)
        return model, model.model_json_schema(schema_generator=QuietSchema)
    except Exception as exc:  # pydantic has several for what it cannot show
        for field, (_, info) in fields.items():
            try:
                create_model("Argument", __config__=_CONFIG, **{field: fields[field]}).model_json_schema(
                    schema_generator=QuietSchema)
            except Exception as cause:
                why = str(cause).partition("\n")[0]
                raise ToolError(f"The parameter {info.alias!r} of the tool {name_of(function)} has no JSON schema: "
                                f"{why}. Annotate it with what JSON holds, give it in preset_kwargs, or give "
                                "json_schema.") from cause
        raise ToolError(f"The tool {name_of(function)} has no JSON schema: {exc}. Give json_schema.") from exc


def name_of(function: Any) -> str:
    """A function's name; that of the class of an object that is called."""
    return str(getattr(function, "__name__", None) or type(function).__name__)


def without_titles(node: Any) -> Any:
    """A schema without the titles that pydantic makes of names."""
    if isinstance(node, list):
        return [without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in _SUBSCHEMAS and isinstance(value, dict):
            out[key] = {name: without_titles(part) for name, part in value.items()}
        elif key in ("default", "const", "enum", "examples", "required"):
            out[key] = value
        elif key != "title" or not isinstance(value, str):
            out[key] = without_titles(value)
    return out


def problems_of(exc: ValidationError) -> list[Problem]:
    """What does not fit, an argument a line."""
    lines = []
    for error in exc.errors(include_url=False, include_context=False):
        where = ".".join(map(str, error["loc"])) or "the arguments"
        given = "" if error["type"] == "missing" else f" (given {shown(error['input'])})"
        lines.append(Problem(f"{where}: {error['msg'].removeprefix('Value error, ')}{given}",
                             [error["loc"]] if error["input"] is None else []))
    return lines
