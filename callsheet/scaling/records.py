"""What goes into a scaling decision and what comes out: plain records.

A *unit* is what is added and removed: a slot, a process, an agent of a group. An *item* is what it works on: a call.
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from callsheet.errors import SettingsError
from callsheet.settings import Settings


class Bound(StrEnum):
    """What fixed the size that was decided."""

    BACKLOG = "backlog"
    """What runs and what waits: the load gets what it asks for."""
    BUSY = "busy"
    """What runs: nothing waits, or a limit is below what runs."""
    MEMORY = "memory"
    CPU = "cpu"
    LAG = "lag"
    """Of the event loop."""
    QUOTA = "quota"
    """What those who are called allow: more units would only wait for them."""
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    COOLDOWN = "cooldown"
    """The load has been higher lately: the size goes down in a while, or is on its way down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Between what the size may move.

    Attributes:
        minimum: units at least, from 0.
        maximum: units at most, from 1.

    Raises:
        SettingsError: there is no size between them.
    """

    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if self.minimum < 0 or self.maximum < 1 or self.minimum > self.maximum:
            raise SettingsError(f"A maximum of {self.maximum} and a minimum of {self.minimum} leave no size between "
                                "them. Give a maximum of at least 1 and a minimum from 0 up to the maximum.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The thresholds of a policy.

    Attributes:
        target_wait: seconds within which what waits should be begun.
        step: times the size at most that one decision leads to, so that what the first of the added units meet (limits,
            memory, a processor that is busy) is known before there are more.
        cooldown: seconds after which a size that is needed no more has come down: nothing happens in the first half,
            then it goes down bit by bit.
        memory_limit: bytes, or None for no limit. From there on no idle unit is kept.
        memory_share: share of that limit up to which units are added.
        cpu: share of the processors' time, 0 to 1, from which no units are added.
        lag: seconds that the event loop is late, from which no units are added.
        strain: seconds that `cpu` or `lag` must be exceeded before that counts. Either counts until it is a fifth
            below its threshold.
        per_unit: items that one unit works on at once.
        idle_costs: whether a unit takes memory before it works, as a process does and a slot does not.

    Raises:
        SettingsError: a value that cannot be right.
    """

    target_wait: float = 1.0
    step: float = 4.0
    cooldown: float = 30.0
    memory_limit: int | None = None
    memory_share: float = 0.9
    cpu: float = 0.95
    lag: float = 0.5
    strain: float = 5.0
    per_unit: int = 1
    idle_costs: bool = False

    def __post_init__(self) -> None:
        wrong = [f"{name}={value!r} must be {what}" for name, value, fits, what in (
            ("target_wait", self.target_wait, self.target_wait > 0, "above 0"),
            ("step", self.step, self.step > 1, "above 1"),
            ("cooldown", self.cooldown, 0 <= self.cooldown < math.inf, "0 or more"),
            ("memory_limit", self.memory_limit, self.memory_limit is None or self.memory_limit > 0, "above 0"),
            ("memory_share", self.memory_share, 0 < self.memory_share <= 1, "above 0 and at most 1"),
            ("cpu", self.cpu, self.cpu > 0, "above 0"),
            ("lag", self.lag, self.lag > 0, "above 0"),
            ("strain", self.strain, self.strain >= 0, "0 or more"),
            ("per_unit", self.per_unit, self.per_unit >= 1, "1 or more"),
        ) if not fits]
        if wrong:
            raise SettingsError(f"These rules of scaling cannot be right: {'; '.join(wrong)}.")

    @classmethod
    def of(cls, settings: Settings, **changes: Any) -> "Rules":
        """The rules in the settings.

        Args:
            settings: ours.
            changes: in place of theirs.
        """
        given = {"target_wait": settings.autoscale_target_wait, "step": settings.autoscale_step,
                 "cooldown": settings.autoscale_cooldown, "memory_limit": settings.autoscale_memory,
                 "memory_share": settings.autoscale_memory_share, "cpu": settings.autoscale_cpu,
                 "lag": settings.autoscale_lag, "strain": settings.autoscale_strain}
        return cls(**{**given, **changes})


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What was measured. What is not known is None, and bounds nothing.

    Attributes:
        size: units that there are.
        busy: items under way; the units that they run on are never taken away.
        backlog: items that wait.
        seconds: that an item takes.
        waited: seconds that the items lately begun had waited.
        memory: bytes in use.
        unit_memory: bytes that one more unit takes.
        cpu: share of the processors' time in use, 0 to 1.
        lag: seconds that the event loop is late.
        quota: units that those who are called can make use of.
    """

    size: int
    busy: int = 0
    backlog: int = 0
    seconds: float | None = None
    waited: float | None = None
    memory: int | None = None
    unit_memory: float | None = None
    cpu: float | None = None
    lag: float | None = None
    quota: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a policy decided.

    Attributes:
        size: units that there should be.
        bound: what fixed that.
        need: units that the load asks for, without any limit.
        load: what was measured.
    """

    size: int
    bound: Bound
    need: int
    load: Load

    @property
    def change(self) -> int:
        """Units to add, or below 0 to take away."""
        return self.size - self.load.size

    def to_dict(self) -> dict[str, Any]:
        """As JSON data: size, bound and need, and what was measured."""
        return {"size": self.size, "bound": self.bound.value, "need": self.need, "load": asdict(self.load)}

    def __str__(self) -> str:
        load = self.load
        shown = {
            "busy": load.busy, "backlog": load.backlog, "need": self.need, "seconds": _short(load.seconds),
            "waited": _short(load.waited), "lag": _short(load.lag), "cpu": _short(load.cpu),
            "memory": None if load.memory is None else f"{load.memory / 2**20:.0f}MiB", "quota": load.quota,
        }
        inputs = " ".join(f"{name}={value}" for name, value in shown.items() if value is not None)
        return f"size={load.size}->{self.size} bound={self.bound} {inputs}"


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
