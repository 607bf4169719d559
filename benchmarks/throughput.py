"""Jobs that do nothing: how fast they are published, worked off by one process, and both at once."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drive import driver
from benchmarks.harness import GEVENT, IO, STOCK, Goal, Report, Row, Stage, Usage, at_least, signal_tree
from benchmarks.peers import ARQ, BENCH, OWN, arq_worker, importable, left_out, taskiq_worker
from benchmarks.peers import CONTENDERS as MODULES

SLOTS = 500


@dataclass(frozen=True)
class Contender:
    """One of those compared.

    Args:
        name: its row.
        module: its caller's side, see `benchmarks.drive`.
        worker: starts its worker and gives its pid; without, the caller's side starts it.
        needs: module that must be there.
        install: the command that installs what is missing.
        python: runs the caller's side; it must be there as well.
    """

    name: str
    module: str
    worker: Callable[[Stage], AbstractContextManager[int]] | None
    needs: str = "callsheet"
    install: str = BENCH
    python: str = sys.executable

    def found(self) -> bool:
        return Path(self.python).exists() and importable(self.needs)


OURS = f"callsheet io --autoscale={SLOTS},{SLOTS}"
TASKIQ = "taskiq, Redis streams"
STOCK_GEVENT = f"celery gevent -c {SLOTS}"
CONTENDERS = [
    Contender(OURS, "callsheet_agents", lambda stage: stage.worker(IO, f"--autoscale={SLOTS},{SLOTS}")),
    Contender(TASKIQ, "taskiq_jobs", lambda stage: taskiq_worker(stage, SLOTS), "taskiq_redis"),
    Contender("arq", "arq_jobs", arq_worker, install=OWN, python=str(ARQ)),
    Contender("ray, one async actor", "ray_actor", None, "ray"),
    Contender(STOCK_GEVENT, "celery_tasks", lambda stage: stage.worker(STOCK, *GEVENT, "-c", str(SLOTS))),
]


def measure(stage: Stage, row: Row, contender: Contender) -> None:
    worker = contender.worker(stage) if contender.worker else nullcontext(0)
    with worker as started, driver(f"{MODULES}.{contender.module}", contender.python) as caller:
        pid = started or caller.ask("worker")["pid"]
        caller.ask("run", 200)
        time.sleep(1.0)
        signal_tree(pid, signal.SIGSTOP)  # it must not compete for the cores while jobs are published
        published = caller.ask("publish", stage.jobs)
        usage = Usage(pid).start()
        signal_tree(pid, signal.SIGCONT)
        seconds = caller.ask("wait")["seconds"]
        time.sleep(0.5)  # acknowledgements that come after results are part of the work
        usage.stop()
        both = caller.ask("run", stage.jobs)
    jobs = stage.jobs
    row.add(published_per_s=jobs / published["seconds"], caller_cpu_ms_per_job=1000 * published["cpu"] / jobs,
            worked_off_per_s=jobs / seconds, worker_cpu_ms_per_job=1000 * usage.cpu / jobs,
            both_per_s=jobs / both["seconds"], peak_mb=usage.peak_mb, others_cores=usage.others)


def goals(rows: dict[str, Row]) -> list[Goal]:
    ours = rows[OURS]
    noisy = "the same by CPU, where the machine is noisy"
    wanted = [at_least("published at 8,000 a second", ours.median("published_per_s"), 8000),
              at_least(noisy, 1000 / ours.median("caller_cpu_ms_per_job"), 8000)]
    for peer, times in ((TASKIQ, 1.2), (STOCK_GEVENT, 3.0)):
        if peer in rows:
            rate = ours.median("worked_off_per_s") / rows[peer].median("worked_off_per_s")
            cpu = rows[peer].median("worker_cpu_ms_per_job") / ours.median("worker_cpu_ms_per_job")
            wanted += [at_least(f"worked off at least {times:g} times as fast as {peer}", rate, times),
                       at_least(noisy, cpu, times)]
    return wanted


def run(stage: Stage) -> Report:
    found = [contender for contender in CONTENDERS if contender.found()]
    for contender in CONTENDERS:
        if contender not in found:
            left_out(contender.name, install=contender.install)
    rows = {contender.name: Row(contender.name) for contender in found}
    for _ in range(stage.repeat):
        for contender in found:
            measure(stage, rows[contender.name], contender)
    return Report("throughput", __doc__ or "", list(rows.values()), goals(rows))
