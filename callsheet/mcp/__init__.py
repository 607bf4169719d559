"""Clients of MCP servers, whose tools agents call."""

from callsheet.mcp.clients import (
    HttpStatefulClient,
    HttpStatelessClient,
    MCPClientBase,
    StatefulClientBase,
    StdIOStatefulClient,
)
from callsheet.mcp.results import MCPToolFunction

__all__ = ["HttpStatefulClient", "HttpStatelessClient", "MCPClientBase", "MCPToolFunction", "StatefulClientBase",
           "StdIOStatefulClient"]
