"""JSON schemas from elsewhere, applied within bounds: no schema and no data keep the process's loop busy."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, copy_context
from functools import cache
from typing import Any, Self

from callsheet.errors import ToolError

MOST_STEPS = 30_000
"""Rules times the values that they look at, of one check; some tenths of a second."""

_REFERENCE = 20  # steps of following a reference
_SHOWN = 80  # characters of a value in a problem's text
_LISTED = 20  # values of a list that are shown
_left: ContextVar[list[int]] = ContextVar("callsheet_schema_steps")

Path = tuple[str | int, ...]


class TooMuch(ToolError):
    """A check took more steps than allowed."""


class Problem(str):
    """What does not fit, in words.

    Attributes:
        nulls: paths in the data to what is null and would better not be there.
    """

    nulls: tuple[Path, ...]

    def __new__(cls, text: str, nulls: Iterable[Path] = ()) -> Self:
        """A problem."""
        made = super().__new__(cls, text)
        made.nulls = tuple(nulls)
        return made


def misfits(schema: Any, data: Any) -> Iterator[Problem]:
    """What of some data does not fit a JSON schema from elsewhere; its regular expressions are not looked at.

    Raises:
        TooMuch: there is too much to look at.
        Exception: of any class; the schema is none.
    """
    steps = [MOST_STEPS]
    checker = _lenient()(_short(schema, steps), registry=importlib.import_module("referencing").Registry())
    errors = checker.iter_errors(_short(data, steps))
    context = copy_context()
    context.run(_left.set, steps)
    while (error := context.run(next, errors, None)) is not None:
        where = ".".join(map(str, error.absolute_path))
        said = error.message if len(error.message) <= 200 else f"{error.message[:200]}..."
        yield Problem(f"{where}: {said}" if where else said, _nulls(error))


def _nulls(error: Any) -> Iterator[Path]:
    if error.instance is None:
        yield tuple(error.absolute_path)
    for inner in error.context or ():
        yield from _nulls(inner)


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str.__repr__(self) if len(self) <= _SHOWN else f"{str.__repr__(self[:_SHOWN])[:-1]}...'"


class _List(list[Any]):
    def __repr__(self) -> str:
        plain = len(self) <= _LISTED and not any(isinstance(item, (list, dict)) for item in self)
        return list.__repr__(self) if plain else f"a list of {len(self)}"


class _Object(dict[str, Any]):
    def __repr__(self) -> str:
        names = ", ".join(map(repr, list(self)[:_LISTED]))
        return f"an object with {names}" if self else "{}"


def _short(value: Any, steps: list[int]) -> Any:
    """A JSON value that shows itself in short: problems quote what is wrong, in each of many alternatives."""
    _spend(steps, 1)
    if isinstance(value, str):
        return _Text(value)
    if isinstance(value, list):
        return _List([_short(item, steps) for item in value])
    if isinstance(value, dict):
        return _Object({_Text(name): _short(item, steps) for name, item in value.items()})
    return value


def _spend(steps: list[int], count: int) -> None:
    steps[0] -= count
    if steps[0] < 0:
        raise TooMuch(f"there is more to check than {MOST_STEPS} steps do.")


@cache
def _lenient() -> Any:
    """JSON schema's rules, each of which counts, but those that take long at once: regular expressions and the like.

    Loaded when it is first needed: it takes long, and most tools have a function's schema.
    """
    module = importlib.import_module("jsonschema")
    stock = dict(module.Draft202012Validator.VALIDATORS)
    own = {"additionalProperties": _additional(stock["additionalProperties"]), **dict.fromkeys(
        ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems", "uniqueItems"), lambda *_: ())}
    return module.validators.extend(module.Draft202012Validator,
                                    {name: _counted(name, rule) for name, rule in (stock | own).items()})


Rule = Callable[[Any, Any, Any, Any], Any]


def _counted(name: str, rule: Rule) -> Rule:
    steps = _REFERENCE if name in ("$ref", "$dynamicRef") else 1

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        _spend(_left.get(), steps + _size(value) + _size(instance))
        return rule(validator, value, instance, schema)

    return check


def _size(value: Any) -> int:
    if isinstance(value, (list, dict)):
        return len(value)
    return len(value) >> 6 if isinstance(value, str) else 0


def _additional(stock: Rule) -> Rule:
    def check(validator: Any, rule: Any, instance: Any, schema: Any) -> Iterator[Any]:
        return iter(()) if "patternProperties" in schema else iter(stock(validator, rule, instance, schema) or ())

    return check
