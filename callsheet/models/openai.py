"""OpenAI's chat completions API, and whatever speaks it."""

import time
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from pydantic import BaseModel, SecretStr

from callsheet.errors import UsageError
from callsheet.models.answer import Answer
from callsheet.models.base import TOOL_CHOICES, ChatResponse
from callsheet.models.exchange import Call, opened, read_whole, stream_answer
from callsheet.models.remote import Chunks, Messages, Options, RemoteChatModel, check_messages, ended_by_user, one_of
from callsheet.models.structured import as_tool, response_format
from callsheet.resources import find_endpoint
from callsheet.resources.refusals import OF_MESSAGES, WANTS_REASONING
from callsheet.settings import Endpoint

_OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_TEXT = {"type", "text"}  # the keys of a part that is nothing but text


class OpenAIChatModel(RemoteChatModel):
    """A chat model behind OpenAI's API or one like it, such as vLLM's.

    Address, key, headers and time limits are the endpoint's in the settings of the process that makes the call,
    so that a model travels without them. Calls share that endpoint's connections.

    Args:
        model_name: as the endpoint knows it.
        api_key: a key to use instead of the endpoint's. A model that has one cannot travel to a worker.
        stream: answer with a generator of growing responses.
        reasoning_effort: "low", "medium" and so on, for models that reason.
        organization: sent as OpenAI-Organization.
        stream_tool_parsing: whether a stream shows a tool call's input as it grows; {} until it is complete if not.
        client_type: "openai" or "azure". For Azure, the endpoint is `azure` unless named.
        client_kwargs: `base_url`, `timeout` (seconds) and `default_headers`, as OpenAI's client takes them; for Azure
            `azure_endpoint`, `azure_deployment` and `api_version` too. To another address than the endpoint's,
            neither the endpoint's key nor its headers are sent.
        generate_kwargs: parameters of every call, e.g. `temperature`; a call's own beat them.
        endpoint: name of the endpoint in the settings.
        client_args: the old name of `client_kwargs`.

    Raises:
        UsageError: `client_type` or `client_kwargs` has what is not supported.
    """

    client_options: ClassVar[tuple[str, ...]] = ("base_url", "timeout", "default_headers", "azure_endpoint",
                                                 "azure_deployment", "api_version")
    #: Whether a form is asked for as a tool's arguments from the start.
    forms_by_tool: ClassVar[bool] = False

    def __init__(self, model_name: str, api_key: str | SecretStr | None = None, stream: bool = True,
                 reasoning_effort: str | None = None, organization: str | None = None,
                 stream_tool_parsing: bool = True, client_type: str = "openai",
                 client_kwargs: dict[str, Any] | None = None, generate_kwargs: dict[str, Any] | None = None,
                 *, endpoint: str | None = None, client_args: dict[str, Any] | None = None) -> None:
        if client_type not in ("openai", "azure"):
            raise UsageError(f'client_type is {client_type!r}: "openai" or "azure" is needed.')
        super().__init__(model_name, stream, api_key=api_key, endpoint=endpoint or client_type,
                         client_kwargs=one_of(client_kwargs, client_args), generate_kwargs=generate_kwargs,
                         stream_tool_parsing=stream_tool_parsing)
        self.reasoning_effort = reasoning_effort
        self.organization = organization
        self.client_type = client_type

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model.

        Args:
            messages: dictionaries with `role` and `content`.
            tools: JSON schemas of the tools that it may call.
            tool_choice: "auto", "none", "required" or a tool's name.
            structured_model: the answer's form; its data come in `metadata`, and `tools` are not offered. A model
                whose answer does not fit is told so and asked once more; `usage` is that of both calls.
            kwargs: parameters of the API, None to send none; `extra_body`, `extra_headers` and `timeout` as in OpenAI's
                client.

        Returns:
            The response; with `stream`, a generator of growing ones. The request has been accepted by then.

        Raises:
            ValueError: `messages` or `tool_choice` cannot be right.
            EndpointError: a ModelError: the endpoint cannot be reached, refused, or answered what cannot be used.
                A stream raises it from the generator where it breaks off.
            SettingsError: the settings know no such endpoint.
        """
        check_messages(messages)
        choice = self._choice(tool_choice, tools, structured_model)
        body = {"stream": self.stream, **self.generate_kwargs, **kwargs}
        if self.reasoning_effort:
            body.setdefault("reasoning_effort", self.reasoning_effort)
        if tools and not structured_model:
            body["tools"] = tools
            if choice:
                body["tool_choice"] = choice if choice in TOOL_CHOICES else _named(choice)
        if self.stream:
            body.setdefault("stream_options", {"include_usage": True})
        return await self._run(messages, Options(body, structured_model))

    async def _attempt(self, messages: Messages, options: Options) -> Chunks:
        call = self._call(messages, options)
        async with opened(call) as response:
            yield None
            if not self.stream:
                yield await read_whole(response, call)
                return
            async for chunk in stream_answer(response, call):
                yield chunk

    def _call(self, messages: Messages, options: Options) -> Call:
        body = {"model": self.model_name, "messages": [_plain(message) for message in messages], **options.parameters}
        headers = self._headers(body.pop("extra_headers", None))
        if self.organization:
            headers["OpenAI-Organization"] = self.organization
        failures = self._failures(body.pop("timeout", None))
        body.update(body.pop("extra_body", None) or {})
        refused = self._refused(options)
        if options.structured:
            body.pop("tools", None)
            if self.forms_by_tool or "response_format" in refused:
                tool = as_tool(options.structured)
                body |= {"tools": [tool], "tool_choice": _named(tool["function"]["name"])}
            else:
                body["response_format"] = response_format(options.structured)
        body = _fitting(body, refused)
        failures.asked = body
        audio = body.get("audio") or {}
        answer = Answer(time.monotonic(), str(audio.get("format") or "wav"), self.stream_tool_parsing)
        endpoint = failures.endpoint
        target = self.endpoint if find_endpoint(self.endpoint) is endpoint else endpoint
        return Call(target, self._path(endpoint), failures.key, body, headers, failures.timeout, failures, answer,
                    options.structured, key_header="api-key" if self.client_type == "azure" else "Authorization",
                    own=self._api_key is not None)

    def _base_url(self) -> str | None:
        azure = self.client_kwargs.get("azure_endpoint")
        if azure and "base_url" not in self.client_kwargs:
            return f"{azure.rstrip('/')}/openai/v1"
        return super()._base_url()

    def _path(self, endpoint: Endpoint) -> str:
        version = self.client_kwargs.get("api_version")
        if self.client_type != "azure" or version is None:
            return "chat/completions"
        deployment = self.client_kwargs.get("azure_deployment") or self.model_name
        return (f"{endpoint.base_url.removesuffix('/v1')}/deployments/{deployment}/chat/completions"
                f"?api-version={version}")


def _fitting(body: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """The request without what is given as None, and what the endpoint does not take, or takes by another name."""
    made = {_OTHER_NAME.get(name, name) if name in refused else name: value for name, value in body.items()
            if value is not None and (name not in refused or name in _OTHER_NAME or name == "tool_choice")}
    if "tool_choice" in refused and "tool_choice" in made:
        made["tool_choice"] = "auto"
    if refused & OF_MESSAGES:
        made["messages"] = ended_by_user([_stripped(message, refused) for message in made["messages"]], refused)
    return made


def _stripped(message: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    kept = {name: [_stripped(part, refused - {"name"}) if isinstance(part, dict) else part for part in value]
            if isinstance(value, list) else value for name, value in message.items() if name not in refused}
    if WANTS_REASONING in refused and message.get("role") == "assistant":
        kept.setdefault("reasoning_content", " ")
    return kept


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is nothing but text as one text: not every server takes parts, all take that."""
    content = message.get("content")
    if isinstance(content, list) and content and all(
            isinstance(part, dict) and part.keys() == _TEXT and part["type"] == "text" for part in content):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    return message


def _named(tool: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool}}
