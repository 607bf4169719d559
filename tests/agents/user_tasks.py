"""A user's own Celery tasks beside the agents."""

import asyncio
import os
import threading
import time

from celery import shared_task


@shared_task(name="tests.add_soon")
async def add_soon(x: int, y: int) -> list:
    await asyncio.sleep(0)
    return [x + y, threading.current_thread().name]


@shared_task(name="tests.add_now", bind=True)
def add_now(self, x: int, y: int) -> list:
    return [x + y, self.request.hostname, self.request.delivery_info["routing_key"]]


@shared_task(name="tests.die")
def die(tally: str) -> None:
    """End the worker's process, and leave a line behind for each time."""
    with open(tally, "a") as file:
        file.write("died\n")
    os._exit(9)


@shared_task(name="tests.note_time")
async def note_time(path: str, name: str) -> str:
    """Leave a line behind: the name, and when this ran."""
    with open(path, "a") as file:
        file.write(f"{name} {time.time()}\n")
    return name
