"""Ray: one async actor whose method does nothing.

There is no queue between the caller and the actor, and no store of results: calls go from process to process, and
results return to the caller, who holds them. Ray's own processes beside the actor are not counted as the worker.
"""

import functools
import logging
import os
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray


class Actor:
    async def noop(self, message: str) -> None:
        return None

    async def pid(self) -> int:
        return os.getpid()


@functools.cache
def actor() -> Any:
    """The actor, started at the first call, as the actor's process imports this module too."""
    ray.init(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR)
    return ray.remote(max_concurrency=500)(Actor).remote()


def worker() -> int:
    return int(ray.get(actor().pid.remote()))


def publish(jobs: int) -> list[Any]:
    noop = actor().noop
    return [noop.remote(str(i)) for i in range(jobs)]


def wait(published: list[Any]) -> None:
    ray.get(published)


def run(jobs: int) -> int:
    return len(ray.get(publish(jobs)))
