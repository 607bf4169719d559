"""A way for agents in workers to note and await things beside their messages: plain keys in the tests' Redis."""

import asyncio
import functools
import os
import time

import redis

from callsheet import get_settings


@functools.lru_cache(maxsize=4)
def _client(url: str, pid: int) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def side() -> redis.Redis:
    """The Redis of this process's settings."""
    return _client(get_settings().redis_url.get_secret_value(), os.getpid())


async def opened(gate: str, every: float = 0.01) -> None:
    """Wait until someone sets the key `gate`."""
    while gate and not side().exists(gate):
        await asyncio.sleep(every)


def opened_sync(gate: str, every: float = 0.01) -> None:
    """As `opened`, in plain code."""
    while gate and not side().exists(gate):
        time.sleep(every)


def note(key: str, text: str = "1") -> None:
    """Append `text` to the list `key`."""
    if key:
        side().rpush(key, text)
