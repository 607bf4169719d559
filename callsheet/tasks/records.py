"""The record of a call: what is noted while it runs, stored with its result, and read again."""

import os
import time
from dataclasses import dataclass
from typing import Any

from callsheet.resources.accounts import Usage
from callsheet.resources.context import CallNotes
from callsheet.resources.timings import Outcome, call_ended

_NOTHING = Usage()
_NOTED = "callsheet_noted"  # attribute of Celery's request


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """One call of a job that has ended, or one that is to be tried again.

    Attributes:
        agent: as `Class(name)`.
        queue: that it was sent to.
        worker: Celery's name of the worker that ran it.
        pid: of the process.
        sent: unix time, by the sender's clock.
        started: unix time of the last try, by the worker's clock.
        ended: unix time, by the worker's clock.
        status: Celery's state.
        retries: tries before the last one.
        idle: seconds of the last try in which it waited: for jobs of its own, for its turn at an endpoint, or between
            two tries of a request.
        usage: what the last try's own outbound calls took, those of its children not included.
        children: ids of the jobs that the last try made, up to 500.
        more_children: how many it made beyond those.
    """

    task_id: str
    agent: str
    queue: str
    worker: str
    pid: int
    sent: float
    started: float
    ended: float
    status: str
    retries: int = 0
    idle: float = 0.0
    usage: Usage = _NOTHING
    children: tuple[str, ...] = ()
    more_children: int = 0

    @classmethod
    def of(cls, meta: dict[str, Any]) -> "CallRecord | None":
        """The record in a stored result; None where it has none."""
        data = meta.get("call")
        if not isinstance(data, dict):
            return None
        given = dict(data)
        numbers, children = given.pop("usage", None), given.pop("children", ())
        try:
            found = cls(task_id=meta["task_id"], status=meta["status"], more_children=given.pop("more", 0),
                        usage=Usage.from_numbers(numbers) if numbers else Usage(), children=tuple(children), **given)
            return found if isinstance(found.started, (int, float)) else None
        except (TypeError, ValueError, LookupError, AttributeError):  # something else has written it
            return None


_running: dict[str, "Noted"] = {}


def notes_of(call_id: str) -> CallNotes | None:
    """The notes of a call that runs in this process; None of any other."""
    found = _running.get(call_id)
    return found.notes if found is not None else None


class Noted:
    """Keeps the record of a call while its task runs."""

    def __init__(self, request: Any, label: str, sent: float | None, started: float | None = None,
                 pid: int | None = None) -> None:
        self.notes = CallNotes()
        self._request, self._label, self._pid = request, label, pid
        self._started = time.time() if started is None else started
        self._sent = self._started if sent is None else sent
        self._ended = 0.0
        setattr(request, _NOTED, self)
        if pid is None:
            _running[request.id] = self

    def end(self) -> None:
        """The reply has ended."""
        self._ended = time.time()
        if _running.get(self._request.id) is self:
            del _running[self._request.id]

    def count(self, outcome: Outcome) -> None:
        """How it ended, for metrics."""
        ended = self._ended or time.time()
        queue = (self._request.delivery_info or {}).get("routing_key") or ""
        call_ended(self._label, queue, self._started - self._sent, ended - self._started, outcome)

    def to_data(self) -> dict[str, Any]:
        """As it is stored."""
        request = self._request
        data = {"agent": self._label, "queue": request.delivery_info.get("routing_key"), "worker": request.hostname,
                "pid": self._pid or os.getpid(), "sent": self._sent, "started": self._started,
                "ended": self._ended or time.time(), **self.notes.to_data()}
        if request.retries:
            data["retries"] = request.retries
        return data


def noted(request: Any) -> Noted | None:
    """What is noted of the call that a request is for; None of a task that is no agent's call, or has not begun."""
    found = getattr(request, _NOTED, None)
    return found if isinstance(found, Noted) else None
