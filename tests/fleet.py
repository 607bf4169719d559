"""An io worker and a cpu worker with a Redis of their own, shared by the tests of the job layer."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from redis import Redis

from callsheet import Settings
from callsheet.settings import use_settings
from tests.services import RedisServer, Worker, wait_for, worker

MODULES = "tests.agents,tests.agents.user_tasks,tests.agents.own_tasks"
_numbers = itertools.count()


@dataclass
class Fleet:
    """Workers, their Redis, and the settings of a program that uses them."""

    server: RedisServer
    io: Worker
    cpu: Worker
    settings: Settings
    redis: Redis = field(init=False)

    def __post_init__(self) -> None:
        self.redis = self.server.client()

    def key(self, name: str = "k") -> str:
        """A key that no other test uses."""
        return f"test:{name}:{os.getpid()}:{next(_numbers)}"

    def open(self, gate: str) -> None:
        """Let the agents through that wait at `gate`."""
        self.redis.set(gate, 1)

    def notes(self, key: str) -> list[str]:
        """What agents noted under `key`."""
        return list(self.redis.lrange(key, 0, -1))

    def wait_notes(self, key: str, count: int = 1) -> list[str]:
        """Wait for so many notes and return them."""
        wait_for(lambda: self.redis.llen(key) >= count, 15, lambda: f"{count} notes in {key}\n{self.io.log[-3000:]}")
        return self.notes(key)


def client_settings(server: RedisServer, **changes: object) -> Settings:
    """Settings of a program that sends jobs."""
    return Settings.load(**{"redis_url": server.url, "queues": "extra,nobody", **changes})


@contextmanager
def fleet_of_its_own() -> Iterator[Fleet]:
    """New workers with a new Redis."""
    server = RedisServer()  # other tests may flush the shared one
    env = {"CALLSHEET_MODULES": MODULES, "CALLSHEET_RETRY_BACKOFF": "0.05", "CALLSHEET_QUEUES": "extra,nobody"}
    try:
        with worker("callsheet.workers.io", server.url, "--autoscale=50,5", env=env) as io, \
                worker("callsheet.workers.cpu", server.url, "--autoscale=2,1", env=env) as cpu:
            yield Fleet(server, io, cpu, client_settings(server))
    finally:
        server.remove()


@pytest.fixture(scope="session")
def fleet_workers(redis_server: RedisServer) -> Iterator[Fleet]:
    with fleet_of_its_own() as found:
        yield found


@pytest.fixture
def fleet(fleet_workers: Fleet) -> Iterator[Fleet]:
    """The shared workers, with this process's settings on them."""
    with use_settings(fleet_workers.settings):
        yield fleet_workers


@pytest.fixture
def nothing_sent(fleet: Fleet) -> Callable[[], None]:
    """Asserts, when called, that no message was put on any queue since the test began."""
    def count() -> int:
        return int(fleet.redis.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))

    before = count()

    def check() -> None:
        assert count() == before

    return check
