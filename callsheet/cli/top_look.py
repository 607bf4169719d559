"""What `callsheet top` shows: one look at Redis and the workers, and how fast numbers grew since the one before."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from callsheet.hub.redis import HubLag, hub_lags
from callsheet.resources.backlog import UNACKED, backlogs
from callsheet.resources.limits.messages import Limits
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.control import ask
from callsheet.workers.status import STATUS, told

MOST_HUBS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How far an endpoint's limits are used up."""

    limits: dict[str, tuple[float, int]] = field(default_factory=dict)
    """What is used of each that there is, and how much may be, by what people call it."""
    waiting: int = 0  # calls that wait for their turn, of the whole fleet
    breaker: str = "closed"  # "closed", "open" or "probing"


@dataclass(slots=True, kw_only=True)
class Look:
    """One look."""

    at: float  # unix time
    address: str  # of Redis, without its password
    waiting: dict[str, int] = field(default_factory=dict)  # messages, by queue
    held: int = 0  # messages that workers hold
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each told, by name; of those that are no workers of ours why that cannot be read, as `unread`."""
    quotas: dict[str, Quota] = field(default_factory=dict)  # by endpoint
    hubs: list[HubLag] = field(default_factory=list)  # those used last
    trouble: str = ""  # what was wrong, or ""

    def readers(self, queue: str) -> int:
        """Workers that read a queue."""
        return sum(queue in one.get("queues", ()) for one in self.workers.values())

    def agents(self) -> dict[str, list[float]]:
        """By agent: calls that ended, those of them that failed, their seconds; of all workers together."""
        return _summed(one.get("agents", {}) for one in self.workers.values())

    def models(self) -> dict[str, list[float]]:
        """By endpoint: outbound calls, errors, tokens, cost; of all workers together."""
        return _summed(one.get("models", {}) for one in self.workers.values())


def _summed(parts: Any) -> dict[str, list[float]]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, numbers in part.items():
            known = found[name]
            found[name] = [a + b for a, b in zip(known, numbers, strict=True)] if known else list(numbers)
    return dict(found)


def look(settings: Settings) -> Look:
    """One look; blocks for some Redis trips and until the workers have answered.

    Raises:
        RedisUnavailable: no Redis answers.
    """
    found = Look(at=time.time(), address=settings.redis_address)
    with translated(settings):
        found.workers = told(ask(current_app(settings), settings, STATUS))
        client = sync_client(settings)
        served = [queue for one in found.workers.values() for queue in one.get("queues", ())]
        found.waiting = backlogs([*settings.known_queues, *served], client)
        found.held = int(client.hlen(UNACKED))
        found.quotas = _quotas(settings, client)
        found.hubs = hub_lags(client, Keys(settings.key_prefix), MOST_HUBS)
    found.at = time.time()
    return found


def _quotas(settings: Settings, client: Any) -> dict[str, Quota]:
    """Of endpoints with limits, and those that are left alone."""
    keys, names = Keys(settings.key_prefix), list(settings.endpoints)
    limits = {name: Limits.of(endpoint) for name, endpoint in settings.endpoints.items()}
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            window = limits[name].window
            pipe.hmget(keys.limits(name, window, "state"), "sum_r", "sum_t", "held")
            pipe.zcard(keys.limits(name, window, "queue"))
            pipe.hget(keys.breaker(name), "state")
        answers = pipe.execute()
    found = {}
    for number, name in enumerate(names):
        (requests, tokens, held), queued, breaker = answers[3 * number:3 * number + 3]
        most = limits[name]
        if most.any or breaker or queued:
            used = (("requests", requests, most.requests), ("tokens", tokens, most.tokens),
                    ("under way", held, most.calls))
            found[name] = Quota(
                limits={what: (max(0.0, float(count or 0)), of) for what, count, of in used if of is not None},
                waiting=queued, breaker=breaker.decode() if breaker else "closed")
    return found


class Rates:
    """How fast numbers that only grow did so between the last two looks."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, ...], float] = {}
        self._now: dict[tuple[str, ...], float] = {}
        self._seconds = 0.0
        self._at = 0.0

    def take(self, one: Look) -> None:
        """The newest look."""
        self._seconds, self._at = (one.at - self._at if self._at else 0.0), one.at
        self._before, self._now = self._now, {}
        for name, worker in one.workers.items():
            self._now["worker", name] = worker.get("tasks", 0)
        for agent, numbers in one.agents().items():
            self._now["agent", agent] = numbers[0]
        for endpoint, numbers in one.models().items():
            self._now["tokens", endpoint], self._now["calls", endpoint] = numbers[2], numbers[0]
            self._now["cost", endpoint] = numbers[3]

    def of(self, *key: str) -> float | None:
        """A second; None while that is not known, as after a worker began anew."""
        if not self._seconds or key not in self._before or key not in self._now:
            return None
        grown = self._now[key] - self._before[key]
        return grown / self._seconds if grown >= 0 else None

    def total(self, kind: str) -> float | None:
        """Of all of a kind together."""
        rates = [rate for key in self._now if key[0] == kind and (rate := self.of(*key)) is not None]
        return sum(rates) if rates else None
