"""One process that calls an endpoint as fast as it is let: `python -m tests.limits_caller '{...}'`, JSON in and out.

In: `endpoint` (of the settings), `name`, `redis`, `seconds` to go on, `callers` at once, `tokens` [least, most] that a
call takes, `max_tokens` that it allows, `took` seconds a call, `who`, `agent` (call as an agent would), `grace`
(seconds after which calls left over are cancelled), `skew` (seconds that this process's clock is wrong). Out, one
line: how many calls ended how.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import httpx

import callsheet
from callsheet.resources import transport
from callsheet.resources.context import CallContext, call_context
from callsheet.settings import Settings


async def calls(job: dict[str, Any]) -> Counter[str]:
    settings = Settings.load(redis_url=job["redis"], endpoints={job["name"]: job["endpoint"]})
    ended: Counter[str] = Counter()
    rng = random.Random(job["who"])
    stop = time.time() + job["seconds"]
    url = f"{job['endpoint']['base_url']}/chat/completions"

    async def caller(http: httpx.AsyncClient) -> None:
        while time.time() < stop:
            tokens = rng.randint(*job["tokens"])
            body = {"model": "m", "messages": [{"content": "x" * (4 * tokens // 2)}],
                    "max_tokens": job.get("max_tokens") or tokens - tokens // 2, "user": f"{tokens} {job['took']}"}
            try:
                with call_context(CallContext(call="c" if job.get("agent") else None)):
                    answer = await http.post(url, json=body, headers={"x-who": job["who"]})
                ended[str(answer.status_code)] += 1
            except (httpx.HTTPError, callsheet.errors.CallsheetError) as exc:
                ended[type(exc).__name__] += 1

    limit = httpx.Timeout(60, pool=None)
    async with httpx.AsyncClient(transport=transport(job["name"], settings), timeout=limit) as http:
        print("ready", flush=True)
        tasks = [asyncio.create_task(caller(http)) for _ in range(job["callers"])]
        await asyncio.wait(tasks, timeout=job["seconds"] + job.get("grace", 0.5))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return ended


def main() -> None:
    job = json.loads(sys.argv[1])
    true = time.time
    time.time = lambda: true() + job.get("skew", 0)
    print(json.dumps(asyncio.run(calls(job))), flush=True)


if __name__ == "__main__":
    main()
