"""What a job's agents print, on its way to whoever watches: a bounded Redis stream a job, and a notice of growth."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from callsheet.agents import AgentBase
from callsheet.messages import Msg
from callsheet.resources.redis import async_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.loop import on_process_loop
from callsheet.tasks.patience import patient
from callsheet.tasks.waiter import waiter

#: Seconds between two writes for one job at most.
WRITE_EVERY = 0.03
#: Events kept for one job; the oldest go first.
MOST_EVENTS = 10_000
#: Id of the job to whose events the call that runs here prints.
current_stream: ContextVar[str | None] = ContextVar("callsheet_stream", default=None)
_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that an agent of a job printed.

    Attributes:
        id: of the event; `job.stream(since=id)` goes on after it.
        agent: who printed, as `Class(name)`.
        agent_id: the agent's id.
        msg: the message so far; chunks of one message share `msg.id`.
        last: whether it is the message's last chunk.
        time: unix time of printing, by the worker's clock.
    """

    id: str
    agent: str
    agent_id: str
    msg: Msg
    last: bool
    time: float


class EventWriter:
    """Writes what the agents of one call print: in order, at most once per WRITE_EVERY seconds.

    Chunks of one message that wait for the same write are written as the latest of them, which holds them all.
    """

    def __init__(self, job_id: str, settings: Settings) -> None:
        self._job = job_id
        self._settings = settings
        self._waiting: list[tuple[str, bool, dict[str, str]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, agent: AgentBase, msg: Msg, last: bool) -> None:
        """Queue a message for writing; AgentBase.print calls it."""
        fields = {"agent": agent.label, "agent_id": agent.id, "msg": json.dumps(msg.to_dict()),
                  "last": "1" if last else "", "time": repr(time.time())}
        if self._waiting and self._waiting[-1][0] == msg.id and not self._waiting[-1][1]:
            self._waiting[-1] = (msg.id, last, fields)
        else:
            self._waiting.append((msg.id, last, fields))
        if self._writing is None:
            self._writing = self._loop.create_task(self._write_soon())

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        await self._write()

    async def _write_soon(self) -> None:
        while self._waiting:
            await asyncio.shield(self._write())
            await asyncio.sleep(WRITE_EVERY)
        self._writing = None

    async def _write(self) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            entries = [fields for _, _, fields in batch]
            await patient(lambda: on_process_loop(_append(self._job, entries, self._settings)))


async def _append(job_id: str, entries: list[dict[str, str]], settings: Settings) -> None:
    keys = Keys(settings.key_prefix)
    with translated(settings):
        async with async_client(settings).pipeline(transaction=False) as pipe:
            for fields in entries:
                pipe.xadd(keys.events(job_id), dict(fields), maxlen=MOST_EVENTS, approximate=True)
            pipe.expire(keys.events(job_id), settings.result_expires)
            pipe.publish(keys.events_channel(job_id), "+")
            await pipe.execute()


async def read_events(job_id: str, since: str, done: "asyncio.Future[Any]", settings: Settings) -> AsyncIterator[Event]:
    """A job's events after `since`, as they come, until `done` is; on the process's loop.

    A connection that breaks is opened again; what came meanwhile is read from the stream.
    """
    keys, grown = Keys(settings.key_prefix), asyncio.Event()
    subscriptions = waiter(settings).subscriptions

    def heard(_: bytes) -> None:
        grown.set()

    def finished(_: Any) -> None:
        grown.set()

    subscriptions.add(keys.events_channel(job_id), heard)
    done.add_done_callback(finished)
    try:
        while True:
            over = done.done()
            grown.clear()
            try:
                page = await async_client(settings).xrange(keys.events(job_id), min=f"({since}", count=_PAGE)
            except (RedisError, OSError):
                if over and done.exception() is not None:
                    return  # there never was a Redis: the caller tells
                await asyncio.sleep(0.1)
                continue
            for entry_id, fields in page:
                since = entry_id.decode()
                yield _event(since, {key.decode(): value.decode() for key, value in fields.items()})
            if len(page) == _PAGE:
                continue
            if over:
                return
            await grown.wait()
    finally:
        subscriptions.remove(keys.events_channel(job_id), heard)


def _event(entry_id: str, fields: dict[str, str]) -> Event:
    return Event(id=entry_id, agent=fields["agent"], agent_id=fields["agent_id"],
                 msg=Msg.from_dict(json.loads(fields["msg"])), last=bool(fields["last"]), time=float(fields["time"]))
