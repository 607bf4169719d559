"""Agents that compute in pure Python, about 0.2 s each: two processes beside one."""

import time

from celery import group

import callsheet
from benchmarks.agents import Burner, burn
from benchmarks.harness import CPU, STOCK, Report, Row, Stage, at_least, usage_of
from benchmarks.stock import compute
from callsheet import Msg

JOBS = 40
SECONDS = 0.2

CONTENDERS = {
    "callsheet cpu --autoscale=2,1": (CPU, "--autoscale=2,1"),
    "celery prefork -c 2": (STOCK, "-P", "prefork", "-c", "2"),
}


def calibrated() -> int:
    """Rounds that take SECONDS of CPU here."""
    times = []
    for _ in range(5):
        began = time.process_time()
        burn(1_000_000)
        times.append(time.process_time() - began)
    return int(1_000_000 * SECONDS / min(times))


def work(worker: tuple[str, ...], rounds: int, jobs: int) -> None:
    if worker[0] == CPU:
        messages = [Msg("user", str(i), "user") for i in range(jobs)]
        replies = list(callsheet.map(Burner(rounds), messages, progress=False))
    else:
        replies = group(compute.s(rounds, str(i)) for i in range(jobs)).apply_async().get()
    assert len(replies) == jobs


def run(stage: Stage) -> Report:
    alone = Row("one process, no queue")
    rows = {name: Row(name) for name in CONTENDERS}
    rounds = calibrated()
    for _ in range(stage.repeat):
        began = time.process_time()  # CPU time: what it takes on a core of its own, whatever else runs meanwhile
        for _ in range(JOBS):
            burn(rounds)
        single = time.process_time() - began
        alone.add(seconds=single, speed_up=1.0)
        for name, worker in CONTENDERS.items():
            with stage.worker(*worker) as pid:
                work(worker, 1000, 4)
                with usage_of(pid) as usage:
                    work(worker, rounds, JOBS)
            # By CPU: what two cores of its own would make of it, whatever else the machine does meanwhile.
            rows[name].add(seconds=usage.seconds, speed_up=single / usage.seconds, by_cpu=2 * single / usage.cpu,
                           worker_cpu_s=usage.cpu, peak_mb=usage.peak_mb, others_cores=usage.others)
    ours = rows["callsheet cpu --autoscale=2,1"]
    return Report("cpu", __doc__ or "", [alone, *rows.values()],
                  [at_least("at least 1.8 times as fast as one process", ours.median("speed_up"), 1.8),
                   at_least("the same by CPU, where the machine is noisy", ours.median("by_cpu"), 1.8)])
