"""An answer of the chat completions API, put together from its parts."""

import json
import logging
import time
from typing import Any

from pydantic_core import from_json

from callsheet.messages.names import new_call_id
from callsheet.models.base import ChatResponse, ChatUsage, Content
from callsheet.models.ending import reason
from callsheet.models.growing import Pace, Text
from callsheet.resources.tokens import numbers_in, tokens_of

log = logging.getLogger(__name__)

MOST_CALLS = 1000
"""Tool calls in one answer."""

_OF_CALLS = ("index", "id", "type", "function")
_LOOKS = 64  # times that the arguments of one call are looked at, whether they are complete


class TooManyCalls(Exception):
    """An answer has over MOST_CALLS tool calls; never leaves the models."""


class Answer:
    """What has come of one answer so far.

    Args:
        started: `time.monotonic()` of the call.
        audio_format: of the sound asked for, e.g. "wav".
        tool_parsing: whether a tool call's input is shown while it grows.
    """

    def __init__(self, started: float, audio_format: str = "wav", tool_parsing: bool = True) -> None:
        self.ended: str | None = None  # the provider's word for why
        self.refusal = ""
        self.usage: ChatUsage | None = None
        self._started = started
        self._audio_format = audio_format
        self._tool_parsing = tool_parsing
        self._id: str | None = None
        self._text, self._thinking, self._audio = Text(), Text(), Text()
        self._details: list[Any] = []  # of the thinking, which the server wants back as they came
        self._tools: list[ToolCall] = []
        self._slots: dict[int, ToolCall] = {}
        self._pace = Pace()

    def add(self, event: dict[str, Any]) -> bool:
        """Take one event of a stream, or a whole completion; says whether there is news.

        Only the first choice counts. Raises TooManyCalls, and what a wrongly shaped event makes Python raise.
        """
        self._id = self._id or event.get("id")
        news = False
        if event.get("usage"):
            self._take_usage(event["usage"])
            news = True
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                delta = choice.get("delta")
                news = self._take(delta or choice.get("message") or {}, whole=not delta) or news
                self.ended = choice.get("finish_reason") or self.ended
        return news

    @property
    def text(self) -> str:
        """All text."""
        return str(self._text)

    @property
    def due(self) -> bool:
        """Whether a response is worth its while: of a long answer, each would take as long as the answer."""
        size = self._text.size + self._thinking.size + self._audio.size
        return self._pace.due(size + sum(tool.size for tool in self._tools))

    def response(self, *, final: bool = False, metadata: dict[str, Any] | None = None) -> ChatResponse:
        """The answer so far; when `final`, the arguments of tool calls are complete."""
        content: list[Content] = []
        if self._thinking or self._details:
            kept = {"details": list(self._details)} if self._details else {}
            content.append(block("thinking", thinking=str(self._thinking), **kept))
        if self._audio:
            source = {"type": "base64", "media_type": f"audio/{self._audio_format}", "data": str(self._audio)}
            content.append(block("audio", source=source))
        if self._text:
            content.append(block("text", text=self.text))
        content += tool_blocks(self._tools, final, self._tool_parsing)
        response = ChatResponse(content=content, usage=self.usage, metadata=metadata, finish_reason=self.finish)
        if self._id:
            response.id = str(self._id)
        return response

    @property
    def finish(self) -> str | None:
        """Why it ended, in the words of ChatResponse; None before."""
        return reason(self.ended)

    @property
    def said(self) -> bool:
        """Whether there is more than thoughts."""
        return bool(self._text or self._audio or self._tools)

    @property
    def tool_arguments(self) -> str | None:
        """The first tool call's arguments as they came, or None."""
        return str(self._tools[0].arguments) if self._tools else None

    @property
    def empty(self) -> bool:
        """Whether nothing has come, not even an end."""
        return not (self.finish or self.said or self._thinking or self.refusal)

    def _take(self, delta: dict[str, Any], *, whole: bool) -> bool:
        parts = (self._text, self._thinking, self._audio)
        before = sum(part.size for part in parts)
        self._thinking.add(next((part for name in ("reasoning_content", "reasoning")
                                 if isinstance(part := delta.get(name), str)), ""))
        self._details += delta.get("reasoning_details") or ()
        self._text.add(_text(delta.get("content")))
        self.refusal += delta.get("refusal") or ""
        audio = delta.get("audio") or {}
        self._audio.add(audio.get("data") or "")
        self._text.add(audio.get("transcript") or "")
        calls = delta.get("tool_calls") or ()
        for position, call in enumerate(calls):
            function = call.get("function") or {}
            given = function.get("arguments")
            arguments = json.dumps(given) if isinstance(given, dict) else given or ""
            tool = None if whole else self._slot(call, position if len(calls) > 1 else None, arguments)
            if tool is None:
                tool = self._new_call(call.get("index", position))
            tool.id = tool.id or str(call.get("id") or "")
            tool.name = tool.name or str(function.get("name") or "")
            tool.arguments.add(arguments)
            tool.extra.update((key, value) for key, value in call.items() if key not in _OF_CALLS)
        return bool(calls) or before != sum(part.size for part in parts)

    def _slot(self, call: dict[str, Any], position: int | None, arguments: str) -> "ToolCall | None":
        """The call that a piece of one belongs to; None: it begins another.

        Servers give a call an index, an id, both or neither; the same index or no index to all, told apart by id; or
        each piece of one call an id of its own.
        """
        index, given, name = call.get("index"), call.get("id"), (call.get("function") or {}).get("name")
        if index is None and given:
            known = next((tool for tool in reversed(self._tools) if tool.id == given), None)
            if known is not None:
                return known
        at = position if index is None else index
        tool = (self._tools[-1] if self._tools else None) if at is None else self._slots.get(at)
        if tool is None or not name or (given and given == tool.id):
            return tool
        if given and tool.id and name != tool.name:
            return None
        another = (arguments or name != tool.name) if not given or not tool.id else True
        return None if another and tool.complete() else tool

    def _new_call(self, index: int) -> "ToolCall":
        if len(self._tools) == MOST_CALLS:
            raise TooManyCalls
        made = self._slots[index] = ToolCall()
        self._tools.append(made)
        return made

    def _take_usage(self, usage: dict[str, Any]) -> None:
        found = tokens_of(numbers_in(usage))
        self.usage = ChatUsage(input_tokens=found.input or 0, output_tokens=found.output or 0,
                               time=time.monotonic() - self._started, metadata=usage)


class ToolCall:
    """A tool call that grows.

    Args:
        id: the server's, or "".
        name: the tool's.

    Attributes:
        arguments: as they came.
    """

    def __init__(self, id: str = "", name: str = "") -> None:
        self.id = id
        self.name = name
        self.arguments = Text()
        self.extra: dict[str, Any] = {}  # the server's own, which it wants back
        self.made = new_call_id()
        self._looks = _LOOKS

    @property
    def size(self) -> int:
        """Characters, and something for the call itself."""
        return self.arguments.size + 256

    def complete(self) -> bool:
        """Whether the arguments are an object with its end."""
        if not self._looks or not self.arguments.ends("}"):
            return False
        self._looks -= 1
        return is_object(str(self.arguments))


def _text(content: Any) -> str:
    """Text given as a string, as parts, or not at all."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if part.get("type") in ("text", None))
    return content or ""


def block(kind: str, **fields: Any) -> Any:
    """A content block."""
    return {"type": kind, **fields}


def tool_blocks(tools: list[ToolCall], final: bool, parsing: bool = True) -> list[Any]:
    """Tool calls as blocks, each with an id of its own: the server's, if it is the first that has it.

    Args:
        tools: of one answer.
        final: whether the arguments are complete.
        parsing: whether `input` shows arguments that are not; if not, it is {} and `raw_input` is the text.
    """
    ids: set[str] = set()
    blocks = []
    for tool in tools:
        blocks.append(_tool_block(tool, tool.made if tool.id in ids else tool.id or tool.made, final, parsing))
        ids.add(tool.id)
    return blocks


def _tool_block(tool: ToolCall, ident: str, final: bool, parsing: bool) -> Any:
    arguments = str(tool.arguments)
    if not final and not parsing:
        return block("tool_use", id=ident, name=tool.name, input={}, raw_input=arguments)
    value, whole = _arguments(arguments)
    found = block("tool_use", id=ident, name=tool.name, input=value, **({"extra": tool.extra} if tool.extra else {}))
    if final and not whole:
        log.warning("model_tool_arguments_malformed tool=%s: the call goes on with what can be read", tool.name)
        found["raw_input"] = arguments
    return found


def _arguments(text: str) -> tuple[dict[str, Any], bool]:
    """A call's arguments, as far as they are there, and whether they are whole.

    Models say "none" as null or an empty list, too, and some send the object's text as a text.
    """
    try:
        value = from_json(text if text.strip() else "{}", allow_partial="trailing-strings")
        whole = is_object(text)
        if isinstance(value, str):
            value = from_json(value)
            whole = True
    except ValueError:
        return {}, False
    if value is None or value == []:
        return {}, text.strip() != "["
    return (value, whole or not text.strip()) if isinstance(value, dict) else ({}, False)


def is_object(text: str) -> bool:
    """Whether a text is one complete JSON object."""
    try:
        return isinstance(from_json(text), dict)
    except ValueError:
        return False
