"""What users declare on our apps, in the ways that Celery documents."""

import asyncio
import os
import signal
from pathlib import Path

from celery import Task, shared_task
from celery.app import trace
from celery.contrib.abortable import AbortableTask
from celery.worker.request import Request

from callsheet.workers import cpu
from callsheet.workers.io import app

MADE_LIKE_THEIR_OWN = not any((app.configured, app.finalized, cpu.app.configured, cpu.app.finalized))
HEARD = []
TRACED = set()
CELERYS = trace.build_tracer


def build_tracer(name, task, *args, **options):
    """As those who watch tasks put it in Celery's place."""
    tracer = CELERYS(name, task, *args, **options)

    def traced(uuid, *args, **kwargs):
        TRACED.add(uuid)
        return tracer(uuid, *args, **kwargs)

    return traced if name.startswith((__name__, "tests.registered")) else tracer


trace.build_tracer = build_tracer
app.autodiscover_tasks(["tests.agents"], "discovered")


@app.on_after_configure.connect
def after_configure(sender, **_):
    HEARD.append("configured")
    if "TICKS" in os.environ:
        sender.add_periodic_task(0.3, tick.s(os.environ["TICKS"], "configured"), name="configured")


@app.on_after_finalize.connect
def after_finalize(sender, **_):
    HEARD.append("finalized")
    if "TICKS" in os.environ:
        sender.add_periodic_task(0.3, tick.s(os.environ["TICKS"], "finalized"), name="finalized")


def seen(self):
    """Where a task runs, whether those who watch see it, and the request class that Celery has of it."""
    return [self.request.delivery_info["routing_key"], self.request.id in TRACED]


@app.task
def tick(path, how):
    with Path(path).open("a") as file:
        file.write(f"{how}\n")


@app.task(bind=True)
def on_io_app(self):
    return [*seen(self), MADE_LIKE_THEIR_OWN, sorted(set(HEARD)), "tests.agents.discovered.found" in self.app.tasks]


@app.task(bind=True)
async def on_io_app_async(self):
    return [*seen(self), MADE_LIKE_THEIR_OWN, sorted(set(HEARD)), "tests.agents.discovered.found" in self.app.tasks]


@cpu.app.task(bind=True)
def on_cpu_app(self):
    return seen(self)


@cpu.app.task(bind=True)
async def on_cpu_app_async(self):
    return seen(self)


class Registered(Task):
    """A task as a class, of Celery's own base."""

    name = "tests.registered"

    async def run(self):
        await asyncio.sleep(0)
        return seen(self)


class OwnRequest(Request):
    """A request class of the user's."""


class Base(Task):
    """A base class of the user's."""

    abstract = True
    Request = OwnRequest

    async def __call__(self, *args, **kwargs):
        await asyncio.sleep(0)
        found = self.run(*args, **kwargs)
        return ["called", await found if asyncio.iscoroutine(found) else found]

    async def on_success(self, result, *_):
        await asyncio.sleep(0)
        HEARD.append("success")


app.register_task(Registered())


@shared_task(base=Base, bind=True)
async def based(self):
    await asyncio.sleep(0)
    return [*seen(self), "success" in HEARD]


@shared_task(base=AbortableTask, bind=True)
async def abortable(self):
    await asyncio.sleep(0)
    return [*seen(self), self.is_aborted()]


@shared_task(base=Base)
def dies_once(path):
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second chance"


@shared_task(reject_on_worker_lost=True)
def dies_always(path):
    with Path(path).open("a") as file:
        file.write("always")
    os.kill(os.getpid(), signal.SIGKILL)
