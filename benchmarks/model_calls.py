"""4,000 chat completions of 1 s, 1,000 at once, in one process: OpenAIChatModel beside OpenAI's SDK as it comes.

Python's garbage collector is set as an io worker sets it, for both.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import uvloop

from benchmarks.harness import Report, Row, Stage, at_most, busy
from callsheet.workers.watch import spare_collector
from tests.services import free_port

CALLS = 4000
AT_ONCE = 1000
SECONDS = 1.0
IDEAL = CALLS / AT_ONCE * SECONDS
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
    {"role": "user", "content": "What are whales, and what is remarkable about them?"}]
CONTENDERS = {"callsheet OpenAIChatModel": "ours", "openai SDK, its default client": "theirs"}


async def ours(url: str, many: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]) -> None:
    from callsheet.models import OpenAIChatModel
    from callsheet.settings import Settings, use_settings

    endpoint = {"base_url": url, "api_key": "sk-bench", "max_connections": AT_ONCE}
    with use_settings(Settings.load(endpoints={"openai": endpoint}, inline=True)):
        model = OpenAIChatModel("bench", stream=False)

        async def one() -> None:
            response: Any = await model(MESSAGES, temperature=0)
            assert response.content[0]["text"] and response.usage.output_tokens == 7

        await many(one)


async def theirs(url: str, many: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]) -> None:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="sk-bench", timeout=300) as client:
        messages: Any = MESSAGES

        async def one() -> None:
            response = await client.chat.completions.create(model="bench", messages=messages, temperature=0)
            assert response.choices[0].message.content and response.usage and response.usage.completion_tokens == 7

        await many(one)


def main(who: str, url: str, calls: int) -> None:
    """One contender, in a process of its own; prints what it took as JSON."""
    found: dict[str, float] = {}

    async def many(one: Callable[[], Awaitable[Any]]) -> None:
        await asyncio.gather(*(one() for _ in range(20)))
        spare_collector()
        places = asyncio.Semaphore(AT_ONCE)

        async def placed() -> None:
            async with places:
                await one()

        began, cpu, machine = time.perf_counter(), time.process_time(), busy()
        await asyncio.gather(*(placed() for _ in range(calls)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        found.update(seconds=took, cpu=cpu, others=max(busy() - machine - cpu, 0.0) / took)

    uvloop.run({"ours": ours, "theirs": theirs}[who](url, many))
    print(json.dumps(found))


def measure(stage: Stage, row: Row, who: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with stage.endpoint(port, SECONDS):
        done = subprocess.run([sys.executable, "-m", "benchmarks.model_calls", who, f"{url}/v1", str(CALLS)],
                              stdout=subprocess.PIPE, check=True, text=True)
        served = httpx.get(f"{url}/stats").json()
    found = json.loads(done.stdout.splitlines()[-1])
    assert served["requests"] == CALLS + 20, served
    row.add(seconds=found["seconds"], to_ideal=found["seconds"] / IDEAL, cpu_ms_a_call=1000 * found["cpu"] / CALLS,
            in_flight=served["most_in_flight"], connections=served["connections"], others_cores=found["others"])


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in CONTENDERS}
    for _ in range(stage.repeat):
        for name, who in CONTENDERS.items():
            measure(stage, rows[name], who)
    mine, peer = rows.values()
    share = mine.median("cpu_ms_a_call") / peer.median("cpu_ms_a_call")
    return Report("model_calls", __doc__ or "", list(rows.values()), [
        at_most(f"at most 1.35 times the ideal {IDEAL:g} s", mine.median("to_ideal"), 1.35),
        at_most("at most half of the SDK's CPU a call", share, 0.5),
    ])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
