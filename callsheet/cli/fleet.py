"""Worker processes of one kind on this machine, as many as their load needs: what `callsheet scale` runs."""

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from callsheet.cli.processes import Interrupts, Process, ServiceFailed, Supervisor, exit_text
from callsheet.cli.stack import worker_service
from callsheet.resources.backlog import backlogs
from callsheet.resources.redis import sync_client
from callsheet.resources.trouble import in_words
from callsheet.scaling import Decision, Limits, Load, Policy, Rules
from callsheet.settings import Settings
from callsheet.tasks.app import make_app
from callsheet.workers.gauges import BusyTime, Reading
from callsheet.workers.machine import Group, Processors, cores, family_of, machine_memory, own_share_of
from callsheet.workers.status import LOAD

LOOK_EVERY = 0.1  # seconds between two looks at the processes
DECIDE_EVERY = 2.0  # seconds between two decisions
ANSWER = 1.5  # seconds that workers have to tell their load
BACKOFF, BACKOFF_MAX = 1.0, 60.0  # seconds until a worker that died is replaced; doubles
SETTLED = 60.0  # seconds after which a worker that dies did so for once

#: How a worker of a fleet is told to end: warm, however long its calls take; hurried, it gives them back.
DRAIN: tuple[tuple[signal.Signals, float], ...] = (
    (signal.SIGTERM, math.inf), (signal.SIGQUIT, 30.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run."""

    kind: str  # "io" or "cpu"
    options: tuple[str, ...]  # for `celery worker`
    queues: tuple[str, ...]  # that the workers read
    per_worker: int  # calls that one of them runs at once
    limits: Limits  # of their number
    data: Path  # folder of their logs


@dataclass(eq=False)
class Member:
    """A worker of the fleet."""

    process: Process
    node: str
    number: int
    since: float = field(default_factory=time.monotonic)
    draining: bool = False
    was_ready: bool = False
    told: dict[str, Any] | None = None

    @property
    def under_way(self) -> int:
        """Calls that it had begun and not ended, parked ones too, when it last told."""
        return int(self.told["held"]) if self.told else 0


class Fleet:
    """Starts, drains and replaces workers, and tells so."""

    def __init__(self, plan: Plan, settings: Settings, tell: Callable[[str], None]) -> None:
        self.members: list[Member] = []
        self._plan, self._settings, self._tell = plan, settings, tell
        self._app = make_app(settings, plan.kind)
        self._group = Group.own()
        memory = self._memory()
        rules = Rules.of(settings, memory_limit=memory[1] if memory else None, per_unit=plan.per_worker,
                         idle_costs=True)
        self._policy = Policy(plan.limits, rules)
        self._size = plan.limits.minimum
        self._busy = BusyTime()
        self._ended: dict[str, int] = {}
        self._all_ended = 0
        self._processors = Processors(cores(self._group))
        self._backoff, self._not_before = BACKOFF, 0.0
        self._numbers = 0
        self._away = False

    def run(self, interrupts: Interrupts) -> None:
        """Follow the load until somebody wants to stop, then drain all.

        Raises:
            ServiceFailed: the first workers do not start.
        """
        supervisor = Supervisor(interrupts)
        try:
            self._fill()
            next_decision = time.monotonic() + DECIDE_EVERY
            while not interrupts.count:
                self._reap()
                if time.monotonic() >= next_decision:
                    self._decide()
                    next_decision = time.monotonic() + DECIDE_EVERY
                time.sleep(LOOK_EVERY)
            self._tell(f"draining all {len(self.members)} workers; their calls end first. Once more hands what runs "
                       "back to the queue.")
        finally:
            supervisor.end([member.process for member in self.members])

    @property
    def serving(self) -> list[Member]:
        """The workers that are not on their way out."""
        return [member for member in self.members if not member.draining]

    # Workers

    def _reap(self) -> None:
        for member in list(self.members):
            if not member.was_ready and member.process.service.ready(member.process):
                member.was_ready = True
                self._tell(f"{member.node} is ready (pid {member.process.pid})")
            if member.process.ended is not None:
                self.members.remove(member)
                self._gone(member)
        if time.monotonic() >= self._not_before:
            self._fill()

    def _gone(self, member: Member) -> None:
        self._ended.pop(member.node, None)
        if member.draining:
            self._tell(f"{member.node} has ended its calls and is gone")
            return
        lived = time.monotonic() - member.since
        if not member.was_ready and not any(other.was_ready for other in self.members):
            raise ServiceFailed(member.process.failure())
        self._backoff = BACKOFF if lived > SETTLED else min(2 * self._backoff, BACKOFF_MAX)
        self._not_before = time.monotonic() + self._backoff
        self._tell(f"{member.node} ended with {exit_text(member.process.ended)} after {lived:.0f} s; another one takes "
                   f"its place in {self._backoff:g} s. Its log: {member.process.service.log}")

    def _fill(self) -> None:
        """Start what is missing."""
        while len(self.serving) < self._size:
            self._start()

    def _start(self) -> None:
        used = {member.number for member in self.members}
        number = next(n for n in range(1, len(used) + 2) if n not in used)
        self._numbers += 1
        name = f"{self._plan.kind}-{os.getpid()}-{self._numbers}"
        env = {key: value for key, value in os.environ.items() if key != "CALLSHEET_INLINE"}
        service = worker_service(self._plan.kind, name, self._plan.options, {**env, "PYTHONUNBUFFERED": "1"},
                                 self._plan.data / "logs" / f"{self._plan.kind}-{number}.log", DRAIN)
        self.members.append(Member(Process(service), service.name, number))

    def _drain(self, count: int) -> None:
        """Have the least busy ones end: of equals, the youngest."""
        for member in sorted(self.serving, key=lambda one: (one.under_way, -one.since))[:count]:
            member.draining = True
            self._tell(f"{member.node} takes no more calls; {member.under_way} are under way there")
            member.process.send(signal.SIGTERM)

    # Load

    def _decide(self) -> None:
        load = self._load()
        if load is None:
            return
        decision = self._policy.decide(load, time.monotonic())
        if decision.size != self._size:
            self._tell(f"scale {self._plan.kind} {decision}")
        self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        self._size = decision.size
        if decision.size < len(self.serving):
            self._drain(len(self.serving) - decision.size)
        elif time.monotonic() >= self._not_before:
            self._fill()

    def _load(self) -> Load | None:
        """What the queues, the workers and the machine tell; None while Redis does not answer."""
        try:
            backlog = sum(backlogs(self._plan.queues, sync_client(self._settings)).values())
            self._ask()
        except (RedisError, OperationalError, OSError) as exc:
            if not self._away:
                self._tell(f"{in_words(exc, self._settings)} The workers go on, as many as there are.")
            self._away = True
            return None
        self._away = False
        told = [member.told for member in self.serving if member.told]
        sums = {name: sum(one[name] for one in told) for name in ("busy", "returning", "waiting")}
        waits = [one["waited"] for one in told if one["waited"] is not None]
        reading = Reading(size=0, begun=0, held=0, ended=self._all_ended, **sums)
        families = [family_of(member.process.pid) for member in self.members]
        memory = self._memory()
        shares = [sum(own_share_of(pid) or 0 for pid in family) for family in families]
        return Load(size=len(self.serving), busy=sums["busy"] + sums["returning"], backlog=backlog + sums["waiting"],
                    seconds=self._busy.seconds(reading, time.monotonic()), waited=max(waits, default=None),
                    memory=memory[0] if memory else None, unit_memory=sum(shares) / len(shares) if shares else None,
                    cpu=self._processors.share(pid for family in families for pid in family))

    def _ask(self) -> None:
        """Ask the workers; one that does not answer in time is as it was."""
        asked = {member.node: member for member in self.serving if member.was_ready}
        if not asked:
            return
        answers = self._app.control.broadcast(LOAD, destination=list(asked), reply=True, timeout=ANSWER,
                                              limit=len(asked))
        for node, told in ((node, told) for answer in answers or () for node, told in answer.items()):
            if node in asked and "busy" in told:
                asked[node].told = told
                self._all_ended += max(0, told["ended"] - self._ended.get(node, 0))
                self._ended[node] = told["ended"]

    def _memory(self) -> tuple[int, int] | None:
        """Bytes in use and allowed: by the control group where it has a limit, else on the machine."""
        limit, used = self._group.memory_limit(), self._group.memory_used()
        return (used, limit) if limit is not None and used is not None else machine_memory()
