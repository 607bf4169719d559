"""5,000 jobs that do nothing: how fast they are published, worked off, and both at once."""

import signal
import time
from collections.abc import Callable
from typing import Any

from celery import group

import callsheet
from benchmarks.agents import Noop
from benchmarks.harness import GEVENT, IO, STOCK, Report, Row, Stage, usage_of
from benchmarks.stock import noop
from callsheet import Msg
from callsheet.agents import CallOptions
from callsheet.agents.dispatch import dispatcher
from tests.services import Worker

JOBS = 5000
SLOTS = 500


def publish_agents(jobs: int) -> list[str]:
    messages = [Msg("user", str(i), "user") for i in range(jobs)]
    return [job.id for job in dispatcher().submit_many(Noop(), messages, CallOptions())]


def publish_tasks(jobs: int) -> list[str]:
    return [result.id for result in group(noop.s(str(i)) for i in range(jobs)).apply_async()]


def map_agents(jobs: int) -> Any:
    return list(callsheet.map(Noop(), [Msg("user", str(i), "user") for i in range(jobs)], progress=False))


def map_tasks(jobs: int) -> Any:
    return group(noop.s(str(i)) for i in range(jobs)).apply_async().get()


CONTENDERS: dict[str, tuple[Callable[[int], list[str]], Callable[[int], Any], tuple[str, ...]]] = {
    f"callsheet io --autoscale={SLOTS},{SLOTS}": (publish_agents, map_agents, (IO, f"--autoscale={SLOTS},{SLOTS}")),
    f"celery gevent -c {SLOTS}": (publish_tasks, map_tasks, (STOCK, *GEVENT, "-c", str(SLOTS))),
}


def drain(stage: Stage, started: Worker, ids: list[str]) -> None:
    """Let the worker go on, and wait until all results are stored."""
    client, keys = stage.redis.client(), [f"celery-task-meta-{task_id}" for task_id in ids]
    started.send_signal(signal.SIGCONT)
    while client.exists(*keys) < len(keys):
        time.sleep(0.02)
    client.close()


def measure(stage: Stage, row: Row, publish: Callable[[int], list[str]], run_all: Callable[[int], Any],
            worker: tuple[str, ...]) -> None:
    with stage.worker(*worker) as started:
        run_all(200)
        time.sleep(1.0)
        started.send_signal(signal.SIGSTOP)  # it must not compete for the cores while jobs are published
        began = time.monotonic()
        ids = publish(JOBS)
        published = time.monotonic() - began
        with usage_of(started) as usage:
            drain(stage, started, ids)
        time.sleep(1.0)
        began = time.monotonic()
        run_all(JOBS)
        both = time.monotonic() - began
    row.add(published_per_s=JOBS / published, worked_off_per_s=JOBS / usage.seconds, map_per_s=JOBS / both,
            worker_cpu_ms_per_job=1000 * usage.cpu / JOBS, peak_mb=usage.peak_mb, others_cores=usage.others)


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in CONTENDERS}
    for _ in range(stage.repeat):
        for name, (publish, run_all, worker) in CONTENDERS.items():
            measure(stage, rows[name], publish, run_all, worker)
    return Report("throughput", __doc__ or "", list(rows.values()), [])
