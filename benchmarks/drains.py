"""A loaded worker is told to end 20 times by SIGTERM, warm and soft: each call that it had begun ends, once."""

import os
import signal
from collections import Counter
from contextlib import ExitStack

from benchmarks.agents import TalliedTwice
from benchmarks.harness import IO, Report, Row, Stage, at_least, at_most
from tests.feed import Feed
from tests.services import Worker, wait_for, worker

ENDS = int(os.environ.get("ENDS", "20"))
WINDOW = 150  # calls under way or waiting: more than the slots of both workers
SLOTS = 50
SECONDS = 1.0
KINDS = {
    "warm": {},
    "soft, within 30 s": {"REMAP_SIGTERM": "SIGQUIT", "CALLSHEET_SOFT_SHUTDOWN": "30"},
}


class Workers:
    """Two workers, of which the older one is ended and replaced."""

    def __init__(self, stage: Stage, env: dict[str, str]) -> None:
        self._stage, self._env, self._stack = stage, env, ExitStack()
        self.running = [self._start(), self._start()]

    def _start(self) -> Worker:
        return self._stack.enter_context(
            worker(IO, self._stage.redis.url, f"--autoscale={SLOTS},{SLOTS // 5}", env=self._env))

    def end_one(self) -> None:
        """SIGTERM to one that works; another is in its place before it has ended."""
        old = self.running.pop(0)
        old.send_signal(signal.SIGTERM)
        self.running.append(self._start())
        assert old.process.wait(60) == 0, old.log[-2000:]

    def close(self) -> None:
        self._stack.close()


def measure(stage: Stage, row: Row, env: dict[str, str]) -> None:
    client = stage.redis.client()
    client.delete(TalliedTwice.KEY, TalliedTwice.ENDED)
    at_work = []
    workers = Workers(stage, env)
    try:
        with Feed(TalliedTwice(stage.redis.url, SECONDS), WINDOW) as feed:
            for _ in range(ENDS):
                known = client.llen(TalliedTwice.KEY)
                wait_for(lambda known=known: client.llen(TalliedTwice.KEY) > known + 3 * SLOTS,  # type: ignore[misc]
                         60, "both workers at work")
                at_work.append(client.llen(TalliedTwice.KEY) - client.llen(TalliedTwice.ENDED))
                workers.end_one()
            feed.finish()
    finally:
        workers.close()
    sent, results = feed.sent, feed.results
    begun, ended = tally(client.lrange(TalliedTwice.KEY, 0, -1)), tally(client.lrange(TalliedTwice.ENDED, 0, -1))
    row.add(ends=ENDS, calls=len(sent), at_work_then=sum(at_work) / len(at_work),
            lost=len(set(sent) - set(results)), answered_twice=len(results) - len(set(results)),
            begun_twice=sum(count > 1 for count in begun.values()),
            ended_twice=sum(count > 1 for count in ended.values()), never_ended=len(set(begun) - set(ended)))


def tally(lines: list[str]) -> Counter[str]:
    return Counter(line.split()[0] for line in lines)


def run(stage: Stage) -> Report:
    rows = []
    for name, env in KINDS.items():
        row = Row(f"two io workers, --autoscale={SLOTS},{SLOTS // 5}, {name}")
        measure(stage, row, env)
        rows.append(row)
    bad = sum(max(row.values[column]) for row in rows
              for column in ("lost", "answered_twice", "begun_twice", "ended_twice", "never_ended"))
    return Report("drains", __doc__ or "", rows, [
        at_most("every call that was begun ends, and ends once", bad, 0),
        at_least("calls at work when one is told to end", min(row.median("at_work_then") for row in rows), SLOTS)])
