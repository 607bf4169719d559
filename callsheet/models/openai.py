"""OpenAI's chat completions API, and whatever speaks it."""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
from pydantic import BaseModel, SecretStr

from callsheet.errors import UsageError
from callsheet.models.answer import Answer
from callsheet.models.base import ChatModelBase, ChatResponse
from callsheet.models.errors import EndpointError, Failures
from callsheet.models.exchange import read_body, read_whole, stream_answer
from callsheet.models.schema import as_tool, response_format
from callsheet.resources import client, find_endpoint
from callsheet.settings import Endpoint

_CLIENT_KWARGS = ("base_url", "timeout", "default_headers")
_SECRET_HEADERS = ("authorization", "api-key", "x-api-key")


@dataclass
class Call:
    """One call under way.

    Attributes:
        body: of the request; JSON data.
        headers: beside the endpoint's own.
        timeout: seconds for the whole answer; in a stream, between two chunks.
        structured: what the answer must be, if anything.
        by_tool: the structure is asked for as a tool's arguments.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    headers: dict[str, str]
    timeout: float
    failures: Failures
    answer: Answer
    structured: type[BaseModel] | None
    by_tool: bool


class OpenAIChatModel(ChatModelBase):
    """A chat model behind OpenAI's API or one like it: vLLM, Ollama, DeepSeek, DashScope's compatible mode.

    Address, key, headers and time limits are the endpoint's in the settings of the process that makes the call,
    so that a model travels without them. Calls share that endpoint's connections.

    Args:
        model_name: as the endpoint knows it.
        api_key: a key to use instead of the endpoint's. A model that has one cannot travel to a worker.
        stream: answer with a generator of growing responses.
        reasoning_effort: "low", "medium" and so on, for models that reason.
        organization: sent as OpenAI-Organization.
        client_kwargs: `base_url`, `timeout` (seconds) and `default_headers`, as OpenAI's client takes them. To
            another `base_url` than the endpoint's, neither the endpoint's key nor its headers are sent.
        generate_kwargs: parameters of every call, e.g. `temperature`; a call's own beat them.
        endpoint: name of the endpoint in the settings.

    Raises:
        UsageError: `client_kwargs` has what is not supported.
    """

    def __init__(self, model_name: str, api_key: str | SecretStr | None = None, stream: bool = True,
                 reasoning_effort: str | None = None, organization: str | None = None,
                 client_kwargs: dict[str, Any] | None = None, generate_kwargs: dict[str, Any] | None = None,
                 *, endpoint: str = "openai") -> None:
        super().__init__(model_name, stream)
        self.reasoning_effort = reasoning_effort
        self.organization = organization
        self.client_kwargs = _checked(client_kwargs or {})
        self.generate_kwargs = dict(generate_kwargs or {})
        self.endpoint = endpoint
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._formats_refused = False
        if isinstance(api_key, str):
            # A SecretStr in the record: whoever would put this model on the wire refuses it by name.
            args, kwargs = self._recorded
            hidden = SecretStr(api_key)
            self._recorded = (tuple(hidden if arg == api_key else arg for arg in args),
                              {name: hidden if arg == api_key else arg for name, arg in kwargs.items()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r}, endpoint={self.endpoint!r})"

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model.

        Args:
            messages: dictionaries with `role` and `content`.
            tools: JSON schemas of the tools that it may call.
            tool_choice: "auto", "none", "required" or a tool's name.
            structured_model: the answer's form; its data come in `metadata`, and `tools` are not offered.
            kwargs: parameters of the API; `extra_body`, `extra_headers` and `timeout` as in OpenAI's client.

        Returns:
            The response; with `stream`, a generator of growing ones. The request has been accepted by then.

        Raises:
            ValueError: `messages` or `tool_choice` cannot be right.
            EndpointError: a ModelError: the endpoint cannot be reached, refused, or answered what cannot be used.
                A stream raises it from the generator where it breaks off.
            SettingsError: the settings know no such endpoint.
        """
        body = self._body(messages, tools, tool_choice, structured_model, kwargs)
        try:
            return await self._ask(self._call(body, structured_model))
        except EndpointError as exc:
            # Not every server knows response_format; each that calls tools can be asked in another way.
            if structured_model is None or self._formats_refused or not _about_format(exc):
                raise
            self._formats_refused = True
            return await self._ask(self._call(body, structured_model))

    async def _ask(self, call: Call) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        if not self.stream:
            async with _opened(call) as response:
                return await read_whole(response, call)
        # The generator's first step sends the request and yields None: its errors are raised here, and a stream
        # that nobody reads is closed by the loop like any begun generator.
        chunks = self._chunks(call)
        await anext(chunks)
        return cast("AsyncGenerator[ChatResponse, None]", chunks)

    async def _chunks(self, call: Call) -> AsyncGenerator[ChatResponse | None, None]:
        async with _opened(call) as response:
            yield None
            async for chunk in stream_answer(response, call):
                yield chunk

    def _body(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, tool_choice: str | None,
              structured: type[BaseModel] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        _check_messages(messages)
        body = {"model": self.model_name, "messages": messages, "stream": self.stream,
                **self.generate_kwargs, **kwargs}
        if self.reasoning_effort:
            body.setdefault("reasoning_effort", self.reasoning_effort)
        if tool_choice:
            choice = "required" if tool_choice == "any" else tool_choice
            self._validate_tool_choice(choice, tools)
            if tools and not structured:
                named = {"type": "function", "function": {"name": choice}}
                body["tool_choice"] = choice if choice in ("auto", "none", "required") else named
        if tools and not structured:
            body["tools"] = tools
        if self.stream:
            body.setdefault("stream_options", {"include_usage": True})
        return body

    def _call(self, body: dict[str, Any], structured: type[BaseModel] | None) -> Call:
        body = dict(body)
        endpoint = find_endpoint(self.endpoint)
        base_url = str(self.client_kwargs.get("base_url") or endpoint.base_url).rstrip("/")
        if base_url != endpoint.base_url:
            endpoint = Endpoint(base_url=base_url, timeout=endpoint.timeout,
                                connect_timeout=endpoint.connect_timeout, max_connections=endpoint.max_connections)
        headers = {**self.client_kwargs.get("default_headers", {}), **(body.pop("extra_headers", None) or {})}
        if self.organization:
            headers["OpenAI-Organization"] = self.organization
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        timeout = body.pop("timeout", None) or self.client_kwargs.get("timeout") or endpoint.timeout
        body.update(body.pop("extra_body", None) or {})
        key = self._api_key.get_secret_value() if self._api_key else endpoint.key()
        failures = Failures(self.endpoint, endpoint.model_copy(update={"timeout": float(timeout)}),
                            self.model_name, key)
        if not key and endpoint.base_url.startswith("https://api.openai.com"):
            raise failures.missing_key()
        if structured:
            _ask_for(structured, body, self._formats_refused)
        audio = body.get("audio") or {}
        answer = Answer(time.monotonic(), str(audio.get("format") or "wav"))
        return Call(endpoint, body, headers, float(timeout), failures, answer, structured, self._formats_refused)


@contextlib.asynccontextmanager
async def _opened(call: Call) -> AsyncIterator[httpx.Response]:
    """The response of an accepted request; what goes wrong until it is closed becomes an EndpointError."""
    try:
        content = json.dumps(call.body, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"The call of {call.body['model']!r} is not JSON: {exc}. Give strings, numbers, lists and "
                         "dictionaries.") from exc
    http = client(call.endpoint)
    limit = httpx.Timeout(call.timeout, connect=call.endpoint.connect_timeout, pool=None)
    begun = False
    try:
        async with http.stream("POST", "chat/completions", content=content, timeout=limit,
                               headers={"Content-Type": "application/json", **call.headers}) as response:
            begun = True
            if not response.is_success:
                raise call.failures.refused(response.status_code, await read_body(response, call), response.headers)
            yield response
    except (httpx.HTTPError, TimeoutError) as exc:
        raise call.failures.transport(exc, begun) from exc


def _ask_for(structured: type[BaseModel], body: dict[str, Any], by_tool: bool) -> None:
    if by_tool:
        tool = as_tool(structured)
        body["tools"] = [tool]
        body["tool_choice"] = {"type": "function", "function": {"name": tool["function"]["name"]}}
    else:
        body["response_format"] = response_format(structured)


def _about_format(exc: EndpointError) -> bool:
    said = str(exc).lower()
    return exc.status in (400, 422) and any(word in said for word in ("response_format", "json_schema"))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise ValueError(f"messages is {type(messages).__name__}: a list of dictionaries is needed.")
    if not messages:
        raise ValueError("messages is empty: give at least one dictionary with 'role' and 'content'.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f"messages[{number}] is no dictionary with 'role' and 'content'. Format a Msg as "
                             '{"role": msg.role, "content": msg.get_text_content()}.')


def _checked(client_kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in client_kwargs:
        if name not in _CLIENT_KWARGS:
            raise UsageError(f"client_kwargs[{name!r}] is not supported: {', '.join(_CLIENT_KWARGS)} are. Set what "
                             "concerns the connection on the endpoint, as CALLSHEET_ENDPOINTS__OPENAI__...")
    for name in client_kwargs.get("default_headers") or {}:
        if name.lower() in _SECRET_HEADERS:
            raise UsageError(f"default_headers[{name!r}] is a key, and keys never travel. Set it on the endpoint, in "
                             "CALLSHEET_ENDPOINTS__OPENAI__HEADERS or __API_KEY_ENV.")
    return dict(client_kwargs)
