"""Formatters for Google's Gemini API."""

import base64
from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.formatters.engine import ChatFormatter, ImagePromotingFormatter, enclosed
from callsheet.formatters.media import KINDS, data_of
from callsheet.formatters.tokens import TokenCounterBase
from callsheet.messages import AudioBlock, ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock, VideoBlock


class GeminiChatFormatter(ChatFormatter):
    """Messages of a user and an agent for the Gemini API. Media go as data: what is on the web is fetched.

    Args:
        promote_tool_result_images: show the pictures of tool results again in a message of the user's.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, VideoBlock, AudioBlock, ToolUseBlock,
                                                  ToolResultBlock)
    takes: ClassVar[Sequence[str]] = KINDS
    calls_are_parts: ClassVar[bool] = True

    def __init__(self, promote_tool_result_images: bool = False, token_counter: TokenCounterBase | None = None,
                 max_tokens: int | None = None) -> None:
        super().__init__(token_counter, max_tokens)
        self.promote_tool_result_images = promote_tool_result_images
        self.promoted = ("image",) if promote_tool_result_images else ()

    def _text(self, block: dict[str, Any]) -> dict[str, Any]:
        return _signed({"text": block["text"]}, block)

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        return await _inline(block)

    def _call(self, block: dict[str, Any]) -> dict[str, Any]:
        return _signed({"function_call": {"id": None, "name": block["name"], "args": block["input"]}}, block)

    async def _result(self, block: dict[str, Any]) -> tuple[dict[str, Any], list[Msg]]:
        text, media = self.convert_tool_result_to_string(block["output"])
        response = {"id": block["id"], "name": block["name"], "response": {"output": text}}
        return {"role": "user", "parts": [{"function_response": response}]}, self._promotion(block, media)

    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        return {"role": "model" if msg.role == "assistant" else "user", "parts": parts}


class GeminiMultiAgentFormatter(ImagePromotingFormatter):
    """Conversations of many agents for the Gemini API. Arguments as `ImagePromotingFormatter`'s."""

    supported_blocks: ClassVar[Sequence[type]] = GeminiChatFormatter.supported_blocks
    chat_formatter = GeminiChatFormatter
    opening: ClassVar[str] = "<history>"

    async def _format_system_message(self, msg: Msg) -> dict[str, Any]:
        return {"role": "user", "parts": [{"text": msg.get_text_content()}]}

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        return {"role": "user", "parts": [
            {"text": piece} if isinstance(piece, str) else await _inline(piece) for piece in enclosed(pieces, opening)]}


async def _inline(block: dict[str, Any]) -> dict[str, Any]:
    found = await data_of(block, download=True)
    assert found is not None
    return {"inline_data": {"data": found[1], "mime_type": found[0]}}


def _signed(part: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """The part with the signature of the thought behind it, which Gemini wants back."""
    signature = block.get("thought_signature")
    return {**part, "thought_signature": base64.b64decode(signature)} if signature is not None else part
