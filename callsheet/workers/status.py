"""The workers' commands beside Celery's: how a worker is, what it holds, and interrupting its calls."""

import functools
import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import control_command, inspect_command
from pydantic import BaseModel, ValidationError

import callsheet
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader
from callsheet.settings import get_settings
from callsheet.tasks import control
from callsheet.tasks.control import UNREAD
from callsheet.tasks.records import notes_of
from callsheet.tasks.reply import ReplyTask
from callsheet.tasks.request import FIRST_PID
from callsheet.tasks.tree.live import COMMAND, belongs
from callsheet.workers.gauges import gauge_of, pool_name, slot_numbers
from callsheet.workers.metrics.relay import all_processes

STATUS = "callsheet_status"
"""The command that tells how a worker is."""

LOAD = "callsheet_load"
"""The command that tells how loaded it is; `callsheet scale` asks it."""

MOST_AGENTS = 50
"""Agents that a worker tells of, those with most calls."""

_MODEL_NUMBERS = {"calls": 0, "errors": 1, "input_tokens": 2, "output_tokens": 2, "cost": 3}
_PACKAGES = ("celery", "kombu", "redis", "httpx", "pydantic")


class _Slots(BaseModel):
    slots: float
    slots_used: float
    slots_waiting: float
    parked: float
    loop_lag_seconds: float


class _Status(BaseModel):
    pool: str
    queues: list[str]
    slots: _Slots
    tasks: int
    agents: dict[str, tuple[float, float, float]]
    models: dict[str, tuple[float, float, float, float]]
    autoscale: dict[str, Any] | None
    modules: list[str]
    time: float
    versions: dict[str, str]


def told(answers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Workers' answers to STATUS by their names; of what is none of this version's, UNREAD alone."""
    found = {}
    for name, answer in sorted(answers.items()):
        known = answer if isinstance(answer, dict) else {}
        try:
            _Status.model_validate(known)
        except ValidationError:
            known = {UNREAD: str(known.get(UNREAD, "stock worker, or another version"))}
        found[name] = known
    return found


@inspect_command(name=COMMAND, args=[("job", str)], signature="<job id>")
def calls_of_job(state: Any, job: str, **_: Any) -> list[dict[str, Any]]:
    """The calls of a job, and of jobs below it, that this worker has."""
    found = []
    scheduled = [waiting.entry.args[0] for waiting in tuple(state.consumer.timer.schedule.queue) if waiting.entry.args]
    for request, later in (*((one, True) for one in scheduled),
                           *((one, False) for one in tuple(worker_state.reserved_requests))):
        if not getattr(request, "agent", ""):
            continue
        data = request.args[-1]
        context = request.request_dict
        if belongs(job, request.id, context.get("root_id"), context.get("parent_id"), data):
            found.append({**_call(request, data, context), "later": later})
    return found


def _call(request: Any, data: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    pid, notes = request.worker_pid or 0, notes_of(request.id)
    told = notes.to_data() if notes is not None else {}  # what this process knows of a call that it runs
    return {"id": request.id, "label": data["label"], "parent": context.get("parent_id") or "",
            "queue": (request.delivery_info or {}).get("routing_key") or "", "sent": data.get("sent"),
            "worker": request.hostname, "pid": pid if pid < FIRST_PID else os.getpid(),
            "started": request.time_start, "retries": context.get("retries") or 0,
            "children": list(told.get("children", ())), "more": told.get("more", 0), "idle": told.get("idle", 0.0)}


@inspect_command(name=STATUS)
def status(state: Any, **_: Any) -> dict[str, Any]:
    """How this worker is: slots, queues, agents, endpoints, versions, its clock."""
    pool, settings = state.consumer.pool, get_settings()
    totals, now = all_processes()
    models: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])  # calls, errors, tokens, cost
    agents: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])  # ended, failed, seconds
    for key, value in totals.items():
        if key[0] == "ended":
            agents[key[1]][0] += value
            agents[key[1]][1] += value if key[2] == "failed" else 0
        elif key[:2] == ("spread", "reply") and key[3] == "sum":
            agents[key[2]][2] += value
        elif key[0] == "usage" and key[-1] in _MODEL_NUMBERS:
            models[key[2]][_MODEL_NUMBERS[key[-1]]] += value
    busiest = sorted(agents.items(), key=lambda item: -item[1][0])[:MOST_AGENTS]
    slots, last = slot_numbers(pool), _decision(state)
    return {
        "pool": pool_name(pool), "pid": os.getpid(), "queues": list(state.app.amqp.queues.consume_from),
        "slots": {name: slots.get(name, 0) for name in (
            "slots", "slots_used", "slots_waiting", "parked", "loop_lag_seconds", "loop_blocked")},
        "tasks": sum(worker_state.total_count.values()), "agents": dict(busiest),
        "models": dict(models),
        "autoscale": last and {"size": last.size, "need": last.need, "bound": str(last.bound)},
        "turns": {key[1]: value for key, value in now.items() if key[0] == "waiting"},
        "left_alone": [key[1] for key, value in now.items() if key[0] == "left_alone" and value],
        "modules": list(settings.modules), "time": time.time(),
        "versions": versions(),
    }


def _decision(state: Any) -> Any:
    """What the autoscaler decided last, or None."""
    return getattr(getattr(state.consumer.controller, "autoscaler", None), "last_decision", None)


@inspect_command(name=LOAD)
def load(state: Any, **_: Any) -> dict[str, Any]:
    """What this worker holds: slots or processes, calls that run, wait and have ended, and how long calls waited."""
    last = _decision(state)
    return {**asdict(gauge_of(state.consumer.pool).read()), "waited": last.load.waited if last is not None else None}


@control_command(name=control.COMMAND, args=[("calls", list), ("msg", str)], signature="<ids> [msg]")
def interrupt_calls(state: Any, calls: list[str], msg: Any = None, **_: Any) -> dict[str, list[str]]:
    """Interrupt those of the calls that run here: their agents' `handle_interrupt` answers.

    Returns:
        The ids of those that were interrupted, and of those that run here but cannot be.
    """
    said = Reader(AllowList(get_settings().modules)).read(msg)
    interrupted = [call for call in calls if (entry := control.running(call)) and entry.interrupt(said)]
    active = {request.id for request in tuple(worker_state.active_requests) if request.task.name == ReplyTask.name}
    return {"interrupted": interrupted, "refused": sorted(active.intersection(calls).difference(interrupted))}


@functools.cache
def versions() -> dict[str, str]:
    """The versions of what this process runs on."""
    return {"callsheet": callsheet.__version__, "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES}}
