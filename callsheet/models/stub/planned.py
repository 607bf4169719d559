"""Answers that a test plans, in place of what the stub would make of the text, and what the stub was asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from callsheet.models.stub.wire import ChatRequest, Completion, Part, finished, tokenize


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server answers to one call.

    Attributes:
        text: of the answer; what the stub makes of the prompt if None and nothing else is said.
        thinking: reasoning before it.
        tools: tool calls after it: names and arguments.
        finish: why it ends: "stop", "length" or "tool_calls"; by the rest if None.
        input_tokens, output_tokens, cached_tokens: usage to tell; counted if None.
        status: an error is answered unless 200.
        message: of the error.
        headers: of the response, beside the usual ones.
        body: sent as it is, with `content_type`, in place of all of that.
        content_type: of `body`.
        delay: seconds before the answer, beside the server's latency.
        break_after: cut the connection after so many events of a stream, or bytes of a whole answer.
        silent: never answer.
    """

    text: str | None = None
    thinking: str = ""
    tools: Sequence[tuple[str, Mapping[str, Any]]] = ()
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    status: int = 200
    message: str = "planned"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str | None = None
    content_type: str = "application/json"
    delay: float = 0.0
    break_after: int | None = None
    silent: bool = False

    def completion(self, request: ChatRequest) -> Completion | None:
        """The answer, or None where the stub is to make it."""
        parts = [Part("thinking", tokenize(self.thinking))] if self.thinking else []
        if self.text is not None:
            parts.append(Part("text", tokenize(self.text)))
        parts += [Part("tool", tokenize(json.dumps(arguments)), name) for name, arguments in self.tools]
        return self.adjusted(finished(request, parts)) if parts else None

    def adjusted(self, done: Completion) -> Completion:
        """The answer with the usage and the end that are planned."""
        return replace(
            done, finish=self.finish or done.finish, cached_tokens=self.cached_tokens,
            prompt_tokens=done.prompt_tokens if self.input_tokens is None else self.input_tokens,
            output_tokens=done.output_tokens if self.output_tokens is None else self.output_tokens)


@dataclass(frozen=True)
class Received:
    """A call as it came.

    Attributes:
        path: with the query.
        headers: names in small letters.
        body: JSON data, or the bytes where it is none.
    """

    path: str
    headers: dict[str, str]
    body: Any
