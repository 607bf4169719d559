"""CPU that the autoscaler, metrics and Celery's events add to an agent's call that does nothing.

Each kind gets several workers, in turns, and each worker several rounds. Of a worker the least of its rounds counts:
they are the same work, and what else the machine does only adds to it. Of a kind the median of its workers counts, and
"added" is what that is over the median of the workers that nothing watches: two workers alike differ by some per cent,
up and down, so that the least of a few says which kind had the luckiest one.
"""

import os
import signal
import time

from benchmarks.drive import driver
from benchmarks.harness import IO, Report, Row, Stage, Usage, at_most, signal_tree
from benchmarks.peers import CONTENDERS as MODULES

SLOTS = 500
ROUNDS = int(os.environ.get("ROUNDS", "3"))
METRICS = {"CALLSHEET_METRICS_PORT": "0"}
NOTHING = "nothing watches"
KINDS = {
    NOTHING: (("-c", str(SLOTS)), {}),
    "autoscaler": ((f"--autoscale={SLOTS},20",), {}),
    "autoscaler and metrics": ((f"--autoscale={SLOTS},20",), METRICS),
    "events (-E)": (("-c", str(SLOTS), "-E"), {}),
    "autoscaler, metrics and events": ((f"--autoscale={SLOTS},20", "-E"), METRICS),
}


def measure(stage: Stage, row: Row, options: tuple[str, ...], env: dict[str, str]) -> None:
    found = []
    with stage.worker(IO, *options, env=env) as pid, driver(f"{MODULES}.callsheet_agents") as caller:
        caller.ask("run", 500)
        for _ in range(ROUNDS):
            signal_tree(pid, signal.SIGSTOP)  # it must not compete for the cores while jobs are published
            caller.ask("publish", stage.jobs)
            usage = Usage(pid).start()
            signal_tree(pid, signal.SIGCONT)
            caller.ask("wait")
            time.sleep(0.5)  # acknowledgements that come after results are part of the work
            usage.stop()
            found.append(1e6 * usage.cpu / stage.jobs)
    row.add(worker_cpu_us_per_job=min(found), others_cores=usage.others)


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in KINDS}
    for _ in range(stage.repeat):
        for name, (options, env) in KINDS.items():
            measure(stage, rows[name], options, env)
    added = {name: row.median("worker_cpu_us_per_job") / rows[NOTHING].median("worker_cpu_us_per_job") - 1
             for name, row in rows.items()}
    for name, row in rows.items():
        row.values["added"] = [added[name]]
    return Report("watching", __doc__ or "", list(rows.values()), [
        at_most("the autoscaler adds at most 3 %", added["autoscaler"], 0.03),
        at_most("with metrics", added["autoscaler and metrics"], 0.03),
        at_most("with metrics and events", added["autoscaler, metrics and events"], 0.03)])
