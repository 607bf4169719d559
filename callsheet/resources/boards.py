"""What breakers and retries go by: counts of late, a budget of retries, and a breaker's state, here or in Redis."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import RedisError

from callsheet.resources.redis import Script, async_client
from callsheet.settings import Settings
from callsheet.settings.endpoints import BreakerPolicy
from callsheet.settings.keys import Keys

log = logging.getLogger(__name__)

SLOTS = 10
"""Parts of a window that are counted apart."""

BUDGET_WINDOW = 30.0
"""Seconds within which a call earns its share of a retry."""

LEASE = 10.0
"""Seconds after which the probe of a process that died is given to another; one that lives renews it."""

ALONE = 5.0
"""Seconds that a breaker goes without Redis after it did not answer."""

ANSWERS_WITHIN = 2.0
"""Seconds that Redis may take to answer."""

Clock = Callable[[], float]
Outcome = Literal["ok", "failed", "unknown"]
_SCRIPT = Script(Path(__file__).with_name("breaker.lua"))


class Recent:
    """How often something happened in the last `window` seconds, to a tenth of them.

    Args:
        window: seconds.
        clock: seconds that only grow.
    """

    __slots__ = ("_clock", "_counts", "_slot", "_width")

    def __init__(self, window: float, clock: Clock = time.monotonic) -> None:
        self._width = window / SLOTS
        self._clock = clock
        self._counts = [0] * SLOTS
        self._slot = int(clock() / self._width)

    def add(self, count: int = 1) -> None:
        """It happened `count` times now."""
        slot = int(self._clock() / self._width)
        if slot != self._slot:
            self._forget(slot)
        self._counts[slot % SLOTS] += count

    @property
    def total(self) -> int:
        """How often in the window."""
        self._forget(int(self._clock() / self._width))
        return sum(self._counts)

    def take(self) -> int:
        """The total; counting begins anew."""
        total = self.total
        self._counts = [0] * SLOTS
        return total

    def _forget(self, slot: int) -> None:
        for old in range(self._slot + 1, min(slot, self._slot + SLOTS) + 1):
            self._counts[old % SLOTS] = 0
        self._slot = max(slot, self._slot)


class RetryBudget:
    """Bounds what retries add to an endpoint's load; the idea is that of Finagle's RetryBudget.

    Each call earns a share of a retry, which lapses after half a minute; a few retries are there without any calls,
    so that a quiet process can retry at all. When an endpoint fails most of its calls, the retries of all callers
    together are then a small part of its load, not a multiple.

    Args:
        share: of a retry that a call earns, e.g. 0.1.
        minimum: retries in half a minute that need no calls.
        clock: seconds that only grow.
    """

    __slots__ = ("_calls", "_minimum", "_retries", "_share")

    def __init__(self, share: float, minimum: int, clock: Clock = time.monotonic) -> None:
        self._share = share
        self._minimum = minimum
        self._calls = Recent(BUDGET_WINDOW, clock)
        self._retries = Recent(BUDGET_WINDOW, clock)

    def earn(self) -> None:
        """A call was answered, or failed, for the first time."""
        self._calls.add()

    def spend(self) -> bool:
        """Take a retry; False where the budget has none left."""
        if self._retries.total + 1 > self._minimum + self._share * self._calls.total:
            return False
        self._retries.add()
        return True


@dataclass(frozen=True, slots=True)
class Answer:
    """What a board says.

    Attributes:
        state: "closed": go on; "open": refuse; "probe": you are to probe; "wait": another one probes.
        seconds: that this holds for.
    """

    state: str
    seconds: float = 0.0


class LocalBoard:
    """A breaker's state, of this process alone.

    Args:
        policy: when to open.
        clock: seconds that only grow.
    """

    def __init__(self, policy: BreakerPolicy, clock: Clock = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._failures = Recent(policy.window, clock)
        self._successes = Recent(policy.window, clock)
        self._until: float | None = None
        self._probe = ""
        self._probe_until = 0.0

    async def report(self, failures: int, successes: int) -> Answer:
        """Count requests that ended; says whether the endpoint is to be left alone from now on."""
        if self._until is not None:
            return Answer("open", max(0.0, self._until - self._clock()))
        self._failures.add(failures)
        self._successes.add(successes)
        failed, policy = self._failures.total, self._policy
        calls = failed + self._successes.total
        if failed and calls >= policy.minimum and failed >= policy.failure_rate * calls:
            return self._open()
        return Answer("closed")

    async def ask(self, token: str) -> Answer:
        """May the endpoint be called, or probed by whoever has this token?"""
        now = self._clock()
        if self._until is None:
            return Answer("closed")
        if now < self._until:
            return Answer("open", self._until - now)
        if self._probe and now < self._probe_until:
            return Answer("wait", self._probe_until - now)
        self._probe = token
        return await self.renew(token)

    async def renew(self, token: str) -> Answer:
        """The probe goes on."""
        if token == self._probe:
            self._probe_until = self._clock() + LEASE
        return Answer("probe", LEASE)

    async def settle(self, token: str, outcome: Outcome) -> Answer:
        """The probe has ended."""
        if self._until is None:
            return Answer("closed")
        if token != self._probe:
            return Answer("open", max(0.0, self._until - self._clock()))
        self._probe = ""
        if outcome == "failed":
            return self._open()
        if outcome == "unknown":
            return Answer("open")
        self._until = None
        return Answer("closed")

    def _open(self) -> Answer:
        self._until = self._clock() + self._policy.cooldown
        self._failures.take()
        self._successes.take()
        self._probe = ""
        return Answer("open", self._policy.cooldown)


class FleetBoard(LocalBoard):
    """A breaker's state in Redis, which all processes share. While that does not answer, a process decides by itself.

    Args:
        name: the endpoint's.
        policy: when to open.
        settings: where Redis is.
    """

    def __init__(self, name: str, policy: BreakerPolicy, settings: Settings) -> None:
        super().__init__(policy)
        keys = Keys(settings.key_prefix)
        self.channel = keys.breaker_channel(name)
        self._name = name
        self._key = keys.breaker(name)
        self._settings = settings
        self._rules = [self.channel, round(policy.window * 1000), round(policy.cooldown * 1000), policy.failure_rate,
                        policy.minimum]
        self._alone_until = 0.0

    async def report(self, failures: int, successes: int) -> Answer:
        """As LocalBoard's."""
        return await self._run("report", failures, successes) or await super().report(failures, successes)

    async def ask(self, token: str) -> Answer:
        """As LocalBoard's."""
        return await self._run("ask", token, round(LEASE * 1000)) or await super().ask(token)

    async def renew(self, token: str) -> Answer:
        """As LocalBoard's."""
        return await self._run("renew", token, round(LEASE * 1000)) or await super().renew(token)

    async def settle(self, token: str, outcome: Outcome) -> Answer:
        """As LocalBoard's."""
        return await self._run("settle", token, outcome) or await super().settle(token, outcome)

    async def _run(self, action: str, *args: Any) -> Answer | None:
        """The script's answer; None while Redis gives none."""
        if time.monotonic() < self._alone_until:
            return None
        try:
            async with asyncio.timeout(ANSWERS_WITHIN):
                state, left = await _SCRIPT.arun(async_client(self._settings), [self._key],
                                                 [action, *self._rules, *args])
        except (RedisError, OSError) as exc:
            self._alone_until = time.monotonic() + ALONE
            log.warning("breaker_alone endpoint=%s: Redis at %s does not answer (%s); this process decides by itself.",
                        self._name, self._settings.redis_address, type(exc).__name__)
            return None
        return Answer(state.decode(), int(left) / 1000)
