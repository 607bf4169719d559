"""A real model behind a real server: `make test-model`. Its answers are its own; their form is what is tested."""

import asyncio
import os
import time
from typing import Any

import pytest
from pydantic import BaseModel, Field

from callsheet import Msg, SequentialPipeline, Settings
from callsheet.formatters import OpenAIChatFormatter, OpenAIMultiAgentFormatter
from callsheet.models import ChatResponse, OpenAIChatModel
from callsheet.settings import use_settings
from tests.agents.asking import Asker
from tests.services import RedisServer, worker

URL = os.environ.get("REAL_MODEL_URL", "")
pytestmark = pytest.mark.skipif(not URL, reason="opt-in: make test-model")
ENDPOINT = {"openai": {"base_url": URL or "http://127.0.0.1:9", "timeout": 300}}
ASK = [{"role": "user", "content": "Name three colours."}]


class Colour(BaseModel):
    """A colour."""

    name: str = Field(max_length=20)
    warm: bool


async def responses(model: OpenAIChatModel, messages: Any = ASK, **kwargs: Any) -> list[ChatResponse]:
    result = await model(messages, **kwargs)
    return [result] if isinstance(result, ChatResponse) else [chunk async for chunk in result]


def ask(model: OpenAIChatModel, messages: Any = ASK, **kwargs: Any) -> list[ChatResponse]:
    with use_settings(Settings.load(endpoints=ENDPOINT)):
        return asyncio.run(responses(model, messages, **kwargs))


def text_of(response: ChatResponse) -> str:
    return "".join(block["text"] for block in response.content if block["type"] == "text")


def test_a_whole_answer_and_a_stream_say_the_same() -> None:
    [whole] = ask(OpenAIChatModel("smollm2", stream=False), temperature=0, seed=1, max_tokens=40)
    grown = ask(OpenAIChatModel("smollm2"), temperature=0, seed=1, max_tokens=40)
    assert len(text_of(whole)) > 5 and text_of(whole) == text_of(grown[-1])
    assert len(grown) > 5 and all(text_of(grown[-1]).startswith(text_of(chunk)) for chunk in grown)
    assert whole.usage is not None and 10 < whole.usage.input_tokens < 100
    assert 1 <= whole.usage.output_tokens <= 40
    assert whole.finish_reason == grown[-1].finish_reason in ("stop", "length")


def test_an_answer_that_is_cut_says_so() -> None:
    [response] = ask(OpenAIChatModel("smollm2", stream=False), max_tokens=3)
    assert response.finish_reason == "length"
    assert response.usage is not None and response.usage.output_tokens <= 3


def test_a_small_model_gives_data_in_a_form() -> None:
    messages = [{"role": "user", "content": 'Describe the colour red as JSON, like {"name": "blue", "warm": false}.'}]
    [response] = ask(OpenAIChatModel("smollm2", stream=False), messages, structured_model=Colour, temperature=0,
                     max_tokens=100)
    assert response.metadata is not None
    Colour.model_validate(response.metadata)


def test_formatters_make_what_it_takes() -> None:
    msgs = [Msg("system", "You are Bob.", "system"), Msg("al", "Hello.", "user"), Msg("bob", "Hi.", "assistant"),
            Msg("carol", "Who are you?", "user")]
    for formatter in (OpenAIChatFormatter(), OpenAIMultiAgentFormatter()):
        [response] = ask(OpenAIChatModel("smollm2", stream=False), asyncio.run(formatter.format(msgs)), max_tokens=30)
        assert text_of(response)


def test_agents_on_a_worker_ask_it(own_redis: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL": URL}
    model = OpenAIChatModel("smollm2", stream=False, generate_kwargs={"max_tokens": 30})
    with worker("callsheet.workers.io", own_redis.url, "--autoscale=20,4", env=env), \
            use_settings(Settings.load(redis_url=own_redis.url)):
        began = time.monotonic()
        jobs = [SequentialPipeline([Asker(model), Asker(model)]).submit(Msg("user", f"Say {word}.", "user"))
                for word in ("hello", "thanks", "sorry", "goodbye")]
        texts = [job.get(300).get_text_content() for job in jobs]
        took = time.monotonic() - began
    assert all(texts)
    with capsys.disabled():
        print(f"\n8 answers of at most 30 tokens by way of a worker: {took:.1f} s")
