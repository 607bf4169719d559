"""Formatters for Ollama's API."""

from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.formatters.engine import ChatFormatter, ImagePromotingFormatter, enclosed
from callsheet.formatters.media import data_of
from callsheet.formatters.tokens import TokenCounterBase
from callsheet.messages import ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock


class OllamaChatFormatter(ChatFormatter):
    """Messages of a user and an agent for Ollama's API.

    Args:
        promote_tool_result_images: show the pictures of tool results again in a message of the user's.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, ToolUseBlock, ToolResultBlock)

    def __init__(self, promote_tool_result_images: bool = False, token_counter: TokenCounterBase | None = None,
                 max_tokens: int | None = None) -> None:
        super().__init__(token_counter, max_tokens)
        self.promote_tool_result_images = promote_tool_result_images
        self.promoted = ("image",) if promote_tool_result_images else ()

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        return {"type": "image", "data": await _data(block)}

    def _call(self, block: dict[str, Any]) -> dict[str, Any]:
        return {"id": block["id"], "type": "function",
                "function": {"name": block["name"], "arguments": block["input"]}}

    async def _result(self, block: dict[str, Any]) -> tuple[dict[str, Any], list[Msg]]:
        text, media = self.convert_tool_result_to_string(block["output"])
        return ({"role": "tool", "tool_call_id": block["id"], "content": text, "name": block["name"]},
                self._promotion(block, media))

    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": msg.role, "content": "\n".join(part["text"] for part in parts if part["type"] == "text") or None}
        if calls:
            message["tool_calls"] = calls
        images = [part["data"] for part in parts if part["type"] == "image"]
        return {**message, "images": images} if images else message


class OllamaMultiAgentFormatter(ImagePromotingFormatter):
    """Conversations of many agents for Ollama's API. Arguments as `ImagePromotingFormatter`'s."""

    supported_blocks: ClassVar[Sequence[type]] = OllamaChatFormatter.supported_blocks
    chat_formatter = OllamaChatFormatter

    async def _format_system_message(self, msg: Msg) -> dict[str, Any]:
        return {"role": "system", "content": msg.get_text_content()}

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        # A picture leaves an empty line where it was said.
        text = "\n".join(piece if isinstance(piece, str) else "" for piece in enclosed(pieces, opening))
        images = [await _data(piece) for piece in pieces if not isinstance(piece, str)]
        message: dict[str, Any] = {"role": "user", "content": text}
        return {**message, "images": images} if images else message


async def _data(block: dict[str, Any]) -> str:
    found = await data_of(block, download=True)
    assert found is not None
    return found[1]
