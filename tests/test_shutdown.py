"""Warm, soft, cold and hard shutdown as Celery documents them, by signals to a real worker under load."""

import signal
import time

import pytest

from callsheet.settings import use_settings
from tests import pool_app as a
from tests.agents.interrupted import Computes, Talker
from tests.fleet import client_settings
from tests.pool_workers import get, pool_worker, unique
from tests.services import wait_for, worker

TERM, QUIT, INT = signal.SIGTERM, signal.SIGQUIT, signal.SIGINT


def waiting(pool):
    return int(pool.redis.llen(pool.queue))


def another(pool, slots=8):
    """A worker on the same queue, with Celery's visibility timeout and our lease far longer than the tests."""
    return worker("tests.pool_app", pool.server.url, "-Q", pool.queue, "-c", str(slots),
                  env={"POOL_QUEUE": pool.queue, "PARTS": "callsheet"})


def ended(pool, within=15):
    """The exit code; nothing may be left registered as under delivery."""
    code = pool.process.process.wait(within)
    assert "Traceback (most" not in pool.process.log, pool.process.log
    assert pool.unacked() == 0
    return code


@pytest.fixture(autouse=True)
def _nothing_left_over(redis_server):
    redis_server.client().flushall()


def test_soft_shutdown_keeps_what_ends_in_time_and_gives_back_the_rest(redis_server):
    quick, slow, soon, never = unique(), unique(), unique("gate"), unique("gate")
    with pool_worker(redis_server, "-c", "4", PARTS="callsheet", PREFETCH="2", SOFT_SHUTDOWN="4") as pool:
        fast = [*pool.holds(2, quick, soon), pool.send(a.in_thread, soon)]
        pool.wait_notes(f"{soon}:in")
        pool.wait_notes(f"{quick}:in", 2)
        late = pool.holds(1, slow, never)
        pool.wait_notes(f"{slow}:in")
        pool.process.send_signal(QUIT)
        pool.process.wait_log("Initiating Soft Shutdown")
        pool.open(soon)
        assert ended(pool) == 0
        assert [result.state for result in fast] == ["SUCCESS"] * 3
        assert waiting(pool) == 1 and pool.notes(f"{slow}:cancelled") == 1
        pool.open(never)
        with another(pool):
            assert get(late[0]) == "held"
            wait_for(lambda: pool.unacked() == 0, what="an idle worker")
        assert (pool.notes(f"{quick}:in"), pool.notes(f"{slow}:in"), pool.notes(f"{soon}:in")) == (2, 2, 1)


def test_soft_shutdown_acknowledges_as_calls_end_and_ends_with_the_last(redis_server):
    key, one, two = unique(), unique("gate"), unique("gate")
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet", PREFETCH="3", SOFT_SHUTDOWN="600") as pool:
        results = [pool.send(a.hold, key, one), pool.send(a.hold, key, two)]
        pool.wait_notes(f"{key}:in", 2)
        pool.holds(3, key, two)
        wait_for(lambda: pool.info()["queued"] == 3, what="a line")
        pool.process.send_signal(QUIT)
        wait_for(lambda: waiting(pool) == 3, what="those that had not begun to be back at once")
        pool.open(one)
        wait_for(lambda: pool.unacked() == 1, what="the first acknowledgement, while the other runs")
        assert results[0].state == "SUCCESS" and pool.process.process.poll() is None
        pool.open(two)
        ended(pool)
        assert results[1].state == "SUCCESS"
        assert pool.notes(f"{key}:in") == 2 and waiting(pool) == 3


def test_a_second_signal_in_a_soft_shutdown_cancels_what_runs(redis_server):
    key = unique()
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet", SOFT_SHUTDOWN="600") as pool:
        pool.holds(2, key, unique("never"))
        pool.wait_notes(f"{key}:in", 2)
        pool.process.send_signal(QUIT)
        pool.process.wait_log("Initiating Soft Shutdown")
        pool.process.send_signal(QUIT)
        ended(pool)
        assert pool.notes(f"{key}:cancelled") == 2 and waiting(pool) == 2


@pytest.mark.parametrize("on_idle", [False, True])
def test_soft_shutdown_of_an_idle_worker(redis_server, on_idle):
    env = {"SOFT_ON_IDLE": "1"} if on_idle else {}
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet", SOFT_SHUTDOWN="1", **env) as pool:
        eta = pool.send(a.add, 1, 2, countdown=3600)
        wait_for(lambda: pool.inspect("scheduled"), what="a call far ahead")
        started = time.monotonic()
        pool.process.send_signal(QUIT)
        ended(pool)
        assert ("Initiating Soft Shutdown" in pool.process.log) is on_idle
        assert not on_idle or time.monotonic() - started >= 1
        assert waiting(pool) == 1 and eta.id in pool.redis.lindex(pool.queue, 0)


@pytest.mark.parametrize(("soft", "state"), [("0", "PENDING"), ("600", "SUCCESS")])
def test_sigterm_may_be_made_a_sigquit(redis_server, soft, state):
    key, gate = unique(), unique("gate")
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet", SOFT_SHUTDOWN=soft, REMAP_SIGTERM="SIGQUIT") as pool:
        result = pool.send(a.hold, key, gate)
        pool.wait_notes(f"{key}:in")
        pool.process.send_signal(TERM)
        if soft != "0":
            pool.process.wait_log("Initiating Soft Shutdown")
            pool.open(gate)
        ended(pool)
        assert result.state == state
        assert waiting(pool) == (state == "PENDING")


@pytest.mark.parametrize("signals", [[TERM, TERM, TERM], [INT, TERM]])
def test_one_or_more_sigterms_or_a_sigint_wait_for_what_runs(redis_server, signals):
    key, gate = unique(), unique("gate")
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet") as pool:
        results = pool.holds(2, key, gate)
        pool.wait_notes(f"{key}:in", 2)
        for number, sig in enumerate(signals, 1):
            pool.process.send_signal(sig)
            wait_for(lambda number=number: pool.process.log.count("Warm shutdown") == number, what="the signal's line")
        assert pool.process.process.poll() is None
        pool.open(gate)
        ended(pool)
        assert [result.state for result in results] == ["SUCCESS"] * 2
        assert pool.notes(f"{key}:in") == 2 and waiting(pool) == 0


@pytest.mark.parametrize("signals", [[QUIT], [TERM, INT, INT]])
def test_a_cold_shutdown_gives_everything_back_at_once(redis_server, signals):
    key, gate = unique(), unique("gate")
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet", PREFETCH="2") as pool:
        results = pool.holds(3, key, gate)
        pool.wait_notes(f"{key}:in", 2)
        wait_for(lambda: pool.info()["queued"] == 1, what="a line")
        for sig in signals:
            said = len(pool.process.log)
            pool.process.send_signal(sig)
            wait_for(lambda said=said: "hutdown" in pool.process.log[said:] or "Ctrl+C" in pool.process.log[said:]
                     or pool.process.process.poll() is not None, what="the signal's line")
        ended(pool)
        assert pool.notes(f"{key}:cancelled") == 2 and waiting(pool) == 3
        pool.open(gate)
        with another(pool):
            assert [get(result) for result in results] == ["held"] * 3


def test_a_hard_shutdown_waits_for_nobody_and_loses_nothing(redis_server):
    key = unique()
    with pool_worker(redis_server, "-c", "2", PARTS="callsheet", CANCEL_GRACE="600") as pool:
        result = pool.send(a.stubborn, key)
        pool.wait_notes(f"{key}:in")
        pool.process.send_signal(QUIT)
        pool.wait_notes(f"{key}:swallowed")  # only then has Celery set its next handler
        pool.process.send_signal(QUIT)
        pool.process.wait_log("Waiting gracefully for cold shutdown")
        assert pool.process.process.poll() is None
        pool.process.send_signal(QUIT)
        pool.process.process.wait(15)
        assert waiting(pool) == 1 and result.state == "PENDING"


@pytest.mark.parametrize("parts", ["callsheet", "stock"])
def test_warm_shutdown_under_full_load_ends_each_accepted_call_once(redis_server, parts):
    runs, slots, sent = unique(), 200, 700
    with pool_worker(redis_server, "-c", str(slots), PARTS=parts, PREFETCH="2") as pool:
        gates = [unique("gate"), unique("gate")]
        results = [pool.send(a.hold_counted, runs, gates[i % 2]) for i in range(sent)]
        pool.wait_notes(f"{runs}:in", slots)
        wait_for(lambda: pool.info()["queued"] == slots, what="as many in the line")
        pool.process.send_signal(TERM)
        pool.open(gates[0])  # calls end while the worker goes into its shutdown
        pool.process.wait_log("Warm shutdown")
        if parts == "callsheet":
            wait_for(lambda: waiting(pool) + pool.redis.llen(f"{runs}:in") >= sent, what="the rest to be back at once")
            assert pool.process.process.poll() is None
        pool.open(gates[1])
        assert ended(pool, 60) == 0
        begun = pool.notes(f"{runs}:in")
        assert pool.notes(f"{runs}:out") == begun >= slots
        assert waiting(pool) == sent - begun
        assert [result.state for result in results].count("SUCCESS") == begun
        with another(pool, slots):
            assert [get(result, 60) for result in results] == ["held"] * sent
        counts = pool.redis.hgetall(f"{runs}:runs")
        assert len(counts) == sent and set(counts.values()) == {"1"}


def test_cold_shutdown_under_full_load_loses_nothing(redis_server):
    runs, slots, sent = unique(), 200, 500
    with pool_worker(redis_server, "-c", str(slots), PARTS="callsheet", PREFETCH="2") as pool:
        gate = unique("gate")
        results = [pool.send(a.hold_counted, runs, gate) for _ in range(sent)]
        pool.wait_notes(f"{runs}:in", slots)
        pool.open(gate)  # some end as the rest is cut off
        pool.process.send_signal(QUIT)
        ended(pool, 60)
        done = [result.id for result in results if result.state == "SUCCESS"]
        assert waiting(pool) == sent - len(done)
        with another(pool, slots):
            assert [get(result, 60) for result in results] == ["held"] * sent
        counts = pool.redis.hgetall(f"{runs}:runs")
        assert len(counts) == sent and {counts[ident] for ident in done} <= {"1"}


def test_shutdown_by_command_gives_back_what_has_not_begun(redis_server):
    key, gate = unique(), unique("gate")
    with pool_worker(redis_server, "-c", "1", PARTS="callsheet", PREFETCH="6") as pool:
        results = pool.holds(3, key, gate)
        pool.wait_notes(f"{key}:in")
        pool.send(a.add, 1, 2, countdown=3600)
        pool.app.control.rate_limit("tests.pool_app.plain_add", "1/h", destination=[pool.process.name], reply=True)
        pool.send(a.plain_add, 1, 2)
        limited = pool.send(a.plain_add, 3, 4)
        wait_for(lambda: pool.unacked() == 6, what="all of them taken")
        pool.app.control.shutdown(destination=[pool.process.name])
        wait_for(lambda: waiting(pool) == 5, what="those that have not begun to be back at once")
        assert pool.process.process.poll() is None
        assert [text for text in pool.redis.lrange(pool.queue, 0, -1) if limited.id in text]
        pool.open(gate)
        assert ended(pool) == 0
        assert [result.state for result in results] == ["SUCCESS", "PENDING", "PENDING"]
        assert waiting(pool) == 5


@pytest.mark.parametrize(("queue", "soft"), [("io", 600), ("cpu", 2)])
def test_a_soft_shutdown_takes_its_time_from_the_settings(own_redis, queue, soft):
    """On prefork Celery itself waits, and hears of what has ended when the time is over."""
    env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_SOFT_SHUTDOWN": str(soft)}
    redis = own_redis.client()
    with use_settings(client_settings(own_redis)), \
            worker(f"callsheet.workers.{queue}", own_redis.url, "-c", "2", env=env) as process:
        gates, notes = [unique("gate"), unique("gate")], unique()
        agents = [Talker("t", gate, notes) if queue == "io" else Computes(gate, notes) for gate in gates]
        jobs = [agent.submit() for agent in agents]
        wait_for(lambda: redis.llen(notes) == 2, what="the replies to begin")
        process.send_signal(QUIT)
        process.wait_log(f"terminating in {soft:.1f} seconds")
        redis.set(gates[0], 1)
        if queue == "io":
            redis.set(gates[1], 1)
        process.process.wait(30)
        assert [job.status for job in jobs] == ["SUCCESS", "SUCCESS" if queue == "io" else "PENDING"]
        assert (redis.hlen("unacked"), redis.llen(queue)) == (0, 0 if queue == "io" else 1)
