"""arq: a job that does nothing.

It runs in an environment of its own, as it needs redis-py below 6. Of max_jobs 500 and 2,000 and poll_delay 0.01, 0.05
and 0.5 s these did best.
"""

import asyncio
import itertools
import os
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from benchmarks.contenders import stored

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
SETTINGS = RedisSettings.from_dsn(os.environ["CALLSHEET_REDIS_URL"])
AT_ONCE = 20  # its pool opens as many connections as are asked for
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


async def noop(ctx: dict[str, Any], message: str) -> None:
    return None


class WorkerSettings:
    """What `arq` starts with."""

    functions = (noop,)
    redis_settings = SETTINGS
    max_jobs = 500
    poll_delay = 0.05


class _Caller:
    pool: ArqRedis | None = None


async def _enqueue(jobs: int) -> list[Job]:
    if _Caller.pool is None:
        _Caller.pool = await create_pool(SETTINGS)
    pool, numbers = _Caller.pool, iter(range(jobs))

    async def some() -> list[Job]:
        return [job for i in numbers if (job := await pool.enqueue_job("noop", str(i)))]

    return list(itertools.chain.from_iterable(await asyncio.gather(*(some() for _ in range(AT_ONCE)))))


async def _run(jobs: int) -> int:
    results = [await job.result(poll_delay=0.02) for job in await _enqueue(jobs)]
    return len(results)


def publish(jobs: int) -> list[str]:
    return [job.job_id for job in loop.run_until_complete(_enqueue(jobs))]


def wait(published: list[str]) -> None:
    stored.wait([f"arq:result:{job}" for job in published])


def run(jobs: int) -> int:
    return loop.run_until_complete(_run(jobs))
