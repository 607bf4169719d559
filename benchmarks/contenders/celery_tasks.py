"""Stock Celery: a group of tasks that do nothing."""

from celery import group

from benchmarks.contenders import stored
from benchmarks.stock import noop


def publish(jobs: int) -> list[str]:
    return [result.id for result in group(noop.s(str(i)) for i in range(jobs)).apply_async()]


def wait(published: list[str]) -> None:
    stored.wait([f"celery-task-meta-{task}" for task in published])


def run(jobs: int) -> int:
    return len(group(noop.s(str(i)) for i in range(jobs)).apply_async().get())
