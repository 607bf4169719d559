"""taskiq: an async task that does nothing, on its Redis streams.

Of its Redis brokers the one with acknowledgements, and results that expire, as its README highly recommends. uvloop,
which its worker takes by itself where it is installed, is given to its caller as well. Some loops of `kiq` side by side
are the fastest way to publish many here: a plain loop and a `gather` over all take a tenth and a half more CPU.
"""

import asyncio
import itertools
import os
from typing import Any

import uvloop
from taskiq import AsyncTaskiqTask
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.contenders import stored

URL = os.environ["CALLSHEET_REDIS_URL"]
broker = RedisStreamBroker(url=URL).with_result_backend(RedisAsyncResultBackend(redis_url=URL, result_ex_time=3600))
AT_ONCE = 20
loop = uvloop.new_event_loop()


@broker.task
async def noop(message: str) -> None:
    return None


async def _kiq(jobs: int) -> list[AsyncTaskiqTask[Any]]:
    numbers = iter(range(jobs))

    async def some() -> list[AsyncTaskiqTask[Any]]:
        return [await noop.kiq(str(i)) for i in numbers]

    return list(itertools.chain.from_iterable(await asyncio.gather(*(some() for _ in range(AT_ONCE)))))


async def _run(jobs: int) -> int:
    results = [await task.wait_result(check_interval=0.02) for task in await _kiq(jobs)]
    return len(results)


def publish(jobs: int) -> list[str]:
    return [task.task_id for task in loop.run_until_complete(_kiq(jobs))]


def wait(published: list[str]) -> None:
    stored.wait(published)


def run(jobs: int) -> int:
    return loop.run_until_complete(_run(jobs))
