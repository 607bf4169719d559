"""The Gemini API's format, from the server's side."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from callsheet.models.stub.anthropic_wire import SIGNATURE, arguments_of
from callsheet.models.stub.wire import BadRequest, ChatRequest, Exchange, Part, Wire, parsed, sse, whole_number

_STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
           429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


class GeminiWire(Wire):
    """generateContent, whole and as a stream."""

    paths: ClassVar[tuple[str, ...]] = ("/{version:v1(?:alpha|beta)?}/models/{model}:generateContent",
                                        "/{version:v1(?:alpha|beta)?}/models/{model}:streamGenerateContent")
    key_headers: ClassVar[tuple[str, ...]] = ("x-goog-api-key",)

    def parse(self, body: bytes, match: Mapping[str, str]) -> ChatRequest:
        """A request's body."""
        data = parsed(body)
        contents = data.get("contents")
        if not isinstance(contents, list) or not contents:
            raise BadRequest("contents is not specified")
        config = data.get("generationConfig") or {}
        system = data.get("systemInstruction")
        messages = [_message({**system, "role": "system"})] if isinstance(system, dict) else []
        schema = _either(config, "responseJsonSchema", "response_json_schema", "responseSchema")
        return ChatRequest(
            model=match["model"], messages=messages + [_message(content) for content in contents],
            stream=match.get("stream") == "1", max_tokens=whole_number(config, "maxOutputTokens", 1_000_000),
            schema=_lower(schema) if isinstance(schema, dict) else None,
            json_object=schema is None and config.get("responseMimeType") == "application/json",
            tool=_tool(data.get("tools"), data.get("toolConfig")))

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return self._body(exchange, [_part(part, part.text) for part in exchange.done.parts], True)

    def events(self, exchange: Exchange, step: int) -> Iterator[tuple[int, bytes]]:
        """A stream, event by event; a tool call comes in one piece."""
        for tokens, _, part, text, _ in exchange.done.pieces(step, whole_calls=True):
            yield tokens, sse(self._body(exchange, [_part(part, text)], False))
        yield exchange.done.output_tokens, sse(self._body(exchange, [{"text": ""}], True))

    def error(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        """The body of an error."""
        return {"error": {"code": status, "message": message, "status": _STATUS.get(status, "INTERNAL")}}

    def _body(self, exchange: Exchange, parts: list[dict[str, Any]], last: bool) -> dict[str, Any]:
        done = exchange.done
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        usage: dict[str, Any] = {"promptTokenCount": done.prompt_tokens, "totalTokenCount": done.prompt_tokens}
        if last:
            thought = sum(len(part.tokens) for part in done.parts if part.kind == "thinking")
            candidate["finishReason"] = "MAX_TOKENS" if done.finish == "length" else "STOP"
            usage |= {"candidatesTokenCount": done.output_tokens - thought,
                      "totalTokenCount": done.prompt_tokens + done.output_tokens}
            usage |= {"thoughtsTokenCount": thought} if thought else {}
            usage |= {"cachedContentTokenCount": done.cached_tokens} if done.cached_tokens else {}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": exchange.request.model,
                "responseId": exchange.ident}


def _part(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "tool":
        return {"functionCall": {"name": part.name, "args": arguments_of(text)}, "thoughtSignature": SIGNATURE}
    return {"text": text, "thought": True} if part.kind == "thinking" else {"text": text}


def _message(content: Any) -> dict[str, Any]:
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadRequest("contents.parts must not be empty")
    role = {"model": "assistant", None: "user"}.get(content.get("role"), content.get("role"))
    texts = [str(part.get("text") or (part.get("functionResponse") or {}).get("response") or "") for part in parts]
    return {"role": role, "content": "\n".join(text for text in texts if text)}


def _tool(tools: Any, config: Any) -> dict[str, Any] | None:
    calling = (config or {}).get("functionCallingConfig") or {}
    if str(calling.get("mode", "")).upper() != "ANY":
        return None
    allowed = calling.get("allowedFunctionNames")
    for tool in tools or ():
        for function in tool.get("functionDeclarations") or ():
            if not allowed or function["name"] in allowed:
                schema = _either(function, "parametersJsonSchema", "parameters_json_schema", "parameters")
                return {"name": function["name"], "parameters": _lower(schema)}
    raise BadRequest(f"allowed_function_names {allowed} are not among the tools")


def _either(data: dict[str, Any], *names: str) -> Any:
    """The first of these fields that is there; the API takes names in both cases."""
    return next((data[name] for name in names if data.get(name)), None)


def _lower(schema: Any) -> Any:
    """The schema with JSON Schema's names of types, which the API writes in capitals."""
    if isinstance(schema, list):
        return [_lower(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: value.lower() if key == "type" and isinstance(value, str) else _lower(value)
            for key, value in schema.items()}
