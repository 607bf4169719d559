"""A job's tree: jobs, the steps that they are made of, calls, and the jobs that these made."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from celery import states

from callsheet.resources.accounts import Usage

RUNNING = "RUNNING"
TAKEN = "TAKEN"
WAITING = "WAITING"
LATER = "LATER"
UNKNOWN = "UNKNOWN"
NOT_RUN = "NOT RUN"

#: What each state means; Celery's beside ours.
MEANINGS = {
    RUNNING: "runs on a worker", TAKEN: "a worker has taken it, and it waits for a slot",
    WAITING: "waits in its queue, or for its agent's turn", LATER: "its time, or its turn after others, has not come",
    UNKNOWN: "nothing is known of it: on its way, or lost with a worker",
    NOT_RUN: "was never begun", states.SUCCESS: "ended well", states.FAILURE: "failed", states.REVOKED: "was cancelled",
    states.RETRY: "failed, and is tried again",
}


@dataclass(slots=True)
class CallNode:
    """One call of an agent; a step of a pipeline that belongs to no agent has no label."""

    id: str  # of its task
    label: str = ""  # the agent, as `Class(name)`
    status: str = UNKNOWN  # one of MEANINGS
    queue: str = ""  # that it was sent to, or ""
    worker: str = ""  # name of the worker that has or had it, or ""
    pid: int = 0  # of its process, or 0
    sent: float | None = None  # unix time, as those below, or None
    started: float | None = None  # of the last try
    ended: float | None = None  # of the last try
    retries: int = 0  # tries before the last one
    idle: float = 0.0  # seconds in which it ran and waited for others
    usage: Usage = field(default_factory=Usage)  # what its own outbound calls took
    error: str = ""  # what went wrong, on one line
    jobs: list["JobNode"] = field(default_factory=list)  # that it made
    more_jobs: int = 0  # that it made beyond these

    def waited(self, now: float) -> float | None:
        """Seconds from when it was sent until it began, or until now; None where that is not known."""
        if self.sent is None:
            return None
        return max(0.0, (self.started if self.started is not None else now) - self.sent)

    def ran(self, now: float) -> float | None:
        """Seconds from when it began until it ended, or until now; None where it has not begun."""
        if self.started is None:
            return None
        return max(0.0, (self.ended if self.ended is not None else now) - self.started)


@dataclass(slots=True)
class Steps:
    """Parts of a pipeline."""

    beside: bool  # whether they run at once, rather than one after another
    parts: list["Part"]  # calls, or steps again


Part = CallNode | Steps


@dataclass(slots=True)
class JobNode:
    """A job."""

    id: str  # of the job
    label: str  # what runs
    status: str  # one of MEANINGS
    part: Part  # its call, or a pipeline's steps
    error: str = ""  # what went wrong, on one line
    usage: Usage = field(default_factory=Usage)  # what the job took, with all jobs below it; of the outermost job only
    looked: float = 0.0  # unix time at which this was so
    left_out: int = 0  # calls that are not in the tree, because there are too many

    @property
    def is_pipeline(self) -> bool:
        """Whether it is more than one call."""
        return isinstance(self.part, Steps)

    def own_calls(self) -> Iterator[CallNode]:
        """Its calls, without those of jobs below it."""
        return calls_in(self.part)

    def all_calls(self) -> Iterator[CallNode]:
        """Its calls and those below it, an agent's each."""
        for call in self.own_calls():
            if call.label:
                yield call
            for job in call.jobs:
                yield from job.all_calls()


def calls_in(part: Part) -> Iterator[CallNode]:
    """The calls of a part, in order."""
    if isinstance(part, CallNode):
        yield part
    else:
        for inner in part.parts:
            yield from calls_in(inner)


def seen(part: Part) -> Part | None:
    """A part as it is shown: without steps of no agent that went well, and without steps of one part."""
    if isinstance(part, CallNode):
        return part if part.label or part.error else None
    parts: list[Part] = []
    for inner in part.parts:
        kept = seen(inner)
        if isinstance(kept, Steps) and not kept.beside and not part.beside:
            parts += kept.parts
        elif kept is not None:
            parts.append(kept)
    if len(parts) <= 1:
        return parts[0] if parts else None
    return Steps(part.beside, parts)
