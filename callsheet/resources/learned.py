"""What endpoints' models do not take, learned of their refusals: kept for the fleet in Redis, for a while, and here."""

import asyncio
import contextlib
import hashlib
import time

from redis.exceptions import RedisError

from callsheet.resources.context import current_call
from callsheet.resources.redis import async_client
from callsheet.settings import get_settings
from callsheet.settings.keys import Keys

KEPT = 24 * 3600
"""Seconds for which the fleet remembers."""

LOOK = 300.0
"""Seconds after which a process that works for the fleet looks again."""

_ANSWERS_WITHIN = 1.0
_MOST = 1024
_known: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}


def refused(base_url: str, model: str) -> frozenset[str]:
    """The parameters that this model is known not to take there."""
    found = _known.get((base_url, model))
    return found[1] if found is not None else frozenset()


async def look(base_url: str, model: str) -> None:
    """Ask the fleet what it knows, where a worker's call needs it and this process has not asked lately."""
    found = _known.get((base_url, model))
    if (found is not None and found[0] > time.monotonic()) or not _of_fleet():
        return
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN):
            names = await async_client(get_settings()).smembers(_key(base_url, model))
        found = 0.0, frozenset(name.decode() for name in names)
    _keep(base_url, model, LOOK, found[1] if found is not None else frozenset())


async def learn(base_url: str, model: str, name: str) -> None:
    """Remember that this model does not take a parameter."""
    _keep(base_url, model, LOOK if _of_fleet() else 0.0, refused(base_url, model) | {name})
    if not _of_fleet():
        return
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN), async_client(get_settings()).pipeline() as pipe:
            await pipe.sadd(_key(base_url, model), name).expire(_key(base_url, model), KEPT).execute()


def _of_fleet() -> bool:
    context = current_call()
    return context.call is not None and not context.local and not get_settings().inline


def _key(base_url: str, model: str) -> str:
    digest = hashlib.sha256(f"{base_url} {model}".encode("utf-8", "replace")).hexdigest()[:32]
    return Keys(get_settings().key_prefix).learned(digest)


def _keep(base_url: str, model: str, seconds: float, names: frozenset[str]) -> None:
    if len(_known) >= _MOST:
        _known.clear()
    _known[base_url, model] = time.monotonic() + seconds, names
