"""Anthropic's messages format, from the server's side."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from callsheet.models.stub.respond import flat
from callsheet.models.stub.wire import BadRequest, ChatRequest, Exchange, Part, Wire, parsed, sse, whole_number

_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERRORS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
           429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error"}
SIGNATURE = "c3R1Yg=="
"""Under a thought."""


class AnthropicWire(Wire):
    """Messages."""

    paths: ClassVar[tuple[str, ...]] = ("/v1/messages",)
    key_headers: ClassVar[tuple[str, ...]] = ("x-api-key",)

    def parse(self, body: bytes, match: Mapping[str, str]) -> ChatRequest:
        """A request's body."""
        data = parsed(body)
        if not isinstance(data.get("model"), str) or not data["model"]:
            raise BadRequest("model: Field required")
        limit = whole_number(data, "max_tokens", 1_000_000)
        if limit is None:
            raise BadRequest("max_tokens: Field required")
        messages = data.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages: at least one message is required")
        system = [{"role": "system", "content": flat(data["system"])}] if data.get("system") else []
        output = data.get("output_config") or {}
        form = output.get("format") if isinstance(output, dict) else None
        return ChatRequest(
            model=data["model"], messages=system + [_message(message) for message in messages],
            stream=data.get("stream") is True, max_tokens=limit,
            schema=form.get("schema") if isinstance(form, dict) else None,
            tool=_tool(data.get("tools"), data.get("tool_choice")))

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        content = [{**_start(exchange, number, part), **_full(part)} for number, part in enumerate(exchange.done.parts)]
        return {**_head(exchange), "content": content, "stop_reason": _FINISH[exchange.done.finish],
                "usage": _usage(exchange, exchange.done.output_tokens)}

    def events(self, exchange: Exchange, step: int) -> Iterator[tuple[int, bytes]]:
        """A stream, event by event."""
        yield 0, _event("message_start", message={**_head(exchange), "usage": _usage(exchange, 1)})
        done = exchange.done
        open_part: int | None = None
        for tokens, number, part, text, first in done.pieces(step):
            data = b""
            if first:
                if open_part is not None:
                    data += _event("content_block_stop", index=open_part)
                data += _event("content_block_start", index=number, content_block=_start(exchange, number, part))
                open_part = number
            data += _event("content_block_delta", index=number, delta=_delta(part, text))
            if part.kind == "thinking" and tokens == sum(len(one.tokens) for one in done.parts[:number + 1]):
                data += _event("content_block_delta", index=number,
                               delta={"type": "signature_delta", "signature": SIGNATURE})
            yield tokens, data
        last = _event("content_block_stop", index=open_part) if open_part is not None else b""
        last += _event("message_delta", delta={"stop_reason": _FINISH[done.finish], "stop_sequence": None},
                       usage={"output_tokens": done.output_tokens})
        yield done.output_tokens, last + _event("message_stop")

    def error(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        """The body of an error."""
        return {"type": "error", "error": {"type": _ERRORS.get(status, "api_error"), "message": message},
                "request_id": "req_stub"}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def _head(exchange: Exchange) -> dict[str, Any]:
    return {"id": f"msg_{exchange.ident}", "type": "message", "role": "assistant", "model": exchange.request.model,
            "content": [], "stop_reason": None, "stop_sequence": None}


def _usage(exchange: Exchange, out: int) -> dict[str, Any]:
    done = exchange.done  # what is read from the cache is counted apart from the input
    return {"input_tokens": done.prompt_tokens - done.cached_tokens, "output_tokens": out,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": done.cached_tokens}


def _start(exchange: Exchange, number: int, part: Part) -> dict[str, Any]:
    if part.kind == "tool":
        return {"type": "tool_use", "id": f"toolu_{exchange.ident}{number or ''}", "name": part.name, "input": {}}
    if part.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _full(part: Part) -> dict[str, Any]:
    if part.kind == "tool":
        return {"input": arguments_of(part.text)}
    return {"thinking": part.text, "signature": SIGNATURE} if part.kind == "thinking" else {"text": part.text}


def arguments_of(text: str) -> Any:
    """A tool call's arguments; {} where they are not whole."""
    try:
        return json.loads(text or "{}")
    except ValueError:  # cut at max_tokens
        return {}


def _delta(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "tool":
        return {"type": "input_json_delta", "partial_json": text}
    if part.kind == "thinking":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise BadRequest("messages: roles must be 'user' or 'assistant'")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise BadRequest("messages: content must be a string or a list of blocks")
    texts = [flat(block["content"]) if block.get("type") == "tool_result" else str(block.get("text") or "")
             for block in content]
    return {"role": message["role"], "content": "\n".join(text for text in texts if text)}


def _tool(tools: Any, choice: Any) -> dict[str, Any] | None:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("any", "tool"):
        return None
    known = [tool for tool in tools or () if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
    for tool in known:
        if kind == "any" or tool["name"] == choice.get("name"):
            return {"name": tool["name"], "parameters": tool.get("input_schema")}
    raise BadRequest(f"tool_choice: no tool named {choice.get('name')!r}")
