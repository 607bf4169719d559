"""What a toolkit needs of an MCP client, and a tool of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from callsheet.errors import ToolError, UsageError
from callsheet.tools.registered import Reading, RegisteredToolFunction, names_in


class McpClient(Protocol):
    """A client of an MCP server.

    One that holds a session also has `is_connected`. To travel with a toolkit, the client is Recorded; on the
    worker, `get_callable_function` or what it gives connects it where that is needed.
    """

    name: str

    async def list_tools(self) -> list[Any]:
        """The server's tools."""

    async def get_callable_function(self, func_name: str, wrap_tool_result: bool = True,
                                    execution_timeout: float | None = None) -> Callable[..., Any]:
        """A tool as an async function of its arguments, which gives a ToolResponse."""


@runtime_checkable
class McpFunction(Protocol):
    """A tool of an MCP server as a client's `get_callable_function` gives it."""

    name: str
    mcp_name: str
    json_schema: dict[str, Any]

    async def __call__(self, **kwargs: Any) -> Any:
        """Call the tool."""


@dataclass(eq=False)
class ClientTool:
    """A tool of an MCP client, asked for at its first call: on a worker nothing is connected before."""

    client: McpClient  # whose tool
    name: str  # as the server knows it
    json_schema: dict[str, Any]  # as models are given it
    timeout: float | None = None  # seconds that the client gives a call
    function: Callable[..., Any] | None = None  # what the client gave for it, where that is known

    @property
    def mcp_name(self) -> str:
        """The client's name."""
        return self.client.name

    async def __call__(self, **kwargs: Any) -> Any:
        """Call it."""
        if self.function is None:
            self.function = await self.client.get_callable_function(self.name, wrap_tool_result=True,
                                                                    execution_timeout=self.timeout)
        return await self.function(**kwargs)


def schema_of(tool: Any) -> dict[str, Any]:
    """A server's tool (`mcp.types.Tool`, of version 1 or 2) as models are given it.

    What it says of its arguments is taken only where it is an object.
    """
    given = getattr(tool, "input_schema", None) or getattr(tool, "inputSchema", None)
    parameters = dict(given) if isinstance(given, dict) else {}
    if parameters.get("type") != "object":
        parameters["type"] = "object"
    if not isinstance(parameters.get("properties"), dict):
        parameters["properties"] = {}
    if not isinstance(parameters.get("required"), list):
        parameters["required"] = []
    return {"type": "function",
            "function": {"name": tool.name, "description": tool.description or "", "parameters": parameters}}


async def tools_of(client: McpClient, pattern: RegisteredToolFunction, enable: list[str] | None,
                   disable: list[str] | None, presets: Mapping[str, dict[str, Any]] | None,
                   execution_timeout: float | None) -> list[RegisteredToolFunction]:
    """A client's tools as a toolkit keeps them.

    Args:
        client: whose tools.
        pattern: what they have in common.
        enable: names of those to take; None takes all.
        disable: names of those to leave out.
        presets: arguments by tool that the model neither sees nor gives.
        execution_timeout: seconds that the client gives a call, or None.

    Raises:
        ToolError: a tool is both enabled and disabled.
        UsageError: an argument of another type.
        RuntimeError: the client is not connected.
    """
    wanted = None if enable is None else names_in(enable, "enable_funcs")
    unwanted = names_in([] if disable is None else disable, "disable_funcs")
    if both := sorted(set(wanted or ()) & set(unwanted)):
        raise ToolError(f"enable_funcs and disable_funcs both name {', '.join(both)}.")
    if not isinstance(presets or {}, Mapping):
        raise UsageError(f"preset_kwargs_mapping is {presets!r:.200}: a dictionary is needed.")
    if not getattr(client, "is_connected", True):
        raise RuntimeError(f"The MCP client {client.name!r} is not connected. Call `await client.connect()` first.")
    found = []
    for tool in await client.list_tools():
        if tool.name in unwanted or (wanted is not None and tool.name not in wanted):
            continue
        function = await client.get_callable_function(tool.name, wrap_tool_result=True,
                                                      execution_timeout=execution_timeout)
        schema = getattr(function, "json_schema", None) or schema_of(tool)
        called = ClientTool(client, tool.name, schema, execution_timeout, function)
        reading, preset = Reading(schema=schema), dict((presets or {}).get(tool.name, {}))
        found.append(replace(pattern, name=tool.name, original_func=called, preset_kwargs=preset, reading=reading,
                             json_schema=reading.json_schema(tool.name, called, frozenset(preset))))
    return found
