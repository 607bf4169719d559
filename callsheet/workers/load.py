"""The workers' command that tells how loaded they are; `callsheet scale` asks it."""

from dataclasses import asdict
from typing import Any

from celery.worker.control import inspect_command

from callsheet.workers.gauges import gauge_of

COMMAND = "callsheet_load"


@inspect_command(name=COMMAND)
def load(state: Any, **_: Any) -> dict[str, Any]:
    """What this worker holds: slots or processes, calls that run, wait and have ended, and how long calls waited."""
    consumer = state.consumer
    last = getattr(getattr(consumer.controller, "autoscaler", None), "last_decision", None)
    return {**asdict(gauge_of(consumer.pool).read()), "waited": last.load.waited if last is not None else None}
