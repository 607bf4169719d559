"""What the wire forms of the providers have in common, from the server's side: a request, an answer, their errors."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from callsheet.models.stub.respond import answer, flat

_TOKEN = re.compile(r"\s*(?:[぀-ヿ㐀-鿿가-힯]|\w{1,8}|[^\w\s])|\s+")

Kind = Literal["thinking", "text", "tool"]


class BadRequest(ValueError):
    """A body that the API refuses.

    Args:
        message: why.
        param: the field at fault, or None.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request that is well formed."""

    model: str
    messages: list[dict[str, Any]]  # in OpenAI's form
    stream: bool
    include_usage: bool = True  # whether a stream tells it
    choices: int = 1  # answers asked for
    max_tokens: int | None = None  # of the answer, or None
    schema: dict[str, Any] | None = None  # that the answer must fit, or None
    json_object: bool = False  # whether any JSON object will do
    tool: dict[str, Any] | None = None  # the one that must be called: `name` and `parameters`; or None


@dataclass(frozen=True)
class Part:
    """A part of an answer."""

    kind: Kind
    tokens: list[str]  # of the text, or of a tool call's arguments; joined they are the whole
    name: str = ""  # of the tool

    @property
    def text(self) -> str:
        """The whole."""
        return "".join(self.tokens)


@dataclass(frozen=True)
class Completion:
    """An answer."""

    parts: list[Part]
    finish: str  # "stop", "length" or "tool_calls"
    prompt_tokens: int  # of all messages
    output_tokens: int  # of one answer
    cached_tokens: int = 0  # of the prompt's, those that the server says it had in its cache

    def pieces(self, step: int, whole_calls: bool = False) -> Iterator[tuple[int, int, Part, str, bool]]:
        """The answer in pieces of `step` tokens, tool calls perhaps in one: tokens up to the piece's end, its part's
        number, the part, the piece's text, and whether it is the part's first."""
        before = 0
        for number, part in enumerate(self.parts):
            size = len(part.tokens) or 1
            stride = size if whole_calls and part.kind == "tool" else step
            for start in range(0, size, stride):
                piece = part.tokens[start:start + stride]
                yield before + start + len(piece), number, part, "".join(piece), start == 0
            before += len(part.tokens)

    def said(self, kind: Kind) -> str:
        """All text of one kind."""
        return "".join(part.text for part in self.parts if part.kind == kind)


@dataclass(frozen=True)
class Exchange:
    """One call: what was asked, what is answered."""

    request: ChatRequest
    done: Completion
    ident: str  # what its id is made of
    created: int  # unix time in seconds


class Wire(ABC):
    """A provider's API, from the server's side."""

    #: Where its calls arrive, as aiohttp writes paths.
    paths: ClassVar[tuple[str, ...]]
    #: What a stream is.
    content_type: ClassVar[str] = "text/event-stream"
    #: The headers that may hold a key, beside "Authorization: Bearer".
    key_headers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parse(self, body: bytes, match: Mapping[str, str]) -> ChatRequest:
        """A request's body; `match`: the parts of its path.

        Raises:
            BadRequest: the body is malformed.
        """

    @abstractmethod
    def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    @abstractmethod
    def events(self, exchange: Exchange, step: int) -> Iterator[tuple[int, bytes]]:
        """A stream, event by event: tokens that have been sent after it, and its bytes."""

    @abstractmethod
    def error(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        """The body of an error."""


def tokenize(text: str) -> list[str]:
    """The tokens of a text: words cut after eight characters, signs, single CJK characters, each with the white
    space before it. Joined they are the text."""
    return _TOKEN.findall(text)


def parsed(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object.

    Raises:
        BadRequest: it is not.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("We could not parse the JSON body of your request.") from None
    if not isinstance(data, dict):
        raise BadRequest("The body must be a JSON object.")
    return data


def whole_number(data: dict[str, Any], name: str, most: int) -> int | None:
    """A field that is a whole number from 1 to `most`, or None without it.

    Raises:
        BadRequest: it is something else.
    """
    value = data.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest(f"'{name}' must be an integer from 1 to {most}.", name)
    return value


def complete(request: ChatRequest) -> Completion:
    """Work the answer out; takes time with a long text, and no locks."""
    schema = request.schema
    if request.tool is not None:
        schema = request.tool.get("parameters") or {"type": "object"}
    result = answer(request.messages, schema)
    if schema is not None:
        text = json.dumps(result)
    else:
        text = json.dumps({"answer": result}) if request.json_object else result
    if request.tool is not None:
        return finished(request, [Part("tool", tokenize(text), str(request.tool["name"]))])
    return finished(request, [Part("text", tokenize(text))])


def finished(request: ChatRequest, parts: list[Part]) -> Completion:
    """An answer of these parts, cut where the request says so."""
    finish = "tool_calls" if any(part.kind == "tool" for part in parts) else "stop"
    left = request.max_tokens
    if left is not None and sum(len(part.tokens) for part in parts) > left:
        finish, kept = "length", []
        for part in parts:
            if left > 0:
                kept.append(Part(part.kind, part.tokens[:left], part.name))
                left -= len(part.tokens)
        parts = kept
    prompt = sum(4 + len(tokenize(flat(message.get("content")))) for message in request.messages)
    return Completion(parts, finish, prompt, sum(len(part.tokens) for part in parts))


def sse(data: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()
