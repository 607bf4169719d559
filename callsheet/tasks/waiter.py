"""Waiting for results and events: one Redis subscription for all that this process waits for.

Lives on the process's loop. Celery's Redis backend publishes each stored result on a channel named like its key, so
a result arrives with the notice of it. Where Redis has lost data, those waits end whose jobs nobody has any more.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from callsheet.errors import JobLost
from callsheet.resources.epoch import REMEDY, epoch
from callsheet.resources.redis import async_client, translated
from callsheet.resources.subscriptions import Listener, subscriptions
from callsheet.settings import Settings
from callsheet.tasks.patience import patient
from callsheet.tasks.results import RESULT_KEY, parse, ready
from callsheet.tasks.whereabouts import whereabouts

logger = logging.getLogger(__name__)
_MOST_AHEAD = 500  # results kept that were fetched ahead and not yet asked for
_LOOK = 3.0  # seconds between two looks whether Redis has lost data
_SELDOM = 30.0  # seconds between two looks at what workers have, where they have all that is waited for


class Waiter:
    """Waits for results of tasks by id; any number at once over one subscription."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.subscriptions = subscriptions(settings)
        self._waiting: dict[str, list[asyncio.Future[dict[str, Any]]]] = {}
        self._listeners: dict[str, Listener] = {}
        self._look: set[str] = set()
        self._looking: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._ahead: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, tuple[int, Sequence[str]]] = {}
        self._absent: set[str] = set()
        self._watching: asyncio.Task[None] | None = None

    async def look_ahead(self, task_ids: list[str]) -> int:
        """Fetch those results that are stored by now, in one trip, for `wait` to find; says how many."""
        try:
            texts = await async_client(self.settings).mget([RESULT_KEY + task_id for task_id in task_ids])
        except (RedisError, OSError):
            return 0  # `wait` deals with that
        found = {task_id: meta for task_id, text in zip(task_ids, texts, strict=True)
                 if text and ready(meta := parse(text))}
        self._ahead |= found
        for task_id in list(self._ahead)[:-_MOST_AHEAD]:
            del self._ahead[task_id]
        return len(found)

    async def wait(self, task_id: str, losses: int | None = None, calls: Sequence[str] = ()) -> dict[str, Any]:
        """The stored result of a task, once it is final: Celery's record, as JSON data.

        Args:
            task_id: of the task.
            losses: `Epoch.losses` when it was sent; None for now.
            calls: the task ids of the job that it is the last of, if not of itself alone.

        Raises:
            RedisUnavailable: no Redis answers when the wait begins.
            JobLost: Redis lost its data, and nobody has any of the calls.
        """
        if task_id in self._ahead:
            return self._ahead.pop(task_id)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(task_id, [])
        waiting.append(future)
        if len(waiting) == 1:
            self._listeners[task_id] = listener = self._listener(task_id)
            self.subscriptions.add(RESULT_KEY + task_id, listener)
            self._sent[task_id] = epoch(self.settings).losses if losses is None else losses, calls or (task_id,)
            if self._watching is None or self._watching.done():
                self._watching = asyncio.get_running_loop().create_task(self._watch())
        try:
            if not self.subscriptions.healthy:
                await patient(self._check)
            return await future
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(task_id, None)
                self._sent.pop(task_id, None)
                gone = self._listeners.pop(task_id, None)
                if gone is not None:
                    self.subscriptions.remove(RESULT_KEY + task_id, gone)

    async def _check(self) -> None:
        """One ping for all that begin to wait now."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._ping())
        await asyncio.shield(self._checking)

    async def _ping(self) -> None:
        with translated(self.settings):
            await async_client(self.settings).ping()

    async def _watch(self) -> None:
        """While anybody waits: whether Redis has lost data, and then, what came of the jobs."""
        data, judged, pause = epoch(self.settings), 0.0, _LOOK
        while self._waiting:
            await asyncio.sleep(max(0.0, data.looked + _LOOK - time.monotonic()))
            try:
                await asyncio.to_thread(data.look)
                suspects = [one for one, (losses, _) in self._sent.items() if losses < data.losses]
                if suspects and data.looked > max(data.noticed + grace(self.settings), judged + pause):
                    await self._judge(suspects)
                    judged, pause = data.looked, _LOOK if self._absent else min(2 * pause, _SELDOM)
            except Exception as exc:  # whatever it is, those who wait go on waiting
                logger.debug("Whether Redis still has its data is not known: %s", exc)

    async def _judge(self, suspects: list[str]) -> None:
        """End the waits for what nobody had at two looks in turn."""
        there = await asyncio.to_thread(lambda: {call for call, _ in whereabouts(self.settings)})
        absent = {one for one in suspects if one in self._sent and there.isdisjoint(self._sent[one][1])}
        gone, self._absent = list(absent & self._absent), absent
        texts = await async_client(self.settings).mget([RESULT_KEY + one for one in gone]) if gone else ()
        for task_id, text in zip(gone, texts, strict=True):
            if text:
                self._take(task_id, text)
            for future in self._waiting.get(task_id, ()):
                if not future.done():
                    future.set_exception(JobLost(
                        f"The Redis at {self.settings.redis_address} lost its data, and job {task_id} with them: no "
                        f"result is stored, and neither a queue nor a worker has a call of it. {REMEDY}"))

    def _listener(self, task_id: str) -> Listener:
        def heard(data: bytes) -> None:
            if data:
                self._take(task_id, data)
            else:
                self._look.add(task_id)
                if self._looking is None or self._looking.done():
                    self._looking = asyncio.get_running_loop().create_task(self._look_up())
        return heard

    def _take(self, task_id: str, text: bytes) -> None:
        meta = parse(text)
        for future in self._waiting.get(task_id, []) if ready(meta) else ():
            if not future.done():
                future.set_result(meta)

    async def _look_up(self) -> None:
        """Fetch what was stored before the subscription held; many at once."""
        while self._look:
            ids = [self._look.pop() for _ in range(min(len(self._look), 1000))]
            try:
                texts = await async_client(self.settings).mget([RESULT_KEY + task_id for task_id in ids])
            except (RedisError, OSError) as exc:
                logger.warning("Looking results up failed (%s); trying again.", type(exc).__name__)
                self._look.update(ids)
                await asyncio.sleep(0.2)
                continue
            for task_id, text in zip(ids, texts, strict=True):
                if text:
                    self._take(task_id, text)


def grace(settings: Settings) -> float:
    """Seconds in which workers register anew what they hold, once data were lost: as they renew their leases."""
    return 0.4 * settings.lease + _LOOK


_waiters: dict[str, Waiter] = {}


def waiter(settings: Settings) -> Waiter:
    """This process's waiter; to be used on the process's loop only."""
    key = settings.redis_url.get_secret_value()
    found = _waiters.get(key)
    if found is None or found.subscriptions is not subscriptions(settings):  # those of this process, and this loop
        found = _waiters[key] = Waiter(settings)
    return found
