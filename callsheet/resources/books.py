"""What outbound calls took, in Redis: by job, and by day for the whole fleet.

A hash for each job and each day: a JSON list of agent, tenant, endpoint and model -> the numbers of Usage, joined with
commas. What ends within a fifth of a second is added in one trip, off the calls' path; a call of an agent that made
requests waits for that before its result is stored, so that who has the result has the counts.
"""

import asyncio
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError

from callsheet.errors import UsageError
from callsheet.resources.accounts import (
    MOST_ROWS,
    OTHERS,
    By,
    JobUsage,
    Row,
    Rows,
    Usage,
    add_numbers,
    grouped,
    on_counted,
    process_rows,
)
from callsheet.resources.loops import on_lasting_loop
from callsheet.resources.record import CallRecord
from callsheet.resources.redis import Script, async_client, sync_client, translated
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys

log = logging.getLogger(__name__)

_SCRIPT = Script(Path(__file__).with_name("usage.lua"))

TOGETHER = 0.2
"""Seconds at most between the end of a request and its count in Redis; a process that is killed loses as much."""

AGAIN = 1.0
"""Seconds after which counts that Redis did not take are sent again."""

MARK_KEPT = 120
"""Seconds for which Redis remembers a batch."""

WAIT = 5.0
"""Seconds that the end of a call waits for its counts at most."""

MOST_WAITING = 100_000
"""Rows kept while Redis is away; of more, the oldest are given up."""

_DAY = 86_400


@dataclass
class Batch:
    """Counts that are added together, once."""

    id: str = field(default_factory=lambda: uuid4().hex)
    rows: dict[tuple[str, str], Rows] = field(default_factory=dict)  # by ("job", id) or ("day", date)

    def add(self, name: tuple[str, str], row: Row, numbers: list[int]) -> None:
        """Count a call."""
        add_numbers(self.rows.setdefault(name, {}), row, numbers)

    def command(self, settings: Settings) -> tuple[Any, ...]:
        """The Redis command that adds them."""
        keys = Keys(settings.key_prefix)
        names, entries = [keys.usage_batch(self.id)], []
        for (kind, name), rows in self.rows.items():
            names.append(keys.usage(name) if kind == "job" else keys.usage_day(name))
            entry: list[Any] = [settings.result_expires if kind == "job" else settings.usage_expires]
            for row, numbers in rows.items():
                entry += json.dumps(row), ",".join(map(str, numbers))
            entries.append(entry)
        args = [MARK_KEPT, MOST_ROWS, OTHERS, json.dumps(entries)]
        # By its text: in a pipeline, a server that does not know the script yet could not be answered.
        return _SCRIPT.command(names, args, by_text=True)


class Books:
    """This process's counts on their way to Redis."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = Batch()
        self._unsent: list[Batch] = []
        self._sending: asyncio.Task[None] | None = None
        self._timed = False
        self._complained = False

    def post(self, record: CallRecord, row: Row, numbers: list[int]) -> None:
        """Take a call's numbers; any thread."""
        with self._lock:
            for job in (record.context.job, *record.context.parents):
                if job:
                    self._pending.add(("job", job), row, numbers)
            self._pending.add(("day", _date(time.time())), row, numbers)
            timed, self._timed = self._timed, True
        if not timed:
            on_lasting_loop(self._send_soon)

    @property
    def idle(self) -> bool:
        """Whether everything is in Redis."""
        return not self._pending.rows and not self._unsent and self._sending is None

    async def settled(self) -> None:
        """Wait until what was counted by now is in Redis, or a few seconds if Redis is away; on the process's loop."""
        try:
            async with asyncio.timeout(WAIT):
                if self._sending is not None:
                    await asyncio.shield(self._sending)
                if self._pending.rows or self._unsent:
                    await asyncio.shield(self._send())
        except TimeoutError:
            log.warning("usage_late: Redis has not taken the counts of outbound calls within %g s.", WAIT)

    def _send(self) -> "asyncio.Task[None]":
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_all(), name="callsheet-usage")
        return self._sending

    async def _send_soon(self) -> None:
        while True:
            await asyncio.sleep(AGAIN if self._unsent else TOGETHER)
            await asyncio.shield(self._send())
            with self._lock:
                if self.idle:
                    self._timed = False
                    return

    async def _send_all(self) -> None:
        try:
            with self._lock:
                batch, self._pending = self._pending, Batch()
            if batch.rows:
                self._unsent.append(batch)
            settings = get_settings()
            while self._unsent:
                async with async_client(settings).pipeline(transaction=False) as pipe:
                    for waiting in self._unsent:
                        pipe.execute_command(*waiting.command(settings))
                    await pipe.execute()
                self._unsent.clear()
                self._complained = False
        except (RedisError, OSError) as exc:
            self._keep_for_later(exc)
        finally:
            self._sending = None

    def _keep_for_later(self, exc: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning("usage_unsent: Redis at %s did not take the counts of outbound calls (%s: %s); they are sent "
                        "again.", get_settings().redis_address, type(exc).__name__, exc)
        while sum(len(rows) for batch in self._unsent for rows in batch.rows.values()) > MOST_WAITING:
            del self._unsent[0]
            log.error("usage_lost: counts of outbound calls were given up, as Redis has been away for too long.")


books = Books()
on_counted(books.post)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=books.__init__)  # type: ignore[misc]  # what waits is the parent's to send


def read(keys: Iterable[str], settings: Settings) -> JobUsage:
    """The sum of some hashes; blocks.

    Raises:
        RedisUnavailable: no Redis answers.
    """
    rows: Rows = {}
    with translated(settings), sync_client(settings).pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)
        for found in pipe.execute():
            for label, numbers in found.items():
                agent, tenant, endpoint, model = json.loads(label)
                add_numbers(rows, (agent, tenant, endpoint, model), [int(part) for part in numbers.split(b",")])
    return JobUsage.of(rows)


def job_usage(job_ids: Iterable[str], settings: Settings) -> JobUsage:
    """What some jobs' calls took, together; see `read`."""
    keys = Keys(settings.key_prefix)
    return read((keys.usage(job_id) for job_id in job_ids), settings)


def usage(by: By = "endpoint", *, days: int | None = None) -> dict[str, Usage]:
    """What the fleet's outbound calls took: tokens, cost, retries and time.

    Of calls that agents make on workers; in inline mode, of all calls of this process. Blocks for a Redis trip.

    Args:
        by: "agent", "tenant", "endpoint" or "model".
        days: today, in UTC, and the days before it, so many in all; None for all that are kept.

    Returns:
        Usage by the agent's `Class(name)`, the tenant's, endpoint's or model's name; "" where there is none.

    Raises:
        UsageError: `by` or `days` cannot be right.
        RedisUnavailable: no Redis answers.
    """
    if days is not None and days < 1:
        raise UsageError(f"days={days!r}: a whole number over 0 is needed.")
    settings = get_settings()
    if settings.inline:
        return grouped(JobUsage.of(process_rows()).rows, by)
    keys, now = Keys(settings.key_prefix), time.time()
    kept = settings.usage_expires // _DAY + 2
    dates = [_date(now - back * _DAY) for back in range(kept if days is None else min(days, kept))]
    return grouped(read(map(keys.usage_day, dates), settings).rows, by)


def _date(moment: float) -> str:
    return _date_of(int(moment // _DAY))


@functools.lru_cache(maxsize=4)
def _date_of(day: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY))
