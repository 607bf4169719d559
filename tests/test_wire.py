"""The wire: what travels, what is refused, and what a message can never make a worker do."""

import contextlib
import datetime as dt
import functools
import importlib
import json
import math
import pathlib
import pkgutil
import socket
import sys
import threading
import time
from collections import OrderedDict, namedtuple
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json
from pydantic import SecretBytes, SecretStr

import callsheet
from callsheet import AgentBase, CallOptions, FanoutPipeline, Msg, SequentialPipeline, Settings
from callsheet.agents.base import BoundCall
from callsheet.errors import CallsheetError, CannotTravel, ModuleNotAllowed, PayloadTooLarge
from callsheet.messages.allow import OWN_CLASSES, AllowList
from callsheet.messages.recorded import Recorded
from callsheet.messages.wire import Reader, Writer
from callsheet.tasks import payloads
from tests import travellers as t
from tests.test_msg import msgs

quick = settings(max_examples=60, deadline=None)
ALLOW = AllowList(("tests.travellers",))


def over(value: Any, allow: AllowList = ALLOW) -> Any:
    data = json.loads(json.dumps(Writer(allow).write(value, "the value")))
    return Reader(allow).read(data)


def refused(value: Any, match: str, error: type[Exception] = CannotTravel) -> str:
    with pytest.raises(error, match=match) as caught:
        Writer().write(value, "argument 'tool' of Summarizer()")
    return str(caught.value)


# Values -------------------------------------------------------------------------------------------------

zones = st.none() | st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)))
hashable = (st.none() | st.booleans() | st.integers(-10**60, 10**60) | st.floats(allow_nan=False) | st.text()
            | st.binary() | st.uuids() | st.dates() | st.datetimes(timezones=zones) | st.times(timezones=zones)
            | st.timedeltas() | st.decimals(allow_nan=False)
            | st.sampled_from([*t.Colour, *t.Level, *t.Word, *t.Right, t.Right.READ | t.Right.WRITE, t.Right(0),
                               t.add, t.Point, t.Tool, pathlib.Path("/a/b c")]))
keys = st.text() | st.sampled_from(["$msg", "$new", "$payload", "$", ""]) | st.integers() | st.tuples(st.text())
values = st.recursive(
    hashable | st.builds(t.Point, st.integers(), st.text()) | st.builds(t.Report, title=st.text(), day=st.dates()),
    lambda inner: (st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                   | st.dictionaries(keys, inner, max_size=3) | st.sets(hashable, max_size=3)
                   | st.frozensets(hashable, max_size=3) | st.builds(t.Point, st.integers(), inner)),
    max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(values)
def test_every_value_comes_out_as_it_went_in(value: Any) -> None:
    again = over(value)
    assert again == value
    assert type(again) is type(value) or isinstance(value, pathlib.PurePath)


@quick
@given(msgs)
def test_messages_come_out_equal(msg: Msg) -> None:
    assert over(msg) == msg
    assert over([{"a": msg}]) == [{"a": msg}]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0, t.FloatLike(1.5), 10**4000,
                                   Decimal("NaN"), "\u0000", "\ud800", bytearray(b"x"), dt.timedelta.max],
                         ids=lambda value: type(value).__name__)
def test_odd_values_come_out(value: Any) -> None:
    again = over(value)
    assert again == value or (again != again and value != value)
    assert math.copysign(1, again) == math.copysign(1, value) if isinstance(value, float) else True


P = sys.hash_info.modulus


@pytest.mark.parametrize("data", [
    {"$set": [1, 1.0]}, {"$set": [True, 1]}, {"$frozen": [0, False]}, {"$set": [{"$value": ["decimal", "1.0"]}, 1]},
    {"$dict": [[1, "a"], [1.0, "b"]]}, {"$set": ["a", "a"]},
])
def test_items_that_are_equal_here_are_not_lost_but_refused(data: Any) -> None:
    with pytest.raises(CannotTravel, match="equal here"):
        Reader(ALLOW).read(data)


@pytest.mark.parametrize("data", [
    {"$set": [n * P for n in range(5_000)]}, {"$frozen": [float(P + 1) * 2.0 ** (61 * n) for n in range(15)]
                                               + [P * n for n in range(5_000)]},
    {"$dict": [[n * P, 0] for n in range(5_000)]},
    {"$set": [{"$value": ["decimal", str(n * P)]} for n in range(2_000)]},
    {"$model": "tests.travellers:Numbers", "data": {"some": [n * P for n in range(5_000)], "named": {}}},
    {"$model": "tests.travellers:Numbers", "data": {"some": [], "named": {str(n * P): 1 for n in range(5_000)}}},
    {"$model": "tests.travellers:Numbers", "data": {"some": [f"{n * P}" for n in range(2_000)], "named": {}}},
    {"$model": "tests.travellers:Numbers", "data": {"some": [f" {n * P} " for n in range(2_000)], "named": {}}},
    {"$model": "tests.travellers:Numbers", "data": {"some": [[0, [n * P]] for n in range(2_000)], "named": {}}},
    {"$model": "tests.travellers:Numbers", "data": {"some": [{"x": n * P} for n in range(2_000)], "named": {}}},
    {"$model": "tests.travellers:Numbers", "data": None,
     "text": json.dumps({"some": [n * P for n in range(5_000)], "named": {}})},
])
def test_numbers_that_were_chosen_to_collide_cost_no_time(data: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(CannotTravel, match="of one hash"):
        Reader(ALLOW).read(data)
    assert time.perf_counter() - began < 1


def test_many_numbers_travel_in_sets_and_models() -> None:
    many = set(range(0, 300_000, 3)) | {n / 7 for n in range(1000)} | {n << 40 for n in range(1000)}
    assert over(many) == many
    numbers = t.Numbers(some=set(range(5_000)), named=dict.fromkeys(range(5000), 0))
    assert over(numbers) == numbers
    form = t.Form(data=[[-1 - (row >> bit & 1) for bit in range(6)] + [10**16 + row] for row in range(64)])
    assert over(form) == form  # -1 and -2 have one hash


def test_a_frozen_set_stays_one_so_that_it_can_be_a_key() -> None:
    value = {frozenset({1, 2}): {frozenset({"a"}), "b"}}
    assert over(value) == value


@pytest.mark.parametrize("value", [
    t.Frozen(tags=("a", "b")), t.Point(1, t.Point(2)), t.Report(title="x", raw=b"y", tags={"a"}, score=math.inf),
    t.Report(title="x", inner=t.Report(title="y", day=dt.date(2026, 1, 2))), t.Aliased(fullName="Ann"),
    t.Strict(day=dt.date(2026, 1, 2), tags=("a",)), t.Linked(url="https://x/y"),
    t.Said(msg=Msg("a", [{"type": "text", "text": "b"}], "user", {"k": 1})), t.MyMsg("a", "b", "user", mood="wild")])
def test_dataclasses_and_pydantic_models_come_out_as_they_are(value: Any) -> None:
    again = over(value)
    assert again == value
    assert type(again) is type(value)


def test_a_partial_is_called_with_what_it_holds() -> None:
    again = over(functools.partial(functools.partial(t.add, 1), b=2))
    assert again() == 3
    assert over(functools.partial(t.add, b=dt.date(2026, 1, 1))).keywords == {"b": dt.date(2026, 1, 1)}


# What records its construction ----------------------------------------------------------------------------

def test_an_agent_is_built_anew_with_its_id() -> None:
    agent = t.Holder("a", tools=[t.add, functools.partial(t.add, 1)])
    again = over(agent)
    assert type(again) is t.Holder
    assert again is not agent
    assert (again.id, again.name, again.helper) == (agent.id, "a", None)
    assert [tool(2) for tool in again.tools] == [2, 3]


def test_agents_and_tools_nest_to_any_depth() -> None:
    inner = t.Holder("in", t.Tool(t.Colour.RED, key=t.Report(title="r")))
    again = over(t.Holder("out", {"first": [inner, (t.Tool(),)]}))
    found = again.helper["first"][0]
    assert found.id == inner.id
    assert found.helper.items == (t.Colour.RED,)
    assert found.helper.named["key"].title == "r"
    assert isinstance(again.helper["first"][1][0], t.Tool)


def test_pipelines_travel_as_arguments() -> None:
    pipeline = SequentialPipeline([t.Holder("a"), FanoutPipeline([t.Holder("b")], reduce=t.Holder("c"))])
    again = over(t.Holder("out", pipeline)).helper
    assert [agent.name for agent in again.members()] == ["a", "b", "c"]


def test_what_is_read_twice_is_built_twice() -> None:
    data = Writer().write(t.Holder("a", tools=[1]), "the agent")
    one, two = Reader(ALLOW).read(data), Reader(ALLOW).read(data)
    one.tools.append(2)
    assert two.tools == [1]


# What is refused, with the argument's name and the remedy ---------------------------------------------------

class Local:
    pass


def test_what_cannot_travel_is_refused_with_a_remedy(tmp_path: pathlib.Path) -> None:
    def inner() -> None:
        pass

    class Inside(AgentBase):
        pass

    with socket.socket() as sock, (tmp_path / "f").open("w") as file:
        for value, match in ((lambda: 1, "lambda.*top level"), (inner, "defined inside a function.*top level"),
                             (Inside, "defined inside a function"), (sock, "socket"), (file, "TextIOWrapper"),
                             (threading.Lock(), "lock"), (object(), "builtins.object"), (len, "builtin"),
                             (t.Tool().method, "method"), ((i for i in ()), "generator"), (sys, "module"),
                             (OrderedDict(), "OrderedDict"), (namedtuple("P", "x")(1), "P"), (1j, "complex"),
                             (SecretStr("k"), "secret.*endpoint"), (SecretBytes(b"k"), "secret"),
                             (functools.partial(t.Point, 1), "partial"), (10**5000, "digits.*text"),
                             (functools.partial(lambda x: x, 1), "lambda"), (t.Boxed[int](value=1), "Boxed"),
                             (t.first_shadowed, "another")):
            said = refused(value, match)
            assert "argument 'tool' of Summarizer()" in said, said
            assert refused([{"k": value}], match)
    with pytest.raises(CannotTravel, match="argument 'helper' of Holder"):
        Writer().write(t.Holder("a", helper=lambda: 1), "the agent")
    with pytest.raises(CannotTravel, match="argument 2 of Holder"):
        Writer().write(t.Holder("a", [threading.Lock()]), "the agent")
    with pytest.raises(CannotTravel, match=r"Inside.*defined inside a function"):
        Writer().write(Inside(), "the agent")


def test_a_class_of_the_main_file_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t.Tool, "__module__", "__main__")
    assert "callsheet run FILE.py" in refused(t.Tool(), "main file.*CALLSHEET_MODULES")


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    refused(loop, "contains itself")
    knot: dict[str, Any] = {}
    knot["k"] = [knot]
    refused(knot, "contains itself")
    point = t.Point(1)
    point.y = point
    refused(point, "contains itself")


def test_secrets_inside_a_model_are_refused_not_starred_out() -> None:
    refused(t.Secretive(keys={"a": SecretStr("k")}), "secret")


def test_a_model_that_pydantic_cannot_write_is_refused() -> None:
    refused(t.Odd(thing=threading.Lock()), "Odd, cannot be written")
    refused(t.Report(title="x", raw=b"\xff"), "Report, cannot be written")


@pytest.mark.parametrize("odd", [{1}, dt.datetime.now(), object(), b"x", (1,), 10**5000, {1: 2}, Msg("a", "b", "user")],
                         ids=lambda odd: type(odd).__name__)
def test_a_message_that_was_made_wrong_afterwards_is_refused(odd: Any) -> None:
    msg = Msg("a", [{"type": "tool_use", "id": "1", "name": "f", "input": {}}], "user")
    msg.metadata["k"] = [odd]
    assert "argument 'tool' of Summarizer()['metadata']['k'][0]" in refused(msg, "JSON")
    msg.metadata.clear()
    msg.content[0]["input"]["q"] = odd  # type: ignore[index, typeddict-item]
    refused(msg, "JSON")


def test_a_dataclass_that_cannot_be_built_again_says_so_there() -> None:
    data = Writer().write(t.Needy(extra=1), "it")
    with pytest.raises(CannotTravel, match=r"travellers:Needy cannot be built here.*TypeError"):
        Reader(ALLOW).read(data)


def test_the_submitters_allow_list_refuses_early() -> None:
    with pytest.raises(ModuleNotAllowed, match=r"argument 2 of Holder.*json:dumps.*CALLSHEET_MODULES"):
        Writer(ALLOW).write(t.Holder("a", json.dumps), "the agent")


# What a message can never make a worker do --------------------------------------------------------------------

def test_modules_are_allowed_with_what_is_under_them_and_nothing_beside() -> None:
    allow = AllowList(("a.b",))
    assert allow.admits("a.b")
    assert allow.admits("a.b.c.d")
    for other in ("a", "a.bc", "a.b_c", "a.B", "b", "", "a.", "xa.b", "a.b c", "a.b.", "a.b..c", "a.b._c",
                  "a.b.c.__main__", "a.b.c-d", "a.b.1", "a.b.c\n", "a.b./etc"):
        assert not allow.admits(other)
    assert not AllowList(()).admits("")


@pytest.mark.parametrize("ref", [
    "os:system", "builtins:eval", "builtins:exec", "subprocess:Popen", "importlib:import_module", ":", "", "x", ":x",
    "tests.travellersx:add", "tests:add", "tests.travellers", "tests.travellers:", "tests.travellers:.", ".:x",
    "tests.travellers:os.system", "tests.travellers:os", "tests.travellers:subprocess.run", "tests.travellers:join",
    "tests.travellers:subprocess.Popen", "tests.travellers:date", "tests.travellers:AgentBase",
    "tests.travellers:Holder.__init__.__globals__", "tests.travellers:Holder.__class__",
    "tests.travellers:__builtins__",
    "tests.travellers:Holder.__base__", "tests.travellers:Holder.__dict__", "tests.travellers:__loader__",
    "tests.travellers:Holder.mro", "tests.travellers:Holder.__subclasses__", "tests.travellers:Tool.method.__code__",
    "tests.travellers:add.__globals__", "tests.travellers:first_shadowed", "tests.travellers..:add",
    "tests.travellers.nope:x",
    "callsheet.errors:Any", "callsheet.errors:CallsheetError", "callsheet.settings.model:Settings",
    "callsheet.settings.model:os", "callsheet.settings.model:get_settings", "callsheet.workers.io:app",
    "callsheet.tasks.loop:run_in_thread", "callsheet.messages.allow:importlib", "callsheet.messages.allow:AllowList",
    "callsheet.agents.options:CallOptions", "callsheet.agents.base:BoundCall", "callsheet.messages.wire:Writer",
    "callsheet.agents.base:print_to_console", "callsheet.models.base:ChatUsage", "callsheet.cli.main:main",
    "callsheet:Settings", "callsheet:map", "callsheet:inline", "callsheet.tools.signature:_modelled",
    "callsheet.tools.signature:signature_of", "callsheet.tools.threads:in_thread",
    "callsheet.models.base:ChatModelBase", "tests.travellers:_hidden", "tests.travellers:_Hidden",
    "tests.travellers:Tool.Inner", "tests.travellers:Tool.fixed", "tests.__main__:add"])
def test_nothing_else_can_be_named(ref: str) -> None:
    for data in ({"$fn": ref}, {"$type": ref}, {"$new": ref, "args": [], "kwargs": {}}, {"$enum": [ref, "x"]},
                 {"$model": ref, "data": {}}, {"$data": ref, "fields": {}}, {"$call": [{"$fn": ref}, [], {}]}):
        with pytest.raises(CannotTravel):
            Reader(ALLOW).read(data)


def test_a_module_outside_is_not_even_imported() -> None:
    assert "antigravity" not in sys.modules
    for ref in ("antigravity:fly", "callsheet.workers.io:x", "callsheet.cli.main:x"):
        with pytest.raises(ModuleNotAllowed):
            Reader(ALLOW).read({"$new": ref, "args": [], "kwargs": {}})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("ref", ["tests.travellers:Point", "tests.travellers:Report", "tests.travellers:Colour",
                                 "tests.travellers:add"])
def test_only_what_records_its_construction_is_built(ref: str) -> None:
    with pytest.raises(CannotTravel):
        Reader(ALLOW).read({"$new": ref, "args": [], "kwargs": {}})


@pytest.mark.parametrize(("tag", "ref"), [("$model", "Point"), ("$data", "Report"), ("$enum", "Point"),
                                          ("$type", "add"),
                                          ("$fn", "Point"), ("$fn", "Colour"), ("$enum", "Report")])
def test_each_tag_takes_its_own_kind_only(tag: str, ref: str) -> None:
    name = f"tests.travellers:{ref}"
    data = {"$enum": [name, "x"]} if tag == "$enum" else {tag: name, "data": {}, "fields": {}}
    with pytest.raises(CannotTravel):
        Reader(ALLOW).read(data)


@pytest.mark.parametrize("value", [CallOptions(priority=1), Settings(), BoundCall, Settings, CallOptions])
def test_callsheets_own_classes_travel_only_if_they_are_made_to(value: Any) -> None:
    refused(value, "not made to travel", ModuleNotAllowed)
    assert over(AgentBase) is AgentBase
    assert over(Msg) is Msg


#: Recorded classes of the package that a message may not name: bases, for users to derive from.
BASES = {"Recorded", "UserInputBase", "FormatterBase", "TruncatedFormatterBase", "ChatFormatter",
         "ImagePromotingFormatter", "PromotingFormatter", "MultiAgentFormatter", "OpenAIForms", "TokenCounterBase",
         "MCPClientBase",
         "StatefulClientBase", "MemoryBase", "ChatModelBase", "RemoteChatModel", "SdkChatModel", "Pipeline", "Grouped"}


def test_every_class_of_callsheets_that_a_message_may_name_is_listed() -> None:
    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    for module in pkgutil.walk_packages(callsheet.__path__, "callsheet."):
        if not module.name.startswith(("callsheet.cli", "callsheet.workers")):
            importlib.import_module(module.name)
    recorded = {f"{cls.__module__}:{cls.__qualname__}" for cls in below(Recorded) | {Msg}
                if cls.__module__.startswith("callsheet.") and cls.__qualname__ not in BASES}
    assert recorded == OWN_CLASSES
    for ref in OWN_CLASSES:
        assert AllowList(("callsheet",)).resolve(ref, "class").__qualname__ == ref.partition(":")[2]
        with pytest.raises(ModuleNotAllowed):  # not even where the settings name the package itself
            AllowList(("callsheet",)).resolve(ref.replace(":", "x:"), "class")


@pytest.mark.parametrize("method", ["_secret", "__init__", "model_validate", "model_construct", "model_copy",
                                    "register_tool_function", "clear", "apply_wire_extras", "register_instance_hook"])
def test_a_message_names_no_methods_of_callsheet_or_pydantic_as_tools(method: str) -> None:
    objects = [Writer().write(value, "it") for value in (t.Holder("h"), t.Report(title="t"))]
    for data in ({"own": method}, *({"method": [value, method]} for value in objects)):
        toolkit = {"$new": "callsheet.tools.toolkit:Toolkit", "args": [], "kwargs": {},
                   "extras": {"tools": {"x": {"function": data}}}}
        with pytest.raises(CannotTravel, match="no method"):
            Reader(ALLOW).read(toolkit)


@pytest.mark.parametrize("data", [
    [{"$value": ["path", "/tmp/x"]}, "write_text"], [{"$value": ["uuid", "0" * 32]}, "hex"],
    [{"$iso": ["date", "2026-01-01"]}, "replace"], [{"$fn": "tests.travellers:add"}, "mro"],
    [{"$msg": {"name": "a", "role": "user", "content": ""}}, "to_dict"],
])
def test_a_message_makes_no_tools_of_what_it_need_not_name(data: Any) -> None:
    """A path's methods write and remove files."""
    with pytest.raises(CannotTravel, match="no method"):
        Reader(ALLOW).read({"$new": "callsheet.tools.toolkit:Toolkit", "args": [], "kwargs": {},
                            "extras": {"tools": {"x": {"function": {"method": data}}}}})


def test_a_missing_module_or_name_says_what_to_do() -> None:
    with pytest.raises(CannotTravel, match=r"cannot be imported here: ModuleNotFoundError.*PYTHONPATH"):
        Reader(AllowList(("no.such",))).read({"$fn": "no.such.module:f"})
    with pytest.raises(CannotTravel, match=r"does not exist here\. Do the workers run an older version"):
        Reader(ALLOW).read({"$fn": "tests.travellers:gone"})


@pytest.mark.parametrize("data", [
    {"$new": "tests.travellers:Holder", "args": [], "kwargs": {"colour": 1}},
    {"$new": "tests.travellers:Holder", "args": [1, 2, 3, 4], "kwargs": {}},
    {"$new": "tests.travellers:Grumpy", "args": [2], "kwargs": {}},
    {"$data": "tests.travellers:Point", "fields": {"z": 1}},
    {"$data": "tests.travellers:Fussy", "fields": {"size": -1}},
    {"$model": "tests.travellers:Report", "data": {"score": "x"}},
    {"$model": "tests.travellers:Said", "data": {"msg": {}}},
    {"$enum": ["tests.travellers:Colour", "BLUE"]}, {"$enum": ["tests.travellers:Right", None, 64]}])
def test_a_class_that_changed_meanwhile_is_named(data: dict[str, Any]) -> None:
    name = next(iter(data.values()))
    with pytest.raises(CannotTravel, match=name if isinstance(name, str) else name[0]):
        Reader(ALLOW).read(data)


tags = st.sampled_from(["$msg", "$tuple", "$set", "$frozen", "$bytes", "$dict", "$iso", "$value", "$new", "$model",
                        "$data", "$fn", "$type", "$call", "$enum", "$payload", "$", "args", "kwargs",
                        "extras", "data", "fields",
                        "id", "hooks", "name", "role", "content"])
names = st.sampled_from(["tests.travellers:" + name for name in (
    "Holder", "Tool", "Point", "Report", "Colour", "Right", "add", "Fussy", "Said", "Grumpy", "Needy")])
scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | names
           | st.sampled_from(["date", "datetime", "decimal", "uuid", "timedelta", "float", "path", "@0", "@x"]))
wild = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(tags | st.text(max_size=3), inner, max_size=4), max_leaves=12)


@settings(max_examples=400, deadline=None)
@given(wild)
def test_whatever_is_read_only_our_errors_come(data: Any) -> None:
    for reader in (Reader(ALLOW), Reader(ALLOW, local=[])):
        with contextlib.suppress(CallsheetError):
            reader.read(data)


@settings(max_examples=200, deadline=None)
@given(tags, wild, names, wild, wild)
def test_a_damaged_message_gives_only_our_errors(tag: str, inner: Any, ref: str, one: Any, two: Any) -> None:
    whole = Writer().write(t.Holder("a", t.Tool(t.Colour.RED, t.Point(1)), tools=[t.add]), "the agent")
    for data in ({tag: inner}, {tag: ref, "args": one, "kwargs": two, "data": one, "fields": two},
                 {**whole, "args": one}, {**whole, "extras": one}, {**whole, "$new": one}, {tag: [ref, one, two]}):
        with contextlib.suppress(CallsheetError):
            Reader(ALLOW).read(data)


def test_a_deep_message_gives_our_error() -> None:
    data: Any = []
    for _ in range(100_000):
        data = [data]
    with pytest.raises(CannotTravel, match="too deeply"):
        Reader(ALLOW).read(data)


def test_an_unknown_tag_says_the_versions_differ() -> None:
    with pytest.raises(CannotTravel, match=r"'\$new2' is not known here.*older version"):
        Reader(ALLOW).read({"$new2": 1})


# Large payloads ---------------------------------------------------------------------------------------------

def test_small_payloads_stay_and_large_ones_become_a_reference() -> None:
    cfg = Settings(payload_inline_max=2000, payload_max=10_000)
    assert payloads.pack({"a": "x" * 100}, cfg, "it") == ({"a": "x" * 100}, {})
    data = {"a": "é" * 1000}
    ref, blobs = payloads.pack(data, cfg, "it")
    assert payloads.refs([ref, {"b": 1}]) == set(blobs) == {ref["$payload"]}
    found = {digest: json.loads(text) for digest, text in blobs.items()}
    assert payloads.fill([ref, 1], found) == [data, 1]
    with pytest.raises(PayloadTooLarge, match=r"it is 12,0\d\d bytes as JSON; the limit is 10,000.*PAYLOAD_MAX"):
        payloads.pack("x" * 12_000, cfg, "it")


@quick
@given(values)
def test_what_users_write_is_never_taken_for_a_reference(value: Any) -> None:
    data = Writer().write({"$payload": value, "$seq": 1}, "it")
    assert payloads.refs(data) == set()
    assert payloads.fill(data, {}) == data


MARK = {"__type__": "base64", "__value__": "2020-01-01"}
FOREIGN = {"__type__": ["anything"], "__value__": {"__type__": "uuid", "__value__": MARK}}


@pytest.mark.parametrize("value", [
    MARK, [FOREIGN], {"a": (MARK, {"$x": MARK})}, {**MARK, "more": 1}, Msg("u", "x", "user", metadata=FOREIGN),
    Msg("u", [{"type": "tool_use", "id": "1", "name": "n", "input": MARK}], "assistant"), t.Form(data=[MARK]),
    t.Form(data="text"),
])
def test_data_that_look_like_marks_of_kombus_types_travel_unchanged(value):
    """A model's arguments, an end user's JSON: kombu would make bytes of them, or refuse the message."""
    written = kombu_json.loads(kombu_json.dumps(Writer().write(value, "it")))
    found = Reader(AllowList(("tests",))).read(written)
    assert [getattr(one, "to_dict", lambda one=one: one)() for one in (found, value)] == [
        getattr(value, "to_dict", lambda: value)()] * 2
