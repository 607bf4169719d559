"""Toolkits: functions and MCP servers' tools that models call."""

from callsheet.tools.registered import RegisteredToolFunction, ToolGroup
from callsheet.tools.response import ToolResponse
from callsheet.tools.toolkit import Toolkit

__all__ = ["RegisteredToolFunction", "ToolGroup", "ToolResponse", "Toolkit"]
