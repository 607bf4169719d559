"""How one call is to be made: the options that `submit` takes beside the agent's own arguments."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from callsheet.errors import UnknownQueue, UsageError
from callsheet.settings.queues import wrong_with_name

LONGEST_ID = 255  # characters
_LONGEST = 1e9  # seconds: what workers take for a time, and can be added to today's date


def _is_text(value: Any, longest: float = inf) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()  # half a character is not


def _is_number(value: Any, kind: Any = (int, float), most: float = _LONGEST) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= most


def is_id(value: Any) -> bool:
    """Whether a value can be a job's id."""
    return _is_text(value, LONGEST_ID)


#: What each option takes, and how that is said.
_TAKEN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "queue": (lambda value: isinstance(value, str) and value != "", "a queue's name is needed"),  # more with the call
    "priority": (lambda value: _is_number(value, int, 9), "a whole number from 0 (first) to 9 (last) is needed"),
    "expires": (lambda value: isinstance(value, datetime) or (_is_number(value) and value > 0),
                "seconds over 0, a billion at most, or a time, are needed"),
    "countdown": (_is_number, "seconds from now, 0 to a billion, are needed"),
    "eta": (lambda value: isinstance(value, datetime), "a datetime is needed"),
    "timeout": (lambda value: _is_number(value) and value > 0, "seconds over 0, a billion at most, are needed"),
    "retries": (lambda value: _is_number(value, int), "a whole number, 0 or more, is needed"),
    "job_id": (is_id, f"a text of 1 to {LONGEST_ID} printable characters is needed"),
    "tenant": (_is_text, "a text of printable characters is needed"),
}


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """Options of one call.

    Attributes:
        queue: the queue, in place of the agent's own.
        priority: 0 (first) to 9 (last); Redis queues have steps at 0, 3, 6 and 9. Also among calls that wait for an
            endpoint.
        expires: seconds from now, or the time, with its zone, after which a call not yet taken is dropped.
        countdown: seconds to wait before it may start.
        eta: the time, with its zone, at which it may start.
        timeout: seconds that the reply may take; then it is cancelled and the job fails with AgentTimeout.
        retries: how often a reply that raised is tried again, with growing pauses.
        job_id: the job's id, in place of a new one.
        tenant: for whom it is made; calls that wait for an endpoint take turns by tenant. Jobs that the agent makes
            have the same one, unless they are given another.

    Raises:
        UsageError: an option that cannot be right.
    """

    queue: str | None = None
    priority: int | None = None
    expires: float | datetime | None = None
    countdown: float | None = None
    eta: datetime | None = None
    timeout: float | None = None
    retries: int = 0
    job_id: str | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        for name, (takes, needed) in _TAKEN.items():
            value = getattr(self, name)
            if value is None and name != "retries":
                continue
            if not takes(value):
                raise UsageError(f"{name}={value!r:.80}: {needed}.")
            if isinstance(value, datetime) and value.tzinfo is None:
                raise UsageError(f"{name}={value!r} says no time zone, and workers may be in another: give one, as in "
                                 "datetime.now(UTC) + timedelta(hours=1), or value.astimezone() for this machine's.")
        if self.countdown is not None and self.eta is not None:
            raise UsageError("countdown and eta both say when to start: give one of them.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "CallOptions":
        """Options by name.

        Raises:
            UsageError: a name or a value that cannot be right.
        """
        unknown = given.keys() - OPTION_NAMES
        if unknown:
            raise UsageError(f"{', '.join(sorted(unknown))}: no such option of a call. There are "
                             f"{', '.join(sorted(OPTION_NAMES))}.{meant(sorted(unknown))}")
        return cls(**given)

    def queue_for(self, default: str, label: str, known: Sequence[str]) -> str:
        """The queue of an agent's call.

        Raises:
            UnknownQueue: it is none of them.
        """
        queue = self.queue or default
        if queue not in known and (wrong := wrong_with_name(queue)):
            raise UnknownQueue(f"The queue of {label}: {wrong}.")
        if queue not in known:
            raise UnknownQueue(f"The queue {queue!r} of {label} is not known; known are {', '.join(known)}. Name it in "
                               "CALLSHEET_QUEUES (comma-separated), and start a worker for it with -Q.")
        return queue

    def start_time(self) -> datetime | None:
        """The time before which it may not start, or None."""
        if self.countdown:
            return datetime.now(UTC) + timedelta(seconds=self.countdown)
        return self.eta


def meant(names: Iterable[str]) -> str:
    """The options that misspelt names may be meant for, as a sentence to follow another; "" if none is near."""
    near = [found for name in names for found in difflib.get_close_matches(name, sorted(OPTION_NAMES), 1, 0.7)]
    return f" Did you mean the option{'s'[:len(near) > 1]} {', '.join(near)} of the call?" if near else ""


OPTION_NAMES = frozenset(field.name for field in fields(CallOptions))
