"""Log lines of a busy worker, written together.

Celery logs two lines a task, and Python's handlers make a system call for each, which gives the interpreter's lock
away and waits to have it back. Here the lines of some milliseconds travel in one write.
"""

import atexit
import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import Any, TextIO

GATHER = 0.02  # seconds: the most that a line is late, and that a killed process may lose of its log

_streams: dict[int, "GatheredStream"] = {}


class GatheredStream:
    """A text stream whose writes are made by a thread, those of `GATHER` seconds in one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fresh()
        atexit.register(self.write_now)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.write_now, after_in_child=self._fresh)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fresh(self) -> None:
        self._texts: deque[str] = deque()
        self._lock = threading.RLock()  # a signal handler may find its own thread within
        self._due = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Have `text` written soon."""
        self._texts.append(text)
        if not self._due.is_set():
            if self._thread is None:
                self._start()
            self._due.set()
        return len(text)

    def flush(self) -> None:
        """Nothing: what asks after each line is what this class is against."""

    def write_now(self) -> None:
        """Write what there is."""
        with self._lock:
            self._due.clear()
            texts = [self._texts.popleft() for _ in range(len(self._texts))]
            # Closed, or nobody reads any more: that is not the worker's end, as little as it is in `logging`.
            with contextlib.suppress(OSError, ValueError):
                if texts:
                    self._stream.write("".join(texts))
                    self._stream.flush()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="callsheet-log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._due.wait()
            time.sleep(GATHER)
            self.write_now()


def gather_lines(logger: logging.Logger) -> None:
    """Have the handlers of `logger` that write to a terminal or a pipe write their lines together.

    Handlers of the same stream share one, so that the order of lines stays.
    """
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler and not isinstance(handler.stream, GatheredStream):
            stream = handler.stream
            if id(stream) not in _streams:
                _streams[id(stream)] = GatheredStream(stream)
            handler.setStream(_streams[id(stream)])
