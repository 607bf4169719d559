"""Makes nodes of a tree from what is stored of a call, or told of it."""

from typing import Any

from celery import states

from callsheet.errors import JobError
from callsheet.tasks.records import CallRecord
from callsheet.tasks.results import failure, ready
from callsheet.tasks.shown import hidden
from callsheet.tasks.tree.live import LiveCall
from callsheet.tasks.tree.nodes import LATER, RUNNING, TAKEN, UNKNOWN, WAITING, CallNode, Part, Steps

LONGEST_ERROR = 300
"""Characters of an error that are shown."""


def filled(call_id: str, label: str, meta: dict[str, Any] | None, live: LiveCall | None) -> CallNode:
    """A call."""
    node = CallNode(call_id, label)
    record = CallRecord.of(meta) if meta is not None else None
    if record is not None:
        node.label, node.queue, node.worker, node.pid = record.agent, record.queue or "", record.worker, record.pid
        node.sent, node.started, node.ended = record.sent, record.started, record.ended
        node.retries, node.idle, node.usage = record.retries, record.idle, record.usage
        node.more_jobs = record.more_children
    if meta is not None:
        node.status = str(meta["status"])
        if node.status in states.EXCEPTION_STATES:
            node.error = error_of(meta, node.label, call_id)
    if live is not None and (meta is None or not ready(meta)):
        put_live(node, live)
    return node


def put_live(node: CallNode, live: LiveCall) -> CallNode:
    """The node with what a worker told of its call."""
    node.status = WAITING if not live.worker else TAKEN
    if live.started is not None or live.later:
        node.status = RUNNING if live.started is not None else LATER
    node.label, node.queue, node.worker, node.pid = live.label, live.queue or node.queue, live.worker, live.pid
    node.sent, node.started, node.ended = live.sent, live.started, None
    node.retries, node.idle, node.more_jobs = live.retries, live.idle, live.more
    return node


def children_of(meta: dict[str, Any] | None, live: LiveCall | None) -> list[str]:
    """The ids of the jobs that a call made."""
    record = CallRecord.of(meta) if meta is not None else None
    return list(dict.fromkeys((*(record.children if record else ()), *(live.children if live else ()))))


def error_of(meta: dict[str, Any], label: str, job_id: str) -> str:
    """What a stored failure says, on one line, short and without secrets."""
    error = failure(meta, label, job_id)
    text = error.message if isinstance(error, JobError) else str(error)
    kind = getattr(error, "remote_type", "").rpartition(".")[2]
    if kind and text.startswith(f"{label} raised {kind}: "):
        text = text.removeprefix(f"{label} raised ")
    line = " ".join(str(hidden(text)).split())
    return line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]}…"


def shaped(shape: Any, calls: list[CallNode]) -> Part | None:
    """The part of a pipeline that a shape of its plan describes; None where all its calls are left out."""
    if isinstance(shape, int):
        return calls[shape] if shape < len(calls) else None
    parts = [part for inner in shape[1:] if (part := shaped(inner, calls)) is not None]
    return Steps(shape[0] == "beside", parts) if parts else None


def status_of(meta: dict[str, Any] | None, calls: list[CallNode]) -> str:
    """How a pipeline's job is: as its last call has ended, or what most goes on in it."""
    if meta is not None and ready(meta):
        return str(meta["status"])
    found = {call.status for call in calls}
    for status in (RUNNING, states.RETRY, TAKEN, WAITING):
        if status in found:
            return status
    return RUNNING if found.intersection(states.READY_STATES) else LATER if found == {LATER} else UNKNOWN
