"""Counts of this process for metrics: how long calls waited and ran, how they ended, and named counters."""

import os
import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from typing import Literal

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Seconds: upper bounds of the classes in which times are counted."""

MOST_NAMES = 100
"""Agents of a process that are told apart by name; further ones go by their class alone."""

OTHERS = "(others)"

Outcome = Literal["ok", "failed", "retried", "cancelled"]


class Spread:
    """How often something took how long.

    Attributes:
        counts: by class of BOUNDS, the last being what took longer.
        total: seconds in all.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class _Agent:
    """What is counted under one name."""

    __slots__ = ("name", "outcomes", "spread")

    def __init__(self, name: str) -> None:
        self.name = name
        self.spread = Spread()
        self.outcomes: dict[Outcome, int] = {"ok": 0, "failed": 0, "retried": 0, "cancelled": 0}


_lock = threading.Lock()
_queues: defaultdict[str, Spread] = defaultdict(Spread)
_turns: defaultdict[str, Spread] = defaultdict(Spread)
_agents: dict[str, _Agent] = {}
_counts: Counter[tuple[str, str, str]] = Counter()


def call_ended(agent: str, queue: str, waited: float, took: float, outcome: Outcome) -> None:
    """An agent's call has ended, or one try of it; any thread.

    Args:
        agent: as `Class(name)`.
        queue: that it came from.
        waited: seconds from when it was sent until it began.
        took: seconds from then on.
        outcome: how it ended.
    """
    with _lock:
        one = _agents.get(agent) or _agent(agent)
        one.outcomes[outcome] += 1
        one.spread.add(took)
        _queues[queue].add(waited if waited > 0 else 0.0)  # clocks of two machines differ


def turn_waited(endpoint: str, seconds: float) -> None:
    """A request waited so long for its turn under an endpoint's limits; any thread."""
    with _lock:
        _turns[endpoint].add(seconds)


def told_apart(agent: str) -> str:
    """The name under which an agent is counted: its own, or its class's where there are too many."""
    with _lock:
        return (_agents.get(agent) or _agent(agent)).name


def _agent(label: str) -> _Agent:
    for name in (label, label.partition("(")[0] + "(*)"):
        if name in _agents:
            return _agents[name]
        if len(_agents) < (MOST_NAMES if name == label else 2 * MOST_NAMES):
            return _agents.setdefault(name, _Agent(name))
    return _agents.setdefault(OTHERS, _Agent(OTHERS))


def spreads() -> dict[tuple[str, str], tuple[list[int], float]]:
    """Counts by class and seconds in all, by ("queue", name), ("reply", agent) and ("turn", endpoint)."""
    with _lock:
        found = {("reply", name): one.spread for name, one in _agents.items()}
        found |= {("queue", name): spread for name, spread in _queues.items()}
        found |= {("turn", name): spread for name, spread in _turns.items()}
        return {key: (list(spread.counts), spread.total) for key, spread in found.items() if any(spread.counts)}


def outcomes() -> dict[tuple[str, str], int]:
    """How often calls of each agent ended in each way."""
    with _lock:
        return {(name, outcome): count for name, one in _agents.items()
                for outcome, count in one.outcomes.items() if count}


def count(name: str, endpoint: str, detail: str = "", by: int = 1) -> None:
    """Add to a counter; any thread.

    Args:
        name: what is counted, e.g. "retries".
        endpoint: its name.
        detail: e.g. the reason.
        by: how many.
    """
    _counts[name, endpoint, detail] += by


def counts() -> dict[tuple[str, str, str], int]:
    """All counters of this process, by name, endpoint and detail."""
    return dict(_counts)


def _forget() -> None:
    global _lock  # noqa: PLW0603 - a child may have been forked while another thread held it
    _lock = threading.Lock()
    for counted in (_queues, _turns, _agents, _counts):
        counted.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


