"""Formatters for Anthropic's API."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.errors import MessageError
from callsheet.formatters.engine import ChatFormatter, MultiAgentFormatter, enclosed
from callsheet.formatters.media import data_here, url_of
from callsheet.messages import ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock

_PICTURES = ("image/jpeg", "image/png", "image/gif", "image/webp")


class AnthropicChatFormatter(ChatFormatter):
    """Messages of a user and an agent for Anthropic's API, thinking included: Claude wants its own back.

    Args:
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, ToolUseBlock, ToolResultBlock)

    calls_are_parts: ClassVar[bool] = True
    call_ids: ClassVar[re.Pattern[str]] = re.compile(r"[A-Za-z0-9_-]{1,64}")

    def _thinking(self, block: dict[str, Any]) -> Any:
        if redacted := block.get("redacted"):  # what Claude thought and shows to nobody but itself
            return {"type": "redacted_thinking", "data": redacted}
        signature = block.get("signature")  # none where another model thought, or this one was interrupted
        return {"type": "thinking", "thinking": block["thinking"], "signature": signature} if signature else None

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        return None if msg.role == "assistant" else await picture(block)  # it refuses pictures of its own

    def _call(self, block: dict[str, Any]) -> dict[str, Any]:
        return {"id": block["id"], "type": "tool_use", "name": block["name"], "input": block["input"]}

    async def _result(self, block: dict[str, Any]) -> tuple[dict[str, Any], list[Msg]]:
        output = block["output"]
        if isinstance(output, list):
            content = [await picture(item) if item["type"] == "image" else {
                "type": "text", "text": self.convert_tool_result_to_string([item])[0]} for item in output]
        else:
            content = [{"type": "text", "text": str(output)}]
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": content}
        return {"role": "user", "content": [result]}, []

    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        role = "user" if msg.role == "system" and index else msg.role  # only the first may be the system's
        while role == "assistant" and parts and "thinking" in parts[-1]["type"]:
            parts.pop()  # of an answer that was interrupted: none may end with a thought
        return {"role": role, "content": parts}


class AnthropicMultiAgentFormatter(MultiAgentFormatter):
    """Conversations of many agents for Anthropic's API. Arguments as `MultiAgentFormatter`'s."""

    supported_blocks: ClassVar[Sequence[type]] = AnthropicChatFormatter.supported_blocks
    call_ids: ClassVar[re.Pattern[str]] = AnthropicChatFormatter.call_ids
    chat_formatter = AnthropicChatFormatter

    async def _format_system_message(self, msg: Msg) -> dict[str, Any]:
        return {"role": "system", "content": msg.get_content_blocks("text")}

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        return {"role": "user", "content": [
            {"type": "text", "text": piece} if isinstance(piece, str) else await picture(piece)
            for piece in enclosed(pieces, opening)]}


async def picture(block: dict[str, Any]) -> dict[str, Any]:
    """A picture as a block of Anthropic's API.

    Raises:
        MessageError: it is of a type that this API does not take, or there is none at its address.
    """
    found = await data_here(block)
    if found is None:
        return {"type": "image", "source": {"type": "url", "url": await url_of(block)}}
    if found[0] not in _PICTURES:
        raise MessageError(f"A picture of type {found[0]!r} is not taken by Anthropic's API: "
                           f"{', '.join(_PICTURES)} are. Convert it.")
    own = {name: value for name, value in block.items() if name != "source"}
    return {**own, "source": {"type": "base64", "media_type": found[0], "data": found[1]}}
