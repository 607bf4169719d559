"""Providers that speak OpenAI's API with parameters of their own: DashScope and DeepSeek."""

import logging
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from pydantic import BaseModel, SecretStr

from callsheet.models.base import ChatResponse
from callsheet.models.exchange import Call
from callsheet.models.openai import OpenAIChatModel
from callsheet.models.remote import Messages, Options

log = logging.getLogger(__name__)


class DashScopeChatModel(OpenAIChatModel):
    """A model of Alibaba's DashScope (Qwen and others), through its OpenAI-compatible mode.

    Args:
        model_name: e.g. "qwen-plus".
        api_key: a key to use instead of the endpoint's; see OpenAIChatModel.
        stream: answer with a generator of growing responses; forced by `enable_thinking`.
        enable_thinking: have models that can think do so, or not.
        multimodality: taken for AgentScope's sake; this API takes text and images alike.
        generate_kwargs: parameters of every call, e.g. `temperature`; a call's own beat them.
        base_http_api_url: another address than the endpoint's, e.g. the Singapore one; DashScope's own ("…/api/v1") or
            that of the compatible mode. The endpoint's key is not sent there.
        stream_tool_parsing: as OpenAIChatModel's.
        endpoint: name of the endpoint in the settings.
    """

    forms_by_tool: ClassVar[bool] = True  # its models differ in what forms they enforce; all take tools

    def __init__(self, model_name: str, api_key: str | SecretStr | None = None, stream: bool = True,
                 enable_thinking: bool | None = None, multimodality: bool | None = None,
                 generate_kwargs: dict[str, Any] | None = None, base_http_api_url: str | None = None,
                 stream_tool_parsing: bool = True, *, endpoint: str = "dashscope") -> None:
        if enable_thinking and not stream:
            log.info("model_stream_forced model=%s: DashScope streams where a model thinks", model_name)
        url = base_http_api_url and base_http_api_url.rstrip("/")
        if url and url.endswith("/api/v1"):
            url = f"{url.removesuffix('/api/v1')}/compatible-mode/v1"
        super().__init__(model_name, api_key, stream or bool(enable_thinking), generate_kwargs=generate_kwargs,
                         stream_tool_parsing=stream_tool_parsing, endpoint=endpoint,
                         client_kwargs={"base_url": url} if url else None)
        self.enable_thinking = enable_thinking
        self.multimodality = multimodality

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model; as OpenAIChatModel, but that `tool_choice` "required" is "auto", which is all it knows."""
        if tool_choice in ("required", "any"):
            log.warning('model_tool_choice model=%s: DashScope does not know "required"; "auto" is sent',
                        self.model_name)
            tool_choice = "auto"
        if self.enable_thinking is not None:
            kwargs.setdefault("enable_thinking", self.enable_thinking)
        return await super().__call__(messages, tools, tool_choice, structured_model, **kwargs)

    def _call(self, messages: Messages, options: Options) -> Call:
        return super()._call([_compatible(message) for message in messages], options)


def _compatible(message: dict[str, Any]) -> dict[str, Any]:
    """A message of DashScope's own API, whose parts have no type, as one of the compatible mode."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(part) for part in content] or ""}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if "type" in part:
        return part
    if "text" in part:
        return {"type": "text", "text": part["text"]}
    if "audio" in part:
        return {"type": "input_audio", "input_audio": {"data": part["audio"]}}
    kind = "video" if "video" in part else "image"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": part[kind]}} if kind in part else part


class DeepSeekChatModel(OpenAIChatModel):
    """A model of DeepSeek: `deepseek-chat`, or `deepseek-reasoner`, whose reasoning comes as thinking blocks.

    Args:
        model_name: as DeepSeek knows it.
        api_key: a key to use instead of the endpoint's; see OpenAIChatModel.
        stream: answer with a generator of growing responses.
        reasoning_effort: "high" or "max", for models that reason.
        client_kwargs: as OpenAIChatModel's.
        generate_kwargs: parameters of every call, e.g. `temperature`; a call's own beat them.
        stream_tool_parsing: as OpenAIChatModel's.
        endpoint: name of the endpoint in the settings.
    """

    forms_by_tool: ClassVar[bool] = True  # it knows no form but "a JSON object"

    def __init__(self, model_name: str, api_key: str | SecretStr | None = None, stream: bool = True,
                 reasoning_effort: str | None = None, client_kwargs: dict[str, Any] | None = None,
                 generate_kwargs: dict[str, Any] | None = None, stream_tool_parsing: bool = True,
                 *, endpoint: str = "deepseek") -> None:
        super().__init__(model_name, api_key, stream, reasoning_effort, stream_tool_parsing=stream_tool_parsing,
                         client_kwargs=client_kwargs, generate_kwargs=generate_kwargs, endpoint=endpoint)
