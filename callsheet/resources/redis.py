"""The one place where Redis clients come from, and what their errors become.

The clients are typed Any: redis-py's annotations unite sync and async, bytes and text in every answer.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from kombu.exceptions import OperationalError

from callsheet.errors import RedisUnavailable
from callsheet.resources.loops import PerLoop
from callsheet.settings import Settings


@functools.lru_cache(maxsize=8)
def _sync(url: str, pid: int) -> Any:
    return redis.Redis.from_url(url, socket_connect_timeout=5)


def _async(url: str) -> Any:
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=32, timeout=None,
                                                         socket_connect_timeout=5, socket_timeout=30)
    # Closing it closes the pool only where the client owns it.
    return redis.asyncio.Redis.from_pool(pool)


_clients: PerLoop[Any] = PerLoop()


def sync_client(settings: Settings) -> Any:
    """This process's Redis client for plain code; safe across threads, a new one after a fork."""
    return _sync(settings.redis_url.get_secret_value(), os.getpid())


def async_client(settings: Settings) -> Any:
    """The running event loop's Redis client, opened at its first command and closed with the loop."""
    url = settings.redis_url.get_secret_value()
    return _clients.get(url, lambda: _async(url))


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Turn connection errors of redis-py and kombu into ours.

    Raises:
        RedisUnavailable: names the address (without its password) and the remedy.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, OperationalError) as exc:
        cause = exc.__cause__ if isinstance(exc, OperationalError) and exc.__cause__ else exc
        if isinstance(cause, redis.AuthenticationError):
            remedy = "Put the right user and password into CALLSHEET_REDIS_URL."
        else:
            remedy = ("Start one (`callsheet up` brings its own), or set CALLSHEET_REDIS_URL to where it runs.")
        raise RedisUnavailable(f"No Redis answers at {settings.redis_address}: {type(cause).__name__}: "
                               f"{_plain(cause, settings)}. {remedy}") from exc


def _plain(exc: BaseException, settings: Settings) -> str:
    """The error's text, without a password in it."""
    text = str(exc).rstrip(".")
    secret = settings.redis_url.get_secret_value()
    password = secret.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return text.replace(secret, settings.redis_address).replace(password, "***") if password else text
