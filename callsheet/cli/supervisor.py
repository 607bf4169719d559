"""Starting services, watching them, and stopping them in turn."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from callsheet.cli.processes import Process, Service

_LOOK_EVERY = 0.05  # seconds


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
