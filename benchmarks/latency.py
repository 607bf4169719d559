"""From submit to result of one job that does nothing, on an idle worker."""

import asyncio
import time
from collections.abc import Callable

from benchmarks.agents import Noop
from benchmarks.harness import GEVENT, IO, STOCK, Report, Row, Stage, at_most, percentile, usage_of
from benchmarks.stock import noop

ROUNDS = 300
WARM_UP = 30


def get() -> list[float]:
    agent, times = Noop(), []
    for _ in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        agent.submit().get(30)
        times.append(time.perf_counter() - began)
    return times


def awaited() -> list[float]:
    async def rounds() -> list[float]:
        agent, times = Noop(), []
        for _ in range(WARM_UP + ROUNDS):
            began = time.perf_counter()
            await agent()
            times.append(time.perf_counter() - began)
        return times

    return asyncio.run(rounds())


def delay_get() -> list[float]:
    times = []
    for _ in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        noop.delay().get(30)
        times.append(time.perf_counter() - began)
    return times


CONTENDERS: dict[tuple[str, ...], dict[str, Callable[[], list[float]]]] = {
    (IO, "--autoscale=500,20"): {"callsheet io, submit().get()": get, "callsheet io, await agent()": awaited},
    (STOCK, *GEVENT, "-c", "500"): {"celery gevent, delay().get()": delay_get},
    (STOCK, "-P", "prefork"): {"celery prefork, delay().get()": delay_get},
}


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for names in CONTENDERS.values() for name in names}
    for _ in range(stage.repeat):
        for worker, contenders in CONTENDERS.items():
            with stage.worker(*worker) as pid:
                for name, contender in contenders.items():
                    time.sleep(2.0)
                    with usage_of(pid) as usage:
                        times = [1000 * value for value in contender()[WARM_UP:]]
                    rows[name].add(median_ms=percentile(times, 0.5), p95_ms=percentile(times, 0.95),
                                   p99_ms=percentile(times, 0.99), max_ms=max(times), others_cores=usage.others)
    goals = [goal for name in list(rows)[:2] for goal in (
        at_most(f"{name}: median under 8 ms", rows[name].median("median_ms"), 8),
        at_most(f"{name}: p99 under 30 ms", rows[name].median("p99_ms"), 30))]
    return Report("latency", __doc__ or "", list(rows.values()), goals)
