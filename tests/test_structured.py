"""Answers in a given form that do not fit at first: one repair, its usage, what is left when it fails too."""

import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel, Field

from callsheet.models import ChatResponse, EndpointError, OpenAIChatModel
from tests.model_server import ASK, Handler, delta, serving, streams, whole


class Verdict(BaseModel):
    """A judgement."""

    score: int = Field(ge=0, le=10)
    why: str = "none"


class Answers:
    """Answers one text after the other, and keeps what it was asked."""

    def __init__(self, *texts: str, stream: bool, by_tool: bool = False) -> None:
        self.texts = list(texts)
        self.stream = stream
        self.by_tool = by_tool
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        if self.by_tool and "response_format" in self.bodies[-1]:
            return web.json_response({"error": {"message": "response_format is unknown here"}}, status=400)
        text = self.texts.pop(0)
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        calls = [{"index": 0, "id": "t", "function": {"name": "Verdict", "arguments": text}}]
        message = {"tool_calls": calls} if self.by_tool else {"content": text}
        if self.stream:
            return await streams(delta(**message), delta("stop"), {"choices": [], "usage": usage})(request)
        return web.Response(text=whole(message), content_type="application/json")


def ask(handler: Handler, model: Any, **kwargs: Any) -> list[ChatResponse]:
    async def main() -> list[ChatResponse]:
        async with serving(handler):
            result = await model(ASK, **kwargs)
            return [result] if isinstance(result, ChatResponse) else [chunk async for chunk in result]

    return asyncio.run(main())


@pytest.mark.parametrize("by_tool", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_is_told_what_does_not_fit_and_asked_once_more(
        stream: bool, by_tool: bool, caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers('{"score": 11}', '{"score": 9, "why": "fine"}', stream=stream, by_tool=by_tool)
    with caplog.at_level(logging.WARNING, "callsheet.models"):
        last = ask(answers, OpenAIChatModel("m", stream=stream), structured_model=Verdict)[-1]
    assert last.metadata == {"score": 9, "why": "fine"}
    first, second = answers.bodies[-2:]
    assert second["messages"][:len(ASK)] == ASK
    said, told = second["messages"][len(ASK):]
    assert said == {"role": "assistant", "content": '{"score": 11}'}
    assert told["role"] == "user" and "score: Input should be less than or equal to 10" in told["content"]
    form = "tools" if by_tool else "response_format"
    assert first[form] == second[form]
    assert last.usage is not None
    expected = (20, 6) if stream else (14, 4)
    assert (last.usage.input_tokens, last.usage.output_tokens) == expected
    assert "model_answer_repair model=m endpoint=openai" in caplog.text and "less than or equal to 10" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_answer_that_does_not_fit_is_an_error(stream: bool) -> None:
    answers = Answers('{"score": 11}', '{"score": -1}', '{"score": 1}', stream=stream)
    with pytest.raises(EndpointError, match=r"does not fit Verdict: score: .*greater than or equal to 0") as caught:
        ask(answers, OpenAIChatModel("m", stream=stream), structured_model=Verdict)
    assert len(answers.bodies) == 2 and caught.value.retryable


def test_an_answer_that_was_cut_is_not_asked_for_again() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert len((await request.json())["messages"]) == len(ASK)
        return web.Response(text=whole({"content": '{"score": 1'}, "length"), content_type="application/json")

    with pytest.raises(EndpointError, match="Raise max_tokens"):
        ask(handler, OpenAIChatModel("m", stream=False), structured_model=Verdict)


def test_a_server_that_fails_over_a_form_is_asked_by_tool() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "response_format" in await request.json():
            return web.json_response({"error": {"message": "[{'loc': ('body', 'response_format')}]"}}, status=500)
        calls = [{"id": "t", "function": {"name": "Verdict", "arguments": '{"score": 3}'}}]
        return web.Response(text=whole({"tool_calls": calls}), content_type="application/json")

    [response] = ask(handler, OpenAIChatModel("m", stream=False), structured_model=Verdict)
    assert response.metadata == {"score": 3, "why": "none"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_lets_nobody_choose_a_tool_is_asked_without(stream: bool) -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        bodies.append(body)
        refusal = {"error": {"message": "The tool_choice parameter does not support being set to object",
                             "code": "invalid_parameter_error"}}
        if "response_format" in body:
            return web.json_response({"error": "json_schema is unavailable now"}, status=400)
        if body["tool_choice"] != "auto":
            # Some servers say so by status, some within the stream.
            return await streams(refusal, done=False)(request) if stream else web.json_response(refusal, status=400)
        calls = [{"index": 0, "id": "t", "function": {"name": "Verdict", "arguments": json.dumps({"score": 3})}}]
        if stream:
            return await streams(delta(tool_calls=calls), delta("tool_calls"))(request)
        return web.Response(text=whole({"tool_calls": calls}, "tool_calls"), content_type="application/json")

    assert ask(handler, OpenAIChatModel("m", stream=stream), structured_model=Verdict)[-1].metadata == {
        "score": 3, "why": "none"}
    assert len(bodies) == 3


def test_tools_are_not_offered_beside_a_form(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers('{"score": 1}', stream=False)
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    ask(answers, OpenAIChatModel("m", stream=False), structured_model=Verdict, tools=tools, tool_choice="find")
    assert "tools" not in answers.bodies[0] and "tool_choice" not in answers.bodies[0]
    assert "model_tools_ignored" in caplog.text
