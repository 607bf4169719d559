"""Which messages a worker holds until their time, as Celery does, and which wait in Redis; how those are revoked."""

import time
from typing import Any

from celery.utils.functional import maybe_list
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import control, state
from celery.worker.control import control_command

from callsheet.workers.broker.layout import REVOKED
from callsheet.workers.broker.ledger import ledgers

HELD = 1000  # messages that one worker holds until their time
SOON = 1.0  # seconds from now up to which it holds any


def goes_back(start: float, now: float, horizon: float, lead: float, crowded: bool) -> float | None:
    """When a message that is to start later goes back to its queue; None where the worker holds it until it starts.

    Args:
        start: its time, as the others in unix seconds.
        now: the time.
        horizon: seconds from now up to which a worker holds messages.
        lead: seconds before its time at which a message goes back at most.
        crowded: whether this worker holds as many as it may.
    """
    away = start - now
    if away <= (min(SOON, horizon) if crowded else horizon):
        return None
    return start if away < 2 * lead else start - lead


def start_of(headers: dict[str, Any], timezone: Any) -> float | None:
    """A message's time in unix seconds; None without one, or where Celery will say what is wrong with it."""
    given = headers.get("eta")
    if given is None:
        return None
    try:
        found = maybe_make_aware(maybe_iso8601(given), timezone)
        return float(found.timestamp())
    except (AttributeError, ValueError, TypeError, OverflowError):
        return None


class Waiting:
    """Puts messages away for a consumer of Celery's."""

    def __init__(self, consumer: Any) -> None:
        conf = consumer.app.conf
        self._known, self._timezone = consumer.strategies, conf.timezone
        self._held = min(HELD, conf.worker_eta_task_limit or HELD)

    def takes(self, message: Any) -> bool:
        """Put a message away if its time is too far off; marks a task as revoked that was while it was away."""
        headers = message.headers
        task_id = headers.get("id")
        if not task_id:
            return False
        if REVOKED in headers:
            state.revoked.add(task_id)
        start = start_of(headers, self._timezone)
        later = getattr(message.channel, "ledger", None)
        if start is None or later is None or task_id in state.revoked:
            return False
        horizon, lead = message.channel.eta_horizon, later.later.lead
        now, crowded = time.time(), len(state.scheduled_requests) >= self._held
        at = goes_back(start, now, horizon, lead, crowded)
        if at is None:
            if crowded and start <= now:
                headers["eta"] = None  # it runs now as any other: with a time Celery would fetch one more for it
            return False
        # What it does not know Celery refuses now.
        return headers.get("task") in self._known and message.channel.put_away(message.delivery_tag, task_id, at)


@control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(panel: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
    """Revoke task by task id (or list of ids), also where its message waits in Redis for its time."""
    answer = control.revoke(panel, task_id, terminate=terminate, signal=signal, **options)
    ids = [one for one in maybe_list(task_id) or () if isinstance(one, str)]
    for ledger in ledgers():
        ledger.later.revoke(ids)
    return answer


@control_command(name="terminate", variadic="task_id", args=[("signal", str)],
                 signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(panel: Any, signal: Any, task_id: Any, **options: Any) -> Any:
    """Terminate task by task id (or list of ids), also where its message waits in Redis for its time."""
    return revoke(panel, task_id, terminate=True, signal=signal, **options)
