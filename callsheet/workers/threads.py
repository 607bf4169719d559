"""Threads for what must not run on the loop, and best-effort interruption of one."""

import ctypes
import queue
import threading
from collections.abc import Callable


class Interrupted(BaseException):
    """Raised in a thread whose call was revoked or is over its hard time limit."""


class ThreadCrew:
    """Daemon threads, started when all others are busy and ended when idle.

    Daemons because nothing can end a thread that does not return, and a worker must still be able to exit.

    Args:
        on_start: run in each thread first.
        idle: seconds after which an idle thread ends.
    """

    def __init__(self, on_start: Callable[[], object], idle: float = 30.0) -> None:
        self._on_start = on_start
        self._idle_time = idle
        self._work: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], None]]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.count = 0

    def submit(self, function: Callable[[], None], then: Callable[[], None]) -> None:
        """Run `function` in a thread, then `then`, which may submit to the same thread; neither may raise."""
        self._work.put((function, then))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                self.count += 1
            threading.Thread(target=self._main, name="callsheet-task", daemon=True).start()

    def _main(self) -> None:
        self._on_start()
        while True:
            try:
                function, then = self._work.get(timeout=self._idle_time)
            except queue.Empty:
                if self._idle.acquire(blocking=False):
                    break
                continue  # somebody has just counted on this thread
            function()
            self._idle.release()
            then()
            del function, then
        with self._lock:
            self.count -= 1


def raise_in(thread_id: int, error: type[BaseException] | None) -> None:
    """Have `error` raised in a thread when it next runs Python code; None takes back what is pending."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), None if error is None else ctypes.py_object(error))
