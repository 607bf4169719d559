"""Formatters for OpenAI's API, and for DeepSeek's, which takes text alone."""

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.errors import MessageError
from callsheet.formatters.engine import (
    ChatFormatter,
    ImagePromotingFormatter,
    MultiAgentFormatter,
    PromotingFormatter,
    enclosed,
)
from callsheet.formatters.media import data_of, url_of
from callsheet.messages import AudioBlock, ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock

_NO_NAME = re.compile(r"[\s<|\\/>]+")
_SIGNED = {"signature", "redacted", "thought_signature"}  # by another provider
_SOUNDS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}


class OpenAIForms(ChatFormatter):
    """Tool calls in OpenAI's form, and what servers of its API want back of a model's thoughts."""

    def _call(self, block: dict[str, Any]) -> dict[str, Any]:
        return {**block.get("extra", {}), "id": block["id"], "type": "function", "function": {
            "name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}}

    def _thoughts(self, parts: list[Any]) -> dict[str, Any]:
        """Thoughts among the parts, as servers take them back that gave them."""
        thoughts = [part for part in parts if part.get("type") == "thinking"]
        found = {"reasoning_content": "\n".join(part["thinking"] for part in thoughts),
                 "reasoning_details": [one for part in thoughts for one in part.get("details", ())]}
        return {name: value for name, value in found.items() if value}


class OpenAIChatFormatter(PromotingFormatter, OpenAIForms):
    """Messages of a user and an agent for OpenAI's chat completions API. Arguments as `PromotingFormatter`'s."""

    support_multiagent: ClassVar[bool] = True
    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, AudioBlock, ToolUseBlock, ToolResultBlock)
    takes: ClassVar[Sequence[str]] = ("image", "audio")

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        if msg.role == "assistant":
            return None  # models refuse pictures and sound of their own
        return await medium(block)

    def _thinking(self, block: dict[str, Any]) -> Any:
        return None if block.keys() & _SIGNED else block

    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        content = [part for part in parts if part.get("type") != "thinking"]
        message = {"role": msg.role, "name": _NO_NAME.sub("_", msg.name)[:64] or "_", "content": content or None}
        # Reasoners want the thoughts behind a call back with it.
        return {**message, **self._thoughts(parts), "tool_calls": calls} if calls else message


class OpenAIMultiAgentFormatter(ImagePromotingFormatter):
    """Conversations of many agents for OpenAI's chat completions API. Arguments as `ImagePromotingFormatter`'s."""

    supported_blocks: ClassVar[Sequence[type]] = OpenAIChatFormatter.supported_blocks
    chat_formatter = OpenAIChatFormatter

    async def _format_system_message(self, msg: Msg) -> dict[str, Any]:
        return {"role": "system", "content": msg.get_content_blocks("text")}

    def _takes(self, block: dict[str, Any], msg: Msg) -> bool:
        return super()._takes(block, msg) and not (block["type"] == "audio" and msg.role == "assistant")

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        # One text, then pictures, then sound.
        said = [piece for piece in pieces if isinstance(piece, str)]
        content: list[dict[str, Any]] = []
        if said:
            content.append({"type": "text", "text": enclosed(["\n".join(said)], opening)[0]})
        for kind in ("image", "audio"):
            content += [await medium(piece) for piece in pieces
                        if not isinstance(piece, str) and piece["type"] == kind]
        return {"role": "user", "content": content}


class DeepSeekChatFormatter(OpenAIForms):
    """Messages of a user and an agent for DeepSeek's API, which takes text, and its own reasoning back.

    Args:
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    support_vision: ClassVar[bool] = False
    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ToolUseBlock, ToolResultBlock)
    takes: ClassVar[Sequence[str]] = ()

    def _thinking(self, block: dict[str, Any]) -> Any:
        return block

    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        message = {"role": msg.role, "content": text or (None if calls else ""), **self._thoughts(parts)}
        return {**message, "tool_calls": calls} if calls else message


class DeepSeekMultiAgentFormatter(MultiAgentFormatter):
    """Conversations of many agents for DeepSeek's API. Arguments as `MultiAgentFormatter`'s."""

    support_vision: ClassVar[bool] = False
    supported_blocks: ClassVar[Sequence[type]] = DeepSeekChatFormatter.supported_blocks
    chat_formatter = DeepSeekChatFormatter

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        return {"role": "user", "content": "\n".join(enclosed(pieces, opening))}


async def medium(block: dict[str, Any]) -> dict[str, Any]:
    """A picture or sound as a part of OpenAI's API.

    Raises:
        MessageError: sound that is neither WAV nor MP3, or nothing at its address.
    """
    if block["type"] == "image":
        return {"type": "image_url", "image_url": {"url": await url_of(block)}}
    kind, data = await data_of(block)
    sound = _SOUNDS.get(kind)
    if sound is None:
        raise MessageError(f"Sound of type {kind!r} is not taken by OpenAI's API: wav and mp3 are. Convert it.")
    return {"type": "input_audio", "input_audio": {"data": data, "format": sound}}
