"""CPU that a worker uses while nothing is to be done."""

import time

from benchmarks.agents import Noop
from benchmarks.harness import GEVENT, IO, STOCK, Report, Row, Stage, Usage, at_most, usage_of
from benchmarks.stock import noop

SECONDS = 15

CONTENDERS = {
    "callsheet io --autoscale=500,20": (IO, "--autoscale=500,20"),
    "celery gevent -c 500": (STOCK, *GEVENT, "-c", "500"),
    "celery prefork": (STOCK, "-P", "prefork"),
}


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in CONTENDERS}
    for _ in range(stage.repeat):
        for name, worker in CONTENDERS.items():
            with stage.worker(*worker) as pid:
                if worker[0] == IO:  # one job, so that what starts with the first has started
                    Noop().submit().get(30)
                else:
                    noop.delay().get(30)
                time.sleep(3.0)
                assert stage.redis.process
                redis = Usage(stage.redis.process.pid).start()
                with usage_of(pid) as usage:
                    time.sleep(SECONDS)
                redis.stop()
            rows[name].add(cpu_percent=100 * usage.cpu / usage.seconds, redis_percent=100 * redis.cpu / redis.seconds,
                           memory_mb=usage.peak_mb)
    ours = rows["callsheet io --autoscale=500,20"]
    return Report("idle", __doc__ or "", list(rows.values()),
                  [at_most("under 2 % of a core", ours.median("cpu_percent"), 2)])
