"""The policy: target tracking with hysteresis, without clock or input of its own.

The size follows what runs and what waits: up at once, by as much of the backlog as must be begun together for none of
it to wait longer than the target, in a few steps where that is many times the size; down after a cooldown, bit by bit,
and never below what runs.
"""

import math

from callsheet.scaling.records import Bound, Decision, Limits, Load, Rules

_RELAXED = 0.8  # of a threshold: below that, what was strained is strained no more
_HOLD, _RELEASE = 0.5, 0.4  # of the cooldown: nothing happens; going down. Then it is over, a little early
_LONGEST_STEP = 0.25  # of the cooldown: what may pass between two decisions, whatever the clock says


class Policy:
    """Decides on one size, again and again.

    Args:
        rules: thresholds.
        limits: between what the size may move; may be set anew at any time.
    """

    def __init__(self, limits: Limits, rules: Rules | None = None) -> None:
        self.limits = limits
        self.rules = rules or Rules()
        self._held = _Held(self.rules.cooldown)
        self._cpu = _Strain(self.rules.cpu, self.rules.strain)
        self._lag = _Strain(self.rules.lag, self.rules.strain)
        self._seen: float | None = None
        self._time = 0.0  # passed, as far as the clock can be believed

    def decide(self, load: Load, now: float) -> Decision:
        """The size that there should be.

        Between minimum and maximum, unless more runs than the maximum: then as many as run. More than there are only
        where items wait, or units were lost.

        Args:
            load: as measured.
            now: seconds on any clock. One that goes backwards stands still; of one that jumps ahead only a part of
                the cooldown counts.
        """
        self._advance(now)
        rules, limits = self.rules, self.limits
        running = _units(max(0, load.busy), rules.per_unit)
        need = self._need(load)
        cap, why = min(self._caps(load, running), key=lambda found: found[0])
        wanted = max(limits.minimum, running, min(need, cap))
        held = self._held.follow(wanted, load.size, limits.minimum, self._time)
        size = min(held, limits.maximum, max(cap, load.size))  # what is held may stay, and not grow beyond a limit
        if rules.memory_limit is not None and load.memory is not None and load.memory >= rules.memory_limit:
            size, cap, why = min(size, running), min(cap, running), Bound.MEMORY
        if size < held:
            self._held.cut(size)
        size = max(size, limits.minimum, running)
        return Decision(size=size, bound=self._bound(size, need, cap, why, running), need=need, load=load)

    @property
    def remembered(self) -> list[float | None]:
        """What it goes by beside the next load, as JSON data: for one that is to go on elsewhere with `recall`."""
        return [self._held.peak, self._held.at, self._seen, self._time]

    def recall(self, remembered: list[float | None]) -> None:
        """Go on where another of the same rules stopped; strain of processors and loop counts anew."""
        peak, at, self._seen, time = remembered
        self._held.peak, self._held.at = None if peak is None else int(peak), at or 0.0
        self._time = time or 0.0

    def _advance(self, now: float) -> None:
        if not math.isfinite(now):
            return
        passed = max(0.0, now - (now if self._seen is None else self._seen))
        if self.rules.cooldown:
            passed = min(passed, _LONGEST_STEP * self.rules.cooldown)
        self._time += passed
        self._seen = now

    def _need(self, load: Load) -> int:
        """What runs, and the part of what waits that must run beside it to be begun in time.

        An item for whose time nothing is known gets a unit, as does each where items wait longer than they should.
        """
        rules, backlog = self.rules, max(0, load.backlog)
        late = max(0.0, load.waited or 0.0)
        slow = rules.target_wait if load.seconds is None else max(0.0, load.seconds)
        share = min(1.0, max(late, slow) / rules.target_wait)
        return _units(max(0, load.busy) + math.ceil(backlog * share), rules.per_unit)

    def _caps(self, load: Load, running: int) -> list[tuple[int, Bound]]:
        """How far each limit lets the need go."""
        rules = self.rules
        step = min(max(1, load.size, self.limits.minimum) * rules.step, 2.0**60)
        caps = [(self.limits.maximum, Bound.MAXIMUM), (math.ceil(step), Bound.BACKLOG)]
        if rules.memory_limit is not None and load.memory is not None:
            room = rules.memory_share * rules.memory_limit - load.memory
            if room <= 0:
                caps.append((load.size, Bound.MEMORY))
            elif load.unit_memory is not None and load.unit_memory > 0:
                base = load.size if rules.idle_costs else running
                caps.append((max(load.size, base + int(room / max(1.0, load.unit_memory))), Bound.MEMORY))
        if self._cpu.strained(load.cpu, self._time):
            caps.append((load.size, Bound.CPU))
        if self._lag.strained(load.lag, self._time):
            caps.append((load.size, Bound.LAG))
        if load.quota is not None:
            caps.append((max(0, load.quota), Bound.QUOTA))
        return caps

    def _bound(self, size: int, need: int, cap: int, why: Bound, running: int) -> Bound:
        reach = min(need, cap)
        if size == self.limits.minimum and not need:
            return Bound.MINIMUM
        if size == reach:
            return why if need > cap else Bound.BACKLOG if need > running else Bound.BUSY
        if size == running:
            return Bound.BUSY
        return Bound.MINIMUM if size == self.limits.minimum else Bound.COOLDOWN


class _Held:
    """The highest need of late, as it comes down.

    Args:
        cooldown: seconds until it has.

    Attributes:
        peak: that need.
        at: when it was.
    """

    def __init__(self, cooldown: float) -> None:
        self._hold, self._release = _HOLD * cooldown, _RELEASE * cooldown
        self.peak: int | None = None
        self.at = 0.0

    def follow(self, need: int, size: int, floor: int, time: float) -> int:
        """What is held now that so much is needed."""
        if self.peak is None:
            self.peak, self.at = size, time
        level = self._level(self.peak, floor, time)
        if need >= level:
            self.peak, self.at, level = need, time, need
        return level

    def cut(self, size: int) -> None:
        """No more than this is to be had."""
        assert self.peak is not None
        self.peak = min(self.peak, size)

    def _level(self, peak: int, floor: int, time: float) -> int:
        over = time - self.at - self._hold
        if peak <= floor or over <= 0:
            return peak
        left = 1 - over / self._release if over < self._release else 0.0
        return floor + math.ceil((peak - floor) * left)


class _Strain:
    """Whether something has been over its threshold for long.

    Args:
        threshold: from which it is strained.
        patience: seconds after which that counts.
    """

    def __init__(self, threshold: float, patience: float) -> None:
        self._threshold, self._patience = threshold, patience
        self._since: float | None = None

    def strained(self, value: float | None, time: float) -> bool:
        """Whether it counts, by its value now."""
        if value is None or value < _RELAXED * self._threshold:
            self._since = None
        elif self._since is None and value >= self._threshold:
            self._since = time
        return self._since is not None and time - self._since >= self._patience


def _units(items: int, per_unit: int) -> int:
    return -(-items // per_unit)
