"""What all formatters do alike: one message after the other, or a conversation of many told as a history."""

import itertools
import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from callsheet.formatters.base import Formatted, TokenCounterBase, TruncatedFormatterBase
from callsheet.formatters.media import KINDS
from callsheet.messages import Msg

log = logging.getLogger(__name__)

HISTORY_PROMPT = ("# The conversation so far\nWhat was said stands between <history></history> tags, each message "
                  "after its speaker's name.\n")


class ChatFormatter(TruncatedFormatterBase):
    """Formats each message as one of the API's, for a user and an agent. A subclass knows the API's forms."""

    #: Kinds of media in tool results that are shown again in a message of the user's.
    promoted: Sequence[str] = ()
    #: Whether the API has tool calls among a message's parts, in their order, or beside them.
    calls_are_parts: ClassVar[bool] = False
    #: Media that the API takes in messages.
    takes: ClassVar[Sequence[str]] = ("image",)

    async def _format(self, msgs: list[Msg]) -> Formatted:
        formatted: Formatted = []
        left = deque(enumerate(msgs))
        shown: list[Msg] = []
        results: dict[str, Any] | None = None
        while left or shown:
            if shown and not (left and left[0][1].has_content_blocks("tool_result")):
                left.extendleft((1, later) for later in reversed(shown))  # after all results of the round
                shown = []
            index, msg = left.popleft()
            parts: list[Any] = []
            calls: list[Any] = []
            called = False
            for block in msg.get_content_blocks():
                if block["type"] == "tool_use":
                    called = True
                    (parts if self.calls_are_parts else calls).append(self._call(block))
                elif block["type"] == "tool_result":
                    if called:  # the result of a call in the same message comes after it
                        self._put(formatted, self._message(msg, index, parts, calls))
                        parts, calls, called = [], [], False
                    message, again = await self._result(block)
                    if self.calls_are_parts and formatted and formatted[-1] is results:
                        key = "parts" if "parts" in message else "content"
                        formatted[-1][key] += message[key]  # such an API pairs a message of calls with one of results
                    else:
                        results = message
                        formatted.append(message)
                    shown += again
                else:
                    part = await self._part(block, msg)
                    parts += [] if part is None else [part]
            self._put(formatted, self._message(msg, index, parts, calls))
        return formatted

    async def _part(self, block: dict[str, Any], msg: Msg) -> Any:
        """A block of text, thinking or media as the API takes it; None where it is left out."""
        kind = block["type"]
        if kind == "text":
            return self._text(block)
        if kind == "thinking":
            return self._thinking(block)
        if kind in self.takes:
            return await self._medium(block, msg)
        log.warning("formatter_left_out formatter=%s block=%s: this API does not take it", type(self).__name__, kind)
        return None

    def _text(self, block: dict[str, Any]) -> Any:
        # What other providers keep with a text, this one may refuse.
        return {name: block[name] for name in ("type", "text", "cache_control") if name in block}

    def _thinking(self, block: dict[str, Any]) -> Any:
        """A model's reasoning, which most providers do not want back."""

    async def _medium(self, block: dict[str, Any], msg: Msg) -> Any:
        """A block of media, of those that the API `takes`; None where it is left out."""

    @abstractmethod
    def _call(self, block: dict[str, Any]) -> Any:
        """A tool call."""

    async def _result(self, block: dict[str, Any]) -> tuple[dict[str, Any], list[Msg]]:
        """A tool's result as a message, and messages that show its media."""
        text, media = self.convert_tool_result_to_string(block["output"])
        return ({"role": "tool", "tool_call_id": block["id"], "content": text, "name": block["name"]},
                self._promotion(block, media))

    @abstractmethod
    def _message(self, msg: Msg, index: int, parts: list[Any], calls: list[Any]) -> dict[str, Any]:
        """A message with what is in it."""

    def _put(self, formatted: Formatted, message: dict[str, Any]) -> None:
        if not any(message.get(name) for name in ("content", "parts", "images", "tool_calls")):
            return
        if message["role"] == "model" and formatted and formatted[-1]["role"] == "model":
            formatted[-1]["parts"] += message["parts"]  # Gemini takes a call only right after a user's message
        else:
            formatted.append(message)

    def _promotion(self, block: dict[str, Any], media: list[tuple[str, dict[str, Any]]]) -> list[Msg]:
        """The message that shows a tool result's media."""
        content: list[Any] = []
        for label, medium in media:
            if medium["type"] in self.promoted:
                content += [{"type": "text", "text": f"{medium['type']} {label}:"}, medium]
        if not content:
            return []
        intro: Any = {"type": "text", "text": f"<tool-result-media> What the tool {block['name']!r} returned:"}
        outro: Any = {"type": "text", "text": "</tool-result-media>"}
        return [Msg("user", [intro, *content, outro], "user")]


class PromotingFormatter(ChatFormatter):
    """Formats each message for an API whose tool results hold text alone.

    Args:
        promote_tool_result_images: show the pictures of tool results again in a message of the user's.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    def __init__(self, promote_tool_result_images: bool = False, token_counter: TokenCounterBase | None = None,
                 max_tokens: int | None = None) -> None:
        super().__init__(token_counter, max_tokens)
        self.promote_tool_result_images = promote_tool_result_images
        self.promoted = ("image",) if promote_tool_result_images else ()


class MultiAgentFormatter(TruncatedFormatterBase):
    """Formats a conversation of many as a history that names who said what; tool calls stay messages of their own.

    Args:
        conversation_history_prompt: stands before the first history.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    support_multiagent: ClassVar[bool] = True
    #: The class of `chat`.
    chat_formatter: ClassVar[Callable[..., ChatFormatter]]
    #: What opens a history.
    opening: ClassVar[str] = "<history>\n"

    def __init__(self, conversation_history_prompt: str = HISTORY_PROMPT,
                 token_counter: TokenCounterBase | None = None, max_tokens: int | None = None) -> None:
        super().__init__(token_counter, max_tokens)
        self.conversation_history_prompt = conversation_history_prompt

    @property
    def chat(self) -> ChatFormatter:
        """The formatter of tool calls and their results."""
        return type(self).chat_formatter()

    async def _format(self, msgs: list[Msg]) -> Formatted:
        formatted: Formatted = []
        rest = msgs
        if msgs and msgs[0].role == "system":
            formatted.append(await self._format_system_message(msgs[0]))
            rest = msgs[1:]
        first = True
        for tools, group in itertools.groupby(rest, lambda msg: msg.has_content_blocks(["tool_use", "tool_result"])):
            if tools:
                formatted += await self._format_tool_sequence(list(group))
            else:
                formatted += await self._format_agent_message(list(group), first)
                first = False
        return formatted

    async def _format_system_message(self, msg: Msg) -> dict[str, Any]:
        return {"role": "system", "content": msg.get_text_content()}

    async def _format_tool_sequence(self, msgs: list[Msg]) -> Formatted:
        return await self.chat.format(msgs)

    async def _format_agent_message(self, msgs: list[Msg], is_first: bool = True) -> Formatted:
        pieces = self._pieces(msgs)
        opening = (self.conversation_history_prompt if is_first else "") + self.opening
        return [await self._history(pieces, opening)] if pieces else []

    def _pieces(self, msgs: list[Msg]) -> list[Any]:
        """Stretches of text with their speakers, and the blocks of media between them."""
        pieces: list[Any] = []
        said: list[str] = []
        for msg in msgs:
            for block in msg.get_content_blocks():
                if block["type"] == "text":
                    said.append(f"{msg.name}: {block['text']}")
                elif block["type"] in KINDS and self._takes(block, msg):
                    if said:
                        pieces.append("\n".join(said))
                        said = []
                    pieces.append(block)
        if said:
            pieces.append("\n".join(said))
        return pieces

    def _takes(self, block: dict[str, Any], msg: Msg) -> bool:
        return block["type"] in self.chat.takes

    @abstractmethod
    async def _history(self, pieces: list[Any], opening: str) -> dict[str, Any]:
        """The message of a history."""


class ImagePromotingFormatter(MultiAgentFormatter):
    """Formats a conversation of many for an API whose tool results hold text alone.

    Args:
        conversation_history_prompt: stands before the first history.
        promote_tool_result_images: show the pictures of tool results again in a message of the user's.
        token_counter: counts the tokens of formatted messages.
        max_tokens: that they may take; the oldest messages are left out.
    """

    def __init__(self, conversation_history_prompt: str = HISTORY_PROMPT, promote_tool_result_images: bool = False,
                 token_counter: TokenCounterBase | None = None, max_tokens: int | None = None) -> None:
        super().__init__(conversation_history_prompt, token_counter, max_tokens)
        self.promote_tool_result_images = promote_tool_result_images

    @property
    def chat(self) -> ChatFormatter:
        """The formatter of tool calls and their results."""
        return type(self).chat_formatter(self.promote_tool_result_images)


def enclosed(pieces: list[Any], opening: str) -> list[Any]:
    """The pieces with what opens and closes a history, as part of the text that is there or by themselves."""
    head = [opening + pieces[0], *pieces[1:]] if isinstance(pieces[0], str) else [opening, *pieces]
    tail = head[-1]
    return [*head[:-1], f"{tail}\n</history>"] if isinstance(tail, str) else [*head, "</history>"]
