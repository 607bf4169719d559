"""Formatters for Google's Gemini API."""

import base64
from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.formatters.engine import ImagePromotingFormatter, PromotingFormatter, enclosed
from callsheet.formatters.media import KINDS, data_of
from callsheet.messages import AudioBlock, ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock, VideoBlock


class GeminiChatFormatter(PromotingFormatter):
    """Messages of a user and an agent for the Gemini API. Media go as data: what is on the web is fetched.

    Arguments as `PromotingFormatter`'s.
    """

    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, VideoBlock, AudioBlock, ToolUseBlock,
                                                  ToolResultBlock)
    takes: ClassVar[Sequence[str]] = KINDS
    calls_are_parts: ClassVar[bool] = True

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
    kind, data = await data_of(block)
    return {"inline_data": {"data": data, "mime_type": kind}}


def _signed(part: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """The part with the signature of the thought behind it, which Gemini wants back."""
    signature = block.get("thought_signature")
    return {**part, "thought_signature": base64.b64decode(signature)} if signature is not None else part
