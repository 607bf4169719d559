"""What Redis does not keep of calls that have not ended: workers tell what runs, and messages in queues what waits."""

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from celery import Celery

from callsheet.messages.quick import loads, readable
from callsheet.resources.backlog import UNACKED
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.control import ask
from callsheet.tasks.whereabouts import held, queued

COMMAND = "callsheet_calls"
"""The workers' command that tells which calls of a job they have: a list of what `LiveCall` has."""

MOST_MESSAGES = 5_000
"""Messages of a queue that are looked at."""

MOST_ASIDE = 500
"""Calls, and agents for whose turn calls wait, that are looked for apart from queues."""


@dataclass(frozen=True, kw_only=True)
class LiveCall:
    """A call that has not ended."""

    id: str  # of its task
    label: str  # the agent
    parent: str = ""  # id of the call that made it, or ""
    queue: str = ""  # that it was sent to
    sent: float | None = None  # unix time
    worker: str = ""  # that has it, or "" where it waits in its queue
    pid: int = 0  # of the process that runs it, or 0
    started: float | None = None  # unix time, or None where it has not begun
    retries: int = 0  # tries before this one
    idle: float = 0.0  # seconds in which it ran and waited for others
    children: tuple[str, ...] = ()  # ids of the jobs that it has made
    more: int = 0  # that it has made beyond those
    later: bool = False  # whether it is not to begin yet


def belongs(job_id: str, task_id: str, root_id: str | None, parent_id: str | None, data: dict[str, Any]) -> bool:
    """Whether a call is one of a job, or below it."""
    context = data.get("context") or {}
    return job_id in (task_id, root_id, parent_id, data.get("job"), context.get("job"), *context.get("parents", ()))


def ask_workers(job_id: str, app: Celery, settings: Settings) -> list[LiveCall]:
    """The calls of a job, and below it, that workers have."""
    found: list[LiveCall] = []
    for calls in ask(app, settings, COMMAND, job=job_id).values():
        for call in calls if isinstance(calls, list) else ():  # else a worker that does not know the command
            with contextlib.suppress(TypeError, AttributeError):  # one of another version may tell something else
                found.append(LiveCall(**{**call, "children": tuple(call.get("children", ()))}))
    return found


def in_queues(job_id: str, settings: Settings) -> tuple[list[LiveCall], bool]:
    """The calls of a job, and below it, whose messages wait in queues; and whether all messages were looked at."""
    found: list[LiveCall] = []
    whole = True
    with translated(settings):
        client = sync_client(settings)
        for queue in settings.known_queues:
            messages = queued(queue, client)
            found += _calls(job_id, islice(messages, MOST_MESSAGES), queue)
            whole = whole and not any(True for _ in islice(messages, 1))
        if client.hlen(UNACKED) <= MOST_MESSAGES:
            found += _calls(job_id, held(client), "")
        else:
            whole = False
    return found, whole


def put_aside(job_id: str, calls: Iterable[str], settings: Settings) -> list[LiveCall]:
    """Those of some calls that wait apart from their queues: for a time far ahead, or for their agent's turn."""
    wanted, keys, found = list(calls)[:MOST_ASIDE], Keys(settings.key_prefix), list[LiveCall]()
    with translated(settings):
        client = sync_client(settings)
        agents = [agent.decode(errors="replace") for agent in client.zrange(keys.lines(), 0, MOST_ASIDE - 1)]
        with client.pipeline(transaction=False) as pipe:
            pipe.hmget(f"{UNACKED}_later_messages", wanted)
            for agent in agents:
                pipe.hmget(keys.parked(agent), [f"m:{call}" for call in wanted])
            later, *parked = pipe.execute()
    for text in filter(None, later):
        start = text.find(b'{"body"')  # of a message as kombu writes it, within what else is kept of it
        with contextlib.suppress(ValueError, RecursionError):
            message, _ = json.JSONDecoder().raw_decode(text[max(0, start):].decode("utf-8", "replace"))
            found += (replace(call, later=True) for call in _calls(job_id, [message], ""))
    for text in (text for texts in parked for text in texts if text):
        with contextlib.suppress(LookupError, TypeError, AttributeError):
            signature: Any = readable(text)
            data, options = signature["args"][-1], signature["options"]
            found.append(LiveCall(id=options["task_id"], label=data["label"], parent=options.get("parent_id") or "",
                                  queue=options.get("queue") or options.get("routing_key") or "",
                                  sent=data.get("sent"), retries=options.get("retries") or 0))
    return found


def _calls(job_id: str, messages: Iterable[Any], queue: str) -> Iterator[LiveCall]:
    for message in messages:
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # of another tool
            headers = message["headers"]
            if headers.get("task") != "callsheet.reply":
                continue
            data = loads(base64.b64decode(message["body"]))[0][-1]
            if belongs(job_id, headers["id"], headers.get("root_id"), headers.get("parent_id"), data):
                yield LiveCall(id=headers["id"], label=data["label"], parent=headers.get("parent_id") or "",
                               queue=queue, sent=data.get("sent"), retries=headers.get("retries") or 0)
