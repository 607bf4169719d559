"""Workers on the asyncio pool for the tests, each on a queue of its own."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tests import pool_app
from tests.services import RedisServer, Worker, wait_for, worker

_numbers = itertools.count()


def unique(name: str = "k") -> str:
    return f"{name}-{os.getpid()}-{next(_numbers)}"


class Pool:
    """A worker, its queue and the Redis behind it."""

    def __init__(self, server: RedisServer, process: Worker, queue: str) -> None:
        self.server = server
        self.process = process
        self.queue = queue
        self.redis: redis.Redis = server.client()
        self.app = pool_app.app

    def send(self, task, *args, **options):
        return task.apply_async(args, queue=self.queue, **options)

    def run(self, task, *args, timeout=10, **options):
        return get(self.send(task, *args, **options), timeout)

    def notes(self, key: str) -> int:
        return int(self.redis.llen(key))

    def wait_log(self, words: str) -> None:
        """Wait for a line of the worker's log, which is written after what it tells of."""
        wait_for(lambda: words in self.process.log, what=f"{words!r} in the log")

    def wait_notes(self, key: str, count: int = 1) -> None:
        wait_for(lambda: self.notes(key) >= count, 15, lambda: f"{count} x {key}\n{self.process.log[-3000:]}")

    def open(self, gate: str) -> None:
        self.redis.set(gate, 1)

    def inspect(self, what: str):
        inspection = self.app.control.inspect([self.process.name], timeout=1 if what == "ping" else 5, limit=1)
        answer = getattr(inspection, what)()
        return (answer or {}).get(self.process.name)

    def info(self) -> dict:
        return self.inspect("stats")["pool"]

    def control(self, command: str, **arguments):
        answers = self.app.control.broadcast(command, arguments=arguments, destination=[self.process.name],
                                             reply=True, timeout=5, limit=1)
        return answers[0][self.process.name]

    def unacked(self, queue: str = "") -> int:
        """Of this queue, or another: a killed worker of another test may have left some on the server they share."""
        return sum(json.loads(entry)[2] == (queue or self.queue) for entry in self.redis.hvals("unacked"))

    def holds(self, count: int, key: str, gate: str):
        """Calls that hold their slots until the gate opens."""
        return [self.send(pool_app.hold, key, gate) for _ in range(count)]


def get(result, timeout=10, propagate=True):
    return result.get(timeout=timeout, propagate=propagate, disable_sync_subtasks=False)


@contextmanager
def pool_worker(server: RedisServer, *options: str, module: str = "tests.pool_app", **env: str) -> Iterator[Pool]:
    pool_app.connect(server.url)
    queue = unique("q")
    with worker(module, server.url, "-Q", queue, "--without-mingle", *options,
                env={"POOL_QUEUE": queue, **env}) as process:
        pool = Pool(server, process, queue)
        # It says that it is ready a moment before it listens for commands.
        wait_for(lambda: pool.inspect("ping"), what="an answer")
        yield pool
