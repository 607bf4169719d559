"""MCP clients in toolkits; the client here keeps to the protocol and has no server."""

import asyncio
import os
import re
from typing import Any, ClassVar

import pytest

from callsheet import Toolkit
from callsheet.errors import ToolError, UsageError
from tests.agents.tools import Caller, Server, add, shout
from tests.fleet import Fleet
from tests.toolbox import called, text_of


def registered(kit: Toolkit, client: Server, **options: Any) -> Toolkit:
    asyncio.run(kit.register_mcp_client(client, **options))
    return kit


def run(kit: Toolkit, name: str, **arguments: Any) -> str:
    return text_of(asyncio.run(called(kit, name, **arguments)))


def test_a_clients_tools_are_tools() -> None:
    client = Server("srv", ["one", "two", "three"])
    kit = registered(Toolkit(), client, disable_funcs=["three"], preset_kwargs_mapping={"one": {"key": "k"}},
                     postprocess_func=shout, execution_timeout=7)
    assert list(kit.tools) == ["one", "two"]
    assert client.asked == [("one", 7), ("two", 7)]
    one = kit.tools["one"]
    assert (one.mcp_name, one.source) == ("srv", "mcp_server")
    assert one.json_schema["function"]["parameters"]["required"] == ["word"]
    assert run(kit, "one", word="w") == f"SRV.ONE {{'WORD': 'W', 'KEY': 'K'}} {os.getpid()}"
    assert "'key' is a required property" in run(kit, "two", word="w")
    assert "this is not for you to give" in run(kit, "one", word="w", key="mine")
    asyncio.run(kit.remove_mcp_clients("other"))
    asyncio.run(kit.remove_mcp_clients(["srv"]))
    assert not kit.tools


def test_a_schema_that_is_none_takes_anything() -> None:
    kit = registered(Toolkit(), Server("srv", ["odd"]))
    assert kit.get_json_schemas()[0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert "{'x': 1}" in run(kit, "odd", x=1)


def test_names_that_no_provider_takes_are_mapped_both_ways() -> None:
    names = ["a.b", "a/b", "a_b", "3d", "größe", "n" * 70, "n" * 69 + "m", "日本", "中国", "odd"]
    kit = registered(Toolkit(), Server("srv", names), preset_kwargs_mapping={"a.b": {"key": "k"}})
    assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_-]{0,63}", name) for name in kit.tools)
    assert len(kit.tools) == len(names) and "a_b" in kit.tools
    assert [schema["function"]["name"] for schema in kit.get_json_schemas()] == list(kit.tools)
    for name, server_name in zip(kit.tools, names, strict=True):
        assert run(kit, name, word="w", key="k").startswith(f"srv.{server_name} ") or server_name == "a.b"
    assert run(kit, "a.b", word="w").startswith("srv.a.b ")  # a model that knows the server's name
    other = Toolkit()
    other.apply_wire_extras(kit.wire_extras())
    assert list(other.tools) == list(kit.tools)
    assert run(other, "_3d", word="w", key="k").startswith("srv.3d ")
    kit.remove_tool_function("a/b", allow_not_exist=False)
    assert len(kit.tools) == len(names) - 1
    kit.register_tool_function(add, func_name="plus.two")
    kit.register_tool_function(add, func_name="plus two", namesake_strategy="rename")
    assert sum(name.startswith("plus_two") for name in kit.tools) == 2


def test_what_cannot_be_right_is_refused_and_nothing_is_registered() -> None:
    kit = Toolkit()
    kit.register_tool_function(add, func_name="two")
    client = Server("srv", ["one", "two"])
    with pytest.raises(ToolError, match="'two'"):
        registered(kit, client)
    assert list(kit.tools) == ["two"]
    registered(kit, client, namesake_strategy="skip", group_name="basic")
    assert kit.tools["two"].source == "function" and kit.tools["one"].source == "mcp_server"
    with pytest.raises(ToolError, match="both name one"):
        registered(Toolkit(), client, enable_funcs=["one"], disable_funcs=["one"])
    with pytest.raises(UsageError, match="enable_funcs"):
        registered(Toolkit(), client, enable_funcs=[1])
    with pytest.raises(UsageError, match="preset_kwargs_mapping"):
        registered(Toolkit(), client, preset_kwargs_mapping=["x"])
    client.is_connected = False
    with pytest.raises(RuntimeError, match="connect"):
        registered(Toolkit(), client)


def test_one_tool_alone_can_be_registered() -> None:
    class Function:
        name, mcp_name = "one", "srv"
        json_schema: ClassVar[Any] = {"type": "function", "function": {
            "name": "one", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}}

        async def __call__(self, **kwargs: Any) -> str:
            return f"got {kwargs}"

    kit = Toolkit()
    kit.register_tool_function(Function())
    assert kit.tools["one"].mcp_name == "srv"
    assert "word: 3 is not of type 'string'" in run(kit, "one", word=3)
    assert run(kit, "one", word="w") == "got {'word': 'w'}"
    with pytest.raises(UsageError, match="queue"):
        kit.register_tool_function(Function(), func_name="other", queue="cpu")


def test_a_client_travels_with_the_toolkit_and_is_asked_for_a_tool_at_its_first_call(fleet: Fleet) -> None:
    kit = registered(Toolkit(), Server("srv", ["one", "two", "odd"]), preset_kwargs_mapping={"one": {"key": "k"}},
                     timeout=20)
    reply = Caller("c", kit).submit("one", {"word": "w"}).get(30)
    assert reply.content == f"srv.one {{'word': 'w', 'key': 'k'}} {reply.metadata['pid']}"
    assert reply.metadata["schemas"] == kit.get_json_schemas()
    assert reply.metadata["pid"] != os.getpid()
