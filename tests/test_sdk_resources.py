"""Models over providers' SDKs: the same retries, breaker, fallback and accounting."""

import asyncio
import importlib.util
from typing import Any

import pytest

import callsheet
from callsheet import AgentBase, Msg
from callsheet.errors import CircuitOpen, ModelError
from callsheet.models import AnthropicChatModel, ChatModelBase, ChatResponse, FallbackModel, GeminiChatModel
from callsheet.models.openai import OpenAIChatModel
from callsheet.resources import breaker
from callsheet.resources.record import model_in
from callsheet.settings import Settings, use_settings
from callsheet.testing import Reply, StubModelServer
from tests.conftest import missing

ASK = [{"role": "user", "content": "Whales sing."}]
MODELS: list[Any] = [OpenAIChatModel, AnthropicChatModel, GeminiChatModel]
OVERLOADED = Reply(status=529, message="Overloaded")


@pytest.fixture(autouse=True)
def installed() -> None:
    for package, module in (("anthropic", "anthropic"), ("google", "google.genai")):
        if importlib.util.find_spec(package) is None or importlib.util.find_spec(module) is None:
            missing(f"The SDK {module}")


def at(model: Any, server: StubModelServer, **more: Any) -> dict[str, Any]:
    """The endpoint of a model's provider, at the stub server."""
    url = server.base_url if model.endpoint == "openai" else server.url
    return {model.endpoint: {"base_url": url, "api_key": "k", "timeout": 5,
                             "retry": {"attempts": 3, "backoff": 0.01}, **more}}


async def text(model: ChatModelBase) -> str:
    reply = await model(ASK)
    if not isinstance(reply, ChatResponse):
        async for chunk in reply:
            last = chunk
        reply = last
    return "".join(block.get("text", "") for block in reply.content)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", MODELS)
def test_a_refused_call_is_sent_again(cls: Any, stream: bool) -> None:
    model = cls("m", stream=stream)
    with StubModelServer() as server:
        server.plan(OVERLOADED, Reply(status=429, headers={"Retry-After": "0"}), Reply(text="sings"))
        with use_settings(Settings.load(endpoints=at(model, server))):
            assert asyncio.run(text(model)) == "sings"
        assert server.requests == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", MODELS)
def test_a_wait_for_ones_turn_is_no_part_of_the_timeout(cls: Any, stream: bool) -> None:
    model = cls("m", stream=stream)

    async def main() -> list[str]:
        return await asyncio.gather(*[text(model) for _ in range(3)])

    with StubModelServer() as server:
        server.plan(*[Reply(text="sings")] * 3)
        endpoints = at(model, server, timeout=0.8, rpm=60, window=1, burst=1)
        with use_settings(Settings.load(endpoints=endpoints, inline=True)):
            assert asyncio.run(main()) == ["sings"] * 3


@pytest.mark.parametrize("cls", MODELS)
def test_an_open_breaker_is_told_as_it_is(cls: Any) -> None:
    model = cls("m", stream=False)

    async def main() -> None:
        with pytest.raises(ModelError):
            await text(model)
        async with asyncio.timeout(10):
            while all(one.closed for key, one in breaker._kept.items() if server.url in str(key)):
                await asyncio.sleep(0.01)  # failures are reported off the calls' path
        with pytest.raises(CircuitOpen):
            await text(model)

    with StubModelServer() as server:
        server.plan(*[OVERLOADED] * 3)
        with use_settings(Settings.load(endpoints=at(model, server, breaker={"minimum": 3, "cooldown": 60}))):
            asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", MODELS[1:])
def test_models_of_several_providers_stand_in_for_each_other(cls: Any, stream: bool) -> None:
    first, second = cls("m", stream=stream), OpenAIChatModel("n", stream=stream)
    with StubModelServer() as bad, StubModelServer() as good:
        bad.plan(*[OVERLOADED] * 3)
        good.plan(Reply(text="sings"))
        with use_settings(Settings.load(endpoints={**at(first, bad), **at(second, good)})):
            assert asyncio.run(text(FallbackModel([first, second]))) == "sings"


class Asks(AgentBase):
    def __init__(self, name: str, model: ChatModelBase) -> None:
        self.name, self.model = name, model

    async def reply(self, msg: Msg) -> Msg:
        return Msg(self.name, await text(self.model), "assistant")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cls", MODELS)
def test_what_it_took_is_counted(cls: Any, stream: bool) -> None:
    model = cls("big-1", stream=stream)
    with StubModelServer() as server:
        server.plan(OVERLOADED, Reply(text="sings", input_tokens=100, output_tokens=10, cached_tokens=40))
        prices = {"big-*": {"input": 10, "output": 20, "cached": 1}}
        with use_settings(Settings.load(endpoints=at(model, server), prices=prices)), callsheet.inline():
            job = Asks("a", model).submit(Msg("u", "x", "user"))
            assert job.get().get_text_content() == "sings"
    usage = job.usage
    assert (usage.calls, usage.errors, usage.retries) == (1, 0, 1)
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (100, 10, 40)
    assert usage.cost == pytest.approx((60 * 10 + 40 * 1 + 10 * 20) / 1e6)
    assert list(usage.by("model")) == ["big-1"] and list(usage.by("endpoint")) == [model.endpoint]


def test_a_model_that_the_address_names() -> None:
    assert model_in("/v1beta/models/gemini-2.0-flash:streamGenerateContent") == "gemini-2.0-flash"
    assert model_in("/v1/chat/completions") == ""
