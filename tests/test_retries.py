"""When a request is sent again, when not, and what bounds it."""

import asyncio
import gzip
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.resources import aclose_all, client, transport
from callsheet.resources.boards import BUDGET_WINDOW, Recent, RetryBudget
from callsheet.resources.context import CallContext, call_context
from callsheet.resources.record import CallRecord, record_of
from callsheet.resources.refusals import asked_delay, of_answer
from callsheet.resources.retries import Retrying
from callsheet.resources.timings import counts
from callsheet.settings import Endpoint, Settings
from callsheet.settings.endpoints import RetryPolicy
from tests.servers import Part, Playing, answer, break_off, hang_up, silence
from tests.services import free_port

QUICK = {"backoff": 0.01, "backoff_max": 0.02}


def endpoint(url: str, **retry: Any) -> Endpoint:
    return Endpoint(base_url=url, timeout=retry.pop("timeout", 5.0), breaker={"enabled": False},
                    retry={**QUICK, **retry})


def post(*parts: Part, content: Any = b"ask", **retry: Any) -> tuple[httpx.Response, Playing]:
    """The answer of one POST to a server that plays these parts, and the server."""

    async def main() -> tuple[httpx.Response, Playing]:
        async with Playing(*parts) as server:
            return await client(endpoint(server.url, **retry)).post("x", content=content), server

    return asyncio.run(main())


def record(response: httpx.Response) -> CallRecord:
    found = record_of(response.request)
    assert found is not None
    return found


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_sent_again(status: int) -> None:
    response, server = post(answer(status), answer(200, "fine"))
    assert (response.status_code, response.text) == (200, "fine")
    assert server.requests == [b"ask", b"ask"]
    assert (record(response).attempts, record(response).retries) == (2, 1)
    assert len(server.peers) == 1  # the error was read to its end, and the connection used again


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_not_sent_again(status: int) -> None:
    response, server = post(answer(status, "no"))
    assert (response.status_code, response.text, len(server.requests)) == (status, "no", 1)


def test_the_server_may_say_whether_to_try_again() -> None:
    assert len(post(answer(503, x_should_retry="false"))[1].requests) == 1
    assert len(post(answer(400, x_should_retry="true"), answer())[1].requests) == 2


@pytest.mark.parametrize("body", [
    b'{"error": {"message": "no", "type": "insufficient_quota", "code": "insufficient_quota"}}',
    b'{"error": {"code": null, "type": "insufficient_quota"}}'])
@pytest.mark.parametrize("packed", [False, True])
def test_a_spent_quota_is_not_asked_again_and_can_be_read(body: bytes, packed: bool) -> None:
    part = answer(429, gzip.compress(body), Content_Encoding="gzip") if packed else answer(429, body)
    response, server = post(part)
    assert (len(server.requests), response.status_code, response.content) == (1, 429, body)


def test_the_last_failure_is_handed_on_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        response, server = post(answer(503, "first"), answer(500, "second"), answer(502, "last"), attempts=3)
    assert (response.status_code, response.text, len(server.requests)) == (502, "last", 3)
    assert record(response).status == 502
    lines = [line for line in caplog.messages if line.startswith("outbound_retry")]
    assert len(lines) == 3
    assert "attempt=1/3 reason='status 503'" in lines[0] and "attempt=2/3 reason='status 500'" in lines[1]
    assert lines[2].startswith("outbound_retry_refused") and "bound=attempts" in lines[2]


def test_a_long_error_is_cut_and_one_that_stops_short_is_no_other_error() -> None:
    assert len(post(answer(503, b"x" * 1_000_000), attempts=1)[0].content) < 200_000

    async def short(request: Any) -> Any:
        from aiohttp import web

        response = web.StreamResponse(status=503)
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        return await hang_up(request)

    response, server = post(short, attempts=2)
    assert (response.status_code, response.content, len(server.requests)) == (503, b"half", 2)


def test_a_connection_that_cannot_be_opened_is_tried_again() -> None:
    async def main() -> None:
        port = free_port()
        before = counts().get(("retries", f"http://127.0.0.1:{port}", "ConnectError"), 0)
        with pytest.raises(httpx.ConnectError):
            await client(endpoint(f"http://127.0.0.1:{port}", attempts=3)).get("x")
        assert counts()["retries", f"http://127.0.0.1:{port}", "ConnectError"] - before == 2

    asyncio.run(main())


def test_a_server_that_comes_up_meanwhile_is_reached() -> None:
    async def main() -> None:
        port = free_port()

        async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
            writer.close()

        asked = asyncio.create_task(client(endpoint(
            f"http://127.0.0.1:{port}", attempts=100, backoff=0.05, backoff_max=0.05, budget_min=99)).get("x"))
        while not counts().get(("retries", f"http://127.0.0.1:{port}", "ConnectError")):
            await asyncio.sleep(0.01)
        async with await asyncio.start_server(hello, "127.0.0.1", port):
            assert (await asked).text == "hi"

    asyncio.run(main())


@pytest.mark.parametrize(("part", "expected"), [(hang_up, httpx.RemoteProtocolError), (silence, httpx.ReadTimeout)])
def test_what_the_server_may_have_begun_is_sent_again_only_where_that_is_wanted(
        part: Part, expected: type[Exception]) -> None:
    async def main(after_sent: bool) -> int:
        async with Playing(part, answer()) as server:
            asked = client(endpoint(server.url, timeout=1.0, after_sent=after_sent)).post("x", content=b"ask")
            if after_sent:
                assert (await asked).status_code == 200
            else:
                with pytest.raises(expected):
                    await asked
            return len(server.requests)

    assert asyncio.run(main(False)) == 1
    assert asyncio.run(main(True)) == 2


def test_nothing_is_sent_again_once_an_answer_has_begun() -> None:
    async def main() -> None:
        async with Playing(break_off) as server:
            with pytest.raises(httpx.RemoteProtocolError):
                await client(endpoint(server.url, after_sent=True)).post("x", content=b"ask")
            assert len(server.requests) == 1

    asyncio.run(main())


def test_a_body_from_a_stream_is_sent_once() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"as"
        yield b"k"

    response, server = post(answer(503), answer(), content=pieces())
    assert (response.status_code, server.requests) == (503, [b"ask"])


def test_retry_after_is_waited_for() -> None:
    began = time.monotonic()
    response, _ = post(answer(429, Retry_After="0.3"), answer())
    assert response.status_code == 200 and time.monotonic() - began >= 0.3
    assert record(response).paused >= 0.3
    began = time.monotonic()
    assert post(answer(503, retry_after_ms="250", Retry_After="60"), answer())[0].status_code == 200
    assert 0.25 <= time.monotonic() - began < 30


def test_a_retry_after_that_is_too_long_is_not_waited_for() -> None:
    response, server = post(answer(503, Retry_After="120"), retry_after_max=100)
    assert (response.status_code, len(server.requests)) == (503, 1)


def test_a_retry_that_cannot_begin_before_the_deadline_is_not_waited_for() -> None:
    def with_deadline(seconds: float) -> int:
        with call_context(CallContext(deadline=time.time() + seconds)):
            return len(post(answer(503, Retry_After="5"), answer())[1].requests)

    began = time.monotonic()
    assert with_deadline(4) == 1
    assert time.monotonic() - began < 4


def test_calls_under_way_are_parked_while_they_wait() -> None:
    from callsheet.resources import context

    states: list[str] = []

    class Place:
        async def __aenter__(self) -> None:
            states.append("parked")

        async def __aexit__(self, *exc: object) -> None:
            states.append("back")

    before = context._parking[0]
    context.provide_parking(Place)
    try:
        assert post(answer(503), answer())[0].status_code == 200
    finally:
        context.provide_parking(before)
    assert states == ["parked", "back"]


def test_retries_add_a_tenth_to_a_failing_endpoints_load_and_no_more() -> None:
    async def main() -> int:
        async with Playing(answer(500)) as server:
            http = client(endpoint(server.url, attempts=5, budget=0.1, budget_min=10))
            for _ in range(10):
                await asyncio.gather(*(http.post("x", content=b"ask") for _ in range(50)))
            return len(server.requests)

    # 500 calls: 10 retries that are always there, and 50.
    assert 550 <= asyncio.run(main()) <= 560


def test_who_is_told_when_to_come_back_may_come_back_whatever_the_budget() -> None:
    async def main() -> list[int]:
        async with Playing(*[answer(429, Retry_After="0.1")] * 30, answer()) as server:
            http = client(endpoint(server.url, budget=0, budget_min=0, timeout=30))
            answers = await asyncio.gather(*(http.post("x", content=b"ask") for _ in range(30)))
            return [response.status_code for response in answers]

    assert asyncio.run(main()) == [200] * 30


def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-SECRET")

    async def main() -> None:
        async with Playing(answer(503, "sk-SECRET"), answer()) as server:
            url = server.url.replace("://", "://me:SECRET@")
            keyed = endpoint(url).model_copy(update={"api_key_env": "SOME_KEY"})
            with call_context(CallContext(agent="Writer(a)")):
                await client(keyed).post("x?key=SECRET", content=b"SECRET")

    with caplog.at_level(logging.DEBUG, logger="callsheet"):
        asyncio.run(main())
    assert "outbound_retry" in caplog.text and "agent=Writer(a)" in caplog.text
    assert "SECRET" not in "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("callsheet"))


def test_any_client_over_the_transport_is_retried() -> None:
    async def main() -> None:
        async with Playing(answer(503), answer(200, "fine")) as server:
            settings = Settings.load(endpoints={"mine": {"base_url": server.url, "retry": QUICK}})
            async with httpx.AsyncClient(transport=transport("mine", settings)) as http:
                assert (await http.get(server.url)).text == "fine"
            await aclose_all()

    asyncio.run(main())


class Patient(Retrying):
    """Notes the pauses in place of making them."""

    def __init__(self, policy: RetryPolicy, answered: httpx.Response) -> None:
        def answer(_: httpx.Request) -> httpx.Response:
            return httpx.Response(answered.status_code, headers=answered.headers)

        super().__init__(httpx.MockTransport(answer), "patient", policy, RetryBudget(0.0, 1_000_000))
        self.pauses: list[float] = []

    async def _pause(self, request: httpx.Request, delay: float) -> None:
        self.pauses.append(delay)


@pytest.mark.parametrize("after", [0, 7])
def test_pauses_are_spread_from_nothing_to_a_bound_that_doubles_up_to_its_most(after: int) -> None:
    policy = RetryPolicy(attempts=7, backoff=0.5, backoff_max=6.0)
    headers = {"retry-after": str(after)} if after else {}

    async def main() -> list[list[float]]:
        runs = []
        for _ in range(400):
            patient = Patient(policy, httpx.Response(503, headers=headers))
            await patient.handle_async_request(httpx.Request("POST", "http://h/", content=b"ask"))
            runs.append(patient.pauses)
        return runs

    for bound, pauses in zip([0.5, 1, 2, 4, 6, 6], zip(*asyncio.run(main()), strict=True), strict=True):
        drawn = sorted((pause - after) / bound for pause in pauses)
        assert drawn[0] >= -1e-9 and drawn[-1] <= 1 + 1e-9
        # A quarter of them in each quarter, as good as; by chance it is otherwise once in many millions of runs.
        for quarter in range(4):
            assert 45 < sum(quarter / 4 <= one < (quarter + 1) / 4 for one in drawn) < 160, bound


def test_a_cancelled_call_stops_waiting() -> None:
    async def main() -> None:
        async with Playing(answer(503, Retry_After="60")) as server:
            asked = asyncio.create_task(client(endpoint(server.url)).post("x", content=b"ask"))
            while not server.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asked, 5)

    asyncio.run(main())


# The parts ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("headers", "expected"), [
    ({"retry-after": "1.5"}, 1.5), ({"retry-after": "0"}, 0.0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0), ({"retry-after": "soon"}, None), ({}, None),
    ({"retry-after": "-1"}, None), ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None),
    ({"retry-after-ms": "x", "retry-after": "2"}, 2.0), ({"retry-after": "Wed, 99 Foo 2015"}, None)])
def test_what_retry_after_says(headers: dict[str, str], expected: float | None) -> None:
    assert asked_delay(httpx.Headers(headers)) == expected


@given(st.binary(max_size=200), st.integers(400, 599))
def test_any_body_has_a_verdict(body: bytes, status: int) -> None:
    of_answer(status, httpx.Headers(), body)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_recent_counts_lapse() -> None:
    clock = Clock()
    recent = Recent(10.0, clock)
    recent.add(3)
    clock.now += 5
    recent.add()
    assert recent.total == 4
    clock.now += 5.5
    assert recent.total == 1
    clock.now += 500
    assert recent.total == 0
    recent.add(2)
    assert (recent.take(), recent.total) == (2, 0)


@given(st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=300))
def test_the_budget_holds_over_any_half_minute(steps: list[tuple[float, bool]]) -> None:
    clock = Clock()
    budget = RetryBudget(0.1, 3, clock)
    calls: list[float] = []
    retries: list[float] = []
    for pause, call in steps:
        clock.now += pause
        if call:
            budget.earn()
            calls.append(clock.now)
        elif budget.spend():
            retries.append(clock.now)
            recent = sum(at > clock.now - BUDGET_WINDOW for at in calls)
            assert sum(at > clock.now - BUDGET_WINDOW * 0.9 for at in retries) <= 3 + 0.1 * recent
    if steps and len(retries) < 3 and not steps[-1][1]:
        assert retries and retries[-1] == clock.now  # the minimum is there whatever came before


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = RetryBudget(0.0, 0)
    budget.earn()
    assert not budget.spend()
