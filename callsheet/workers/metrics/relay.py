"""What a process has counted since it started; of a cpu worker's processes it comes to the main one over a pipe.

A process that has counted something writes what it has more than at its last report, at most once a second and
when it ends. So sums stay right when processes come and go; one that is killed takes a second's counts with it.
"""

import contextlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import psutil
from celery import signals

from callsheet.resources.accounts import LABELS, NAMES, Usage, process_latencies, process_rows
from callsheet.resources.breaker import breaker_states
from callsheet.resources.limits.gate import waiting
from callsheet.resources.timings import counts, outcomes, spreads, told_apart

Key = tuple[str, ...]
Totals = dict[Key, float]
"""Numbers by the name of a family and its labels, of a histogram also the class, or "sum"."""

_active: list["Relay"] = []
_AGENT, _ENDPOINT, _MODEL = (LABELS.index(label) for label in ("agent", "endpoint", "model"))

EVERY = 1.0
"""Seconds between two reports of a process at least."""


def all_processes() -> tuple[Totals, Totals]:
    """What this worker has counted in all its processes, and what is so in them now."""
    relay = _active[0] if _active and _active[0].pid == os.getpid() else None  # it is a cpu worker's main one
    totals, states = (relay.totals(), relay.current()) if relay is not None else ({}, [])
    for key, value in counted().items():
        totals[key] = totals.get(key, 0.0) + value
    now: Totals = {}
    for one in (current(), *states):
        for key, value in one.items():
            known = now.get(key, 0.0)
            now[key] = known + value if key[0] == "waiting" else max(known, value)
    return totals, now


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
        self._on_init, self._on_end, self._on_task = self._begin, self._send, self._touch

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
            for pid in [pid for pid in self._current if not psutil.pid_exists(pid)]:
                del self._current[pid]
            return [dict(found) for found in self._current.values()]

    def _read(self) -> None:
        with os.fdopen(self._reading, "rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError), self._lock:  # a process may end in mid-sentence
                    pid, kind, key, value = json.loads(line)
                    if kind == "more":
                        self._totals[tuple(key)] = self._totals.get(tuple(key), 0.0) + value
                    else:
                        self._current.setdefault(pid, {})[tuple(key)] = value

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

    def _send(self, **_: Any) -> None:
        with self._sending:
            more = {key: value - self._sent.get(key, 0.0) for key, value in counted().items()}
            news = [("more", key, value) for key, value in more.items() if value]
            news += [("now", key, value) for key, value in current().items() if self._told.get(key) != value]
            for kind, key, value in news:
                try:  # what is shorter than a pipe's 4,096 bytes arrives in one piece
                    os.write(self._writing, json.dumps([os.getpid(), kind, key, value]).encode() + b"\n")
                except OSError:  # full, or nobody listens any more: next time
                    return
                if kind == "more":
                    self._sent[key] = self._sent.get(key, 0.0) + value
                else:
                    self._told[key] = value


def counted() -> Totals:
    """What only grows."""
    found: defaultdict[Key, float] = defaultdict(float)
    for (name, endpoint, detail), value in counts().items():
        found["counter", name, endpoint, detail] += value
    for (kind, label), (classes, total) in spreads().items():
        _put_classes(found, kind, label, classes)
        found["spread", kind, label, "sum"] = total
    for (agent, outcome), value in outcomes().items():
        found["ended", agent, outcome] = value
    _usage(found)
    return dict(found)


def _usage(found: defaultdict[Key, float]) -> None:
    """Tenants are left out: there may be any number of them."""
    for row, numbers in process_rows().items():
        usage = Usage.from_numbers(numbers)
        agent = told_apart(row[_AGENT]) if row[_AGENT] else ""
        for name in NAMES:
            value = getattr(usage, name)
            if value:
                found["usage", agent, row[_ENDPOINT], row[_MODEL], name] += value
        found["spread", "model", row[_ENDPOINT], "sum"] += usage.seconds
    for endpoint, classes in process_latencies().items():
        _put_classes(found, "model", endpoint, classes)


def _put_classes(found: defaultdict[Key, float], kind: str, label: str, classes: Iterable[float]) -> None:
    found.update({("spread", kind, label, str(number)): value for number, value in enumerate(classes) if value})


def current() -> Totals:
    """What is so now in this process."""
    found: Totals = {("waiting", endpoint): float(number) for endpoint, number in waiting().items()}
    found |= {("left_alone", endpoint): float(alone) for endpoint, alone in breaker_states().items()}
    return found
