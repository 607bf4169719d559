"""Anthropic's models, through Anthropic's SDK (`pip install 'callsheet[anthropic]'`)."""

import importlib
import inspect
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import httpx
from pydantic import BaseModel, SecretStr

from callsheet.models.answer import Draft, Text, ToolCall
from callsheet.models.base import ChatResponse
from callsheet.models.remote import Messages, Options, check_messages, ended_by_user, one_of, opened_by_user
from callsheet.models.sdk import HEADER, SdkCall, SdkChatModel, no_cookies
from callsheet.models.structured import as_tool
from callsheet.resources.endpoints import STAND_IN, shown_url
from callsheet.settings import Endpoint

log = logging.getLogger(__name__)

_MODES = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


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
        choice = self._choice(tool_choice, tools, structured_model)
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
        return await self._run(messages, Options(parameters, structured_model))

    def _call(self, messages: Messages, options: Options) -> SdkCall:
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

    def _draft(self, call: SdkCall) -> Draft:
        return _Message(call.started, self.stream_tool_parsing)


class _Message(Draft):
    """An answer of Claude's."""

    def __init__(self, started: float, tool_parsing: bool) -> None:
        super().__init__(started, tool_parsing)
        self._open: dict[int, dict[str, Any]] = {}  # parts that may grow, by their number

    def add(self, event: Any) -> bool:
        """One event, or a whole message."""
        kind = getattr(event, "type", "message")
        if kind == "message":
            self._begin(event)
            for index, part in enumerate(event.content):
                self._block(index, part)
        elif kind == "message_start":
            self._begin(event.message)
        elif kind == "content_block_start":
            self._block(event.index, event.content_block)
            return str(event.content_block.type) == "tool_use"
        elif kind == "content_block_delta":
            return self._more(self._open.get(event.index), event.delta)
        elif kind == "message_delta":
            self.ended = event.delta.stop_reason or self.ended
            self._count_of(event.usage)
        return False

    def _begin(self, message: Any) -> None:
        self._id = message.id
        self.ended = message.stop_reason or self.ended
        self._count_of(message.usage)

    def _count_of(self, usage: Any) -> None:
        if hasattr(usage, "to_dict"):
            self._count(usage.to_dict())

    def _block(self, index: int, part: Any) -> None:
        """A part of an answer, whole or at its beginning."""
        kind = part.type
        if kind == "text":
            made = {"type": kind, "text": Text(part.text)}
        elif kind == "thinking":
            made = {"type": kind, "thinking": Text(part.thinking), "signature": Text(part.signature)}
        elif kind == "redacted_thinking":
            made = {"type": "thinking", "thinking": "", "redacted": part.data}
        elif kind == "tool_use":
            made = {"type": kind, "call": ToolCall(part.id, part.name)}
            made["call"].arguments.add(json.dumps(part.input) if part.input else "")
        else:
            log.warning("model_part_left_out kind=%s: only text, thinking and tool calls are kept", kind)
            return
        self._open[index] = made
        self._part(made)

    def _more(self, part: dict[str, Any] | None, delta: Any) -> bool:
        name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json",
                "signature_delta": "signature"}.get(str(delta.type))
        if part is None or name is None:
            return False
        self._grow(part["call"].arguments if name == "partial_json" else part[name], getattr(delta, name) or "")
        return name != "signature"


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's schema in Anthropic's form, from OpenAI's; others are its own tools and stay as they are."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    return {"name": function["name"], "description": function.get("description") or "",
            "input_schema": function.get("parameters") or {"type": "object"}}
