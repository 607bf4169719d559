"""When Python's garbage collector runs in an io worker: seldom, and when memory grows."""

import gc
import os
from pathlib import Path

COLLECT_AFTER = 50_000  # objects made, less those freed
GROWTH = 128 * 1024 * 1024  # bytes

_STATM = Path("/proc/self/statm")


def spare_collector() -> None:
    """Have the collector leave alone what is there now, for good, and run seldom.

    With its defaults a worker with a thousand calls under way spends up to a quarter of its time on looking through
    them, for little: a call leaves no cycle of references of ours. A collector set to run less often yet stays so.
    """
    gc.collect()
    gc.freeze()
    first, second, third = gc.get_threshold()
    if first:
        gc.set_threshold(max(first, COLLECT_AFTER), second, third)


class Growth:
    """Runs the collector when the process has grown, since few objects may hold much: a fetched page, a traceback."""

    def __init__(self) -> None:
        self._least = resident()

    def look(self) -> None:
        """Collect if it is time, young objects only; any thread."""
        now = resident()
        if now > self._least + GROWTH and gc.isenabled():
            gc.collect(1)
            self._least = now = resident()
        self._least = min(self._least, now)


def resident() -> int:
    """Bytes of memory that the process takes; 0 where the system has no /proc."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
