"""Google's Gemini models, through Google's SDK (`pip install 'callsheet[gemini]'`)."""

import base64
import importlib
import json
import re
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from callsheet.errors import UsageError
from callsheet.messages.forms import form_of
from callsheet.messages.pairing import new_call_id
from callsheet.models.answer import Draft, Text
from callsheet.models.base import ChatResponse
from callsheet.models.fallback import begun
from callsheet.models.remote import Messages, Options, check_messages, one_of, opened_by_user
from callsheet.models.sdk import HEADER, SdkCall, SdkChatModel, no_cookies
from callsheet.models.structured import Misfit, problems_of
from callsheet.resources.endpoints import STAND_IN, shown_url
from callsheet.settings import Endpoint

_REASON = re.compile(rb'"finishMessage":\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*")')
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


class GeminiChatModel(SdkChatModel):
    """A Gemini model. Its thoughts' signatures are kept in the blocks, since Gemini wants them back.

    Args:
        model_name: as Google knows it.
        api_key: a key to use instead of the endpoint's. A model that has one cannot travel to a worker.
        stream: answer with a generator of growing responses.
        thinking_config: e.g. {"include_thoughts": True, "thinking_budget": 1024}.
        client_kwargs: `base_url`, `timeout` (seconds) and `default_headers`. To another `base_url` than the
            endpoint's, neither the endpoint's key nor its headers are sent.
        generate_kwargs: fields of the SDK's GenerateContentConfig for every call, e.g. `temperature`; a call's own
            beat them.
        endpoint: name of the endpoint in the settings.
        client_args: the old name of `client_kwargs`.

    Raises:
        UsageError: `client_kwargs` has what is not supported.
    """

    sdk_module: ClassVar[str] = "google.genai"
    extra: ClassVar[str] = "gemini"

    def __init__(self, model_name: str, api_key: str | SecretStr | None = None, stream: bool = True,
                 thinking_config: dict[str, Any] | None = None, client_kwargs: dict[str, Any] | None = None,
                 generate_kwargs: dict[str, Any] | None = None, *, endpoint: str = "gemini",
                 client_args: dict[str, Any] | None = None) -> None:
        super().__init__(model_name, stream, api_key=api_key, endpoint=endpoint,
                         client_kwargs=one_of(client_kwargs, client_args), generate_kwargs=generate_kwargs)
        self.thinking_config = thinking_config

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **config_kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model.

        Args:
            messages: as GeminiChatFormatter gives them, with `role` and `parts`; `content` with text is taken too, and
                a first message of the role "system" is the system instruction.
            tools: JSON schemas of the tools that it may call, in OpenAI's form.
            tool_choice: "auto", "none", "required" or a tool's name.
            structured_model: the answer's form; see OpenAIChatModel.
            config_kwargs: fields of the SDK's GenerateContentConfig; `timeout` in seconds.

        Returns:
            The response; with `stream`, a generator of growing ones.

        Raises:
            ValueError: `messages` or `tool_choice` cannot be right.
            EndpointError: as OpenAIChatModel.
            UsageError: the SDK is not installed, or refuses the parameters.
            SettingsError: the settings know no such endpoint.
        """
        check_messages(messages, "parts", "content")
        choice = self._choice(tool_choice, tools, structured_model)
        config = {**self.generate_kwargs, **config_kwargs}
        if self.thinking_config:
            config.setdefault("thinking_config", self.thinking_config)
        if structured_model is not None:
            config |= {"response_mime_type": "application/json",
                       "response_json_schema": form_of(structured_model).schema}
        elif tools:
            config["tools"] = [{"function_declarations": [_declared(tool) for tool in tools]}]
            if choice:
                named = {} if choice in _MODES else {"allowed_function_names": [choice]}
                config["tool_config"] = {"function_calling_config": {"mode": _MODES.get(choice, "ANY"), **named}}
        return await self._run(messages, Options(config, structured_model))

    def _call(self, messages: Messages, options: Options) -> SdkCall:
        contents = [_content(message) for message in messages]
        config = {**options.parameters, "automatic_function_calling": {"disable": True}}
        if messages[0]["role"] == "system":
            config["system_instruction"] = {"parts": contents.pop(0)["parts"]}
        contents = opened_by_user(contents, parts=[{"text": "(no text)"}])
        arguments: dict[str, Any] = {"model": self.model_name, "contents": contents}
        call = self._begin(arguments, options.structured, config.pop("timeout", None))
        if config.get("tool_config"):
            calling = config["tool_config"]["function_calling_config"]
            call.failures.asked = {"tool_choice": calling["mode"].lower()}
            if "tool_choice" in self._refused(options):
                config["tool_config"] = {"function_calling_config": {"mode": "AUTO"}}
        options_of_http = {"retry_options": {"attempts": 1}, **(config.pop("http_options", None) or {}),
                           "timeout": max(int(call.timeout * 1000), 1)}
        options_of_http["headers"] = {**self._headers(options_of_http.get("headers")), HEADER: call.ident}
        types = importlib.import_module("google.genai.types")
        try:
            arguments["config"] = types.GenerateContentConfig(**config, http_options=options_of_http)
        except ValidationError as exc:
            raise UsageError(f"The parameters of this call of {self.model_name!r} are wrong: {problems_of(exc)}. Give "
                             "fields of google.genai.types.GenerateContentConfig.") from None
        return call

    def _client(self, endpoint: Endpoint, headers: dict[str, str], through: httpx.AsyncBaseTransport) -> Any:
        sdk = self.sdk()
        # An httpx client of ours, so that the SDK opens no connections of its own; it is never used without the
        # asynchronous one, but would be made, with certificates and all.
        never = httpx.Client(transport=httpx.BaseTransport())
        url = shown_url(endpoint.base_url)
        base, _, version = url.rpartition("/")
        versioned = re.fullmatch(r"v\d+(alpha|beta)?\d*", version) is not None  # the SDK's own version if not
        shared = httpx.AsyncClient(transport=through, trust_env=False, cookies=no_cookies())
        where = {"base_url": base, "api_version": version} if versioned else {"base_url": url}
        options = {**where, "headers": headers, "httpx_client": never, "httpx_async_client": shared}
        return sdk.Client(api_key=STAND_IN, vertexai=False, http_options=options)

    async def _send(self, call: SdkCall) -> Any:
        models = call.client.aio.models
        if not self.stream:
            return await models.generate_content(**call.arguments)
        events = await models.generate_content_stream(**call.arguments)
        first = await anext(events, None)  # only this sends the request
        return begun(first, events)

    def _status_error(self, exc: BaseException) -> int | None:
        errors = importlib.import_module("google.genai.errors")
        return int(exc.code or 0) if isinstance(exc, errors.APIError) else None

    def _draft(self, call: SdkCall) -> Draft:
        return _Answer(call.started)

    def _why(self, call: SdkCall) -> str:
        said = _REASON.search(call.seen.head)  # which the SDK leaves out
        return str(json.loads(said[1])) if said else ""

    def _correction(self, misfit: Misfit) -> Messages:
        return [{"role": "model", "parts": [{"text": misfit.answer}]},
                {"role": "user", "parts": [{"text": misfit.request()}]}]


class _Answer(Draft):
    """An answer of Gemini's."""

    def __init__(self, started: float) -> None:
        super().__init__(started)
        self._ids: set[str] = set()

    def add(self, event: Any) -> bool:
        """One event, or a whole answer."""
        self._id = self._id or event.response_id
        if event.usage_metadata is not None:
            self._count(event.usage_metadata.model_dump(mode="json", exclude_none=True))
        feedback = event.prompt_feedback
        if feedback is not None and feedback.block_reason:
            self.ended, self.refusal = "SAFETY", f"the prompt was blocked: {_word(feedback.block_reason)}"
        if not event.candidates:
            return False
        candidate = event.candidates[0]
        if candidate.finish_reason:
            self.ended = _word(candidate.finish_reason)
        parts = (candidate.content.parts if candidate.content else None) or ()
        news = [self._piece(part) for part in parts]
        return any(news)

    @property
    def finish(self) -> str | None:
        """Why it ended: Gemini has no word for tool calls."""
        finish = super().finish
        return "tool_calls" if finish == "stop" and self._ids else finish

    def _piece(self, part: Any) -> bool:
        signature = base64.b64encode(part.thought_signature).decode() if part.thought_signature else None
        if part.function_call is not None:
            call = part.function_call
            ident = call.id if call.id and call.id not in self._ids else new_call_id()
            self._ids.add(ident)
            made = {"type": "tool_use", "id": ident, "name": call.name,
                    "input": json.loads(json.dumps(call.args or {}))}
        elif part.inline_data is not None and part.inline_data.data is not None:
            source = {"type": "base64", "media_type": part.inline_data.mime_type,
                      "data": base64.b64encode(part.inline_data.data).decode()}
            made = {"type": (part.inline_data.mime_type or "audio/").partition("/")[0], "source": source}
        else:
            kind = "thinking" if part.thought else "text"
            if part.text:
                if not self._parts or self._parts[-1]["type"] != kind:
                    self._part({"type": kind, kind: Text()})
                self._grow(self._parts[-1][kind], part.text)
            if signature and self._parts:
                self._parts[-1]["thought_signature"] = signature
            return bool(part.text)
        self._part({**made, "thought_signature": signature} if signature else made)
        return True


def _word(value: Any) -> str:
    """An enumeration's value as the API writes it."""
    return str(getattr(value, "value", value))


def _content(message: dict[str, Any]) -> dict[str, Any]:
    """A message in the SDK's form."""
    role = {"assistant": "model", "system": "user"}.get(message["role"], message["role"])
    if "parts" in message:
        return {"role": role, "parts": message["parts"]}
    content = message["content"]
    texts = content if isinstance(content, list) else [{"text": content}]
    return {"role": role, "parts": [{"text": part["text"]} for part in texts if part.get("text")]}


def _declared(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's schema in Gemini's form, from OpenAI's."""
    function = tool.get("function", tool)
    declared = {"name": function["name"], "description": function.get("description") or ""}
    schema = function.get("parameters")
    return {**declared, "parameters_json_schema": schema} if schema else declared
