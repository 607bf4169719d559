"""What the figures share: the run's Redis and workers, sampling of processes, and how a figure is reported."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.services import ROOT, RedisServer, wait_for, worker

IO = "callsheet.workers.io"
CPU = "callsheet.workers.cpu"
STOCK = "benchmarks.stock"
GEVENT = ("-P", "gevent")


@dataclass
class Row:
    """One contender: for each column its values, one a repetition."""

    contender: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for column, value in values.items():
            self.values.setdefault(column, []).append(value)

    def median(self, column: str) -> float:
        return statistics.median(self.values[column])


@dataclass
class Goal:
    """What a figure should reach."""

    text: str
    value: float
    met: bool


@dataclass
class Report:
    """A figure as it was measured."""

    figure: str
    about: str
    rows: list[Row]
    goals: list[Goal]

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        for row, shown in zip(self.rows, data["rows"], strict=True):
            shown["medians"] = {column: row.median(column) for column in row.values}
        return data


def at_most(text: str, value: float, limit: float) -> Goal:
    return Goal(text, value, value <= limit)


def at_least(text: str, value: float, limit: float) -> Goal:
    return Goal(text, value, value >= limit)


class Usage:
    """What a tree of processes uses between `start` and `stop`: CPU seconds, peak memory, CPU of all others.

    Peak memory is the most that the sum of the tree's resident sets was, sampled 20 times a second.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_mb = 0.0

    def start(self) -> "Usage":
        self._thread.start()
        self._cpu, self._ours, self._busy = _cpu(self._process), _cpu(psutil.Process()), busy()
        self._began = time.monotonic()
        return self

    def stop(self) -> "Usage":
        self.seconds = time.monotonic() - self._began
        self.cpu = _cpu(self._process) - self._cpu
        # The machine's other work, in cores: it slows down what is measured.
        others = (busy() - self._busy) - (_cpu(psutil.Process()) - self._ours)
        self.others = max(others / self.seconds, 0.0)
        self._done.set()
        self._thread.join()
        return self

    def _sample(self) -> None:
        while True:
            with suppress(psutil.Error):
                self.peak_mb = max(self.peak_mb, resident_mb(self._process.pid))
            if self._done.wait(0.05):
                return


def resident_mb(pid: int) -> float:
    """The resident sets of a process and its children together."""
    return sum(one.memory_info().rss for one in _tree(psutil.Process(pid))) / 1e6


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    total = 0.0
    for one in _tree(process):
        with suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def busy() -> float:
    """CPU seconds that the machine has worked since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def signal_tree(pid: int, sig: int) -> None:
    """To stop and to let go on a worker with all its processes."""
    for one in _tree(psutil.Process(pid)):
        with suppress(psutil.Error):
            one.send_signal(sig)


class Stage:
    """The run's redis-server, and what the figures start beside it.

    Args:
        repeat: how often each contender is measured.
        jobs: how many jobs throughput is measured with.
    """

    def __init__(self, repeat: int, jobs: int = 5000) -> None:
        self.repeat = repeat
        self.jobs = jobs
        self.redis = RedisServer()
        os.environ["CALLSHEET_REDIS_URL"] = self.redis.url
        os.environ["CALLSHEET_MODULES"] = "benchmarks.agents"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    @contextmanager
    def worker(self, app: str, *options: str, env: dict[str, str] | None = None) -> Iterator[int]:
        """A ready Celery worker, at the log level that Celery's documentation starts workers with: its pid."""
        with worker(app, self.redis.url, *options, env=env) as started:
            yield started.process.pid

    @contextmanager
    def process(self, *command: str, ready: str) -> Iterator[int]:
        """A peer's worker, ready once its output holds `ready`: its pid."""
        with tempfile.NamedTemporaryFile(prefix="callsheet-peer-") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

            def output() -> str:
                return Path(log.name).read_text(errors="replace")

            try:
                wait_for(lambda: ready in output() or process.poll() is not None, 60, what=f"{ready!r} of {command}")
                assert process.poll() is None, f"{command} ended with {process.returncode}:\n{output()}"
                yield process.pid
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    @contextmanager
    def endpoint(self, port: int, seconds: float) -> Iterator[None]:
        """The slow HTTP endpoint."""
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.endpoint", str(port), str(seconds)])
        try:
            time.sleep(1.0)
            yield
        finally:
            process.terminate()
            process.wait(10)

    def close(self) -> None:
        self.redis.remove()


@contextmanager
def usage_of(pid: int) -> Iterator[Usage]:
    """What a worker uses during the block."""
    usage = Usage(pid).start()
    try:
        yield usage
    finally:
        usage.stop()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
