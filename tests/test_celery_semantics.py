"""What Celery promises its tasks, for coroutines on the asyncio pool of a real worker."""

import itertools

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TimeLimitExceeded

from tests import pool_app as a
from tests import semantics_app as s
from tests.pool_workers import get, pool_worker, unique
from tests.services import wait_for


@pytest.fixture(scope="module")
def pool(redis_server):
    with pool_worker(redis_server, "-c", "8", module="tests.semantics_signals", PARTS="callsheet",
                     PREFETCH="2") as running:
        yield running
        assert "Callback" not in running.process.log, "a callback of Celery's raised on the hub's thread"


@pytest.fixture
def on(pool):
    """Signatures for the worker's queue."""
    return lambda task, *args, **options: task.s(*args).set(queue=pool.queue, **options)


def signals(pool, ident, last):
    wait_for(lambda: last in pool.redis.lrange(f"signals:{ident}", 0, -1), 15,
             f"{last}, not {pool.redis.lrange(f'signals:{ident}', 0, -1)}")
    return pool.redis.lrange(f"signals:{ident}", 0, -1)


# Canvases


def test_chains_groups_and_chords_nested_in_each_other(pool, on):
    def pair(x, y):
        return group(on(a.add, x), on(a.add, y))

    cases = [
        (chain(on(a.add, 1, 1), on(a.add, 2), on(a.plain_add, 3)), 7),
        (chain(on(a.add, 1, 1), pair(10, 20), on(a.total)), 34),
        (chain(group(on(a.add, 0, 1), on(a.add, 0, 2)), on(a.total), pair(1, 2)), [4, 5]),
        (group(chain(on(a.add, 1, 1), on(a.add, 1)), chain(on(a.add, 2, 2), on(a.add, 2))), [3, 6]),
        (group(group(on(a.add, 1, 1), on(a.add, 2, 2)), on(a.add, 3, 3)), [2, 4, 6]),  # Celery flattens it
        (chord([chain(on(a.add, i, i), on(a.add, 1)) for i in range(3)], on(a.total)), 9),
        (chord([chord([on(a.add, i, i) for i in range(3)], on(a.total)), on(a.add, 1, 1)], on(a.total)), 8),
        (chain(on(a.add, 1, 1), chord([on(a.add, 1), on(a.add, 2)], on(a.total)), on(a.add, 100)), 107),
        (chord([on(a.add, 1, 1), on(a.add, 2, 2)], chain(on(a.total), pair(1, 2), on(a.total))), 15),
        (chord([group(on(a.add, i, i) for i in range(2)), on(a.add, 5, 5)], on(a.total)), 12),
    ]
    for canvas, expected in cases:
        assert get(canvas.apply_async(), 20) == expected, canvas


def test_a_failure_ends_a_chain_and_a_chord(pool, on):
    key = unique()
    failed = chain(on(a.fail, "first"), on(a.hold, key, "never")).apply_async()
    with pytest.raises(ValueError, match="first"):
        get(failed)
    body = chord([on(a.add, 1, 1), on(a.fail, "in the header")], on(a.hold, key, "never")).apply_async()
    wait_for(lambda: body.state == "FAILURE", what="the body's failure")
    assert isinstance(body.result, ChordError) and "in the header" in str(body.result)
    assert pool.notes(f"{key}:in") == 0


@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
@pytest.mark.parametrize("errback", ["noted_error", "noted_error_async", "error_by_id"])
def test_errbacks_of_calls_chains_and_chords(pool, on, errback):
    told = on(getattr(s, errback))
    call = on(a.fail, "x").apply_async(link_error=told)
    pool.wait_notes(f"error:{call.id}")
    step = chain(on(a.add, 1, 1), on(a.fail).set(immutable=True)).apply_async(link_error=told)
    pool.wait_notes(f"error:{step.id}")
    body = chord([on(a.add, 1, 1), on(a.fail)], on(a.total)).on_error(told).apply_async()
    pool.wait_notes(f"error:{body.id}")
    over = on(a.hard, unique()).apply_async(link_error=told)  # Celery calls these on the consumer's thread
    pool.wait_notes(f"error:{over.id}")


# Retries


def test_autoretry_waits_longer_each_time(pool):
    key = unique()
    assert pool.run(s.backs_off, key, timeout=20) == "done"
    times = [float(at) for at in pool.redis.lrange(key, 0, -1)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(pauses) == 2 and pauses[0] >= 0.9 and pauses[1] >= 1.9


def test_the_last_retry_raises_the_cause(pool):
    with pytest.raises(ValueError, match="the cause"):
        pool.run(s.gives_up)


# self.request and current_task


def test_self_request_and_current_task_are_right_in_all_code_that_a_coroutine_starts(pool):
    sent = [pool.send(s.told_everywhere) for _ in range(20)]  # each among others
    for result in sent:
        told = get(result)
        assert told.pop("thread") == [None, None]  # a thread of its own is none of Celery's
        expected = [result.id, "tests.semantics_app.told_everywhere"]
        assert told == dict.fromkeys(told, expected)
    for words in ("said in the task", "said in a subtask"):
        lines = [line for line in pool.process.log.splitlines() if words in line]
        assert len(lines) == 20 and all("tests.semantics_app.told_everywhere[" in line for line in lines)


def test_a_subtask_updates_the_state_and_retries(pool):
    gate = unique("gate")
    result = pool.send(s.child_updates_state, gate)
    wait_for(lambda: result.state == "PROGRESS", what="PROGRESS")
    assert result.info == {"done": 1}
    pool.open(gate)
    get(result)
    assert pool.run(s.child_retries) == 2


def test_an_eager_task_in_a_subtask_has_a_request_of_its_own(pool):
    result = pool.send(s.applies_in_child, 1)
    assert get(result) == [["inner", "inner"], result.id, result.id]


def test_a_subtask_that_outlives_its_task_sees_no_other_calls_request(pool):
    key, gate = unique(), unique("gate")
    pool.run(s.leaves_a_subtask_behind, key, gate)
    held = pool.holds(4, unique(), gate)
    pool.open(gate)
    pool.wait_notes(key)
    assert pool.redis.lrange(key, 0, -1) == ["[None, None]"]
    assert [get(result) for result in held] == ["held"] * 4


def test_request_tells_how_the_task_was_sent(pool):
    result = s.request_fields.apply_async((1, "two"), {"three": 3}, queue=pool.queue, headers={"tenant": "acme"},
                                          time_limit=60, soft_time_limit=50)
    assert get(result) == {"args": [1, "two"], "kwargs": {"three": 3}, "retries": 0, "eager": False,
                           "hostname": pool.process.name, "queue": pool.queue, "root": result.id, "parent": None,
                           "direct": False, "limits": [60, 50], "headers": "acme"}


# Results and acknowledgement


def test_ignored_results_are_not_stored(pool):
    key = unique()
    result = pool.send(s.ignored, key)
    other = pool.send(a.add, 1, 2, ignore_result=True)
    pool.wait_notes(key)
    assert "success" in signals(pool, other.id, "postrun SUCCESS")
    signals(pool, result.id, "postrun SUCCESS")
    assert not pool.redis.exists(f"celery-task-meta-{result.id}", f"celery-task-meta-{other.id}")


def test_started_is_stored_where_it_is_asked_for(pool):
    gate = unique("gate")
    result = pool.send(s.tracked, gate)
    wait_for(lambda: result.state == "STARTED", what="STARTED")
    assert result.info["hostname"] == pool.process.name
    pool.open(gate)
    assert get(result) == "tracked"


def test_late_and_early_acknowledgement(pool):
    key, gate = unique(), unique("gate")
    wait_for(lambda: pool.unacked() == 0, what="an idle worker")
    early = pool.send(a.hold_early, key, gate)
    pool.wait_notes(f"{key}:in")
    wait_for(lambda: pool.unacked() == 0, what="the early one to be acknowledged while it runs")
    late = pool.send(a.hold, key, gate)
    pool.wait_notes(f"{key}:in", 2)
    assert pool.unacked() == 1
    pool.open(gate)
    assert [get(early), get(late)] == ["held"] * 2
    wait_for(lambda: pool.unacked() == 0, what="all acknowledged")


@pytest.mark.parametrize("cleaning", [0, 0.3])
def test_a_timeout_that_is_not_acknowledged_runs_the_task_again(pool, cleaning):
    key = unique()
    result = pool.send(s.hangs_first, key, cleaning)
    stored = f"celery-task-meta-{result.id}"
    wait_for(lambda: "second time" in (pool.redis.get(stored) or ""), what="the second run")
    assert pool.redis.lrange(key, 0, -1) == ["in", "out", "in"]
    wait_for(lambda: pool.unacked() == 0, what="its acknowledgement")


def test_a_failure_that_is_not_acknowledged_drops_the_message(pool):
    key = unique()
    with pytest.raises(ValueError, match="dropped"):
        pool.run(s.fails_unacked, key)
    wait_for(lambda: pool.unacked() == 0, what="the message to be dropped")
    assert pool.notes(key) == 1


def test_a_task_that_ends_its_process_is_run_a_second_time_and_no_more(pool):
    key = unique()
    result = pool.send(s.exits, key)
    assert "WorkerLost" in repr(get(result, propagate=False))
    assert pool.notes(key) == 2
    wait_for(lambda: pool.unacked() == 0, what="no message left")


# Context variables and asyncio


def test_context_variables_reach_what_a_call_starts_and_no_other_call(pool):
    results = [pool.send(s.context_everywhere, str(i)) for i in range(20)]
    threads = [pool.send(s.context_in_thread, str(i)) for i in range(20)]
    assert [get(result) for result in results] == [["unset", *[str(i)] * 5] for i in range(20)]
    assert [get(result) for result in threads] == [["unset", str(i)] for i in range(20)]


def test_an_async_generator_is_closed_with_its_task(pool):
    key = unique()
    assert pool.run(s.leaves_a_generator_open, key) == 1
    pool.wait_notes(key)
    cancelled = unique()
    result = pool.send(s.in_a_generator, cancelled, unique("never"))
    pool.wait_notes(f"{cancelled}:in")
    pool.app.control.revoke(result.id, terminate=True)
    pool.wait_notes(cancelled)
    assert pool.redis.lrange(cancelled, 0, -1) == ["closed"]


def test_a_failure_in_a_task_group_cancels_the_others(pool):
    key = unique()
    assert pool.run(s.group_with_a_failure, key) == "[KeyError('in the group')]"
    assert pool.redis.lrange(key, 0, -1) == ["cancelled"]


# Threads


def test_plain_tasks_run_in_threads_and_never_more_than_there_are_slots(pool):
    key, gate = unique(), unique("gate")
    results = [pool.send(s.thread_hold, key, gate) for _ in range(20)]
    pool.wait_notes(f"{key}:in", 8)
    coroutine = pool.send(a.add, 1, 2)  # it shares the slots
    wait_for(lambda: pool.info()["queued"] > 0, what="a line")
    assert pool.info()["running"] == 8 and not coroutine.ready()
    pool.open(gate)
    for result in [*results, coroutine]:
        get(result)
    assert int(pool.redis.get(f"{key}:most")) == 8
    assert set(pool.redis.lrange(f"{key}:in", 0, -1)) == {"callsheet-task"}
    assert pool.info()["threads"] <= 8


# Signals


def test_signals_of_a_task_come_in_order(pool):
    done = pool.send(a.add, 1, 2)
    assert signals(pool, done.id, "postrun SUCCESS") == ["received", "prerun True", "success", "postrun SUCCESS"]
    failed = pool.send(a.fail)
    assert signals(pool, failed.id, "postrun FAILURE") == ["received", "prerun True", "failure ValueError",
                                                          "postrun FAILURE"]
    again = signals(pool, pool.send(a.flaky, 1, 0.2).id, "postrun SUCCESS")
    assert again.count("received") == 2  # the second at any time after the first try
    assert [what for what in again if what != "received"] == [
        "prerun True", "retry", "postrun RETRY", "prerun True", "success", "postrun SUCCESS"]


def test_signals_of_a_task_that_is_ended(pool):
    key = unique()
    held = pool.send(a.hold, key, unique("never"))
    pool.wait_notes(f"{key}:in")
    pool.app.control.revoke(held.id, terminate=True)
    told = signals(pool, held.id, "revoked True False")
    assert told[:2] == ["received", "prerun True"] and not {"success", "failure"} & set(told)
    late = pool.send(a.add, 1, 2, expires=-1)
    assert signals(pool, late.id, "revoked False True") == ["revoked False True"]
    hard = pool.send(a.hard, unique())
    with pytest.raises(TimeLimitExceeded):
        get(hard)
    assert "success" not in signals(pool, hard.id, "failure TimeLimitExceeded")


def test_signals_of_the_worker(redis_server):
    with pool_worker(redis_server, "-c", "2", module="tests.semantics_signals") as pool:
        assert pool.process.stop() == 0
        assert pool.redis.lrange(f"signals:worker:{pool.process.name}", 0, -1) == [
            "init", "process_init True", "ready", "shutting_down", "process_shutdown", "shutdown"]
