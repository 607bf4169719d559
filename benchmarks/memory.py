"""Memory that one HTTP call in flight takes, from the resident sets of a worker with 0, 1,000 and 4,000 of them."""

import statistics
import time
from collections.abc import Callable

import httpx
from celery import group

from benchmarks.agents import Caller
from benchmarks.harness import GEVENT, IO, STOCK, Report, Row, Stage, at_most, resident_mb
from benchmarks.stock import fetch
from callsheet import Msg
from callsheet.agents import CallOptions
from callsheet.agents.dispatch import dispatcher
from tests.services import free_port, wait_for

IN_FLIGHT = (0, 1000, 4000)
SLOTS = max(IN_FLIGHT)
HELD = 3600.0  # seconds that the endpoint keeps a call, unless it is told to answer
SAMPLES = 11


def agents(url: str, calls: int) -> None:
    messages = [Msg("user", f"call {i}", "user") for i in range(calls)]
    dispatcher().submit_many(Caller(), messages, CallOptions())


def tasks(url: str, calls: int) -> None:
    group(fetch.s(f"{url}/slow", f"call {i}") for i in range(calls)).apply_async()


CONTENDERS: dict[str, tuple[Callable[[str, int], None], tuple[str, ...]]] = {
    f"callsheet io --autoscale={SLOTS},{SLOTS}": (agents, (IO, f"--autoscale={SLOTS},{SLOTS}")),
    f"celery gevent -c {SLOTS}, requests": (tasks, (STOCK, *GEVENT, "-c", str(SLOTS))),
}


def hold(url: str, submit: Callable[[str, int], None], calls: int) -> None:
    """Submit calls and wait until the endpoint has them all, on connections that stay."""
    submit(url, calls)
    wait_for(lambda: httpx.get(f"{url}/stats").json()["in_flight"] == calls, 120, f"{calls} calls in flight", 0.1)


def release(url: str) -> None:
    httpx.get(f"{url}/release")
    wait_for(lambda: httpx.get(f"{url}/stats").json()["in_flight"] == 0, 60, "calls to end", 0.1)
    time.sleep(1.0)


def resident(stage: Stage, submit: Callable[[str, int], None], worker: tuple[str, ...], calls: int) -> float:
    """MB, the median of samples taken over 3 s, in a worker of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"CALLSHEET_ENDPOINTS__BENCH__BASE_URL": url, "CALLSHEET_ENDPOINTS__BENCH__MAX_CONNECTIONS": str(SLOTS)}
    with stage.endpoint(port, HELD), stage.worker(*worker, env=env) as pid:
        hold(url, submit, 20)  # what the first calls load, and their connections, belong to the worker
        release(url)
        if calls:
            hold(url, submit, calls)
        samples = []
        for _ in range(SAMPLES):
            time.sleep(0.3)
            samples.append(resident_mb(pid))
        release(url)
    return statistics.median(samples)


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in CONTENDERS}
    for _ in range(stage.repeat):
        for name, (submit, worker) in CONTENDERS.items():
            found = [resident(stage, submit, worker, calls) for calls in IN_FLIGHT]
            slope = statistics.linear_regression(IN_FLIGHT, found).slope
            rows[name].add(**{f"mb_at_{calls}": mb for calls, mb in zip(IN_FLIGHT, found, strict=True)},
                           kb_per_call=1000 * slope)
    ours = next(iter(rows.values()))
    return Report("memory", __doc__ or "", list(rows.values()),
                  [at_most("under 60 KB a call in flight", ours.median("kb_per_call"), 60)])
