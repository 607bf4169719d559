"""Results of calls on the asyncio pool, gathered: what ends in one turn of the loop is stored in one trip to Redis."""

import asyncio
import os
from typing import Any

from redis.exceptions import RedisError

from callsheet.resources.redis import async_client
from callsheet.settings import Settings, get_settings

_MOST = 500  # results in one trip


class GatheredWrites:
    """Stores and publishes results in batches; on the process's loop.

    While one batch is under way the next one gathers, so that the more calls end, the fewer trips each costs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: list[tuple[str, str, int | None, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def write(self, key: str, value: str, expires: int | None) -> None:
        """Store `value` for `expires` seconds and publish it on the channel of the key's name; returns once both are.

        Raises:
            RedisError: Redis did not take it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((key, value, expires, future))
        if self._writing is None:
            self._writing = loop.create_task(self._write_all(), name="callsheet-results")
        await future

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                try:
                    answers = await self._send(batch)
                except (RedisError, OSError) as exc:
                    answers = [exc] * len(batch)
                for (_, _, _, future), answer in zip(batch, answers, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, BaseException):
                        future.set_exception(answer)
                    else:
                        future.set_result(None)
        finally:
            self._writing = None

    async def _send(self, batch: list[tuple[str, str, int | None, asyncio.Future[None]]]) -> list[Any]:
        async with async_client(self._settings).pipeline(transaction=False) as pipe:
            for key, value, expires, _ in batch:
                pipe.set(key, value, ex=expires)
                pipe.publish(key, value)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers[::2]  # of SET; a notice that was not published is found by looking


_writes: dict[tuple[int, str], GatheredWrites] = {}


def gathered_writes() -> GatheredWrites:
    """This process's writer, for the address in its settings."""
    settings = get_settings()
    key = (os.getpid(), settings.redis_url.get_secret_value())
    if key not in _writes:
        _writes[key] = GatheredWrites(settings)
    return _writes[key]
