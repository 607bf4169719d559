"""What a job's agents print, as who watches the job reads it: a bounded Redis stream a job, and a notice of growth.

`prints` writes it.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from callsheet.errors import MessageError, UsageError
from callsheet.messages import Msg
from callsheet.messages.quick import loads
from callsheet.resources.redis import async_client
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.people.store import Question
from callsheet.tasks.waiter import waiter

#: Id of the job to whose events the call that runs here prints.
current_stream: ContextVar[str | None] = ContextVar("callsheet_stream", default=None)
_PAGE = 500
_ID = re.compile(r"\d{1,20}(-\d{1,20})?")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that an agent of a job printed, or asks a person.

    Attributes:
        id: of the event; `job.stream(since=id)` goes on after it.
        agent: who printed, as `Class(name)`.
        agent_id: the agent's id.
        msg: the message so far; chunks of one message share `msg.id`.
        last: whether it is the message's last chunk.
        time: unix time of printing, by the worker's clock.
        call: id of the call in whose course it was printed, as in `job.calls()`.
        run: names the run of that call: a call that is tried again, or whose worker died, has several.
        again: whether it is the first event of such a further run. Messages of `call` that did not end before it
            will not end: the run prints its own.
        type: "message", or "input_required": the job waits for `job.answer(...)`, and `msg` is what is to be answered.
        question: with "input_required", what is asked.
    """

    id: str
    agent: str
    agent_id: str
    msg: Msg
    last: bool
    time: float
    call: str = ""
    run: str = ""
    again: bool = False
    type: str = "message"
    question: Question | None = None


def checked_since(since: str) -> str:
    """The id of an event."""
    if not isinstance(since, str) or not _ID.fullmatch(since):
        raise UsageError(f"since={since!r:.80} is no event's id: give the `id` of an event of this job's stream, or "
                         'nothing ("0") for all that is kept.')
    return since


async def read_events(job_id: str, since: str, done: "asyncio.Future[Any]", settings: Settings) -> AsyncIterator[Event]:
    """A job's events after `since`, as they come, until `done` is; on the process's loop.

    A connection that breaks is opened again; what came meanwhile is read from the stream.
    """
    numbers: dict[str, int] = {}  # of each run, the last seen: a write that failed half-way was done again
    keys, grown = Keys(settings.key_prefix), asyncio.Event()
    subscriptions = waiter(settings).subscriptions

    def heard(_: object) -> None:
        grown.set()

    subscriptions.add(keys.events_channel(job_id), heard)
    done.add_done_callback(heard)
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
                with contextlib.suppress(ValueError, LookupError, TypeError, MessageError):  # something else's
                    told = {key.decode(): value.decode() for key, value in fields.items()}
                    run, number = told.get("run", ""), int(told.get("n", 0))
                    if not run or number > numbers.get(run, 0):
                        event = _event(since, told)
                        numbers[run] = number
                        yield event
            if len(page) == _PAGE:
                continue
            if over:
                return
            await grown.wait()
    finally:
        subscriptions.remove(keys.events_channel(job_id), heard)


def _event(entry_id: str, fields: dict[str, str]) -> Event:
    return Event(id=entry_id, agent=fields["agent"], agent_id=fields["agent_id"],
                 msg=Msg.from_dict(loads(fields["msg"])), last=bool(fields["last"]), time=float(fields["time"]),
                 call=fields.get("call", ""), run=fields.get("run", ""), again="again" in fields,
                 type=fields.get("type", "message"),
                 question=Question.from_json(fields["question"]) if "question" in fields else None)
