"""The workers' command that interrupts calls; `job.interrupt(msg)` sends it."""

from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import control_command

from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader
from callsheet.settings import get_settings
from callsheet.tasks.interrupts import COMMAND, running
from callsheet.tasks.reply import ReplyTask


@control_command(name=COMMAND, args=[("calls", list), ("msg", str)], signature="<ids> [msg]")
def interrupt_calls(state: Any, calls: list[str], msg: Any = None, **_: Any) -> dict[str, list[str]]:
    """Interrupt those of the calls that run here: their agents' `handle_interrupt` answers.

    Returns:
        The ids of those that were interrupted, and of those that run here but cannot be.
    """
    said = Reader(AllowList(get_settings().modules)).read(msg)
    interrupted = [call for call in calls if (entry := running(call)) and entry.interrupt(said)]
    active = {request.id for request in tuple(worker_state.active_requests) if request.task.name == ReplyTask.name}
    return {"interrupted": interrupted, "refused": sorted(active.intersection(calls).difference(interrupted))}
