"""Processes that a command starts, watches and stops: each with a log of its own, none outliving the command."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import click

from callsheet.messages.printable import printable
from callsheet.settings.secrets import names_a_secret

_ASKED_FOR = ("CALLSHEET_REDIS", "CALLSHEET_FLOWER", "FLOWER_")
_OF_MODELS = ("CALLSHEET_ENDPOINTS", "CALLSHEET_MCP")
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY = 0.05  # seconds
_TAIL = 16 * 1024  # bytes of a log that are looked at for its last lines


@dataclass(frozen=True, kw_only=True)
class Service:
    """What to start, and how to tell that it is ready."""

    name: str  # for people, e.g. "io worker"
    command: tuple[str, ...]  # program and arguments
    where: str  # what runs there, for people
    log: Path  # where its output goes; the log of the run before is kept beside it as `.1`
    ready: Callable[["Process"], bool]  # whether it does its work by now; asked again and again
    env: Mapping[str, str]  # its environment, whole
    stops: tuple[tuple[signal.Signals, float], ...]
    """Signals that end it, each with the seconds it is given, from the kindest to SIGKILL."""
    orphaned: signal.Signals = signal.SIGKILL  # the signal that it gets when this process dies without stopping it
    umask: int = -1  # of the files that it makes; this process's with -1


def without_keys(env: Mapping[str, str]) -> dict[str, str]:
    """An environment for what calls no models: without their keys, but with what Redis and Flower ask for."""
    return {name: value for name, value in env.items() if name.upper().startswith(_ASKED_FOR)
            or not (names_a_secret(name) or name.upper().startswith(_OF_MODELS))}


def private_folder(path: Path) -> None:
    """Make a folder that its owner alone looks into."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)


def private_file(path: Path) -> BinaryIO:
    """A new file, open for writing, that its owner alone reads."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class Process:
    """A service that was started, in a process group of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.name = service.name
        private_folder(service.log.parent)
        if service.log.exists():
            service.log.replace(service.log.with_suffix(service.log.suffix + ".1"))
        with private_file(service.log) as log:
            # In a session of its own, so that Ctrl-C in the terminal reaches the command alone.
            self._popen = subprocess.Popen(
                service.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=dict(service.env), start_new_session=True, umask=service.umask,
                preexec_fn=_with_parent(service.orphaned))  # noqa: PLW1509 - one system call, no locks
        self.pid = self._popen.pid

    @property
    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it runs. What it left in its group is killed."""
        if self._popen.returncode is None and self._has_exited():
            self._kill_group()  # before its number is free for another
        return self._popen.poll()

    def _has_exited(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return True

    def send(self, sig: signal.Signals) -> None:
        """Signal it; SIGKILL goes to its whole group."""
        if self.ended is None:
            if sig == signal.SIGKILL:
                self._kill_group()
            else:
                self._popen.send_signal(sig)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def log_text(self) -> str:
        """The end of its log."""
        with self.service.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            return log.read().decode(errors="replace")

    def failure(self) -> str:
        """How it ended, with the last lines of its log."""
        lines = [line for line in printable(self.log_text()).split("\n") if line.strip()][-12:]
        shown = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
        return f"The {self.name} ended with {exit_text(self.ended)}. Last lines of {self.service.log}:\n{shown}"


def exit_text(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exit code {code}"


def _with_parent(sig: signal.Signals) -> Callable[[], None] | None:
    """What to run in a new process so that it gets `sig` when this process dies; Linux only.

    Linux sends it when the thread that started the process ends, so processes are started in the main thread.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


class ServiceFailed(click.ClickException):
    """A service ended by itself, or is not ready in time; exit code 1."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP while something was waited for."""


class Interrupts:
    """Counts requests to stop: Ctrl-C, SIGTERM, SIGHUP."""

    def __init__(self) -> None:
        self.count = 0

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    @contextmanager
    def caught(self) -> Iterator["Interrupts"]:
        """Count them within the block instead of dying of them."""
        before = {sig: signal.signal(sig, self._take) for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield self
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


class Supervisor:
    """The services of one command.

    Args:
        interrupts: that end waiting.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.processes: list[Process] = []

    def start(self, services: Sequence[Service], timeout: float = 60.0) -> None:
        """Start services side by side and wait until each is ready.

        Raises:
            ServiceFailed: one ended, or is not ready within `timeout` seconds.
            Interrupted: the user wants to stop.
        """
        waiting = []
        for service in services:
            process = Process(service)
            self.processes.append(process)
            waiting.append(process)
        end = time.monotonic() + timeout
        while waiting:
            self.check()
            if self._interrupts.count:
                raise Interrupted
            waiting = [process for process in waiting if not process.service.ready(process)]
            if waiting and time.monotonic() > end:
                raise ServiceFailed(f"The {waiting[0].name} is not ready after {timeout:g} s. See its log: "
                                    f"{waiting[0].service.log}")
            time.sleep(_LOOK_EVERY)

    def check(self) -> None:
        """Look whether all still run.

        Raises:
            ServiceFailed: says which ended, how, and the last lines of its log.
        """
        for process in self.processes:
            if process.ended is not None:
                raise ServiceFailed(process.failure())

    def watch(self) -> None:
        """Wait until the user wants to stop.

        Raises:
            ServiceFailed: a service ended by itself.
        """
        while not self._interrupts.count:
            self.check()
            time.sleep(_LOOK_EVERY)

    def stop(self) -> None:
        """Stop all: the first that was started (Redis) last, the others together. One more Ctrl-C hurries."""
        for group in (self.processes[1:], self.processes[:1]):
            self.end(group)
        self.processes.clear()

    def end(self, processes: list[Process]) -> None:
        """Stop these together, each by its own signals, and wait until they have ended. One more Ctrl-C hurries."""
        stage = dict.fromkeys(processes, -1)
        deadline = dict.fromkeys(processes, 0.0)
        asked = self._interrupts.count
        alive = [process for process in processes if process.ended is None]
        while alive:
            hurried, asked = self._interrupts.count > asked, self._interrupts.count
            for process in alive:
                if hurried or time.monotonic() >= deadline[process]:
                    stops = process.service.stops
                    stage[process] = min(stage[process] + 1, len(stops) - 1)
                    sig, patience = stops[stage[process]]
                    deadline[process] = time.monotonic() + patience
                    process.send(sig)
            time.sleep(_LOOK_EVERY)
            alive = [process for process in alive if process.ended is None]
