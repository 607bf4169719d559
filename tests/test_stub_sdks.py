"""The stub server's wire forms, as the providers' own SDKs read them with clients of their own."""

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from callsheet.testing import Reply, StubModelServer
from tests.conftest import missing

TEXT = "Whales are mammals. Whales breathe air and nurse their young. The sea is salt. Whales sing."
PARAMETERS = {"type": "object", "properties": {"summary": {"type": "string"}}, "required": ["summary"]}
FULL = Reply(text="Hi there", thinking="hm hm", tools=[("find", {"q": "x"})], input_tokens=20, cached_tokens=5)


class Verdict(BaseModel):
    """A judgement."""

    score: int = Field(ge=0, le=10)
    summary: str


def sdk(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return missing(f"The SDK {name}")


@pytest.fixture
def server() -> Iterator[StubModelServer]:
    with StubModelServer(api_key="sk-right", seed=1) as started:
        yield started


# OpenAI ----------------------------------------------------------------------------------------------------------

def openai(server: StubModelServer, key: str = "sk-right") -> Any:
    return sdk("openai").OpenAI(base_url=server.base_url, api_key=key, max_retries=0)


ASK: Any = [{"role": "user", "content": f"Summarise in one sentence:\n\n{TEXT}"}]
TOOL: Any = {"type": "function", "function": {"name": "note", "parameters": PARAMETERS}}


def test_openai_reads_an_answer_and_a_stream(server: StubModelServer) -> None:
    client = openai(server)
    whole = client.chat.completions.create(model="m", messages=ASK)
    assert whole.choices[0].message.content in TEXT and whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
    chunks = list(client.chat.completions.create(model="m", messages=ASK, stream=True,
                                                 stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "stop"


def test_openai_reads_tools_forms_and_models(server: StubModelServer) -> None:
    client = openai(server)
    choice: Any = {"type": "function", "function": {"name": "note"}}
    called = client.chat.completions.create(model="m", messages=ASK, tools=[TOOL], tool_choice=choice).choices[0]
    assert called.finish_reason == "tool_calls"
    assert json.loads(called.message.tool_calls[0].function.arguments)["summary"]
    parsed = client.chat.completions.parse(model="m", messages=ASK, response_format=Verdict)
    assert isinstance(parsed.choices[0].message.parsed, Verdict)
    with client.chat.completions.stream(model="m", messages=ASK, response_format=Verdict) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Verdict)
    assert client.models.list().data[0].id == "stub-extractive"
    server.plan(FULL)
    full = client.chat.completions.create(model="m", messages=ASK)
    assert full.usage.prompt_tokens_details.cached_tokens == 5 and full.choices[0].message.content == "Hi there"


def test_openai_reads_errors(server: StubModelServer) -> None:
    errors = sdk("openai")
    with pytest.raises(errors.AuthenticationError, match="Incorrect API key"):
        openai(server, "sk-wrong").chat.completions.create(model="m", messages=ASK)
    with pytest.raises(errors.BadRequestError, match="messages"):
        openai(server).chat.completions.create(model="m", messages=[])
    for status, cls in ((429, errors.RateLimitError), (500, errors.InternalServerError)):
        server.plan(Reply(status=status, message="busy", headers={"Retry-After": "3"}))
        with pytest.raises(cls, match="busy") as caught:
            openai(server).chat.completions.create(model="m", messages=ASK)
        assert caught.value.response.headers["retry-after"] == "3"
    with StubModelServer(rpm=1) as limited:
        client = sdk("openai").OpenAI(base_url=limited.base_url, api_key="x", max_retries=0)
        raw = client.chat.completions.with_raw_response.create(model="m", messages=ASK)
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        with pytest.raises(errors.RateLimitError):
            client.chat.completions.create(model="m", messages=ASK)


# Anthropic -------------------------------------------------------------------------------------------------------

def anthropic(server: StubModelServer, key: str = "sk-right") -> Any:
    return sdk("anthropic").Anthropic(base_url=server.url, api_key=key, max_retries=0)


def test_anthropic_reads_an_answer_and_a_stream(server: StubModelServer) -> None:
    client = anthropic(server)
    asked: Any = {"model": "m", "max_tokens": 500, "messages": ASK, "system": "Be brief."}
    whole = client.messages.create(**asked)
    assert whole.content[0].text in TEXT and whole.stop_reason == "end_turn" and whole.usage.input_tokens > 0
    server.plan(FULL, FULL)
    full = client.messages.create(**asked)
    assert [block.type for block in full.content] == ["thinking", "text", "tool_use"]
    assert full.content[2].input == {"q": "x"} and full.stop_reason == "tool_use"
    assert (full.usage.input_tokens, full.usage.cache_read_input_tokens) == (15, 5)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "Hi there"
    assert [block.model_dump(exclude={"id"}) for block in message.content] == [
        block.model_dump(exclude={"id"}) for block in full.content]
    assert message.stop_reason == "tool_use" and message.usage.output_tokens == full.usage.output_tokens


def test_anthropic_reads_a_forced_tool_and_a_cut(server: StubModelServer) -> None:
    client = anthropic(server)
    tools: Any = [{"name": "note", "input_schema": PARAMETERS}]
    called = client.messages.create(model="m", max_tokens=500, messages=ASK, tools=tools,
                                    tool_choice={"type": "tool", "name": "note"})
    assert called.content[0].name == "note" and called.content[0].input["summary"]
    assert client.messages.create(model="m", max_tokens=2, messages=ASK).stop_reason == "max_tokens"


def test_anthropic_reads_errors(server: StubModelServer) -> None:
    errors = sdk("anthropic")
    with pytest.raises(errors.AuthenticationError, match="Incorrect API key"):
        anthropic(server, "sk-wrong").messages.create(model="m", max_tokens=5, messages=ASK)
    with pytest.raises(errors.BadRequestError, match="at least one message"):
        anthropic(server).messages.create(model="m", max_tokens=5, messages=[])
    for status, cls in ((429, errors.RateLimitError), (529, errors.APIStatusError)):
        server.plan(Reply(status=status, message="busy"))
        with pytest.raises(cls, match="busy"):
            anthropic(server).messages.create(model="m", max_tokens=5, messages=ASK)


# Gemini ----------------------------------------------------------------------------------------------------------

def gemini(server: StubModelServer, key: str = "sk-right") -> Any:
    return sdk("google.genai").Client(api_key=key, vertexai=False, http_options={"base_url": server.url})


def test_gemini_reads_an_answer_and_a_stream(server: StubModelServer) -> None:
    client = gemini(server)
    whole = client.models.generate_content(model="m", contents=ASK[0]["content"])
    assert whole.text in TEXT and whole.candidates[0].finish_reason.value == "STOP"
    assert whole.usage_metadata.total_token_count > whole.usage_metadata.prompt_token_count > 0
    server.plan(FULL, FULL)
    full = client.models.generate_content(model="m", contents="x")
    assert full.function_calls[0].args == {"q": "x"} and full.text == "Hi there"
    assert full.candidates[0].content.parts[0].thought and full.usage_metadata.cached_content_token_count == 5
    chunks = list(client.models.generate_content_stream(model="m", contents="x"))
    assert "".join(part.text or "" for chunk in chunks for part in chunk.candidates[0].content.parts
                   if not part.thought) == "Hi there"
    assert chunks[-1].candidates[0].finish_reason.value == "STOP"
    assert chunks[-1].usage_metadata == full.usage_metadata


def test_gemini_reads_forms_and_tools(server: StubModelServer) -> None:
    client = gemini(server)
    for schema in ({"response_schema": Verdict}, {"response_json_schema": Verdict.model_json_schema()}):
        answer = client.models.generate_content(model="m", contents=ASK[0]["content"], config={
            "response_mime_type": "application/json", **schema})
        assert Verdict.model_validate_json(answer.text)
    called = client.models.generate_content(model="m", contents=ASK[0]["content"], config={
        "tools": [{"function_declarations": [{"name": "note", "parameters_json_schema": PARAMETERS}]}],
        "tool_config": {"function_calling_config": {"mode": "ANY"}}})
    assert called.function_calls[0].name == "note" and called.function_calls[0].args["summary"]


def test_gemini_reads_errors(server: StubModelServer) -> None:
    errors = importlib.import_module("google.genai.errors") if sdk("google.genai") else None
    assert errors is not None
    stranger, client = gemini(server, "sk-wrong"), gemini(server)
    with pytest.raises(errors.ClientError, match="UNAUTHENTICATED"):
        stranger.models.generate_content(model="m", contents="x")
    for status, word in ((429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE")):
        server.plan(Reply(status=status, message="busy"))
        with pytest.raises(errors.APIError, match=rf"{word}.*busy"):
            client.models.generate_content(model="m", contents="x")


# Ollama ----------------------------------------------------------------------------------------------------------

def test_ollama_reads_answers_streams_forms_and_errors() -> None:
    ollama = sdk("ollama")
    with StubModelServer() as server:
        client = ollama.Client(host=server.url)
        whole = client.chat(model="m", messages=ASK)
        assert whole.message.content in TEXT and whole.done and whole.done_reason == "stop"
        assert whole.prompt_eval_count > 0 and whole.eval_count > 0
        parts = list(client.chat(model="m", messages=ASK, stream=True))
        assert "".join(part.message.content for part in parts) == whole.message.content and parts[-1].done
        server.plan(FULL)
        full = client.chat(model="m", messages=ASK)
        assert full.message.thinking == "hm hm" and full.message.tool_calls[0].function.arguments == {"q": "x"}
        form = client.chat(model="m", messages=ASK, format=Verdict.model_json_schema())
        assert Verdict.model_validate_json(form.message.content)
        server.plan(Reply(status=404, message="model 'm' not found"))
        with pytest.raises(ollama.ResponseError, match="not found"):
            client.chat(model="m", messages=ASK)
