"""An MCP server that behaves as badly as told: `python -m tests.mcp_server stdio|sse|http|json|modern|busy [PORT]`.

Built on the SDK's server side. "json" answers with JSON in place of streams, "modern" knows no greeting, "busy" refuses
every other call of a tool with status 503. What happens is noted in the file that NOTES names, a line each.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route


def note(text: str) -> None:
    if path := os.environ.get("NOTES"):
        with Path(path).open("a") as file:
            file.write(f"{text}\n")


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


NUMBER: dict[str, Any] = {"type": "number"}
TOOLS = {
    "count": types.Tool(name="count", description="Count up.", input_schema=schema()),
    "sleep": types.Tool(name="sleep", input_schema=schema(seconds=NUMBER)),
    "big": types.Tool(name="big", input_schema=schema(size={"type": "integer"})),
    "picture": types.Tool(name="picture", input_schema=schema()),
    "lies": types.Tool(name="lies", input_schema=schema(),
                       output_schema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}),
    "silent": types.Tool(name="silent", input_schema=schema(), output_schema={"type": "object"}),
    "broken": types.Tool(name="broken", input_schema={"type": "object", "properties": {"x": {"type": "no-such-type"}}},
                         output_schema={"type": "object", "properties": {"n": {"type": "no-such-type"}}}),
    "strict": types.Tool(name="strict", input_schema=schema(n={"type": "integer", "maximum": 5})),
    "fails": types.Tool(name="fails", input_schema=schema()),
    "grow": types.Tool(name="grow", input_schema=schema()),
    "deafen": types.Tool(name="deafen", input_schema=schema()),
    "die": types.Tool(name="die", input_schema=schema()),
    "header": types.Tool(name="header", input_schema=schema(name={"type": "string"})),
    "env": types.Tool(name="env", input_schema=schema(name={"type": "string"})),
}
counts: dict[str, int] = {}
deaf = anyio.Event()


def says(*texts: str, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text) for text in texts], **more)


async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
    note("listed")
    return types.ListToolsResult(tools=list(TOOLS.values()))


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    given = params.arguments or {}
    note(f"called {params.name}")
    match params.name:
        case "count":
            session = ctx.request.headers.get("mcp-session-id", "") if ctx.request is not None else ""
            counts[session] = counts.get(session, 0) + 1
            return says(f"{counts[session]} {os.getpid()}")
        case "sleep":
            try:
                await anyio.sleep(given["seconds"])
            except anyio.get_cancelled_exc_class():
                note("cancelled")
                raise
        case "big":
            return says("x" * given["size"])
        case "picture":
            return types.CallToolResult(content=[types.ImageContent(type="image", data="aGk=", mime_type="image/png")])
        case "lies" | "broken":
            return says("hello", structured_content={"n": "many"})
        case "fails":
            return says("the disk", "is full", is_error=True)
        case "grow":
            TOOLS["grown"] = types.Tool(name="grown", input_schema=schema())
            await ctx.session.send_tool_list_changed()
        case "deafen":
            deaf.set()
        case "die":
            print("I had enough", file=sys.stderr, flush=True)
            os._exit(3)
        case "header":
            return says(ctx.request.headers.get(given["name"], "(none)"))
        case "env":
            return says(os.environ.get(given["name"], "(unset)"))
    return says(f"did {params.name}")


async def ping(_ctx: Any, _params: Any) -> types.EmptyResult:
    note("pinged")
    if deaf.is_set():
        await anyio.sleep_forever()
    return types.EmptyResult()


SERVER: Server[Any] = Server("troublesome", on_list_tools=list_tools, on_call_tool=call_tool, on_ping=ping)


async def over_stdio() -> None:
    async with stdio_server() as (read, write):
        await SERVER.run(read, write, SERVER.create_initialization_options())


def sse_app() -> Starlette:
    transport = SseServerTransport("/messages/")

    async def stream(request: Any) -> Response:
        note("opened")
        async with transport.connect_sse(request.scope, request.receive, request._send) as (read, write):
            await SERVER.run(read, write, SERVER.create_initialization_options())
        return Response()

    return Starlette(routes=[Route("/sse", stream), Mount("/messages/", app=transport.handle_post_message)])


def without_greeting(body: bytes) -> Response | None:
    """As a server that knows no version before 2026."""
    if b'"initialize"' not in body:
        return None
    error = {"code": -32022, "message": "unsupported", "data": {"supported": ["2026-07-28"], "requested": "x"}}
    answer = json.dumps({"jsonrpc": "2.0", "id": json.loads(body)["id"], "error": error}).encode()
    return Response(answer, 400, media_type="application/json")


def busy(body: bytes) -> Response | None:
    """As a server, or a gateway before it, that cannot take each call."""
    if b'"tools/call"' not in body:
        return None
    refused.append(len(refused) % 2 == 0)
    if not refused[-1]:
        return None
    note("refused")
    return Response("busy", 503)


refused: list[bool] = []


def behind(answer: Any, app: Any) -> Any:
    """The app, for what is not answered before it."""
    async def handle(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        first = await receive()
        response = answer(first.get("body", b""))
        if response is not None:
            await response(scope, receive, send)
            return
        rest = [first]

        async def again() -> Any:
            return rest.pop() if rest else await receive()

        await app(scope, again, send)

    return handle


def main(mode: str, port: int) -> None:
    note(f"started {os.getpid()}")
    if mode == "stdio":
        asyncio.run(over_stdio())
        return
    app: Any = sse_app() if mode == "sse" else SERVER.streamable_http_app(json_response=mode == "json")
    if mode in ("modern", "busy"):
        app = behind({"modern": without_greeting, "busy": busy}[mode], app)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
