"""Anthropic's models, through Anthropic's SDK (`pip install 'callsheet[anthropic]'`)."""

import importlib
import inspect
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
from pydantic import BaseModel, SecretStr

from callsheet.models.answer import MOST_CALLS, ToolCall, TooManyCalls, tool_blocks
from callsheet.models.base import ChatResponse, ChatUsage
from callsheet.models.ending import ended, reason
from callsheet.models.exchange import fitting
from callsheet.models.growing import Pace, Text
from callsheet.models.remote import Messages, check_messages, ended_by_user, one_of, opened_by_user
from callsheet.models.schema import as_tool
from callsheet.models.sdk import HEADER, SdkCall, SdkChatModel, no_cookies, unusable
from callsheet.resources.endpoints import STAND_IN, shown_url
from callsheet.resources.tokens import numbers_in, tokens_of
from callsheet.settings import Endpoint

log = logging.getLogger(__name__)

_MODES = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


@dataclass(frozen=True)
class _Options:
    parameters: dict[str, Any]
    structured: type[BaseModel] | None
    without: frozenset[str] = frozenset()


class AnthropicChatModel(SdkChatModel):
    """A Claude model. Thinking comes as thinking blocks, with the signature under which Claude takes them back.

    Args:
        model_name: as Anthropic knows it.
        api_key: a key to use instead of the endpoint's. A model that has one cannot travel to a worker.
        max_tokens: of an answer.
        stream: answer with a generator of growing responses.
        thinking: e.g. {"type": "enabled", "budget_tokens": 1024}.
        stream_tool_parsing: whether a stream shows a tool call's input as it grows; {} until it is complete if not.
        client_kwargs: `base_url`, `timeout` (seconds) and `default_headers`. To another `base_url` than the
            endpoint's, neither the endpoint's key nor its headers are sent.
        generate_kwargs: parameters of every call, e.g. `temperature`; a call's own beat them.
        endpoint: name of the endpoint in the settings.
        client_args: the old name of `client_kwargs`.

    Raises:
        UsageError: `client_kwargs` has what is not supported.
    """

    sdk_module: ClassVar[str] = "anthropic"
    extra: ClassVar[str] = "anthropic"

    def __init__(self, model_name: str, api_key: str | SecretStr | None = None, max_tokens: int = 2048,
                 stream: bool = True, thinking: dict[str, Any] | None = None, stream_tool_parsing: bool = True,
                 client_kwargs: dict[str, Any] | None = None, generate_kwargs: dict[str, Any] | None = None,
                 *, endpoint: str = "anthropic", client_args: dict[str, Any] | None = None) -> None:
        super().__init__(model_name, stream, api_key=api_key, endpoint=endpoint,
                         client_kwargs=one_of(client_kwargs, client_args), generate_kwargs=generate_kwargs,
                         stream_tool_parsing=stream_tool_parsing)
        self.max_tokens = max_tokens
        self.thinking = thinking

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **generate_kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model.

        Args:
            messages: as AnthropicChatFormatter gives them; the first may be the system's.
            tools: JSON schemas of the tools that it may call, in OpenAI's form.
            tool_choice: "auto", "none", "required" or a tool's name.
            structured_model: the answer's form; see OpenAIChatModel.
            generate_kwargs: parameters of the API; those that the SDK does not know are sent all the same.

        Returns:
            The response; with `stream`, a generator of growing ones. `usage.input_tokens` includes what was read from
            Anthropic's cache or written to it; `usage.metadata` tells them apart.

        Raises:
            ValueError: `messages` or `tool_choice` cannot be right.
            EndpointError: as OpenAIChatModel.
            UsageError: the SDK is not installed, or refuses the parameters.
            SettingsError: the settings know no such endpoint.
        """
        check_messages(messages)
        self._warn_of_tools(tools, tool_choice, structured_model)
        choice = self._choice(tool_choice, tools)
        parameters = {"max_tokens": self.max_tokens, **self.generate_kwargs, **generate_kwargs}
        if self.thinking:
            parameters.setdefault("thinking", self.thinking)
        if structured_model is not None:
            form = as_tool(structured_model)
            parameters["tools"] = [_tool(form)]
            parameters["tool_choice"] = {"type": "tool", "name": form["function"]["name"]}
        elif tools:
            parameters["tools"] = [_tool(tool) for tool in tools]
            if choice:
                parameters["tool_choice"] = _MODES.get(choice, {"type": "tool", "name": choice})
        return await self._run(messages, _Options(parameters, structured_model))

    def _call(self, messages: Messages, options: _Options) -> SdkCall:
        refused = self._refused(options)
        parameters = {"model": self.model_name, "messages": messages, "stream": self.stream, **{
            name: value for name, value in options.parameters.items() if name not in refused - {"tool_choice"}}}
        # A model that thinks cannot be made to call a tool.
        thinks = (parameters.get("thinking") or {}).get("type") not in (None, "disabled")
        if (thinks or "tool_choice" in refused) and parameters.get("tool_choice", {}).get("type") in ("any", "tool"):
            parameters["tool_choice"] = {"type": "auto"}
        if messages[0]["role"] == "system":
            parameters["system"] = messages[0]["content"]
            parameters["messages"] = messages[1:]
        parameters["messages"] = ended_by_user(opened_by_user(parameters["messages"], content="(no text)"), refused)
        call = self._begin(parameters, options.structured, parameters.pop("timeout", None))
        httpx2: Any = importlib.import_module("httpx2")
        parameters["timeout"] = httpx2.Timeout(call.timeout, connect=call.failures.endpoint.connect_timeout, pool=None)
        parameters["extra_headers"] = {**self._headers(parameters.get("extra_headers")), HEADER: call.ident}
        known = inspect.signature(call.client.messages.create).parameters
        strange = {name: parameters.pop(name) for name in list(parameters) if name not in known}
        if strange:
            parameters["extra_body"] = {**strange, **(parameters.get("extra_body") or {})}
        return call

    def _client(self, endpoint: Endpoint, headers: dict[str, str], through: httpx.AsyncBaseTransport) -> Any:
        from callsheet.resources.httpx2 import Httpx2Transport, httpx2  # comes with the SDK

        sdk = self.sdk()
        # With a key that is given it looks for none of its own in variables and files.
        return sdk.AsyncAnthropic(
            api_key=STAND_IN, base_url=shown_url(endpoint.base_url).removesuffix("/v1"), max_retries=0,
            default_headers=headers,
            http_client=httpx2.AsyncClient(transport=Httpx2Transport(through), trust_env=False, cookies=no_cookies()))

    async def _send(self, call: SdkCall) -> Any:
        return await call.client.messages.create(**call.arguments)

    def _status_error(self, exc: BaseException) -> int | None:
        return int(exc.status_code) if isinstance(exc, self.sdk().APIStatusError) else None

    def _whole(self, call: SdkCall, answer: Any) -> ChatResponse:
        message = _Message(call.started, self.stream_tool_parsing)
        message.begin(answer)
        for index, part in enumerate(answer.content):
            message.part(index, part)
        if not message.blocks and not message.finish:
            raise unusable(call)
        return self._finished(call, message)

    async def _responses(self, call: SdkCall, events: AsyncIterator[Any]) -> AsyncGenerator[ChatResponse, None]:
        message = _Message(call.started, self.stream_tool_parsing)
        async for event in events:
            if message.take(event) and message.due:
                yield message.response()
        if not message.finish:
            raise call.failures.cut_off(call.seen.status) if message.blocks else unusable(call)
        yield self._finished(call, message)

    def _finished(self, call: SdkCall, message: "_Message") -> ChatResponse:
        response = message.response(final=True)
        ended(message.finish, bool(response.content), call.failures, call.seen.status)
        if call.structured is not None:
            response.metadata = fitting(call.structured, message.form or message.text, call.failures, call.seen.status,
                                        cut=response.finish_reason == "length", usage=response.usage)
        return response


class _Message:
    """What has come of one answer so far."""

    def __init__(self, started: float, tool_parsing: bool) -> None:
        self.blocks: dict[int, dict[str, Any]] = {}
        self.finish: str | None = None
        self._tool_parsing = tool_parsing
        self._started = started
        self._id: str | None = None
        self._usage: dict[str, Any] = {}
        self._pace = Pace()
        self._size = 0

    @property
    def text(self) -> str:
        """All text."""
        return "".join(str(part["text"]) for part in self.blocks.values() if part["type"] == "text")

    @property
    def form(self) -> str | None:
        """The first tool call's arguments, or None."""
        return next((str(part["call"].arguments) for part in self.blocks.values() if part["type"] == "tool_use"), None)

    @property
    def due(self) -> bool:
        """Whether a response is worth its while."""
        return self._pace.due(self._size)

    def begin(self, message: Any) -> None:
        """The head of an answer."""
        self._id = message.id
        self.finish = message.stop_reason or self.finish
        self._count(message.usage)

    def part(self, index: int, part: Any) -> None:
        """A part of an answer, whole or at its beginning."""
        kind = part.type
        if len(self.blocks) == MOST_CALLS:
            raise TooManyCalls
        self._size += 256
        if kind == "text":
            self.blocks[index] = {"type": kind, "text": Text(part.text)}
        elif kind == "thinking":
            self.blocks[index] = {"type": kind, "thinking": Text(part.thinking), "signature": Text(part.signature)}
        elif kind == "redacted_thinking":
            self.blocks[index] = {"type": "thinking", "thinking": "", "redacted": part.data}
        elif kind == "tool_use":
            call = ToolCall(part.id, part.name)
            call.arguments.add(json.dumps(part.input) if part.input else "")
            self.blocks[index] = {"type": kind, "call": call}
        else:
            log.warning("model_part_left_out kind=%s: only text, thinking and tool calls are kept", kind)

    def take(self, event: Any) -> bool:
        """One event of a stream; says whether there is news."""
        if event.type == "message_start":
            self.begin(event.message)
        elif event.type == "content_block_start":
            self.part(event.index, event.content_block)
            return str(event.content_block.type) == "tool_use"
        elif event.type == "content_block_delta":
            return self._grow(self.blocks.get(event.index), event.delta)
        elif event.type == "message_delta":
            self.finish = event.delta.stop_reason or self.finish
            self._count(event.usage)
        return False

    def _grow(self, part: dict[str, Any] | None, delta: Any) -> bool:
        name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json",
                "signature_delta": "signature"}.get(str(delta.type))
        if part is None or name is None:
            return False
        piece = getattr(delta, name) or ""
        (part["call"].arguments if name == "partial_json" else part[name]).add(piece)
        self._size += len(piece)
        return name != "signature"

    def response(self, *, final: bool = False) -> ChatResponse:
        """The answer so far."""
        content: list[Any] = []
        parts = [part for _, part in sorted(self.blocks.items())]
        calls = iter(tool_blocks([part["call"] for part in parts if part["type"] == "tool_use"], final,
                                 self._tool_parsing))
        for part in parts:
            if part["type"] == "tool_use":
                content.append(next(calls))
            elif part.get("text") or part["type"] == "thinking":
                content.append({name: str(value) for name, value in part.items()})
        response = ChatResponse(content=content, usage=self._told(), finish_reason=reason(self.finish))
        response.id = self._id or response.id
        return response

    def _count(self, usage: Any) -> None:
        found = usage.to_dict() if hasattr(usage, "to_dict") else {}
        self._usage.update({name: value for name, value in found.items() if value is not None})

    def _told(self) -> ChatUsage | None:
        found = tokens_of(numbers_in(self._usage))
        if found.input is None and found.output is None:
            return None
        return ChatUsage(found.input or 0, found.output or 0, time.monotonic() - self._started,
                         metadata=dict(self._usage))


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's schema in Anthropic's form, from OpenAI's; others are its own tools and stay as they are."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    return {"name": function["name"], "description": function.get("description") or "",
            "input_schema": function.get("parameters") or {"type": "object"}}
