"""How what the processes of a cpu worker count comes to its main process, which answers Prometheus: over a pipe.

A process that has counted something writes what it has more than at its last message, at most once a second and
when it ends. So sums stay right when processes come and go; one that is killed takes a second's counts with it.
"""

import contextlib
import json
import os
import threading
from typing import Any

from celery import signals

from callsheet.workers.metrics.totals import Key, Totals, counted, current, together

_active: list["Relay"] = []

EVERY = 1.0
"""Seconds between two messages of a process at least."""

_WHOLE = 3_500  # bytes of a message; what is shorter than a pipe's 4,096 arrives in one piece


def active() -> "Relay | None":
    """The relay of this process, if it is the main one of a cpu worker."""
    return _active[0] if _active and _active[0].pid == os.getpid() else None


def all_processes() -> tuple[Totals, Totals]:
    """What this worker has counted in all its processes, and what is so in them now."""
    relay = active()
    return together(relay.totals(), relay.current()) if relay is not None else together({}, ())


class Relay:
    """Both ends: what arrived, in the main process; what is sent, in each of its children."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._totals: Totals = {}
        self._current: dict[int, Totals] = {}
        self._thread = threading.Thread(target=self._read, name="callsheet-metrics-relay", daemon=True)
        # Held here, because Celery's signals hold their receivers weakly.
        self._on_init, self._on_end, self._on_task = self._begin, self._finish, self._touch

    # In the main process

    def start(self) -> None:
        """Listen, and have each new process send."""
        self._thread.start()
        _active[:] = [self]
        signals.worker_process_init.connect(self._on_init)

    def stop(self) -> None:
        """Listen no more."""
        _active.clear()
        signals.worker_process_init.disconnect(self._on_init)
        os.close(self._writing)  # when the processes, which hold it too, have ended, the thread reads the end

    def totals(self) -> Totals:
        """What all processes have counted, those that have ended included."""
        with self._lock:
            return dict(self._totals)

    def current(self) -> list[Totals]:
        """What is so now in each process that lives."""
        with self._lock:
            for pid in [pid for pid in self._current if not _lives(pid)]:
                del self._current[pid]
            return [dict(found) for found in self._current.values()]

    def _read(self) -> None:
        with os.fdopen(self._reading, "rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a process may end in mid-sentence
                    self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        with self._lock:
            for key, more in message["c"]:
                self._totals[tuple(key)] = self._totals.get(tuple(key), 0.0) + more
            self._current.setdefault(message["p"], {}).update((tuple(key), value) for key, value in message["g"])

    # In a child

    def _begin(self, **_: Any) -> None:
        if os.getpid() == self.pid:  # a pool without processes sends the signal too
            return
        os.close(self._reading)
        self._sent: Totals = {}
        self._told: Totals = {}
        self._news = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._send_on, name="callsheet-metrics-relay", daemon=True).start()
        signals.task_postrun.connect(self._on_task)
        signals.worker_process_shutdown.connect(self._on_end)

    def _touch(self, **_: Any) -> None:
        self._news.set()

    def _send_on(self) -> None:
        pause = threading.Event()
        while True:
            self._news.wait()
            pause.wait(EVERY)
            self._news.clear()
            self._send()

    def _finish(self, **_: Any) -> None:
        self._send()

    def _send(self) -> None:
        with self._sending:
            now, state = counted(), current()
            more = [(key, value - self._sent.get(key, 0.0)) for key, value in now.items()]
            news = [("c", key, change) for key, change in more if change]
            news += [("g", key, value) for key, value in state.items() if self._told.get(key) != value]
            while news:
                part, text = _part(news)
                try:
                    os.write(self._writing, text)
                except OSError:  # full, or nobody listens any more: next time
                    return
                for kind, key, value in part:
                    if kind == "c":
                        self._sent[key] = self._sent.get(key, 0.0) + value
                    else:
                        self._told[key] = value
                news = news[len(part):]


def _part(news: list[tuple[str, Key, float]]) -> tuple[list[tuple[str, Key, float]], bytes]:
    """So many of the news as fit into one message, and the message."""
    count = len(news)
    while True:
        part = news[:count]
        text = json.dumps({"p": os.getpid(), "c": [[key, value] for kind, key, value in part if kind == "c"],
                           "g": [[key, value] for kind, key, value in part if kind == "g"]}).encode() + b"\n"
        if len(text) <= _WHOLE or count == 1:
            return part, text
        count = max(1, count * _WHOLE // (len(text) + 1))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
