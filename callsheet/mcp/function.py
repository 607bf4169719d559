"""A tool of an MCP server as an async function."""

from typing import TYPE_CHECKING, Any

from callsheet.mcp.results import checked, response_of
from callsheet.tools.clients import schema_of

if TYPE_CHECKING:
    from callsheet.mcp.clients import MCPClientBase


class MCPToolFunction:
    """A tool of an MCP server: an async function of its arguments.

    Attributes:
        client: whose tool.
        mcp_name: the client's name.
        name: the tool's.
        description: the server's, for the model.
        json_schema: as models are given it.
        wrap_tool_result: whether it gives a ToolResponse, or the SDK's own result.
        timeout: seconds for a call, or None: the settings'.
    """

    def __init__(self, client: "MCPClientBase", tool: Any, wrap_tool_result: bool = True,
                 timeout: float | None = None) -> None:
        self.client = client
        self.mcp_name = client.name
        self.name: str = tool.name
        self.description: str = tool.description or ""
        self.json_schema = schema_of(tool)
        self.wrap_tool_result = wrap_tool_result
        self.timeout = timeout
        self._tool = tool

    async def __call__(self, **kwargs: Any) -> Any:
        """Call the tool.

        Returns:
            A ToolResponse; or the SDK's `CallToolResult`, where results are not wrapped.

        Raises:
            ToolFailed: the tool failed, the arguments do not fit what the server announced, or the answer does not.
            McpError: the server refused, is not there, was lost, did not answer in time, or answered too much.
        """
        result, tool = await self.client.call(self._tool, kwargs, self.timeout)
        self._tool = tool
        result = checked(result, tool)
        return response_of(result) if self.wrap_tool_result else result
