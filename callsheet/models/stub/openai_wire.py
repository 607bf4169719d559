"""OpenAI's chat completions format, from the server's side."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from callsheet.models.stub.wire import BadRequest, ChatRequest, Exchange, Part, Wire, parsed, sse, whole_number

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ERRORS = {400: ("invalid_request_error", None), 401: ("invalid_request_error", "invalid_api_key"),
           429: ("rate_limit_exceeded", "rate_limit_exceeded"), 500: ("server_error", "server_error"),
           503: ("overloaded", "overloaded")}


class OpenAIWire(Wire):
    """Chat completions."""

    paths: ClassVar[tuple[str, ...]] = ("/v1/chat/completions",)
    key_headers: ClassVar[tuple[str, ...]] = ("api-key",)  # Azure's

    def parse(self, body: bytes, match: Mapping[str, str]) -> ChatRequest:
        """A request's body."""
        data = parsed(body)
        if not isinstance(data.get("model"), str) or not data["model"]:
            raise BadRequest("You must provide a model parameter.", "model")
        schema, json_object = _format(data.get("response_format"))
        options = data.get("stream_options") or {}
        limit = "max_completion_tokens" if data.get("max_completion_tokens") is not None else "max_tokens"
        return ChatRequest(
            model=data["model"], messages=_messages(data.get("messages")), stream=data.get("stream") is True,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            choices=whole_number(data, "n", 128) or 1, max_tokens=whole_number(data, limit, 1_000_000),
            schema=schema, json_object=json_object, tool=_tool(data.get("tools"), data.get("tool_choice")))

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        done = exchange.done
        calls = [_call(exchange, number, part) for number, part in enumerate(done.parts) if part.kind == "tool"]
        text = done.said("text")
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if thinking := done.said("thinking"):
            message["reasoning_content"] = thinking
        choices = [{"index": index, "message": message, "logprobs": None, "finish_reason": done.finish}
                   for index in range(exchange.request.choices)]
        return {"id": f"chatcmpl-{exchange.ident}", "object": "chat.completion", "created": exchange.created,
                "model": exchange.request.model, "choices": choices, "usage": _usage(exchange)}

    def events(self, exchange: Exchange, step: int) -> Iterator[tuple[int, bytes]]:
        """A stream, event by event."""
        request, done = exchange.request, exchange.done
        yield 0, self._to_all(exchange, {"role": "assistant", "content": ""})
        tools = [number for number, part in enumerate(done.parts) if part.kind == "tool"]
        for tokens, number, part, text, first in done.pieces(step):
            if part.kind == "tool":
                call: dict[str, Any] = {"index": tools.index(number), "function": {"arguments": text}}
                if first:
                    call = {**_call(exchange, number, part), **call, "function": {"name": part.name, "arguments": text}}
                delta: dict[str, Any] = {"tool_calls": [call]}
            else:
                delta = {"reasoning_content" if part.kind == "thinking" else "content": text}
            yield tokens, self._to_all(exchange, delta)
        last = self._to_all(exchange, {}, done.finish)
        if request.include_usage:
            last += sse({**_chunk(exchange, 0, {}, None), "choices": [], "usage": _usage(exchange)})
        yield done.output_tokens, last + b"data: [DONE]\n\n"

    def error(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        """The body of an error."""
        kind, code = _ERRORS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def _to_all(self, exchange: Exchange, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return b"".join(sse(_chunk(exchange, index, delta, finish)) for index in range(exchange.request.choices))


def _chunk(exchange: Exchange, index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"id": f"chatcmpl-{exchange.ident}", "object": "chat.completion.chunk", "created": exchange.created,
            "model": exchange.request.model,
            "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def _call(exchange: Exchange, number: int, part: Part) -> dict[str, Any]:
    return {"id": f"call_{exchange.ident}{number or ''}", "type": "function",
            "function": {"name": part.name, "arguments": part.text}}


def _usage(exchange: Exchange) -> dict[str, Any]:
    done = exchange.done
    out = done.output_tokens * exchange.request.choices
    usage: dict[str, Any] = {"prompt_tokens": done.prompt_tokens, "completion_tokens": out,
                             "total_tokens": done.prompt_tokens + out}
    if done.cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": done.cached_tokens}
    return usage


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list of at least one message.", "messages")
    for number, message in enumerate(messages):
        where = f"messages.[{number}]"
        if not isinstance(message, dict):
            raise BadRequest(f"{where} must be an object.", where)
        if message.get("role") not in ROLES:
            raise BadRequest(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
        content = message.get("content")
        parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
        if not (isinstance(content, str) or parts or (content is None and message["role"] == "assistant")):
            raise BadRequest(f"{where}.content must be a string or a list of parts.", f"{where}.content")
    return messages


def _format(value: Any) -> tuple[dict[str, Any] | None, bool]:
    """The schema asked for, and whether any JSON object will do."""
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None, False
    if kind == "json_object":
        return None, True
    given = value.get("json_schema") if kind == "json_schema" else None
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest("'response_format' must be text, json_object, or json_schema with a schema.",
                         "response_format")
    return schema, False


def _tool(tools: Any, choice: Any) -> dict[str, Any] | None:
    """The tool that must be called. Where calling is free, the stub answers in words."""
    functions: list[dict[str, Any]]
    functions = [tool["function"] for tool in tools if isinstance(tool, dict)
                 and isinstance(tool.get("function"), dict) and isinstance(tool["function"].get("name"), str)
                 ] if isinstance(tools, list) else []
    if choice == "required" and functions:
        return functions[0]
    wanted = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(wanted, dict):
        return None
    for function in functions:
        if function["name"] == wanted.get("name"):
            return function
    raise BadRequest(f"tool_choice names {wanted.get('name')!r}, which is not among the tools.", "tool_choice")
