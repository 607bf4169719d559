"""Tools and helpers for the tests of toolkits; at the top level of a module, so that they can travel."""

from typing import Any

from callsheet.tools import Toolkit, ToolResponse


def plain_add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


async def called(kit: Toolkit, name: str, /, **arguments: Any) -> list[ToolResponse]:
    """All responses of one call."""
    block: Any = {"type": "tool_use", "id": "1", "name": name, "input": arguments}
    return [response async for response in await kit.call_tool_function(block)]


def texts(responses: list[ToolResponse]) -> list[str]:
    """The text of each response."""
    return ["".join(block["text"] for block in response.content if block["type"] == "text") for response in responses]


def text_of(responses: list[ToolResponse]) -> str:
    """The text of the last response."""
    return texts(responses)[-1]
