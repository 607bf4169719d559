"""Callsheet: an agent that does nothing, published by `callsheet.map`."""

from collections.abc import Iterator

import callsheet
from benchmarks.agents import Noop
from benchmarks.contenders import stored
from callsheet import Msg


class _Published(Exception):
    """All jobs are under way."""


def messages(jobs: int) -> Iterator[Msg]:
    return (Msg("user", str(i), "user") for i in range(jobs))


def publish(jobs: int) -> list[str]:
    """As `map` does, in batches of its own size; it ends where `map` would ask for more and wait for results."""
    def inputs() -> Iterator[Msg]:
        yield from messages(jobs)
        raise _Published

    batch = callsheet.map(Noop(), inputs(), progress=False, window=jobs + 1000)
    try:
        next(iter(batch))
    except _Published:
        return [job.id for job in batch._waiting]
    raise AssertionError(f"map does not read {jobs} inputs ahead")


def wait(published: list[str]) -> None:
    stored.wait([f"celery-task-meta-{job}" for job in published])


def run(jobs: int) -> int:
    return len(list(callsheet.map(Noop(), list(messages(jobs)), progress=False)))
