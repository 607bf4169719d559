"""Calling a tool in a session."""

from collections.abc import Awaitable, Callable
from typing import Any

from mcp import ClientSession
from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult


def call_of(name: str, arguments: dict[str, Any]) -> Callable[[ClientSession], Awaitable[CallToolResult]]:
    """What calls a tool in a session.

    Not the SDK's `call_tool`: it checks the answer with the regular expressions of the server's schema, by which a
    server could keep the loop busy for ever. `results.checked` does without.
    """
    async def work(session: ClientSession) -> CallToolResult:
        request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))
        return await session.send_request(request, CallToolResult)

    return work
