"""Answers that would stop the loop, fill the memory or be told wrongly: all that comes from outside has its bounds."""

import asyncio
import gc
import gzip
import json
import time
import zlib
from typing import Any

import httpx
import pytest
from aiohttp import web

from callsheet.errors import CallsheetError
from callsheet.models import AnthropicChatModel, GeminiChatModel, OllamaChatModel, OpenAIChatModel
from callsheet.models.answer import MOST_CALLS, Answer
from callsheet.models.errors import EndpointError
from callsheet.resources import inflate, transport
from callsheet.resources.record import without_trace
from callsheet.resources.tokens import Tokens, numbers_in, tokens_of
from callsheet.resources.usage import UsageReader
from callsheet.settings.endpoints import Price
from tests.model_server import ASK, Handler, says, serving, streams, whole

SSE = "text/event-stream"


def answered(handler: Handler, model: Any) -> tuple[Any, float]:
    """The model's last response or its error, and the most seconds of work that the loop did at a time."""
    gaps = [0.0]

    async def tick() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.002)
            gaps.append(time.thread_time() - began)

    async def ask() -> Any:
        try:
            got = await model(ASK)
            return [chunk async for chunk in got][-1] if model.stream else got
        except CallsheetError as exc:
            return exc

    async def main() -> Any:
        async with serving(handler, model.endpoint, api_key="sk-test", timeout=20):
            ticking = asyncio.create_task(tick())
            gc.disable()  # what it costs to look through the objects of a whole run of tests says nothing
            try:
                return await ask()
            finally:
                gc.enable()
                ticking.cancel()

    return asyncio.run(main()), max(gaps)


def tool_delta(**call: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}


def end(reason: str = "tool_calls") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def claude(*deltas: dict[str, Any], start: dict[str, Any]) -> bytes:
    message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [], "stop_reason": None,
               "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": start},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": 5}}, {"type": "message_stop"}]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


# Streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("events", "calls", "size"), [
    ([tool_delta(index=i, id=f"c{i}", function={"name": "f", "arguments": "{}"}) for i in range(MOST_CALLS)],
     MOST_CALLS, 2),
    ([tool_delta(index=0, id="c", function={"name": "f", "arguments": '{"a": "'}),
      *[tool_delta(index=0, function={"arguments": "x" * 10})] * 5000,
      tool_delta(index=0, function={"arguments": '"}'})], 1, 50_009),
], ids=["many calls", "one that grows"])
def test_a_stream_of_tool_calls_leaves_the_loop_to_others(events: list[Any], calls: int, size: int) -> None:
    got, gap = answered(streams(*events, end()), OpenAIChatModel("m"))
    assert len(got.content) == calls and len(json.dumps(got.content[0]["input"])) == size
    assert gap < 0.5


def test_more_tool_calls_than_anybody_needs_are_refused() -> None:
    message = {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}] * (MOST_CALLS + 1)}
    got, _ = answered(says(whole(message)), OpenAIChatModel("m", stream=False))
    assert isinstance(got, EndpointError) and str(MOST_CALLS) in str(got)


def test_a_long_text_is_shown_less_often_and_whole_at_the_end() -> None:
    answer = Answer(0.0)
    shown = 0
    for _ in range(50_000):
        answer.add({"choices": [{"delta": {"content": "twenty characters -- "}}]})
        shown += answer.due
    assert 800 < shown < 2500
    [block] = answer.response(final=True).content
    assert block["type"] == "text" and block["text"] == "twenty characters -- " * 50_000


@pytest.mark.parametrize("model", [OpenAIChatModel("m"), OllamaChatModel("m", stream=True), AnthropicChatModel("m"),
                                   GeminiChatModel("m")], ids=lambda model: model.endpoint)
def test_an_event_without_end_that_drips_costs_no_more_than_its_bytes(model: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        kind = "application/x-ndjson" if model.endpoint == "ollama" else SSE
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        await response.write(b"data: {" + b"x" * (3 << 20))
        for _ in range(100):
            await response.write(b"y")
            await asyncio.sleep(0)
        return response

    before = time.process_time()
    got, gap = answered(handler, model)
    assert isinstance(got, EndpointError) and gap < 1 and time.process_time() - before < 5


@pytest.mark.parametrize("stream", [
    b"\xef\xbb\xbfdata: HI\n\ndata: END\n\n", b"data:\n\ndata: HI\n\ndata\n\ndata: END\n\ndata: [DONE]\n\n",
    b"event: ping\ndata: now\n\n:x\r\nid: 1\rretry: 5\ndata: HI\r\n\r\nevent: keepalive\ndata: {}\n\ndata: END\n\n",
    b"event: message\ndata: HI\n\nevent: ping\n\ndata: END"], ids=["mark", "empty", "named", "no end"])
def test_a_stream_is_read_by_its_standard(stream: bytes) -> None:
    text = json.dumps({"choices": [{"delta": {"content": "Hi"}}]}).encode()
    body = stream.replace(b"HI", text).replace(b"END", json.dumps(end("stop")).encode())
    got, _ = answered(says(body, content_type=SSE), OpenAIChatModel("m"))
    assert got.content == [{"type": "text", "text": "Hi"}]


def test_an_error_by_its_events_name_is_one() -> None:
    body = b'data: {"choices": []}\n\nevent: error\ndata: {"message": "out of cards"}\n\n'
    got, _ = answered(says(body, content_type=SSE), OpenAIChatModel("m"))
    assert isinstance(got, EndpointError) and "out of cards" in str(got)


def test_claude_and_gemini_are_read_by_the_standard_too() -> None:
    body = claude({"type": "text_delta", "text": "Hi"}, start={"type": "text", "text": ""})
    got, _ = answered(says(b"\xef\xbb\xbfdata:\n\n" + body, content_type=SSE), AnthropicChatModel("m"))
    assert got.content == [{"type": "text", "text": "Hi"}]
    event = {"candidates": [{"content": {"role": "model", "parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}
    body = b"\xef\xbb\xbf: x\n\ndata:\n\ndata: " + json.dumps(event).encode()
    got, _ = answered(says(body, content_type=SSE), GeminiChatModel("m"))
    assert got.content == [{"type": "text", "text": "Hi"}]


def named(*calls: dict[str, Any], whole_answer: bool = False) -> list[tuple[str, str]]:
    """Names and arguments of the calls that an answer of these pieces makes; their ids differ."""
    answer = Answer(0.0)
    if whole_answer:
        answer.add({"choices": [{"message": {"tool_calls": list(calls)}}]})
    else:
        for call in calls:
            answer.add(tool_delta(**call))
    blocks: list[Any] = list(answer.response(final=True).content)
    assert len({block["id"] for block in blocks}) == len(blocks) and all(block["id"] for block in blocks)
    assert [block["id"] for block in answer.response().content] == [block["id"] for block in blocks]  # type: ignore[typeddict-item]
    return [(block["name"], json.dumps(block.get("raw_input", block["input"]))) for block in blocks]


def piece(arguments: str = "", name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"function": {"arguments": arguments, **({"name": name} if name else {})}, **more}


TWO = [("f", '{"a": 1}'), ("f", '{"a": 2}')]


@pytest.mark.parametrize("calls", [
    [piece('{"a"', "f"), piece(": 1}"), piece('{"a"', "f"), piece(": 2}")],
    [piece('{"a"', "f", id="x"), piece(": 1}", id="x"), piece('{"a"', "f", id="y"), piece(": 2}", id="y")],
    [piece('{"a"', "f", id="x"), piece(": 1}"), piece('{"a"', "f", id="y"), piece(": 2}")],
    [piece('{"a"', "f", index=0), piece(": 1}", index=0), piece('{"a"', "f", index=1), piece(": 2}", index=1)],
    [piece('{"a"', "f", index=0, id="x"), piece(": 1}", index=0, id="y"), piece('{"a": 2}', "f", index=0, id="z")],
    [piece('{"a"', "f", index=0, id="x"), piece(": 1}", "f", index=0, id="y"), piece('{"a": 2}', "f", index=1, id="x")],
    [piece('{"a": 1}', "f", index=0), piece('{"a": 2}', "f", index=0), piece("", "f", index=0)],
], ids=["neither", "ids", "first ids", "index", "id anew", "id and name anew", "one index"])
def test_pieces_of_tool_calls_are_told_apart(calls: list[dict[str, Any]]) -> None:
    assert named(*calls) == TWO


def test_calls_of_a_whole_answer_are_its_entries() -> None:
    assert named(piece('{"a": 1}', "f"), piece('{"a": 2}', "f"), whole_answer=True) == TWO
    assert named(piece('{"a": 1}', "f", id="x"), piece('{"a": 2}', "f", id="x"), whole_answer=True) == TWO


@pytest.mark.parametrize(("said", "read"), [("null", "{}"), ("", "{}"), (" ", "{}"), ("[]", "{}"),
                                            (json.dumps('{"a": 1}'), '{"a": 1}'), ("nul", '"nul"'), ("[1]", '"[1]"')])
def test_what_models_give_for_arguments(said: str, read: str) -> None:
    assert named(piece(said, "f"), whole_answer=True) == [("f", read)]


# Bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"a":[' + b'"usage":{' * 300_000, b"[" * 3_000_000, b"[" + b"[]," * 1_000_000],
                         ids=["usage", "deep", "many"])
def test_a_body_that_is_hard_to_read_leaves_the_loop_to_others(body: bytes) -> None:
    got, gap = answered(says(body), OpenAIChatModel("m", stream=False))
    assert isinstance(got, EndpointError) and len(str(got)) < 1000 and gap < 1


def test_a_usage_reader_gives_up() -> None:
    reader, before = UsageReader(), time.process_time()
    for _ in range(50):
        reader.feed(b'"usage":{' * 7000)
    assert time.process_time() - before < 1 and reader.tokens == Tokens()


def deflated(data: bytes) -> bytes:
    pressing = zlib.compressobj(wbits=-15)
    return pressing.compress(data) + pressing.flush()


BODY = whole({"content": "Hi"}).encode()


@pytest.mark.parametrize(("coding", "data"), [
    ("gzip", gzip.compress(BODY)), ("GZip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]) + b"rest"),
    ("deflate", zlib.compress(BODY)), ("deflate", deflated(BODY)), ("gzip, gzip", gzip.compress(gzip.compress(BODY))),
    ("deflate, gzip", gzip.compress(zlib.compress(BODY))), ("identity", BODY)])
def test_compressed_answers(coding: str, data: bytes) -> None:
    got, _ = answered(says(data, Content_Encoding=coding), OpenAIChatModel("m", stream=False))
    assert got.content == [{"type": "text", "text": "Hi"}]


LARGE = b" " * (inflate.MOST + 1)


@pytest.mark.parametrize(("coding", "data", "said"), [
    ("gzip", gzip.compress(LARGE, 1), "inflates"),
    ("gzip, deflate", zlib.compress(gzip.compress(LARGE, 1)), "inflates"),
    ("gzip", gzip.compress(b"") * 2000, "inflates"), ("gzip", BODY, "broken"), ("deflate", b"\xff\xff\xff", "broken"),
    ("br", b"x", "compressed as br"), ("zstd", b"x", "compressed as zstd"), ("gzip," * 9, b"x", "compressed as gzip")])
def test_what_inflates_too_far_or_not_at_all_is_refused(coding: str, data: bytes, said: str) -> None:
    got, gap = answered(says(data, Content_Encoding=coding), OpenAIChatModel("m", stream=False))
    assert isinstance(got, EndpointError) and said in str(got) and not got.retryable and gap < 1


def test_an_error_in_a_strange_coding_is_still_that_error() -> None:
    got, _ = answered(says(b"x", 404, Content_Encoding="br"), OpenAIChatModel("m", stream=False))
    assert isinstance(got, EndpointError) and got.status == 404


def test_a_large_answer_is_inflated_while_it_is_read() -> None:
    """A client's own reading, piece by piece: no more than a part is there at once."""
    async def main() -> None:
        handler = says(gzip.compress(b" " * (20 << 20), 1), Content_Encoding="gzip")
        async with serving(handler) as url, httpx.AsyncClient(transport=transport("openai")) as http, \
                http.stream("POST", f"{url}/x") as response:
            sizes = [len(part) async for part in response.aiter_bytes()]
            assert sum(sizes) == 20 << 20 and max(sizes) <= 64 * 1024
            assert "content-encoding" not in response.headers

    asyncio.run(main())


# What they tell ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("usage", "tokens"), [
    ({"input_tokens": 4, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 2,
      "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2}}, (12, 2, 5, 3, 2)),
    ({"prompt_tokens": 12, "completion_tokens": 2, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3},
     (12, 2, 5, 3, None)),  # a gateway's
    ({"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 19,
      "completion_tokens_details": {"reasoning_tokens": 5}}, (12, 7, None, None, None)),  # xAI, Gemini's other API
    ({"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14, "prompt_cache_hit_tokens": 5},
     (12, 2, 5, None, None)),  # DeepSeek
    ({"prompt_tokens": 12, "completion_tokens": 2,
      "prompt_tokens_details": {"cached_tokens": 5, "cache_creation": {"ephemeral_5m_input_tokens": 3}}},
     (12, 2, 5, 3, None)),  # DashScope
    ({"promptTokenCount": 10, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 1, "thoughtsTokenCount": 1},
     (12, 2, None, None, None)),
    ({"inputTokens": 4, "outputTokens": 2, "cacheReadInputTokens": 5, "cacheWriteInputTokens": 3}, (12, 2, 5, 3, None)),
    ({"prompt_tokens": "12", "completion_tokens": True, "total_tokens": -1}, (None,) * 5)])
def test_usage_of_every_form(usage: dict[str, Any], tokens: tuple[Any, ...]) -> None:
    assert tokens_of(numbers_in(usage)) == tokens
    reader = UsageReader()
    reader.feed(json.dumps({"usage": usage}).encode())
    assert reader.tokens == tokens


def test_what_is_written_to_a_cache_has_prices() -> None:
    price = Price(input=4, output=0, cached=1, written=5, lasting=8)
    assert price.of(10, 0, 2, 6, 2) * 1e6 == 2 * 4 + 2 * 1 + 4 * 5 + 2 * 8
    assert Price(input=4, output=0, written=5).of(4, 0, 0, 4, 2) * 1e6 == 4 * 5
    assert Price(input=4, output=0).of(4, 0, 0, 4, 2) * 1e6 == 4 * 4


TRACE = ("Traceback (most recent call last):\n" + '  File "/app/x.py", line 1, in f\n    raise Full(said)\n' * 30
         + "app.errors.Full: CUDA out of memory.\nTried to allocate 2 GiB")


def test_an_error_is_told_by_its_sentence_not_by_its_traceback() -> None:
    sentence = "app.errors.Full: CUDA out of memory.\nTried to allocate 2 GiB"
    assert without_trace(f"It failed: {TRACE}") == f"It failed: {sentence}"
    assert without_trace("no trace") == "no trace" and "in f" in without_trace(TRACE[:90])
    for body in (TRACE, json.dumps({"error": {"message": TRACE}}), json.dumps({"detail": TRACE})):
        got, _ = answered(says(body, 400), OpenAIChatModel("m", stream=False))
        assert "CUDA out of memory" in str(got) and "/app/x.py" not in str(got)
