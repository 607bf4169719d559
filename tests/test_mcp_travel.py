"""What of an MCP client may be in a message, and what its constructor refuses; bounds of messages."""

import asyncio
import builtins
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import callsheet
from callsheet import Settings, Toolkit
from callsheet.errors import CannotTravel, McpMisused, ModuleNotAllowed, SettingsError, UsageError
from callsheet.mcp import HttpStatefulClient, HttpStatelessClient, MCPToolFunction, StdIOStatefulClient, home
from callsheet.mcp.bounds import TOO_LARGE, Lines
from callsheet.mcp.http import _Events
from callsheet.mcp.lifecycle import Attempt
from callsheet.messages import Recorded
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.settings import use_settings
from callsheet.tasks.homes import homes_of
from tests.agents.tools import Caller
from tests.mcp_servers import BAD, TIME

HTTP = "streamable_http"
URL = "https://host/mcp"


def sent(client: Recorded) -> Any:
    """The client as a worker builds it, of the JSON that a message would hold."""
    data = json.loads(json.dumps(Writer().write(client, "the client")))
    return Reader(AllowList(())).read(data)


def test_a_client_travels_by_its_arguments() -> None:
    for cls in (HttpStatefulClient, HttpStatelessClient):
        client = cls("s", HTTP, URL, {"X-Team": "t"}, timeout=3, endpoint="e", terminate_on_close=False)
        assert sent(client).spec == client.spec
    with use_settings(Settings.load(mcp={"servers": {"time": {"command": str(TIME), "args": ["-x"]}}})):
        for client in (StdIOStatefulClient("time"), StdIOStatefulClient("time", str(TIME), ["-x"])):
            assert sent(client).spec == client.spec


@pytest.mark.parametrize(("client", "names"), [
    (HttpStatefulClient("s", HTTP, URL, {"Authorization": "Bearer sesame"}), "'Authorization'"),
    (HttpStatelessClient("s", "sse", URL, {"x-api-key": "sesame"}), "'x-api-key'"),
    (HttpStatefulClient("s", HTTP, URL, {"Cookie": "sesame"}), "'Cookie'"),
    (HttpStatefulClient("s", HTTP, "https://me:sesame@host/mcp"), "a user or a password"),
    (HttpStatefulClient("s", HTTP, URL + "?access_token=sesame"), "'access_token'"),
])
def test_secrets_are_refused_at_submission_with_the_remedy(client: Any, names: str) -> None:
    with pytest.raises(CannotTravel, match=f"{names}.*on an endpoint of their settings") as refused:
        Writer().write(client, "it")
    assert "sesame" not in str(refused.value)
    kit = Toolkit()
    with callsheet.inline(), pytest.raises(CannotTravel, match=names):
        Caller("c", kit).submit("x", {"client": client})


def test_secrets_of_a_program_are_refused_at_submission_with_the_remedy() -> None:
    client = StdIOStatefulClient("s", "program", ["-a"], {"BRAVE_API_KEY": "sesame"})
    with pytest.raises(CannotTravel, match=r"BRAVE_API_KEY.*mcp\.servers, env_from") as refused:
        Writer(local=[]).write(client, "it")
    assert "sesame" not in str(refused.value)


def test_a_pattern_names_the_programs_of_many_clients() -> None:
    servers = {"browser-*": {"command": "one"}, "browser-big-*": {"command": "two"}, "browser-x": {"command": "three"}}
    with use_settings(Settings.load(mcp={"servers": servers})) as settings:
        for name, command in (("browser-1", "one"), ("browser-big-1", "two"), ("browser-x", "three")):
            client = sent(StdIOStatefulClient(name))
            assert client.spec.program(settings).command == command
        with pytest.raises(ModuleNotAllowed):
            sent(StdIOStatefulClient("other-1"))


@pytest.mark.parametrize("client", [
    StdIOStatefulClient("time", "other"), StdIOStatefulClient("time", "clock", ["-x", "-y"]),
    StdIOStatefulClient("time", "clock", ["-x"], {"LD_PRELOAD": "evil.so"}),
    StdIOStatefulClient("time", "clock", ["-x"], cwd="/tmp"), StdIOStatefulClient("other", "clock", ["-x"]),
    StdIOStatefulClient("other")])
def test_a_program_that_the_settings_do_not_name_is_refused_on_both_sides(client: StdIOStatefulClient) -> None:
    data = Writer(local=[Recorded]).write(client, "it")  # as a message that somebody made up
    data["$new"] = "callsheet.mcp.clients:StdIOStatefulClient"
    with use_settings(Settings.load(mcp={"servers": {"time": {"command": "clock", "args": ["-x"]}}})):
        with pytest.raises(ModuleNotAllowed, match=r"worker starts none that its settings do not name.*callsheet.toml"):
            Writer().write(client, "it")
        with pytest.raises(ModuleNotAllowed, match="worker starts none"):
            Reader(AllowList(())).read(data)


def test_a_program_of_the_settings_gets_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_KEY", "sesame")
    monkeypatch.setenv("OTHER", "hidden")
    monkeypatch.setenv("PYTHONPATH", "")
    server = {"command": sys.executable, "args": BAD, "env": {"LEVEL": "3"}, "env_from": "TOOL_KEY", "cwd": "."}

    async def main() -> list[str]:
        client = StdIOStatefulClient("bad")
        await client.connect()
        env = await client.get_callable_function("env")
        found = [(await env(name=name)).content[0]["text"] for name in ("TOOL_KEY", "LEVEL", "OTHER")]
        await client.close()
        return found

    with use_settings(Settings.load(mcp={"servers": {"bad": server}})):
        assert asyncio.run(main()) == ["sesame", "3", "(unset)"]
    with use_settings(Settings.load()), pytest.raises(SettingsError, match="no MCP server 'bad' in the settings"):
        asyncio.run(StdIOStatefulClient("bad").connect())


@pytest.mark.parametrize(("make", "says"), [
    (lambda: HttpStatefulClient("", HTTP, URL), "a text is needed"),
    (lambda: HttpStatefulClient("s", "http", URL), "one of streamable_http, sse"),  # type: ignore[arg-type]
    (lambda: HttpStatefulClient("s", HTTP), "neither url nor endpoint"),
    (lambda: HttpStatefulClient("s", HTTP, "ftp://x"), "does not begin with http"),
    (lambda: HttpStatefulClient("s", HTTP, URL, {"a": 1}), "texts by name"),  # type: ignore[dict-item]
    (lambda: HttpStatefulClient("s", HTTP, URL, timeout=0), "timeout=0"),
    (lambda: HttpStatelessClient("s", "sse", URL, http_client=1), "http_client: no such option.*There are endpoint"),
    (lambda: StdIOStatefulClient("s", args=["x"]), "are of a command")])
def test_what_cannot_be_right_is_refused(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


def test_two_servers_of_one_name_are_told_apart_and_both_named(caplog: pytest.LogCaptureFixture) -> None:
    async def pids() -> list[str]:
        clients = [StdIOStatefulClient("same", sys.executable, BAD, {"PYTHONPATH": ".", "N": n}) for n in "112"]
        found = []
        for client in clients:
            await client.connect()
            count = await client.get_callable_function("count")
            found.append((await count()).content[0]["text"])
        for client in clients:
            await client.close()
        return found

    with caplog.at_level(logging.WARNING):
        first, second, third = asyncio.run(pids())
    assert (first.split()[0], second.split()[0], third.split()[0]) == ("1", "2", "1")
    assert first.split()[1] == second.split()[1] != third.split()[1]
    assert "mcp_two_of_one_name server=same" in caplog.text


def test_an_agents_clients_with_affinity_are_found_where_it_has_them() -> None:
    class Tool:
        name, description, input_schema = "t", "", {"type": "object"}

    def client(name: str, affinity: bool) -> StdIOStatefulClient:
        return StdIOStatefulClient(name, affinity=affinity)

    kit = Toolkit()
    for name, affinity in (("b", True), ("c", False)):
        kit.register_tool_function(MCPToolFunction(client(name, affinity), Tool()), func_name=name)
    agent = Caller("c", kit)
    assert homes_of(agent) == ("b",)
    agent.own, agent.other = client("a", True), HttpStatefulClient("d", HTTP, URL)  # type: ignore[attr-defined]
    assert homes_of(agent) == ("a", "b")
    agent.web = HttpStatefulClient("e", HTTP, URL, affinity=True)  # type: ignore[attr-defined]
    assert homes_of(agent) == ("a", "b", "e")
    assert sent(agent.web).affinity  # type: ignore[attr-defined]


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "mcp":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name == "callsheet.mcp.session" or name.startswith("mcp.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "mcp", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(home, "_loaded", [])
    with pytest.raises(UsageError, match=r"pip install 'callsheet\[mcp\]'"):
        asyncio.run(HttpStatelessClient("s", HTTP, URL).list_tools())


def test_a_client_that_was_closed_says_so() -> None:
    with pytest.raises(McpMisused):
        asyncio.run(HttpStatefulClient("s", HTTP, URL).close())


# Bounds ------------------------------------------------------------------------------------------

def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    out, at = [], 0
    while at < len(data):
        size = sizes[len(out) % len(sizes)]
        out.append(data[at:at + size])
        at += size
    return out


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.binary(max_size=40),
       st.lists(st.integers(1, 9), min_size=1))
def test_lines_come_as_they_were_however_they_are_cut(lines: list[bytes], rest: bytes, sizes: list[int]) -> None:
    reader, rest = Lines(100), rest.replace(b"\n", b"")
    data = b"".join(line + b"\n" for line in lines) + rest
    assert [got for piece in pieces_of(data, sizes) for got in reader.feed(piece)] == lines
    assert reader.rest() == rest


@pytest.mark.parametrize("message", [
    '{"jsonrpc":"2.0","id":%s,"result":{"content":"BULK"}}',
    '{"result":{"id":99,"content":"BULK"},"jsonrpc":"2.0","id":%s}',
    '{"jsonrpc": "2.0", "result": "BULK", "id": %s}', '{"id":%s,"jsonrpc":"2.0","result":"BULK"}'])
@pytest.mark.parametrize("ident", ["7", '"a-7"'])
@pytest.mark.parametrize("size", [7, 5000])
def test_what_is_too_large_is_answered_by_an_error_with_its_id(message: str, ident: str, size: int) -> None:
    large = (message % ident).replace("BULK", "x" * 20_000).encode()
    lines, events = Lines(10_000), Lines(10_000, b"data:")
    (line, after) = [got for piece in pieces_of(large + b"\nnext\n", [size]) for got in lines.feed(piece)]
    stream = b"event: message\r\ndata: " + large + b"\r\n\r\ndata: n\r\n\r\n"
    (name, event, *last) = [got for piece in pieces_of(stream, [size]) for got in events.feed(piece)]
    assert event.startswith(b"data:")
    for data in (line, event.removeprefix(b"data:")):
        answer = json.loads(data)
        assert answer["id"] == json.loads(ident) and answer["error"]["code"] == TOO_LARGE
    assert (after, name, last) == (b"next", b"event: message", [b"", b"data: n", b""])


@given(st.lists(st.text("abc: ", max_size=20)), st.sampled_from(["\n", "\r\n", "\r"]),
       st.lists(st.integers(1, 9), min_size=1))
def test_lines_of_events_end_as_the_standard_allows(lines: list[str], end: str, sizes: list[int]) -> None:
    reader, data = Lines(100, b"data:"), "".join(line + end for line in lines).encode()
    got = [line for piece in pieces_of(data, sizes) for line in reader.feed(piece)]
    assert [line.decode() for line in got] == lines and reader.rest() == b""


def test_an_event_of_many_lines_is_bounded_as_one_of_one_line_is() -> None:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 500 + b"\n"

    async def read() -> int:
        return sum([len(piece) async for piece in _Events(body(), 10_000, Attempt())])

    with pytest.raises(httpx2.SSEError, match="over 10,000 bytes"):
        asyncio.run(read())
