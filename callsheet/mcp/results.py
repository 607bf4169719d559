"""A tool of a server as an async function, and what the server answered to a call as a ToolResponse."""

import itertools
import json
import logging
from typing import TYPE_CHECKING, Any

from callsheet.errors import ToolFailed
from callsheet.settings import get_settings
from callsheet.tools import ToolResponse
from callsheet.tools.clients import schema_of
from callsheet.tools.response import NOTHING, Block, cut, text_block
from callsheet.tools.schemas import TooMuch, misfits

if TYPE_CHECKING:
    from callsheet.mcp.clients import MCPClientBase

logger = logging.getLogger(__name__)
_MOST_PROBLEMS = 5
_MEDIA = ("image", "audio", "video")


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


def response_of(result: Any) -> ToolResponse:
    """The answer of a server (`mcp.types.CallToolResult`), its text cut to what a model may get.

    Raises:
        ToolFailed: the tool failed; with what it said.
    """
    blocks = [_block(item) for item in result.content]
    data = result.structured_content
    if not blocks:
        blocks = [text_block(NOTHING if data is None else json.dumps(data, ensure_ascii=False))]
    if result.is_error:
        said = "\n".join(block["text"] for block in blocks if block["type"] == "text")
        raise ToolFailed(f"{said or 'the tool failed and did not say why'}")
    metadata = dict(result.meta or {})
    if data is not None:
        metadata["structured_content"] = data
    return ToolResponse(cut(blocks, get_settings().mcp.text_max), metadata=metadata or None)


def _block(item: Any) -> Block:
    if item.type == "text":
        return text_block(item.text)
    if item.type in ("image", "audio"):
        return _medium(item.type, item.mime_type, item.data)
    if item.type == "resource_link":
        told = f": {item.description}" if item.description else ""
        return text_block(f"[{item.name}{told}: {item.uri}]")
    resource = item.resource
    text, kind = getattr(resource, "text", None), resource.mime_type or ""
    if text is not None:
        return text_block(f"[{resource.uri}]\n{text}")
    family = kind.partition("/")[0]
    if family in _MEDIA:
        return _medium(family, kind, resource.blob)
    return text_block(f"[{resource.uri}: {len(resource.blob) * 3 // 4} bytes of {kind or 'unknown type'}, not shown]")


def _medium(family: str, kind: str, data: str) -> Block:
    block: Any = {"type": family, "source": {"type": "base64", "media_type": kind, "data": data}}
    return block  # type: ignore[no-any-return]


def checked(result: Any, tool: Any) -> Any:
    """The answer, if it keeps to what the server announced of it.

    Args:
        result: a `mcp.types.CallToolResult`.
        tool: as the server lists it.

    Raises:
        ToolFailed: it does not; names the first problems.
    """
    schema = tool.output_schema
    if result.is_error or not isinstance(schema, dict):
        return result
    problems: list[str] = []
    if result.structured_content is None:
        problems.append("there is no structured content")
    else:
        try:
            for problem in itertools.islice(misfits(schema, result.structured_content), _MOST_PROBLEMS):
                problems.append(str(problem))
        except TooMuch as exc:  # nothing more is known against it
            logger.info("mcp_answer_unchecked: %s", exc)
        except Exception as exc:  # whatever a broken schema leads to
            problems.append(f"the schema itself is broken: {type(exc).__name__}")
    if problems:
        listed = "".join(f"\n  {line}" for line in problems)
        raise ToolFailed(f"the answer of {tool.name} does not fit the schema that its server announced for it, "
                         f"and is not to be relied on:{listed}")
    return result


def unfit(tool: Any, arguments: dict[str, Any]) -> list[str]:
    """What of the arguments does not fit what the server announced; [] also where that is no schema."""
    try:
        return list(map(str, itertools.islice(misfits(tool.input_schema, arguments), _MOST_PROBLEMS)))
    except Exception:  # whatever a broken schema leads to: the server then says what is wrong
        return []


def fitting(tool: Any, arguments: dict[str, Any]) -> None:
    """See that arguments fit what the server announced.

    Raises:
        ToolFailed: names those that do not.
    """
    if problems := unfit(tool, arguments):
        listed = "".join(f"\n  {line}" for line in problems)
        raise ToolFailed(f"the arguments of {tool.name} do not fit what its server announces:{listed}")
