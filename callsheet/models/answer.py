"""An answer of the chat completions API, put together from its parts."""

import json
import logging
import time
from typing import Any

from pydantic_core import from_json

from callsheet.models.base import ChatResponse, ChatUsage, Content

log = logging.getLogger(__name__)


class Answer:
    """What has come of one answer so far.

    Args:
        started: `time.monotonic()` of the call.
        audio_format: of the sound asked for, e.g. "wav".
        tool_parsing: whether a tool call's input is shown while it grows.
    """

    def __init__(self, started: float, audio_format: str = "wav", tool_parsing: bool = True) -> None:
        self.finish: str | None = None
        self.refusal = ""
        self.text = ""
        self.usage: ChatUsage | None = None
        self._started = started
        self._audio_format = audio_format
        self._tool_parsing = tool_parsing
        self._id: str | None = None
        self._thinking = ""
        self._audio = ""
        self._tools: list[dict[str, Any]] = []
        self._slots: dict[int, dict[str, Any]] = {}

    def add(self, event: dict[str, Any]) -> bool:
        """Take one event of a stream, or a whole completion; says whether there is news.

        Only the first choice counts. Raises what a wrongly shaped event makes Python raise.
        """
        self._id = self._id or event.get("id")
        news = False
        if event.get("usage"):
            self._take_usage(event["usage"])
            news = True
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                news = self._take(choice.get("delta") or choice.get("message") or {}) or news
                self.finish = choice.get("finish_reason") or self.finish
        return news

    def response(self, *, final: bool = False, metadata: dict[str, Any] | None = None) -> ChatResponse:
        """The answer so far; when `final`, the arguments of tool calls are complete."""
        content: list[Content] = []
        if self._thinking:
            content.append(block("thinking", thinking=self._thinking))
        if self._audio:
            source = {"type": "base64", "media_type": f"audio/{self._audio_format}", "data": self._audio}
            content.append(block("audio", source=source))
        if self.text:
            content.append(block("text", text=self.text))
        for number, tool in enumerate(self._tools):
            content.append(tool_block(tool, number, final, self._tool_parsing))
        response = ChatResponse(content=content, usage=self.usage, metadata=metadata, finish_reason=self.finish)
        if self._id:
            response.id = str(self._id)
        return response

    @property
    def tool_arguments(self) -> str | None:
        """The first tool call's arguments as they came, or None."""
        return str(self._tools[0]["arguments"]) if self._tools else None

    @property
    def empty(self) -> bool:
        """Whether nothing has come, not even an end."""
        return not (self.finish or self.text or self._thinking or self._audio or self._tools or self.refusal)

    def _take(self, delta: dict[str, Any]) -> bool:
        before = len(self.text), len(self._thinking), len(self._audio)
        self._thinking += next((part for name in ("reasoning_content", "reasoning")
                                if isinstance(part := delta.get(name), str)), "")
        self.text += _text(delta.get("content"))
        self.refusal += delta.get("refusal") or ""
        audio = delta.get("audio") or {}
        self._audio += audio.get("data") or ""
        self.text += audio.get("transcript") or ""
        calls = delta.get("tool_calls") or ()
        for position, call in enumerate(calls):
            self._take_tool(call, position)
        return bool(calls) or before != (len(self.text), len(self._thinking), len(self._audio))

    def _take_tool(self, call: dict[str, Any], position: int) -> None:
        index = call.get("index")
        slot = self._slots.get(position if index is None else index)
        # Some servers give every call the index 0 and tell them apart by id.
        if slot is None or (call.get("id") and slot["id"] and call["id"] != slot["id"]):
            slot = {"id": "", "name": "", "arguments": ""}
            self._slots[position if index is None else index] = slot
            self._tools.append(slot)
        function = call.get("function") or {}
        arguments = function.get("arguments")
        slot["id"] = slot["id"] or call.get("id") or ""
        slot["name"] = slot["name"] or function.get("name") or ""
        slot["arguments"] += json.dumps(arguments) if isinstance(arguments, dict) else arguments or ""

    def _take_usage(self, usage: dict[str, Any]) -> None:
        self.usage = ChatUsage(
            input_tokens=int(usage.get("prompt_tokens") or 0), output_tokens=int(usage.get("completion_tokens") or 0),
            time=time.monotonic() - self._started, metadata=usage)


def _text(content: Any) -> str:
    """Text given as a string, as parts, or not at all."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if part.get("type") in ("text", None))
    return content or ""


def block(kind: str, **fields: Any) -> Any:
    """A content block."""
    return {"type": kind, **fields}


def tool_block(tool: dict[str, Any], number: int, final: bool, parsing: bool = True) -> Any:
    """A tool call as a block.

    Args:
        tool: `id`, `name`, and `arguments` as the text that has come so far.
        number: of this call in the answer, from 0.
        final: whether the arguments are complete.
        parsing: whether `input` shows arguments that are not; if not, it is {} and `raw_input` is the text.
    """
    arguments = tool["arguments"]
    if not final and not parsing:
        return block("tool_use", id=tool["id"] or f"call_{number}", name=tool["name"], input={}, raw_input=arguments)
    try:
        value = from_json(arguments or "{}", allow_partial="trailing-strings")
    except ValueError:
        value = None
    found = block("tool_use", id=tool["id"] or f"call_{number}", name=tool["name"],
                   input=value if isinstance(value, dict) else {})
    if final and not is_object(arguments or "{}"):
        log.warning("model_tool_arguments_malformed tool=%s: the call goes on with what can be read", tool["name"])
        found["raw_input"] = arguments
    return found


def is_object(text: str) -> bool:
    """Whether a text is one complete JSON object."""
    try:
        return isinstance(from_json(text), dict)
    except ValueError:
        return False
