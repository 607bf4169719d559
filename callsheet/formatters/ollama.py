"""Formatters for Ollama's API."""

from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.formatters.engine import ImagePromotingFormatter, PromotingFormatter, enclosed
from callsheet.formatters.media import data_of
from callsheet.messages import ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock


class OllamaChatFormatter(PromotingFormatter):
    """Messages of a user and an agent for Ollama's API. Arguments as `PromotingFormatter`'s."""

    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, ToolUseBlock, ToolResultBlock)

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        return {"type": "image", "data": (await data_of(block))[1]}

    def _call(self, block: dict[str, Any]) -> dict[str, Any]:
        return {"id": block["id"], "type": "function",
                "function": {"name": block["name"], "arguments": block["input"]}}

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

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        # A picture leaves an empty line where it was said.
        text = "\n".join(piece if isinstance(piece, str) else "" for piece in enclosed(pieces, opening))
        images = [(await data_of(piece))[1] for piece in pieces if not isinstance(piece, str)]
        message: dict[str, Any] = {"role": "user", "content": text}
        return {**message, "images": images} if images else message
