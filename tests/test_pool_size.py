"""Slots that come and go, and calls that park."""

import time

import pytest

from tests import pool_app as a
from tests.pool_workers import get, pool_worker, unique
from tests.services import wait_for


@pytest.fixture(scope="module")
def one(redis_server):
    with pool_worker(redis_server, "-c", "1") as running:
        yield running


def test_tree_of_calls_deeper_than_the_slots(one):
    assert one.run(a.tree, 10, timeout=20) == 10
    wait_for(lambda: one.info()["parked"] == 0, what="nobody parked")
    wait_for(lambda: one.inspect("stats")["prefetch_count"] == 1, what="the prefetch count as before")


def test_slot_is_given_back_while_parked_and_taken_again(one):
    key, gate, other, shut = unique(), unique("gate"), unique(), unique("gate")
    parked = one.send(a.parks, key, gate, 3)
    one.wait_notes(f"{key}:parked", 3)
    held = one.send(a.hold, other, shut)
    one.wait_notes(f"{other}:in")
    info = one.info()
    assert (info["parked"], info["running"]) == (1, 1)
    one.open(gate)
    assert one.notes(f"{key}:back") == 0  # its slot is taken
    one.open(shut)
    assert [get(held), get(parked)] == ["held", "back"]


def test_revoking_a_parked_call(one):
    key = unique()
    result = one.send(a.parks, key, unique("never"))
    one.wait_notes(f"{key}:parked")
    one.app.control.revoke(result.id, terminate=True)
    wait_for(lambda: result.state == "REVOKED", what="REVOKED")
    wait_for(lambda: (one.info()["parked"], one.info()["running"]) == (0, 0), what="slots as before")
    assert one.run(a.add, 1, 2) == 3


def test_grow_and_shrink_live(one):
    key, gate = unique(), unique("gate")
    results = one.holds(3, key, gate)
    one.wait_notes(f"{key}:in")
    assert "ok" in one.control("pool_grow", n=2)
    one.wait_notes(f"{key}:in", 3)
    assert "error" in one.control("pool_shrink", n=2)
    assert one.info()["max-concurrency"] == 3
    one.open(gate)
    for result in results:
        get(result)
    wait_for(lambda: one.info()["running"] == 0, what="an idle pool")
    assert "ok" in one.control("pool_shrink", n=2)
    assert one.info()["max-concurrency"] == 1


@pytest.fixture(scope="module")
def two(redis_server):
    """Two slots, a line behind them, and room for one parked call."""
    with pool_worker(redis_server, "-c", "2", PREFETCH="3", CALLSHEET_MAX_PARKED="1") as running:
        yield running


def test_call_keeps_its_slot_when_too_many_are_parked(two):
    key, gate = unique(), unique("gate")
    results = [two.send(a.parks, key, gate) for _ in range(2)]
    two.wait_notes(f"{key}:parked", 2)
    info = two.info()
    assert (info["parked"], info["running"]) == (1, 1)
    assert "max_parked allows no more" in two.process.log
    two.open(gate)
    assert [get(result) for result in results] == ["back", "back"]


def test_calls_that_are_revoked_or_expire_in_the_line_do_not_run(two):
    key, gate = unique(), unique("gate")
    held = two.holds(2, key, gate)
    two.wait_notes(f"{key}:in", 2)
    revoked, terminated = two.holds(2, key, gate)
    expired, over = two.send(a.hold, key, gate, expires=0.05), time.monotonic() + 0.1
    thread = two.send(a.sleep_thread, 30)
    wait_for(lambda: two.info()["queued"] == 4, what="four in the line")
    two.app.control.revoke(revoked.id)
    two.app.control.revoke([terminated.id, thread.id], terminate=True)
    wait_for(lambda: two.info()["queued"] == 2, what="the terminated ones to leave the line")
    wait_for(lambda: revoked.id in two.inspect("revoked"), what="the revocation")
    wait_for(lambda: time.monotonic() > over, what="the expiry")
    two.open(gate)
    assert [get(result) for result in held] == ["held"] * 2
    wait_for(lambda: not two.inspect("reserved") and two.info()["running"] == 0, what="an empty line")
    assert {result.state for result in (revoked, terminated, expired, thread)} == {"REVOKED"}
    assert two.notes(f"{key}:in") == 2
    assert two.run(a.add, 1, 2) == 3


def test_autoscale_grows_under_load_and_shrinks_when_idle(redis_server):
    with pool_worker(redis_server, "--autoscale=6,1", AUTOSCALE_KEEPALIVE="0.3") as pool:
        key, gate = unique(), unique("gate")
        results = pool.holds(8, key, gate)
        pool.wait_notes(f"{key}:in", 6)
        pool.open(gate)
        assert [get(result) for result in results] == ["held"] * 8
        assert int(pool.redis.get(f"{key}:most")) == 6
        wait_for(lambda: pool.info()["max-concurrency"] == 1, what="one slot again")
        assert pool.run(a.add, 1, 2) == 3


def test_prefetch_follows_the_size_and_leaves_the_rest_to_others(redis_server):
    def prefetch(pool):
        return pool.inspect("stats")["prefetch_count"]

    with pool_worker(redis_server, "--autoscale=100,2", AUTOSCALER="tests.pool_app:OnRequest") as small:
        assert prefetch(small) == 4
        key, gate = unique(), unique("gate")
        results = small.holds(20, key, gate)
        small.wait_notes(f"{key}:in", 2)
        wait_for(lambda: len(small.inspect("reserved")) == 2, what="two that wait behind those that run")
        small.control("resize_pool", n=4)
        small.wait_notes(f"{key}:in", 6)
        wait_for(lambda: prefetch(small) == 8 and len(small.inspect("reserved")) == 2, what="more for more slots")
        assert "ok" in small.control("autoscale", max=7, min=2)
        wait_for(lambda: prefetch(small) == 7, what="no more than the largest size")
        with pool_worker(redis_server, "-c", "50", POOL_QUEUE=small.queue) as other:
            small.app.control.add_consumer(small.queue, destination=[other.process.name])
            small.wait_notes(f"{key}:in", 6 + 12)
            small.open(gate)
            assert [get(result) for result in results] == ["held"] * 20
        small.control("resize_pool", n=-4)
        wait_for(lambda: prefetch(small) == 4, what="fewer for fewer slots")


def test_autoscale_to_hundreds_at_once(redis_server):
    with pool_worker(redis_server, "--autoscale=200,2") as pool:
        key, gate = unique(), unique("gate")
        results = pool.holds(205, key, gate)
        pool.wait_notes(f"{key}:in", 200)
        assert pool.inspect("stats")["prefetch_count"] == 200
        pool.open(gate)
        assert [get(result) for result in results] == ["held"] * 205
