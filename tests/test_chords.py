"""Chords: the same on our result backend as on Celery's, and what ours does better."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from tests import chord_app as c
from tests import pool_app
from tests.pool_workers import unique
from tests.services import RedisServer, Worker, wait_for, worker

ASYNCIO = {"POOL": "callsheet.workers.pool:AsyncioPool"}
PREFORK = {"POOL": "prefork"}  # our backend's synchronous path, as in cpu workers
STOCK = {"POOL": "prefork", "BACKEND": "stock"}  # what the others have to equal
KINDS = {"asyncio": ASYNCIO, "prefork": PREFORK, "stock": STOCK}


class Bench:
    """A worker and a stock client of its queue."""

    def __init__(self, server: RedisServer, process: Worker, queue: str) -> None:
        self.server, self.process, self.queue = server, process, queue
        self.redis = server.client()

    def on(self, signature: Any) -> Any:
        """The signature, whatever it is made of, on the worker's queue."""
        if isinstance(signature, chord):
            self.on(signature.body)
            signature = signature.tasks if isinstance(signature.tasks, group) else group(signature.tasks)
        for inner in getattr(signature, "tasks", ()):
            self.on(inner)
        signature.set(queue=self.queue)
        return signature

    def send(self, canvas: Any) -> Any:
        if isinstance(canvas, chord):
            for header in canvas.tasks:
                self.on(header)
            self.on(canvas.body)
            return canvas.apply_async()
        return self.on(canvas).apply_async()

    def run(self, canvas: Any, timeout: float = 20) -> Any:
        return self.send(canvas).get(timeout=timeout, disable_sync_subtasks=False)

    def calls(self, command: str) -> int:
        return int(self.redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def notes(self, key: str) -> list[str]:
        return self.redis.lrange(key, 0, -1)

    def stats(self) -> dict[str, Any]:
        answer = pool_app.app.control.inspect([self.process.name], timeout=5, limit=1).stats()
        return answer[self.process.name]["pool"]


@contextmanager
def bench(server: RedisServer, *options: str, queue: str = "", **env: str) -> Iterator[Bench]:
    pool_app.connect(server.url)
    queue = queue or unique("q")
    with worker("tests.chord_app", server.url, "-Q", queue, "--without-mingle", "-c", env.pop("SLOTS", "8"), *options,
                env={"POOL_QUEUE": queue, **env}) as process:
        yield Bench(server, process, queue)


@pytest.fixture(scope="module", params=KINDS)
def any_kind(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Bench]:
    with bench(redis_server, SLOTS="3", **KINDS[request.param]) as made:
        yield made


def failure_of(result: Any) -> None:
    """Raise what the body failed with, rather than a header task's own failure."""
    result.get(timeout=20, follow_parents=False)


# As Celery has it


@pytest.mark.parametrize("size", [0, 1, 2, 150])
def test_results_are_in_the_order_of_the_header(any_kind, size):
    header = [(c.item if i % 2 else c.plain_item).s(i) for i in range(size)]
    assert any_kind.run(chord(header, c.body.s())) == list(range(size))


def test_large_results_arrive_whole(any_kind):
    texts = [str(i) * 20_000 for i in range(20)]
    assert any_kind.run(chord([c.item.s(text) for text in texts], c.body.s())) == texts


def test_groups_in_the_header_are_part_of_it(any_kind):
    header = [c.item.s(0), group(c.item.s(1), group(c.item.s(2), c.item.s(3))), c.item.s(4)]
    assert sorted(any_kind.run(chord(header, c.body.s()))) == [0, 1, 2, 3, 4]


def test_a_header_keeps_the_shape_that_steps_give_it(any_kind):
    fanned_out = chain(c.item.s(1), group(c.item.s(), c.plain_item.s()))
    inner = chord([c.item.s(2), c.item.s(3)], group(c.total.s(), chain(c.body.s(), group(c.item.s(), c.total.s()))))
    assert any_kind.run(chord([c.item.s(0), fanned_out, inner], c.body.s())) == [0, [1, 1], [5, [[2, 3], 5]]]


def test_a_chord_in_the_header_counts_by_its_body(any_kind):
    inner = chord([c.item.s(1), c.item.s(2)], c.total.s())
    assert any_kind.run(chord([c.item.s(0), inner, c.item.s(9)], c.body.s())) == [0, 3, 9]


def test_a_body_may_be_a_chord(any_kind):
    body = chord([c.total.s(), c.body.s()], c.body.s())
    assert any_kind.run(chord([c.item.s(1), c.item.s(2)], body)) == [3, [1, 2]]


def test_a_body_may_be_a_chain_or_a_group(any_kind):
    assert any_kind.run(chord([c.item.s(1), c.item.s(2)], chain(c.total.s(), c.item.s()))) == 3
    assert any_kind.run(chord([c.item.s(1), c.item.s(2)], group(c.total.s(), c.body.s()))) == [3, [1, 2]]


def test_chords_one_after_another(any_kind):
    first = chord([c.item.s(1), c.item.s(2)], c.total.s())
    second = chord([c.item.s(), c.item.s()], c.body.s())
    assert any_kind.run(chain(first, second, c.body.s())) == [3, 3]


def test_a_chain_in_the_header_counts_by_its_last_step(any_kind):
    header = [chain(c.item.s(1), c.item.s()), c.item.s(2)]
    assert any_kind.run(chord(header, c.body.s())) == [1, 2]


def test_a_retried_header_task_counts_once(any_kind):
    assert any_kind.run(chord([c.twice.s(1), c.item.s(2)], c.body.s())) == [1, 2]


def test_a_header_task_without_a_result_counts(any_kind):
    assert any_kind.run(chord([c.ignored.s(1), c.item.s(2)], c.body.s())) == [1, 2]


def test_a_failure_in_the_header_is_named_and_calls_the_errbacks(any_kind):
    body = c.body.s()
    body.set(link_error=[any_kind.on(c.errback.s()), any_kind.on(c.old_errback.s())])
    header = [c.item.s(0), c.fails.s("boom"), c.item.s(2)]
    result = any_kind.send(chord(header, body))
    with pytest.raises(ChordError, match=r"raised ValueError\('boom'\)") as failed:
        failure_of(result)
    culprit = result.parent.results[1]
    assert culprit.state == "FAILURE"
    assert f"Dependency {culprit.id} raised" in str(failed.value)
    wait_for(lambda: any_kind.notes(f"old errback:{result.id}"), what="the errback that is a task")
    assert any_kind.notes(f"old errback:{result.id}") == ["x"]
    [noted] = any_kind.notes(f"errback:{result.id}")
    assert "ChordError" in noted
    assert culprit.id in noted


def test_a_chain_that_fails_early_fails_its_chord(any_kind):
    header = [chain(c.fails.s("boom"), c.item.s(), c.item.s()), c.item.s(2)]
    result = any_kind.send(chord(header, c.body.s()))
    with pytest.raises(ChordError, match="boom"):
        failure_of(result)


def test_what_is_chained_behind_a_failing_chord_fails(any_kind):
    result = any_kind.send(chain(chord([c.fails.s("boom"), c.item.s(1)], c.body.s()), c.item.s()))
    with pytest.raises(ChordError, match="boom"):
        failure_of(result)


def test_a_failure_in_a_group_in_the_header_fails_the_chord(any_kind):
    fanned_out = chain(c.item.s("boom"), group(c.item.s(), c.fails.s()))
    result = any_kind.send(chord([c.item.s(0), fanned_out], c.body.s()))
    with pytest.raises(ChordError, match=r"Join error: ValueError\('boom'"):
        failure_of(result)


def test_a_task_without_a_result_is_none_where_a_header_has_a_shape(any_kind):
    header = [chain(c.item.s(1), group(c.item.s(), c.item.s())), c.ignored.s(3)]
    assert any_kind.run(chord(header, c.body.s())) == [[1, 1], None]


def test_the_body_is_a_child_of_the_last_header_task(any_kind):
    result = any_kind.send(chord([c.item.s(1)], c.ids.s()))
    header = result.parent.results[0].id
    assert result.get(timeout=20) == [header, header]


def test_nothing_is_left_behind(any_kind):
    result = any_kind.send(chord([c.item.s(i) for i in range(5)], c.body.s()))
    result.get(timeout=20)
    wait_for(lambda: any_kind.redis.get(f"celery-taskset-meta-{result.parent.id}.c") == "done", what="cleaned up")
    left = [key.rpartition(result.parent.id)[2] for key in any_kind.redis.scan_iter(f"*{result.parent.id}*")]
    assert left == [".c"]


@pytest.mark.parametrize("kind", KINDS)
def test_unordered_chords_hold_all_results(redis_server, kind):
    with bench(redis_server, ORDERED="0", **KINDS[kind]) as made:
        assert sorted(made.run(chord([c.item.s(i) for i in range(150)], c.body.s()))) == list(range(150))
        with pytest.raises(ChordError, match="boom"):
            failure_of(made.send(chord([c.item.s(1), c.fails.s("boom")], c.body.s())))


# Ours and Celery's workers side by side


@pytest.mark.parametrize("ours", ["asyncio", "prefork"])
def test_results_that_expire_before_the_last_part_are_not_missed(both, ours):
    on, gate = both[ours], unique("gate")
    header = [chain(c.item.s(1), group(c.item.s(), c.item.s())), c.ignored.s(3), c.slow_item.s(2, gate)]
    sent = on.send(chord(header, c.body.s()))
    group_id = sent.parent.id
    wait_for(lambda: on.redis.zcard(f"celery-taskset-meta-{group_id}.j") == 3, what="the others are counted")
    stored = list(on.redis.scan_iter("celery-task-meta-*"))
    on.redis.delete(*stored)
    on.redis.lpush(gate, "go")
    assert sent.get(timeout=20) == [[1, 1], None, 2]


@pytest.mark.parametrize("last", ["ours", "stock"])
@pytest.mark.parametrize("body", ["ours", "stock"])
@pytest.mark.parametrize("ours", ["asyncio", "prefork"])
def test_a_header_on_workers_of_both_kinds(redis_server, both, ours, last, body):
    benches = {"ours": both[ours], "stock": both["stock"]}
    first, second = benches["stock" if last == "ours" else "ours"], benches[last]
    gate = unique("gate")
    header = [first.on(c.plain_item.s(i)) for i in range(0, 20, 2)] + \
        [second.on(c.slow_item.s(i, gate)) for i in range(1, 20, 2)]
    result = chord(header, benches[body].on(c.body.s())).apply_async()
    wait_for(lambda: second.redis.zcard(f"celery-taskset-meta-{result.parent.id}.j") == 10, what="the first half")
    second.redis.set(gate, 1)
    assert result.get(timeout=20) == [*range(0, 20, 2), *range(1, 20, 2)]
    wait_for(lambda: second.redis.get(f"celery-taskset-meta-{result.parent.id}.c") == "done", what="cleaned up")


@pytest.fixture(scope="module")
def both(redis_server: RedisServer) -> Iterator[dict[str, Bench]]:
    with bench(redis_server, **ASYNCIO) as one, bench(redis_server, **PREFORK, SLOTS="2") as two, \
            bench(redis_server, **STOCK, SLOTS="2") as three:
        yield {"asyncio": one, "prefork": two, "stock": three}


# Trips


def test_parts_travel_with_the_results_and_together(own_redis):
    """A command for each part and two for each result would be 1,500; ours are a fraction of one a task."""
    with bench(own_redis, **ASYNCIO, SLOTS="500") as made:
        path = f"{own_redis.folder}/go"
        result = made.send(chord([c.when_file.s(i, path) for i in range(500)], c.count.s()))
        wait_for(lambda: made.redis.hlen("unacked") == 500, what="the header to be taken")
        before = {name: made.calls(name) for name in ("evalsha", "zrange", "get")}
        open(path, "w").close()
        assert result.get(timeout=60) == [500, True]
        after = {name: made.calls(name) - count for name, count in before.items()}
        assert after["evalsha"] < 250
        assert after["zrange"] == 1


def test_a_small_chord_ends_in_three_trips(own_redis):
    """Results with parts, the body's message, the end; the parts come with the last one."""
    with bench(own_redis, **ASYNCIO) as made:
        made.run(chord([c.item.s(0), c.item.s(1)], c.count.s()))
        path = f"{own_redis.folder}/go"
        result = made.send(chord([c.when_file.s(i, path) for i in range(5)], c.count.s()))
        wait_for(lambda: len(made.redis.hkeys("unacked")) == 5, what="the header to be taken")
        before = {name: made.calls(name) for name in ("evalsha", "get", "lpush", "setex")}
        open(path, "w").close()
        assert result.get(timeout=20) == [5, True]
        wait_for(lambda: made.redis.get(f"celery-taskset-meta-{result.parent.id}.c") == "done", what="cleaned up")
        after = {name: made.calls(name) - count for name, count in before.items()}
        assert after["lpush"] == 1
        assert after["setex"] == 0
        assert after["evalsha"] <= 5 + 1 + 1  # results with parts, the body's result, the end


def test_the_loop_goes_on_while_redis_does_not_answer(own_redis):
    """Parts are counted, and next steps and the body are published, without the loop."""
    with bench(own_redis, **ASYNCIO, CALLSHEET_LOOP_BLOCK_WARNING="0.25") as made:
        path = f"{own_redis.folder}/go"
        made.run(chord([c.item.s(0)], c.count.s()))
        header = [c.when_file.s(0, path), *(chain(c.when_file.s(i, path), c.item.s()) for i in range(1, 6))]
        result = made.send(chord(header, c.body.s()))
        wait_for(lambda: made.redis.hlen("unacked") == 6, what="the header to be taken")
        made.redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        open(path, "w").close()
        made.redis.ping()  # answered when the pause is over
        assert result.get(timeout=20) == list(range(6))
        assert made.stats()["loop-blocked"] == 0, made.process.log
        [thread] = made.notes("published by")
        assert thread.startswith("callsheet-aside")


def test_a_header_of_thousands(own_redis):
    with bench(own_redis, **ASYNCIO, SLOTS="200", LEASE="60", CALLSHEET_LOOP_BLOCK_WARNING="1") as made:
        assert made.run(chord([c.item.s(i) for i in range(4_000)], c.count.s()), timeout=120) == [4_000, True]
        assert made.stats()["loop-blocked"] == 0, made.process.log[-3000:]


# Workers that die


def test_a_message_that_comes_twice_counts_once(own_redis):
    """Also when it comes after the chord is complete."""
    pool_app.connect(own_redis.url)
    client, queue = own_redis.client(), "q"
    result = chord([c.item.s(i).set(queue=queue) for i in range(3)], c.body.s().set(queue=queue)).apply_async()
    twin = json.loads(client.lindex(queue, -1))
    for _ in range(2):
        twin["properties"]["delivery_info"]["redelivered"] = True
        twin["properties"]["delivery_tag"] = unique("tag")
        client.lpush(queue, json.dumps(twin))
        client.rpush(queue, json.dumps({**twin, "properties": {**twin["properties"], "delivery_tag": unique("tag")}}))
    with bench(own_redis, **ASYNCIO, queue=queue) as made:
        assert result.get(timeout=20) == [0, 1, 2]
        wait_for(lambda: client.llen(queue) == 0 and not client.hlen("unacked"), what="everything worked off")
        assert len(made.notes("published by")) == 1


@pytest.mark.parametrize("deduplicate", ["0", "1"])
@pytest.mark.parametrize("kind", ["asyncio", "prefork"])
def test_a_worker_killed_before_it_publishes_the_body_leaves_that_to_another(own_redis, kind, deduplicate):
    env = {**KINDS[kind], "LEASE": "2", "DEDUPLICATE": deduplicate, "SLOTS": "2"}
    client = own_redis.client()
    with bench(own_redis, queue="q", **env) as victim:
        victim.run(c.item.s(0))
        client.set("hold the body", 1)
        result = victim.send(chord([c.item.s(i) for i in range(2)], c.body.s()))
        wait_for(lambda: victim.notes("published by"), what="the victim to publish the body")
        os.killpg(victim.process.process.pid, signal.SIGKILL)
    client.delete("hold the body")
    finisher = f"celery-taskset-meta-{result.parent.id}.c"
    client.expire(finisher, 4)  # rather than wait for its 30 seconds
    with bench(own_redis, queue="q", **env) as heir:
        assert result.get(timeout=30) == [0, 1]
        wait_for(lambda: client.get(finisher) == "done", what="cleaned up")
        assert len(heir.notes("published by")) == 2
        wait_for(lambda: not client.hlen("unacked"), what="everything acknowledged")
    assert [one.state for one in result.parent.results] == ["SUCCESS", "SUCCESS"]


def test_a_chord_survives_workers_that_are_killed_again_and_again(own_redis):
    """Result and part are stored in one step: there is no moment between them to die in."""
    env = {**ASYNCIO, "LEASE": "1", "SLOTS": "20"}
    client = own_redis.client()
    pool_app.connect(own_redis.url)
    result = chord([c.item.s(i).set(queue="q") for i in range(600)], c.count.s().set(queue="q")).apply_async()
    parts = f"celery-taskset-meta-{result.parent.id}.j"
    for least in (1, 150, 350):
        with bench(own_redis, queue="q", **env) as victim:
            wait_for(lambda least=least: client.zcard(parts) >= least or result.ready(), what="progress", every=0.001)
            os.killpg(victim.process.process.pid, signal.SIGKILL)
        stored = sum(client.exists(f"celery-task-meta-{one.id}") for one in result.parent.results)
        assert result.ready() or stored == client.zcard(parts)
    with bench(own_redis, queue="q", **env):
        assert result.get(timeout=60) == [600, True]


# Records


def test_stored_results_are_as_celery_writes_them(own_redis):
    stock, ours = {}, {}
    for found, backend in ((stock, "stock"), (ours, "callsheet")):
        with bench(own_redis, BACKEND=backend, **ASYNCIO) as made:
            results = [made.send(c.item.s({"text": "ü \"\\", "n": [1, 2.5, None]})), made.send(c.fails.s("boom")),
                       made.send(group(c.item.s(1), c.item.s(2))).results[0]]
            for name, result in zip(("value", "failure", "grouped"), results, strict=True):
                result.get(timeout=20, propagate=False)
                found[name] = made.redis.get(f"celery-task-meta-{result.id}")
                assert 86_000 < made.redis.ttl(f"celery-task-meta-{result.id}") <= 86_400
    for name, text in ours.items():
        metas = [json.loads(text), json.loads(stock[name])]
        assert list(metas[0]) == list(metas[1])
        assert metas[0]["result"] == metas[1]["result"]
        assert [len(meta["date_done"]) for meta in metas] == [32, 32]
        assert text == json.dumps(metas[0])
