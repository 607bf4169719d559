"""What record, usage, retries, breaker and limits add to an outbound call: CPU beside the bare pooled transport, in the
same process and run, and trips to Redis."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvloop

from benchmarks.harness import Report, Row, Stage, at_most
from callsheet.resources.books import books
from callsheet.resources.context import CallContext, call_context
from callsheet.resources.record import Recording
from callsheet.resources.stack import build
from callsheet.resources.transport import pooled_transport
from callsheet.resources.usage import Sniffing
from callsheet.settings import Settings, use_settings
from callsheet.tasks.loop import adopt
from callsheet.workers.watch import spare_collector
from tests.services import free_port

CALLS = 3000
AT_ONCE = 50
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "A question of some length. " * 60}]})
LIMITS = {"rpm": 100_000_000, "tpm": 10_000_000_000, "max_concurrency": 10_000}
PLAIN, LIMITED = "plain", "limited"

Make = Callable[[Settings], httpx.AsyncBaseTransport]


def bare(settings: Settings) -> httpx.AsyncBaseTransport:
    return pooled_transport(settings.endpoints[PLAIN])


def recorded(settings: Settings) -> httpx.AsyncBaseTransport:
    return Recording(Sniffing(pooled_transport(settings.endpoints[PLAIN])), PLAIN)


def guarded(settings: Settings) -> httpx.AsyncBaseTransport:
    return build(PLAIN, settings.endpoints[PLAIN], settings)


def limited(settings: Settings) -> httpx.AsyncBaseTransport:
    return build(LIMITED, settings.endpoints[LIMITED], settings)


#: What sends a request, and how many are under way at once.
CONTENDERS: dict[str, tuple[Make, int]] = {
    "pooled transport": (bare, AT_ONCE),
    "with record and usage": (recorded, AT_ONCE),
    "with retries and breaker too": (guarded, AT_ONCE),
    "with limits (Redis) too": (limited, AT_ONCE),
    "pooled transport, one by one": (bare, 1),
    "all layers, one by one": (limited, 1),
}


@contextmanager
def served() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.model", str(port)])
    try:
        time.sleep(1.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def commands(redis: Any) -> int:
    """Scripts and notices that came from outside: the layers' trips."""
    stats = redis.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("eval", "evalsha", "fcall", "publish",
                                                                                 "subscribe", "ping"))


async def calls(transport: httpx.AsyncBaseTransport, url: str, count: int, at_once: int) -> None:
    left = iter(range(count))

    async def caller(http: httpx.AsyncClient) -> None:
        for number in left:
            with call_context(CallContext(job=f"j{number}", call=f"j{number}", agent="Asks(a)", tenant="t")):
                response = await http.post(f"{url}/chat/completions", content=BODY,
                                           headers={"Content-Type": "application/json"})
                assert response.status_code == 200

    async with httpx.AsyncClient(transport=transport, base_url=url) as http:
        await asyncio.gather(*(caller(http) for _ in range(at_once)))
    await books.settled()


async def measure(row: Row, make: Make, at_once: int, settings: Settings, url: str, redis: Any) -> None:
    count = CALLS if at_once > 1 else CALLS // 5
    await calls(make(settings), url, 200, at_once)  # connections and clients are open
    before, began, cpu = commands(redis), time.perf_counter(), time.process_time()
    await calls(make(settings), url, count, at_once)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    row.add(cpu_ms_a_call=cpu / count * 1000, ms_a_call=seconds / count * 1000,
            redis_trips_a_call=(commands(redis) - before) / count)


async def rounds(repeat: int, rows: dict[str, Row], settings: Settings, url: str, redis: Any) -> None:
    adopt(asyncio.get_running_loop())  # as an io worker's
    for _ in range(repeat):
        for name, (make, at_once) in CONTENDERS.items():
            await measure(rows[name], make, at_once, settings, url, redis)
    adopt(None)


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in CONTENDERS}
    spare_collector()  # as a worker's
    with served() as url, stage.redis.client() as redis:
        settings = Settings.load(redis_url=stage.redis.url, prices={"m": {"input": 1, "output": 2}}, endpoints={
            PLAIN: {"base_url": url}, LIMITED: {"base_url": url, **LIMITS}})
        with use_settings(settings):
            uvloop.run(rounds(stage.repeat, rows, settings, url, redis))
    least = {name: min(row.values["cpu_ms_a_call"]) for name, row in rows.items()}
    added = least["with limits (Redis) too"] - least["pooled transport"]
    for name, row in rows.items():
        row.add(added_ms=least[name] - least["pooled transport" + (", one by one" if "one by one" in name else "")])
    return Report("overhead", __doc__ or "", list(rows.values()), [
        at_most("less than 0.3 ms of CPU a call, all layers together", added, 0.3)])
