"""4,000 calls of a 1 s HTTP endpoint through one worker with 1,000 slots."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx
from celery import group

import callsheet
from benchmarks.agents import Caller
from benchmarks.harness import GEVENT, IO, STOCK, Report, Row, Stage, at_least, at_most, usage_of
from benchmarks.peers import BENCH, importable, left_out, taskiq_worker
from benchmarks.stock import fetch
from callsheet import Msg
from tests.services import free_port

CALLS = 4000
SLOTS = 1000
SECONDS = 1.0
IDEAL = CALLS / SLOTS * SECONDS


def agents(url: str, calls: int) -> None:
    messages = [Msg("user", f"call {i}", "user") for i in range(calls)]
    replies = list(callsheet.map(Caller(), messages, progress=False))
    assert len(replies) == calls and replies[-1].content == "42"


def tasks(url: str, calls: int) -> None:
    replies = group(fetch.s(f"{url}/slow", f"call {i}") for i in range(calls)).apply_async().get()
    assert len(replies) == calls and replies[-1] == "42"


def taskiq_tasks(url: str, calls: int) -> None:
    from benchmarks.contenders.taskiq_jobs import fetch_all  # it is not always installed

    replies = fetch_all(f"{url}/slow", calls)
    assert len(replies) == calls and replies[-1] == "42"


Contender = tuple[Callable[[str, int], None], Callable[[Stage, str], AbstractContextManager[int]]]


def celery(*worker: str) -> Callable[[Stage, str], AbstractContextManager[int]]:
    return lambda stage, url: stage.worker(*worker, env={"CALLSHEET_ENDPOINTS__BENCH__BASE_URL": url})


OURS, PEER = "callsheet io --autoscale=1000,1000", "celery gevent -c 1000, requests"
CONTENDERS: dict[str, Contender] = {
    OURS: (agents, celery(IO, f"--autoscale={SLOTS},{SLOTS}")),
    PEER: (tasks, celery(STOCK, *GEVENT, "-c", str(SLOTS))),
    "taskiq --max-async-tasks 1000, aiohttp": (taskiq_tasks, lambda stage, url: taskiq_worker(stage, SLOTS)),
    "callsheet io --autoscale=1000,20": (agents, celery(IO, f"--autoscale={SLOTS},20")),
}


def measure(stage: Stage, row: Row, contender: Contender) -> None:
    run, worker = contender
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with stage.endpoint(port, SECONDS), worker(stage, url) as pid:
        run(url, 20)  # clients and connections to Redis are open, on both sides
        time.sleep(1.0)
        with usage_of(pid) as usage:
            run(url, CALLS)
        served = httpx.get(f"{url}/stats").json()
    assert served["requests"] == CALLS + 20, served
    row.add(seconds=usage.seconds, to_ideal=usage.seconds / IDEAL, peak_mb=usage.peak_mb, worker_cpu_s=usage.cpu,
            in_flight=served["most_in_flight"], connections=served["connections"], others_cores=usage.others)


def run(stage: Stage) -> Report:
    found = {name: it for name, it in CONTENDERS.items() if it[0] is not taskiq_tasks or importable("taskiq_redis")}
    left_out(*CONTENDERS.keys() - found.keys(), install=BENCH)
    rows = {name: Row(name) for name in found}
    for _ in range(stage.repeat):
        for name, contender in found.items():
            measure(stage, rows[name], contender)
    ours, peer = rows[OURS], rows[PEER]
    faster = peer.median("seconds") / ours.median("seconds")
    return Report("http_calls", __doc__ or "", list(rows.values()), [
        at_most(f"at most 1.5 times the ideal {IDEAL:g} s", ours.median("to_ideal"), 1.5),
        at_least("at least 1.8 times as fast as gevent with requests", faster, 1.8),
        at_most("peak memory under 200 MB", ours.median("peak_mb"), 200),
    ])
