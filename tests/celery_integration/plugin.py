"""pytest plugin for Celery's integration tests: their `prefork` worker gets the pool that CALLSHEET_TEST_POOL names.

    asyncio        our pool; their tasks are plain functions, which run in its threads
    asyncio-async  our pool; each task's body becomes a coroutine, which runs on its loop
    prefork        Celery's own pool, to compare with

With CALLSHEET_TEST_BACKEND=callsheet the results are stored by our backend, and with CALLSHEET_TEST_TRANSPORT=callsheet
messages travel over our transport, on each of them.
"""

import asyncio
import os
import sys
import time
from typing import Any

from celery import Celery
from celery.app.backends import BACKEND_ALIASES
from celery.concurrency import ALIASES
from kombu.transport import TRANSPORT_ALIASES

from callsheet.tasks.base import Task
from callsheet.tasks.bridge import drive, in_strand

POOL = os.environ["CALLSHEET_TEST_POOL"]


class AsyncTask(Task):
    """Runs a plain task's body as a coroutine, where the worker's tracer calls it."""

    abstract = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        given = cls.__dict__.get("run")
        if given is None:
            return
        plain = given.__func__ if isinstance(given, staticmethod) else given

        async def body(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return plain(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            return drive(body(*args, **kwargs)) if in_strand() else plain(*args, **kwargs)

        run.__wrapped__ = plain
        cls.is_async = True
        cls.run = staticmethod(run) if isinstance(given, staticmethod) else run


def sleep(seconds: float) -> None:
    """In place of `time.sleep` in their tasks: a coroutine that blocks the loop is out of reach of time limits."""
    if in_strand():
        drive(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def pytest_collection_finish() -> None:
    """Their tasks are imported."""
    tasks = sys.modules.get("t.integration.tasks")
    if POOL == "asyncio-async" and tasks is not None:
        tasks.sleep = sleep


if os.environ.get("CALLSHEET_TEST_BACKEND") == "callsheet":
    BACKEND_ALIASES["redis"] = "callsheet.tasks.results:ResultBackend"

if os.environ.get("CALLSHEET_TEST_TRANSPORT") == "callsheet":
    TRANSPORT_ALIASES["redis"] = "callsheet.workers.transport:Transport"

if POOL != "prefork":
    ALIASES["prefork"] = "callsheet.workers.pool:AsyncioPool"
    Celery.task_cls = f"{__name__}:AsyncTask" if POOL == "asyncio-async" else "callsheet.tasks.base:Task"
