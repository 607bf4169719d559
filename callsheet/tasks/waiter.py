"""Waiting for results and events: one Redis subscription for all that this process waits for.

Lives on the process's loop. Celery's Redis backend publishes each stored result on a channel named like its key, so
a result arrives with the notice of it.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from callsheet.resources.redis import async_client, translated
from callsheet.settings import Settings
from callsheet.tasks.results import parse, ready

logger = logging.getLogger(__name__)
_RESULT_KEY = "celery-task-meta-"
_SLOWEST_RETRY = 5.0  # seconds
_SIGN_OF_LIFE = 30.0  # seconds between two pings of a silent connection
_MOST_AHEAD = 500  # results kept that were fetched ahead and not yet asked for
Listener = Callable[[bytes], None]


class Subscriptions:
    """Callbacks by channel over one pub/sub connection, which comes back by itself when it breaks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listeners: dict[str, set[Listener]] = {}
        self._new: set[str] = set()
        self._gone: set[str] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = False  # anything, since the last sign of life was asked for
        self.healthy = False

    def add(self, channel: str, listener: Listener) -> None:
        """Call `listener` with each message on `channel`, from soon after now on."""
        self._listeners.setdefault(channel, set()).add(listener)
        self._gone.discard(channel)
        self._new.add(channel)
        self._wake.set()
        if not self._tasks or self._tasks[0].done():
            self._tasks = [asyncio.get_running_loop().create_task(self._run(), name="callsheet-subscriptions")]

    def remove(self, channel: str, listener: Listener) -> None:
        """Stop calling `listener`."""
        listeners = self._listeners.get(channel)
        if listeners:
            listeners.discard(listener)
            if not listeners:
                del self._listeners[channel]
                self._new.discard(channel)
                self._gone.add(channel)
                self._wake.set()

    async def _run(self) -> None:
        pause = 0.1
        while True:
            client = redis.asyncio.Redis.from_url(
                self._settings.redis_url.get_secret_value(), socket_connect_timeout=5, socket_timeout=None)
            pubsub = client.pubsub()
            try:
                await self._serve(pubsub)
            except (RedisError, OSError) as exc:
                pause = 0.1 if self.healthy else min(pause * 2, _SLOWEST_RETRY)
                self.healthy = False
                # Where nobody waits, Redis may well have been stopped on purpose.
                level = logging.WARNING if self._listeners else logging.DEBUG
                logger.log(level, "The result subscription broke (%s); it is opened again in %.1f s.",
                           type(exc).__name__, pause)
                await asyncio.sleep(pause)
            finally:
                await _closed(pubsub, client)
            if not self._listeners:
                return  # the next `add` begins anew
            self._new |= set(self._listeners)

    async def _serve(self, pubsub: Any) -> None:
        await pubsub.connect()
        self._heard = True
        reader: asyncio.Task[None] | None = None
        try:
            while True:
                new, gone = self._new & set(self._listeners), self._gone
                self._new, self._gone = set(), set()
                self._wake.clear()
                if new:
                    await pubsub.subscribe(*new)
                if gone:
                    await pubsub.unsubscribe(*gone)
                if reader is None:
                    reader = asyncio.get_running_loop().create_task(self._read(pubsub))
                waker = asyncio.get_running_loop().create_task(self._wake.wait())
                done, _ = await asyncio.wait({waker, reader}, timeout=_SIGN_OF_LIFE,
                                             return_when=asyncio.FIRST_COMPLETED)
                waker.cancel()
                if reader.done():
                    reader.result()
                if not done:
                    await self._ask_for_life(pubsub)
        finally:
            if reader is not None:
                reader.cancel()

    async def _ask_for_life(self, pubsub: Any) -> None:
        """A connection that something on the way dropped without a word would wait for ever."""
        if not self._heard:
            raise redis.ConnectionError("nothing heard since the last ping")
        self._heard = False
        await pubsub.ping()

    async def _read(self, pubsub: Any) -> None:
        while True:
            message = await pubsub.parse_response(block=True)
            self._heard = True
            if message is None or message[0] not in (b"message", b"subscribe"):
                continue
            # Only now that the subscription holds is nothing missed by looking: an empty notice says so.
            data = message[2] if message[0] == b"message" else b""
            self.healthy = True
            for listener in list(self._listeners.get(message[1].decode(), ())):
                listener(data)


async def _closed(pubsub: Any, client: Any) -> None:
    try:
        await pubsub.aclose()
        await client.aclose()
    except (RedisError, OSError) as exc:
        logger.debug("closing a broken subscription: %s", exc)


class Waiter:
    """Waits for results of tasks by id; any number at once over one subscription."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.subscriptions = Subscriptions(settings)
        self._waiting: dict[str, list[asyncio.Future[dict[str, Any]]]] = {}
        self._listeners: dict[str, Listener] = {}
        self._look: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._ahead: dict[str, dict[str, Any]] = {}

    async def look_ahead(self, task_ids: list[str]) -> int:
        """Fetch those results that are stored by now, in one trip, for `wait` to find; says how many."""
        try:
            texts = await async_client(self.settings).mget([_RESULT_KEY + task_id for task_id in task_ids])
        except (RedisError, OSError):
            return 0  # `wait` deals with that
        found = {task_id: meta for task_id, text in zip(task_ids, texts, strict=True)
                 if text and ready(meta := parse(text))}
        self._ahead |= found
        for task_id in list(self._ahead)[:-_MOST_AHEAD]:
            del self._ahead[task_id]
        return len(found)

    async def wait(self, task_id: str) -> dict[str, Any]:
        """The stored result of a task, once it is final: Celery's record, as JSON data.

        Raises:
            RedisUnavailable: no Redis answers when the wait begins.
        """
        if task_id in self._ahead:
            return self._ahead.pop(task_id)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(task_id, [])
        waiting.append(future)
        if len(waiting) == 1:
            self._listeners[task_id] = listener = self._listener(task_id)
            self.subscriptions.add(_RESULT_KEY + task_id, listener)
        try:
            if not self.subscriptions.healthy:
                await self._check()
            return await future
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(task_id, None)
                gone = self._listeners.pop(task_id, None)
                if gone is not None:
                    self.subscriptions.remove(_RESULT_KEY + task_id, gone)

    async def _check(self) -> None:
        """One ping for all that begin to wait now."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._ping())
        await asyncio.shield(self._checking)

    async def _ping(self) -> None:
        with translated(self.settings):
            await async_client(self.settings).ping()

    def _listener(self, task_id: str) -> Listener:
        def heard(data: bytes) -> None:
            if data:
                self._take(task_id, parse(data))
            else:
                self._look.add(task_id)
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.get_running_loop().create_task(self._look_up())
        return heard

    def _take(self, task_id: str, meta: dict[str, Any]) -> None:
        if ready(meta):
            for future in self._waiting.get(task_id, []):
                if not future.done():
                    future.set_result(meta)

    async def _look_up(self) -> None:
        """Fetch what was stored before the subscription held; many at once."""
        while self._look:
            ids = [self._look.pop() for _ in range(min(len(self._look), 1000))]
            try:
                texts = await async_client(self.settings).mget([_RESULT_KEY + task_id for task_id in ids])
            except (RedisError, OSError) as exc:
                logger.warning("Looking results up failed (%s); trying again.", type(exc).__name__)
                self._look.update(ids)
                await asyncio.sleep(0.2)
                continue
            for task_id, text in zip(ids, texts, strict=True):
                if text:
                    self._take(task_id, parse(text))


_waiters: dict[tuple[int, str], Waiter] = {}


def waiter(settings: Settings) -> Waiter:
    """This process's waiter; to be used on the process's loop only."""
    key = (os.getpid(), settings.redis_url.get_secret_value())
    if key not in _waiters:
        for stale in [old for old in _waiters if old[0] != key[0]]:
            del _waiters[stale]
        _waiters[key] = Waiter(settings)
    return _waiters[key]
