"""Registering tools, their schemas, and calling them."""

import asyncio
import threading
import time
from contextvars import ContextVar
from functools import partial
from typing import Annotated, Any, Optional

import pytest
from pydantic import BaseModel, Field

from callsheet import Msg
from callsheet.errors import CannotTravel, ToolError, ToolFailed, UsageError
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader
from callsheet.settings import Settings, use_settings
from callsheet.tools import Toolkit, ToolResponse
from tests.toolbox import called, plain_add, text_of, texts

VAR: ContextVar[str] = ContextVar("VAR", default="unset")


def run(kit: Toolkit, name: str, **arguments: Any) -> list[ToolResponse]:
    return asyncio.run(called(kit, name, **arguments))


def test_a_plain_function_runs_in_a_thread_with_the_context() -> None:
    def where() -> str:
        return f"{threading.current_thread() is threading.main_thread()} {VAR.get()}"

    kit = Toolkit()
    kit.register_tool_function(where)

    async def main() -> list[ToolResponse]:
        VAR.set("set")
        return await called(kit, "where")

    assert text_of(asyncio.run(main())) == "False set"


def test_every_kind_of_function_gives_responses() -> None:
    async def coro() -> ToolResponse:
        return ToolResponse([{"type": "text", "text": "coro"}], metadata={"k": 1})

    def gen() -> Any:
        yield ToolResponse([{"type": "text", "text": "a"}], stream=True, is_last=False)
        yield ToolResponse([{"type": "text", "text": "ab"}], stream=True)

    async def agen() -> Any:
        yield "x"
        yield "y"

    async def gives_agen() -> Any:
        return agen()

    def gives_coro() -> Any:
        return coro()

    kit = Toolkit()
    for function in (coro, gen, agen, gives_agen, gives_coro):
        kit.register_tool_function(function)
    [response] = run(kit, "coro")
    assert (text_of([response]), response.metadata) == ("coro", {"k": 1})
    assert texts(run(kit, "gen")) == ["a", "ab"]
    grown = run(kit, "agen")
    assert texts(grown) == ["x", "xy", "xy"]
    assert [response.is_last for response in grown] == [False, False, True]
    assert texts(run(kit, "gives_agen")) == ["x", "xy", "xy"]
    assert texts(run(kit, "gives_coro")) == ["coro"]


class Point(BaseModel):
    x: int
    y: int = 0


@pytest.mark.parametrize(("value", "text"), [
    ("words", "words"), (3, "3"), (None, "(no result)"), ({"a": [1]}, '{"a":[1]}'), (Point(x=1), '{"x":1,"y":0}'),
    ({"type": "text", "text": "block"}, "block"), ([], "[]"), (True, "true"),
])
def test_a_plain_value_becomes_text(value: Any, text: str) -> None:
    async def tool() -> Any:
        return value

    kit = Toolkit()
    kit.register_tool_function(tool)
    assert text_of(run(kit, "tool")) == text


@pytest.mark.parametrize(("content", "text"), [
    ("words", "words"), ([{"type": "text", "text": "half \ud800"}], "half ?"),
    ([{"type": "thinking", "thinking": "x"}], "Error: the tool gave a ToolResponse whose content is not"),
    ([{"type": "image", "source": {"type": "file"}}], "Error: the tool gave a ToolResponse whose content is not"),
    (None, "Error: the tool gave a ToolResponse whose content is not"),
])
def test_what_no_message_can_hold_never_leaves_a_tool(content: Any, text: str) -> None:
    async def tool() -> Any:
        return ToolResponse(content)

    async def grows() -> Any:
        yield ToolResponse(content)

    kit = Toolkit()
    kit.register_tool_function(tool)
    kit.register_tool_function(grows)
    for name in ("tool", "grows"):
        [response] = run(kit, name)
        assert text_of([response]).startswith(text)
        Msg("tool", response.content, "assistant")


def test_half_characters_are_mended() -> None:
    async def tool() -> Any:
        return ["é", "\udcff"], "\udcff"

    async def plain() -> Any:
        return "é\udcff"

    kit = Toolkit()
    kit.register_tool_function(tool)
    kit.register_tool_function(plain)
    assert text_of(run(kit, "plain")) == "é?"
    Msg("tool", run(kit, "tool")[0].content, "assistant")


def test_the_schema_comes_of_signature_and_docstring() -> None:
    def search(query: str, limit: int = 10, *, near: Point | None = None, _x: Any = None, schema: str = "s") -> str:
        """Search the library.

        All of it is searched.

        Args:
            query (str): what to look for,
                in words.
            limit (int): how many.
        """
        return query

    kit = Toolkit()
    kit.register_tool_function(search, preset_kwargs={"_x": object()})
    [schema] = kit.get_json_schemas()
    function = schema["function"]
    assert schema["type"] == "function"
    assert function["name"] == "search"
    assert function["description"] == "Search the library.\nAll of it is searched."
    assert function["parameters"]["required"] == ["query"]
    assert list(function["parameters"]["properties"]) == ["query", "limit", "near", "schema"]
    assert function["parameters"]["properties"]["query"] == {
        "type": "string", "description": "what to look for,\nin words."}
    assert function["parameters"]["properties"]["limit"] == {"type": "integer", "default": 10,
                                                            "description": "how many."}
    assert "title" not in str(schema)


def test_numpy_docstrings_are_read() -> None:
    def scale(factor: float) -> str:
        """Scale it.

        Parameters
        ----------
        factor : float
            By how much.
        """
        return str(factor)

    kit = Toolkit()
    kit.register_tool_function(scale)
    [schema] = kit.get_json_schemas()
    assert schema["function"]["parameters"]["properties"]["factor"]["description"] == "By how much."


def test_arguments_arrive_as_annotated() -> None:
    got: list[Any] = []

    async def tool(point: Point, numbers: list[int], ratio: float = 0.5) -> str:
        got.extend([point, numbers, ratio])
        return "done"

    kit = Toolkit()
    kit.register_tool_function(tool)
    assert text_of(run(kit, "tool", point={"x": "3"}, numbers=["1", 2])) == "done"
    assert got == [Point(x=3), [1, 2], 0.5]


def test_annotations_as_people_write_them() -> None:
    def tool(places: list["Point"], perhaps: Optional["Point"] = None, *, cls: str = "", by: "dict[str, Point]") -> str:
        return f"{places[0].x} {perhaps and perhaps.x} {cls} {by['a'].x}"

    kit = Toolkit()
    kit.register_tool_function(tool)
    assert text_of(run(kit, "tool", places=[{"x": 1}], perhaps={"x": 2}, cls="c", by={"a": {"x": 3}})) == "1 2 c 3"

    def hides(known: int, unknown: "Nowhere" = None) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
        return known

    kit.register_tool_function(hides, preset_kwargs={"unknown": 1})
    assert text_of(run(kit, "hides", known=5)) == "5"
    with pytest.raises(ToolError, match=r"hides.*Nowhere"):
        kit.register_tool_function(hides, func_name="other")
    with pytest.raises(ToolError, match="without its object"):
        kit.register_tool_function(Holder.held)


class Holder:
    def held(self, word: str) -> str:
        """Not bound."""
        return word


class Filter(BaseModel):
    language: str = "en"
    needed: int | None


def test_null_for_what_need_not_be_given_is_left_out() -> None:
    def tool(query: str, language: str = "en", inner: Filter | None = None, many: list[Filter] = []) -> str:  # noqa: B006
        return f"{query} {language} {inner and inner.language} {len(many)}"

    kit = Toolkit()
    kit.register_tool_function(tool)
    assert text_of(run(kit, "tool", query="q", language=None)) == "q en None 0"
    assert text_of(run(kit, "tool", query="q", inner={"language": None, "needed": None}, many=[
        {"language": None, "needed": 1}])) == "q en en 1"
    assert "query: " in text_of(run(kit, "tool", query=None, language=None))
    parameters = {"type": "object", "required": ["q"], "properties": {
        "q": {"type": ["string", "null"]}, "n": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "o": {"anyOf": [{"type": "object", "properties": {"p": {"type": "string"}}}, {"type": "string"}]}}}
    schema = {"type": "function", "function": {"name": "other", "parameters": parameters}}

    def other(**kwargs: Any) -> str:
        return str(kwargs)

    kit.register_tool_function(other, json_schema=schema)
    assert text_of(run(kit, "other", q=None, n=None, o={"p": None})) == "{'q': None, 'o': {}}"


def test_a_text_names_each_wrong_argument() -> None:
    kit = Toolkit()
    kit.register_tool_function(plain_add)
    text = text_of(run(kit, "plain_add", a="one", c=1))
    assert "a: " in text and "'one'" in text and "c: there is no such argument" in text and "a (required)" in text
    assert "a: Field required" in text_of(run(kit, "plain_add"))
    assert text_of(run(kit, "plain_add", a=1)) == "1"


def test_half_read_arguments_are_not_used() -> None:
    kit = Toolkit()
    kit.register_tool_function(plain_add)

    async def main() -> list[ToolResponse]:
        block: Any = {"type": "tool_use", "id": "1", "name": "plain_add", "input": {"a": 1}, "raw_input": '{"a": 1'}
        return [response async for response in await kit.call_tool_function(block)]

    assert "not one whole JSON object" in text_of(asyncio.run(main()))


def test_an_unknown_tool_and_one_that_is_off_are_told_to_the_model() -> None:
    kit = Toolkit()
    kit.create_tool_group("maths", "Sums.", notes="Carry the one.")
    kit.register_tool_function(plain_add, "maths")
    assert "there is no tool 'nothing'" in text_of(run(kit, "nothing"))
    assert "'maths', which is off" in text_of(run(kit, "plain_add", a=1))
    kit.update_tool_groups(["maths"], True)
    assert text_of(run(kit, "plain_add", a=1)) == "1"
    assert kit.get_activated_notes() == "## About Tool Group 'maths'\nCarry the one."


def test_the_meta_tool_switches_groups() -> None:
    kit = Toolkit()
    kit.create_tool_group("maths", "Sums.", notes="Carry the one.")
    kit.create_tool_group("other", "Rest.", active=True)
    kit.register_tool_function(kit.reset_equipped_tools)
    [schema] = kit.get_json_schemas()
    assert schema["function"]["parameters"]["properties"] == {
        "maths": {"type": "boolean", "default": False, "description": "Sums."},
        "other": {"type": "boolean", "default": False, "description": "Rest."}}
    assert "Carry the one." in text_of(run(kit, "reset_equipped_tools", maths=True))
    assert kit.state_dict() == {"active_groups": ["maths"]}
    assert "'x' is not true" not in text_of(run(kit, "reset_equipped_tools", nope=True))
    assert kit.state_dict() == {"active_groups": ["maths"]}
    kit.load_state_dict({"active_groups": ["other"]})
    assert not kit.groups["maths"].active and kit.groups["other"].active


def test_the_active_groups_are_the_toolkits_state() -> None:
    kit = Toolkit()
    assert not kit.has_state()
    kit.create_tool_group("maths", "Sums.")
    assert kit.has_state()
    for wrong in ({}, [], {"active_groups": "maths"}, {"active_groups": [], "more": 1}):
        with pytest.raises(ValueError, match="active_groups"):
            kit.load_state_dict(wrong)  # type: ignore[arg-type]
    kit.load_state_dict({"active_groups": ["maths", "gone"], "more": 1}, strict=False)
    assert kit.state_dict() == {"active_groups": ["maths"]}
    kit.remove_tool_groups("maths")
    assert not kit.has_state()


@pytest.mark.parametrize("function", [
    {"own": "_add"}, {"own": "__init__"}, {"own": "nothing"}, {"own": "groups"}, {"method": [3, "bit_length"]},
    {"method": [{"$new": "tests.agents.tools:Shelf", "args": [[]], "kwargs": {}}, "__init__"]},
    {"method": [{"$new": "tests.agents.tools:Shelf", "args": [[]], "kwargs": {}}, "books"]},
    {"$type": "tests.agents.tools:Shelf"}, "os:system", {"$fn": "os:system"}, None, 3,
])
def test_a_message_makes_tools_of_functions_and_public_methods_only(function: Any) -> None:
    data = {"$new": "callsheet.tools.toolkit:Toolkit", "args": [], "kwargs": {},
            "extras": {"tools": {"it": {"function": function}}}}
    with pytest.raises(CannotTravel):
        Reader(AllowList(("tests.agents",))).read(data)
    data["extras"]["tools"]["it"]["function"] = {"own": "reset_equipped_tools"}  # type: ignore[index]
    assert text_of(run(Reader(AllowList(())).read(data), "it")) == "All tool groups are off now."


def test_an_error_of_a_tool_is_text_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")

    def tool() -> None:
        raise ValueError("no: sk-very-secret-key at http://user:pass@host/ with Bearer abcdefghijkl")

    def says() -> None:
        raise ToolFailed("Order 17 is closed.")

    kit = Toolkit()
    kit.register_tool_function(tool)
    kit.register_tool_function(says)
    with use_settings(Settings.load()):
        assert text_of(run(kit, "tool")) == "Error: ValueError: no: *** at http://***@host/ with Bearer ***"
        assert text_of(run(kit, "says")) == "Error: Order 17 is closed."


def test_a_tool_that_raises_what_no_loop_survives_is_a_failure() -> None:
    def leave() -> None:
        raise SystemExit(3)

    def stop() -> None:
        raise StopIteration

    kit = Toolkit()
    kit.register_tool_function(leave)
    kit.register_tool_function(stop)
    assert "SystemExit(3)" in text_of(run(kit, "leave"))
    assert "StopIteration" in text_of(run(kit, "stop"))


def test_a_tool_that_never_ends_is_broken_off() -> None:
    over = threading.Event()

    async def waits() -> None:
        await asyncio.Event().wait()

    def blocks() -> None:
        over.wait()

    async def stalls() -> Any:
        yield "so far"
        await asyncio.Event().wait()

    kit = Toolkit()
    for function in (waits, blocks, stalls):
        kit.register_tool_function(function, timeout=0.05)
    try:
        assert "did not end within 0.05 s" in text_of(run(kit, "waits"))
        assert "did not end within 0.05 s" in text_of(run(kit, "blocks"))
        last = run(kit, "stalls")[-1]
        assert texts([last])[0].startswith("so far")
        assert "did not end within 0.05 s" in texts([last])[0]
    finally:
        over.set()


def test_a_failing_tool_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("gone")
        return "there"

    kit = Toolkit()
    kit.register_tool_function(flaky, retries=2)
    with use_settings(Settings.load(retry_backoff=0.01)):
        assert text_of(run(kit, "flaky")) == "there"
        tries.clear()
        kit.tools["flaky"].retries = 1
        assert text_of(run(kit, "flaky")) == "Error: ConnectionError: gone"
    assert len(tries) == 2


def test_the_model_cannot_give_what_is_preset() -> None:
    def who(user: str, **rest: Any) -> str:
        return f"{user} {rest}"

    kit = Toolkit()
    kit.register_tool_function(who, preset_kwargs={"user": "ann"})
    assert text_of(run(kit, "who")) == "ann {}"
    assert "user: this is not for you to give" in text_of(run(kit, "who", user="eve"))


def test_partials_have_their_arguments_preset() -> None:
    kit = Toolkit()
    kit.register_tool_function(partial(plain_add, 5, b=2), func_name="five")
    assert kit.get_json_schemas()[0]["function"]["parameters"]["properties"] == {}
    assert text_of(run(kit, "five")) == "7"
    assert kit.tools["five"].original_name == "plain_add"


def test_partials_of_star_arguments() -> None:
    def tool(first: int, *rest: int, key: str = "", **named: Any) -> str:
        return f"{first} {rest} {key} {named}"

    kit = Toolkit()
    kit.register_tool_function(partial(tool, 1, 2, 3, key="k", more=4), func_name="it")
    assert text_of(run(kit, "it", other=5)) == "1 (2, 3) k {'other': 5, 'more': 4}"
    assert "rest: " in text_of(run(kit, "it", rest=[7]))
    with pytest.raises(UsageError, match="partial of plain_add"):
        kit.register_tool_function(partial(plain_add, 1, 2, 3))


def test_positional_only_arguments_and_annotated_ones() -> None:
    def tool(a: int, b: Annotated[int, Field(description="Second.", ge=3)] = 3, /, c: Any = object) -> str:
        """Tool."""
        return f"{a} {b} {c is object}"

    kit = Toolkit()
    kit.register_tool_function(tool)
    properties = kit.get_json_schemas()[0]["function"]["parameters"]["properties"]
    assert properties["b"] == {"type": "integer", "description": "Second.", "minimum": 3, "default": 3}
    assert text_of(run(kit, "tool", a=1, b=4)) == "1 4 True"
    assert text_of(run(kit, "tool", a=1)) == "1 3 True"
    assert "b: Input should be greater than or equal to 3" in text_of(run(kit, "tool", a=1, b=2))


def test_star_arguments() -> None:
    def both(first: int, *rest: int, **named: int) -> str:
        """Both.

        Args:
            *rest: more of them.
            **named: with names.
        """
        return f"{first} {rest} {named}"

    kit = Toolkit()
    kit.register_tool_function(both)
    assert list(kit.get_json_schemas()[0]["function"]["parameters"]["properties"]) == ["first"]
    kit.register_tool_function(both, func_name="wide", include_var_positional=True, include_var_keyword=True)
    properties = kit.tools["wide"].json_schema["function"]["parameters"]["properties"]
    assert properties["rest"]["description"] == "more of them."
    assert properties["named"]["description"] == "with names."
    assert text_of(run(kit, "wide", first=1, rest=[2, "3"], named={"k": 4})) == "1 (2, 3) {'k': 4}"
    assert text_of(run(kit, "wide", first=1)) == "1 () {}"


def test_a_given_schema_is_what_arguments_are_checked_against() -> None:
    def tool(**kwargs: Any) -> str:
        return str(kwargs)

    schema = {"type": "function", "function": {"name": "x", "description": "X.", "parameters": {
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 3}, "hidden": {"type": "string"}},
        "required": ["n", "hidden"], "additionalProperties": False}}}
    kit = Toolkit()
    kit.register_tool_function(tool, json_schema=schema, preset_kwargs={"hidden": "h"})
    assert kit.get_json_schemas()[0]["function"]["parameters"]["required"] == ["n"]
    assert schema["function"]["parameters"]["required"] == ["n", "hidden"]  # type: ignore[index]
    assert "n: 2 is less than the minimum of 3" in text_of(run(kit, "tool", n=2))
    assert "Additional properties" in text_of(run(kit, "tool", n=3, m=1))
    assert text_of(run(kit, "tool", n=3)) == "{'n': 3, 'hidden': 'h'}"


_REFS = {"l0": {"type": "string"}} | {f"l{k}": {"anyOf": [{"$ref": f"#/$defs/l{k - 1}"}] * 2} for k in range(1, 21)}


@pytest.mark.parametrize(("rules", "data"), [
    ({"properties": {"s": {"type": "string", "pattern": "^(a+)+$"}}, "patternProperties": {"^(b+)+$": False},
      "additionalProperties": False}, {"s": "a" * 40 + "!", "b" * 40 + "!": 1}),
    ({"properties": {"s": {"$ref": "#/$defs/l20"}}, "$defs": _REFS}, {"s": 5}),
    ({"properties": {"s": {"uniqueItems": True}}}, {"s": [{"k": [k]} for k in range(4000)]}),
    ({"properties": {"s": {"items": {"enum": list(range(9000))}}}}, {"s": [-1] * 9000}),
    ({"properties": {"s": {"anyOf": [{"type": "string"}, {"const": 1}] * 500}}}, {"s": [["x" * 1000] * 20] * 1000}),
    ({"properties": {"s": {"items": {"not": {}}}}}, {"s": ["x" * 100] * 9000}),
], ids=["patterns", "references", "unique", "enumeration", "texts of problems", "many problems"])
def test_a_schema_cannot_keep_the_process_busy(rules: dict[str, Any], data: dict[str, Any]) -> None:
    def tool(**kwargs: Any) -> str:
        return "ran"

    kit = Toolkit()
    kit.register_tool_function(tool, json_schema={"type": "function", "function": {
        "name": "t", "parameters": {"type": "object", **rules}}})
    before = time.process_time()
    said = text_of(run(kit, "tool", **data))
    assert said == "ran" or (said.startswith("Error: The arguments of tool do not fit") and len(said) < 5000)
    assert time.process_time() - before < 1.5


def test_a_broken_schema_leaves_it_to_the_tool() -> None:
    def tool(**kwargs: Any) -> str:
        return "ran"

    bad = {"type": "object", "properties": {"s": {"type": "nonsense", "$ref": "http://127.0.0.1:1/none"}}}
    kit = Toolkit()
    kit.register_tool_function(tool, json_schema={"type": "function", "function": {"name": "t", "parameters": bad}})
    assert text_of(run(kit, "tool", s=1)) == "ran"


class Thought(BaseModel):
    thinking: str = Field(description="Why.")


def test_an_extended_model_asks_for_more() -> None:
    kit = Toolkit()
    kit.register_tool_function(plain_add)
    kit.set_extended_model("plain_add", Thought)
    parameters = kit.get_json_schemas()[0]["function"]["parameters"]
    assert parameters["properties"]["thinking"] == {"type": "string", "description": "Why."}
    assert parameters["required"] == ["a", "thinking"]
    assert "thinking: Field required" in text_of(run(kit, "plain_add", a=1))
    assert text_of(run(kit, "plain_add", a=1, thinking="because")) == "1"
    kit.set_extended_model("plain_add", None)
    assert "thinking" not in str(kit.get_json_schemas())

    class Clash(BaseModel):
        a: int

    kit.set_extended_model("plain_add", Clash)
    with pytest.raises(ValueError, match="'a' of its own"):
        kit.get_json_schemas()
    with pytest.raises(TypeError):
        kit.set_extended_model("plain_add", dict)  # type: ignore[arg-type]


def test_postprocessing_sees_the_call_and_each_response() -> None:
    async def shout(call: Any, response: ToolResponse) -> ToolResponse | None:
        if call["input"]["a"] == 0:
            return None
        return ToolResponse([{"type": "text", "text": f"{call['name']}: {text_of([response])}!"}])

    def broken(call: Any, response: ToolResponse) -> None:
        raise KeyError("oops")

    kit = Toolkit()
    kit.register_tool_function(plain_add, postprocess_func=shout)
    kit.register_tool_function(plain_add, func_name="other", postprocess_func=broken)
    assert text_of(run(kit, "plain_add", a=1)) == "plain_add: 1!"
    assert text_of(run(kit, "plain_add", a=0)) == "0"
    assert text_of(run(kit, "other", a=0)) == "Error: KeyError: 'oops'"


def test_middlewares_wrap_a_call_the_first_outermost() -> None:
    seen: list[str] = []

    def make(name: str) -> Any:
        async def middleware(kwargs: dict[str, Any], next_handler: Any) -> Any:
            seen.append(f"{name} before")
            async for response in await next_handler(**kwargs):
                response.content.append({"type": "text", "text": name})
                yield response
            seen.append(f"{name} after")
        return middleware

    async def skip(kwargs: dict[str, Any], next_handler: Any) -> Any:
        yield ToolResponse([{"type": "text", "text": f"no {kwargs['tool_call']['name']}"}])

    kit = Toolkit()
    kit.register_tool_function(plain_add)
    kit.register_middleware(make("one"))
    kit.register_middleware(make("two"))
    [response] = run(kit, "plain_add", a=1)
    assert [block["text"] for block in response.content if block["type"] == "text"] == ["1", "two", "one"]
    assert seen == ["one before", "two before", "two after", "one after"]
    kit.register_middleware(skip)
    assert texts(run(kit, "plain_add", a=1))[0].startswith("no plain_add")


def test_namesakes() -> None:
    kit = Toolkit()
    kit.register_tool_function(plain_add)
    with pytest.raises(ValueError, match="plain_add"):
        kit.register_tool_function(plain_add)
    kit.register_tool_function(plain_add, func_description="other", namesake_strategy="skip")
    assert "other" not in str(kit.get_json_schemas())
    kit.register_tool_function(plain_add, func_description="other", namesake_strategy="override")
    assert "other" in str(kit.get_json_schemas())
    kit.register_tool_function(plain_add, namesake_strategy="rename")
    new = next(name for name in kit.tools if name != "plain_add")
    assert kit.tools[new].original_name == "plain_add"
    assert kit.get_json_schemas()[1]["function"]["name"] == new
    assert text_of(run(kit, new, a=2)) == "2"
    kit.remove_tool_function(new)
    kit.remove_tool_function(new)
    with pytest.raises(ValueError, match=new):
        kit.remove_tool_function(new, allow_not_exist=False)
    kit.clear()
    assert kit.get_json_schemas() == []


def test_what_cannot_be_right_is_refused_when_it_is_registered() -> None:
    kit = Toolkit()
    for wrong in ({"timeout": 0}, {"timeout": float("inf")}, {"timeout": "1"}, {"retries": -1}, {"retries": True},
                  {"queue": "a b"}, {"queue": 3}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            kit.register_tool_function(plain_add, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ToolError, match="create_tool_group"):
        kit.register_tool_function(plain_add, "nowhere")
    with pytest.raises(ToolError, match="namesake_strategy"):
        kit.register_tool_function(plain_add, namesake_strategy="maybe")  # type: ignore[arg-type]
    with pytest.raises(ToolError, match="json_schema"):
        kit.register_tool_function(plain_add, json_schema={"name": "x"})
    for odd in (3, Point):
        with pytest.raises(UsageError, match="not a function"):
            kit.register_tool_function(odd)  # type: ignore[arg-type]

    def needs(sock: threading.Lock, n: int) -> None:  # type: ignore[valid-type]
        """Odd."""

    with pytest.raises(ToolError, match=r"'sock'.*preset_kwargs"):
        kit.register_tool_function(needs)
    kit.register_tool_function(needs, preset_kwargs={"sock": None})

    def unresolved(x: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        """Odd."""

    with pytest.raises(ToolError, match="Nowhere"):
        kit.register_tool_function(unresolved)
    with pytest.raises(ToolError, match="signature"):
        kit.register_tool_function(iter)
    with pytest.raises(ValueError, match="'basic'"):
        kit.create_tool_group("basic", "x")
    with pytest.raises(ValueError, match="'basic'"):
        kit.remove_tool_groups("basic")
    with pytest.raises(TypeError, match="group_names"):
        kit.remove_tool_groups(3)  # type: ignore[arg-type]
    assert list(kit.tools) == ["needs"]
