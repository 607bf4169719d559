"""The pool's test app over the transport under test, or over stock kombu's, on any pool."""

import asyncio
import os

from tests.pool_app import app, note, opened, store

if os.environ.get("TRANSPORT", "batched") == "batched":
    app.conf.broker_transport = "callsheet.workers.transport:Transport"
app.conf.worker_pool = os.environ.get("POOL", "callsheet.workers.pool:AsyncioPool")
app.conf.broker_transport_options = {
    "lease": float(os.environ.get("LEASE", "60")),
    "visibility_timeout": float(os.environ.get("VISIBILITY", "3600")),
    "unacked_restore_interval": 0.1 if os.environ.get("VISIBILITY") else 10,
    "unacked_restore_throttle": 1,
}


@app.task(bind=True)
async def count(self, key):
    """Mark each run with what the message says of its deliveries."""
    note(key, f"{self.request.deliveries} {self.request.lost} {self.request.delivery_info['redelivered']}")


@app.task(bind=True)
async def count_and_hold(self, key, gate):
    note(key, f"{self.request.deliveries} {self.request.lost} {self.request.delivery_info['redelivered']}")
    await opened(gate)


@app.task
def plain_note(key, value="x"):
    note(key, value)


@app.task
def plain_hold(key, gate):
    import time

    note(key)
    while not store.exists(gate):
        time.sleep(0.02)
    note(f"{key}:out")


@app.task
async def mark(key, value):
    note(key, str(value))


@app.task(ignore_result=True)
async def write(path, value):
    """Marks that need no connection."""
    with open(path, "a") as file:
        file.write(f"{value}\n")


_appear: dict[str, asyncio.Future] = {}


async def _is_there(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.02)


@app.task(ignore_result=True)
async def wait_for_file(path):
    """Holds a slot without a word to Redis. All that wait for the same file go on in the same turn of the loop."""
    if path not in _appear:
        _appear[path] = asyncio.ensure_future(_is_there(path))
    await asyncio.shield(_appear[path])
