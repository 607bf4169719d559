"""Ollama's own chat API, which has what its OpenAI-compatible one lacks: options, keep_alive, thinking."""

import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from pydantic import BaseModel, SecretStr

from callsheet.messages.forms import form_of
from callsheet.messages.pairing import new_call_id
from callsheet.models.answer import Answer
from callsheet.models.base import ChatResponse
from callsheet.models.exchange import Call
from callsheet.models.openai import OpenAIChatModel
from callsheet.models.remote import Messages, Options
from callsheet.settings.endpoints import ollama_url

log = logging.getLogger(__name__)
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


class OllamaChatModel(OpenAIChatModel):
    """A model that Ollama serves.

    Args:
        model_name: as Ollama knows it, e.g. "qwen3:8b".
        stream: answer with a generator of growing responses.
        options: of the model, e.g. `temperature` and `num_ctx`.
        keep_alive: how long the model stays loaded, e.g. "5m".
        enable_thinking: have models that can think do so, or not.
        host: another address than the endpoint's, as OLLAMA_HOST may hold it.
        client_kwargs: `timeout` (seconds) and `default_headers`.
        generate_kwargs: more of Ollama's parameters for every call, e.g. `format`; a call's own beat them.
        api_key: a key to use instead of the endpoint's; see OpenAIChatModel.
        endpoint: name of the endpoint in the settings.
    """

    client_options: ClassVar[tuple[str, ...]] = ("base_url", "timeout", "default_headers")

    def __init__(self, model_name: str, stream: bool = False, options: dict[str, Any] | None = None,
                 keep_alive: str = "5m", enable_thinking: bool | None = None, host: str | None = None,
                 client_kwargs: dict[str, Any] | None = None, generate_kwargs: dict[str, Any] | None = None,
                 *, api_key: str | SecretStr | None = None, endpoint: str = "ollama") -> None:
        if host is not None:
            client_kwargs = {**(client_kwargs or {}), "base_url": ollama_url(host)}
        super().__init__(model_name, api_key, stream, client_kwargs=client_kwargs, generate_kwargs=generate_kwargs,
                         endpoint=endpoint)
        self.options = options
        self.keep_alive = keep_alive
        self.enable_thinking = enable_thinking

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model; as OpenAIChatModel, but that Ollama knows no `tool_choice`: it is checked and not sent."""
        if tool_choice:
            self._choice(tool_choice, tools)
            log.warning("model_tool_choice model=%s: Ollama knows none; it is not sent", self.model_name)
        return await super().__call__(messages, tools, None, structured_model, **kwargs)

    def _call(self, messages: Messages, options: Options) -> Call:
        call = super()._call([_message(message) for message in messages], options)
        body = call.body
        for name in ("stream_options", "response_format"):
            body.pop(name, None)
        own = {"keep_alive": self.keep_alive, "options": self.options, "think": self.enable_thinking}
        if options.structured:
            own["format"] = form_of(options.structured).schema
        for name, value in own.items():
            if value is not None and name not in self._refused(options):
                body.setdefault(name, value)
        call.path = f"{call.failures.endpoint.base_url.removesuffix('/v1')}/api/chat"
        call.answer = Answer(time.monotonic(), tool_parsing=self.stream_tool_parsing)
        call.speaks, call.lines, call.translate = "Ollama's API", True, _Events()
        return call


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as Ollama takes it, from its own form or from OpenAI's."""
    content = message.get("content")
    calls = message.get("tool_calls")
    if not isinstance(content, list) and not calls:
        return message
    made = dict(message)
    if isinstance(content, list):
        made["content"] = "\n".join(part["text"] for part in content if part.get("type") == "text")
        images = [url.partition(";base64,")[2] for part in content if part.get("type") == "image_url"
                  if (url := str(part["image_url"]["url"])).startswith("data:")]
        if images:
            made["images"] = images
    if calls:
        made["tool_calls"] = [_tool_call(call) for call in calls]
        made["content"] = made.get("content") or ""
    return made


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    return {**call, "function": {**function, "arguments": arguments}}


class _Events:
    """Makes Ollama's events ones of OpenAI's API."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        """One event."""
        message = event["message"]
        delta: dict[str, Any] = {"content": message.get("content"), "reasoning_content": message.get("thinking")}
        if message.get("tool_calls"):
            delta["tool_calls"] = [self._tool_call(call) for call in message["tool_calls"]]
        finish = (event.get("done_reason") or "stop") if event.get("done") else None
        chunk: dict[str, Any] = {"choices": [{"delta": delta, "finish_reason": finish}]}
        if event.get("done") and "eval_count" in event:
            chunk["usage"] = {"prompt_tokens": event.get("prompt_eval_count"),
                              "completion_tokens": event["eval_count"],
                              **{name: event[name] for name in _DURATIONS if name in event}}
        return chunk

    def _tool_call(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call, which is complete; older servers give it no id, and each event counts its own from 0."""
        self._calls += 1
        return {**call, "index": self._calls, "id": call.get("id") or new_call_id()}
