"""callsheet.testing: scripted models, and the model server's bad days."""

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, Field

import callsheet
from callsheet import AgentFailed, Msg
from callsheet.errors import UsageError
from callsheet.models import ChatResponse, EndpointError, OpenAIChatModel
from callsheet.settings import Settings, use_settings
from callsheet.testing import Reply, ScriptedModel, ScriptEnded, StubModelServer, tool_call
from tests.agents.asking import Asker, shout
from tests.fleet import Fleet

ASK = [{"role": "user", "content": "Say hello to all"}]


class Verdict(BaseModel):
    """A judgement."""

    score: int = Field(ge=0, le=10)


def call(model: Any, **kwargs: Any) -> list[ChatResponse]:
    async def main() -> list[ChatResponse]:
        result = await model(ASK, **kwargs)
        return [result] if isinstance(result, ChatResponse) else [chunk async for chunk in result]

    return asyncio.run(main())


# ScriptedModel ---------------------------------------------------------------------------------------------------

def test_a_script_is_followed_and_what_was_asked_is_kept() -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    model = ScriptedModel(["Hello.", [{"type": "thinking", "thinking": "hm"}, tool_call("find", q="x")],
                           ValueError("no luck"), shout, ChatResponse(content=[], id="mine")])
    [first] = call(model, temperature=0)
    assert first.content == [{"type": "text", "text": "Hello."}] and first.finish_reason == "stop"
    assert first.usage is not None and (first.usage.input_tokens, first.usage.output_tokens) == (4, 1)
    [second] = call(model, tools=tools, tool_choice="find")
    assert second.content[1] == {"type": "tool_use", "id": "call_1_1", "name": "find", "input": {"q": "x"}}
    assert second.finish_reason == "tool_calls"
    with pytest.raises(ValueError, match="no luck"):
        call(model)
    assert call(model)[0].content == [{"type": "text", "text": "SAY HELLO TO ALL"}]
    assert call(model)[0].id == "mine"
    with pytest.raises(ScriptEnded, match="has 5 answers and was asked for number 6"):
        call(model)
    assert len(model.calls) == 6
    assert (model.calls[0].messages, model.calls[0].kwargs) == (ASK, {"temperature": 0})
    assert (model.calls[1].tools, model.calls[1].tool_choice) == (tools, "find")


def test_a_script_may_go_on_for_ever() -> None:
    texts = [[call(model)[0].content[0]["text"] for _ in range(5)]  # type: ignore[typeddict-item]
             for model in (ScriptedModel(["a", "b"], then="last"), ScriptedModel(["a", "b"], then="cycle"))]
    assert texts == [list("abbbb"), list("ababa")]


def test_data_are_checked_against_the_form_asked_for() -> None:
    model = ScriptedModel([{"score": 3}, Verdict(score=4), '{"score": 5}', {"score": 11}])
    assert [call(model, structured_model=Verdict)[0].metadata for _ in range(3)] == [
        {"score": 3}, {"score": 4}, {"score": 5}]
    with pytest.raises(ValueError, match="Answer 4 of the script does not fit Verdict"):
        call(model, structured_model=Verdict)


def test_a_stream_grows_by_words() -> None:
    got = call(ScriptedModel(["one two three"], stream=True))
    assert [chunk.content[0]["text"] for chunk in got] == [  # type: ignore[typeddict-item]
        "one", "one two", "one two three"]
    assert got[0].usage is None and got[-1].usage is not None and got[-1].finish_reason == "stop"


def test_errors_of_ours_are_raised_as_they_were() -> None:
    error = EndpointError("gone", "openai", 503, True, 2.0)
    with pytest.raises(EndpointError) as caught:
        call(ScriptedModel([error]))
    assert caught.value.args == error.args


def test_what_no_script_takes_is_refused() -> None:
    class Own(Exception):
        pass

    for item in (3, Own("x"), [3], None):
        with pytest.raises(UsageError, match="Item 0 of the script is a"):
            ScriptedModel([item])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="messages is empty"):
        asyncio.run(ScriptedModel(["a"])([]))


def test_an_agent_that_is_built_anew_goes_on_in_the_script() -> None:
    model = ScriptedModel(["one", "two"])
    with callsheet.inline():
        texts = [Asker(model).submit(Msg("user", "hi", "user")).get().get_text_content() for _ in range(2)]
    assert texts == ["one", "two"] and len(model.calls) == 2


def test_a_script_travels_to_workers(fleet: Fleet) -> None:
    model = ScriptedModel(["one", [tool_call("find", q=1)], KeyError("gone"), shout])
    replies = []
    for _ in range(2):
        replies.append(Asker(model).submit(Msg("user", "hi", "user")).get(20))
    with pytest.raises(AgentFailed, match="KeyError"):
        Asker(model).submit(Msg("user", "hi", "user")).get(20)
    replies.append(Asker(model).submit(Msg("user", "hi", "user")).get(20))
    assert [reply.get_text_content() for reply in replies] == ["one", None, "HI"]
    assert replies[1].content[0]["name"] == "find" and model.calls == []  # the calls are in the worker's process


# The server ------------------------------------------------------------------------------------------------------

def post(server: StubModelServer, **changes: Any) -> httpx.Response:
    body = {"model": "m", "messages": ASK, **changes}
    return httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=20)


def test_planned_replies_come_in_order_and_beat_chance() -> None:
    with StubModelServer(error_rate=1.0) as server:
        server.plan(Reply(text="Hi", thinking="hm", tools=[("find", {"q": 1})], cached_tokens=2, input_tokens=9),
                    Reply(status=503, message="busy", headers={"Retry-After": "7"}),
                    Reply(body="<html>", content_type="text/html"))
        body = post(server).json()
        message = body["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Hi", "hm")
        assert message["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"q": 1}'}
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        assert body["usage"]["prompt_tokens"] == 9
        assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
        busy = post(server)
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "7") and "busy" in busy.text
        assert post(server).text == "<html>"
        assert post(server).status_code in (429, 500, 503)
        assert [call.path for call in server.calls] == ["/v1/chat/completions"] * 4
        assert server.calls[0].body["messages"] == ASK and server.calls[0].headers["content-type"]


def test_requests_over_the_limit_get_429_and_pass_when_they_waited() -> None:
    with StubModelServer(rpm=180, window=1.0) as server:
        statuses = [post(server) for _ in range(5)]
        passed = [answer for answer in statuses if answer.status_code == 200]
        refused = [answer for answer in statuses if answer.status_code == 429]
        assert len(passed) >= 3 and refused
        assert passed[0].headers["x-ratelimit-limit-requests"] == "3"
        assert passed[0].headers["x-ratelimit-remaining-requests"] == "2"
        assert passed[0].headers["x-ratelimit-reset-requests"].endswith("s")
        assert 0 < float(refused[0].headers["retry-after"]) <= 1
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        time.sleep(float(refused[-1].headers["retry-after"]) + 0.05)
        assert post(server).status_code == 200


def test_a_minute_lets_no_more_pass_than_it_may() -> None:
    with StubModelServer(rpm=5) as server:
        counts = Counter(post(server).status_code for _ in range(12))
    assert counts == {200: 5, 429: 7}


def test_tokens_over_the_limit_get_429() -> None:
    with StubModelServer(tpm=100) as server:
        server.plan(*[Reply(text="a", input_tokens=40, output_tokens=10) for _ in range(3)])
        answers = [post(server) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[1].headers["x-ratelimit-remaining-tokens"] == "0"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60 and "tokens" in answers[2].text


def test_calls_beyond_those_at_once_get_429() -> None:
    async def main() -> list[int]:
        async with StubModelServer(latency=0.5, max_concurrent=2) as server, httpx.AsyncClient() as http:
            answers = await asyncio.gather(*[http.post(f"{server.base_url}/chat/completions",
                                                       json={"model": "m", "messages": ASK}) for _ in range(4)])
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(main()) == [200, 200, 429, 429]


@pytest.mark.parametrize("stream", [False, True])
def test_answers_break_off_as_often_as_asked(stream: bool) -> None:
    async def main() -> list[str]:
        found = []
        for _ in range(20):
            try:
                result = await OpenAIChatModel("m", stream=stream)(ASK)
                if not isinstance(result, ChatResponse):
                    async for _chunk in result:
                        pass
                found.append("whole")
            except EndpointError as exc:
                assert exc.retryable and exc.status in (None, 200), exc
                found.append("broken")
        return found

    with StubModelServer(break_rate=0.5, seed=4) as server, \
            use_settings(Settings.load(endpoints={"openai": {"base_url": server.base_url}})):
        counts = Counter(asyncio.run(main()))
    assert 4 <= counts["broken"] <= 16


def test_a_key_can_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    with StubModelServer(api_key="sk-right") as server, \
            use_settings(Settings.load(endpoints={"openai": {"base_url": server.base_url}})):
        assert post(server).status_code == 401
        assert call(OpenAIChatModel("m", stream=False))
        with pytest.raises(EndpointError, match="Incorrect API key"):
            call(OpenAIChatModel("m", "sk-wrong"))
