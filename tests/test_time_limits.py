"""Soft and hard time limits of a call, of a task and of a worker, on the asyncio pool."""

import pytest
from celery.exceptions import TimeLimitExceeded

from tests import pool_app as a
from tests import semantics_app as s
from tests.pool_workers import get, pool_worker, unique
from tests.services import wait_for


@pytest.fixture(scope="module")
def pool(redis_server):
    """With limits of its own."""
    with pool_worker(redis_server, "-c", "4", "--soft-time-limit", "0.6", "--time-limit", "1.5",
                     module="tests.semantics_app", PARTS="callsheet") as running:
        yield running


def test_the_workers_limits_hold_for_tasks_without_any(pool):
    key = unique()
    kind, seconds, limit = pool.run(s.unlimited, key)
    assert (kind, limit) == ("soft", 0.6) and 0.5 < seconds < 10
    assert pool.run(s.unlimited_thread, key) == "soft"
    with pytest.raises(TimeLimitExceeded):
        pool.run(a.stubborn_for, key, 2.0)
    assert pool.info()["timeouts"] == [0.6, 1.5]


def test_the_tasks_limits_come_before_the_workers(pool):
    kind, seconds, limit = pool.run(s.limited, unique())
    assert (kind, limit) == ("soft", 0.2) and 0.1 < seconds < 10


def test_the_calls_limits_come_before_all_others(pool):
    key = unique()
    kind, seconds, limit = pool.run(s.limited, key, soft_time_limit=0.05)
    assert (kind, limit) == ("soft", 0.05) and 0.04 < seconds < 10
    assert pool.run(s.limited, key, 1.0, soft_time_limit=20)[0] == "over"
    with pytest.raises(TimeLimitExceeded):
        pool.run(s.limited, unique(), soft_time_limit=20, time_limit=0.1)
    assert pool.run(s.unlimited, key, 2.0, soft_time_limit=20, time_limit=20)[0] == "over"


def test_the_hard_limit_ends_what_went_on_after_the_soft_one(pool):
    key = unique()
    with pytest.raises(TimeLimitExceeded):
        pool.run(s.goes_on_after_the_soft_limit, key)
    pool.wait_notes(key, 2)
    assert pool.redis.lrange(key, 0, -1) == ["soft", "hard"]


def test_a_soft_limit_cancels_a_task_group_and_may_be_caught_around_it(pool):
    key = unique()
    assert pool.run(s.cleans_up_in_a_group, key) == "cleaned up"
    assert sorted(pool.redis.lrange(key, 0, -1)) == ["part 0", "part 1"]


def test_a_limit_that_strikes_a_parked_call_leaves_its_slots_right(pool):
    results = [pool.send(a.parks, unique(), unique("never"), 2) for _ in range(6)]
    failures = [get(result, propagate=False) for result in results]
    assert all("SoftTimeLimitExceeded" in repr(failure) for failure in failures)
    wait_for(lambda: (pool.info()["running"], pool.info()["parked"]) == (0, 0), what="free slots")
    assert [pool.run(a.add, i, 1) for i in range(5)] == [1, 2, 3, 4, 5]


def test_limits_do_not_strike_the_call_that_has_the_slot_or_thread_next(pool):
    for task in (s.unlimited_thread, s.limited):
        results = [pool.send(task, unique(), soft_time_limit=0.05) for _ in range(20)]
        quick = [pool.send(a.plain_add, i, i) for i in range(40)]
        assert [get(result) for result in quick] == [2 * i for i in range(40)]
        for result in results:
            get(result)
