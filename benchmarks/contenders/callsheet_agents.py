"""Callsheet: an agent that does nothing, published by `callsheet.map`."""

from collections.abc import Iterator
from typing import Any

import callsheet
from benchmarks.agents import Noop
from benchmarks.contenders import stored
from callsheet import Msg


class Published(Exception):
    """All jobs are under way."""


class Inputs:
    """Inputs for `map`, which raise where it has submitted all and asks for more."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.batch: Any = None
        self._messages = messages(jobs)

    def __iter__(self) -> Iterator[Msg]:
        return self

    def __next__(self) -> Msg:
        for msg in self._messages:
            return msg
        raise Published if len(self.batch._waiting) == self.jobs else StopIteration


def messages(jobs: int) -> Iterator[Msg]:
    return (Msg("user", str(i), "user") for i in range(jobs))


def publish(jobs: int) -> list[str]:
    """As `map` does, in batches of its own size, up to where it would wait for the first result."""
    inputs = Inputs(jobs)
    inputs.batch = batch = callsheet.map(Noop(), inputs, progress=False, window=jobs + 1000)
    try:
        next(iter(batch))
    except Published:
        return [job.id for job in batch._waiting]
    raise AssertionError(f"map does not read {jobs} inputs ahead")


def wait(published: list[str]) -> None:
    stored.wait([f"celery-task-meta-{job}" for job in published])


def run(jobs: int) -> int:
    return len(list(callsheet.map(Noop(), list(messages(jobs)), progress=False)))
