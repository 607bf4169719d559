"""What the agents of this process print, on its way to Redis: many jobs in one pipeline, each every 30 ms at most.

Printing puts a copy of the message into the job's box and goes on. A task on the process's loop writes what the boxes
hold. Chunks of a message that wait in a box are the latest of them, which holds them all, so that a slow Redis costs
little; a message's last chunk always stays.
"""

import asyncio
import contextlib
import json
import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from callsheet.agents import AgentBase
from callsheet.messages import Msg
from callsheet.resources.redis import async_client, translated
from callsheet.resources.trouble import is_trouble
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.settings.secrets import in_use
from callsheet.tasks.loop import on_process_loop, process_loop, wait_on_process_loop
from callsheet.tasks.patience import patient, patiently, trouble_over
from callsheet.tasks.scope import Scope

logger = logging.getLogger(__name__)

#: Seconds between two writes for one job at most.
WRITE_EVERY = 0.03
#: Bytes of one run's chunks that are kept although later chunks of their messages hold them.
KEPT_BYTES = 1024 * 1024
_MOST_BYTES = 1024 * 1024  # in one pipeline, if it has more than one chunk
_GRID = 0.01  # seconds: writes of several jobs fall due together


def copied(value: Any) -> Any:
    """JSON data with lists and dictionaries of its own. Texts are shared, so that it costs little however long."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value


@dataclass(slots=True)
class Chunk:
    """One print, until it is written."""

    key: tuple[str, str]  # run and message
    writer: "EventWriter"
    number: int  # of the job's chunks here
    fields: dict[str, str]
    msg: dict[str, Any]
    last: bool
    text: str = ""  # the message as JSON, once it was to be written

    def written(self) -> bool:
        """Write the message as JSON; False if it has become something else since it was checked."""
        try:
            self.text = self.text or in_use().cleaned(json.dumps(self.msg))
        except (TypeError, ValueError):
            logger.exception("event_lost call=%s: what an agent printed is no JSON data", self.fields["call"])
            return False
        return True


@dataclass(slots=True)
class Box:
    """What one job's agents printed here and is not written yet."""

    waiting: dict[tuple[Any, ...], Chunk] = field(default_factory=dict)  # chunks in the order in which they are written
    due: float = 0.0  # monotonic time before which nothing is written, unless somebody waits for it
    busy: bool = False  # whether chunks of it are on their way
    count: int = 0  # chunks that were put in so far
    # who waits until a chunk, by its number, is written
    flushes: list[tuple[int, "asyncio.Future[None]"]] = field(default_factory=list)

    def put(self, chunk: Chunk, most: int) -> None:
        """Put a chunk in, in place of those that it holds."""
        before = self.waiting.pop(chunk.key, None)
        if before is not None and "again" in before.fields:
            chunk.fields["again"] = "1"
        self.waiting[(*chunk.key, chunk.number) if chunk.last else chunk.key] = chunk
        if len(self.waiting) > most:  # they would push each other out of the stream
            del self.waiting[next(iter(self.waiting))]

    def settle(self, problem: Exception | None = None) -> None:
        """Tell those who wait of what is written by now; or all of them of a problem."""
        first = next(iter(self.waiting.values())).number if self.waiting else self.count + 1
        for number, future in [*self.flushes]:
            if problem is None and number >= first:
                continue
            self.flushes.remove((number, future))
            if future.done():
                continue
            if problem is None:
                future.set_result(None)
            else:
                future.set_exception(problem)


class Pump:
    """Writes what all calls of this process print; on the process's loop, `put` also in other threads."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._settings, self._keys = settings, Keys(settings.key_prefix)
        self._boxes: dict[str, Box] = {}
        self._lock = threading.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tries = 0

    def put(self, job: str, chunk: Chunk) -> None:
        """Have a chunk written soon; any thread."""
        with self._lock:
            box = self._boxes.setdefault(job, Box())
            box.count = chunk.number = box.count + 1
            asleep = not box.waiting
            box.put(chunk, self._settings.events_max)
        if asleep:
            self.loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = self.loop.create_task(self._run(), name="callsheet-prints")

    async def flush(self, job: str) -> None:
        """Write what the job's agents printed so far, now.

        Raises:
            RedisUnavailable: Redis is in trouble; it is kept, to be written later.
        """
        with self._lock:
            box = self._boxes.get(job)
            if box is None or not (box.waiting or box.busy):
                return
            future: asyncio.Future[None] = self.loop.create_future()
            box.flushes.append((box.count, future))
        self._begin()
        await future

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            batch, pause = self._take()
            if batch:
                try:
                    await self._write(batch)
                    self._tries = 0
                except Exception as exc:
                    await self._failed(batch, exc)
            elif pause is None:
                return  # the next print begins anew
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()

    def _take(self) -> tuple[dict[str, list[Chunk]], float | None]:
        """What is to be written now; else the seconds until the next look, if there is to be one."""
        now, size, next_due = time.monotonic(), 0, float("inf")
        batch: dict[str, list[Chunk]] = {}
        with self._lock:
            for job, box in list(self._boxes.items()):
                if not (box.flushes and box.waiting) and box.due > now:
                    next_due = min(next_due, box.due)
                elif not box.waiting:
                    del self._boxes[job]
                else:
                    while box.waiting and (size < _MOST_BYTES or not batch):
                        chunk = box.waiting.pop(next(iter(box.waiting)))
                        if chunk.written():
                            size += len(chunk.text)
                            batch.setdefault(job, []).append(chunk)
                    box.busy = job in batch
                    box.settle() if not box.busy else None
        return batch, max(next_due - now, 0.001) if next_due < float("inf") else None

    async def _write(self, batch: dict[str, list[Chunk]]) -> None:
        """Write a batch.

        Raises:
            RedisUnavailable: it may have arrived in part. A reader knows by their numbers chunks that come twice.
        """
        settings, counts = self._settings, []
        began = time.monotonic()
        with translated(settings):
            async with async_client(settings).pipeline(transaction=False) as pipe:
                for job, chunks in batch.items():
                    key, stale = self._keys.events(job), _stale(chunks)
                    for chunk in chunks:
                        pipe.xadd(key, {**chunk.fields, "msg": chunk.text}, maxlen=settings.events_max,
                                  approximate=True)
                    if stale:
                        pipe.xdel(key, *stale)
                    pipe.expire(key, settings.events_expires)
                    pipe.publish(self._keys.events_channel(job), "+")
                    counts.append(len(chunks) + bool(stale) + 2)
                answers = await pipe.execute()
        for (job, chunks), count in zip(batch.items(), counts, strict=True):
            ids, answers = answers[:len(chunks)], answers[count:]
            for chunk in chunks:
                chunk.writer.stale.clear()
            for chunk, entry in zip(chunks, ids, strict=True):
                chunk.writer.wrote(chunk, entry)
            self._done(job, began)

    def _done(self, job: str, began: float) -> None:
        with self._lock:
            box = self._boxes[job]
            box.busy, box.due = False, math.ceil((began + WRITE_EVERY) / _GRID) * _GRID
            box.settle()

    async def _failed(self, batch: dict[str, list[Chunk]], exc: Exception) -> None:
        """Keep what could not be written, and wait; or, where waiting would not help, give it up."""
        if not is_trouble(exc):
            logger.error("events_lost jobs=%s: what their agents printed cannot be written", ",".join(batch),
                         exc_info=exc)
            for job in batch:
                self._done(job, time.monotonic())
            return
        with self._lock:
            for job, chunks in batch.items():
                box = self._boxes[job]
                newer, box.waiting, box.busy = box.waiting, {}, False
                for chunk in [*chunks, *newer.values()]:
                    box.put(chunk, self._settings.events_max)
                box.settle(exc)
        self._tries += 1
        await trouble_over(exc, self._tries)


def _stale(chunks: list[Chunk]) -> list[bytes]:
    return [entry for writer in {chunk.writer for chunk in chunks} for entry in writer.stale]


class EventWriter:
    """What the agents of one run of a call print."""

    def __init__(self, scope: Scope, settings: Settings) -> None:
        self.scope, self.settings = scope, settings
        self._count = 0
        self._closed = False
        self._written: deque[tuple[bytes, tuple[str, str], int]] = deque()  # chunks that were not the last
        self._size = 0
        self.stale: list[bytes] = []  # entries of the stream to be removed
        self._latest: dict[tuple[str, str], bytes] = {}

    def add(self, agent: AgentBase, msg: Msg, last: bool, **more: str) -> None:
        """Queue a message for writing; AgentBase.print calls it. What comes after the reply's end is left out."""
        if self._closed:
            return
        self._count += 1
        scope = self.scope
        fields = {"agent": agent.label, "agent_id": agent.id, "last": "1" if last else "", "time": repr(time.time()),
                  "call": scope.call, "run": scope.run, "n": str(self._count), **more}
        if scope.again and self._count == 1:
            fields["again"] = "1"
        chunk = Chunk((scope.run, msg.id), self, 0, fields, copied(msg.to_dict()), last)
        pump(self.settings).put(scope.job, chunk)

    async def flush(self) -> None:
        """See that what was printed so far is written."""
        if self._count:
            await patient(lambda: on_process_loop(lambda: pump(self.settings).flush(self.scope.job)))

    async def close(self) -> None:
        """Write what is left; nothing is printed any more."""
        self._closed = True
        await self.flush()

    def close_plain(self) -> None:
        """As `close`, in a thread without a loop."""
        self._closed = True
        if self._count:
            patiently(lambda: wait_on_process_loop(lambda: pump(self.settings).flush(self.scope.job)))

    def wrote(self, chunk: Chunk, entry: bytes) -> None:
        """A chunk is in the stream. What others of this run hold, and is old, need not stay there."""
        if chunk.last:
            self._latest.pop(chunk.key, None)
            return
        self._latest[chunk.key] = entry
        self._written.append((entry, chunk.key, len(chunk.text)))
        self._size += len(chunk.text)
        while self._size > KEPT_BYTES:
            old, key, size = self._written.popleft()
            self._size -= size
            if self._latest.get(key) != old:
                self.stale.append(old)


_pumps: dict[tuple[str, str], Pump] = {}
_pumps_lock = threading.Lock()


def pump(settings: Settings) -> Pump:
    """This process's; any thread."""
    # A forked child has a loop of its own, and so a pump of its own.
    key, loop = (settings.redis_url.get_secret_value(), settings.key_prefix), process_loop()
    found = _pumps.get(key)
    if found is None or found.loop is not loop:
        with _pumps_lock:
            found = _pumps.get(key)
            if found is None or found.loop is not loop:
                found = _pumps[key] = Pump(settings, loop)
    return found
