"""A loaded worker loses all its connections, again and again."""

import collections
import os
import random

import pytest

from tests import pool_app as a
from tests.pool_workers import pool_worker, unique
from tests.services import RedisServer, kill_connections, wait_for

# `KILLS=50 pytest tests/test_reconnect.py` for a longer run.
KILLS = int(os.environ.get("KILLS", "8"))
SLOTS = 20


class Runs:
    """What the task `run_once` wrote: starts and ends."""

    def __init__(self, path):
        self.path = path
        path.touch()

    def read(self):
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [(what, task) for what, task in lines]

    def ended(self):
        return sum(what == "end" for what, _ in self.read())

    def of(self):
        """The tasks that have run to their end."""
        return {task for what, task in self.read() if what == "end"}

    def most_at_once(self):
        now, most = collections.Counter(), 0
        for what, task in self.read():
            now[task] += 1 if what == "start" else -1
            most = max(most, now[task])
        return most


def send_again_what_kombu_lost(pool, runs, sent):
    """What its own transport had popped when its connection broke never reaches the worker: see test_transport.

    What did reach it must run, whatever it lost.
    """
    last = pool.send(a.run_once, 0).id
    wait_for(lambda: last in runs.of(), 30, "the last to run, so that nothing is under way to the worker")
    lost = [task for task in sent if task not in pool.process.log]
    assert len(lost) <= KILLS, "one connection pops"
    for tag, entry in pool.redis.hgetall("unacked").items():
        if any(task in entry for task in lost):  # noted, but not delivered: kombu gives it back in an hour
            pool.redis.hdel("unacked", tag)
    for task in lost:
        pool.send(a.run_once, 0.05, task_id=task)


@pytest.fixture(scope="module")
def server():
    """Apart from the other tests', whose connections would be lost too."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.mark.parametrize("parts", ["stock", "callsheet"])
def test_loaded_worker_survives_the_loss_of_its_connections(server, tmp_path, parts):
    runs = Runs(tmp_path / "runs")
    dice = random.Random(1)
    with pool_worker(server, f"--autoscale={SLOTS},2", PARTS=parts, RUNS=str(runs.path)) as pool:
        sent = []
        for number in range(KILLS):
            sent += [pool.send(a.run_once, dice.uniform(0.02, 0.2)).id for _ in range(40)]
            before = runs.ended()
            wait_for(lambda before=before: runs.ended() >= before + dice.randrange(20), what="work going on")
            kinds = dice.choice([["normal", "pubsub"], ["normal"], ["pubsub"]])
            wait_for(lambda kinds=kinds: kill_connections(server, kinds), what="a connection to lose")
            before = runs.ended()
            enough = min(before + 10, len(sent))
            lost = f"work after loss {number + 1} of {kinds}"
            wait_for(lambda enough=enough: runs.ended() >= enough, 20,
                     lambda lost=lost: f"{lost}\n{pool.process.log[-3000:]}")
        if parts == "stock":
            send_again_what_kombu_lost(pool, runs, sent)
        wait_for(lambda: runs.of() >= set(sent), 30, "all to have run")
        wait_for(lambda: pool.redis.llen(pool.queue) == 0 and pool.unacked() == 0, what="all acknowledged")
        assert runs.most_at_once() == 1
        # Celery's own backend gives up on a result when its connection is lost.
        expected = ['"SUCCESS"'] if parts == "callsheet" else ['"SUCCESS"', "ConnectionError"]
        for task in sent:
            assert any(word in pool.redis.get(f"celery-task-meta-{task}") for word in expected)
        key, gate = unique(), unique("gate")
        pool.holds(SLOTS + 10, key, gate)
        pool.wait_notes(f"{key}:in", SLOTS)
        wait_for(lambda: pool.inspect("stats")["prefetch_count"] == SLOTS, what="the prefetch count that it had")
        wait_for(lambda: pool.redis.llen(pool.queue) == 10, what="the rest to be left on the queue")
        pool.open(gate)
        pool.wait_notes(f"{key}:out", SLOTS + 10)
        assert "Callback" not in pool.process.log
        print("runs", len(runs.read()) / 2, "of", len(sent))
