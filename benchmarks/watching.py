"""CPU that the autoscaler, metrics and Celery's events add to an agent's call that does nothing.

Two workers alike differ by some per cent, up and down: more than what is looked for. So events are turned on and off in
one worker, as `control enable_events` does, and each round with them is compared with its neighbour without. The
autoscaler and metrics belong to a worker from its start: of each kind there are several, in turns, of a worker the
least of its rounds counts, for what else the machine does only adds to it, and of a kind the median of its workers.
"""

import os
import signal
import statistics
import time

from celery import Celery

from benchmarks.drive import Driver, driver
from benchmarks.harness import IO, Report, Row, Stage, Usage, at_most, signal_tree
from benchmarks.peers import CONTENDERS as MODULES

SLOTS = 500
PAIRS = int(os.environ.get("PAIRS", "3"))
METRICS = {"CALLSHEET_METRICS_PORT": "0"}
NOTHING, ALL = "nothing watches", "autoscaler and metrics"
KINDS = {
    NOTHING: (("-c", str(SLOTS)), {}),
    "autoscaler": ((f"--autoscale={SLOTS},20",), {}),
    ALL: ((f"--autoscale={SLOTS},20",), METRICS),
}


def measure(stage: Stage, row: Row, options: tuple[str, ...], env: dict[str, str]) -> None:
    found: dict[bool, list[float]] = {False: [], True: []}
    with stage.worker(IO, *options, env=env) as pid, driver(f"{MODULES}.callsheet_agents") as caller:
        caller.ask("run", 500)
        for number in range(2 * PAIRS):
            events = number % 4 in (1, 2)  # off and on, on and off: neither is always the first
            switch_events(stage, on=events)
            usage = worked_off(stage, pid, caller)
            found[events].append(1e6 * usage.cpu / stage.jobs)
    added = [on / off - 1 for on, off in zip(found[True], found[False], strict=True)]
    row.add(worker_cpu_us_per_job=min(found[False]), with_events=min(found[True]),
            added_by_events=statistics.median(added), others_cores=usage.others)


def switch_events(stage: Stage, *, on: bool) -> None:
    control = Celery(broker=stage.redis.url).control
    told = (control.enable_events if on else control.disable_events)(reply=True, timeout=5, limit=1)
    assert told and all("ok" in answer for one in told for answer in one.values()), told


def worked_off(stage: Stage, pid: int, caller: Driver) -> Usage:
    signal_tree(pid, signal.SIGSTOP)  # it must not compete for the cores while jobs are published
    caller.ask("publish", stage.jobs)
    usage = Usage(pid).start()
    signal_tree(pid, signal.SIGCONT)
    caller.ask("wait")
    time.sleep(0.5)  # acknowledgements that come after results are part of the work
    return usage.stop()


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in KINDS}
    for _ in range(stage.repeat):
        for name, (options, env) in KINDS.items():
            measure(stage, rows[name], options, env)
    added = {name: row.median("worker_cpu_us_per_job") / rows[NOTHING].median("worker_cpu_us_per_job") - 1
             for name, row in rows.items()}
    for name, row in rows.items():
        row.values["added"] = [added[name]]
    events = statistics.median(one for row in rows.values() for one in row.values["added_by_events"])
    return Report("watching", __doc__ or "", list(rows.values()), [
        at_most("the autoscaler adds at most 3 %", added["autoscaler"], 0.03),
        at_most("with metrics", added[ALL], 0.03),
        at_most("Celery's events", events, 0.03),
        at_most("autoscaler, metrics and events", (1 + added[ALL]) * (1 + events) - 1, 0.03)])
