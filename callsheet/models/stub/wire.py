"""OpenAI's chat completions format, from the server's side."""

import json
import re
from dataclasses import dataclass
from typing import Any

from callsheet.models.stub.respond import answer

MODEL = "stub-extractive"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TOKEN = re.compile(r"\s*(?:[぀-ヿ㐀-鿿가-힯]|\w{1,8}|[^\w\s])|\s+")


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


@dataclass(frozen=True)
class ChatRequest:
    """A request that is well formed."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    schema: dict[str, Any] | None
    json_object: bool
    tool: dict[str, Any] | None


@dataclass(frozen=True)
class Completion:
    """An answer, in tokens.

    Attributes:
        tokens: of the text, or of a tool call's arguments; joined they are the whole.
        tool: name of the tool called, or None.
        finish: "stop", "length" or "tool_calls".
        prompt_tokens: of all messages.
    """

    tokens: list[str]
    tool: str | None
    finish: str
    prompt_tokens: int

    def usage(self, choices: int) -> dict[str, int]:
        """As the API tells it."""
        out = len(self.tokens) * choices
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": out,
                "total_tokens": self.prompt_tokens + out}


def tokenize(text: str) -> list[str]:
    """The tokens of a text: words cut after eight characters, signs, single CJK characters, each with the white
    space before it. Joined they are the text."""
    return _TOKEN.findall(text)


def parse(body: bytes) -> ChatRequest:
    """A request's body.

    Raises:
        BadRequest: the body is malformed.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("We could not parse the JSON body of your request.") from None
    if not isinstance(data, dict):
        raise BadRequest("The body must be a JSON object.")
    if not isinstance(data.get("model"), str) or not data["model"]:
        raise BadRequest("You must provide a model parameter.", "model")
    schema, json_object = _format(data.get("response_format"))
    options = data.get("stream_options") or {}
    limit = "max_completion_tokens" if data.get("max_completion_tokens") is not None else "max_tokens"
    return ChatRequest(
        model=data["model"], messages=_messages(data.get("messages")), stream=data.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        choices=_whole(data, "n", 128) or 1, max_tokens=_whole(data, limit, 1_000_000),
        schema=schema, json_object=json_object, tool=_tool(data.get("tools"), data.get("tool_choice")))


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
    tokens = tokenize(text)
    prompt = sum(4 + len(tokenize(_flat(message.get("content")))) for message in request.messages)
    finish = "tool_calls" if request.tool is not None else "stop"
    if request.max_tokens is not None and len(tokens) > request.max_tokens:
        tokens, finish = tokens[:request.max_tokens], "length"
    name = str(request.tool["name"]) if request.tool is not None else None
    return Completion(tokens, name, finish, prompt)


def whole_body(request: ChatRequest, done: Completion, ident: str, created: int) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    text = "".join(done.tokens)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if done.tool is not None:
        message["content"] = None
        message["tool_calls"] = [{"id": f"call_{ident}", "type": "function",
                                  "function": {"name": done.tool, "arguments": text}}]
    choices = [{"index": index, "message": message, "logprobs": None, "finish_reason": done.finish}
               for index in range(request.choices)]
    return {"id": f"chatcmpl-{ident}", "object": "chat.completion", "created": created, "model": request.model,
            "choices": choices, "usage": done.usage(request.choices)}


def chunk_body(request: ChatRequest, ident: str, created: int, index: int, delta: dict[str, Any],
               finish: str | None = None) -> dict[str, Any]:
    """One event of a stream."""
    return {"id": f"chatcmpl-{ident}", "object": "chat.completion.chunk", "created": created, "model": request.model,
            "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def delta_of(done: Completion, ident: str, text: str, first: bool) -> dict[str, Any]:
    """What a stream adds: text, or a piece of a tool call."""
    if done.tool is None:
        return {"content": text}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
    if first:
        call |= {"id": f"call_{ident}", "type": "function", "function": {"name": done.tool, "arguments": text}}
    return {"tool_calls": [call]}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


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


def _whole(data: dict[str, Any], name: str, most: int) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest(f"'{name}' must be an integer from 1 to {most}.", name)
    return value


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


def _flat(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content)
    return content if isinstance(content, str) else ""
