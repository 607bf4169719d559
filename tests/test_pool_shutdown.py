"""How a worker on the asyncio pool ends, and what becomes of its calls; with real signals."""

import signal

import pytest

from tests import pool_app as a
from tests.pool_workers import Pool, get, pool_worker, unique
from tests.services import wait_for, worker

LONG = {"CANCEL_GRACE": "60", "PARKED_GRACE": "60"}  # a worker that waited for either would end far too late


def ended(pool: Pool) -> None:
    pool.process.process.wait(20)
    assert "Traceback" not in pool.process.log, pool.process.log


def waiting(pool: Pool) -> int:
    return int(pool.redis.llen(pool.queue))


def again(pool: Pool):
    """Another worker on the same queue."""
    return worker("tests.pool_app", pool.server.url, "-Q", pool.queue, "-c", "4", env={"POOL_QUEUE": pool.queue})


def test_warm_shutdown_finishes_and_acknowledges_what_runs_and_hands_back_the_rest(redis_server):
    key, gate = unique(), unique("gate")
    with pool_worker(redis_server, "-c", "2", PREFETCH="2", **LONG) as pool:
        results = pool.holds(5, key, gate)  # two run, two wait in the pool, one in the queue
        pool.wait_notes(f"{key}:in", 2)
        wait_for(lambda: pool.info()["queued"] == 2, what="two in the pool's line")
        pool.process.process.send_signal(signal.SIGTERM)
        pool.process.wait_log("Warm shutdown")
        pool.open(gate)
        ended(pool)
        assert pool.process.process.returncode == 0
        started = pool.notes(f"{key}:in")  # a third may start before the signal is acted on
        assert [result.state for result in results].count("SUCCESS") == started >= 2
        assert waiting(pool) == 5 - started


def test_warm_shutdown_acknowledges_while_it_waits(redis_server):
    key, gate, late = unique(), unique("gate"), unique("gate")
    with pool_worker(redis_server, "-c", "2", **LONG) as pool:
        before = pool.unacked()
        results = [pool.send(a.hold, key, gate), pool.send(a.hold, key, late)]
        pool.wait_notes(f"{key}:in", 2)
        assert pool.unacked() == before + 2
        pool.process.process.send_signal(signal.SIGTERM)
        pool.process.wait_log("Warm shutdown")
        pool.open(gate)
        wait_for(lambda: pool.unacked() == before + 1, what="the first acknowledgement")
        assert pool.process.process.poll() is None
        pool.open(late)
        ended(pool)
        assert [get(result) for result in results] == ["held"] * 2
        assert pool.unacked() == before


@pytest.mark.parametrize("signals", [[signal.SIGQUIT], [signal.SIGINT, signal.SIGINT],
                                     [signal.SIGTERM, signal.SIGQUIT]])
def test_cold_shutdown_cancels_and_loses_nothing(redis_server, signals):
    key, gate = unique(), unique("gate")
    with pool_worker(redis_server, "-c", "3", PREFETCH="2", **LONG) as pool:
        results = [pool.send(a.hold, key, gate), pool.send(a.hold, key, gate), pool.send(a.in_thread, gate),
                   pool.send(a.hold, key, gate)]
        pool.wait_notes(f"{key}:in", 2)
        pool.wait_notes(f"{gate}:in")
        for number, sig in enumerate(signals):
            pool.process.process.send_signal(sig)
            if number + 1 < len(signals):
                pool.process.wait_log("Warm shutdown")  # said when the next signal means more
        ended(pool)
        assert pool.notes(f"{key}:cancelled") == 2
        assert waiting(pool) == 4
        pool.open(gate)
        if signals != [signal.SIGQUIT]:
            return
        with again(pool):
            assert get(results[0]) == get(results[1]) == get(results[3]) == "held"
            assert get(results[2])[1] is True


def test_cold_shutdown_with_a_call_that_swallows_cancellation(redis_server):
    key = unique()
    with pool_worker(redis_server, "-c", "1") as pool:
        pool.send(a.stubborn, key)
        pool.wait_notes(f"{key}:in")
        pool.process.process.send_signal(signal.SIGQUIT)
        ended(pool)
        assert "although 1 cancelled calls go on" in pool.process.log
        assert waiting(pool) == 1


def test_warm_shutdown_hands_back_calls_that_only_wait(redis_server):
    """A parked call whose child nobody runs must not hold the worker for ever."""
    with pool_worker(redis_server, "-c", "1", PARKED_GRACE="0.3") as pool:
        key = unique()
        pool.send(a.parks, key, unique("never"))
        pool.wait_notes(f"{key}:parked")
        pool.process.process.send_signal(signal.SIGTERM)
        ended(pool)
        assert waiting(pool) == 1


def cut(server):
    server.client().client_kill_filter(_type="normal", skipme=True)
    server.client().client_kill_filter(_type="pubsub", skipme=True)


def send_as_twin(pool, server, task, *args):
    with a.app.connection_for_write(server.url) as connection:
        pool.send(task, *args, connection=connection, task_id="twin")


def test_lost_connection_does_not_run_a_call_twice_at_once(own_redis):
    key, gate = unique(), unique("gate")
    with pool_worker(own_redis, "-c", "4") as pool:
        send_as_twin(pool, own_redis, a.hold, key, gate)
        pool.wait_notes(f"{key}:in")
        cut(own_redis)
        pool.process.wait_log("was delivered again while it runs")
        pool.open(gate)
        pool.wait_notes(f"{key}:out")
        wait_for(lambda: pool.unacked() == 0 and waiting(pool) == 0, what="the second delivery acknowledged")
        assert (pool.notes(f"{key}:in"), int(pool.redis.get(f"{key}:most"))) == (1, 1)
        assert b"SUCCESS" in pool.redis.get("celery-task-meta-twin").encode()


def test_celerys_setting_cancels_what_runs_when_the_connection_is_lost_and_runs_it_again(own_redis):
    key, gate, until = unique(), unique("gate"), unique("until")
    with pool_worker(own_redis, "-c", "4", CANCEL_ON_LOSS="1", CANCEL_GRACE="60") as pool:
        send_as_twin(pool, own_redis, a.hold_and_clean_up, key, gate, until)
        pool.wait_notes(f"{key}:in")
        cut(own_redis)
        pool.wait_notes(f"{key}:cancelled")
        pool.process.wait_log("was delivered again while it runs")
        pool.open(gate)
        assert pool.notes(f"{key}:in") == 1  # not while the first cleans up
        pool.open(until)
        pool.wait_notes(f"{key}:out")
        wait_for(lambda: pool.unacked() == 0 and waiting(pool) == 0, what="an acknowledgement")
        assert pool.notes(f"{key}:in") == 2
