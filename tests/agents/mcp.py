"""Agents that call MCP servers' tools."""

import asyncio
import os
from typing import Any

from callsheet import AgentBase, Msg
from callsheet.mcp import MCPClientBase


class Caller(AgentBase):
    """Calls one tool of a client, and says what it gave and where."""

    def __init__(self, name: str, client: MCPClientBase) -> None:
        self.name = name
        self.client = client

    async def reply(self, tool: str, arguments: dict[str, Any]) -> Msg:
        """Call it."""
        function = await self.client.get_callable_function(tool)
        response = await function(**arguments)
        return Msg(self.name, response.content, "assistant", metadata={"pid": os.getpid()})


class PlainCaller(AgentBase):
    """The same, as plain code: on the cpu workers."""

    def __init__(self, name: str, client: MCPClientBase) -> None:
        self.name = name
        self.client = client

    def reply(self, tool: str, arguments: dict[str, Any]) -> Msg:
        """Call it."""
        async def call() -> Any:
            function = await self.client.get_callable_function(tool)
            return await function(**arguments)

        return Msg(self.name, asyncio.run(call()).content, "assistant", metadata={"pid": os.getpid()})
