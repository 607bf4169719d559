"""Circuit breaking: when an endpoint is left alone, for how long, by whom, and who probes it."""

import asyncio
import contextlib
import itertools
import json
import logging
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet import AgentFailed, Msg
from callsheet.errors import CallsheetError, CircuitOpen
from callsheet.resources import boards, client
from callsheet.resources import breaker as breaker_module
from callsheet.resources.accounts import snapshot
from callsheet.resources.boards import FleetBoard, LocalBoard
from callsheet.resources.breaker import Breaker, Breaking
from callsheet.resources.context import CallContext, call_context
from callsheet.resources.record import record_of
from callsheet.resources.redis import async_client
from callsheet.resources.subscriptions import Subscriptions
from callsheet.settings import Endpoint, Settings, use_settings
from callsheet.settings.endpoints import BreakerPolicy
from callsheet.settings.keys import Keys
from tests.agents.spenders import Spends
from tests.model_server import whole
from tests.servers import Part, Playing, answer, break_off, hang_up, silence
from tests.services import RedisServer, free_port, worker

POLICY = BreakerPolicy(failure_rate=0.5, minimum=4, window=10, cooldown=5)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settled(breaker: Breaker) -> None:
    """Wait until what was to be reported is."""
    while breaker._reporting is not None and not breaker._reporting.done():
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# One process's breaker ------------------------------------------------------------------------------------------

def local(**changes: Any) -> tuple[Breaker, Clock]:
    clock = Clock()
    policy = POLICY.model_copy(update=changes)
    return Breaker("e", policy, LocalBoard(policy, clock), clock), clock


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_it_opens_at_the_rate_and_not_before_the_minimum() -> None:
    async def main() -> None:
        breaker, _ = local()
        for failed in (True, True, True):
            breaker.ended(failed)
            await settled(breaker)
        assert breaker.closed  # three are not enough to judge
        breaker.ended(True)
        await settled(breaker)
        assert not breaker.closed
        with pytest.raises(CircuitOpen) as caught:
            await breaker.admit()
        assert (caught.value.endpoint, caught.value.retry_after) == ("e", 5.0)
        assert "'e'" in str(caught.value) and "5.0 s" in str(caught.value)

    run(main())


def test_successes_keep_it_closed() -> None:
    async def main() -> None:
        breaker, _ = local()
        for _ in range(50):
            for failed in (False, True, False):
                breaker.ended(failed)
            await settled(breaker)
        assert breaker.closed

    run(main())


def test_failures_of_long_ago_do_not_count() -> None:
    async def main() -> None:
        breaker, clock = local()
        for _ in range(20):
            breaker.ended(True)
            await settled(breaker)
            clock.now += 4
        assert breaker.closed

    run(main())


def test_one_request_probes_and_its_success_closes() -> None:
    async def main() -> None:
        breaker, clock = local(minimum=1)
        breaker.ended(True)
        await settled(breaker)
        clock.now += 5
        token = await breaker.admit()
        assert token is not None
        for _ in range(3):
            clock.now += 1.1  # long enough to look again whether the probe has ended
            with pytest.raises(CircuitOpen):
                await breaker.admit()
        await breaker.settle(token, "ok")
        assert breaker.closed and await breaker.admit() is None

    run(main())


def test_a_failed_probe_opens_anew_and_one_that_tells_nothing_is_repeated() -> None:
    async def main() -> None:
        breaker, clock = local(minimum=1)
        breaker.ended(True)
        await settled(breaker)
        clock.now += 5
        token = await breaker.admit()
        assert token is not None
        await breaker.settle(token, "failed")
        with pytest.raises(CircuitOpen):
            await breaker.admit()
        clock.now += 5
        second = await breaker.admit()
        assert second is not None
        await breaker.settle(second, "unknown")
        assert await breaker.admit() not in (None, second)

    run(main())


def test_the_probe_of_one_that_died_is_given_to_another() -> None:
    async def main() -> None:
        breaker, clock = local(minimum=1)
        breaker.ended(True)
        await settled(breaker)
        clock.now += 5
        first = await breaker.admit()
        clock.now += boards.LEASE
        second = await breaker.admit()
        assert first is not None and second is not None
        await breaker.settle(first, "ok")  # it lived after all, but has no say any more
        assert not breaker.closed
        await breaker.settle(second, "ok")
        assert breaker.closed

    run(main())


@given(st.lists(st.tuples(st.sampled_from(["fail", "ok", "wait", "admit", "good", "bad"]), st.floats(0, 8)),
                max_size=80))
def test_there_is_never_more_than_one_probe(steps: list[tuple[str, float]]) -> None:
    async def main() -> None:
        breaker, clock = local(minimum=2)
        probes: dict[str, float] = {}
        for step, pause in steps:
            if step == "wait":
                clock.now += pause
            elif step in ("fail", "ok"):
                breaker.ended(step == "fail")
                await settled(breaker)
            elif step == "admit":
                try:
                    token = await breaker.admit()
                except CircuitOpen as exc:
                    assert exc.retry_after >= 0
                else:
                    if token is not None:
                        assert not [at for at in probes.values() if clock.now < at + boards.LEASE]
                        probes[token] = clock.now
            elif probes:
                token = list(probes)[-1]
                del probes[token]
                await breaker.settle(token, "ok" if step == "good" else "failed")

    run(main())


# As a transport ---------------------------------------------------------------------------------------------------

def endpoint(url: str, timeout: float = 0.5, **breaker: Any) -> Endpoint:
    return Endpoint(base_url=url, timeout=timeout, retry={"attempts": 1},
                    breaker={"minimum": 3, "window": 10, "cooldown": 60, **breaker})


def own_breaker(at: Endpoint) -> tuple[Breaker, LocalBoard]:
    """This process's own, of an endpoint that has been called."""
    found = next(found for found in breaker_module._kept.values() if found._policy == at.breaker
                 and type(found._board) is LocalBoard and found.name == at.base_url)
    assert isinstance(found._board, LocalBoard)
    return found, found._board


async def opened(at: Endpoint) -> None:
    """Wait until the breaker has heard of the failures, which are reported off the calls' path."""
    await until(lambda: not own_breaker(at)[0].closed)


def pass_time(at: Endpoint, seconds: float) -> None:
    """As if so much of the cooldown had passed."""
    for one in own_breaker(at):
        assert one._until is not None
        one._until -= seconds


async def get(at: Endpoint) -> int | str:
    try:
        return (await client(at).post("x")).status_code  # a GET would be sent twice by aiohttp itself
    except (httpx.TransportError, CircuitOpen) as exc:
        return type(exc).__name__


@pytest.mark.parametrize(("part", "told"), [
    (answer(500), 500), (answer(529), 529), (hang_up, "RemoteProtocolError"), (silence, "ReadTimeout"),
    (break_off, "RemoteProtocolError")])
def test_what_counts_as_failure(part: Part, told: int | str) -> None:
    async def main() -> None:
        async with Playing(part) as server:
            at = endpoint(server.url)
            assert [await get(at) for _ in range(3)] == [told] * 3
            await opened(at)
            assert await get(at) == "CircuitOpen"
            assert len(server.requests) == 3  # refused without a request
            assert server.url in snapshot()["left_alone"]

    asyncio.run(main())


@pytest.mark.parametrize("status", [200, 400, 401, 404, 408, 422, 429])
def test_what_does_not(status: int) -> None:
    async def main() -> None:
        async with Playing(answer(status)) as server:
            assert [await get(endpoint(server.url)) for _ in range(10)] == [status] * 10

    asyncio.run(main())


def test_nobody_there_counts_and_a_breaker_that_is_off_does_not() -> None:
    async def main() -> None:
        at = endpoint(f"http://127.0.0.1:{free_port()}")
        assert [await get(at) for _ in range(3)] == ["ConnectError"] * 3
        await opened(at)
        assert await get(at) == "CircuitOpen"
        off = endpoint(f"http://127.0.0.1:{free_port()}", enabled=False)
        assert [await get(off) for _ in range(10)] == ["ConnectError"] * 10

    asyncio.run(main())


def test_it_closes_again_and_logs_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Playing(*[answer(500)] * 4, answer()) as server:
            at = endpoint(server.url, cooldown=600)
            assert [await get(at) for _ in range(3)] == [500] * 3
            await opened(at)
            assert await get(at) == "CircuitOpen"
            pass_time(at, 300)
            assert await get(at) == "CircuitOpen"
            pass_time(at, 300)
            assert await get(at) == 500  # the probe
            assert await get(at) == "CircuitOpen"
            pass_time(at, 600)
            assert [await get(at) for _ in range(3)] == [200] * 3

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    said = [line.split()[0] for line in caplog.messages if line.startswith("breaker")]
    assert said == ["breaker_open", "breaker_probe", "breaker_probe", "breaker_closed"]


def test_one_of_many_probes_while_the_others_are_refused() -> None:
    async def main() -> None:
        refused = asyncio.Event()

        async def slow(request: Any) -> Any:
            await refused.wait()
            return await answer()(request)

        async with Playing(*[answer(500)] * 3, slow) as server:
            at = endpoint(server.url, timeout=60)
            assert [await get(at) for _ in range(3)] == [500] * 3
            await opened(at)
            pass_time(at, 60)
            calls = [asyncio.create_task(get(at)) for _ in range(20)]
            await until(lambda: sum(call.done() for call in calls) == 19)
            refused.set()
            answers = await asyncio.gather(*calls)
            assert sorted(map(str, answers)) == ["200"] + ["CircuitOpen"] * 19
            assert len(server.requests) == 4

    asyncio.run(main())


def test_a_probe_that_is_cancelled_makes_room_for_another() -> None:
    async def main() -> None:
        async with Playing(*[answer(500)] * 3, silence, answer()) as server:
            at = endpoint(server.url, timeout=60)
            assert [await get(at) for _ in range(3)] == [500] * 3
            await opened(at)
            pass_time(at, 60)
            probe = asyncio.create_task(get(at))
            await until(lambda: len(server.requests) == 4)
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probe
            assert await get(at) == 200

    asyncio.run(main())


def test_a_refusal_is_not_retried() -> None:
    async def main() -> None:
        async with Playing(answer(500)) as server:
            at = endpoint(server.url).model_copy(update={"retry": Endpoint(
                base_url="http://x", retry={"attempts": 9, "backoff": 0.01, "backoff_max": 0.01}).retry})
            assert await get(at) == "CircuitOpen"  # retries were under way when it opened
            assert len(server.requests) < 9

    asyncio.run(main())


def test_the_error_survives_a_process_boundary() -> None:
    error = CircuitOpen("left alone", "openai", 4.5)
    told = json.loads(json.dumps(error.to_dict()))
    for again in (pickle.loads(pickle.dumps(error)), CallsheetError.from_dict(told)):
        assert isinstance(again, CircuitOpen)
        assert (str(again), again.endpoint, again.retry_after) == ("left alone", "openai", 4.5)


# The fleet's ------------------------------------------------------------------------------------------------------

class Process:
    """What one process of the fleet has: a breaker, a board, a subscription."""

    def __init__(self, settings: Settings, policy: BreakerPolicy, listens: bool = True) -> None:
        self.board = FleetBoard("e", policy, settings)
        self.breaker = Breaker("e", policy, self.board)
        self.notices: list[bytes] = []
        if listens:
            self.subscriptions = Subscriptions(settings)
            self.subscriptions.add(self.board.channel, self.notices.append)
            self.subscriptions.add(self.board.channel, self.breaker.heard)

    async def ready(self) -> "Process":
        await until(lambda: b"" in self.notices)
        await settled(self.breaker)
        return self

    async def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.ended(True)
        await settled(self.breaker)


def fleet(own_redis: RedisServer, **policy: Any) -> tuple[Settings, BreakerPolicy]:
    given = {"minimum": 4, "window": 10.0, "cooldown": 0.3, **policy}
    return Settings.load(redis_url=own_redis.url), BreakerPolicy(**given)


async def probing(process: Process) -> str | None:
    """Wait for the end of the cooldown."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(CircuitOpen):
                return await process.breaker.admit()
            await asyncio.sleep(0.005)


def trips(own_redis: RedisServer) -> int:
    stats = own_redis.client().info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


def test_what_one_process_sees_the_whole_fleet_knows_at_once(own_redis: RedisServer) -> None:
    async def main() -> None:
        one, two = [await Process(*fleet(own_redis, cooldown=60)).ready() for _ in range(2)]
        await one.fail(4)
        await until(lambda: not two.breaker.closed)
        with pytest.raises(CircuitOpen) as caught:
            await two.breaker.admit()
        assert 50 < caught.value.retry_after <= 60
        late = await Process(*fleet(own_redis, cooldown=60)).ready()
        assert not late.breaker.closed  # one that starts now knows it too

    asyncio.run(main())


def test_without_notices_a_process_hears_of_it_by_its_own_failure(own_redis: RedisServer) -> None:
    async def main() -> None:
        one, deaf = (Process(*fleet(own_redis, cooldown=60), listens=False) for _ in range(2))
        await one.fail(4)
        assert deaf.breaker.closed
        await deaf.fail(1)
        assert not deaf.breaker.closed

    asyncio.run(main())


def test_failures_of_several_processes_add_up(own_redis: RedisServer) -> None:
    async def main() -> None:
        processes = [await Process(*fleet(own_redis)).ready() for _ in range(4)]
        for process in processes:
            await process.fail(1)
        await until(lambda: not any(process.breaker.closed for process in processes))

    asyncio.run(main())


def test_one_process_that_fails_alone_is_outvoted(own_redis: RedisServer) -> None:
    async def main() -> None:
        broken, sound = [await Process(*fleet(own_redis, minimum=20, window=1.0)).ready() for _ in range(2)]
        for _ in range(30):
            for _ in range(10):
                sound.breaker.ended(False)
            await broken.fail(1)
            await asyncio.sleep(0.02)
        assert broken.breaker.closed and sound.breaker.closed

    asyncio.run(main())


def test_the_fleet_probes_with_one_request(own_redis: RedisServer) -> None:
    async def main() -> None:
        processes = [await Process(*fleet(own_redis)).ready() for _ in range(5)]
        await processes[0].fail(4)
        await until(lambda: not any(process.breaker.closed for process in processes))
        tokens = [(processes[0], await probing(processes[0]))]
        for process in processes * 3:
            with contextlib.suppress(CircuitOpen):
                tokens.append((process, await process.breaker.admit()))
        assert len(tokens) == 1
        prober, token = tokens[0]
        assert token is not None
        await prober.breaker.settle(token, "ok")
        await until(lambda: all(process.breaker.closed for process in processes))

    asyncio.run(main())


def test_a_long_probe_stays_the_only_one(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (boards, breaker_module):
        monkeypatch.setattr(module, "LEASE", 1.5)

    async def main() -> None:
        one, two = [await Process(*fleet(own_redis, cooldown=0.05)).ready() for _ in range(2)]
        await one.fail(4)
        await until(lambda: not two.breaker.closed)
        release, began = asyncio.Event(), asyncio.Event()

        async def answers(request: httpx.Request) -> httpx.Response:
            began.set()
            await release.wait()
            return httpx.Response(200)

        inner = httpx.MockTransport(answers)

        async def send() -> httpx.Response:
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(CircuitOpen):  # until its cooldown is over
                        return await Breaking(inner, lambda _: one.breaker).handle_async_request(
                            httpx.Request("GET", "http://e"))
                    await asyncio.sleep(0.005)

        probe = asyncio.create_task(send())
        await began.wait()
        end = asyncio.get_running_loop().time() + 2.5  # it was renewed meanwhile
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.1)
            with pytest.raises(CircuitOpen):
                await two.breaker.admit()
        release.set()
        assert (await probe).status_code == 200
        await until(lambda: two.breaker.closed)

    asyncio.run(main())


def test_a_healthy_endpoint_costs_no_trip_to_redis(own_redis: RedisServer) -> None:
    async def main() -> int:
        process = await Process(*fleet(own_redis)).ready()
        before = trips(own_redis)
        for _ in range(1000):
            assert await process.breaker.admit() is None
            process.breaker.ended(False)
        await settled(process.breaker)
        return trips(own_redis) - before

    assert asyncio.run(main()) == 0


def test_an_open_breaker_costs_no_trip_to_redis_and_a_storm_of_failures_few(own_redis: RedisServer) -> None:
    async def main() -> None:
        process = await Process(*fleet(own_redis, cooldown=60)).ready()
        before = trips(own_redis)
        await process.fail(1000)
        for _ in range(100):
            with pytest.raises(CircuitOpen):
                await process.breaker.admit()
        assert trips(own_redis) - before <= 3

    asyncio.run(main())


def test_there_is_one_small_key(own_redis: RedisServer) -> None:
    async def main() -> None:
        settings, policy = fleet(own_redis, minimum=1000, window=1.0)
        process = Process(settings, policy, listens=False)
        for _ in range(15):
            process.breaker.ended(False)
            await process.fail(2)
            await asyncio.sleep(0.1)
        redis, key = async_client(settings), Keys(settings.key_prefix).breaker("e")
        assert await redis.keys("*") == [key.encode()]
        assert await redis.hlen(key) <= 20
        assert 0 < await redis.pttl(key) <= 2000

    asyncio.run(main())


def test_while_redis_is_gone_each_process_decides_by_itself(own_redis: RedisServer,
                                                            caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        process = await Process(*fleet(own_redis, cooldown=0.2)).ready()
        own_redis.stop()
        await process.fail(4)
        assert not process.breaker.closed
        token = await probing(process)
        assert token is not None
        await process.breaker.settle(token, "ok")
        assert process.breaker.closed

    asyncio.run(main())
    assert caplog.text.count("breaker_alone") == 1


STEPS = st.lists(st.sampled_from(["fail", "ok", "ask", "good", "bad", "unknown"]), max_size=25)
_names = itertools.count()


@pytest.mark.parametrize("cooldown", [0.001, 3600])
@hypothesis.settings(deadline=None, max_examples=40)
@given(steps=STEPS)
def test_both_boards_say_the_same(redis_server: RedisServer, cooldown: float, steps: list[str]) -> None:
    async def play(board: LocalBoard) -> list[str]:
        said, token = [], "none"
        for number, step in enumerate(steps):
            await asyncio.sleep(0.002 if cooldown < 1 else 0)
            if step in ("fail", "ok"):
                answer = await board.report(int(step == "fail"), int(step == "ok"))
            elif step == "ask":
                answer = await board.ask(f"t{number}")
                token = f"t{number}" if answer.state == "probe" else token
            else:
                outcome: Any = {"good": "ok", "bad": "failed"}.get(step, "unknown")
                answer = await board.settle(token, outcome)
            said.append(answer.state)
        return said

    async def main() -> None:
        policy = BreakerPolicy(minimum=3, window=3600, cooldown=cooldown)
        shared = FleetBoard(f"same{next(_names)}", policy, Settings.load(redis_url=redis_server.url))
        assert await play(shared) == await play(LocalBoard(policy))

    asyncio.run(main())


def test_agents_on_workers_use_the_fleets_breaker_and_others_their_own(own_redis: RedisServer,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    listening: list[Any] = []
    monkeypatch.setattr(breaker_module, "on_lasting_loop", listening.append)

    async def main() -> None:
        async with Playing(answer(500)) as server:
            at = endpoint(server.url)
            settings = Settings.load(redis_url=own_redis.url, endpoints={"e": at.model_dump()})
            http = client("e", settings)
            for _ in range(3):
                await http.get("x")
            own = next(one for key, one in breaker_module._kept.items() if at.base_url in str(key))
            await until(lambda: not own.closed)
            assert own_redis.client().keys("*") == []
            with call_context(CallContext(job="j", call="c")):
                response = await http.get("x")
                assert record_of(response.request) is not None
                await until(lambda: own_redis.client().exists(Keys(settings.key_prefix).breaker("e")))
                assert len(listening) == 1
            with call_context(CallContext(job="j", call="c", local=True)), pytest.raises(CircuitOpen):
                await http.get("x")

    asyncio.run(main())


def test_a_worker_leaves_alone_what_another_found_failing(own_redis: RedisServer) -> None:
    async def main() -> None:
        fine = answer(200, whole({"content": "hello"}))
        async with Playing(fine, answer(500)) as server:
            prefix = "CALLSHEET_ENDPOINTS__OPENAI__"
            env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_QUEUES": "extra",
                   f"{prefix}BASE_URL": server.url, f"{prefix}RETRY__ATTEMPTS": "1", f"{prefix}BREAKER__MINIMUM": "4",
                   f"{prefix}BREAKER__COOLDOWN": "3600"}
            with (worker("callsheet.workers.io", own_redis.url, "-c", "5", env=env),
                  worker("callsheet.workers.io", own_redis.url, "-c", "5", "-Q", "extra", env=env) as other,
                  use_settings(Settings.load(redis_url=own_redis.url, queues="extra"))):

                async def fails(queue: str) -> AgentFailed:
                    with pytest.raises(AgentFailed) as caught:
                        await Spends("a").options(queue=queue).submit(Msg("u", "x", "user"))
                    return caught.value

                await Spends("a").options(queue="extra").submit(Msg("u", "x", "user"))  # it works, and listens
                told = [(await fails("io")).remote_type.rpartition(".")[2] for _ in range(5)]
                assert told[:3] == ["EndpointError"] * 3 and told[-1] == "CircuitOpen"
                await until(lambda: "breaker_open endpoint=openai" in other.log)
                asked = len(server.requests)
                for queue in ("extra", "io"):
                    assert (await fails(queue)).remote_type == "callsheet.errors.CircuitOpen"
                assert len(server.requests) == asked <= 5

    asyncio.run(main())
