"""A user's own Celery tasks beside the agents."""

import asyncio
import threading

from celery import shared_task


@shared_task(name="tests.add_soon")
async def add_soon(x: int, y: int) -> list:
    await asyncio.sleep(0)
    return [x + y, threading.current_thread().name]


@shared_task(name="tests.add_now", bind=True)
def add_now(self, x: int, y: int) -> list:
    return [x + y, self.request.hostname, self.request.delivery_info["routing_key"]]
