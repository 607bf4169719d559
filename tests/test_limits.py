"""Limits in one process, through real transports: against Redis, and against the store of inline runs."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import httpx
import pytest
from aiohttp import web

import callsheet
from callsheet import Msg
from callsheet.errors import LimiterUnavailable, RateLimited, SettingsError, UsageError
from callsheet.resources import client, context, record, transport
from callsheet.resources.context import CallContext, call_context
from callsheet.resources.limits import gate as gates
from callsheet.resources.limits.gate import _gates
from callsheet.resources.limits.messages import Ticket
from callsheet.resources.limits.reported import Reported, reported
from callsheet.resources.record import CallRecord
from callsheet.settings import Settings, use_settings
from callsheet.settings.keys import Keys
from tests.agents.basic import Echo
from tests.agents.calls import Calls
from tests.provider import Provider
from tests.servers import Playing, answer
from tests.services import RedisServer, free_port, worker

_numbers = count()


@asynccontextmanager
async def provider(**limits: Any) -> AsyncIterator[tuple[Provider, str]]:
    """An enforcing server on this loop, and its address."""
    made = Provider(**limits)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", made.complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    try:
        yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


class Caller:
    """Calls one endpoint with limits of its own."""

    def __init__(self, url: str, settings: dict[str, Any], name: str = "", **endpoint: Any) -> None:
        self.name = name or f"limited-{os.getpid()}-{next(_numbers)}"
        given = {"base_url": url, "retry": {"attempts": 1}, "breaker": {"enabled": False}, **endpoint}
        self.settings = Settings.load(endpoints={self.name: given}, **settings)

    async def __call__(self, tokens: int = 0, seconds: float = 0.0, timeout: float | None = None,
                       **given: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * max(0, 4 * tokens - 15)}],
                "max_tokens": 0, "user": f"{tokens} {seconds}"}
        deadline = None if timeout is None else time.time() + timeout
        with call_context(CallContext(call="c", deadline=deadline, **given)):
            return await client(self.name, self.settings).post("chat/completions", json=body)


Settle = dict[str, Any]


@pytest.fixture(params=["redis", "inline"])
def settings(request: pytest.FixtureRequest) -> Settle:
    if request.param == "inline":
        return {"inline": True, "redis_url": "redis://127.0.0.1:1/0"}
    return {"redis_url": request.getfixturevalue("redis_server").url}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "not within its time"
        await asyncio.sleep(0.01)


def gate_of(call: Caller) -> gates.Gate:
    return next(gate for gate in list(_gates.values()) if gate.name == call.name)


def in_line(call: Caller) -> int:
    """Calls of which the limiter has said that they have to wait."""
    return len(gate_of(call)._in_line)


def test_calls_beyond_the_limit_wait_for_their_turn(settings: Settle) -> None:
    async def main() -> None:
        # On a busy machine requests are late by different times: the server's window is narrower by so much.
        async with provider(window=2.5, requests=20) as (server, url):
            call = Caller(url, settings, rpm=400, window=3, burst=0.5)
            began, at = time.monotonic(), time.time()
            answers = await asyncio.gather(*(call() for _ in range(40)))
            assert {one.status_code for one in answers} == {200}
            # 20 in the first window; the others when that has passed, and not much later.
            assert 3 <= time.monotonic() - began < 8
            assert len(server.log) == 40 and sorted(server.log)[20][0] >= at + 3

    run(main())


def test_calls_under_way_are_bounded_and_free_their_place(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, max_concurrency=3)
            await asyncio.gather(*(call(seconds=0.1) for _ in range(12)))
            assert server.most == 3
            hanging = [asyncio.create_task(call(seconds=60)) for _ in range(3)]
            await until(lambda: server.under_way == 3)
            waiting = asyncio.create_task(call())
            await until(lambda: in_line(call) == 1)
            assert not waiting.done() and server.under_way == 3
            hanging[0].cancel()
            assert (await asyncio.wait_for(waiting, 5)).status_code == 200
            for one in hanging:
                one.cancel()

    run(main())


def test_tokens_are_settled_with_what_was_used_and_given_back_on_failure(settings: Settle) -> None:
    async def main() -> None:
        used = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}})
        async with Playing(answer(500), answer(200, used), answer(200, "{}")) as server:
            call = Caller(server.url, settings, tpm=100, burst=1)
            answers = [(await call(tokens=90)).status_code]  # 90 reserved, none used
            answers.append((await call(tokens=90)).status_code)  # 7 used
            answers.append((await call(tokens=90)).status_code)  # no usage reported: 90 stay
            assert answers == [500, 200, 200]
            with pytest.raises(RateLimited):
                await call(tokens=5, timeout=5)

    run(main())


def test_a_call_that_never_left_costs_nothing(settings: Settle) -> None:
    async def main() -> None:
        async with provider():
            call = Caller(f"http://127.0.0.1:{free_port()}", settings, rpm=2, burst=1)
            for _ in range(4):
                with pytest.raises(httpx.TransportError):
                    await call(timeout=5)

    run(main())


def test_a_caller_who_cannot_wait_so_long_is_refused_at_once(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, rpm=2, burst=1)
            await asyncio.gather(call(), call())
            began = time.monotonic()
            with pytest.raises(RateLimited) as caught:
                await call(timeout=5)
            assert time.monotonic() - began < 3
            assert (caught.value.endpoint, caught.value.limit) == (call.name, "rpm")
            assert caught.value.retry_after is not None and 20 < caught.value.retry_after < 63
            assert call.name in str(caught.value) and "timeout" in str(caught.value)
            # A client's own time limit for a place counts too.
            http = httpx.AsyncClient(transport=transport(call.name, call.settings), timeout=httpx.Timeout(5, pool=1))
            with call_context(CallContext(call="c")), pytest.raises(RateLimited):
                await http.post(f"{url}/chat/completions", json={})
            assert len(server.log) == 2

    run(main())


def test_a_caller_whose_time_ends_while_it_waits_is_refused_then(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, max_concurrency=1)
            hanging = asyncio.create_task(call(seconds=60))
            await until(lambda: server.under_way)
            with pytest.raises(RateLimited) as caught:
                await call(timeout=0.5)
            assert caught.value.limit == "max_concurrency"
            hanging.cancel()
            assert (await asyncio.wait_for(call(), 5)).status_code == 200  # the one that gave up left the queue

    run(main())


def test_a_request_larger_than_the_limit_is_refused_with_the_remedy(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, tpm=100)
            with pytest.raises(UsageError, match=r"max_tokens.*tpm"):
                await call(tokens=101)
            assert not server.log

    run(main())


def test_calls_that_give_up_leave_no_hole(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, max_concurrency=2)
            hanging = [asyncio.create_task(call(seconds=60)) for _ in range(2)]
            await until(lambda: server.under_way == 2)
            for delay in (0, 0, 0.001, 0.003, 0.02, 0.1) * 5:
                waiting = [asyncio.create_task(call()) for _ in range(3)]
                await asyncio.sleep(delay)
                for one in waiting:
                    one.cancel()
            for one in hanging:
                one.cancel()
            answers = await asyncio.wait_for(asyncio.gather(*(call(seconds=0.01) for _ in range(10))), 10)
            assert {one.status_code for one in answers} == {200} and server.most == 2

    run(main())


def test_a_pause_holds_for_everybody_and_ends_without_a_burst(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, rpm=600, burst=0.2)
            server.refuse = {"status": 503, "headers": {"retry-after": "1"}}
            first = await call()
            paused = time.time()
            assert first.status_code == 503
            await asyncio.gather(*(call() for _ in range(12)))
            later = [at for at, *_ in server.log[1:]]
            assert min(later) >= paused + 0.9
            assert max(later) - min(later) >= 0.8  # ten a second, and no credit for the pause

    run(main())


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("limits", [{"rpm": 600}, {}])
def test_each_answer_that_asks_for_patience_pauses_the_endpoint_for_everybody(
        settings: Settle, status: int, limits: dict[str, Any]) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, **limits)
            await call()
            server.refuse = {"status": status, "headers": {"retry-after": "100"}}
            assert (await call()).status_code == status
            with pytest.raises(RateLimited) as caught:
                await call(timeout=30)
            assert caught.value.limit == "pause" and caught.value.retry_after > 90
            server.refuse = {"status": 500, "headers": {"retry-after": "100"}}  # is the server's own trouble
            other = Caller(url, settings, **limits)
            assert [(await other()).status_code for _ in range(2)] == [500, 200]

    run(main())


def test_a_pause_is_obeyed_where_no_limit_is_set(settings: Settle) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings)
            await call()
            server.refuse = {"status": 429, "headers": {"retry-after": "1"}}
            await call()
            paused = time.time()
            await asyncio.gather(*(call() for _ in range(5)))
            assert min(at for at, *_ in server.log[2:]) >= paused + 0.9
            server.refuse = {"status": 429, "headers": {"retry-after": "1000"}}
            await call()
            with pytest.raises(RateLimited, match="left alone"):
                await call()  # over retry.retry_after_max, so nobody waits for it

    run(main())


@pytest.mark.parametrize("told", ["openai", "anthropic"])
def test_a_narrower_limit_that_the_provider_tells_is_learned_and_a_wider_one_is_not(
        settings: Settle, told: str) -> None:
    async def main() -> None:
        for own, theirs in ((60, 5), (5, 60)):
            async with provider(requests=theirs, told=told) as (server, url):
                call = Caller(url, settings, rpm=own, burst=1)
                for _ in range(5):
                    assert (await call(timeout=5)).status_code == 200
                with pytest.raises(RateLimited):
                    await call(timeout=5)
                assert len(server.log) == 5

    run(main())


@pytest.mark.parametrize("told", ["openai", "anthropic"])
def test_what_others_use_under_the_same_key_is_taken_into_account(
        settings: Settle, told: str) -> None:
    async def main() -> None:
        async with provider(requests=100, told=told) as (server, url):
            now = time.time()
            for _ in range(90):
                server.inside.append((now, 0))
            call = Caller(url, settings, rpm=100, burst=1)
            ended = 0
            with pytest.raises(RateLimited):
                while ended < 30:
                    assert (await call(timeout=1)).status_code == 200
                    ended += 1
            assert 9 <= ended <= 11

    run(main())


@pytest.mark.parametrize("told", ["openai", "anthropic"])
def test_a_limit_is_kept_to_where_none_is_set_once_the_provider_says_that_little_is_left(
        settings: Settle, told: str) -> None:
    async def main() -> None:
        async with provider(requests=10, told=told) as (server, url):
            call = Caller(url, settings)
            with pytest.raises(RateLimited):
                for _ in range(12):
                    assert (await call(timeout=2)).status_code == 200
            assert 9 <= len(server.log) <= 10

    run(main())


def test_priorities_go_first_and_tenants_take_turns(settings: Settle) -> None:
    async def main() -> None:
        order: list[str] = []
        async with provider() as (server, url):
            call = Caller(url, {**settings, "tenant_weights": {"big": 3}}, max_concurrency=1)

            async def one(who: str, **given: Any) -> None:
                await call(**given)
                order.append(who)

            hanging = asyncio.create_task(call(seconds=60))
            await until(lambda: server.under_way)
            waiting = []
            for who, given in [*[("small", {"tenant": "small"})] * 6, *[("big", {"tenant": "big"})] * 6,
                                 *[("last", {"priority": 9})] * 2, *[("first", {"priority": 0})] * 2]:
                waiting.append(asyncio.create_task(one(who, **given)))
                await until(lambda: in_line(call) == len(waiting))
            hanging.cancel()
            await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert order[:2] == ["first"] * 2 and order[-2:] == ["last"] * 2
        assert order[2:8].count("big") in (4, 5), order

    run(main())


def test_calls_without_a_priority_of_their_own_have_that_of_their_endpoint(settings: Settle) -> None:
    order: list[str] = []

    async def one(call: Caller, who: str, **given: Any) -> None:
        await call(**given)
        order.append(who)

    async def main() -> None:
        async with provider() as (server, url):
            # As of programs that share an endpoint's limit and rank their calls differently.
            late = Caller(url, settings, max_concurrency=1, priority=9)
            first = Caller(url, settings, late.name, max_concurrency=1, priority=0)
            usual = Caller(url, settings, late.name, max_concurrency=1)
            hanging = asyncio.create_task(usual(seconds=60))
            await until(lambda: server.under_way)
            waiting = []
            for call, who, given in [(late, "late", {}), (usual, "usual", {}), (late, "own 1", {"priority": 1}),
                                     (first, "own 8", {"priority": 8}), (first, "first", {})]:
                waiting.append(asyncio.create_task(one(call, who, **given)))
                await until(lambda: in_line(late) == len(waiting))
            hanging.cancel()
            await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert order == ["first", "own 1", "usual", "own 8", "late"]

    run(main())


def test_a_record_tells_how_long_its_request_waited(settings: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[CallRecord] = []
    monkeypatch.setattr(record, "_listeners", [found.append])

    async def main() -> None:
        async with provider() as (_, url):
            call = Caller(url, settings, rpm=60, tpm=6000, burst=0.001)
            await asyncio.gather(call(tokens=10), call(tokens=10))

    run(main())
    waits = sorted(one.queued for one in found)
    assert waits[0] < 0.9 <= waits[1] < 5
    assert [one.estimate for one in found] == [10, 10]


def test_several_loops_share_one_limit(settings: Settle) -> None:
    async def server() -> None:
        async with provider() as (made, url):
            call = Caller(url, settings, rpm=4, burst=1)

            def other() -> None:
                asyncio.run(twice())

            async def twice() -> None:
                await asyncio.gather(call(), call())

            await asyncio.gather(asyncio.to_thread(other), asyncio.to_thread(other))
            assert len(made.log) == 4
            with pytest.raises(RateLimited):
                await call(timeout=5)

    run(server())


def test_limits_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rpm", "tpm", "max_concurrency"):
        for value in (0, -1):
            with pytest.raises(SettingsError, match=f"(?i){name}"):
                Settings.load(endpoints={"x": {"base_url": "http://h", name: value}})
    with pytest.raises(SettingsError, match="window"):
        Settings.load(endpoints={"x": {"base_url": "http://h", "rpm": 3, "window": 10}})
    with pytest.raises(SettingsError, match="TENANT_WEIGHTS"):
        Settings.load(tenant_weights={"a": 0})
    monkeypatch.setenv("CALLSHEET_ENDPOINTS__OPENAI__RPM", "500")
    monkeypatch.setenv("CALLSHEET_TENANT_WEIGHTS", '{"acme": 2}')
    loaded = Settings.load()
    assert loaded.endpoints["openai"].rpm == 500 and loaded.tenant_weights == {"acme": 2}


def test_a_permit_that_grew_old_on_its_way_is_exchanged_for_a_fresh_one(
        settings: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[object] = []

    class Full:
        """A pool whose slots are all taken when a turn comes, until three have come: then they are free at once."""

        async def __aenter__(self) -> None:
            pass

        async def __aexit__(self, *exc: object) -> None:
            back.append(self)
            await until(lambda: len(back) >= 3)

    given_back: list[Ticket] = []
    give_up = gates.Gate.give_up

    def noted(gate: gates.Gate, ticket: Ticket) -> None:
        if ticket.permit.done():
            given_back.append(ticket)
        give_up(gate, ticket)

    monkeypatch.setattr(context, "_parking", [Full])
    monkeypatch.setattr(gates.Gate, "give_up", noted)

    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, settings, rpm=120, burst=0.001)
            await asyncio.gather(*(call() for _ in range(6)))
            sent = sorted(at for at, *_ in server.log)
            assert all(at - sent[0] >= turn / 2 - 0.2 for turn, at in enumerate(sent)), "two a second, none early"

    run(main())
    assert len(given_back) == 2, "the two that waited for the third: a second and half a second old"


def test_calls_are_parked_while_they_wait_for_a_limit_or_for_a_pause(
        settings: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    parked: list[str] = []

    class Spy:
        async def __aenter__(self) -> None:
            parked.append("in")

        async def __aexit__(self, *exc: object) -> None:
            parked.append("out")

    monkeypatch.setattr(context, "_parking", [Spy])

    async def main() -> None:
        async with provider() as (server, url):
            for endpoint in ({}, {"rpm": 6000}):
                call = Caller(url, settings, **endpoint)
                await call()
                assert parked == []  # who need not wait keeps its slot
                server.refuse = {"status": 429, "headers": {"retry-after": "0.5"}}
                await call()
                await asyncio.gather(call(), call())
                assert parked == ["in", "in", "out", "out"]
                parked.clear()

    run(main())


def test_headers_of_every_kind_are_understood() -> None:
    def read(**headers: str) -> Any:
        return reported(httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()}))

    openai = {"x_ratelimit_limit_requests": "500", "x_ratelimit_remaining_requests": "499",
              "x_ratelimit_limit_tokens": "30000", "x_ratelimit_remaining_tokens": "29000"}
    for text, seconds in (("120ms", 0.12), ("1s", 1), ("6m0s", 360), ("1h2m3.5s", 3723.5), ("17", 17), ("x", None)):
        requests, tokens = read(**openai, x_ratelimit_reset_requests=text, x_ratelimit_reset_tokens="2s")
        assert requests == Reported(500, 499, seconds) and tokens == Reported(30000, 29000, 2.0)
        assert requests.per_minute == (seconds is None or seconds < 66)
    requests, tokens = read(anthropic_ratelimit_requests_limit="50", anthropic_ratelimit_requests_remaining="49",
                            anthropic_ratelimit_requests_reset="2026-01-27T12:00:30Z",
                            date="Tue, 27 Jan 2026 12:00:10 GMT")
    assert requests == Reported(50, 49, 20.0) and tokens is None
    assert read() == (None, None)
    assert read(x_ratelimit_limit_requests="many", x_ratelimit_remaining_requests="1") == (None, None)
    assert read(x_ratelimit_limit_requests="0", x_ratelimit_remaining_requests="0") == (None, None)


# With Redis only


def evals(server: RedisServer) -> int:
    stats = server.client().info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("eval", "evalsha"))


def test_without_limits_there_is_no_trip_and_with_them_there_are_two(own_redis: RedisServer) -> None:
    async def main() -> None:
        async with provider() as (_, url):
            free = Caller(url, {"redis_url": own_redis.url})
            start = evals(own_redis)
            await free()
            # One exchange asks whether the endpoint is paused.
            await until(lambda: evals(own_redis) > start and gate_of(free)._running is None)
            before = evals(own_redis)
            for _ in range(20):
                await free()
            assert evals(own_redis) == before
            call = Caller(url, {"redis_url": own_redis.url}, rpm=6000, tpm=6_000_000, max_concurrency=100)
            await call()
            before = evals(own_redis)
            for _ in range(20):
                await call(tokens=5)
            assert evals(own_redis) - before <= 41

    run(main())


def test_a_thousand_waiting_calls_make_few_trips(own_redis: RedisServer) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, {"redis_url": own_redis.url}, rpm=600, burst=0.01)
            waiting = [asyncio.create_task(call()) for _ in range(1000)]
            await until(lambda: len(server.log) > 10)
            before, sent, began = evals(own_redis), len(server.log), time.monotonic()
            await until(lambda: len(server.log) >= sent + 30)
            trips, seconds = evals(own_redis) - before, time.monotonic() - began
            assert trips <= 2.5 * (len(server.log) - sent) + 2 * seconds
            assert len(server.log) - sent >= 8 * seconds
            for one in waiting:
                one.cancel()

    run(main())


def test_a_flushed_script_and_even_a_flushed_server_are_survived(own_redis: RedisServer) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, {"redis_url": own_redis.url}, max_concurrency=2)
            hanging = [asyncio.create_task(call(seconds=60)) for _ in range(2)]
            await until(lambda: server.under_way == 2)
            waiting = [asyncio.create_task(call()) for _ in range(4)]
            await until(lambda: in_line(call) == 4)
            redis, queue = own_redis.client(), Keys("callsheet:").limits(call.name, 60, "queue")
            assert redis.zcard(queue) == 4
            redis.script_flush()
            redis.flushall()
            await until(lambda: redis.zcard(queue) == 4)  # the gate has looked, and told again what it holds
            assert server.under_way == 2 and not any(one.done() for one in waiting)
            hanging[0].cancel()
            assert {one.status_code for one in await asyncio.wait_for(asyncio.gather(*waiting), 10)} == {200}
            hanging[1].cancel()
            assert server.most == 2

    run(main())


def test_calls_wait_for_a_redis_that_comes_back(own_redis: RedisServer) -> None:
    async def main() -> None:
        async with provider() as (_, url):
            call = Caller(url, {"redis_url": own_redis.url}, rpm=600)
            await call()
            await asyncio.to_thread(own_redis.stop)
            with pytest.raises(LimiterUnavailable, match="in Redis, which does not answer"):
                await call(timeout=1)
            waiting = [asyncio.create_task(call()) for _ in range(5)]
            await until(lambda: gate_of(call).waiting == 5 and gate_of(call).failing_since)
            await asyncio.to_thread(own_redis.start)
            assert {one.status_code for one in await asyncio.wait_for(asyncio.gather(*waiting), 15)} == {200}

    run(main())


def test_without_redis_calls_fail_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "PATIENCE", 0.5)

    async def main() -> None:
        async with provider() as (server, url):
            call = Caller(url, {"redis_url": "redis://:secret@127.0.0.1:1/0"}, rpm=600)
            with pytest.raises(LimiterUnavailable) as caught:
                await asyncio.wait_for(call(), 15)
            assert call.name in str(caught.value) and "secret" not in str(caught.value)
            assert not server.log

    run(main())


def test_an_inline_run_keeps_limits_without_redis() -> None:
    async def main() -> None:
        async with provider() as (server, url):
            given = {"base_url": url, "rpm": 2, "burst": 1}
            with use_settings(Settings.load(redis_url="redis://127.0.0.1:1/0", endpoints={"inl": given})), \
                    callsheet.inline():
                for _ in range(2):
                    assert (await Calls("a", "inl")(None)).get_text_content() == "200"
                with pytest.raises(callsheet.AgentFailed, match=r"RateLimited|turn"):
                    await Calls("a", "inl").options(timeout=5)(None)
            assert len(server.log) == 2

    run(main())


def test_a_call_that_waits_for_its_turn_gives_its_slot_to_others(own_redis: RedisServer) -> None:
    async def main() -> None:
        async with provider() as (server, url):
            endpoint = {"base_url": url, "max_concurrency": 1}
            env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS": json.dumps({"one": endpoint})}
            settings = Settings.load(redis_url=own_redis.url, endpoints={"one": endpoint})
            hanging = asyncio.create_task(_hold(settings))
            await until(lambda: server.under_way)
            with worker("callsheet.workers.io", own_redis.url, "--autoscale=1,1", env=env), use_settings(settings):
                waiting = [Calls("a", "one").submit(None) for _ in range(3)]
                # The worker's only slot is free for this one, and for the waiting ones when their turn comes.
                assert (await asyncio.wait_for(Echo("e")(Msg("u", "hi", "user")), 20)).get_text_content()
                hanging.cancel()
                for job in waiting:
                    assert (await asyncio.wait_for(job, 20)).get_text_content() == "200"
            assert server.most == 1

    async def _hold(settings: Settings) -> None:
        await client("one", settings).post("chat/completions", json={"user": "0 60"})

    run(main())
