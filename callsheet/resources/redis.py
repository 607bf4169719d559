"""The one place where Redis clients come from, what their errors become, and how scripts run there.

The clients are typed Any: redis-py's annotations unite sync and async, bytes and text in every answer.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from kombu.exceptions import BatchPublishError, OperationalError
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import NoScriptError

from callsheet.errors import RedisUnavailable
from callsheet.resources.loops import PerLoop
from callsheet.resources.trouble import in_words, refusal
from callsheet.settings import Settings
from callsheet.settings.celery import CONNECT_TIMEOUT, TIMEOUT
from callsheet.settings.sentinels import Sentinels

_MOST = 32  # connections of an async client
# A command goes once more over a new connection, should one have broken since it was used; after a timeout nobody
# knows what has arrived. What must not take effect twice names itself to its script.
_ONCE_MORE: dict[str, Any] = {"backoff": ConstantBackoff(0.05), "retries": 1,
                              "supported_errors": (redis.ConnectionError,)}
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
    waits: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": TIMEOUT,
                             "retry": redis.retry.Retry(**_ONCE_MORE)}
    if sentinels is None:
        return redis.Redis.from_url(url, **waits)
    manager = _Sentinel(sentinels.hosts, sentinel_kwargs=sentinels.own_options, **waits, **sentinels.server_options)
    return manager.master_for(sentinels.master)


def _async(settings: Settings, listens: bool = False) -> Any:
    waits: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": 2 * TIMEOUT}
    if not listens:  # what listens begins anew by itself
        waits["retry"] = redis.asyncio.retry.Retry(**_ONCE_MORE)
    sentinels = settings.sentinels
    if sentinels is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(settings.redis_url.get_secret_value(),
                                                             max_connections=_MOST, timeout=None, **waits)
        # Closing it closes the pool only where the client owns it.
        return redis.asyncio.Redis.from_pool(pool)
    manager = _AsyncSentinel(sentinels.hosts, sentinel_kwargs={
        **sentinels.own_options, "retry": redis.asyncio.retry.Retry(NoBackoff(), 0)})
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
    return _async(settings, listens=True)


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Turn what redis-py and kombu raise where Redis is away, or refuses to work, into ours.

    Raises:
        RedisUnavailable: names the address (without its password) and the remedy.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, OperationalError, BatchPublishError) as exc:
        raise RedisUnavailable(in_words(exc, settings)) from exc
    except redis.ResponseError as exc:
        if not refusal(exc):
            raise
        raise RedisUnavailable(in_words(exc, settings)) from exc


Key = str | bytes


class Script:
    """One script, known to the server by its hash once it has run there.

    Args:
        source: its file, or its text.
        library: a file whose functions it uses.
    """

    def __init__(self, source: Path | str, library: Path | None = None) -> None:
        used = library.read_text(encoding="utf-8") if library is not None else ""
        self.text = used + (source if isinstance(source, str) else source.read_text(encoding="utf-8"))
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - Redis names scripts so

    def command(self, keys: Sequence[Key], args: Sequence[Any], by_text: bool = False) -> tuple[Any, ...]:
        """The command that runs it: by its hash, or by its text, which the server then remembers."""
        return ("EVAL" if by_text else "EVALSHA", self.text if by_text else self.sha, len(keys), *keys, *args)

    def run(self, client: Any, keys: Sequence[Key], args: Sequence[Any]) -> Any:
        """Run it and wait for the answer."""
        try:
            return client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return client.execute_command(*self.command(keys, args, by_text=True))

    async def arun(self, client: Any, keys: Sequence[Key], args: Sequence[Any]) -> Any:
        """As `run`, with an async client."""
        try:
            return await client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return await client.execute_command(*self.command(keys, args, by_text=True))
