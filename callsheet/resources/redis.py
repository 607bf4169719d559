"""The one place where Redis clients come from, and what their errors become.

The clients are typed Any: redis-py's annotations unite sync and async, bytes and text in every answer.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from kombu.exceptions import OperationalError

from callsheet.errors import RedisUnavailable
from callsheet.resources.loops import PerLoop
from callsheet.settings import Settings
from callsheet.settings.sentinels import Sentinels

_CONNECT = 5  # seconds to open a connection
_ANSWER = 30  # seconds to answer an async client
_MOST = 32  # connections of an async client
_NO_MASTER = (redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)
_Sentinel: Any = redis.sentinel.Sentinel  # untyped, as is the next
_AsyncSentinel: Any = redis.asyncio.Sentinel


class _SentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Connections to the master, as many as there may be; who wants one more waits."""


class _SentinelClient(redis.asyncio.Redis):
    """A client of a master, which closes its connections to the sentinels too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        pool: Any = self.connection_pool
        await super().aclose(close_connection_pool)
        await pool.sentinel_manager.aclose()


@functools.lru_cache(maxsize=8)
def _sync(url: str, sentinels: Sentinels | None, pid: int) -> Any:
    if sentinels is None:
        return redis.Redis.from_url(url, socket_connect_timeout=_CONNECT)
    manager = _Sentinel(sentinels.hosts, sentinel_kwargs=sentinels.own_options,
                        socket_connect_timeout=_CONNECT, **sentinels.server_options)
    return manager.master_for(sentinels.master)


def _async(settings: Settings, answer: float | None = _ANSWER) -> Any:
    waits = {"socket_connect_timeout": _CONNECT, "socket_timeout": answer}
    sentinels = settings.sentinels
    if sentinels is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(settings.redis_url.get_secret_value(),
                                                             max_connections=_MOST, timeout=None, **waits)
        # Closing it closes the pool only where the client owns it.
        return redis.asyncio.Redis.from_pool(pool)
    manager = _AsyncSentinel(sentinels.hosts, sentinel_kwargs=sentinels.own_options)
    make: Any = _SentinelPool
    return _SentinelClient.from_pool(make(sentinels.master, manager, max_connections=_MOST, timeout=None,
                                          **sentinels.server_options, **waits))


_clients: PerLoop[Any] = PerLoop()


def sync_client(settings: Settings) -> Any:
    """This process's Redis client for plain code; safe across threads, a new one after a fork."""
    return _sync(settings.redis_url.get_secret_value(), settings.sentinels, os.getpid())


def async_client(settings: Settings) -> Any:
    """The running event loop's Redis client, opened at its first command and closed with the loop."""
    return _clients.get(settings.redis_url.get_secret_value(), lambda: _async(settings))


def listening_client(settings: Settings) -> Any:
    """A new async client for a subscription, which may be silent for as long as it likes; to be closed."""
    return _async(settings, answer=None)


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
        elif isinstance(cause, _NO_MASTER):
            remedy = ("See that the sentinels run and that the master is up. CALLSHEET_REDIS_SENTINEL_MASTER is the "
                      "name under which they watch it, CALLSHEET_REDIS_SENTINEL_PASSWORD what they ask for.")
        else:
            remedy = ("Start one (`callsheet up` brings its own), or set CALLSHEET_REDIS_URL to where it runs.")
        raise RedisUnavailable(f"No Redis answers at {settings.redis_address}: {type(cause).__name__}: "
                               f"{_plain(cause, settings)}. {remedy}") from exc


def _plain(exc: BaseException, settings: Settings) -> str:
    """The error's text, without a password in it."""
    text, secret = str(exc).rstrip("."), settings.redis_url.get_secret_value()
    text = text.replace(secret, settings.redis_address)
    for password in _passwords(secret):
        text = text.replace(password, "***")
    return text


def _passwords(url: str) -> Iterator[str]:
    for chunk in url.split(";"):
        password = chunk.partition("://")[2].rpartition("@")[0].partition(":")[2]
        if password:
            yield password
            yield unquote(password)
