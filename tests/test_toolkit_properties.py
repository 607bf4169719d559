"""Schemas and arguments of any function, and the way of any toolkit over the wire."""

import asyncio
import inspect
import json
import keyword
from functools import partial
from typing import Any, Literal

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.tools import Toolkit, ToolResponse
from tests.agents.tools import add, counts, fails, mark, shout, where
from tests.toolbox import called, text_of

# Names that are also attributes of pydantic's models, keywords of JSON schema, or private.
NAMES = st.sampled_from(["a", "b", "schema", "copy", "json", "model_config", "title", "properties", "type", "_x",
                         "input", "name", "é", "required", "description"]) | st.from_regex(
    r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=5)
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-10**12, 10**12)), (str, st.text(max_size=10)), (bool, st.booleans()),
    (float, st.floats(allow_nan=False, allow_infinity=False)), (list[int], st.lists(st.integers(-5, 5), max_size=3)),
    (dict[str, int], st.dictionaries(st.text(max_size=3), st.integers(-5, 5), max_size=3)),
    (Literal["x", "y"], st.sampled_from(["x", "y"])), (int | None, st.none() | st.integers(-5, 5)),
    (Any, JSON), (inspect.Parameter.empty, JSON),
]


@st.composite
def functions(draw: st.DrawFn) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A function that returns what it gets, arguments that fit it, and those that it must then get."""
    names = [name for name in draw(st.lists(NAMES, unique=True, max_size=5))
             if name not in ("self", "cls") and not keyword.iskeyword(name)]
    parameters, arguments, expected = [], {}, {}
    keyword_only = optional = False
    for name in names:
        annotation, values = draw(st.sampled_from(KINDS))
        keyword_only = keyword_only or draw(st.booleans())
        optional = (optional and not keyword_only) or draw(st.booleans())
        default = draw(values) if optional else inspect.Parameter.empty
        kind = inspect.Parameter.KEYWORD_ONLY if keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
        expected[name] = default
        if default is inspect.Parameter.empty or draw(st.booleans()):
            expected[name] = arguments[name] = draw(values)
    signature = inspect.Signature(parameters)

    async def tool(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return ToolResponse([], metadata=dict(bound.arguments))

    tool.__signature__ = signature  # type: ignore[attr-defined]
    return tool, arguments, expected


@settings(max_examples=150, deadline=None)
@given(functions())
def test_arguments_that_fit_the_schema_arrive_as_they_are(made: tuple[Any, dict[str, Any], dict[str, Any]]) -> None:
    tool, arguments, expected = made
    kit = Toolkit()
    kit.register_tool_function(tool)
    parameters = kit.get_json_schemas()[0]["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    jsonschema.validate(arguments, parameters)
    assert json.loads(json.dumps(parameters)) == parameters
    [response] = asyncio.run(called(kit, "tool", **json.loads(json.dumps(arguments))))
    assert response.metadata == expected, response.content


@settings(max_examples=100, deadline=None)
@given(functions(), st.dictionaries(st.text(max_size=6), JSON, max_size=4))
def test_any_arguments_give_one_answer_and_no_error(made: tuple[Any, dict[str, Any], dict[str, Any]],
                                                   arguments: dict[str, Any]) -> None:
    kit = Toolkit()
    kit.register_tool_function(made[0])
    [response] = asyncio.run(called(kit, "tool", **arguments))
    if response.metadata is None:
        assert text_of([response]).startswith("Error: The arguments of tool do not fit")
    else:
        assert {name for name, value in arguments.items() if value is not None} <= set(made[2])


@settings(max_examples=100, deadline=None)
@given(JSON, JSON)
def test_any_call_of_any_schema_gives_an_answer(schema: Any, arguments: Any) -> None:
    async def tool(**kwargs: Any) -> str:
        return "ran"

    async def call(kit: Toolkit) -> list[ToolResponse]:
        block: Any = {"type": "tool_use", "id": "1", "name": "tool", "input": arguments}
        return [response async for response in await kit.call_tool_function(block)]

    kit = Toolkit()
    parameters = {"type": "object", "properties": {"a": schema, "b": True}}
    kit.register_tool_function(tool, json_schema={"type": "function", "function": {
        "name": "tool", "parameters": json.loads(json.dumps(parameters))}})
    assert text_of(asyncio.run(call(kit)))


REGISTRATIONS = st.fixed_dictionaries({}, optional={
    "func_description": st.text(min_size=1, max_size=5), "include_long_description": st.booleans(),
    "timeout": st.floats(0.1, 100), "retries": st.integers(0, 3), "queue": st.sampled_from(["cpu", "extra"]),
    "postprocess_func": st.just(shout), "preset_kwargs": st.dictionaries(st.sampled_from(["a", "b", "z"]), JSON,
                                                                        max_size=2)})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([add, fails, counts, where, partial(add, b=1), partial(add, 1)]),
                          REGISTRATIONS, st.sampled_from(["basic", "on", "off"])), max_size=6), st.booleans())
def test_a_toolkit_is_the_same_after_its_way_over_the_wire(tools: list[Any], marked: bool) -> None:
    kit = Toolkit()
    kit.create_tool_group("on", "On.", active=True, notes="Notes.")
    kit.create_tool_group("off", "Off.")
    for number, (function, options, group) in enumerate(tools):
        kit.register_tool_function(function, group, func_name=f"tool{number}", **options)
    if marked:
        kit.register_middleware(mark)
    allow = AllowList(("tests.agents",))
    there = Reader(allow).read(json.loads(json.dumps(Writer(allow).write(kit, "it"))))
    assert there.get_json_schemas() == kit.get_json_schemas()
    assert there.tools == kit.tools
    assert (there.groups, there.middlewares) == (kit.groups, kit.middlewares)
    again = json.dumps(Writer(allow).write(there, "it"))
    assert again == json.dumps(Writer(allow).write(kit, "it"))
