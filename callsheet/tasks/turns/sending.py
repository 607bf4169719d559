"""When calls of agents with state are sent, and after which: so that they have their turns in this order."""

import threading
import time
from collections import OrderedDict
from typing import Any

_MOST = 10_000
_lock = threading.Lock()
_last: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()  # agent and queue -> microseconds and call


def stamped(data: dict[str, Any], call_id: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The data of a call that is sent now, with the time; where it is sent again, also with that of the first.

    Of an agent with state, also with the call that this process sent to it before, through the same queue: two
    messages one behind the other may reach two workers, of which the second is the faster.
    """
    now = time.time()
    state = data.get("state")
    if "sent" in data:  # it is tried again
        data = {**data, "first": data.get("first", data["sent"])}
    if not state or not call_id:
        return {**data, "sent": now}
    stamp = {**data, "sent": now}
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
