"""Celery's inspection and control commands, and Flower's pages and API, tell and do what is right for this pool."""

import itertools
import json
import re

import pytest

from tests import pool_app as a
from tests.flower_process import flower
from tests.pool_workers import Pool, get, pool_worker, unique
from tests.services import RedisServer, wait_for, worker

SLOTS = 2


@pytest.fixture(scope="module")
def pool(redis_server):
    with pool_worker(redis_server, "-c", str(SLOTS), PARTS="callsheet", PREFETCH="3") as running:
        yield running


def prefetch(pool: Pool) -> int:
    return int(pool.inspect("stats")["prefetch_count"])


def test_inspect_tells_what_runs_waits_and_is_to_come(pool):
    key, gate = unique(), unique("gate")
    held = pool.holds(SLOTS, key, gate)
    pool.wait_notes(f"{key}:in", SLOTS)
    waiting = pool.holds(3, key, gate)
    later = pool.send(a.add, 1, 2, countdown=3600)
    wait_for(lambda: pool.inspect("scheduled") and pool.info()["queued"] == 3, what="all of them taken")
    wait_for(lambda: all(request["time_start"] for request in pool.inspect("active")), what="the starts")
    active = pool.inspect("active")
    assert {request["id"] for request in active} == {result.id for result in held}
    assert {(request["name"], request["acknowledged"], request["hostname"]) for request in active} == {
        ("tests.pool_app.hold", False, pool.process.name)}
    assert len({request["worker_pid"] for request in active}) == SLOTS
    assert {request["id"] for request in pool.inspect("reserved")} == {result.id for result in waiting}
    scheduled = pool.inspect("scheduled")
    assert [entry["request"]["id"] for entry in scheduled] == [later.id] and scheduled[0]["eta"]

    ids = [held[0].id, waiting[0].id, later.id, "unknown"]
    states = {ident: state for ident, (state, _) in pool.app.control.inspect(
        [pool.process.name], timeout=5, limit=1).query_task(*ids)[pool.process.name].items()}
    assert states == {held[0].id: "active", waiting[0].id: "reserved", later.id: "scheduled"}

    stats = pool.inspect("stats")
    assert stats["prefetch_count"] == 3 * SLOTS + 1  # the one far ahead takes no room
    info = stats["pool"]
    assert info["implementation"] == "callsheet.workers.pool:AsyncioPool"
    assert (info["max-concurrency"], info["running"], info["queued"], info["parked"]) == (SLOTS, SLOTS, 3, 0)
    assert info["processes"] == [stats["pid"]] == [pool.process.process.pid]
    pool.open(gate)
    for result in (*held, *waiting):
        get(result)
    wait_for(lambda: stats_of_tasks(pool)["tests.pool_app.hold"] >= 5, what="the count")
    pool.app.control.revoke(later.id)


def stats_of_tasks(pool: Pool) -> dict:
    return dict(pool.inspect("stats")["total"])


def test_inspect_tells_queues_and_tasks(pool):
    assert [queue["name"] for queue in pool.inspect("active_queues")] == [pool.queue]
    registered = pool.inspect("registered")
    assert {"tests.pool_app.hold", "tests.pool_app.in_thread"} <= {line.split()[0] for line in registered}
    assert pool.inspect("conf")["task_acks_late"] is True
    assert pool.inspect("report")["ok"].startswith("\nsoftware")


def test_parked_calls_are_told_and_let_more_be_fetched(pool):
    key, gate = unique(), unique("gate")
    before = prefetch(pool)
    results = [pool.send(a.parks, key, gate) for _ in range(4)]
    pool.wait_notes(f"{key}:parked", 4)
    wait_for(lambda: (pool.info()["parked"], pool.info()["running"]) == (4, 0), what="four parked")
    assert prefetch(pool) == before + 4
    assert len(pool.inspect("active")) == 4  # they run, for Celery
    pool.open(gate)
    assert [get(result) for result in results] == ["back"] * 4
    wait_for(lambda: prefetch(pool) == before, what="the count as before")


def test_grow_and_shrink_change_slots_and_prefetch_count(pool):
    key, gate = unique(), unique("gate")
    before = prefetch(pool)
    assert "ok" in pool.control("pool_grow", n=3)
    wait_for(lambda: (pool.info()["max-concurrency"], prefetch(pool)) == (SLOTS + 3, before + 9), what="the growth")
    held = pool.holds(SLOTS + 3, key, gate)
    pool.wait_notes(f"{key}:in", SLOTS + 3)
    assert "in use" in pool.control("pool_shrink", n=3)["error"]
    assert (pool.info()["max-concurrency"], prefetch(pool)) == (SLOTS + 3, before + 9)
    pool.open(gate)
    for result in held:
        get(result)
    wait_for(lambda: "ok" in pool.control("pool_shrink", n=3), what="idle slots")
    wait_for(lambda: (pool.info()["max-concurrency"], prefetch(pool)) == (SLOTS, before), what="the shrinking")
    assert "not enabled" in pool.control("autoscale", max=5, min=1)["error"]


def test_rate_limit_spreads_calls(pool):
    key, name = unique(), "tests.pool_app.stamp"
    assert "ok" in pool.control("rate_limit", task_name=name, rate_limit="10/s")
    results = [pool.send(a.stamp, key) for _ in range(6)]
    others = [pool.send(a.add, 1, 2) for _ in range(4)]
    assert [get(result) for result in others] == [3] * 4  # in no hurry, but not limited
    for result in results:
        get(result)
    times = sorted(float(at) for at in pool.redis.lrange(key, 0, -1))
    assert all(later - earlier > 0.05 for earlier, later in itertools.pairwise(times))
    assert times[-1] - times[0] > 0.45
    assert "ok" in pool.control("rate_limit", task_name=name, rate_limit="0")
    assert "error" in pool.control("rate_limit", task_name=name, rate_limit="many")


def test_time_limits_by_command_hold_for_calls_that_come_later(pool):
    key = unique()
    assert "ok" in pool.control("time_limit", task_name="tests.pool_app.swallow_and_return", soft=0.1, hard=5)
    assert pool.run(a.swallow_and_return, key) == "swallowed"  # the limit is a cancellation to who catches that
    pool.wait_log("Soft time limit (0.1s) exceeded for tests.pool_app.swallow_and_return")
    assert "ok" in pool.control("time_limit", task_name="tests.pool_app.swallow_and_return", soft=None, hard=None)


def test_a_queue_is_left_and_taken_up_again_while_others_go_on(own_redis):
    other, key, gate = unique("other"), unique(), unique("gate")
    with pool_worker(own_redis, "-c", "2", PARTS="callsheet", PREFETCH="2") as pool:
        assert "ok" in pool.control("add_consumer", queue=other)
        wait_for(lambda: {queue["name"] for queue in pool.inspect("active_queues")} == {pool.queue, other}, what="both")
        held = [a.hold.apply_async((key, gate), queue=other) for _ in range(6)]
        pool.wait_notes(f"{key}:in", 2)
        wait_for(lambda: pool.unacked(other) == 4, what="two that wait behind those that run")
        assert "ok" in pool.control("cancel_consumer", queue=other)
        wait_for(lambda: [queue["name"] for queue in pool.inspect("active_queues")] == [pool.queue], what="one left")
        pool.open(gate)
        wait_for(lambda: pool.unacked(other) == 0, what="all that had been taken to end")
        taken = pool.notes(f"{key}:out")
        assert 2 <= taken <= 4 and pool.redis.llen(other) == 6 - taken  # what was taken was run or given back
        more = [a.add.apply_async((1, 2), queue=other) for _ in range(5)]
        assert [pool.run(a.add, i, i) for i in range(10)] == [2 * i for i in range(10)]
        assert pool.redis.llen(other) == 6 - taken + 5
        assert "ok" in pool.control("add_consumer", queue=other)
        assert [get(result) for result in (*held, *more)] == ["held"] * 6 + [3] * 5


# Flower


@pytest.fixture(scope="module")
def watched():
    """An io worker with a fixed number of slots, one that scales, and Flower."""
    server = RedisServer()
    env = {"CALLSHEET_MODULES": "tests.agents,tests.agents.user_tasks", "CALLSHEET_QUEUES": "extra"}
    try:
        io = "callsheet.workers.io"
        with worker(io, server.url, "-c", "3", "-E", env=env) as fixed, \
                worker(io, server.url, "--autoscale=50,2", "-E", "-Q", "extra", env=env) as scales, \
                flower(server.url, **env) as started:
            names = {fixed.name, scales.name}
            wait_for(lambda: started.get("/api/workers", refresh="1").keys() >= names, 40, "both workers")
            yield started, fixed, scales
    finally:
        server.remove()


def pool_of(started, process):
    return started.worker(process.name)["stats"]["pool"]


def test_flower_shows_the_pool_as_it_is(watched):
    started, fixed, scales = watched
    told = started.worker(fixed.name)
    info = told["stats"]["pool"]
    assert (info["max-concurrency"], info["running"], info["parked"]) == (3, 0, 0)
    assert info["processes"] == [fixed.process.pid] and told["stats"]["prefetch_count"] == 3
    assert [queue["name"] for queue in told["active_queues"]] == ["io"]
    assert "tests.add_soon" in " ".join(told["registered"])
    assert pool_of(started, scales)["max-concurrency"] == 2
    page = started.get(f"/worker/{fixed.name}")
    for words in (fixed.name, "callsheet.workers.pool:AsyncioPool", "Max concurrency", str(fixed.process.pid)):
        assert words in page, words


def test_flower_lists_the_workers(watched):
    started, fixed, scales = watched

    def listed():
        return {row["hostname"] for row in json.loads(started.get("/workers?json=1"))["data"] if row["status"]}

    wait_for(lambda: listed() == {fixed.name, scales.name}, what="their heartbeats")


def test_flower_grows_shrinks_and_autoscales(watched):
    started, fixed, scales = watched
    started.post(f"/api/worker/pool/grow/{fixed.name}", n=4)
    wait_for(lambda: pool_of(started, fixed)["max-concurrency"] == 7, what="the growth")
    started.post(f"/api/worker/pool/shrink/{fixed.name}", n=4)
    wait_for(lambda: pool_of(started, fixed)["max-concurrency"] == 3, what="the shrinking")
    started.post(f"/api/worker/pool/autoscale/{scales.name}", min=5, max=20)
    wait_for(lambda: pool_of(started, scales)["max-concurrency"] == 5, what="the new smallest size")
    status, text = started.ask(f"/api/worker/pool/grow/{scales.name}", "POST", n=1)
    assert status == 403 and "autoscale" in text


def test_flower_adds_and_cancels_queues(watched):
    started, fixed, _ = watched

    def queues():
        return {queue["name"] for queue in started.worker(fixed.name)["active_queues"]}

    started.post(f"/api/worker/queue/add-consumer/{fixed.name}", queue="cpu")
    wait_for(lambda: queues() == {"io", "cpu"}, what="the queue")
    started.post(f"/api/worker/queue/cancel-consumer/{fixed.name}", queue="cpu")
    wait_for(lambda: queues() == {"io"}, what="the queue to be left")


def test_flower_sets_limits_of_a_task(watched):
    started, fixed, _ = watched
    assert started.post("/api/task/rate-limit/tests.add_soon", workername=fixed.name, ratelimit="7/m")
    assert started.post("/api/task/timeout/tests.add_soon", workername=fixed.name, soft=30, hard=60)
    told = wait_for(lambda: [line for line in started.worker(fixed.name)["registered"]
                             if re.search(r"tests.add_soon .*rate_limit=7/m", line)], what="the limit")
    assert len(told) == 1


def test_flower_shows_a_task_that_ran(watched):
    started, fixed, _ = watched
    done = started.post_json("/api/task/apply/tests.add_soon", {"args": [1, 2]})
    assert done["result"][0] == 3
    shown = wait_for(lambda: info if (info := started.get(f"/api/task/info/{done['task-id']}"))["state"] == "SUCCESS"
                     else None, what="its end")
    assert (shown["worker"], shown["name"]) == (fixed.name, "tests.add_soon")
