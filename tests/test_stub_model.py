"""The stub model server over HTTP: its format, its errors, its pace, its command."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from callsheet.cli.stub_model import stub_model
from callsheet.models import ChatResponse, EndpointError, OpenAIChatModel
from callsheet.models.stub import StubModelServer
from callsheet.models.stub.wire import tokenize
from callsheet.settings import Settings, use_settings
from tests.services import wait_for

TEXT = ("Whales are mammals. Whales breathe air and nurse their young. Some whales may be at risk from ships. "
        "The sea is salt. Whales sing songs that other whales learn.")
ASK = [{"role": "user", "content": f"Summarise in 2 sentences:\n\n{TEXT}"}]
BODY: dict[str, Any] = {"model": "stub-extractive", "messages": ASK}


def endpoints(server: StubModelServer, **more: Any) -> Settings:
    return Settings.load(endpoints={"openai": {"base_url": server.base_url, **more}})


def post(server: StubModelServer, **changes: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/chat/completions", json={**BODY, **changes}, timeout=20)


def text_of(response: ChatResponse) -> str:
    return "".join(block["text"] for block in response.content if block["type"] == "text")


def test_our_model_class_talks_to_it() -> None:
    class Notes(BaseModel):
        title: str
        risks: list[str] = Field(max_length=2)
        score: int = Field(ge=0, le=10)

    async def main() -> None:
        whole = await OpenAIChatModel("any-name", stream=False)(ASK)
        assert isinstance(whole, ChatResponse)
        grown = [chunk async for chunk in await OpenAIChatModel("any-name")(ASK)]  # type: ignore[union-attr]
        assert text_of(whole) == text_of(grown[-1])
        assert text_of(whole).count(".") == 2 and all(part in TEXT for part in re.findall(r"\w[^.]+\.", text_of(whole)))
        assert all(text_of(late).startswith(text_of(early)) for early, late in pairwise(grown))
        assert whole.usage is not None and grown[-1].usage is not None
        assert whole.usage.output_tokens == grown[-1].usage.output_tokens == len(tokenize(text_of(whole)))
        assert whole.usage.input_tokens == 4 + len(tokenize(ASK[0]["content"]))
        for stream in (False, True):
            result = await OpenAIChatModel("m", stream=stream)(ASK, structured_model=Notes)
            last = result if isinstance(result, ChatResponse) else [chunk async for chunk in result][-1]
            assert last.metadata is not None
            assert last.metadata["risks"] == ["Some whales may be at risk from ships."]
            tool = {"type": "function", "function": {"name": "note", "parameters": Notes.model_json_schema()}}
            result = await OpenAIChatModel("m", stream=stream)(ASK, tools=[tool], tool_choice="note")
            last = result if isinstance(result, ChatResponse) else [chunk async for chunk in result][-1]
            assert last.content[0]["type"] == "tool_use" and last.content[0]["name"] == "note"
            Notes.model_validate(last.content[0]["input"])

    with StubModelServer() as server, use_settings(endpoints(server)):
        asyncio.run(main())


def test_n_max_tokens_and_json_object() -> None:
    with StubModelServer() as server:
        body = post(server, n=3, max_tokens=5).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
        assert len(tokenize(body["choices"][0]["message"]["content"])) == 5
        assert body["usage"]["completion_tokens"] == 15
        assert body["usage"]["total_tokens"] == 15 + body["usage"]["prompt_tokens"]
        object_body = post(server, response_format={"type": "json_object"}).json()
        assert object_body["choices"][0]["message"]["content"].startswith('{"answer": ')
        events = post(server, n=2, stream=True).text
        assert events.endswith("data: [DONE]\n\n") and '"index": 1' in events and '"usage"' not in events
        free = post(server, tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="auto").json()
        assert free["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("body", "param"), [
    (b"{", None), (b"[]", None), (b"{}", "model"), (b'{"model": "m"}', "messages"),
    (b'{"model": "m", "messages": []}', "messages"), (b'{"model": "m", "messages": [3]}', "messages.[0]"),
    (b'{"model": "m", "messages": [{"role": "king", "content": "x"}]}', "messages.[0].role"),
    (b'{"model": "m", "messages": [{"role": "user", "content": 3}]}', "messages.[0].content"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 0}', "n"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": "9"}', "max_tokens"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": 3}', "response_format"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "tool_choice": {"function": {"name": "f"}}}',
     "tool_choice"),
    (b"\xff\xfe", None), (b"[" * 100_000, None),
])
def test_malformed_bodies_get_openais_error(body: bytes, param: str | None) -> None:
    with StubModelServer() as server:
        response = httpx.post(f"{server.base_url}/chat/completions", content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param and error["message"]


def test_models_and_health() -> None:
    with StubModelServer() as server:
        assert httpx.get(f"{server.base_url}/models").json()["data"][0]["id"] == "stub-extractive"
        post(server)
        health = httpx.get(f"http://127.0.0.1:{server.port}/healthz").json()
    assert health == {"status": "ok", "requests": 1, "errors": 0, "in_flight": 0, "max_in_flight": 1, "connections": 1}


def test_errors_come_by_seed_and_only_as_asked() -> None:
    def statuses(seed: int) -> list[int]:
        with StubModelServer(error_rate=0.5, seed=seed) as server, httpx.Client() as http:
            answers = [http.post(f"{server.base_url}/chat/completions", json=BODY) for _ in range(60)]
            for answer in answers:
                if answer.status_code in (429, 503):
                    assert 1 <= int(answer.headers["Retry-After"]) <= 3
                if answer.status_code != 200:
                    assert "injected" in answer.json()["error"]["message"]
        return [answer.status_code for answer in answers]

    first = statuses(3)
    assert first == statuses(3) != statuses(4)
    assert set(first) == {200, 429, 500, 503} and 15 <= Counter(first)[200] <= 45

    async def main() -> None:
        await OpenAIChatModel("m", stream=False)(ASK)

    with StubModelServer(error_rate=1, seed=1) as server, use_settings(endpoints(server)), \
            pytest.raises(EndpointError) as caught:
        asyncio.run(main())
    assert caught.value.retryable


def test_the_answer_comes_at_the_pace_given() -> None:
    async def main() -> None:
        begun = time.monotonic()
        whole = await OpenAIChatModel("m", stream=False)(ASK)
        took = time.monotonic() - begun
        assert isinstance(whole, ChatResponse) and whole.usage is not None
        expected = 0.1 + whole.usage.output_tokens / 100
        assert expected <= took < expected + 1
        begun = time.monotonic()
        moments = [time.monotonic() - begun async for _ in await OpenAIChatModel("m")(ASK)]  # type: ignore[union-attr]
        assert 0.1 < moments[0] < moments[-1] and expected <= moments[-1] < expected + 1

    with StubModelServer(latency=0.1, tokens_per_second=100) as server, use_settings(endpoints(server)):
        asyncio.run(main())


def test_many_calls_at_once_over_few_connections() -> None:
    async def one() -> None:
        response = await OpenAIChatModel("m", stream=False)(ASK)  # a model object each
        assert isinstance(response, ChatResponse)

    async def many() -> None:
        places = asyncio.Semaphore(100)

        async def placed() -> None:
            async with places:
                await one()

        await asyncio.gather(*(placed() for _ in range(1000)))

    with StubModelServer(latency=0.05) as server, use_settings(endpoints(server, max_connections=100)):
        asyncio.run(many())
        assert server.requests == 1000
        assert server.connections <= 100 and server.max_in_flight <= 100


def test_streams_give_their_connections_back() -> None:
    async def main() -> None:
        for _ in range(20):
            assert [chunk async for chunk in await OpenAIChatModel("m")(ASK)]  # type: ignore[union-attr]

    with StubModelServer() as server, use_settings(endpoints(server)):
        asyncio.run(main())
        assert (server.requests, server.connections) == (20, 1)


def test_it_is_an_asynchronous_context_manager_too() -> None:
    async def main() -> None:
        async with StubModelServer() as server, httpx.AsyncClient() as http:
            assert (await http.get(f"{server.base_url}/models")).status_code == 200

    asyncio.run(main())


def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(stub_model, ["--port", str(port)])
        assert result.exit_code == 1
        assert f"Cannot listen on 127.0.0.1:{port}" in result.stderr and "--port" in result.stderr
        with pytest.raises(OSError, match="in use"):
            StubModelServer(port=port).__enter__()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(sig: int) -> None:
    code = "from callsheet.cli.stub_model import stub_model; stub_model()"
    process = subprocess.Popen([sys.executable, "-c", code, "--port", "0", "--latency", "0"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"CALLSHEET_ENDPOINTS__OPENAI__BASE_URL=(http://127\.0\.0\.1:\d+/v1)$", line.strip())
        assert match, line
        assert httpx.post(f"{match[1]}/chat/completions", json=BODY).status_code == 200
        process.send_signal(sig)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        wait_for(lambda: process.poll() is not None, what="the stub model to end")
