"""taskiq: async tasks on its Redis streams, one that does nothing and one that calls over HTTP.

Of its Redis brokers the one with acknowledgements, and results that expire, as its README highly recommends. uvloop,
which its worker takes by itself where it is installed, is given to its caller as well. Some loops of `kiq` side by side
are the fastest way to publish many here: a plain loop and a `gather` over all take a tenth and a half more CPU.
"""

import asyncio
import itertools
import os
from collections.abc import Iterable
from typing import Annotated, Any

import aiohttp
import uvloop
from taskiq import AsyncTaskiqTask, Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.contenders import stored

URL = os.environ["CALLSHEET_REDIS_URL"]
broker = RedisStreamBroker(url=URL).with_result_backend(RedisAsyncResultBackend(redis_url=URL, result_ex_time=3600))
AT_ONCE = 20
loop = uvloop.new_event_loop()


@broker.task
async def noop(message: str) -> None:
    return None


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_session(state: TaskiqState) -> None:
    """One session for all tasks, as aiohttp advises; its own limit is 100 connections."""
    state.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1000))


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_session(state: TaskiqState) -> None:
    await state.session.close()


@broker.task
async def fetch(url: str, message: str, context: Annotated[Context, TaskiqDepends()]) -> str:
    async with context.state.session.get(url) as answer:
        return str((await answer.json())["answer"])


async def _kiq(task: Any, arguments: Iterable[tuple[str, ...]]) -> list[AsyncTaskiqTask[Any]]:
    waiting = iter(arguments)

    async def some() -> list[AsyncTaskiqTask[Any]]:
        return [await task.kiq(*given) for given in waiting]

    return list(itertools.chain.from_iterable(await asyncio.gather(*(some() for _ in range(AT_ONCE)))))


async def _run(task: Any, arguments: Iterable[tuple[str, ...]]) -> list[Any]:
    return [await sent.wait_result(check_interval=0.02) for sent in await _kiq(task, arguments)]


def numbered(jobs: int) -> list[tuple[str, ...]]:
    return [(str(i),) for i in range(jobs)]


def publish(jobs: int) -> list[str]:
    return [task.task_id for task in loop.run_until_complete(_kiq(noop, numbered(jobs)))]


def wait(published: list[str]) -> None:
    stored.wait(published)


def run(jobs: int) -> int:
    return len(loop.run_until_complete(_run(noop, numbered(jobs))))


def fetch_all(url: str, calls: int) -> list[str]:
    results = loop.run_until_complete(_run(fetch, [(url, f"call {i}") for i in range(calls)]))
    return [result.return_value for result in results]
