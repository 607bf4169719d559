"""Four io workers at full pressure for two minutes of 15 s each: 600 requests and 60,000 tokens a minute, against a
server that enforces the same in sliding windows; then one of them is told to leave the endpoint alone for 5 s, at
200 requests a second."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.agents import Asks
from benchmarks.harness import IO, Report, Row, Stage, at_least, at_most
from callsheet import Msg
from tests.services import wait_for
from tests.test_limits_fleet import Server, server
from tests.test_limits_rules import most_in_a_window

WORKERS = 4
MINUTE = 15.0
"""Seconds that a minute is scaled to."""
REQUESTS, TOKENS = 600, 60_000
RETRY_AFTER = 5
RATE = 200
"""Calls a second around the pause."""


@contextmanager
def workers(stage: Stage, provider: Server, calls: Iterator[str], count: int, **endpoint: Any) -> Iterator[None]:
    """Workers with so many jobs on the queue, ready to call."""
    given = {"base_url": provider.url, "retry": {"attempts": 1}, "breaker": {"enabled": False}, **endpoint}
    env = {"CALLSHEET_ENDPOINTS": json.dumps({"limited": given})}
    stage.redis.client().flushall()
    agent = Asks()
    for _ in range(count):
        agent.submit(Msg("user", next(calls), "user"))
    with ExitStack() as stack:
        for _ in range(WORKERS):
            stack.enter_context(stage.worker(IO, "--autoscale=200,200", env=env))
        yield
        stage.redis.client().flushall()  # what is left to do is dropped


def sizes() -> Iterator[str]:
    """Tokens that each call takes, what it allows for its answer, and its seconds."""
    rng = random.Random(1)
    while True:
        yield f"{rng.randint(50, 150)} 75 0.2"


def pressure(stage: Stage, row: Row) -> None:
    scale = 60 / MINUTE
    limits = {"window": MINUTE, "rpm": int(REQUESTS * scale), "tpm": int(TOKENS * scale)}
    with server(window=MINUTE, requests=REQUESTS, tokens=TOKENS) as provider, \
            workers(stage, provider, sizes(), 2200, **limits):
        wait_for(lambda: len(provider.log()) > 0, 30, "the first call")
        start = provider.log()[0][0]
        wait_for(lambda: time.time() > start + 2 * MINUTE + 0.5, 3 * MINUTE, "two minutes", every=0.5)
        log = [one for one in provider.log() if one[0] < start + 2 * MINUTE]
    passed = [(at, tokens) for at, status, tokens, _ in log if status == 200]
    requests, tokens = most_in_a_window([(at, tokens) for at, _, tokens, _ in log], MINUTE)
    second = [one for one in passed if one[0] >= start + MINUTE]
    row.add(share_used_percent=_share(passed, 2), second_minute_percent=_share(second, 1),
            refused_429=len(log) - len(passed),
            overshoot_percent=100 * max(0.0, requests / REQUESTS - 1, tokens / TOKENS - 1),
            calls=len(passed))


def _share(passed: list[tuple[float, int]], minutes: int) -> float:
    """Percent of the limit that is nearer to be used up."""
    return 100 * max(len(passed) / REQUESTS, sum(tokens for _, tokens in passed) / TOKENS) / minutes


def pause(stage: Stage, row: Row) -> None:
    def calls() -> Iterator[str]:
        while True:
            yield "0 0 0.02"

    with server() as provider, workers(stage, provider, calls(), 4500, rpm=RATE * 60, burst=0.0005):
        wait_for(lambda: len(provider.log()) > 2 * RATE, 30, "calls")
        provider.refuse(429, retry_after=str(RETRY_AFTER))
        wait_for(lambda: any(status == 429 for _, status, *_ in provider.log()), what="the refusal")
        refused = next(at for at, status, *_ in provider.log() if status == 429)
        wait_for(lambda: time.time() > refused + RETRY_AFTER + 3, 30, "the end of the pause", every=0.5)
        log = [at - refused for at, *_ in provider.log() if at > refused]
    late = [at for at in log if at < RETRY_AFTER - 0.5]
    released = [at for at in log if at >= RETRY_AFTER - 0.5]
    tenths = Counter(int((at - released[0]) * 10) for at in released if at < released[0] + 2.5)
    row.add(silent_after_ms=1000 * max(late, default=0.0), released_after_s=released[0],
            most_in_100_ms=max(tenths.values()), first_100_ms=tenths[0], mean_in_100_ms=sum(tenths.values()) / 25)


def run(stage: Stage) -> Report:
    rows = {"full pressure": Row("full pressure"), "Retry-After: 5": Row("Retry-After: 5")}
    measures: list[Callable[[Stage, Row], None]] = [pressure, pause]
    for _ in range(stage.repeat):
        for measure, row in zip(measures, rows.values(), strict=True):
            measure(stage, row)
    full, paused = rows.values()
    return Report("limits", __doc__ or "", list(rows.values()), [
        at_least("at least 97 % of the allowed rate used", full.median("share_used_percent"), 97),
        at_most("no 429 in any run", max(full.values["refused_429"]), 0),
        at_most("at most 1 % over the limit in any window of any run", max(full.values["overshoot_percent"]), 1),
        at_most("nobody sends 100 ms after a Retry-After in any run", max(paused.values["silent_after_ms"]), 100),
        at_most("no burst after the pause: calls in any 100 ms, where 20 are the pace and 6 the allowance",
                paused.median("most_in_100_ms"), 30)])
