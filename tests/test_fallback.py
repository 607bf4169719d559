"""Who is asked when an endpoint or a model cannot answer, and when nobody is."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import callsheet
from callsheet import AgentBase, Msg
from callsheet.errors import CallsheetError, CircuitOpen, MissingKey, UsageError
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.models import ChatModelBase, ChatResponse, EndpointError, FallbackModel, OpenAIChatModel
from callsheet.models.fallback import falls_back
from callsheet.resources.timings import counts
from callsheet.settings import Settings, use_settings
from tests.model_server import ASK, delta, streams, whole
from tests.servers import Part, Playing, answer, break_off, hang_up
from tests.services import free_port

ONE_TRY = {"retry": {"attempts": 1}, "timeout": 2}
SECOND = answer(200, whole({"content": "from the second"}))
TOO_MANY = answer(429, '{"error": {"message": "slow down"}}')
SPENT = answer(429, '{"error": {"message": "x", "code": "insufficient_quota"}}')


@asynccontextmanager
async def two(first: Part | None, second: Part = SECOND, **endpoint: Any) -> AsyncIterator[tuple[Playing, Playing]]:
    """Endpoints `first`, which has `second` as its fallback, and `second`; without a part nobody listens."""
    async with Playing(first or answer()) as one, Playing(second) as other:
        url = one.url if first is not None else f"http://127.0.0.1:{free_port()}/v1"
        with use_settings(Settings.load(endpoints={
                "first": {"base_url": url, "fallback": ["second"], **ONE_TRY, **endpoint},
                "second": {"base_url": other.url, **ONE_TRY}})):
            yield one, other


def text(response: ChatResponse) -> str:
    return "".join(block.get("text", "") for block in response.content)  # type: ignore[attr-defined]


async def read(model: ChatModelBase, **kwargs: Any) -> str:
    """The last words of a model."""
    reply = await model(ASK, **kwargs)
    if isinstance(reply, ChatResponse):
        return text(reply)
    chunks = [chunk async for chunk in reply]
    return text(chunks[-1])


def models(stream: bool = False) -> list[ChatModelBase]:
    """An endpoint with a fallback, and two models in a row on endpoints without."""
    return [OpenAIChatModel("m", stream=stream, endpoint="first"),
            FallbackModel([OpenAIChatModel("m", stream=stream, endpoint="first"),
                           OpenAIChatModel("n", stream=stream, endpoint="second")])]


FAILURES = [None, answer(500), answer(529), answer(503), TOO_MANY, SPENT, answer(401), answer(402), answer(403),
            hang_up, break_off, answer(200, '{"choices": [{"mess'),
            answer(200, '{"error": {"message": "x", "code": "server_error"}}')]


@pytest.mark.parametrize("part", FAILURES)
@pytest.mark.parametrize("which", [0, 1])
def test_another_is_asked_where_one_fails(part: Part | None, which: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with two(part, fallback=[] if which else ["second"]) as (_, second):
            assert await read(models()[which]) == "from the second"
            assert json.loads(second.requests[0])["model"] == ("n" if which else "m")

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    [line] = [line for line in caplog.messages if line.startswith("model_fallback")]
    assert "first" in line and "second" in line and "reason=" in line


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize("which", [0, 1])
def test_nobody_is_asked_where_the_call_is_wrong(status: int, which: int) -> None:
    async def main() -> None:
        async with two(answer(status, '{"error": {"message": "wrong"}}')) as (_, second):
            with pytest.raises(EndpointError, match="wrong"):
                await read(models()[which])
            with pytest.raises(ValueError, match="empty"):
                await models()[which]([])
            assert second.requests == []

    asyncio.run(main())


def test_retries_come_first() -> None:
    async def main() -> None:
        async with two(answer(503), retry={"attempts": 3, "backoff": 0.01}) as (first, second):
            assert await read(models()[0]) == "from the second"
            assert (len(first.requests), len(second.requests)) == (3, 1)

    asyncio.run(main())


def test_an_open_breaker_costs_the_first_no_request() -> None:
    async def main() -> None:
        async with two(answer(500), breaker={"minimum": 1, "cooldown": 60}) as (first, second):
            assert await read(models()[0]) == "from the second"
            await asyncio.sleep(0.01)
            for _ in range(5):
                assert await read(models()[0]) == "from the second"
            assert (len(first.requests), len(second.requests)) == (1, 6)

    asyncio.run(main())


def test_a_key_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def main() -> None:
        async with two(answer(), api_key_file=str(tmp_path / "none")) as (first, _):
            assert await read(models()[0]) == "from the second"
            assert first.requests == []
        async with two(answer()):
            known = callsheet.get_settings().endpoints["second"].model_dump()
        with use_settings(Settings.load(endpoints={
                "first": {"base_url": "https://api.openai.com/v1", "fallback": ["second"]}, "second": known})):
            with pytest.raises(EndpointError) as caught:  # the second's server has gone
                await read(models()[0])
            assert caught.value.endpoint == "second"

    asyncio.run(main())


def test_all_fail_and_the_last_error_tells() -> None:
    async def main() -> None:
        async with two(answer(500), answer(400, '{"error": {"message": "second"}}')):
            for model in models():
                with pytest.raises(EndpointError, match="second"):
                    await read(model)

    asyncio.run(main())


def test_an_endpoints_key_and_headers_stay_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with two(answer(500), api_key="sk-first", headers={"X-Team": "first"}) as (first, second):
            assert await read(OpenAIChatModel("m", "sk-own", stream=False, endpoint="first")) == "from the second"
            assert first.heads[0]["Authorization"] == "Bearer sk-own"
            assert "Authorization" not in second.heads[0] and "X-Team" not in second.heads[0]

    asyncio.run(main())


def test_a_model_with_an_address_of_its_own_does_not_go_elsewhere() -> None:
    async def main() -> None:
        async with two(SECOND) as (_, second), Playing(answer(500)) as own:
            with pytest.raises(EndpointError):
                await read(OpenAIChatModel("m", stream=False, endpoint="first", client_kwargs={"base_url": own.url}))
            assert second.requests == []

    asyncio.run(main())


# Streams ----------------------------------------------------------------------------------------------------------

STREAM = streams(delta(content="from "), delta(content="the second"), delta("stop"))


@pytest.mark.parametrize("part", [
    None, answer(503), streams({"error": {"message": "overloaded", "code": 529}}, done=False),
    streams(delta(role="assistant"), done=False), streams(delta(role="assistant"), done=False, cut=True)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_stream_falls_back_before_its_first_chunk(part: Part | None, which: int) -> None:
    async def main() -> None:
        async with two(part, STREAM, fallback=[] if which else ["second"]):
            reply = await models(stream=True)[which](ASK)
            assert not isinstance(reply, ChatResponse)
            heard = [text(chunk) async for chunk in reply]
            assert (heard[0], heard[-1]) == ("from ", "from the second")

    asyncio.run(main())


@pytest.mark.parametrize("which", [0, 1])
def test_a_stream_that_has_begun_stays(which: int) -> None:
    async def main() -> None:
        async with two(streams(delta(content="Once"), done=False, cut=True), STREAM) as (_, second):
            heard = []
            with pytest.raises(EndpointError, match="broke off"):
                async for chunk in await models(stream=True)[which](ASK):  # type: ignore[union-attr]
                    heard.append(text(chunk))
            assert heard == ["Once"] and second.requests == []

    asyncio.run(main())


def test_a_stream_that_nobody_reads_is_closed() -> None:
    gone = asyncio.Event()

    async def endless(request: Any) -> Any:
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: " + json.dumps(delta(content="x")).encode() + b"\n\n")
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async def main() -> None:
        async with two(endless):
            await models(stream=True)[1](ASK)
            gc.collect()
            await asyncio.wait_for(gone.wait(), 10)

    asyncio.run(main())


# The class --------------------------------------------------------------------------------------------------------

def test_it_travels_and_shows_no_key() -> None:
    model = FallbackModel([OpenAIChatModel("a", endpoint="first"), OpenAIChatModel("b", endpoint="second")])
    written = json.loads(json.dumps(Writer().write(model, "the model")))
    again = Reader(AllowList(())).read(written)
    assert isinstance(again, FallbackModel) and repr(again) == repr(model)
    assert (again.model_name, again.stream) == ("a", True)
    secret = FallbackModel([OpenAIChatModel("a", "sk-secret")])
    with pytest.raises(CallsheetError) as caught:
        Writer().write(secret, "the model")
    assert "sk-secret" not in str(caught.value) + repr(secret)


@pytest.mark.parametrize(("given", "said"), [
    ([], "at least one"), (["gpt-4o"], "not a str"),
    ([OpenAIChatModel("a"), OpenAIChatModel("b", stream=False)], "the same stream=")])
def test_what_cannot_be_a_fallback_model(given: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FallbackModel(given)


class Plain(ChatModelBase):
    """A model of the user's own."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("plain", False)
        self.fails = fails

    async def __call__(self, *args: Any, **kwargs: Any) -> ChatResponse:
        if self.fails:
            raise CircuitOpen("left alone", "x", 1.0)
        return ChatResponse(content=[{"type": "text", "text": f"{args} {kwargs}"}])  # type: ignore[list-item]


def test_it_takes_any_model_and_hands_arguments_on_as_they_are() -> None:
    reply = asyncio.run(FallbackModel([Plain(fails=True), FallbackModel([Plain()])])(1, two=2))  # type: ignore[arg-type]
    assert isinstance(reply, ChatResponse) and text(reply) == "(1,) {'two': 2}"


def test_what_falls_back_and_what_does_not() -> None:
    assert falls_back(CircuitOpen("x")) and falls_back(MissingKey("x")) and falls_back(EndpointError("x", "e"))
    assert not falls_back(EndpointError("x", "e", 400)) and not falls_back(ValueError("x"))
    assert not falls_back(UsageError("x"))


class Asks(AgentBase):
    def __init__(self, name: str, model: ChatModelBase) -> None:
        self.name, self.model = name, model

    async def reply(self, msg: Msg) -> Msg:
        return Msg(self.name, text(await self.model(ASK)), "assistant")  # type: ignore[arg-type]


def test_a_fallback_is_counted() -> None:
    async def main() -> None:
        async with two(answer(500)):
            label = repr(models()[0])
            before = counts().get(("fallbacks", label, "EndpointError 500"), 0)
            with callsheet.inline():
                job = Asks("a", models()[0]).submit(Msg("u", "x", "user"))
                assert (await job).content == "from the second"
            usage = job.usage.by("endpoint")
            assert (usage["first"].errors, usage["first"].fallbacks) == (1, 0)
            assert (usage["second"].errors, usage["second"].fallbacks) == (0, 1)
            assert counts()["fallbacks", label, "EndpointError 500"] == before + 1

    asyncio.run(main())
