"""How calls of an agent keep their order: what a message says of when it was sent, and how a call steps back until its
agent's turn is its own, and comes again.
"""

import asyncio
import json
import logging
import threading
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

from callsheet.resources.redis import translated
from callsheet.settings import Settings
from callsheet.tasks.turns.records import Place

logger = logging.getLogger(__name__)

KEEP_SENT = "callsheet_keep_sent"
"""Option of a message that is sent again: it keeps the time at which it was sent first."""

_MOST = 10_000  # agents and queues of which the last call is known
_lock = threading.Lock()
_last: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()  # agent and queue -> microseconds and call


def place_of(task: Any, request: Any, call_data: dict[str, Any]) -> Place:
    """A place in the line for the call that runs now, with its message as Celery would publish it again."""
    signature = task.signature_from_request(request, args=(*request.args[:-1], call_data), retries=request.retries,
                                            **{KEEP_SENT: True})
    return Place(message=json.dumps(signature, default=str), expires=_milliseconds(request.expires))


def _milliseconds(expires: Any) -> int | None:
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if not isinstance(expires, datetime):
        return None
    return round((expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp() * 1000)


class Publisher:
    """Sends calls whose turn has come."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, messages: list[str]) -> None:
        """Send them, without blocking the loop."""
        await asyncio.to_thread(self.now, messages)

    def now(self, messages: list[str]) -> None:
        """Send them. What cannot be sent is sent later by a keeper, when the turn's lease is over."""
        for message in messages:
            try:
                with translated(self._settings):
                    self._app.signature(json.loads(message)).apply_async()
            except Exception:
                logger.exception("turns: a call whose turn has come could not be sent; it is sent again when the lease "
                                 "is over")


def stamped(data: dict[str, Any], call_id: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The data of a call that is sent now, with the time; where it is sent again, also with that of the first.

    Of an agent with state, also with the call that this process sent to it before, through the same queue: two
    messages one behind the other may reach two workers, of which the second is the faster.
    """
    now, state = time.time(), data.get("state")
    stamp = {**data, "sent": now}
    if "sent" in data:  # it is tried again
        stamp["first"] = data.get("first", data["sent"])
    if not state or not call_id:
        return stamp
    stamp.pop("before", None)
    if options.get("eta") is None and not options.get("countdown"):
        key, micros = (state[0], f"{options.get('queue')} {options.get('priority')}"), round(now * 1_000_000)
        with _lock:
            before = _last.pop(key, None)
            _last[key] = (micros, call_id)
            if len(_last) > _MOST:
                _last.popitem(last=False)
        if before is not None:
            stamp["before"] = f"{before[0]} {before[1]}"
    return stamp
