"""The autoscaler: `worker_autoscaler = "callsheet.workers.autoscaler:LoadAutoscaler"`, for `--autoscale=MAX,MIN`.

It measures the worker's load, asks the policy (callsheet/scaling), and grows or shrinks the pool. On the consumer's
thread it reads numbers that are there; what takes longer is looked at by a thread of its own.
"""

import logging
import time
from collections import Counter
from typing import Any

from celery.concurrency import prefork
from celery.worker import autoscale

from callsheet.errors import SettingsError
from callsheet.resources.offers import Offer, offer
from callsheet.scaling import Bound, Decision, Limits, Load, Policy, Rules
from callsheet.settings import get_settings
from callsheet.workers.backlog import Look, Looker, Memory
from callsheet.workers.gauges import BusyTime, Reading, UnitMemory, WaitsForTurns, age_of, gauge_of
from callsheet.workers.machine import Group

logger = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two decisions, and at least between two looks at Redis
AT_WORK = 0.1  # seconds at least between two decisions while calls wait for slots
FRESH = 3.0  # seconds for which a look holds
_TOLD = (Bound.MEMORY, Bound.CPU, Bound.LAG, Bound.QUOTA, Bound.MAXIMUM)


class LoadAutoscaler(autoscale.Autoscaler):
    """Celery's autoscaler, by the load.

    Attributes:
        last_decision: the last Decision, with what was measured; None before the first.
        counts: how often the size was changed, by ("up" or "down", bound).

    Raises:
        SettingsError: MAX and MIN leave no size between them, the pool cannot grow, or the worker takes more memory
            than its limit before its first call.
    """

    max_concurrency: int
    min_concurrency: int

    def __init__(self, pool: Any, max_concurrency: int, min_concurrency: int = 0, worker: Any = None,
                 keepalive: float = EVERY, mutex: Any = None) -> None:
        super().__init__(pool, max_concurrency, min_concurrency, worker, keepalive, mutex)
        limits = Limits(maximum=max_concurrency, minimum=min_concurrency)
        if not (isinstance(pool, prefork.TaskPool) or hasattr(pool, "shrink")):  # which prefork has once it runs
            raise SettingsError(f"--autoscale needs a pool that grows and shrinks, and {type(pool).__name__} does not. "
                                "Leave out --autoscale, or use the pools of callsheet.workers.io and .cpu.")
        self._gauge = gauge_of(pool)
        memory = Memory(get_settings().autoscale_memory, Group.own())
        self._looker = Looker(memory, self._gauge.idle_costs, self._gauge.pids, self._looked)
        rules = Rules.of(get_settings(), memory_limit=memory.limit, idle_costs=self._gauge.idle_costs)
        self._unit_memory = UnitMemory(self._fits(memory), self._gauge.idle_costs)
        self._policy = Policy(limits, rules)
        self._busy, self._turns = BusyTime(), WaitsForTurns()
        self.last_decision: Decision | None = None
        self.counts: Counter[tuple[str, ...]] = Counter()
        self._received = 0
        self._ages, self._aged = 0.0, 0
        self._waited: float | None = None
        self._waited_at = 0.0
        self._not_before = self._asked_at = 0.0
        self._again = False
        self._offer()

    def _offer(self) -> None:
        """What metrics tell of it; read by whoever exports them."""
        offer(Offer(name="autoscale_changes", kind="counter", labels=("direction", "bound"), read=self.counts.copy,
                    help="times that the autoscaler grew or shrank the pool, and what bounded it"))
        offer(Offer(name="autoscale_limit", labels=("limit",), help="slots or processes allowed by --autoscale",
                    read=lambda: {("max",): self.max_concurrency, ("min",): self.min_concurrency}))
        offer(Offer(name="autoscale_need", labels=("bound",), read=self._needed,
                    help="slots or processes that the load asks for, and what bounded the last decision"))

    def _needed(self) -> dict[tuple[str, ...], float]:
        last = self.last_decision
        return {} if last is None else {(last.bound.value,): last.need}

    def _fits(self, memory: Memory) -> int | None:
        used = memory.used(self._gauge.pids()[:1])
        if memory.limit is not None and used is not None and used >= memory.limit:
            raise SettingsError(f"The worker uses {used / 2**20:.0f} MiB before its first call, and may use "
                                f"{memory.limit / 2**20:.0f} MiB. Raise CALLSHEET_AUTOSCALE_MEMORY (bytes), or the "
                                "memory limit of its container.")
        return used

    # What Celery calls

    def on_task_received(self, req: Any) -> None:
        """A message has been taken."""
        super().on_task_received(req)
        self._received += 1
        age = age_of(req)
        if age is not None:
            self._ages += age
            self._aged += 1

    def maybe_scale(self, req: Any = None) -> None:
        """Decide, if it is time to: once a second, and soon where calls wait; consumer's thread."""
        if req is not None:
            self.on_task_received(req)
            if self._gauge.has_room():
                return
        now = time.monotonic()
        if now < self._not_before or not self.pool.active:
            return
        reading = self._gauge.read()
        self._not_before = now + AT_WORK
        self._ask(reading, now)
        if self._scale(reading, now):
            self.pool.maintain_pool()

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        """Set other bounds, as `celery control autoscale MAX MIN` does. What runs above them goes on.

        Raises:
            SettingsError: they leave no size between them.
        """
        with self.mutex:
            limits = Limits(maximum=self.max_concurrency if max is None else max,
                            minimum=self.min_concurrency if min is None else min)
            self._update_consumer_prefetch_count(limits.maximum)
            self.max_concurrency, self.min_concurrency = limits.maximum, limits.minimum
            self._policy.limits = limits
            reading = self._gauge.read()
            if reading.busy > limits.maximum:
                logger.warning("%d calls run, more than the new maximum of %d: they go on, and the worker comes down "
                               "as they end.", reading.busy, limits.maximum)
            if self._scale(reading, time.monotonic()):
                self.pool.maintain_pool()
        return self.max_concurrency, self.min_concurrency

    def info(self) -> dict[str, Any]:
        """For `inspect stats`: Celery's four numbers, and the last decision with its inputs."""
        told = {**super().info(), "changes": {f"{way}:{bound}": n for (way, bound), n in self.counts.items()}}
        return told if self.last_decision is None else {**told, **self.last_decision.to_dict()}

    # Measuring

    def _ask(self, reading: Reading, now: float) -> None:
        """Have the machine looked at, and the queues where there may be more than the worker has taken."""
        idle = not reading.held and not reading.waiting
        if idle or now - self._asked_at < EVERY or not self._looker.due:
            return
        self._asked_at = now
        consumer = getattr(self.worker, "consumer", None)
        tasks = getattr(consumer, "task_consumer", None)
        full = reading.busy + reading.waiting >= reading.size
        queues = tasks.queues if tasks is not None and full else ()
        self._looker.ask([queue.name for queue in queues if queue.exchange.type != "fanout"], self._received)

    def _looked(self) -> None:
        """A look has been taken: decide soon, on the consumer's thread; called by the thread that looks."""
        hub = getattr(self.worker, "hub", None)
        if hub is not None:
            hub.call_soon(self.maybe_scale)

    def _load(self, reading: Reading, now: float) -> Load:
        look = self._looker.latest
        if look is not None and now - look.at > FRESH:
            look = None
        waiting = reading.returning + reading.waiting + self._ahead(look)
        quota = self._turns.quota(reading, waiting)
        used = look.memory if look else None
        return Load(size=reading.size, busy=reading.busy, backlog=waiting, seconds=self._busy.seconds(reading, now),
                    waited=self._wait(waiting, now), memory=used, unit_memory=self._unit_memory.of(reading, used),
                    cpu=look.cpu if look else None, lag=reading.lag, quota=quota)

    def _ahead(self, look: Look | None) -> int:
        """Messages that are on the queues still, as far as is known."""
        if look is None or look.backlog is None:
            return 0
        return max(0, look.backlog - (self._received - look.received))

    def _wait(self, waiting: int, now: float) -> float | None:
        """Seconds that calls wait: of those taken lately; where none is taken while some wait, longer by that time."""
        if self._aged:
            self._waited, self._waited_at = self._ages / self._aged, now
            self._ages, self._aged = 0.0, 0
        elif not waiting:
            self._waited = None
        return None if self._waited is None else self._waited + (now - self._waited_at)

    # Deciding

    def _scale(self, reading: Reading, now: float) -> bool:
        before, decision = self.last_decision, self._policy.decide(self._load(reading, now), now)
        changed = self._carry_out(decision)
        self.last_decision = decision
        held_back = decision.bound in _TOLD and decision.need > decision.size
        if changed:
            self._tell(decision)
        elif held_back and (before is None or before.bound is not decision.bound):
            logger.info("autoscale %s", decision)
        if decision.load.backlog and decision.size < self.max_concurrency and not self._again:
            self._decide_again()
        return changed

    def _carry_out(self, decision: Decision) -> bool:
        before, change = self.processes, decision.change
        try:
            if change > 0:
                self.pool.grow(min(change, self._gauge.most_added))
            elif change < 0:
                self.pool.shrink(-change)
        except ValueError as exc:  # some have work by now and the others are gone; or there are too many
            logger.debug("autoscale: not all of %+d: %s", change, exc)
        if self.processes == before:
            return False
        self.counts["up" if self.processes > before else "down", decision.bound.value] += 1
        return True

    def _tell(self, decision: Decision) -> None:
        logger.info("autoscale %s", decision)
        dispatcher = getattr(getattr(self.worker, "consumer", None), "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send("worker-autoscaled", autoscale=decision.to_dict())

    def _decide_again(self) -> None:
        """Calls wait, and no message may come for some time that would have it decide."""
        hub = getattr(self.worker, "hub", None)
        if hub is not None:
            self._again = True
            hub.call_later(AT_WORK, self._once_more)

    def _once_more(self) -> None:
        self._again = False
        self.maybe_scale()
