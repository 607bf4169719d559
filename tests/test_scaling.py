"""The scaling policy: its bounds for any load, what it makes of known ones, and of clocks that jump."""

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.traces import TRACES, Point, Trace, noisy, picture, simulate
from callsheet.errors import SettingsError
from callsheet.scaling import Bound, Decision, Limits, Load, Policy, Rules

TENS = Limits(minimum=10, maximum=1000)
IDLE = Load(size=10)


def trace(name: str) -> list[Point]:
    return simulate(next(trace for trace in TRACES if trace.name == name))


def decisions(policy: Policy, size: int, loads: Iterable[dict[str, float]], every: float = 1.0,
              start: float = 0.0) -> list[Decision]:
    """One decision after the other; each is carried out."""
    made = []
    for i, load in enumerate(loads):
        made.append(policy.decide(Load(size=size, **load), start + i * every))
        size = made[-1].size
    return made


def settled(size: int, **load: float) -> Decision:
    """What is decided once the same load has lasted."""
    rules = Rules(memory_limit=1000) if "memory" in load else Rules()
    return decisions(Policy(TENS, rules), size, [load] * 40)[-1]


# Bounds, for any load

anything = st.floats(min_value=-1e9, max_value=1e9) | st.sampled_from([math.nan, math.inf, -math.inf])
loads = st.builds(
    Load, size=st.integers(0, 3000), busy=st.integers(-5, 3000), backlog=st.integers(-5, 10**6),
    seconds=st.none() | anything, waited=st.none() | anything, memory=st.none() | st.integers(0, 10**10),
    unit_memory=st.none() | anything, cpu=st.none() | anything, lag=st.none() | anything,
    quota=st.none() | st.integers(-5, 3000))
limits = st.tuples(st.integers(0, 1500), st.integers(1, 1500)).map(
    lambda pair: Limits(minimum=min(pair), maximum=max(pair)))
rules = st.builds(
    Rules, target_wait=st.floats(0.01, 60), step=st.floats(1.01, 1e6), cooldown=st.floats(0, 600),
    memory_limit=st.none() | st.integers(1, 10**9),
    memory_share=st.floats(0.1, 1), cpu=st.floats(0.1, 1), lag=st.floats(0.01, 2), strain=st.floats(0, 30),
    per_unit=st.integers(1, 100), idle_costs=st.booleans())


@given(limits, rules, st.lists(st.tuples(loads, anything), min_size=1, max_size=30))
def test_the_size_stays_within_its_bounds_whatever_is_measured(
        limits: Limits, rules: Rules, steps: list[tuple[Load, float]]) -> None:
    policy = Policy(limits, rules)
    for load, now in steps:
        decision = policy.decide(load, now)
        running = -(-max(0, load.busy) // rules.per_unit)
        assert limits.minimum <= decision.size <= max(limits.maximum, running)
        assert decision.size >= running
        assert isinstance(decision.bound, Bound)
        assert str(decision)


@given(limits, rules, st.lists(loads, min_size=1, max_size=30))
def test_where_nothing_waits_the_size_never_grows(limits: Limits, rules: Rules, steps: list[Load]) -> None:
    policy = Policy(limits, rules)
    size = max(limits.minimum, min(limits.maximum, steps[0].size))
    for i, load in enumerate(steps):
        busy = min(max(0, load.busy), size * rules.per_unit)
        decision = policy.decide(Load(size=size, busy=busy, memory=load.memory, cpu=load.cpu, quota=load.quota), i)
        assert decision.size <= size
        size = decision.size


@given(rules, st.integers(0, 1000), st.integers(1, 10**6))
def test_one_step_up_is_no_more_than_what_waits(rules: Rules, busy: int, backlog: int) -> None:
    policy = Policy(Limits(minimum=1, maximum=10**9), rules)
    size = max(1, -(-busy // rules.per_unit))
    decision = policy.decide(Load(size=size, busy=busy, backlog=backlog), 0)
    assert decision.change <= -(-backlog // rules.per_unit)


@given(rules, st.integers(11, 1000))
def test_one_step_down_is_never_the_whole_way(rules: Rules, peak: int) -> None:
    policy = Policy(TENS, Rules(cooldown=max(0.1, rules.cooldown)))
    sizes = [d.size for d in decisions(policy, peak, [{}] * 20, every=1e6)]
    assert sizes[-1] == 10
    assert sizes[0] == sizes[1] == peak  # a clock that jumps by days makes no cooldown pass at once
    for before, after in itertools.pairwise(sizes):
        assert before - after <= math.ceil(0.7 * (peak - 10)) + 1


@given(st.floats(0.1, 10), st.integers(1, 900))
def test_what_waits_gets_as_many_units_as_it_needs_to_be_begun_in_time(seconds: float, backlog: int) -> None:
    decision = Policy(TENS).decide(Load(size=10, busy=10, backlog=backlog, seconds=seconds), 0)
    assert decision.need == 10 + math.ceil(backlog * min(1.0, seconds))


@given(st.floats(1.1, 10), st.integers(1, 900))
def test_one_decision_leads_to_a_few_times_the_size_at_most(step: float, size: int) -> None:
    sizes = [d.size for d in decisions(Policy(TENS, Rules(step=step)), size, [{"backlog": 10**6}] * 60)]
    assert sizes[-1] == 1000
    for before, after in itertools.pairwise([max(10, size), *sizes]):
        assert after <= max(10, math.ceil(step * before))


# Known loads

def test_a_step_up_is_followed_at_once_and_a_step_down_within_the_cooldown() -> None:
    points = trace("step")
    assert max(point.backlog for point in points) <= 300 * Rules().target_wait
    assert all(300 <= point.size <= 345 for point in points if 12 <= point.time < 75)
    sizes = [point.size for point in points if point.time >= 62]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 5  # bit by bit
    assert all(point.size == 10 for point in points if point.time >= 61 + Rules().cooldown)


def test_a_ramp_is_followed_and_nothing_waits_for_longer_than_a_decision_takes() -> None:
    points = trace("ramp")
    assert max(point.backlog / 8 / max(1, min(point.time - 10, 100 - point.time)) for point in points
               if 12 < point.time < 98) <= 1.5
    assert points[-1].size == 10


def test_a_spike_is_met_with_all_there_is_and_leaves_nothing_behind() -> None:
    points = trace("spike")
    assert max(point.size for point in points) == 1000
    assert points[-1].size == points[-1].busy == 20


def test_a_sawtooth_within_the_cooldown_does_not_move_the_size_much() -> None:
    sizes = [point.size for point in trace("sawtooth") if point.time > 40]
    assert min(sizes) > 0.8 * max(sizes)


def test_bursts_at_night_are_met_one_by_one_and_cost_nothing_between() -> None:
    points = [point for point in trace("night bursts") if 60 <= point.time < 240]
    for start in (60, 120, 180):
        burst = [point for point in points if start <= point.time < start + 60]
        assert 400 <= max(point.size for point in burst) <= 450
        assert max(point.backlog for point in burst) <= 400
        assert burst[-5].size == 10


def test_a_load_with_chance_in_it_does_not_make_the_size_swing() -> None:
    points = simulate(Trace("noise", noisy(100), until=240))
    sizes = [point.size for point in points if point.time > 60]
    assert max(sizes) < 1.5 * min(sizes)
    assert max(point.backlog for point in points if point.time > 10) < 100


def test_a_quota_is_all_that_is_used() -> None:
    points = trace("quota")
    assert max(point.size for point in points) == 60
    assert {point.decision.bound for point in points if 20 < point.time < 60} == {Bound.QUOTA}


# Bounds, one by one

@pytest.mark.parametrize(("size", "load", "expected", "bound"), [
    (10, {}, 10, Bound.MINIMUM),
    (10, {"busy": 10, "backlog": 5}, 15, Bound.BACKLOG),
    (40, {"busy": 40}, 40, Bound.BUSY),
    (300, {"busy": 300, "backlog": 5000}, 1000, Bound.MAXIMUM),
    (10, {"busy": 10, "backlog": 500, "quota": 30}, 30, Bound.QUOTA),
    (10, {"busy": 10, "backlog": 500, "quota": 3}, 10, Bound.BUSY),
    (50, {"busy": 20, "backlog": 500, "memory": 950}, 50, Bound.MEMORY),
    (50, {"busy": 20, "backlog": 500, "memory": 1000}, 20, Bound.MEMORY),
    (50, {"busy": 2, "backlog": 500, "memory": 1001}, 10, Bound.MINIMUM),
    (20, {"busy": 20, "backlog": 500, "memory": 700, "unit_memory": 10.0}, 40, Bound.MEMORY),
], ids=lambda value: str(value) if isinstance(value, Bound) else "")
def test_a_decision_says_what_bounds_it(size: int, load: dict[str, float], expected: int, bound: Bound) -> None:
    rules = Rules(memory_limit=1000) if "memory" in load else Rules()
    decision = Policy(TENS, rules).decide(Load(size=size, **load), 0)
    assert (decision.size, decision.bound) == (expected, bound)


@pytest.mark.parametrize(("strain", "bound"), [({"cpu": 1.0}, Bound.CPU), ({"lag": 0.7}, Bound.LAG)])
def test_a_strain_that_lasts_holds_the_size(strain: dict[str, float], bound: Bound) -> None:
    busy = {"busy": 50, "backlog": 500, **strain}
    made = decisions(Policy(TENS), 50, [{"busy": 50, **strain}] * 5 + [busy] * 60)
    assert [d.size for d in made] == [50] * 65
    assert made[-1].bound is bound


def test_a_minimum_of_nothing_is_a_minimum_and_work_leaves_it() -> None:
    policy = Policy(Limits(minimum=0, maximum=5))
    assert policy.decide(Load(size=0), 0).bound is Bound.MINIMUM
    assert policy.decide(Load(size=0, backlog=9), 1).size == 4
    assert policy.decide(Load(size=4, busy=4, backlog=5), 1).size == 5


def test_a_strain_of_a_moment_holds_nothing() -> None:
    made = decisions(Policy(TENS), 10, [{"busy": 10, "backlog": 20, "cpu": 1.0, "lag": 2.0}])
    assert made[0].size == 30


def test_a_strain_ends_well_below_its_threshold_only() -> None:
    strained = [{"busy": 50, "cpu": 0.99}] * 10
    still = decisions(Policy(TENS), 50, [*strained, {"busy": 50, "backlog": 5, "cpu": 0.8}])
    over = decisions(Policy(TENS), 50, [*strained, {"busy": 50, "backlog": 5, "cpu": 0.7}])
    assert (still[-1].size, over[-1].size) == (50, 55)


def test_a_size_over_its_quota_goes_down_with_the_cooldown_and_not_at_once() -> None:
    made = decisions(Policy(TENS), 500, [{"backlog": 900, "quota": 60}] * 40)
    assert made[0].size == 500
    assert made[0].bound is Bound.COOLDOWN
    assert made[-1].size == 60
    assert made[-1].bound is Bound.QUOTA


def test_processes_take_memory_before_they_work_and_slots_only_when_they_do() -> None:
    load = Load(size=5, busy=1, backlog=50, memory=500, unit_memory=100.0)
    few = Limits(minimum=1, maximum=50)
    processes = Policy(few, Rules(memory_limit=1000, idle_costs=True)).decide(load, 0)
    slots = Policy(few, Rules(memory_limit=1000)).decide(load, 0)
    assert (processes.size, slots.size) == (9, 5)


def test_units_that_hold_many_items_are_counted_by_what_they_hold() -> None:
    policy = Policy(Limits(minimum=1, maximum=8), Rules(per_unit=500))
    assert policy.decide(Load(size=1, busy=500, backlog=900), 0).size == 3
    assert policy.decide(Load(size=3, busy=1400, backlog=0), 1).size == 3


# Clocks

def test_a_clock_that_goes_back_stands_still_and_goes_on() -> None:
    policy = Policy(TENS)
    decisions(policy, 400, [{}] * 14, start=5000)
    made = decisions(policy, 400, [{}] * 30, start=100)
    assert made[0].size == 400
    assert made[-1].size == 10
    sizes = [d.size for d in made]
    assert sizes == sorted(sizes, reverse=True)
    assert max(before - after for before, after in itertools.pairwise([400, *sizes])) < 60


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, 1e308, -1e308])
def test_a_clock_that_makes_no_sense_changes_nothing(now: float) -> None:
    policy = Policy(TENS)
    decisions(policy, 400, [{}] * 3)
    assert policy.decide(Load(size=400), now).size == 400
    made = decisions(policy, 400, [{}] * 60, start=3)
    assert made[-1].size == 10


# Given limits

@pytest.mark.parametrize(("minimum", "maximum"), [(5, 2), (-1, 2), (0, 0), (3, -3)])
def test_limits_that_leave_no_size_are_refused(minimum: int, maximum: int) -> None:
    with pytest.raises(SettingsError, match=f"maximum of {maximum} and a minimum of {minimum}"):
        Limits(minimum=minimum, maximum=maximum)


def test_rules_that_cannot_be_right_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"target_wait=0 .*cooldown=-1 .*memory_limit=0 .*per_unit=0"):
        Rules(target_wait=0, cooldown=-1, memory_limit=0, per_unit=0)


def test_limits_may_change_and_what_runs_above_the_new_ones_stays() -> None:
    policy = Policy(TENS)
    assert policy.decide(Load(size=50, busy=50, backlog=50), 0).size == 100
    policy.limits = Limits(minimum=2, maximum=20)
    above = policy.decide(Load(size=100, busy=60), 1)
    assert (above.size, above.bound) == (60, Bound.BUSY)
    assert policy.decide(Load(size=60, busy=5), 2).size == 20


def test_the_picture_shows_each_load() -> None:
    drawn = picture(TRACES[:2])
    text = [element.text for element in ET.fromstring(drawn).iter() if element.text]
    assert {"step", "ramp"} <= set(text)
