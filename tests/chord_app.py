"""The pool's test app with tasks for chords: on our result backend or Celery's, on any pool."""

import os
import time
from pathlib import Path

from celery.signals import before_task_publish

from tests.pool_app import URL, app, note, opened, store

if os.environ.get("BACKEND", "callsheet") == "callsheet":
    app.conf.update(result_backend=f"callsheet.tasks.results:ResultBackend+{URL}", result_backend_thread_safe=True)
    app.amqp_cls = "callsheet.tasks.patience:PatientAMQP"
app.conf.worker_pool = os.environ.get("POOL", "callsheet.workers.pool:AsyncioPool")
app.conf.result_backend_transport_options = {"result_chord_ordered": os.environ.get("ORDERED", "1") == "1"}
app.conf.worker_deduplicate_successful_tasks = os.environ.get("DEDUPLICATE", "0") == "1"
if os.environ.get("LEASE"):  # a killed worker's messages are soon back
    app.conf.broker_transport = "callsheet.workers.transport:Transport"
    app.conf.broker_transport_options = {"lease": float(os.environ["LEASE"])}


@before_task_publish.connect
def publishing(sender=None, **_):
    """Say which thread publishes a chord's body, and hold it up where the test asks for that."""
    if sender == "tests.chord_app.body" and "POOL_QUEUE" in os.environ:
        import threading

        note("published by", threading.current_thread().name)
        while store.exists("hold the body"):
            time.sleep(0.05)


@app.task
async def item(number):
    return number


@app.task
def plain_item(number):
    return number


@app.task
async def slow_item(number, gate):
    await opened(gate)
    return number


@app.task
async def when_file(number, path):
    """Returns once a file is there; Redis may be out of reach."""
    import asyncio

    while not Path(path).exists():
        await asyncio.sleep(0.02)
    return number


@app.task(ignore_result=True)
async def ignored(number):
    return number


@app.task
async def fails(text):
    raise ValueError(text)


@app.task(bind=True, max_retries=3)
async def twice(self, number):
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return number


@app.task(bind=True)
async def body(self, results):
    note(f"body:{self.request.root_id}", self.request.id)
    return results


@app.task(bind=True)
async def ids(self, results):
    return [self.request.parent_id, self.request.root_id]


@app.task
async def total(numbers):
    return sum(numbers)


@app.task
async def count(results):
    return [len(results), results == sorted(results)]


@app.task
async def numbers_to(count):
    return list(range(count))


@app.task
def errback(request, exc, traceback):
    note(f"errback:{request.id}", repr(exc))


@app.task
def old_errback(task_id):
    note(f"old errback:{task_id}")
