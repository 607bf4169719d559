"""The models that call a provider's own SDK: over our connections, in our errors alone."""

import asyncio
import gc
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel, Field

from callsheet.errors import CallsheetError, CannotTravel, CircuitOpen, ModelError, UsageError
from callsheet.messages.wire import Writer
from callsheet.models import (
    AnthropicChatModel,
    ChatResponse,
    EndpointError,
    GeminiChatModel,
    OllamaChatModel,
    OpenAIChatModel,
)
from callsheet.settings import Settings, use_settings
from callsheet.testing import Reply, StubModelServer
from tests.conftest import missing
from tests.hanging import for_ever
from tests.model_server import Handler, says, serving
from tests.services import free_port

ASK = [{"role": "user", "content": "Whales are mammals. Whales sing."}]
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {
    "type": "object", "properties": {"q": {"type": "string"}}}}}
BOTH: list[Any] = [AnthropicChatModel, GeminiChatModel]
SDKS = {"anthropic": "anthropic", "gemini": "google.genai"}


class Verdict(BaseModel):
    """A judgement."""

    score: int = Field(ge=0, le=10)


@pytest.fixture(autouse=True)
def installed() -> None:
    for module in ("anthropic", "google.genai"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            missing(f"The SDK {module}")


def name_of(cls: Any) -> str:
    return "anthropic" if cls is AnthropicChatModel else "gemini"


async def responses(model: Any, messages: Any = ASK, **kwargs: Any) -> list[ChatResponse]:
    result = await model(messages, **kwargs)
    return [result] if isinstance(result, ChatResponse) else [chunk async for chunk in result]


def on_stub(model: Any, *replies: Reply, messages: Any = ASK, behaviour: dict[str, Any] | None = None,
            **kwargs: Any) -> tuple[list[ChatResponse], StubModelServer]:
    """The responses of the stub server, which gives `replies`."""
    with StubModelServer(**(behaviour or {})) as server:
        server.plan(*replies)
        endpoint = {"base_url": server.url, "api_key": "sk-test", "headers": {"X-Team": "us"}, "retry": {"attempts": 1}}
        with use_settings(Settings.load(endpoints={model.endpoint: endpoint})):
            return asyncio.run(responses(model, messages, **kwargs)), server


def on_handler(handler: Handler, model: Any, **kwargs: Any) -> list[ChatResponse]:
    async def main() -> list[ChatResponse]:
        async with serving(handler, model.endpoint, api_key="sk-secret"):
            return await responses(model, **kwargs)

    return asyncio.run(main())


FULL = Reply(text="Hi", thinking="hm hm", tools=[("find", {"q": "x"}), ("see", {})], input_tokens=10, cached_tokens=3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", BOTH)
def test_an_answer_with_everything(cls: Any, stream: bool) -> None:
    got, server = on_stub(cls("m", stream=stream), FULL, behaviour={"api_key": "sk-test"}, tools=[TOOL])
    last = got[-1]
    kinds = [(block["type"], block.get("thinking") or block.get("text") or block.get("input"))  # type: ignore[union-attr]
             for block in last.content]
    assert kinds == [("thinking", "hm hm"), ("text", "Hi"), ("tool_use", {"q": "x"}), ("tool_use", {})]
    calls = [block for block in last.content if block["type"] == "tool_use"]
    assert calls[0]["name"] == "find" and calls[0]["id"] != calls[1]["id"]
    assert last.finish_reason == "tool_calls"
    assert last.usage is not None and last.usage.input_tokens == 10 and last.usage.time > 0
    assert last.usage.output_tokens > 3 and "3" in json.dumps(last.usage.metadata)  # the cached ones, told apart
    signature = last.content[0].get("signature") if cls is AnthropicChatModel else calls[0].get("thought_signature")
    assert signature == "c3R1Yg=="
    json.dumps(last.to_dict())
    if stream:
        assert got[0].content == [{**last.content[0], "thinking": got[0].content[0]["thinking"]}] or len(got) > 2
    assert server.calls[0].headers["x-team"] == "us" and "x-callsheet-call" not in server.calls[0].headers


@pytest.mark.parametrize("cls", BOTH)
def test_a_stream_grows(cls: Any) -> None:
    got, _ = on_stub(cls("m"), Reply(text=" ".join(f"word{number}" for number in range(60))))
    texts = [chunk.content[0]["text"] for chunk in got]  # type: ignore[typeddict-item]
    assert len(texts) > 3 and all(late.startswith(early) for early, late in pairwise(texts))
    assert got[-1].finish_reason == "stop" and got[-1].usage is not None


def test_what_anthropic_is_sent() -> None:
    model = AnthropicChatModel("claude", None, 100, False, {"type": "enabled", "budget_tokens": 50},
                               client_kwargs={"default_headers": {"X-A": "1"}}, generate_kwargs={"temperature": 1})
    messages = [{"role": "system", "content": "Be brief."}, *ASK]
    _, server = on_stub(model, messages=messages, tools=[TOOL], tool_choice="auto", top_k=3, brand_new=True)
    body, headers = server.calls[0].body, server.calls[0].headers
    assert body == {
        "model": "claude", "max_tokens": 100, "stream": False, "temperature": 1, "top_k": 3, "brand_new": True,
        "thinking": {"type": "enabled", "budget_tokens": 50}, "system": "Be brief.", "messages": ASK,
        "tools": [{"name": "find", "description": "Finds.", "input_schema": TOOL["function"]["parameters"]}],  # type: ignore[index]
        "tool_choice": {"type": "auto"}}
    assert headers["x-a"] == "1" and "sk-test" in headers.get("x-api-key", headers.get("authorization", ""))


def test_what_gemini_is_sent() -> None:
    model = GeminiChatModel("gem", None, False, {"include_thoughts": True}, generate_kwargs={"temperature": 0.5})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "parts": [{"text": "Hi"}]},
                {"role": "model", "parts": [{"function_call": {"name": "find", "args": {"q": "x"}},
                                            "thought_signature": b"sig"}]},
                {"role": "user", "parts": [{"function_response": {"name": "find", "response": {"output": "y"}}}]}]
    _, server = on_stub(model, messages=messages, tools=[TOOL], tool_choice="find", max_output_tokens=7)
    body = server.calls[0].body
    assert re.fullmatch(r"/v1(beta)?/models/gem:generateContent", server.calls[0].path)
    assert body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][1]["parts"][0]["functionCall"]["args"] == {"q": "x"}
    assert body["generationConfig"]["maxOutputTokens"] == 7 and body["generationConfig"]["temperature"] == 0.5
    assert body["toolConfig"]["functionCallingConfig"]["allowedFunctionNames"] == ["find"]
    assert body["tools"][0]["functionDeclarations"][0]["name"] == "find"
    assert server.calls[0].headers["x-goog-api-key"] == "sk-test"


@pytest.mark.parametrize("choice", ["auto", "none", "required", "find"])
@pytest.mark.parametrize("cls", BOTH)
def test_every_tool_choice_is_understood(cls: Any, choice: str) -> None:
    got, _ = on_stub(cls("m", stream=False), tools=[TOOL], tool_choice=choice)
    called = [block["name"] for block in got[0].content if block["type"] == "tool_use"]
    assert called == (["find"] if choice in ("required", "find") else [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", BOTH)
def test_an_answer_in_a_form_is_repaired_once(cls: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    def reply(score: int) -> Reply:
        data = {"score": score}
        return Reply(tools=[("Verdict", data)], input_tokens=10, output_tokens=3) if cls is AnthropicChatModel else \
            Reply(text=json.dumps(data), input_tokens=10, output_tokens=3)

    with caplog.at_level(logging.WARNING, "callsheet.models"):
        got, server = on_stub(cls("m", stream=stream), reply(11), reply(9), structured_model=Verdict)
    assert got[-1].metadata == {"score": 9}
    assert got[-1].usage is not None and (got[-1].usage.input_tokens, got[-1].usage.output_tokens) == (20, 6)
    assert "less than or equal to 10" in json.dumps(server.calls[1].body) and "model_answer_repair" in caplog.text
    with pytest.raises(EndpointError, match="does not fit Verdict: score"):
        on_stub(cls("m", stream=stream), reply(11), reply(12), structured_model=Verdict)
    with pytest.raises(EndpointError, match="cut at max_tokens"):
        cut = Reply(text='{"score": ', finish="length")
        on_stub(cls("m", stream=stream), cut, structured_model=Verdict)


def test_claude_thinks_where_it_cannot_be_made_to_call_a_tool() -> None:
    model = AnthropicChatModel("m", stream=False, thinking={"type": "enabled", "budget_tokens": 1024})
    got, server = on_stub(model, Reply(thinking="hm", text='{"score": 2}'), structured_model=Verdict)
    assert got[0].metadata == {"score": 2}
    assert server.calls[0].body["tool_choice"] == {"type": "auto"}


# Errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(("handler", "status", "retryable", "parts"), [
    (says('{"error": {"message": "bad key sk-secret", "type": "authentication_error", "code": 401}}', 401), 401, False,
     ["bad key ***", "_API_KEY"]),
    (says('{"error": {"message": "no such model", "status": "NOT_FOUND"}}', 404), 404, False, ["no such model"]),
    (says('{"error": {"message": "slow down"}}', 429, Retry_After="2"), 429, True, ["slow down", "less often"]),
    (says("", 503), 503, True, ["(no text)", "Try again later"]),
    (says("<html><body>Sign in</body></html>", 502, "text/html"), 502, True, ["HTML page", "Sign in"]),
    (says("<!doctype html><title>Hi</title>", 200, "text/html"), 200, False, ["HTML page", "base_url"]),
    (says('{"id": "c1", "cont'), 200, True, ["half of it"]),
    (says('{"error": {"message": "overloaded", "code": 503}}'), 503, True, ["overloaded"]),
    (says("[1, 2]"), 200, False, []),
    (says("{}"), 200, False, []),
    (says("", 307, Location="https://u:p@new.example/v1?t=1"), 307, False, ["redirects to https://new.example/v1"]),
    (says('{"content": 7, "candidates": 7}'), 200, None, []),
    (says(""), 200, None, []),
])
def test_bad_answers(cls: Any, stream: bool, handler: Handler, status: int, retryable: bool | None,
                     parts: list[str]) -> None:
    with pytest.raises(CallsheetError) as caught:
        on_handler(handler, cls("m", stream=stream))
    exc = caught.value
    assert isinstance(exc, EndpointError), repr(exc)
    assert (exc.status, exc.endpoint) == (status, name_of(cls))
    assert retryable is None or exc.retryable is retryable, exc
    for part in [f"'{name_of(cls)}'", *parts]:
        assert part in str(exc)
    assert "sk-secret" not in str(exc) and len(str(exc)) < 1200
    assert exc.retry_after == (2.0 if status == 429 else None)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stream_that_breaks_off_is_an_error(cls: Any, after: int) -> None:
    text = " ".join(f"word{number}" for number in range(80))
    with pytest.raises(EndpointError, match="broke off") as caught:
        on_stub(cls("m"), Reply(text=text, break_after=after))
    assert caught.value.retryable


@pytest.mark.parametrize("cls", BOTH)
def test_an_error_within_a_stream_is_an_error(cls: Any) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded", "code": 529}}
    first = {"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 1}}}
    body = f"event: message_start\ndata: {json.dumps(first)}\n\nevent: error\ndata: {json.dumps(error)}\n\n" \
        if cls is AnthropicChatModel else f"data: {json.dumps(error)}\n\n"
    with pytest.raises(EndpointError, match="Overloaded") as caught:
        on_handler(says(body, content_type="text/event-stream"), cls("m"))
    assert caught.value.retryable and "message_start" not in str(caught.value)


@pytest.mark.parametrize(("word", "why", "retryable"), [
    ("MALFORMED_FUNCTION_CALL", "Malformed function call: look(", True), ("OTHER", "", True), ("SAFETY", "", False)])
def test_gemini_says_why_there_is_no_answer(word: str, why: str, retryable: bool) -> None:
    body = {"candidates": [{"content": {}, "finishReason": word, "finishMessage": why}]}
    with pytest.raises(EndpointError, match=re.escape(why or word)) as caught:
        on_handler(says(json.dumps(body)), GeminiChatModel("m", stream=False))
    assert caught.value.retryable is retryable


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", BOTH)
def test_silence_is_a_timeout(cls: Any, stream: bool) -> None:
    with pytest.raises(EndpointError, match=r"did not answer for 0.3 s.*__TIMEOUT") as caught:
        on_stub(cls("m", stream=stream), Reply(silent=True), timeout=0.3)
    assert caught.value.retryable


@pytest.mark.parametrize("cls", BOTH)
def test_silence_within_a_stream_is_a_timeout(cls: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        first: Any = {"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 1}}}
        if cls is GeminiChatModel:
            first = {"candidates": [{"content": {"parts": [{"text": "Once"}], "role": "model"}}]}
        name = "event: message_start\n" if cls is AnthropicChatModel else ""
        await response.write(f"{name}data: {json.dumps(first)}\n\n".encode())
        await for_ever()
        return response

    with pytest.raises(EndpointError, match=r"fell silent within its answer for 0.3 s"):
        on_handler(handler, cls("m"), timeout=0.3)


@pytest.mark.parametrize("cls", BOTH)
def test_nothing_listens(cls: Any) -> None:
    endpoint = {"base_url": f"http://127.0.0.1:{free_port()}", "retry": {"attempts": 1}}
    with use_settings(Settings.load(endpoints={name_of(cls): endpoint})), \
            pytest.raises(EndpointError, match="cannot be reached") as caught:
        asyncio.run(cls("m")(ASK))
    assert caught.value.retryable and "__BASE_URL" in str(caught.value)


@pytest.mark.parametrize(("cls", "variable"), [(AnthropicChatModel, "ANTHROPIC_API_KEY"),
                                               (GeminiChatModel, "GEMINI_API_KEY")])
def test_a_missing_key_names_its_variable(cls: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (variable, "GOOGLE_API_KEY", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with use_settings(Settings.load()), pytest.raises(ModelError, match=variable):
        asyncio.run(cls("m")(ASK))


@pytest.mark.parametrize("cls", BOTH)
def test_an_endpoint_without_a_key_gets_none(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with StubModelServer() as server, \
            use_settings(Settings.load(endpoints={name_of(cls): {"base_url": server.url}})):
        asyncio.run(responses(cls("m", stream=False)))
    headers = server.calls[0].headers
    assert "authorization" not in headers and "x-api-key" not in headers
    assert headers.get("x-goog-api-key", "none") == "none"


@pytest.mark.parametrize("cls", BOTH)
def test_another_base_url_does_not_get_the_endpoints_key_or_headers(cls: Any) -> None:
    with StubModelServer() as server:
        other = {"base_url": "https://elsewhere.invalid", "api_key": "sk-theirs", "headers": {"X-Team": "us"}}
        with use_settings(Settings.load(endpoints={name_of(cls): other})):
            asyncio.run(responses(cls("m", stream=False, client_kwargs={"base_url": server.url})))
    assert "sk-theirs" not in json.dumps(server.calls[0].headers) and "x-team" not in server.calls[0].headers


@pytest.mark.parametrize("cls", BOTH)
def test_wrong_arguments_are_named(cls: Any) -> None:
    async def main(**kwargs: Any) -> None:
        await cls("m", stream=False)(**{"messages": ASK, **kwargs})

    with use_settings(Settings.load(endpoints={name_of(cls): {"base_url": "http://127.0.0.1:9"}})):
        for messages in ("hello", [], [{"role": "user"}]):
            with pytest.raises(ValueError, match="messages"):
                asyncio.run(main(messages=messages))
        with pytest.raises(ValueError, match="'walk'"):
            asyncio.run(main(tool_choice="walk"))
        with pytest.raises((ValueError, TypeError), match="m'"):
            asyncio.run(main(messages=[{"role": "user", "content": [{"type": "text", "text": object()}]}]))
    with pytest.raises(UsageError, match="max_retries"):
        cls("m", client_kwargs={"max_retries": 3})


def test_gemini_names_a_parameter_that_it_does_not_have() -> None:
    with use_settings(Settings.load(endpoints={"gemini": {"base_url": "http://127.0.0.1:9"}})), \
            pytest.raises(UsageError, match="'m' are wrong: max_tokens"):
        asyncio.run(GeminiChatModel("m")(ASK, max_tokens=3))


@pytest.mark.parametrize("cls", BOTH)
def test_a_model_with_a_key_does_not_travel(cls: Any) -> None:
    assert Writer().write(cls("m"), "argument 'model'")["args"] == ["m"]
    with pytest.raises(CannotTravel, match="an endpoint of their settings"):
        Writer().write(cls("m", "sk-mine"), "argument 'model'")
    assert "sk-mine" not in repr(cls("m", "sk-mine")) + repr(vars(cls("m", "sk-mine")))


@pytest.mark.parametrize("cls", BOTH)
def test_calls_share_the_endpoints_connections_on_every_loop(cls: Any) -> None:
    async def main() -> None:
        for _ in range(5):
            await responses(cls("m", stream=False))

    with StubModelServer() as server, \
            use_settings(Settings.load(endpoints={name_of(cls): {"base_url": server.url, "api_key": "k"}})):
        for number in (1, 2):
            asyncio.run(main())
            assert server.connections == number


@pytest.mark.parametrize("cls", BOTH)
def test_cookies_are_not_kept(cls: Any) -> None:
    async def main() -> None:
        for _ in range(2):
            await responses(cls("m", stream=False))

    with StubModelServer() as server:
        server.plan(Reply(text="ok", headers={"Set-Cookie": "agent=alice; Path=/"}))
        with use_settings(Settings.load(endpoints={name_of(cls): {"base_url": server.url, "api_key": "k"}})):
            asyncio.run(main())
    assert "cookie" not in server.calls[1].headers


@pytest.mark.parametrize("cls", BOTH)
def test_our_transports_do_the_retries(cls: Any) -> None:
    with StubModelServer() as server:
        server.plan(Reply(status=503, headers={"Retry-After": "0"}), Reply(text="ok"))
        endpoint = {"base_url": server.url, "api_key": "k", "retry": {"backoff": 0.01}}
        with use_settings(Settings.load(endpoints={name_of(cls): endpoint})):
            [response] = asyncio.run(responses(cls("m", stream=False)))
    assert response.content[0]["text"] == "ok" and server.requests == 2  # type: ignore[typeddict-item]


@pytest.mark.parametrize("cls", BOTH)
def test_an_error_of_our_transports_comes_as_it_is(cls: Any) -> None:
    async def main() -> None:
        for _ in range(4):
            try:
                await responses(cls("m", stream=False))
            except EndpointError:
                continue

    with StubModelServer() as server:
        server.plan(*[Reply(status=500) for _ in range(10)])
        endpoint = {"base_url": server.url, "api_key": "k", "retry": {"attempts": 1}, "breaker": {"minimum": 2}}
        with use_settings(Settings.load(endpoints={name_of(cls): endpoint}, inline=True)), \
                pytest.raises(CircuitOpen):
            asyncio.run(main())


@pytest.mark.parametrize("cls", [*BOTH, OpenAIChatModel, OllamaChatModel])
@pytest.mark.parametrize("how", ["cancel", "drop", "close"])
def test_a_stream_that_nobody_reads_gives_its_connection_back(cls: Any, how: str) -> None:
    model = cls("m", stream=True)

    async def main(server: StubModelServer) -> None:
        stream = await model(ASK)
        await anext(stream)
        if how == "cancel":
            async def read(chunks: Any) -> None:
                async for _ in chunks:
                    pass

            task = asyncio.create_task(read(stream))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "close":
            await stream.aclose()
        else:
            del stream
            gc.collect()
        for _ in range(200):
            if server.stub.in_flight == 0:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the server still sends")

    # Slow enough to be still sending when nobody listens any more.
    with StubModelServer(tokens_per_second=20) as server:
        server.plan(Reply(text=" ".join(["word"] * 1000)))
        url = f"{server.url}/v1" if cls is OpenAIChatModel else server.url
        with use_settings(Settings.load(endpoints={model.endpoint: {"base_url": url, "api_key": "k"}})):
            began = time.monotonic()
            asyncio.run(main(server))
            assert time.monotonic() - began < 30


@pytest.mark.parametrize(("cls", "extra"), [("AnthropicChatModel", "anthropic"), ("GeminiChatModel", "gemini")])
def test_a_missing_sdk_names_the_extra(cls: str, extra: str) -> None:
    code = (f"import asyncio, sys\nsys.modules['{SDKS[extra]}'] = None\nfrom callsheet.models import {cls}\n"
            f"from callsheet.errors import UsageError\n"
            f"try: asyncio.run({cls}('m')([{{'role': 'user', 'content': 'x'}}]))\n"
            "except UsageError as exc: print(exc)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "ANTHROPIC_API_KEY": "k", "GEMINI_API_KEY": "k"})
    assert f"pip install 'callsheet[{extra}]'" in done.stdout, done.stderr
