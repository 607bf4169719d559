"""MCP clients against official servers, which nobody here wrote: over stdio, SSE and streamable HTTP."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest

from callsheet import Toolkit
from callsheet.errors import McpMisused, McpTimeout, McpUnavailable, ToolError, ToolFailed
from callsheet.mcp import (
    HttpStatefulClient,
    HttpStatelessClient,
    MCPClientBase,
    StatefulClientBase,
    StdIOStatefulClient,
)
from tests.conftest import missing
from tests.mcp_servers import TIME, HttpServer, everything, running
from tests.toolbox import called, text_of

TRANSPORTS = ("stdio", "sse", "streamable_http")


@pytest.fixture(scope="module")
def main_file() -> str:
    found = everything()
    if found is None:
        missing("npm's @modelcontextprotocol/server-everything")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def servers(main_file: str) -> Iterator[dict[str, HttpServer]]:
    with running("node", main_file, "sse", path="/sse") as sse, \
            running("node", main_file, "streamableHttp", path="/mcp") as http:
        yield {"sse": sse, "streamable_http": http}


def client_of(transport: Any, servers: dict[str, HttpServer], main_file: str, **more: Any) -> StatefulClientBase:
    if transport == "stdio":
        return StdIOStatefulClient("everything", "node", [main_file, "stdio"], **more)
    return HttpStatefulClient("everything", transport, servers[transport].url, **more)


@contextlib.asynccontextmanager
async def connected(client: StatefulClientBase) -> AsyncIterator[StatefulClientBase]:
    await client.connect()
    try:
        yield client
    finally:
        if client.is_connected:
            await client.close()


async def ask(client: MCPClientBase, tool: str, /, timeout: float | None = None, **arguments: Any) -> str:
    function = await client.get_callable_function(tool, execution_timeout=timeout)
    response = await function(**arguments)
    return "".join(block.get("text", f"<{block['type']}>") for block in response.content)


async def under_way(client: MCPClientBase) -> "asyncio.Task[str]":
    """A long call that the server has begun: it has answered one that was sent behind it."""
    await client.list_tools()  # so that neither has to ask first
    long = asyncio.create_task(ask(client, "trigger-long-running-operation", duration=60, steps=2))
    assert await asyncio.create_task(ask(client, "echo", message="behind")) == "Echo: behind"
    return long


def children() -> list[int]:
    """Servers that speak over pipes to this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline()[-1:] == ["stdio"]:
                found.append(child.pid)
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_servers_tools_are_listed_and_called(transport: str, servers: dict[str, HttpServer], main_file: str) -> None:
    async def main() -> None:
        async with connected(client_of(transport, servers, main_file)) as client:
            assert {"echo", "get-sum", "get-tiny-image"} <= {tool.name for tool in await client.list_tools()}
            assert await ask(client, "echo", message="hi") == "Echo: hi"
            assert await ask(client, "get-sum", a=1, b=2) == "The sum of 1 and 2 is 3."
            assert "<image>" in await ask(client, "get-tiny-image")
            data = (await (await client.get_callable_function("get-structured-content"))(location="Chicago")).metadata
            assert set(data["structured_content"]) == {"temperature", "conditions", "humidity"}
            assert "demo://resource/dynamic/blob/1" in await ask(client, "get-resource-links", count=2)
            assert "demo://" in await ask(client, "get-resource-reference", resourceType="Text", resourceId=1)
            assert "bytes of" in await ask(client, "get-resource-reference", resourceType="Blob", resourceId=1)
            with pytest.raises(ToolFailed, match=r"do not fit.*\n  a: 'x'"):
                await ask(client, "get-sum", a="x", b=2)
            with pytest.raises(ToolError, match=r"no tool 'nothing'; it has echo"):
                await client.get_callable_function("nothing")
            raw = await (await client.get_callable_function("echo", wrap_tool_result=False))(message="raw")
            assert raw.content[0].text == "Echo: raw" and raw.is_error is False

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_calls_side_by_side_share_the_session(transport: str, servers: dict[str, HttpServer], main_file: str) -> None:
    async def main() -> None:
        async with connected(client_of(transport, servers, main_file)) as client:
            echo = await client.get_callable_function("echo")
            said = await asyncio.gather(*(echo(message=str(number)) for number in range(40)))
            assert [response.content[0]["text"] for response in said] == [f"Echo: {n}" for n in range(40)]
            if transport == "stdio":
                assert len(children()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_connect_close_and_calls_may_be_of_different_tasks_and_loops(
        transport: str, servers: dict[str, HttpServer], main_file: str) -> None:
    client = client_of(transport, servers, main_file)
    asyncio.run(client.connect())
    with pytest.raises(McpMisused, match=r"connected already"):
        asyncio.run(client.connect())
    assert client.is_connected
    assert asyncio.run(ask(client, "echo", message="a")) == "Echo: a"

    async def main() -> None:
        assert await asyncio.create_task(ask(client, "echo", message="b")) == "Echo: b"
        await asyncio.create_task(client.close())

    asyncio.run(main())
    assert not client.is_connected
    with pytest.raises(McpMisused, match=r"not connected"):
        asyncio.run(client.close())
    with pytest.raises(McpMisused, match=r"was closed"):
        asyncio.run(client.list_tools())
    asyncio.run(client.connect())
    assert asyncio.run(ask(client, "echo", message="c")) == "Echo: c"
    asyncio.run(client.close())
    assert children() == []


@pytest.mark.parametrize("transport", ["sse", "streamable_http"])
def test_a_client_goes_on_after_its_server_was_killed_and_started_again(
        transport: str, servers: dict[str, HttpServer], main_file: str) -> None:
    async def main() -> None:
        async with connected(client_of(transport, servers, main_file)) as client:
            assert await ask(client, "echo", message="before") == "Echo: before"
            servers[transport].kill()
            with pytest.raises(McpUnavailable, match=r"'everything'") as failed:
                await ask(client, "echo", message="down")
            assert servers[transport].url.rpartition("/")[0] in str(failed.value)
            servers[transport].start()
            assert await ask(client, "echo", message="after") == "Echo: after"
            servers[transport].restart()  # between two calls, unnoticed
            assert await ask(client, "echo", message="again") == "Echo: again"

    asyncio.run(main())


def test_a_program_that_was_killed_is_started_again(main_file: str) -> None:
    async def main() -> None:
        async with connected(StdIOStatefulClient("everything", "node", [main_file, "stdio"])) as client:
            assert await ask(client, "echo", message="before") == "Echo: before"
            long = await under_way(client)
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(McpUnavailable, match=r"lost in the middle of a call: it ended with exit code -9"):
                await long
            assert await ask(client, "echo", message="after") == "Echo: after"
            assert len(children()) == 1

    asyncio.run(main())
    assert children() == []


@pytest.mark.parametrize("transport", ["sse", "streamable_http"])
def test_a_call_ends_when_its_server_is_killed(transport: str, servers: dict[str, HttpServer], main_file: str) -> None:
    async def main() -> None:
        async with connected(client_of(transport, servers, main_file)) as client:
            long = await under_way(client)
            servers[transport].restart()
            with pytest.raises(McpUnavailable, match=r"lost in the middle of a call"):
                await asyncio.wait_for(long, 20)
            assert await ask(client, "echo", message="after") == "Echo: after"

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_call_that_takes_too_long_is_given_up(transport: str, servers: dict[str, HttpServer], main_file: str) -> None:
    async def main() -> None:
        async with connected(client_of(transport, servers, main_file)) as client:
            with pytest.raises(McpTimeout, match=r"within 0\.3 s"):
                await ask(client, "trigger-long-running-operation", 0.3, duration=60, steps=2)
            assert await ask(client, "echo", message="after") == "Echo: after"

    asyncio.run(main())


@pytest.mark.parametrize("transport", ["sse", "streamable_http"])
def test_a_stateless_client_has_a_session_for_each_call(transport: Any, servers: dict[str, HttpServer]) -> None:
    client = HttpStatelessClient("everything", transport, servers[transport].url)
    assert "echo" in {tool.name for tool in asyncio.run(client.list_tools())}
    for word in ("a", "b"):
        assert asyncio.run(ask(client, "echo", message=word)) == f"Echo: {word}"


def test_a_toolkit_calls_a_servers_tools(servers: dict[str, HttpServer], main_file: str) -> None:
    async def main() -> None:
        async with connected(client_of("streamable_http", servers, main_file)) as client:
            kit = Toolkit()
            await kit.register_mcp_client(client, enable_funcs=["echo", "get-annotated-message", "get-sum"])
            assert text_of(await called(kit, "echo", message="hi")) == "Echo: hi"
            assert text_of(await called(kit, "get-annotated-message", messageType="error")).startswith("Error: ")
            assert "'b' is a required property" in text_of(await called(kit, "get-sum", a=1))

    asyncio.run(main())


def test_the_official_time_server() -> None:
    async def main() -> None:
        async with connected(StdIOStatefulClient("time", str(TIME), ["--local-timezone", "UTC"])) as client:
            said = await ask(client, "convert_time", source_timezone="UTC", time="12:00",
                             target_timezone="Asia/Tokyo")
            assert "21:00" in said
            with pytest.raises(ToolFailed, match=r"Nowhere"):
                await ask(client, "get_current_time", timezone="Nowhere/At_All")

    asyncio.run(main())
