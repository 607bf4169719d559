"""A job's tree as rows, one below the other, for the terminal and for the page; as JSON data; its numbers in words."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from callsheet.resources.accounts import Usage
from callsheet.tasks.tree.nodes import CallNode, JobNode, Part, Steps, seen

LONGEST_LABEL = 48
"""Characters of a label."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a tree."""

    branches: tuple[str, ...]  # what is drawn before the label: "│  ", "   ", "├─ " or "└─ " for each level
    label: str  # what the line is about
    call: CallNode | None = None  # the call, if it is one
    job: JobNode | None = None  # the job that begins here, if one does

    def error(self, whole: JobNode) -> str:
        """What went wrong here; the error of the whole tree's job is not told in a row."""
        if self.call is not None:
            return self.call.error
        return self.job.error if self.job is not None and self.job is not whole else ""


@dataclass(frozen=True, slots=True)
class Sums:
    """What all calls of a tree come to."""

    calls: int  # calls of agents
    workers: int  # that ran them
    retries: int  # of calls, not of requests
    waited: float  # seconds between sending and beginning, of all calls together
    ran: float  # likewise between beginning and end
    idle: float  # of these, seconds in which they waited for others
    begin: float  # unix time of the first thing that is known
    end: float  # unix time of the last one; of a job that goes on, now
    usage: Usage  # what the job took


def rows(job: JobNode) -> list[Row]:
    """The tree's lines, the job first."""
    return list(_of_job(job, ()))


def _of_job(job: JobNode, branches: tuple[str, ...]) -> Iterator[Row]:
    part = seen(job.part) if job.is_pipeline else job.part
    if isinstance(part, CallNode) and not job.is_pipeline:
        yield from _of_call(part, branches, job)
        return
    yield Row(branches, job.label.partition("(")[0], None, job)  # what it is made of comes below
    inner: list[Part] = [] if part is None else part.parts if isinstance(part, Steps) and not part.beside else [part]
    left = [f"{job.left_out:,} more calls (--most)"] if job.left_out else []
    yield from _below(branches, inner, left)


def _of_call(call: CallNode, branches: tuple[str, ...], job: JobNode | None = None) -> Iterator[Row]:
    yield Row(branches, cut(call.label or f"task {call.id}"), call, job)
    left = [f"{call.more_jobs:,} more jobs"] if call.more_jobs else []
    yield from _below(branches, call.jobs, left)


def _below(branches: tuple[str, ...], items: "list[Part] | list[JobNode]", notes: list[str]) -> Iterator[Row]:
    trunk = (*branches[:-1], "│  " if branches[-1] == "├─ " else "   ") if branches else ()
    count = len(items) + len(notes)
    for number, item in enumerate((*items, *notes)):
        here = (*trunk, "├─ " if number < count - 1 else "└─ ")
        if isinstance(item, str):
            yield Row(here, item)
        elif isinstance(item, JobNode):
            yield from _of_job(item, here)
        elif isinstance(item, CallNode):
            yield from _of_call(item, here)
        else:
            yield Row(here, f"{len(item.parts):,} at once" if item.beside else "one after another")
            yield from _below(here, item.parts, [])


def sums(job: JobNode) -> Sums:
    """What all calls of a tree come to."""
    calls, now = list(job.all_calls()), job.looked
    times = [time for call in calls for time in (call.sent, call.started, call.ended) if time is not None]
    going = any(call.ended is None and call.started is not None for call in calls)
    return Sums(
        calls=len(calls), workers=len({call.worker for call in calls if call.worker}),
        retries=sum(call.retries for call in calls),
        waited=sum(call.waited(now) or 0.0 for call in calls if call.started is not None or is_waiting(call)),
        ran=sum(call.ran(now) or 0.0 for call in calls), idle=sum(call.idle for call in calls),
        begin=min(times, default=now), end=now if going or not times else max(times), usage=job.usage)


def is_waiting(call: CallNode) -> bool:
    """Whether it has been sent and has not begun."""
    return call.status in ("WAITING", "TAKEN")


def seconds(value: float | None) -> str:
    """A time for people."""
    if value is None:
        return ""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms" if value >= 0.001 or not value else "< 1 ms"
    if value < 99.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def tokens(usage: Usage) -> str:
    """A call's tokens for people: in and out."""
    return f"{usage.input_tokens:,} → {usage.output_tokens:,}" if usage.total_tokens else ""


def cost(usage: Usage) -> str:
    """A call's cost for people."""
    return f"{usage.cost:,.4f}" if usage.cost else ""


def remarks(call: CallNode) -> list[str]:
    """What else there is to say of a call."""
    found = []
    if call.retries:
        found.append(f"{call.retries} {'retry' if call.retries == 1 else 'retries'}")
    if call.usage.retries:
        found.append(f"{call.usage.retries} requests sent again")
    if call.idle >= 0.001:
        found.append(f"idle {seconds(call.idle)}")
    return found


def cut(text: str) -> str:
    """A label, on one line and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_LABEL else f"{line[:LONGEST_LABEL - 1]}…"


def in_words(found: Sums) -> str:
    """Waiting against running, in one line."""
    words = [f"{found.calls:,} {'call' if found.calls == 1 else 'calls'}"]
    if found.workers:
        words.append(f"on {found.workers:,} {'worker' if found.workers == 1 else 'workers'}")
    text = " ".join(words) + f" · waited {seconds(found.waited)} in queues · ran {seconds(found.ran)}"
    if found.idle >= 0.001:
        text += f", of which {seconds(found.idle)} idle"
    more = "1 retry" if found.retries == 1 else f"{found.retries:,} retries"
    return text + (f" · {more}" if found.retries else "")


def as_data(job: JobNode) -> dict[str, Any]:
    """The tree: times in seconds, moments as unix times."""
    found = sums(job)
    return {**_job(job), "calls": found.calls, "workers": found.workers, "waited": found.waited, "ran": found.ran,
            "idle": found.idle, "begin": found.begin, "end": found.end, "looked": job.looked,
            "usage": asdict(found.usage)}


def _job(job: JobNode) -> dict[str, Any]:
    return {"id": job.id, "label": job.label, "status": job.status, "error": job.error, "left_out": job.left_out,
            "part": _part(job.part)}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, CallNode):
        data = {name: getattr(part, name) for name in (
            "id", "label", "status", "queue", "worker", "pid", "sent", "started", "ended", "retries", "idle", "error",
            "more_jobs")}
        return {**data, "usage": asdict(part.usage), "jobs": [_job(job) for job in part.jobs]}
    return {"beside" if part.beside else "then": [_part(inner) for inner in part.parts]}
