"""Callsheet: an agent that does nothing, published as `callsheet.map` publishes."""

import callsheet
from benchmarks.agents import Noop
from benchmarks.contenders import stored
from callsheet import Msg
from callsheet.agents import CallOptions
from callsheet.agents.dispatch import dispatcher


def messages(jobs: int) -> list[Msg]:
    return [Msg("user", str(i), "user") for i in range(jobs)]


def publish(jobs: int) -> list[str]:
    return [job.id for job in dispatcher().submit_many(Noop(), messages(jobs), CallOptions())]


def wait(published: list[str]) -> None:
    stored.wait([f"celery-task-meta-{job}" for job in published])


def run(jobs: int) -> int:
    return len(list(callsheet.map(Noop(), messages(jobs), progress=False)))
