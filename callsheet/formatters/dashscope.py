"""Formatters for DashScope's API."""

from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.formatters.base import Formatted, TokenCounterBase
from callsheet.formatters.engine import HISTORY_PROMPT, ChatFormatter, MultiAgentFormatter, enclosed
from callsheet.formatters.media import KINDS, url_of
from callsheet.formatters.openai import OpenAIForms
from callsheet.messages import AudioBlock, ImageBlock, Msg, TextBlock, ToolResultBlock, ToolUseBlock, VideoBlock


class DashScopeChatFormatter(OpenAIForms):
    """Messages of a user and an agent for DashScope's API.

    Args:
        promote_tool_result_images: show the pictures of tool results again in a message of the user's.
        promote_tool_result_audios: the same for sound.
        promote_tool_result_videos: the same for film.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    supported_blocks: ClassVar[Sequence[type]] = (TextBlock, ImageBlock, AudioBlock, VideoBlock, ToolUseBlock,
                                                  ToolResultBlock)
    takes: ClassVar[Sequence[str]] = KINDS

    def __init__(self, promote_tool_result_images: bool = False, promote_tool_result_audios: bool = False,
                 promote_tool_result_videos: bool = False, token_counter: TokenCounterBase | None = None,
                 max_tokens: int | None = None) -> None:
        super().__init__(token_counter, max_tokens)
        self.promote_tool_result_images = promote_tool_result_images
        self.promote_tool_result_audios = promote_tool_result_audios
        self.promote_tool_result_videos = promote_tool_result_videos
        chosen = {"image": promote_tool_result_images, "audio": promote_tool_result_audios,
                  "video": promote_tool_result_videos}
        self.promoted = tuple(kind for kind, wanted in chosen.items() if wanted)

    async def _format(self, msgs: list[Msg]) -> Formatted:
        return [_plain(message) for message in await super()._format(msgs)]

    def _text(self, block: dict[str, Any]) -> dict[str, Any]:
        return {"text": block["text"]}

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        return {block["type"]: await url_of(block)}

    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        message = {"role": msg.role, "content": parts}
        return {**message, "tool_calls": calls} if calls else message


class DashScopeMultiAgentFormatter(MultiAgentFormatter):
    """Conversations of many agents for DashScope's API.

    Args:
        conversation_history_prompt: stands before the first history.
        promote_tool_result_images: as DashScopeChatFormatter's, like the next two.
        promote_tool_result_audios: the same for sound.
        promote_tool_result_videos: the same for film.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    supported_blocks: ClassVar[Sequence[type]] = DashScopeChatFormatter.supported_blocks

    def __init__(self, conversation_history_prompt: str = HISTORY_PROMPT, promote_tool_result_images: bool = False,
                 promote_tool_result_audios: bool = False, promote_tool_result_videos: bool = False,
                 token_counter: TokenCounterBase | None = None, max_tokens: int | None = None) -> None:
        super().__init__(conversation_history_prompt, token_counter, max_tokens)
        self.promote_tool_result_images = promote_tool_result_images
        self.promote_tool_result_audios = promote_tool_result_audios
        self.promote_tool_result_videos = promote_tool_result_videos

    @property
    def chat(self) -> ChatFormatter:
        """The formatter of tool calls and their results."""
        return DashScopeChatFormatter(self.promote_tool_result_images, self.promote_tool_result_audios,
                                      self.promote_tool_result_videos)

    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        content = [{"text": piece} if isinstance(piece, str) else {piece["type"]: await url_of(piece)}
                   for piece in enclosed(pieces, opening)]
        return _plain({"role": "user", "content": content})


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message with content that is nothing but text as one text."""
    content = message["content"]
    if content and isinstance(content, list) and all(set(part) == {"text"} for part in content):
        return {**message, "content": "\n".join(part["text"] for part in content if part["text"])}
    return message
