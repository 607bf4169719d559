"""How long this process's calls waited and ran, and how they ended: counts for metrics, cheap enough for each call."""

import os
import threading
from bisect import bisect_left
from collections import Counter
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


_lock = threading.Lock()
_spreads: dict[tuple[str, str], Spread] = {}
_outcomes: Counter[tuple[str, str]] = Counter()
_names: dict[str, str] = {}


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
        name = _names.get(agent) or _name(agent)
        _add(("queue", queue), waited if waited > 0 else 0.0)  # clocks of two machines differ
        _add(("reply", name), took)
        _outcomes[name, outcome] += 1


def turn_waited(endpoint: str, seconds: float) -> None:
    """A request waited so long for its turn under an endpoint's limits; any thread."""
    with _lock:
        _add(("turn", endpoint), seconds)


def _add(key: tuple[str, str], seconds: float) -> None:
    spread = _spreads.get(key)
    if spread is None:
        spread = _spreads[key] = Spread()
    spread.add(seconds)


def told_apart(agent: str) -> str:
    """The name under which an agent is counted: its own, or its class's where there are too many."""
    with _lock:
        return _names.get(agent) or _name(agent)


def _name(agent: str) -> str:
    if len(_names) < MOST_NAMES:
        _names[agent] = agent
        return agent
    kind = agent.partition("(")[0] + "(*)"
    if kind in _names or len(_names) < 2 * MOST_NAMES:
        return _names.setdefault(kind, kind)
    return OTHERS


def spreads() -> dict[tuple[str, str], tuple[list[int], float]]:
    """Counts by class and seconds in all, by ("queue", name), ("reply", agent) and ("turn", endpoint)."""
    with _lock:
        return {key: (list(spread.counts), spread.total) for key, spread in _spreads.items()}


def outcomes() -> dict[tuple[str, str], int]:
    """How often calls of each agent ended in each way."""
    with _lock:
        return dict(_outcomes)


def _forget() -> None:
    global _lock  # noqa: PLW0603 - a child may have been forked while another thread held it
    _lock = threading.Lock()
    _spreads.clear()
    _outcomes.clear()
    _names.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
