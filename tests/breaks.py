"""Connections to Redis that break at one command after the other, while a nested pipeline runs.

Each piece that the workers write, and then each that the program writes, is broken twice: before Redis has it, and once
Redis has it and has not answered yet. Some points in a test; all of them, in five minutes: `make breaks`.
"""

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from callsheet import AgentBase, FanoutPipeline, Msg, SequentialPipeline
from callsheet.errors import RedisUnavailable
from callsheet.settings import use_settings
from tests.agents.marking import CpuMarks, Hosts, Marks, Remembers
from tests.fleet import client_settings
from tests.proxy import Proxy
from tests.services import RedisServer, wait_for, worker

ENV = {"CALLSHEET_MODULES": "tests.agents,tests.agents.marking", "CALLSHEET_LEASE": "30"}
#: Which queues there are; what workers hold; hubs that are open; agents for whose turn calls wait; which life of
#: the data it is.
BOUNDED = r"_kombu\.binding[._].*|unacked(_index|_lease)?|callsheet:(hubs|lines|epoch)"
NAMES = ["bad", "cpu", "end", "host", "host.one", "host.two", "inner", "left", "right", "start", "state"]


class Scene:
    """Workers behind one proxy, the program behind another, and one job at a time."""

    def __init__(self, server: RedisServer, fleet: Proxy, program: Proxy, folder: Path) -> None:
        self.server, self.fleet, self.program, self.folder = server, fleet, program, folder
        self.count = 0
        self.state = Remembers(str(folder), "state")

    def job(self) -> SequentialPipeline:
        """A pipeline with all that there is: chords in chords, a failing branch, both queues, state, a hub."""
        folder = str(self.folder)
        inner = FanoutPipeline([Marks(folder, "left"), Marks(folder, "bad", True)], on_error="collect",
                               reduce=Marks(folder, "inner"))
        outer: list[AgentBase | SequentialPipeline] = [
            SequentialPipeline([CpuMarks(folder, "cpu"), inner]), Marks(folder, "right"), Hosts(folder, "host")]
        return SequentialPipeline([Marks(folder, "start"), FanoutPipeline(outer, reduce=CpuMarks(folder, "end")),
                                   self.state])

    def run(self, proxy: Proxy, number: int, after: bool) -> str:
        """Run it, with a connection broken at one piece; says what is wrong, "" if nothing is."""
        ran = self.folder / "ran"
        ran.unlink(missing_ok=True)
        proxy.break_at(number, after)
        try:
            got = self.job().submit(Msg("user", "hi", "user")).get(60)
        except RedisUnavailable as exc:  # what was being sent may have arrived all the same
            wait_for(self.idle, 30, "the rest")
            self.count = int((self.state.submit(Msg("user", "hi", "user")).get(30).content).rpartition("state")[2])
            return "" if proxy is self.program else f"told to the program: {exc}"
        except Exception as exc:
            wait_for(self.idle, 60, "the rest")
            self.count += 1
            return f"{type(exc).__name__}: {exc}"
        self.count += 1
        names = sorted(ran.read_text().split())
        twice = [name for name in set(names) if names.count(name) > 1]
        count = int(got.content.rpartition("state")[2])
        wrong = f"ran twice: {twice}" if twice else f"ran: {names}" if names != NAMES else ""
        if count != self.count:
            wrong += f" state counts {count}, not {self.count}"
            self.count = count
        if "caught" not in got.content or "host1" not in got.content:
            wrong += f" said {got.content}"
        with contextlib.suppress(AssertionError):
            wait_for(self.idle, 20)
            return wrong
        return wrong + " something is left on the queues"

    def idle(self) -> bool:
        client = self.server.client()
        return not any(client.llen(queue) for queue in ("io", "cpu")) and not client.hlen("unacked")


    def endless(self) -> list[str]:
        """Keys that neither expire nor hold only what is under way or which queues there are."""
        client = self.server.client()
        return [key for key in client.scan_iter() if client.ttl(key) == -1 and not re.fullmatch(BOUNDED, key)]


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    server = RedisServer()
    fleet, program = Proxy(server.port), Proxy(server.port)
    try:
        with tempfile.TemporaryDirectory() as folder, \
                worker("callsheet.workers.io", fleet.url, "-c", "20", env=ENV), \
                worker("callsheet.workers.cpu", fleet.url, "-c", "2", env=ENV), \
                use_settings(client_settings(server, redis_url=program.url)):
            yield Scene(server, fleet, program, Path(folder))
    finally:
        fleet.close()
        program.close()
        server.remove()


def points(most: int, total: int) -> Sequence[int]:
    """So many of the numbers from 1 to `total`, evenly."""
    most = min(most, total)
    step = total / max(most, 1)
    return sorted({round(1 + step * i) for i in range(most) if round(1 + step * i) <= total})


def run(most: int = sys.maxsize, say: bool = False) -> list[str]:
    """Break at so many points of each kind; says what went wrong."""
    wrong = []
    with scene() as found:
        for _ in range(2):  # so that connections are open and scripts known
            assert not (problem := found.run(found.fleet, -1, False)), problem
        for name in ("fleet", "program"):
            proxy = getattr(found, name)
            found.run(proxy, -1, False)
            total = proxy.writes
            for after in (False, True):
                for number in points(most, total):
                    problem = found.run(proxy, number, after)
                    where = f"{name} {number}/{total} {'after' if after else 'before'} {proxy.broken[:300]!r}"
                    if say:
                        print(where, problem or "right", flush=True)
                    if problem:
                        wrong.append(f"{where}: {problem}")
        if endless := found.endless():
            wrong.append(f"keys that never expire: {endless}")
    return wrong


if __name__ == "__main__":
    problems = run(int(sys.argv[1]) if len(sys.argv) > 1 else sys.maxsize, say=True)
    print(*problems, sep="\n")
    sys.exit(bool(problems))
