"""The call of an agent that runs here: whose it is, what is noted of it, and what it does before it waits or sends.

Whatever runs an agent sets it.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

MOST_CHILDREN = 500
"""Jobs of one call whose ids are kept; of more, their number."""

MOST_PARENTS = 16
"""Jobs above a job that are remembered: an agent may submit its own next call for ever."""

T = TypeVar("T")


class CallNotes:
    """Notes of one call; of its own loop and the threads that it waits for.

    Attributes:
        children: ids of the jobs that it made.
        more: how many it made beyond those.
        numbers: what its own outbound calls took, as `Usage.from_numbers` takes it; None where it made none.
        idle: seconds in which it waited for jobs of its own, for its turn at an endpoint, or between two tries.
    """

    __slots__ = ("_away", "_since", "children", "idle", "more", "numbers")

    def __init__(self) -> None:
        self.children: list[str] = []
        self.more = 0
        self.numbers: list[int] | None = None
        self.idle = 0.0
        self._away = 0
        self._since = 0.0

    def made(self, job_id: str) -> None:
        """It made a job."""
        if len(self.children) < MOST_CHILDREN:
            self.children.append(job_id)
        else:
            self.more += 1

    def spent(self, numbers: list[int]) -> None:
        """One of its outbound calls took this."""
        known = self.numbers
        self.numbers = numbers if known is None else [a + b for a, b in zip(known, numbers, strict=True)]

    def leave(self) -> None:
        """A part of it begins to wait."""
        self._away += 1
        if self._away == 1:
            self._since = time.monotonic()

    def come_back(self) -> None:
        """A part of it waits no more."""
        self._away -= 1
        if not self._away:
            self.idle += time.monotonic() - self._since

    def to_data(self) -> dict[str, Any]:
        """What there is to tell, as JSON data."""
        if not self.children and self.numbers is None and not self.idle and not self._away:
            return {}
        idle = self.idle + (time.monotonic() - self._since if self._away else 0.0)
        told = {"children": self.children, "more": self.more, "usage": self.numbers, "idle": round(idle, 6)}
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """The call of an agent in whose course a request is made.

    Attributes:
        job: id of the job that the call belongs to; of the outermost one, where a reply awaits other agents.
        call: id of the call's own Celery task, or of the job inline.
        root: id of the outermost Celery task in whose course it runs, its own if there is none.
        agent: the agent, as `Class(name)`.
        agent_id: its id, if it has state.
        tenant: for whom it is made; waiting calls of several tenants take turns.
        priority: 0 (first) to 9 (last), or None where nobody said.
        deadline: unix time in seconds after which nobody wants the answer, or None.
        local: whether it runs inline, without Redis.
        parents: ids of the jobs in whose course the job was submitted, the outermost first; what it uses counts as
            theirs too. Of a chain of over MOST_PARENTS, the outermost and the nearest.
        held: ids of the agents with state whose replies wait for this call, and its own, if it has state.
        notes: kept of the call while it runs on a worker.
        steps: numbers what the call does to others, so that a second run of it does the same under the same numbers.
    """

    job: str | None = None
    call: str | None = None
    root: str | None = None
    agent: str | None = None
    agent_id: str | None = None
    tenant: str | None = None
    priority: int | None = None
    deadline: float | None = None
    local: bool = False
    parents: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    notes: CallNotes | None = field(default=None, compare=False, repr=False)
    steps: Iterator[int] = field(default_factory=count, compare=False, repr=False)


NO_CALL = CallContext()
"""The context of a request that no agent makes."""

_current: ContextVar[CallContext] = ContextVar("callsheet_call", default=NO_CALL)


def current_call() -> CallContext:
    """The call that runs here; `NO_CALL` outside of any."""
    return _current.get()


def made_here(job_id: str) -> None:
    """Note that the call that runs here, if one does, has made a job."""
    notes = current_call().notes
    if notes is not None:
        notes.made(job_id)


def child_context(tenant: str | None, priority: int | None, awaited: bool) -> CallContext:
    """What a call made here hands on to the worker that will run it.

    Args:
        tenant: its own, or None.
        priority: its own, or None.
        awaited: whether the caller waits for it, and so shares its deadline and its job with it.
    """
    mine = current_call()
    parents = mine.parents
    if mine.job and not awaited:
        nearest = (*parents, mine.job)
        parents = nearest if len(nearest) <= MOST_PARENTS else (nearest[0], *nearest[1 - MOST_PARENTS:])
    return CallContext(job=mine.job if awaited else None, parents=parents,
                       tenant=mine.tenant if tenant is None else tenant,
                       priority=mine.priority if priority is None else priority,
                       deadline=mine.deadline if awaited else None, held=mine.held if awaited else ())


def lineage(job_id: str | None = None) -> dict[str, str]:
    """Celery's `parent_id` and `root_id` for what is sent here: the call that runs here, and the outermost.

    Celery finds them by the thread's current task, but calls are also sent by threads that run none.

    Args:
        job_id: the root of what no call of an agent sends, so that all calls of a job have one.
    """
    mine = current_call()
    if mine.call and not mine.local:
        return {"parent_id": mine.call, "root_id": mine.root or mine.call}
    return {"root_id": job_id} if job_id else {}


class call_context:
    """Make requests in the block, and in tasks begun there, belong to `context`: `with call_context(context): ...`."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: CallContext) -> None:
        self._context = context

    def __enter__(self) -> CallContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *exc_info: object) -> None:
        _current.reset(self._token)


_parking: list[Callable[[], AbstractAsyncContextManager[object]]] = [nullcontext]


def provide_parking(place: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Have waits for a turn give back meanwhile what they hold; called once by the layer that owns the slots."""
    _parking[0] = place


def parking() -> AbstractAsyncContextManager[object]:
    """The context manager to put around a wait of unknown length."""
    return _parking[0]()


def _free() -> None:
    return None


_fence: list[Callable[[], Awaitable[None] | None]] = [_free]


def provide_fence(check: Callable[[], Awaitable[None] | None]) -> None:
    """Have `check` called before a request goes out; it gives what to wait for, which may end the call, or None."""
    _fence[0] = check


def fence() -> Awaitable[None] | None:
    """What to wait for before a request goes out, if anything: its call may be another worker's by now."""
    return _fence[0]()


def _called(function: Callable[[], Any]) -> Any:
    return function()


_unseating: list[Callable[[Callable[[], Any]], Any]] = [_called]


def provide_unseating(run: Callable[[Callable[[], Any]], Any]) -> None:
    """Have `run` call what runs in a thread of its own; called once by the layer that owns the slots."""
    _unseating[0] = run


def unseated(function: Callable[[], T]) -> T:
    """Run a function that was handed a call's context but not its slot: one in a thread of its own."""
    result: T = _unseating[0](function)
    return result
