"""From `job.cancel()` to the moment that the server sees the socket of the call's open HTTP stream closed."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from benchmarks.agents import Listener
from benchmarks.harness import IO, Report, Row, Stage, at_most, percentile
from callsheet import Job
from callsheet.tasks.app import current_app
from tests.services import free_port, wait_for

CALLS = 100
PAUSE = 0.02  # seconds between two cancellations
_paths = count()


def cancel(job: Job) -> None:
    job.cancel()


def revoke(job: Job) -> None:
    current_app().control.revoke(job.id, terminate=True)


CONTENDERS: dict[str, Callable[[Job], None]] = {"job.cancel()": cancel, "revoke(terminate=True)": revoke}


@contextmanager
def streams(port: int) -> Iterator[Callable[[str], dict[str, float]]]:
    """The server; gives what it knows: "open" or "closed", path -> time.monotonic(), which all processes share."""
    process = subprocess.Popen([sys.executable, "-m", "tests.streams", str(port)])

    def told(what: str) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{what}", timeout=5) as answer:
                known: dict[str, float] = json.loads(answer.read())
                return known
        except OSError:
            return {}

    try:
        yield told
    finally:
        process.terminate()
        process.wait(10)


def times(end: Callable[[Job], None], told: Callable[[str], dict[str, float]], calls: int) -> list[float]:
    """Milliseconds of each cancellation."""
    paths = [f"/{next(_paths)}" for _ in range(calls)]
    jobs = [Listener(path).submit() for path in paths]
    wait_for(lambda: told("open").keys() >= set(paths), 60, "the streams")
    began: dict[str, float] = {}
    for path, job in zip(paths, jobs, strict=True):
        began[path] = time.monotonic()
        end(job)
        time.sleep(PAUSE)
    wait_for(lambda: told("closed").keys() >= set(paths), 60, "the sockets to be closed")
    closed = told("closed")
    assert all(closed[path] > began[path] for path in paths), "a stream ended by itself"
    return [1000 * (closed[path] - began[path]) for path in paths]


def measure(stage: Stage, row: Row, end: Callable[[Job], None]) -> None:
    port = free_port()
    env = {"CALLSHEET_ENDPOINTS__BENCH__BASE_URL": f"http://127.0.0.1:{port}"}
    with streams(port) as told, stage.worker(IO, "--autoscale=500,200", env=env):
        times(end, told, 5)
        values = times(end, told, CALLS)
    row.add(median_ms=percentile(values, 0.5), p99_ms=percentile(values, 0.99), max_ms=max(values))


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in CONTENDERS}
    for _ in range(stage.repeat):
        for name, end in CONTENDERS.items():
            measure(stage, rows[name], end)
    goals: list[Any] = [at_most(f"{name}: median under 100 ms", row.median("median_ms"), 100)
                        for name, row in rows.items()]
    return Report("cancel", __doc__ or "", list(rows.values()), goals)
