"""The limiter's rules, in simulated time: of the script in Redis, and of one process, which has one gate."""

import asyncio
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callsheet.resources.limits.local import LocalStore
from callsheet.resources.limits.messages import Answer, Ask, Limits, Message, Store
from callsheet.resources.limits.store import RedisStore
from callsheet.settings import Settings
from tests.services import RedisServer

_names = itertools.count()


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Gate:
    """A gate as far as the limiter can tell: it keeps count, and asks when it is told to."""

    bench: "Bench"
    name: str
    held: int = 0
    queued: dict[int, str] = field(default_factory=dict)
    sent: list[tuple[float, int]] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)

    def say(self, *asks: Ask, **more: Any) -> Answer:
        """One exchange at the bench's time."""
        for ask in asks:
            self.tokens[ask.id] = ask.tokens
        message = Message(gate=self.name, name=self.bench.name, limits=more.pop("limits", self.bench.limits),
                          held=self.held, queued=len(self.queued), asks=list(asks), **more)
        answer = self.bench.exchange(message)
        for grant in answer.grants:
            self.queued.pop(grant.id, None)
            self.held += 1
            self.sent.append((self.bench.clock.now, self.tokens[grant.id]))
        for call, entry, _ in answer.queued:
            self.queued[call] = entry
        for call, _, _ in answer.refused:
            self.queued.pop(call, None)
        return answer


class Bench:
    """One endpoint's limiter with a clock of its own."""

    def __init__(self, kind: str, limits: Limits, server: RedisServer | None) -> None:
        self.kind, self.limits, self.clock = kind, limits, Clock()
        self.name = f"rules-{next(_names)}"
        self.loop = asyncio.new_event_loop()
        self.store: Store
        if kind == "local":
            self.store = LocalStore(self.clock)
        else:
            assert server is not None
            self.store = RedisStore(Settings.load(redis_url=server.url), self.clock)

    def exchange(self, message: Message) -> Answer:
        return self.loop.run_until_complete(self.store.exchange(message))

    def gate(self, name: str = "g") -> Gate:
        return Gate(self, name)

    def most_gates(self, wanted: int) -> int:
        return wanted if self.kind == "redis" else 1

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


Make = Callable[..., Bench]


@pytest.fixture(params=["local", "redis"])
def bench(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Make]:
    yield from benches(request.param, redis_server)


@pytest.fixture
def fleet_bench(redis_server: RedisServer) -> Iterator[Make]:
    yield from benches("redis", redis_server)


def benches(kind: str, server: RedisServer) -> Iterator[Make]:
    made: list[Bench] = []

    def make(**limits: Any) -> Bench:
        made.append(Bench(kind, Limits(**limits), server))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ids(answer: Answer) -> list[int]:
    return [grant.id for grant in answer.grants]


def most_in_a_window(sent: list[tuple[float, int]], window: float) -> tuple[int, int]:
    """Requests and tokens in the fullest half-open window, as a provider with a sliding log counts them."""
    inside: deque[tuple[float, int]] = deque()
    most_r = most_t = tokens = 0
    for at, cost in sorted(sent):
        inside.append((at, cost))
        tokens += cost
        while inside[0][0] <= at - window:
            tokens -= inside.popleft()[1]
        most_r, most_t = max(most_r, len(inside)), max(most_t, tokens)
    return most_r, most_t


def press(one: Bench, gates: int, seconds: float, tokens: Callable[[], int] = lambda: 0,
          late: float = 0.0) -> list[tuple[float, int]]:
    """Gates that always have calls waiting and ask when their turn is told, `late` seconds at most after it.

    Returns:
        What was sent when, on the clock.
    """
    rng, start = random.Random(7), one.clock.now
    numbers = itertools.count()
    gates = one.most_gates(gates)
    made = [one.gate(f"g{i}") for i in range(gates)]
    due = dict.fromkeys(range(gates), start)
    while (at := min(due.values())) < start + seconds:
        index = min(due, key=lambda i: due[i])
        one.clock.now = max(one.clock.now, at)
        gate = made[index]
        asks = [Ask(id=next(numbers), tokens=tokens()) for _ in range(20 - len(gate.queued))]
        answer = gate.say(*asks)
        gate.held = 0
        due[index] = one.clock.now + min(1.0, max(answer.turn or 0.0, 0.001)) + rng.random() * late
    return [sent for gate in made for sent in gate.sent]


def test_full_pressure_uses_the_rate_and_no_window_has_more(bench: Make) -> None:
    one = bench(requests=600)
    sent = press(one, 4, 180)
    assert most_in_a_window(sent, 60)[0] <= 600
    assert len(sent) >= 0.97 * 600 * 3


def test_tokens_too(bench: Make) -> None:
    rng = random.Random(1)
    one = bench(requests=600, tokens=60_000)
    sent = press(one, 4, 180, lambda: rng.randint(50, 400))
    requests, tokens = most_in_a_window(sent, 60)
    assert requests <= 600 and tokens <= 60_000
    assert sum(cost for _, cost in sent) >= 0.97 * 60_000 * 3


def test_late_gates_lose_little_and_exceed_nothing(bench: Make) -> None:
    one = bench(requests=300)
    sent = press(one, 3, 120, late=0.3)
    assert most_in_a_window(sent, 60)[0] <= 300
    assert len(sent) >= 0.97 * 300 * 2


def test_after_the_first_burst_calls_are_spread(bench: Make) -> None:
    one = bench(requests=600)
    sent = [at - one.clock.now for at, _ in press(one, 4, 120)]
    start = min(sent)
    by_second = Counter(int(at - start) for at in sent)
    assert by_second[0] <= 600 * 0.2 + 11
    assert max(count for second, count in by_second.items() if second) <= 22  # twice the even rate, at the seams


def test_the_line_is_one_for_all_gates(fleet_bench: Make) -> None:
    one = fleet_bench(calls=1)
    holder, first, second = one.gate("holder"), one.gate("first"), one.gate("second")
    assert ids(holder.say(Ask(id=1))) == [1]
    first.say(Ask(id=1), Ask(id=2))
    second.say(Ask(id=1))
    first.say(Ask(id=3))
    second.say(Ask(id=2, priority=1))
    order: list[tuple[str, int]] = []
    while len(order) < 5:
        holder.held = first.held = second.held = 0
        for gate in (holder, first, second):
            order += [(gate.name, call) for call in ids(gate.say())]
    assert order == [("second", 2), ("first", 1), ("first", 2), ("second", 1), ("first", 3)]


def test_tenants_get_what_their_weights_say(bench: Make) -> None:
    one = bench(calls=1)
    gate = one.gate()
    gate.say(Ask(id=0))
    gate.say(*[Ask(id=100 + i, tenant="a") for i in range(40)], *[Ask(id=200 + i, tenant="b", weight=3)
                                                                 for i in range(40)])
    served = []
    for _ in range(40):
        gate.held = 0
        served += ids(gate.say())
    assert 9 <= sum(call < 200 for call in served) <= 11
    # A tenant that comes later stands behind nobody's backlog.
    gate.say(Ask(id=300, tenant="c"))
    served = []
    for _ in range(3):
        gate.held = 0
        served += ids(gate.say())
    assert 300 in served


def test_a_gate_that_fell_silent_is_passed_over_and_asks_again_when_it_is_back(fleet_bench: Make) -> None:
    one = fleet_bench(calls=2)
    holder, silent, other = one.gate("holder"), one.gate("silent"), one.gate("other")
    holder.say(Ask(id=1), Ask(id=2))
    silent.say(Ask(id=1))
    other.say(Ask(id=1))
    holder.held = 1
    holder.say()
    assert ids(other.say()) == []  # the place is the silent one's
    for _ in range(4):
        one.clock.now += 1
        holder.say()
        answer = other.say()
    assert ids(answer) == [1]
    assert silent.say().resync
    silent.queued.clear()
    other.held = 0
    other.say()
    assert ids(silent.say(Ask(id=1))) == [1]


def test_calls_under_way_of_a_silent_gate_count_until_its_lease_is_over(fleet_bench: Make) -> None:
    one = fleet_bench(calls=1)
    gone, other = one.gate("gone"), one.gate("other")
    gone.say(Ask(id=1))
    for _ in range(14):
        one.clock.now += 1
        assert ids(other.say(*([] if other.queued else [Ask(id=1)]))) == []
    one.clock.now += 2
    assert ids(other.say()) == [1]
    gone.say()  # it lives after all: what it holds counts again
    other.held = 0
    assert ids(other.say(Ask(id=2))) == []


def test_a_pause_ends_at_an_even_pace_without_credit(bench: Make) -> None:
    one = bench(requests=600, burst=0.5)
    gate = one.gate()
    gate.say(*[Ask(id=i) for i in range(20)], pause=30.0)
    sent = []
    start = one.clock.now
    while len(sent) < 20:
        answer = gate.say()
        sent += [one.clock.now - start] * len(answer.grants)
        one.clock.now += max(answer.turn or 0.0, 0.001)
    assert sent[0] == pytest.approx(30, abs=0.01) and sent[-1] == pytest.approx(31.9, abs=0.05)


def test_only_who_cannot_wait_is_refused_and_told_for_how_long(bench: Make) -> None:
    one = bench(requests=60, burst=0.01)
    gate = one.gate()
    gate.say(*[Ask(id=i) for i in range(11)])  # one goes, ten wait
    answer = gate.say(Ask(id=20, longest=5.0), Ask(id=21, longest=30.0), Ask(id=22))
    [(call, limit, seconds)] = answer.refused
    assert (call, limit) == (20, "rpm") and seconds == pytest.approx(11, abs=1.1)
    assert [one[0] for one in answer.queued] == [21, 22]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_window_ever_has_more_whatever_is_asked_when(bench: Make, data: st.DataObject) -> None:
    limits = data.draw(st.fixed_dictionaries({
        "requests": st.one_of(st.none(), st.integers(1, 60)), "tokens": st.one_of(st.none(), st.integers(100, 5000)),
        "window": st.sampled_from([1.0, 10.0, 60.0]), "burst": st.sampled_from([0.05, 0.2, 1.0])}))
    one = bench(**limits)
    gates = [one.gate(f"g{i}") for i in range(one.most_gates(3))]
    numbers = itertools.count()
    for _ in range(data.draw(st.integers(1, 60))):
        gate = data.draw(st.sampled_from(gates))
        one.clock.now += data.draw(st.sampled_from([0.0, 0.001, 0.05, 0.5, 3.0, 30.0])) * limits["window"] / 60
        asks = [Ask(id=next(numbers), tokens=data.draw(st.integers(1, 400)), priority=data.draw(st.integers(0, 9)))
                for _ in range(data.draw(st.integers(0, 30)))]
        gate.say(*asks)
        gate.held = 0
    requests, tokens = most_in_a_window([sent for gate in gates for sent in gate.sent], limits["window"])
    assert limits["requests"] is None or requests <= limits["requests"]
    assert limits["tokens"] is None or tokens <= limits["tokens"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_script_and_the_limiter_of_one_process_say_the_same(redis_server: RedisServer, data: st.DataObject) -> None:
    limits = Limits(data.draw(st.one_of(st.none(), st.integers(1, 50))),
                    data.draw(st.one_of(st.none(), st.integers(100, 5000))),
                    data.draw(st.one_of(st.none(), st.integers(1, 6))),
                    data.draw(st.sampled_from([1.0, 60.0])), data.draw(st.sampled_from([0.1, 1.0])))
    both = [Bench("local", limits, None), Bench("redis", limits, redis_server)]
    try:
        pair = [one.gate() for one in both]
        numbers = itertools.count()
        for _ in range(data.draw(st.integers(1, 25))):
            step = data.draw(st.sampled_from([0.0, 0.001, 0.02, 0.7, 2.0, 4.0, 16.0, 61.0, 700.0, -1.0, -200.0]))
            asks = [Ask(id=next(numbers), tokens=data.draw(st.integers(0, 700)), priority=data.draw(st.integers(0, 9)),
                        tenant=data.draw(st.sampled_from(["", "a", "b"])), weight=data.draw(st.sampled_from([1, 2.5])),
                        longest=data.draw(st.sampled_from([-1, 0, 0.5, 30])))
                    for _ in range(data.draw(st.integers(0, 6)))]
            more: dict[str, Any] = {}
            if data.draw(st.integers(0, 5)) == 0:
                more["pause"] = data.draw(st.sampled_from([0.5, 7.25]))
            if data.draw(st.integers(0, 9)) == 0:
                more["learned"] = (data.draw(st.integers(0, 60)), data.draw(st.integers(0, 6000)))
            if data.draw(st.integers(0, 9)) == 0:
                more["foreign"] = (data.draw(st.integers(0, 50)), data.draw(st.integers(0, 9)),
                                   data.draw(st.integers(0, 900)))
            if data.draw(st.integers(0, 9)) == 0:
                more["resync"] = True
            drop = data.draw(st.integers(0, 3))
            ended = data.draw(st.integers(0, 3))
            answers = []
            for gate in pair:
                gate.bench.clock.now += step
                gate.held = max(0, gate.held - ended)
                bucket = int(gate.bench.clock.now // (limits.window / 100))
                settles = [(bucket - drop, -1, -30 * drop), (bucket, 0, 17)] if drop and gate.sent else []
                cancels = [gate.queued.pop(call) for call in list(gate.queued)[:drop]]
                if more.get("resync"):
                    gate.queued.clear()
                answers.append(gate.say(*asks, settles=settles, cancels=cancels, **more))
                if answers[-1].resync:
                    gate.queued.clear()
            mine, theirs = answers
            assert mine.turn == pytest.approx(theirs.turn, abs=1e-5) and mine.paused == pytest.approx(
                theirs.paused, abs=1e-5)
            assert [(call, why, pytest.approx(wait, abs=1e-5)) for call, why, wait in mine.refused] == theirs.refused
            for part in ("grants", "queued", "limit", "waiting", "resync"):
                assert getattr(mine, part) == getattr(theirs, part), part
            assert pair[0].queued == pair[1].queued
    finally:
        for one in both:
            one.close()
