"""Whose call a request belongs to, and what its record holds when it has ended."""

import asyncio
import gzip
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import callsheet
from callsheet import AgentBase, Msg, SequentialPipeline
from callsheet.errors import SettingsError, UsageError
from callsheet.resources import aclose_all, client, record, transport
from callsheet.resources.context import CallContext, call_context, current_call
from callsheet.resources.estimate import MEDIA, estimate
from callsheet.resources.record import CallRecord
from callsheet.resources.usage import UsageReader
from callsheet.settings import Endpoint, Settings
from tests.agents.contexts import SubmitsTeller, Tells, TellsPlainly
from tests.fleet import Fleet
from tests.test_resources import Counting

OPENAI = {"id": "1", "choices": [{"message": {"content": 'a "usage": {"prompt_tokens": 999} b'}}],
          "usage": {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46,
                    "prompt_tokens_details": {"cached_tokens": 5}}}
RESPONSES = {"output": [], "usage": {"input_tokens": 12, "output_tokens": 34, "input_tokens_details":
                                     {"cached_tokens": 5}}}
ANTHROPIC = [
    {"type": "message_start", "message": {"content": [], "usage": {
        "input_tokens": 4, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"text": "hello"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 34}},
]
GEMINI = [{"candidates": [], "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 1}},
          {"candidates": [], "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 30,
                                               "thoughtsTokenCount": 4, "cachedContentTokenCount": 5}}]
CHUNKS = [{"choices": [{"delta": {"content": "x" * 50}}], "usage": None}] * 3 + [OPENAI]


def sse(events: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


BODIES = {"openai": json.dumps(OPENAI).encode(), "openai pretty": json.dumps(OPENAI, indent=4).encode(),
          "responses": json.dumps(RESPONSES).encode(), "anthropic stream": sse(ANTHROPIC),
          "gemini stream": sse(GEMINI), "gemini array": json.dumps(GEMINI, indent=2).encode(),
          "openai stream": sse(CHUNKS)}


@given(which=st.sampled_from(sorted(BODIES)), cuts=st.lists(st.integers(0, 2000), max_size=30))
def test_usage_is_read_from_any_pieces_of_any_providers_body(which: str, cuts: list[int]) -> None:
    body, reader = BODIES[which], UsageReader()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        reader.feed(body[start:end])
    assert (*reader.tokens[:3],) == (12, 34, 5)


@given(cuts=st.lists(st.integers(0, 400), max_size=30))
def test_ollamas_counts_are_read_from_any_pieces(cuts: list[int]) -> None:
    said = 'say "eval_count": 999, now'
    events = [{"message": {"content": said}, "done": False},
              {"message": {"content": ""}, "done": True, "prompt_eval_count": 12, "eval_duration": 7, "eval_count": 34}]
    body, reader = "".join(json.dumps(event) + "\n" for event in events).encode(), UsageReader()
    for start, end in itertools.pairwise([0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]):
        reader.feed(body[start:end])
    assert (*reader.tokens[:3],) == (12, 34, None)


@given(body=st.binary(max_size=400), pieces=st.integers(1, 20))
def test_bytes_that_hold_no_usage_tell_nothing_and_are_not_kept(body: bytes, pieces: int) -> None:
    reader = UsageReader()
    for _ in range(pieces):
        reader.feed(body.replace(b'"usage', b""))
    assert reader.tokens.input is None
    assert len(reader._rest) <= 64


def test_a_usage_object_without_end_is_not_kept_for_ever() -> None:
    reader = UsageReader()
    reader.feed(b'{"usage": {"text": "')
    for _ in range(100):
        reader.feed(b"x" * 4096)
        assert len(reader._rest) < 2 * 16 * 1024


class Answers:
    """A server that answers with given bytes."""

    def __init__(self, body: bytes, **headers: str) -> None:
        self.body, self.headers, self.accepted = body, headers, ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.accepted = request.headers.get("accept-encoding", "")
        answer = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in self.headers.items()})
        await answer.prepare(request)
        for start in range(0, len(self.body), 7):
            await answer.write(self.body[start:start + 7])
        return answer

    async def __aenter__(self) -> Endpoint:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.handle)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return Endpoint(base_url=f"http://127.0.0.1:{self.runner.addresses[0][1]}")

    async def __aexit__(self, *exc: object) -> None:
        await self.runner.cleanup()


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[CallRecord]:
    found: list[CallRecord] = []
    monkeypatch.setattr(record, "_listeners", [found.append])
    return found


@pytest.mark.parametrize(("kind", "body", "packed"), [
    ("application/json; charset=utf-8", BODIES["openai"], False), ("application/json", BODIES["openai"], True),
    ("text/event-stream", BODIES["anthropic stream"], False), ("text/event-stream", BODIES["gemini stream"], True),
])
def test_a_record_holds_what_passed_by_and_the_bytes_arrive_unaltered(
        kind: str, body: bytes, packed: bool, records: list[CallRecord]) -> None:
    async def main() -> None:
        coding = {"Content_Encoding": "gzip"} if packed else {}
        server = Answers(gzip.compress(body) if packed else body, Content_Type=kind, **coding)
        async with server as endpoint, httpx.AsyncClient(transport=transport(endpoint, Settings.load())) as http:
            with call_context(CallContext(job="j", tenant="acme")):
                answer = await http.post(f"{endpoint.base_url}/x", json={"model": "m"},
                                         headers={"Accept-Encoding": "br, gzip, zstd"})
            assert answer.content == body
            assert server.accepted == "gzip, deflate"

    before = time.time()
    asyncio.run(main())
    [one] = records
    assert (one.input_tokens, one.output_tokens, one.cached_tokens, one.total_tokens) == (12, 34, 5, 46)
    assert (one.model, one.status, one.attempts, one.error) == ("m", 200, 1, None)
    assert one.context.tenant == "acme" and one.context.job == "j"
    assert one.finished is not None and one.first_byte is not None
    assert before <= one.started <= one.first_byte <= one.finished


def test_a_record_ends_when_the_stream_is_closed_early_or_the_call_fails(records: list[CallRecord]) -> None:
    async def main() -> None:
        async with Answers(b"x" * 1000, Content_Type="text/plain") as endpoint:
            async with client(endpoint).stream("GET", "x") as response:
                async for _ in response.aiter_bytes():
                    assert not records
                    break
            assert [one.error for one in records] == [None]
        with pytest.raises(httpx.ConnectError):
            await client(endpoint).get("x")

    asyncio.run(main())
    assert [(one.status, one.error) for one in records] == [(200, None), (None, "ConnectError")]
    assert all(one.finished for one in records)


def test_one_transport_serves_several_loops_and_closing_a_client_leaves_the_connections_to_others() -> None:
    async def main(shared: httpx.AsyncBaseTransport, server: Counting) -> None:
        for _ in range(3):
            async with httpx.AsyncClient(transport=shared) as http:
                assert (await http.get(f"{server.url}/x")).status_code == 200
        peers = len(server.peers)
        await aclose_all()
        async with httpx.AsyncClient(transport=shared) as http:
            await http.get(f"{server.url}/x")
        assert peers == 1 and len(server.peers) == 2

    async def first() -> httpx.AsyncBaseTransport:
        async with Counting() as server:
            made = transport(Endpoint(base_url=server.url))
            await main(made, server)
            return made

    async def second(made: httpx.AsyncBaseTransport) -> None:
        async with Counting() as server:
            await main(made, server)

    asyncio.run(second(asyncio.run(first())))


def test_a_transport_names_what_it_lacks() -> None:
    with pytest.raises(SettingsError, match="'nobody'"):
        transport("nobody")

    def drive() -> None:
        request = httpx.Request("GET", "http://127.0.0.1:1/")
        transport(Endpoint(base_url="http://127.0.0.1:1")).handle_async_request(request).send(None)

    with pytest.raises(UsageError, match="asyncio"):
        drive()


@pytest.mark.parametrize(("body", "tokens"), [
    ({"messages": [{"role": "user", "content": "x" * 389}], "max_tokens": 50}, 151),
    ({"messages": [{"role": "user", "content": "x" * 389}], "max_completion_tokens": 50, "n": 2}, 201),
    ({"input": "x" * 400, "max_output_tokens": 7}, 107),
    ({"contents": [{"parts": [{"text": "x" * 391}]}], "generationConfig": {"maxOutputTokens": 7}}, 107),
    ({"input": ["x" * 40], "encoding_format": "float"}, 10),
    ({"input": "x" * 40}, 522),
    ({"messages": [{"content": [{"image_url": {"url": "data:image/png;base64," + "A" * 10_000}}]}],
      "max_tokens": 0}, MEDIA + 4),
    ({"messages": [{"content": [{"source": {"type": "base64", "data": "A" * 10_000}}]}], "max_tokens": 0}, MEDIA + 4),
    ({"input": [{"image_url": "data:image/png;base64," + "A" * 10_000}], "max_output_tokens": 0}, MEDIA + 3),
    ({}, 513),
])
def test_a_request_is_reckoned_by_its_text_and_the_answer_it_allows(body: dict[str, Any], tokens: int) -> None:
    assert estimate(body, 512).total == tokens


def told(msg: Msg) -> list[dict[str, Any]]:
    return list(json.loads(msg.get_text_content() or ""))


def test_a_call_hands_its_tenant_priority_and_deadline_on(fleet: Fleet) -> None:
    job = Tells("a", Tells("b", Tells("c"))).submit(tenant="acme", priority=3, timeout=30)
    outer, *inner = told(job.get(20))
    assert outer["job"] == outer["call"] == job.id
    assert outer["agent"] == "Tells(a)" and len(inner) == 2
    for one in inner:
        assert (one["job"], one["tenant"], one["priority"], one["local"]) == (job.id, "acme", 3, False)
        assert one["deadline"] == outer["deadline"] and one["call"] != job.id
    assert 0 < outer["deadline"] - time.time() < 31
    first, second = told(SubmitsTeller("s").submit(tenant="acme", timeout=30).get(20))
    assert second["tenant"] == "acme" and second["deadline"] is None and second["job"] != first["job"]


@pytest.mark.parametrize("make", [TellsPlainly, Tells])
@pytest.mark.parametrize("queue", ["io", "cpu"])
def test_every_kind_of_call_has_its_context(fleet: Fleet, make: Callable[[str], AgentBase], queue: str) -> None:
    [one] = told(SequentialPipeline([Tells("before"), make("a")]).submit(None, tenant="t", queue=queue).get(20))
    assert (one["tenant"], one["agent"], one["deadline"]) == ("t", f"{make.__name__}(a)", None)


def test_an_inline_call_has_its_context_too() -> None:
    with callsheet.inline():
        job = Tells("a", Tells("b")).submit(tenant="acme", timeout=30)
        outer, inner = told(job.get())
    assert outer["job"] == inner["job"] == job.id
    assert inner["tenant"] == "acme" and inner["deadline"] == outer["deadline"] and inner["local"]
    assert current_call() == CallContext()
    with pytest.raises(UsageError, match="tenant"):
        Tells("a").submit(tenant=7)
