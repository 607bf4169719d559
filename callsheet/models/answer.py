"""Answers, put together from their parts, at a cost that does not grow with what is there already."""

import json
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from callsheet.messages.pairing import new_call_id
from callsheet.models.base import ChatResponse, ChatUsage
from callsheet.resources.tokens import numbers_in, tokens_of

log = logging.getLogger(__name__)

MOST_CALLS = 1000
"""Tool calls, or other parts, in one answer."""

_OF_CALLS = ("index", "id", "type", "function")
_LOOKS = 64  # times that the arguments of one call are looked at, whether they are complete
_SMALL = 16 * 1024  # characters up to which each piece of an answer is shown
_STEP = 64  # beyond, it is shown anew when it has grown by this part

#: Providers' words for how an answer ended.
_KNOWN = {
    "stop": "stop end_turn stop_sequence eos eos_token",
    "tool_calls": "tool_calls tool_use function_call",
    "length": "length max_tokens max_output_tokens model_length model_context_window_exceeded",
    "content_filter": "content_filter refusal safety recitation blocklist prohibited_content spii language sensitive "
                      "image_safety image_prohibited_content image_recitation model_armor guardrail_intervened",
    "error": "error other malformed_function_call unexpected_tool_call too_many_tool_calls malformed_response "
             "missing_thought_signature image_other no_image insufficient_system_resource network_error abort aborted "
             "cancelled failed timeout repetition",
    "": "finish_reason_unspecified null none",
}
_WORDS = {word: known for known, words in _KNOWN.items() for word in words.split()}


class TooManyCalls(Exception):
    """An answer has over MOST_CALLS parts; never leaves the models."""


def reason(word: Any) -> str | None:
    """A provider's word in those of `ChatResponse.finish_reason`; one that is not known stays, in small letters."""
    small = str(word or "").lower()
    return _WORDS.get(small, small) or None


class Text:
    """A text that grows.

    Attributes:
        size: its characters.
    """

    __slots__ = ("_half", "_parts", "size")

    def __init__(self, text: str = "") -> None:
        self._parts = [""]
        self._half = ""  # of a character, whose other half may follow
        self.size = 0
        self.add(text)

    def add(self, piece: str) -> int:
        """One more piece: how many characters that makes more.

        Half a character waits for its other half; one that stays alone becomes U+FFFD.
        """
        if self._half or not piece.isascii():
            piece = self._half + piece
            self._half = piece[-1] if "\ud800" <= piece[-1:] <= "\udbff" else ""
            piece = piece[:len(piece) - len(self._half)].encode("utf-16-le", "surrogatepass").decode(
                "utf-16-le", "replace")
        if piece:
            self._parts.append(piece)
            self.size += len(piece)
        return len(piece)

    def ends(self, mark: str) -> bool:
        """Whether its last piece ends with `mark`, but for blanks."""
        return self._parts[-1].rstrip().endswith(mark)

    def __bool__(self) -> bool:
        return self.size > 0

    def __str__(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0]


class Draft(ABC):
    """What has come of one answer so far.

    Args:
        started: `time.monotonic()` of the call.
        tool_parsing: whether a tool call's input is shown while it grows.

    Attributes:
        ended: the provider's word for why it ended, or None.
        refusal: how the model, or its provider, refuses to answer.
        usage: None until it has been told.
    """

    def __init__(self, started: float, tool_parsing: bool = True) -> None:
        self.ended: str | None = None
        self.refusal = ""
        self.usage: ChatUsage | None = None
        self._started = started
        self._tool_parsing = tool_parsing
        self._id: str | None = None
        self._told: dict[str, Any] = {}  # of its usage
        self._parts: list[dict[str, Any]] = []
        self._size = 0
        self._next = 0  # size from which it is shown again

    @abstractmethod
    def add(self, event: Any) -> bool:
        """Take one event of a stream, or a whole answer; says whether there is news.

        Raises TooManyCalls, and what a wrongly shaped event makes Python raise.
        """

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Its blocks: texts in them may be Text, a ToolCall stands under "call"."""
        return self._parts

    @property
    def text(self) -> str:
        """All text."""
        return "".join(str(part["text"]) for part in self.parts if part["type"] == "text")

    @property
    def data(self) -> str:
        """Where data in a given form are: the first tool call's arguments, or all text."""
        return next((str(part["call"].arguments) for part in self.parts if "call" in part), "") or self.text

    @property
    def finish(self) -> str | None:
        """Why it ended, in the words of ChatResponse; None before."""
        return reason(self.ended)

    @property
    def said(self) -> bool:
        """Whether there is more than thoughts."""
        return any(part["type"] != "thinking" for part in self.parts)

    @property
    def due(self) -> bool:
        """Whether a response is worth its while: of a long answer, each would take as long as the answer."""
        if self._size > _SMALL and self._size < self._next:
            return False
        self._next = self._size + self._size // _STEP
        return True

    def response(self, *, final: bool = False, metadata: dict[str, Any] | None = None) -> ChatResponse:
        """The answer so far; when `final`, the arguments of tool calls are complete."""
        content: list[Any] = []
        ids: set[str] = set()
        for part in self.parts:
            if "call" in part:  # with an id of its own: the server's, if it is the first that has it
                call: ToolCall = part["call"]
                content.append(call.block(call.made if call.id in ids else call.id or call.made, final,
                                          self._tool_parsing))
                ids.add(call.id)
            elif part.get("text", True):
                content.append({name: str(value) if isinstance(value, Text) else value for name, value in part.items()})
        response = ChatResponse(content=content, usage=self.usage, metadata=metadata, finish_reason=self.finish)
        response.id = str(self._id or response.id)
        return response

    def _part(self, part: dict[str, Any]) -> None:
        """One more block, of a weight that bounds how often many small ones are shown."""
        if len(self._parts) == MOST_CALLS:
            raise TooManyCalls
        self._parts.append(part)
        self._size += 256

    def _grow(self, text: Text, piece: str) -> None:
        self._size += text.add(piece)

    def _count(self, usage: dict[str, Any]) -> None:
        self._told = {**self._told, **{name: value for name, value in usage.items() if value is not None}}
        found = tokens_of(numbers_in(self._told))
        if found.input is not None or found.output is not None:
            self.usage = ChatUsage(found.input or 0, found.output or 0, time.monotonic() - self._started,
                                   metadata=self._told)


class Answer(Draft):
    """An answer of the chat completions API. Only the first choice counts.

    Args:
        started: `time.monotonic()` of the call.
        audio_format: of the sound asked for, e.g. "wav".
        tool_parsing: whether a tool call's input is shown while it grows.
    """

    def __init__(self, started: float, audio_format: str = "wav", tool_parsing: bool = True) -> None:
        super().__init__(started, tool_parsing)
        self._audio_format = audio_format
        self._text, self._thinking, self._audio = Text(), Text(), Text()
        self._details: list[Any] = []  # of the thinking, which the server wants back as they came
        self._slots: dict[int, ToolCall] = {}

    def add(self, event: dict[str, Any]) -> bool:
        """One event, or a whole completion."""
        self._id = self._id or event.get("id")
        news = False
        if event.get("usage"):
            self._count(event["usage"])
            news = True
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                delta = choice.get("delta")
                news = self._take(delta or choice.get("message") or {}, whole=not delta) or news
                self.ended = choice.get("finish_reason") or self.ended
        return news

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Thoughts, sound, text, then tool calls."""
        found: list[dict[str, Any]] = []
        if self._thinking or self._details:
            kept = {"details": list(self._details)} if self._details else {}
            found.append({"type": "thinking", "thinking": self._thinking, **kept})
        if self._audio:
            source = {"type": "base64", "media_type": f"audio/{self._audio_format}", "data": str(self._audio)}
            found.append({"type": "audio", "source": source})
        if self._text:
            found.append({"type": "text", "text": self._text})
        return found + self._parts

    def _take(self, delta: dict[str, Any], *, whole: bool) -> bool:
        before = self._size
        self._grow(self._thinking, next((part for name in ("reasoning_content", "reasoning")
                                         if isinstance(part := delta.get(name), str)), ""))
        self._details += delta.get("reasoning_details") or ()
        self._grow(self._text, _text(delta.get("content")))
        self.refusal += delta.get("refusal") or ""
        audio = delta.get("audio") or {}
        self._grow(self._audio, audio.get("data") or "")
        self._grow(self._text, audio.get("transcript") or "")
        calls = delta.get("tool_calls") or ()
        for position, call in enumerate(calls):
            function = call.get("function") or {}
            given = function.get("arguments")
            arguments = json.dumps(given) if isinstance(given, dict) else given or ""
            tool = None if whole else self._slot(call, position if len(calls) > 1 else None, arguments)
            if tool is None:
                tool = self._slots[call.get("index", position)] = ToolCall()
                self._part({"type": "tool_use", "call": tool})
            tool.id = tool.id or str(call.get("id") or "")
            tool.name = tool.name or str(function.get("name") or "")
            self._grow(tool.arguments, arguments)
            tool.extra.update((key, value) for key, value in call.items() if key not in _OF_CALLS)
        return bool(calls) or self._size > before

    def _slot(self, call: dict[str, Any], position: int | None, arguments: str) -> "ToolCall | None":
        """The call that a piece of one belongs to; None: it begins another.

        Servers give a call an index, an id, both or neither; the same index or no index to all, told apart by id; or
        each piece of one call an id of its own.
        """
        index, given, name = call.get("index"), call.get("id"), (call.get("function") or {}).get("name")
        if index is None and given:
            for one in reversed(self._parts):
                if one["call"].id == given:
                    return one["call"]  # type: ignore[no-any-return]
        at = position if index is None else index
        last = self._parts[-1]["call"] if self._parts else None
        tool: ToolCall | None = last if at is None else self._slots.get(at)
        if tool is None or not name or (given and given == tool.id):
            return tool
        if given and tool.id and name != tool.name:
            return None
        another = (arguments or name != tool.name) if not given or not tool.id else True
        return None if another and tool.complete() else tool


@dataclass(slots=True, eq=False)
class ToolCall:
    """A tool call that grows."""

    id: str = ""  # the server's
    name: str = ""  # the tool's
    arguments: Text = field(default_factory=Text)  # as they came
    extra: dict[str, Any] = field(default_factory=dict)  # the server's own, which it wants back
    made: str = field(default_factory=new_call_id)  # an id, where the server's will not do
    looks: int = _LOOKS  # that are left

    def complete(self) -> bool:
        """Whether the arguments are an object with its end."""
        if not self.looks or not self.arguments.ends("}"):
            return False
        self.looks -= 1
        return is_object(str(self.arguments))

    def block(self, ident: str, final: bool, parsing: bool) -> Any:
        """The call as a block.

        Args:
            ident: its id.
            final: whether the arguments are complete.
            parsing: whether `input` shows arguments that are not; if not, it is {} and `raw_input` is the text.
        """
        arguments = str(self.arguments)
        found: dict[str, Any] = {"type": "tool_use", "id": ident, "name": self.name}
        if not final and not parsing:
            return {**found, "input": {}, "raw_input": arguments}
        found["input"], whole = _arguments(arguments)
        if self.extra:
            found["extra"] = self.extra
        if final and not whole:
            log.warning("model_tool_arguments_malformed tool=%s: the call goes on with what can be read", self.name)
            found["raw_input"] = arguments
        return found


def _text(content: Any) -> str:
    """Text given as a string, as parts, or not at all."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if part.get("type") in ("text", None))
    return content or ""


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
