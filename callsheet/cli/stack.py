"""Redis, workers and Flower on this machine, as one: what `callsheet up` and `callsheet run --up` start."""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from callsheet.cli.embedded_redis import LOOPBACK, chosen, redis_password, redis_port, redis_service, take_back
from callsheet.cli.processes import Interrupts, Process, Service, Supervisor, private_file
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings

_INFO = "up.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to start."""

    data: Path  # folder of the append-only file and the logs
    io: str = "500,20"  # autoscale of the io worker, "MAX,MIN"; "0" for none
    cpu: str = "2,1"  # autoscale of the cpu worker
    modules: tuple[str, ...] | None = None  # that workers may build agents from; None leaves it to the settings
    redis_url: str | None = None  # of a Redis that runs; None starts one
    redis_port: int = 0  # of the one that is started; 0 is any free port
    flower_port: int | None = None  # of Flower; None starts none
    stub_port: int | None = None  # of the stub model; None starts none
    path: tuple[Path, ...] = ()  # folders put on the workers' PYTHONPATH
    patience: float = 20.0  # seconds that running calls are given to end when all is stopped


class Stack:
    """The services of one plan.

    Args:
        plan: what to start.
        interrupts: that end waiting.

    Attributes:
        settings: that reach the stack's Redis.
        redis_address: of it, for others: without a password, but with the file of the one that was started.
        stub_url: of the stub model, if there is one.
    """

    def __init__(self, plan: Plan, interrupts: Interrupts) -> None:
        self.plan = plan
        self.supervisor = Supervisor(interrupts)
        self._redis_port = redis_port(plan.redis_port) if plan.redis_url is None else 0
        self._redis_url = plan.redis_url or (f"redis://{LOOPBACK}:{self._redis_port}/0?password_file="
                                             f"{quote(str(redis_password(plan.data)))}")
        given: dict[str, Any] = {} if plan.modules is None else {"modules": plan.modules}
        self.settings = Settings.load(redis_url=self._redis_url, **given)
        self.redis_address = self.settings.redis_address if plan.redis_url else self._redis_url
        self.flower_port = None if plan.flower_port is None else chosen(
            plan.flower_port, "Flower", "--flower-port", ", or leave it out with --no-flower")
        self.stub_port = None if plan.stub_port is None else chosen(plan.stub_port, "The stub model", "--stub-port")
        self.stub_url = f"http://{LOOPBACK}:{self.stub_port}/v1" if self.stub_port else None

    def start(self) -> None:
        """Start all and wait until all are ready.

        Raises:
            ServiceFailed: a service ended, or is not ready in time.
            RedisUnavailable: the Redis that was given does not answer.
            Interrupted: the user wants to stop.
        """
        env = self._env()
        if self.plan.redis_url is None:
            self.supervisor.start([redis_service(self._redis_port, self.plan.data, env)])
            take_back(self.settings)
        with translated(self.settings):
            sync_client(self.settings).ping()
        scales = (("io", self.plan.io), ("cpu", self.plan.cpu))
        services = [self._worker(queue, scale, env) for queue, scale in scales if scale != "0"]
        if self.flower_port:
            address = f"http://{LOOPBACK}:{self.flower_port}"
            services.append(self._served("flower", self.flower_port, address, env,
                                         lambda _: _http_ok(f"{address}/healthcheck")))
        if self.stub_port and self.stub_url:
            services.append(self._served("stub-model", self.stub_port, self.stub_url, env,
                                         lambda process: "Stub model on" in process.log_text()))
        self.supervisor.start(services)

    def stop(self) -> None:
        """Stop all, Redis last."""
        self.supervisor.stop()

    def _env(self) -> dict[str, str]:
        path = [*map(str, self.plan.path), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "CALLSHEET_REDIS_URL": self._redis_url, "PYTHONPATH": os.pathsep.join(path),
               "PYTHONUNBUFFERED": "1"}
        env.pop("CALLSHEET_INLINE", None)
        if self.plan.modules is not None:
            env["CALLSHEET_MODULES"] = ",".join(self.plan.modules)
        if self.stub_url:
            env["CALLSHEET_ENDPOINTS__OPENAI__BASE_URL"] = self.stub_url
        return env

    def _worker(self, queue: str, scale: str, env: dict[str, str]) -> Service:
        options = [f"--autoscale={scale}"]
        if self.plan.redis_url is None:
            options += ["--without-mingle", "--without-gossip"]  # there is nobody else to hear from
        if self.flower_port:
            options.append("-E")
        most, _, least = scale.partition(",")
        unit = "calls at once" if queue == "io" else "processes"
        # Warm, then cold (running calls go back to Redis), then by force.
        stops = ((signal.SIGTERM, self.plan.patience), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
        service = worker_service(queue, f"{queue}-{os.getpid()}", options, env,
                                 self.plan.data / "logs" / f"{queue}.log", stops)
        return replace(service, name=f"{queue} worker", where=f"queue {queue}, {least} to {most} {unit}",
                       orphaned=signal.SIGKILL)

    def _served(self, command: str, port: int, where: str, env: dict[str, str],
                ready: Callable[[Process], bool]) -> Service:
        """A command of ours that listens on a port of the loopback address."""
        address = "--host" if command == "stub-model" else "--address"
        return Service(
            name=command.replace("-", " "), where=where, env=env, log=self.plan.data / "logs" / f"{command}.log",
            command=(*python_command("callsheet.cli.main"), command, f"{address}={LOOPBACK}", f"--port={port}"),
            stops=((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)), ready=ready)


def worker_service(kind: str, name: str, options: Sequence[str], env: Mapping[str, str], log: Path,
                   stops: tuple[tuple[signal.Signals, float], ...]) -> Service:
    """An io or cpu worker as a service, by its node name; should this process die, it ends its calls and itself."""
    node = f"{name}@{socket.gethostname()}"
    command = (*python_command("celery"), "-A", f"callsheet.workers.{kind}", "worker", "-n", node, "--loglevel=INFO",
               *options)
    return Service(name=node, command=command, env=env, stops=stops, where=f"worker {kind}", log=log,
                   orphaned=signal.SIGTERM, ready=lambda process: f"{node} ready." in process.log_text())


def python_command(module: str) -> tuple[str, ...]:
    """How a module is run with this process's Python."""
    return (sys.executable, "-m", module)


def _http_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def claimed(data: Path, others: str = "--data and --redis-port") -> Iterator[Path]:
    """Keep a data folder for this process; a process that dies lets go of it.

    Raises:
        click.ClickException: it cannot be made, or another command uses it: with other `others` it can run too.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder, info = os.open(data, os.O_RDONLY), data / _INFO
    except OSError as exc:
        raise click.ClickException(f"The folder {data} cannot be made: {exc.strerror}. Give another --data.") from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise click.ClickException(_taken(data, info, others)) from None
        write_info(data, {})
        yield data
        info.unlink(missing_ok=True)
    finally:
        os.close(folder)


def write_info(data: Path, facts: dict[str, str]) -> None:
    """Note for other commands what uses the folder."""
    info = data / _INFO
    draft = info.with_suffix(".tmp")
    with private_file(draft) as file:
        file.write(json.dumps({"pid": os.getpid(), **facts}).encode())
    draft.replace(info)


def assigned(value: str) -> str:
    """A value as a shell takes it in `export NAME=value`, where a ? stands for itself."""
    return value if shlex.quote(value.replace("?", "")) == value.replace("?", "") else shlex.quote(value)


def _taken(data: Path, info: Path, others: str) -> str:
    known: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(info.read_text())
    pid, redis = known.get("pid"), known.get("redis")
    use = f"Use it: export CALLSHEET_REDIS_URL={assigned(str(redis))}\n" if redis else ""
    end = f"Or end it: kill {pid}\n" if pid else ""
    return (f"Callsheet runs with the folder {data} already{f' (pid {pid})' if pid else ''}.\n{use}{end}"
            f"Or run a second one beside it: with other {others}.")
