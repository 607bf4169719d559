"""What providers say in their refusals' bodies: when to come back, that nothing helps, what they do not take."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from callsheet import Msg, ReActAgent, Toolkit
from callsheet.errors import CircuitOpen
from callsheet.formatters import AnthropicChatFormatter, OpenAIChatFormatter
from callsheet.models import AnthropicChatModel, EndpointError, OpenAIChatModel
from callsheet.resources import client, refusals, transport
from callsheet.resources.context import CallContext, call_context
from callsheet.resources.refusals import WANTS_REASONING, is_spent, named_delay, refused_parameter
from callsheet.settings import Endpoint, Settings, use_settings
from tests.model_server import ASK, Handler, delta, serving, streams, whole
from tests.servers import Playing, answer, hang_up
from tests.services import RedisServer

GOOGLE = ('{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [{"violations": [{"quotaId": "Requests%s"'
          '}]}, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36s"}]}}')


@pytest.mark.parametrize(("said", "seconds"), [
    (GOOGLE, 36), ("Please retry in 36.429760048s.", 36.43), ("Please try again in 6m0s. Visit", 360),
    ("Please try again in 859ms.", 0.859), ("Rate limit. Please retry after 45 seconds. Please contact", 45),
    ("Try again in 1h2m3.5s", 3723.5), ('{"retry_after": 1.5}', 1.5), ('{"retry_after_ms": 250}', 0.25),
    ('{"error": "loading", "estimated_time": 20.0}', 20), ("Try again in 2 minutes", 120),
    ("try again in 3 days", 259_200), ("Try again later", None), ("Limit 7000", None), ("", None)])
def test_a_wait_is_found_in_a_body(said: str, seconds: float | None) -> None:
    found = named_delay(said)
    assert found == (None if seconds is None else pytest.approx(seconds, rel=1e-3))


@pytest.mark.parametrize(("status", "said", "spent"), [
    (429, GOOGLE % "PerDay", True), (429, GOOGLE % "PerMinute", False), (503, GOOGLE % "PerDay", False),
    (429, '{"error": {"type": "exceeded_current_quota_error"}}', True),
    (429, '{"error": {"message": "tokens per min (TPM): Limit 30000, Requested 35012."}}', True),
    (429, '{"error": {"message": "TPM: Limit 30000, Used 29000, Requested 3000."}}', False)])
def test_a_quota_that_no_retry_mends_is_known(status: int, said: str, spent: bool) -> None:
    assert is_spent(status, said.encode()) is spent


FORCED = {"tool_choice": "required", "thinking": {}, "temperature": 0}


@pytest.mark.parametrize(("asked", "said", "name"), [
    (FORCED, "Thinking may not be enabled when tool_choice forces tool use.", "tool_choice"),
    ({"tool_choice": "auto"}, '"auto" tool choice requires --enable-auto-tool-choice', None),
    ({"stream_options": {}}, '{"loc":["body","stream_options","include_usage"],"msg":"Extra inputs are not permitted"}',
     "stream_options"),
    ({"temperature": 0}, "Unsupported value: 'temperature' does not support 0. Only the default", "temperature"),
    ({"temperature": 5}, "Invalid value for temperature: must be at most 2", None),
    ({"max_tokens": 5}, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),
    ({"parallel_tool_calls": False}, "Unknown parameter: parallel_tool_calls", "parallel_tool_calls"),
    ({"think": True}, '"gemma" does not support thinking', "think"),
    ({"messages": [{"name": "bob"}]}, '"loc":["body","messages",0,"user","name"],"msg":"Extra inputs are not permitted',
     "name"),
    ({"messages": [{"reasoning_content": "x"}]}, "Unknown parameter: 'messages[1].reasoning_content'",
     "reasoning_content"),
    ({"messages": []}, "thinking is enabled but reasoning_content is missing in assistant message", WANTS_REASONING),
    ({"model": "m"}, "Unknown model m", None), ({"seed": 1}, "The server had an unexpected error", None)])
def test_a_parameter_that_is_not_taken_is_known(asked: dict[str, Any], said: str, name: str | None) -> None:
    assert refused_parameter(asked, said) == name


def endpoint(url: str, **more: Any) -> Endpoint:
    quick = {"backoff": 0.01, "backoff_max": 0.02}
    return Endpoint(base_url=url, **{"breaker": {"enabled": False}, "retry": quick, **more})


def test_a_wait_in_the_body_is_waited_for_and_one_that_is_too_long_is_not() -> None:
    async def main() -> tuple[Any, Any, float]:
        async with Playing(answer(429, "Please try again in 200ms."), answer(200, "fine")) as server:
            began = time.monotonic()
            fine = await client(endpoint(server.url)).post("x", content=b"ask")
            took = time.monotonic() - began
        async with Playing(answer(429, "Please retry after 86400 seconds.")) as server:
            return fine, await client(endpoint(server.url)).post("x", content=b"ask"), took

    fine, never, took = asyncio.run(main())
    assert fine.text == "fine" and took >= 0.2
    assert (never.status_code, never.headers["retry-after"]) == (429, "86400.000")
    assert never.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("part", [answer(503), hang_up])
def test_an_sdk_does_not_multiply_our_tries(part: Any) -> None:
    anthropic = pytest.importorskip("anthropic")
    from callsheet.resources.httpx2 import Httpx2Transport, httpx2

    async def main() -> int:
        async with Playing(part) as server:
            through = Httpx2Transport(transport(endpoint(server.url, retry={
                "attempts": 3, "backoff": 0.01, "backoff_max": 0.02, "after_sent": True})))
            sdk = anthropic.AsyncAnthropic(api_key="k", base_url=server.url, max_retries=1,
                                           http_client=httpx2.AsyncClient(transport=through))
            with pytest.raises(anthropic.APIError):
                await sdk.messages.create(model="m", max_tokens=5, messages=ASK)
            return len(server.requests)

    assert asyncio.run(main()) == (3 if part is not hang_up else 4)  # nobody can tell an SDK that nobody answered


class Verdict(BaseModel):
    score: int


class Strict:
    """A server that refuses what it does not take, each at its own request, and keeps what it was asked."""

    def __init__(self, status: int, *names: str, stream: bool = False) -> None:
        self.status, self.names, self.stream = status, names, stream
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        choice = body.get("tool_choice")
        for name in self.names:
            there = choice not in (None, "auto") if name == "tool_choice" else name in body or any(
                name in message for message in body["messages"])
            if there:
                said = f"('body', 'messages', 0, '{name}'): Extra inputs are not permitted: {name}"
                return web.json_response({"error": {"message": said}}, status=self.status)
        said = {"content": "Seven."}
        if body.get("tools"):
            said["tool_calls"] = [{"index": 0, "id": "t", "function": {  # type: ignore[assignment]
                "name": body["tools"][-1]["function"]["name"], "arguments": '{"score": 7}'}}]
        if self.stream:
            return await streams(delta(**said), delta("stop"))(request)
        return web.Response(text=whole(said), content_type="application/json")


async def asked(model: Any, **kwargs: Any) -> Any:
    reply = await model([{"role": "user", "content": "x", "name": "al"}], **kwargs)
    if model.stream:
        async for chunk in reply:
            last = chunk
        return last
    return reply


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_server_does_not_take_is_left_out_and_remembered(stream: bool, status: int) -> None:
    server = Strict(status, "stream_options", "temperature", "name", "response_format", "tool_choice", stream=stream)

    async def main() -> None:
        # Neither retries nor breaker: such an answer says nothing of the server's health.
        async with serving(server, retry={"attempts": 3, "backoff": 5.0}, breaker={"minimum": 1}):
            for _ in range(3):
                got = await asked(OpenAIChatModel("m", stream=stream, generate_kwargs={"temperature": 0}),
                                  structured_model=Verdict)
                assert got.metadata == {"score": 7}

    asyncio.run(main())
    assert len(server.bodies) == (8 if stream else 7)
    last = server.bodies[-1]
    assert last["tool_choice"] == "auto" and last["messages"] == [{"role": "user", "content": "x"}]
    assert not last.keys() & {"stream_options", "temperature", "response_format"}


def test_a_parameter_goes_by_its_other_name_and_none_is_not_sent() -> None:
    server = Strict(400, "max_tokens")

    async def main() -> None:
        async with serving(server):
            await asked(OpenAIChatModel("m", stream=False), max_tokens=9, seed=None)

    asyncio.run(main())
    assert server.bodies[-1]["max_completion_tokens"] == 9 and "seed" not in server.bodies[0]


def test_what_concerns_one_form_alone_is_not_remembered_and_what_is_wrong_is_an_error() -> None:
    bodies: list[dict[str, Any]] = []

    async def picky(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        if "response_format" in bodies[-1]:
            return web.json_response({"error": {"message": "Invalid schema for response_format 'Verdict'"}}, status=400)
        if bodies[-1].get("temperature") == 5:
            return web.json_response({"error": {"message": "temperature: must be at most 2"}}, status=400)
        return web.Response(text=whole({"content": '{"score": 7}'}), content_type="application/json")

    async def main() -> None:
        async with serving(picky):
            for _ in range(2):
                await asked(OpenAIChatModel("m", stream=False), structured_model=Verdict)
            with pytest.raises(EndpointError, match="must be at most 2"):
                await asked(OpenAIChatModel("m", stream=False), temperature=5)

    asyncio.run(main())
    assert ["response_format" in body for body in bodies] == [True, False, True, False, False]


def test_thoughts_that_a_server_wants_with_each_message_are_filled_in() -> None:
    async def kimi(request: web.Request) -> web.StreamResponse:
        said = (await request.json())["messages"]
        if any(message["role"] == "assistant" and not message.get("reasoning_content") for message in said):
            text = "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1"
            return web.json_response({"error": {"message": text}}, status=400)
        return web.Response(text=whole({"content": "Fine."}), content_type="application/json")

    async def main() -> Any:
        async with serving(kimi):
            return await OpenAIChatModel("m", stream=False)([*ASK, {"role": "assistant", "content": "x"}, *ASK])

    assert asyncio.run(main()).content[0]["text"] == "Fine."


@pytest.mark.parametrize("cls", [AnthropicChatModel, OpenAIChatModel])
def test_a_conversation_begins_and_ends_with_a_user_where_the_provider_wants_that(cls: Any) -> None:
    pytest.importorskip("anthropic")
    roles: list[list[str]] = []

    async def strict(request: web.Request) -> web.StreamResponse:
        roles.append([message["role"] for message in (await request.json())["messages"]])
        if roles[-1][-1:] != ["user"]:
            text = "This model does not support assistant message prefill: it must end with a user message."
            return web.json_response({"error": {"type": "invalid_request_error", "message": text}}, status=400)
        if cls is OpenAIChatModel:
            return web.Response(text=whole({"content": "x"}), content_type="application/json")
        return web.json_response({"id": "m", "type": "message", "role": "assistant", "model": "c",
                                  "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn",
                                  "usage": {"input_tokens": 5, "output_tokens": 5}})

    async def main() -> None:
        async with serving(strict, cls("m").endpoint, api_key="sk-test"):
            for _ in range(2):
                await cls("m", stream=False)([{"role": "system", "content": "Be."},
                                              {"role": "assistant", "content": "So far."}])
            await cls("m", stream=False)([{"role": "system", "content": "Be."}, *ASK])

    asyncio.run(main())
    first = ["system"] if cls is OpenAIChatModel else ["user"]
    asked = [*first, "assistant"]
    assert roles[:3] == [asked, [*asked, "user"], [*asked, "user"]]  # learned
    assert roles[3:] == [["system", "user"] if cls is OpenAIChatModel else ["user"]]


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


def look() -> Any:
    """Show."""
    return [PICTURE]


@pytest.mark.parametrize("by_tool", [False, True])
def test_a_picture_that_the_provider_refuses_does_not_break_the_agent(by_tool: bool) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

    async def blind(request: web.Request) -> web.StreamResponse:
        said = json.dumps((await request.json())["messages"])
        if "image_url" in said:
            return web.json_response({"error": {"message": "You uploaded an unsupported image."}}, status=400)
        calls = {"tool_calls": [call]} if by_tool and "cannot be shown" not in said else {}
        return web.Response(text=whole({"content": "Fine.", **calls}), content_type="application/json")

    kit = Toolkit()
    kit.register_tool_function(look)
    agent = ReActAgent("bob", "You see.", OpenAIChatModel("m", stream=False),
                       OpenAIChatFormatter(promote_tool_result_images=True), kit)
    agent.set_console_output_enabled(False)

    async def main() -> None:
        async with serving(blind):
            if not by_tool:
                with pytest.raises(EndpointError, match="unsupported image"):
                    await agent.reply(Msg("al", [PICTURE], "user"))  # type: ignore[list-item]
            for _ in range(2):
                assert (await agent.reply(Msg("al", "And now?", "user"))).get_text_content() == "Fine."

    asyncio.run(main())


def claude(thinks: bool) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["tool_choice"]["type"] != "auto":
            assert not thinks  # it is known beforehand
            return web.json_response({"type": "error", "error": {"type": "invalid_request_error", "message": (
                "Thinking may not be enabled when tool_choice forces tool use.")}}, status=400)
        content = [{"type": "text", "text": "Seven."},
                   {"type": "tool_use", "id": "t", "name": "generate_response", "input": {"score": 7}}]
        return web.json_response({"id": "m", "type": "message", "role": "assistant", "model": "c", "content": content,
                                  "stop_reason": "tool_use", "usage": {"input_tokens": 5, "output_tokens": 5}})

    return handler


@pytest.mark.parametrize("thinks", [False, True])
def test_a_choice_that_claude_refuses_is_left_to_it(thinks: bool) -> None:
    pytest.importorskip("anthropic")
    thinking = {"type": "enabled", "budget_tokens": 1024} if thinks else None
    agent = ReActAgent("judge", "You judge.", AnthropicChatModel("c", stream=False, thinking=thinking),
                       AnthropicChatFormatter())
    agent.set_console_output_enabled(False)

    async def main() -> Msg:
        async with serving(claude(thinks), "anthropic", api_key="k"):
            return await agent.reply(Msg("user", "How good?", "user"), structured_model=Verdict)

    assert asyncio.run(main()).metadata == {"score": 7}


def test_what_one_worker_learned_the_fleet_knows_for_a_while(redis_server: RedisServer) -> None:
    server = Strict(400, "tool_choice")
    prefix = f"learned-{time.time_ns()}:"

    async def main() -> None:
        async with serving(server, redis_url=redis_server.url, key_prefix=prefix):
            for _ in range(2):
                refusals._known.clear()  # as in another process
                with call_context(CallContext(call="c1")):
                    agent = ReActAgent("judge", "s", OpenAIChatModel("m", stream=False), OpenAIChatFormatter())
                    agent.set_console_output_enabled(False)
                    await agent.reply(Msg("user", "x", "user"), structured_model=Verdict)

    asyncio.run(main())
    assert [body["tool_choice"] for body in server.bodies] == ["required", "auto", "auto"]
    [key] = redis_server.client().keys(f"{prefix}learned:*")
    assert 0 < redis_server.client().ttl(key) <= refusals.KEPT


def test_a_server_that_fails_is_left_alone_all_the_same() -> None:
    async def main() -> None:
        async with Playing(answer(500, json.dumps({"error": {"message": "internal error"}}))) as server:
            with use_settings(Settings.load(endpoints={"openai": {
                    "base_url": server.url, "retry": {"attempts": 1}, "breaker": {"minimum": 1}}}, inline=True)):
                async with asyncio.timeout(10):
                    while True:
                        try:
                            await asked(OpenAIChatModel("m", stream=False), structured_model=Verdict)
                        except CircuitOpen:
                            return
                        except EndpointError:
                            await asyncio.sleep(0.01)

    asyncio.run(main())
