"""Ollama's chat format, from the server's side."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from callsheet.models.stub.anthropic_wire import arguments_of
from callsheet.models.stub.wire import BadRequest, ChatRequest, Exchange, Part, Wire, parsed, whole_number


class OllamaWire(Wire):
    """/api/chat."""

    paths: ClassVar[tuple[str, ...]] = ("/api/chat",)
    content_type: ClassVar[str] = "application/x-ndjson"

    def parse(self, body: bytes, match: Mapping[str, str]) -> ChatRequest:
        """A request's body."""
        data = parsed(body)
        if not isinstance(data.get("model"), str) or not data["model"]:
            raise BadRequest("model is required")
        messages = data.get("messages")
        if not isinstance(messages, list) or not all(
                isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
            raise BadRequest("messages must be a list of messages with a role")
        form = data.get("format")
        options = data.get("options") or {}
        filled = [{**message, "content": message.get("content") or ""} for message in messages]
        return ChatRequest(
            model=data["model"], messages=filled, stream=data.get("stream") is not False,
            max_tokens=whole_number(options, "num_predict", 1_000_000),
            schema=form if isinstance(form, dict) else None, json_object=form == "json")

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        done = exchange.done
        message: dict[str, Any] = {"role": "assistant", "content": done.said("text")}
        if thinking := done.said("thinking"):
            message["thinking"] = thinking
        calls = [_call(part) for part in done.parts if part.kind == "tool"]
        if calls:
            message["tool_calls"] = calls
        return self._body(exchange, message, True)

    def events(self, exchange: Exchange, step: int) -> Iterator[tuple[int, bytes]]:
        """A stream, line by line; a tool call comes in one piece."""
        for tokens, _, part, text, _ in exchange.done.pieces(step, whole_calls=True):
            yield tokens, _line(self._body(exchange, _delta(part, text), False))
        yield exchange.done.output_tokens, _line(self._body(exchange, {"role": "assistant", "content": ""}, True))

    def error(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        """The body of an error."""
        return {"error": message}

    def _body(self, exchange: Exchange, message: dict[str, Any], last: bool) -> dict[str, Any]:
        made = datetime.fromtimestamp(exchange.created, UTC).isoformat().replace("+00:00", "Z")
        body: dict[str, Any] = {"model": exchange.request.model, "created_at": made, "message": message, "done": last}
        if last:
            body |= {"done_reason": "length" if exchange.done.finish == "length" else "stop", "total_duration": 1,
                     "load_duration": 1, "prompt_eval_count": exchange.done.prompt_tokens, "prompt_eval_duration": 1,
                     "eval_count": exchange.done.output_tokens, "eval_duration": 1}
        return body


def _call(part: Part) -> dict[str, Any]:
    return {"function": {"name": part.name, "arguments": arguments_of(part.text)}}


def _delta(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "tool":
        return {"role": "assistant", "content": "", "tool_calls": [_call(part)]}
    name = "thinking" if part.kind == "thinking" else "content"
    return {"role": "assistant", "content": "", name: text}


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode() + b"\n"
