"""Calls of an MCP server's tool: a session that is kept, one session a call, and the SDK alone with one a call."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from benchmarks.harness import Report, Row, Stage, at_least
from callsheet.mcp import HttpStatefulClient, HttpStatelessClient
from tests.mcp_servers import everything, running

CALLS = 100
AT_ONCE = 8
TRANSPORTS: dict[str, tuple[str, str]] = {"streamable_http": ("streamableHttp", "/mcp"), "sse": ("sse", "/sse")}
Call = Callable[[], Awaitable[Any]]


async def timed(call: Call, at_once: int) -> float:
    """Milliseconds a call."""
    async def some() -> None:
        for _ in range(CALLS // at_once):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return (time.perf_counter() - began) / (CALLS // at_once * at_once) * 1000


async def measure(row: Row, call: Call) -> None:
    for _ in range(5):
        await call()
    cpu = time.process_time()
    alone = await timed(call, 1)
    cpu = (time.process_time() - cpu) / CALLS * 1000
    row.add(ms_a_call=alone, ms_a_call_8_at_once=await timed(call, AT_ONCE), client_cpu_ms=cpu)


def by_the_sdk(transport: str, url: str) -> Call:
    """One client, connection and session a call, as AgentScope's stateless client makes them."""
    async def call() -> None:
        streams: Any = sse_client(url) if transport == "sse" else streamable_http_client(url)
        async with streams as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            result = await session.call_tool("echo", {"message": "hi"})
            assert result.content[0].text == "Echo: hi"  # type: ignore[union-attr]

    return call


async def contenders(rows: dict[str, Row], transport: Any, url: str) -> None:
    kept = HttpStatefulClient("kept", transport, url)
    await kept.connect()
    single = HttpStatelessClient("single", transport, url)
    for name, client in (("a session that is kept", kept), ("a session a call", single)):
        echo = await client.get_callable_function("echo")
        await measure(rows[f"{transport}: {name}"], lambda echo=echo: echo(message="hi"))
    await kept.close()
    await measure(rows[f"{transport}: a session a call, the SDK alone"], by_the_sdk(transport, url))


def run(stage: Stage) -> Report:
    main_file = everything()
    if main_file is None:
        raise SystemExit("mcp_calls needs node and npm, for @modelcontextprotocol/server-everything.")
    names = ("a session that is kept", "a session a call", "a session a call, the SDK alone")
    rows = {f"{transport}: {name}": Row(f"{transport}: {name}") for transport in TRANSPORTS for name in names}
    for _ in range(stage.repeat):
        for transport, (mode, path) in TRANSPORTS.items():
            with running("node", main_file, mode, path=path) as server:
                asyncio.run(contenders(rows, transport, server.url))
    goals = []
    for transport in TRANSPORTS:
        kept = rows[f"{transport}: a session that is kept"].median("ms_a_call")
        for name in names[1:]:
            times = rows[f"{transport}: {name}"].median("ms_a_call") / kept
            goals.append(at_least(f"{transport}: 5 times as fast as {name}", times, 5))
    return Report("mcp_calls", __doc__ or "", list(rows.values()), goals)
