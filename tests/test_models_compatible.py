"""DashScope, DeepSeek, Azure and Ollama: what is sent, and what is made of their answers."""

import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from callsheet import Msg
from callsheet.errors import CannotTravel, ModelError, UsageError
from callsheet.formatters import DashScopeChatFormatter
from callsheet.messages.wire import Writer
from callsheet.models import (
    ChatResponse,
    DashScopeChatModel,
    DeepSeekChatModel,
    EndpointError,
    OllamaChatModel,
    OpenAIChatModel,
)
from callsheet.settings import Settings, use_settings
from tests.hanging import for_ever
from tests.model_server import ASK, delta, says, serving, streams, whole

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


class Verdict(BaseModel):
    """A judgement."""

    score: int


class Seen:
    """Answers always the same, and keeps the requests."""

    def __init__(self, body: str = whole({"content": "ok"}), content_type: str = "application/json") -> None:
        self.body = body
        self.content_type = content_type
        self.requests: list[tuple[str, dict[str, Any], Any]] = []

    async def __call__(self, request: web.Request) -> web.Response:
        self.requests.append((request.path_qs, await request.json(), request.headers))
        return web.Response(text=self.body, content_type=self.content_type)


async def responses(model: Any, messages: Any = ASK, **kwargs: Any) -> list[ChatResponse]:
    result = await model(messages, **kwargs)
    return [result] if isinstance(result, ChatResponse) else [chunk async for chunk in result]


def ask(handler: Any, model: Any, name: str, messages: Any = ASK, **kwargs: Any) -> list[ChatResponse]:
    async def main() -> list[ChatResponse]:
        async with serving(handler, name):
            return await responses(model, messages, **kwargs)

    return asyncio.run(main())


def test_dashscope_thinks_in_a_stream_and_takes_auto_for_required(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-dash")
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((await request.json(), request.headers["Authorization"]))
        return await streams(delta(reasoning_content="hm"), delta(content="ok"), delta("stop"))(request)

    async def main() -> list[ChatResponse]:
        async with serving(handler, "dashscope", api_key_env="DASHSCOPE_API_KEY"):
            model = DashScopeChatModel("qwen-plus", stream=False, enable_thinking=True, generate_kwargs={"seed": 1})
            assert model.stream
            return await responses(model, tools=[TOOL], tool_choice="required")

    with caplog.at_level(logging.WARNING):
        last = asyncio.run(main())[-1]
    assert last.content == [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "ok"}]
    assert last.finish_reason == "stop"
    body, authorization = seen[0]
    assert (body["enable_thinking"], body["seed"], body["tool_choice"], body["stream"]) == (True, 1, "auto", True)
    assert authorization == "Bearer sk-dash" and "model_tool_choice" in caplog.text


@pytest.mark.parametrize(("model", "name"), [
    (DashScopeChatModel("qwen-plus", stream=False), "dashscope"),
    (DeepSeekChatModel("deepseek-chat", stream=False), "deepseek")])
def test_forms_are_asked_for_by_tool_where_the_provider_knows_no_other_way(model: Any, name: str) -> None:
    calls = [{"id": "t", "function": {"name": "Verdict", "arguments": '{"score": 3}'}}]
    seen = Seen(whole({"tool_calls": calls}))
    assert ask(seen, model, name, structured_model=Verdict)[-1].metadata == {"score": 3}
    body = seen.requests[0][1]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "Verdict"}} and len(body["tools"]) == 1
    assert "response_format" not in body


def test_dashscopes_own_address_becomes_that_of_the_compatible_mode() -> None:
    model = DashScopeChatModel("qwen-plus", "sk-1", base_http_api_url="https://dashscope-intl.aliyuncs.com/api/v1")
    with use_settings(Settings.load()):
        assert model._endpoint().base_url == "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"


def test_dashscopes_own_messages_become_those_of_the_compatible_mode() -> None:
    seen = Seen()
    msgs = [Msg("user", [{"type": "text", "text": "see"}, {"type": "image", "source": {
        "type": "url", "url": "https://x.example/a.png"}}], "user"),
        Msg("bob", [{"type": "tool_use", "id": "1", "name": "find", "input": {}}], "assistant")]
    ask(seen, DashScopeChatModel("qwen-vl", stream=False), "dashscope",
        asyncio.run(DashScopeChatFormatter().format(msgs)))
    user, called = seen.requests[0][1]["messages"]
    assert user["content"] == [{"type": "text", "text": "see"},
                               {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]
    assert called["content"] == "" and called["tool_calls"][0]["id"] == "1"
    own = [{"role": "user", "content": [{"video": "v"}, {"audio": "a"}, {"text": "t"}, {"type": "text", "text": "u"}]}]
    ask(seen, DashScopeChatModel("qwen-omni", stream=False), "dashscope", own)
    assert seen.requests[1][1]["messages"][0]["content"] == [
        {"type": "video_url", "video_url": {"url": "v"}}, {"type": "input_audio", "input_audio": {"data": "a"}},
        {"type": "text", "text": "t"}, {"type": "text", "text": "u"}]


def test_azure_takes_its_key_in_a_header_of_its_own_and_its_deployments_by_version(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "az-key")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.openai.azure.com/")
    with use_settings(Settings.load()):
        model = OpenAIChatModel("gpt", client_type="azure", client_kwargs={"api_version": "2024-10-21",
                                                                          "azure_deployment": "blue"})
        endpoint = model._endpoint()
        assert endpoint.base_url == "https://mine.openai.azure.com/openai/v1" and endpoint.key() == "az-key"
        assert model._path(endpoint) == (
            "https://mine.openai.azure.com/openai/deployments/blue/chat/completions?api-version=2024-10-21")
        other = OpenAIChatModel("gpt", client_type="azure", client_kwargs={"azure_endpoint": "https://x.example"})
        assert other._endpoint().base_url == "https://x.example/openai/v1" and other._endpoint().key() is None
    seen = Seen()
    ask(seen, OpenAIChatModel("gpt", "az-mine", False, client_type="azure"), "azure")
    path, _, headers = seen.requests[0]
    assert path == "/v1/chat/completions" and headers["api-key"] == "az-mine"
    with pytest.raises(UsageError, match="client_type is 'gcp'"):
        OpenAIChatModel("m", client_type="gcp")


def test_client_args_is_the_old_name_of_client_kwargs() -> None:
    assert OpenAIChatModel("m", client_args={"timeout": 3}).client_kwargs == {"timeout": 3}
    with pytest.raises(UsageError, match="old name"):
        OpenAIChatModel("m", client_args={"timeout": 3}, client_kwargs={})


def test_a_tools_input_can_stay_hidden_until_it_is_complete() -> None:
    def call(arguments: str, **more: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": 0, "function": {"arguments": arguments, **more}}])

    handler = streams(call('{"q": "bl', name="find"), call('ue"}'), delta("tool_calls"))
    got = ask(handler, OpenAIChatModel("m", stream_tool_parsing=False), "openai")
    assert [chunk.content[0]["input"] for chunk in got] == [{}, {}, {"q": "blue"}]
    assert got[0].content[0]["raw_input"] == '{"q": "bl'


# Ollama -------------------------------------------------------------------------------------------------------

def lines(*events: dict[str, Any]) -> str:
    return "".join(json.dumps({"model": "m", **event}) + "\n" for event in events)


def test_ollama_gets_its_own_parameters_and_messages_in_its_form() -> None:
    seen = Seen(json.dumps({"message": {"role": "assistant", "content": "ok"}, "done": True, "done_reason": "stop"}))
    model = OllamaChatModel("qwen3", options={"num_ctx": 8192}, enable_thinking=False, generate_kwargs={"seed": 1})
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "name": "find", "content": "found"}]
    [response] = ask(seen, model, "ollama", messages, tools=[TOOL], tool_choice="auto")
    assert (response.content, response.finish_reason) == ([{"type": "text", "text": "ok"}], "stop")
    path, body, _ = seen.requests[0]
    assert path == "/api/chat"
    assert (body["options"], body["keep_alive"], body["think"], body["seed"]) == ({"num_ctx": 8192}, "5m", False, 1)
    assert body["messages"][0] == {"role": "user", "content": "see", "images": ["QUJD"]}
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"q": 1}
    assert body["tools"] == [TOOL] and body["stream"] is False and "tool_choice" not in body


def test_ollamas_stream_of_lines_grows() -> None:
    text = lines(
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"content": "Hel"}, "done": False}, {"message": {"content": "lo"}, "done": False},
        {"message": {"content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"q": 1}}}]}},
        {"message": {"content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"q": 2}}}]}},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 4,
         "total_duration": 5})
    got = ask(Seen(text, "application/x-ndjson"), OllamaChatModel("m", stream=True), "ollama")
    assert got[0].content == [{"type": "thinking", "thinking": "hm"}]
    last = got[-1]
    assert [block["type"] for block in last.content] == ["thinking", "text", "tool_use", "tool_use"]
    calls = [block for block in last.content if block["type"] == "tool_use"]
    assert [call["input"] for call in calls] == [{"q": 1}, {"q": 2}] and calls[0]["id"] != calls[1]["id"]
    assert last.usage is not None and (last.usage.input_tokens, last.usage.output_tokens) == (9, 4)
    assert last.usage.metadata is not None and last.usage.metadata["total_duration"] == 5


def test_ollama_enforces_forms_by_schema() -> None:
    seen = Seen(json.dumps({"message": {"content": '{"score": 4}'}, "done": True}))
    assert ask(seen, OllamaChatModel("m"), "ollama", structured_model=Verdict)[-1].metadata == {"score": 4}
    assert seen.requests[0][1]["format"] == Verdict.model_json_schema()


def test_ollamas_host_is_as_ollama_takes_it_and_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "sk-ollama")
    with use_settings(Settings.load()):
        assert OllamaChatModel("m", host="gpu-1")._endpoint().base_url == "http://gpu-1:11434/v1"
        assert OllamaChatModel("m", host="gpu-1")._endpoint().key() is None
        assert OllamaChatModel("m")._endpoint().key() == "sk-ollama"


# Bad input, for each class ---------------------------------------------------------------------------------------

MODELS: list[tuple[Any, str]] = [(DashScopeChatModel, "dashscope"), (DeepSeekChatModel, "deepseek"),
                                 (OllamaChatModel, "ollama")]


@pytest.mark.parametrize(("cls", "name"), MODELS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("handler", "status", "retryable", "part"), [
    (says('{"error":{"message":"bad key sk-secret"}}', 401), 401, False, r"_API_KEY"),
    (says('{"error":"model \'m\' not found"}', 404), 404, False, "Check the model's name"),
    (says("<html><body>Sign in</body></html>", 200, "text/html"), 200, False, "HTML page"),
    (says('{"message": {"cont'), 200, True, "half of it"),
    (says('{"error": {"message": "out of memory", "code": 500}}'), 500, True, "out of memory"),
    (says("[]"), 200, False, "no chat completion"),
    (says('{"choices": 7, "message": 7}'), 200, False, "no chat completion"),
])
def test_bad_answers(cls: Any, name: str, stream: bool, handler: Any, status: int, retryable: bool,
                     part: str) -> None:
    with pytest.raises(EndpointError, match=part) as caught:
        ask(handler, cls("m", api_key="sk-secret", stream=stream), name)
    exc = caught.value
    assert (exc.status, exc.retryable, exc.endpoint) == (status, retryable, name)
    assert "sk-secret" not in str(exc)


@pytest.mark.parametrize(("cls", "name"), MODELS)
def test_a_stream_that_breaks_off_is_an_error(cls: Any, name: str) -> None:
    part = '{"message": {"content": "Once"}, "done": false}\n' if name == "ollama" else \
        f"data: {json.dumps(delta(content='Once'))}\n\n"
    kind = "application/x-ndjson" if name == "ollama" else "text/event-stream"
    with pytest.raises(EndpointError, match="broke off") as caught:
        ask(Seen(part, kind), cls("m", stream=True), name)
    assert caught.value.retryable


@pytest.mark.parametrize(("cls", "name"), MODELS)
def test_a_server_that_never_answers_is_a_timeout(cls: Any, name: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        await for_ever()
        return web.Response()

    with pytest.raises(EndpointError, match=r"did not answer for 0.2 s") as caught:
        ask(handler, cls("m", stream=False), name, timeout=0.2)
    assert caught.value.retryable and f"CALLSHEET_ENDPOINTS__{name.upper()}__TIMEOUT" in str(caught.value)


@pytest.mark.parametrize(("cls", "variable"), [(DashScopeChatModel, "DASHSCOPE_API_KEY"),
                                               (DeepSeekChatModel, "DEEPSEEK_API_KEY")])
def test_a_missing_key_names_its_variable(cls: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable, raising=False)
    with use_settings(Settings.load()), pytest.raises(ModelError, match=variable):
        asyncio.run(cls("m")(ASK))


@pytest.mark.parametrize(("cls", "name"), MODELS)
def test_a_model_with_a_key_does_not_travel(cls: Any, name: str) -> None:
    assert Writer().write(cls("m"), "argument 'model'")["args"] == ["m"]
    with pytest.raises(CannotTravel, match="an endpoint of their settings"):
        Writer().write(cls("m", api_key="sk-mine"), "argument 'model'")
