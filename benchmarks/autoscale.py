"""A load step, 0 to 2,000 calls of a second, on one io worker at --autoscale=1000,10: when all slots are at work.

Beside it the same worker with Celery's own autoscaler.
"""

import math
import os
import re
import time
from datetime import datetime

import callsheet
from benchmarks.agents import Tallied
from benchmarks.harness import IO, Report, Row, Stage, at_most, usage_of
from callsheet import Msg
from callsheet.settings import Settings
from callsheet.tasks.app import make_app
from tests.services import Worker, wait_for, worker

CALLS, MOST, LEAST = 2000, 1000, 10
SECONDS = 1.0
CYCLES = int(os.environ.get("CYCLES", "10"))
COOLDOWN = float(os.environ.get("CALLSHEET_AUTOSCALE_COOLDOWN", "30"))
STOCK_SCALER = "benchmarks.scalers"


def slots_full_at(log: str) -> float:
    """When the worker had all slots, by its log: ours tells the size, Celery's what it adds."""
    size, line = LEAST, r"^\[([\d-]+ [\d:,]+): INFO/MainProcess\] (autoscale size=.*|Scaling up .*)$"
    for stamp, told in re.findall(line, log, re.MULTILINE):
        ours = re.match(r"autoscale size=\d+->(\d+)", told)
        size = int(ours[1]) if ours else size + int(told.split()[2])
        if size >= MOST:
            return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return math.inf


def step(stage: Stage, started: Worker) -> dict[str, float]:
    """One load step; the calls are published while the worker looks on."""
    client, before = stage.redis.client(), len(started.log)
    client.delete(Tallied.KEY)
    agent, messages = Tallied(stage.redis.url, SECONDS), [Msg("user", str(i), "user") for i in range(CALLS)]
    sent = time.time()
    replies = [msg.content for msg in callsheet.map(agent, messages, window=CALLS, progress=False)]
    lines = [line.split() for line in client.lrange(Tallied.KEY, 0, -1)]
    begun = [float(when) for _, when in lines]
    first = min(begun)
    return {"all_slots_after_s": slots_full_at(started.log[before:]) - first,
            "as_many_begun_after_s": sorted(begun)[MOST - 1] - first, "first_begun_after_s": first - sent,
            "all_done_s": time.time() - sent, "lost": len({str(i) for i in range(CALLS)} - set(replies)),
            "run_twice": len(lines) - len({call for call, _ in lines})}


def size_of(stage: Stage, node: str) -> int:
    app = make_app(Settings.load(redis_url=stage.redis.url))
    answer = app.control.inspect([node], timeout=5, limit=1).stats() or {}
    return int(answer.get(node, {}).get("pool", {}).get("max-concurrency", -1))


def cycles(stage: Stage, row: Row, app: str, count: int, comes_back: bool) -> None:
    with worker(app, stage.redis.url, f"--autoscale={MOST},{LEAST}") as started:
        for _ in range(count):
            with usage_of(started.process.pid) as usage:
                measured = step(stage, started)
            back = 0.0
            if comes_back:
                ended = time.monotonic()
                wait_for(lambda: size_of(stage, started.name) == LEAST, 2 * COOLDOWN, "the smallest size", every=0.5)
                back = time.monotonic() - ended
            row.add(**measured, back_after_s=back, worker_cpu_s=usage.cpu, others_cores=usage.others)


def run(stage: Stage) -> Report:
    ours, stock = Row(f"LoadAutoscaler, {CYCLES} cycles"), Row("Celery's Autoscaler")
    cycles(stage, ours, IO, CYCLES, comes_back=True)
    for _ in range(stage.repeat):
        cycles(stage, stock, STOCK_SCALER, 1, comes_back=False)
    return Report("autoscale", __doc__ or "", [ours, stock], [
        at_most(f"{MOST} slots within 3 s of the first call's beginning, each time",
                max(ours.values["all_slots_after_s"]), 3.0),
        at_most(f"and {MOST} calls begun", ours.median("as_many_begun_after_s"), 3.0),
        at_most(f"back at {LEAST} slots within the cooldown of {COOLDOWN:g} s", max(ours.values["back_after_s"]),
                COOLDOWN),
        at_most("no call is lost", max(ours.values["lost"]), 0),
        at_most("no call runs twice", max(ours.values["run_twice"]), 0),
    ])
