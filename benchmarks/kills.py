"""A loaded worker is killed 20 times: what is lost, what runs twice, and when its calls are elsewhere."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.agents import Tallied
from benchmarks.harness import IO, Report, Row, Stage, at_most
from tests.feed import Feed
from tests.services import wait_for

KILLS = 20
WINDOW = 300  # calls under way
SLOTS = 50
SECONDS = 0.5
LEASE = 5.0


class Victims:
    """Two workers, of which the older one is killed and replaced."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._env = {"CALLSHEET_LEASE": str(LEASE)}
        self._workers = [self._start(), self._start()]

    def _start(self) -> tuple[int, ExitStack]:
        stack = ExitStack()
        return stack.enter_context(self._stage.worker(IO, f"--autoscale={SLOTS},{SLOTS}", env=self._env)), stack

    def kill(self) -> None:
        """SIGKILL one that works, and start another in its place."""
        pid, stack = self._workers.pop(0)
        os.killpg(pid, signal.SIGKILL)
        stack.close()
        self._workers.append(self._start())

    def close(self) -> None:
        for _, stack in self._workers:
            stack.close()


@contextmanager
def victims(stage: Stage) -> Iterator[Victims]:
    made = Victims(stage)
    try:
        yield made
    finally:
        made.close()


def begun(stage: Stage) -> dict[str, list[float]]:
    """When each call began, each time."""
    found: dict[str, list[float]] = {}
    for line in stage.redis.client().lrange(Tallied.KEY, 0, -1):
        call, _, when = line.partition(" ")
        found.setdefault(call, []).append(float(when))
    return found


def measure(stage: Stage, row: Row) -> None:
    client = stage.redis.client()
    client.delete(Tallied.KEY)
    with victims(stage) as workers, Feed(Tallied(stage.redis.url, SECONDS), WINDOW) as feed:
        for _ in range(KILLS):
            known = client.llen(Tallied.KEY)
            wait_for(lambda known=known: client.llen(Tallied.KEY) > known + 2 * SLOTS,  # type: ignore[misc]
                     60, "both workers at work")
            workers.kill()
        feed.finish()
    sent, results = feed.sent, feed.results
    times = begun(stage)
    again = [max(when) - min(when) for when in times.values() if len(when) > 1]
    row.add(kills=KILLS, calls=len(sent), lost=len(set(sent) - set(results)), begun_twice=len(again),
            begun_more=sum(len(when) > 2 for when in times.values()),
            back_after_s=sorted(again)[len(again) // 2] if again else 0.0, back_after_max_s=max(again, default=0.0))


def run(stage: Stage) -> Report:
    row = Row(f"two io workers, --autoscale={SLOTS},{SLOTS}, lease {LEASE:g} s")
    for _ in range(stage.repeat):
        measure(stage, row)
    return Report("kills", __doc__ or "", [row], [
        at_most("no call is lost", max(row.values["lost"]), 0),
        at_most(f"killed calls are begun again within the lease of {LEASE:g} s and the time of one call",
                row.median("back_after_s"), LEASE + 2 * SECONDS),
    ])
