"""The asyncio pool in a real worker: what Celery promises holds for coroutines."""

import contextlib
import gc
import os
import statistics
import threading
import time
import weakref

import psutil
import pytest
from celery.exceptions import Ignore, TimeLimitExceeded

from callsheet.errors import JobError
from callsheet.workers.machine import memory_of
from callsheet.workers.watch import GROWTH, Growth, spare_collector
from tests import pool_app as a
from tests.pool_workers import get, pool_worker, unique
from tests.services import wait_for


@pytest.fixture(scope="module")
def pool(redis_server):
    with pool_worker(redis_server, "-c", "4", "-E", "--max-tasks-per-child=1000") as running:
        yield running
        assert "Callback" not in running.process.log, "a callback of Celery's raised on the hub's thread"


def test_async_and_plain_tasks_give_their_results(pool):
    assert pool.run(a.add, 1, 2) == 3
    assert pool.run(a.plain_add, 1, 2) == 3


def test_class_based_task(pool):
    result = pool.send(a.by_class, 5)
    assert get(result) == [5, result.id]


def test_request_and_current_task_hold_across_awaits(pool):
    results = [pool.send(a.who) for _ in range(12)]
    for result in results:
        assert get(result) == [result.id, "tests.pool_app.who", "callsheet-loop"]


def test_retry_with_countdown(pool):
    assert pool.run(a.flaky, 2, 0.05) == 2


def test_retry_publishes_by_a_thread_and_before_it_raises(pool):
    queue = unique("nobody")
    result = pool.send(a.retries_elsewhere, queue)
    published, threads, request_id, task = get(result)
    assert (published, request_id, task) == (1, result.id, "tests.pool_app.retries_elsewhere")
    assert [name.rpartition("_")[0] for name in threads] == ["callsheet-aside"]


def test_retry_of_what_cannot_be_sent_is_a_rejection_as_in_celery(pool):
    assert pool.run(a.retries_what_cannot_travel) == ["EncodeError", False]


def test_retry_at_once_is_not_taken_for_a_second_delivery(pool):
    results = [pool.send(a.flaky, 3) for _ in range(10)]
    assert [get(result) for result in results] == [3] * 10


def test_failures(pool):
    with pytest.raises(ValueError, match="boom"):
        pool.run(a.fail)
    assert wait_state(pool.send(a.reject), "FAILURE")
    assert "WorkerLost" in repr(get(pool.send(a.leave), propagate=False))
    ignored = pool.send(a.ignore)
    pool.wait_log(f"{ignored.id}] ignored")
    wait_for(lambda: not pool.inspect("active"), what="no active request left")
    assert issubclass(Ignore, Exception)


@pytest.mark.parametrize(("task", "args", "stored"), [
    (a.plain_memory, (), "MemoryError('12 GiB')"), (a.clumsy, (), "None"), (a.clumsy, (True,), "ValueError('why')"),
], ids=["a thread's", "on_success", "on_failure"])
def test_no_memory_error_keeps_a_message_or_a_slot(pool, task, args, stored):
    results = [pool.send(task, *args) for _ in range(8)]  # twice as many as there are slots
    assert [repr(get(result, propagate=False)) for result in results] == [stored] * 8
    wait_for(lambda: not pool.unacked(), what="their messages to be settled")
    assert pool.run(a.add, 1, 1) == 2


def test_a_failure_that_waits_to_be_stored_is_small_and_what_it_held_is_let_go(redis_server):
    """Billiard's account of one is a megabyte."""
    key = unique()
    with pool_worker(redis_server, "-c", "200", PARTS="callsheet") as pool:
        process = psutil.Process(pool.process.process.pid)

        def round_of(megabytes):
            results = [pool.send(a.keeps, key, megabytes) for _ in range(200)]
            pool.wait_notes(key, 200)
            pool.open(f"{key}:gate")
            assert {repr(get(result, 30, propagate=False)) for result in results} == {"ValueError('all at once')"}
            pool.redis.delete(key, f"{key}:gate")
            return process.memory_info().rss >> 20

        before = process.memory_info().rss >> 20
        assert round_of(0) < before + 90
        round_of(1)
        wait_for(lambda: process.memory_info().rss >> 20 < before + 150, what="what they held to be free")


def test_what_is_of_no_use_on_this_pool_is_said(pool):
    assert "--max-tasks-per-child does nothing here" in pool.process.log


def wait_state(result, state):
    return wait_for(lambda: result.state == state, 10, lambda: f"{state}, not {result.state}")


def test_asyncio_works_inside(pool):
    assert pool.run(a.grouped, 3) == [0, 1, 2]
    assert pool.run(a.timed) == "timeout"
    assert pool.run(a.generator_sum, 4) == 6


def test_task_called_in_a_task(pool):
    assert pool.run(a.awaits_task, 1, 2) == 3
    assert pool.run(a.applies_eagerly, 1, 2) == 3


def test_plain_task_runs_in_a_thread_while_the_loop_lives(pool):
    gate = unique("gate")
    result = pool.send(a.in_thread, gate)
    pool.wait_notes(f"{gate}:in")
    assert pool.run(a.add, 1, 1) == 2
    pool.open(gate)
    assert get(result) == ["callsheet-task", True]


def test_concurrency_never_above_the_limit(pool):
    key, gate = unique(), unique("gate")
    results = pool.holds(4, key, gate)
    pool.wait_notes(f"{key}:in", 4)
    results += pool.holds(4, key, gate)
    pool.open(gate)
    assert [get(result) for result in results] == ["held"] * 8
    assert int(pool.redis.get(f"{key}:most")) == 4


def test_soft_time_limit_is_raised_at_the_await_point(pool):
    key = unique()
    assert pool.run(a.soft, key) == "softened"
    assert pool.notes(key) == 1
    assert "SoftTimeLimitExceeded" in repr(get(pool.send(a.soft_uncaught), propagate=False))
    pool.wait_log("Soft time limit (0.1s) exceeded for tests.pool_app.soft[")


def test_soft_time_limit_leaves_no_subtask_behind(pool):
    key = unique()
    assert "SoftTimeLimitExceeded" in repr(get(pool.send(a.soft_lock, key), propagate=False))
    pool.wait_notes(key, 2)


def test_hard_time_limit_cancels(pool):
    key = unique()
    with pytest.raises(TimeLimitExceeded):
        pool.run(a.hard, key)
    pool.wait_notes(f"{key}:finally")


def test_time_limits_of_a_thread(pool):
    assert pool.run(a.soft_thread) == "softened"
    with pytest.raises(TimeLimitExceeded):
        pool.run(a.hard_thread)
    assert pool.run(a.plain_add, 1, 2) == 3


def test_swallowed_cancellation_is_logged_and_keeps_its_slot(pool):
    key, gate = unique(), unique("gate")
    result = pool.send(a.hard_swallowed, key, gate)
    with pytest.raises(TimeLimitExceeded):
        get(result)
    pool.wait_notes(f"{key}:swallowed", 2)  # cancelled again
    pool.wait_log(f"hard_swallowed[{result.id}] goes on")
    assert pool.info()["running"] == 1
    pool.open(gate)
    pool.wait_notes(f"{key}:end")
    wait_for(lambda: pool.info()["running"] == 0, what="the slot to be free")
    assert result.state == "FAILURE"


def test_revoke_terminate_cancels_the_coroutine(pool):
    key = unique()
    result = pool.send(a.hold, key, unique("never"))
    pool.wait_notes(f"{key}:in")
    pool.app.control.revoke(result.id, terminate=True)
    pool.wait_notes(f"{key}:cancelled")
    pool.wait_notes(f"{key}:finally")
    wait_state(result, "REVOKED")
    wait_for(lambda: not pool.inspect("active"), what="no active request left")
    assert result.id in pool.inspect("revoked")
    assert result.state == "REVOKED"


def test_swallowed_revocation_is_not_a_success(pool):
    key = unique()
    result = pool.send(a.swallow_and_return, key)
    pool.wait_notes(f"{key}:in")
    pool.app.control.revoke(result.id, terminate=True)
    wait_state(result, "REVOKED")
    wait_for(lambda: pool.info()["running"] == 0, what="the call to end")
    assert result.state == "REVOKED"


def test_revoke_terminate_of_a_thread(pool):
    result = pool.send(a.sleep_thread, 30)
    wait_for(lambda: pool.inspect("active"), what="the call to start")
    pool.app.control.revoke(result.id, terminate=True)
    wait_state(result, "REVOKED")
    wait_for(lambda: pool.info()["running"] == 0, what="the thread to end")


def test_own_cancellation_is_a_failure(pool):
    for task in (a.cancels_itself, a.raises_cancelled):
        with pytest.raises(JobError, match="nobody revoked it"):
            pool.run(task)
    assert pool.run(a.add, 1, 2) == 3


def test_inspect_tells_what_runs(pool):
    key, gate = unique(), unique("gate")
    held = pool.holds(4, key, gate)
    pool.wait_notes(f"{key}:in", 4)
    active = wait_for(lambda: [r for r in pool.inspect("active") if r["time_start"]], what="active")
    assert {request["id"] for request in active} == {result.id for result in held}
    assert len({request["worker_pid"] for request in active}) == 4
    info = pool.info()
    assert (info["running"], info["max-concurrency"], info["parked"]) == (4, 4, 0)
    assert info["processes"] == [pool.process.process.pid]
    pool.open(gate)
    for result in held:
        get(result)
    wait_for(lambda: not pool.inspect("active") and not pool.inspect("reserved"), what="nothing active")
    wait_for(lambda: pool.unacked() == 0, what="the acknowledgements, which follow a turn of the loop later")


def test_events(pool):
    seen = []
    done = threading.Event()
    ready = threading.Event()

    def listen():
        with pool.app.connection_for_read() as connection:
            receiver = pool.app.events.Receiver(connection, handlers={"*": seen.append})
            with receiver.consumer_context() as (drained, _, _):
                ready.set()
                while not done.is_set():
                    with contextlib.suppress(TimeoutError):
                        drained.drain_events(timeout=0.1)

    thread = threading.Thread(target=listen)
    thread.start()
    ready.wait(5)
    kinds = {"task-received", "task-started", "task-succeeded"}

    def told() -> bool:
        # What is published before the listener's first read is lost: run until one task is told of in full.
        ident = pool.send(a.add, 1, 2).id
        with contextlib.suppress(AssertionError):
            return wait_for(lambda: {e["type"] for e in seen if e.get("uuid") == ident} >= kinds, 2, "events")
        return False

    try:
        wait_for(told, 15, "the events of a task")
    finally:
        done.set()
        thread.join()


def test_code_that_blocks_the_loop_is_logged_with_its_stack(pool):
    before = pool.info()["loop-blocked"]
    result = pool.send(a.block, 0.6)
    get(result)
    wait_for(lambda: pool.info()["loop-blocked"] == before + 1, what="the count")
    pool.wait_log(f"tests.pool_app.block[{result.id}] has blocked the event loop")
    pool.wait_log("time.sleep(seconds)")


def test_acknowledged_at_once(pool):
    """Not with the hub's next poll, up to a second later."""
    times = []
    for _ in range(9):
        pool.run(a.add, 1, 2)
        started = time.monotonic()
        wait_for(lambda: pool.unacked() == 0, every=0.002, what="the acknowledgement")
        times.append(time.monotonic() - started)
    # One that is late tells of a busy machine; the hub's poll would delay them all.
    assert sorted(times)[4] < 0.3, times


def test_idle_worker_is_idle(pool):
    wait_for(lambda: pool.info()["running"] == 0, what="an idle pool")
    process = psutil.Process(pool.process.process.pid)
    # A timer's turn or two may fall into a single look.
    assert statistics.median(process.cpu_percent(interval=1.0) for _ in range(5)) < 2


def test_garbage_collector_is_made_to_run_seldom():
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        spare_collector()
        assert gc.get_threshold() == (50_000, 10, 10)
        assert gc.get_freeze_count() > 0
        gc.set_threshold(90_000, 30, 5)  # the user's own wish
        spare_collector()
        assert gc.get_threshold() == (90_000, 30, 5)
        gc.set_threshold(0)
        spare_collector()
        assert gc.get_threshold()[0] == 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_garbage_of_few_large_objects_is_collected_when_memory_grows():
    class Page:
        def __init__(self):
            self.text = bytearray(os.urandom(1024)) * 1024
            self.itself = self

    before = gc.get_threshold()
    try:
        gc.set_threshold(1_000_000)
        growth = Growth()
        first = weakref.ref(Page())
        growth.look()
        assert first() is not None  # not worth the time
        least = memory_of(os.getpid())
        while memory_of(os.getpid()) <= least + GROWTH + 2**20:
            Page()
        growth.look()
        assert first() is None
    finally:
        gc.set_threshold(*before)
