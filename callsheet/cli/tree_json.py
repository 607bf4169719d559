"""A job's tree as JSON data."""

from dataclasses import asdict
from typing import Any

from callsheet.cli.tree_rows import sums
from callsheet.tasks.tree.nodes import CallNode, JobNode, Part


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
