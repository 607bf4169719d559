"""A watch over the event loop: how late it is, and what code holds it up; and when garbage is collected beside it."""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from callsheet.tasks.loop import LoopThread
from callsheet.workers.machine import memory_of

logger = logging.getLogger(__name__)

TICKS = 5  # looks at the loop within the time that code may block it
COLLECT_AFTER = 50_000  # objects made, less those freed
GROWTH = 128 * 1024 * 1024  # bytes


class LoopWatch:
    """A thread that logs what blocks the loop, once for each time; asleep while no call runs.

    Args:
        thread: the loop's.
        limit: seconds that code may block the loop.
        also: called at each look.

    Attributes:
        blocked: times that it was blocked for longer than `limit`.
    """

    def __init__(self, thread: LoopThread, limit: float, also: Callable[[], None]) -> None:
        self._loop_thread = thread
        self._limit = limit
        self._also = also
        self._awake = threading.Event()
        self._stopping = False
        self._lag = 0.0
        self.blocked = 0
        self._thread = threading.Thread(target=self._main, name="callsheet-watch", daemon=True)

    @property
    def lag(self) -> float:
        """Seconds that the loop was late when it was last looked at; 0 while no call runs."""
        return self._lag if self._awake.is_set() else 0.0

    def start(self) -> None:
        """Start the thread; `wake` starts the watching."""
        self._thread.start()

    def wake(self) -> None:
        """Calls run from now on."""
        if not self._awake.is_set():
            self._lag = 0.0  # of the calls before
            self._awake.set()

    def rest(self) -> None:
        """No calls run."""
        self._awake.clear()

    def stop(self) -> None:
        """End the thread soon; it is not waited for."""
        self._stopping = True
        self._awake.set()

    def _main(self) -> None:
        tick = self._limit / TICKS
        while not self._stopping:
            self._awake.wait()
            try:
                self._look(self._limit - tick)
            except RuntimeError:  # the loop is closed
                return
            self._also()
            time.sleep(tick)

    def _look(self, patience: float) -> None:
        answered = threading.Event()
        asked = time.monotonic()
        self._loop_thread.loop.call_soon_threadsafe(answered.set)
        if not answered.wait(patience):
            culprit, stack = self._culprit()
            self.blocked += 1
            logger.warning("%s has blocked the event loop for more than %g s; no other call of this worker goes on "
                           "meanwhile. Await instead, use asyncio.to_thread, or make the task a plain def. The loop "
                           "is at:\n%s", culprit, patience, stack)
            while not answered.wait(1.0) and not self._stopping:
                pass
        self._lag = time.monotonic() - asked

    def _culprit(self) -> tuple[str, str]:
        task = asyncio.current_task(self._loop_thread.loop)
        frame = sys._current_frames().get(self._loop_thread.thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        return (f"Task {task.get_name()}" if task is not None else "A callback"), stack


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
        self._least = _resident()

    def look(self) -> None:
        """Collect if it is time, young objects only; any thread."""
        now = _resident()
        if now > self._least + GROWTH and gc.isenabled():
            gc.collect(1)
            self._least = now = _resident()
        self._least = min(self._least, now)


def _resident() -> int:
    return memory_of(os.getpid()) or 0
