"""What the scaling policy makes of made-up loads, and the pictures of it: `python -m benchmarks.traces [FOLDER]`.

A simulation: items arrive, wait, and take a time of their own on units that the policy adds and takes away.
"""

import math
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from callsheet.scaling import Bound, Decision, Limits, Load, Policy, Rules

TICK = 0.1  # seconds
AT_WORK = 0.1  # seconds between two decisions while items wait
DAY = 1200.0  # seconds of a simulated one


@dataclass
class Trace:
    """A load.

    Attributes:
        name: for people.
        rate: items that arrive in a second, by the time.
        until: seconds.
        seconds: that an item takes.
        limits: of the size.
        measured: more that the policy is told, by the time.
    """

    name: str
    rate: Callable[[float], float]
    until: float = 120.0
    seconds: float = 1.0
    limits: Limits = field(default_factory=lambda: Limits(minimum=10, maximum=1000))
    measured: Callable[[float], dict[str, float]] = lambda _: {}


@dataclass
class Point:
    time: float
    size: int
    busy: int
    backlog: int
    decision: Decision


def night(at: float) -> float:
    """A quiet day, and a night with bursts."""
    hour = at / DAY * 24 % 24
    if 1 <= hour < 5:
        return 400.0 if at % 60 < 5 else 0.0
    return 20 + 15 * math.sin((hour - 9) / 24 * 2 * math.pi)


TRACES = [
    Trace("step", lambda at: 300.0 if 10 <= at < 60 else 0.0),
    Trace("ramp", lambda at: max(0.0, min(at - 10, 100 - at)) * 8),
    Trace("spike", lambda at: 20000.0 if 20 <= at < 20.1 else 20.0, until=90),
    Trace("sawtooth", lambda at: (at % 20) * 30, until=160),
    Trace("night bursts", night, until=DAY),
    Trace("quota", lambda at: 75.0 if 10 <= at < 60 else 0.0, measured=lambda at: {"quota": 60}),
]


def simulate(trace: Trace, rules: Rules | None = None, every: float = 1.0) -> list[Point]:
    """Run a load through the policy, which decides `every` so many seconds, and more often while items wait."""
    policy = Policy(trace.limits, rules)
    size, queue, running = trace.limits.minimum, deque[float](), deque[float]()
    due, waited, next_decision, points = 0.0, 0.0, 0.0, []
    for step in range(round(trace.until / TICK)):
        now = step * TICK
        while running and running[0] <= now:
            running.popleft()
        due += trace.rate(now) * TICK
        queue.extend([now] * int(due))
        due -= int(due)
        while queue and len(running) < size:
            waited = now - queue.popleft()
            running.append(now + trace.seconds)
        if now >= next_decision - TICK / 2 or (queue and now >= next_decision - every + AT_WORK - TICK / 2):
            next_decision = now + every
            decision = policy.decide(Load(size=size, busy=len(running), backlog=len(queue), seconds=trace.seconds,
                                          waited=waited, **trace.measured(now)), now)
            size = decision.size
            while queue and len(running) < size:
                waited = now - queue.popleft()
                running.append(now + trace.seconds)
        points.append(Point(now, size, len(running), len(queue), decision))
    return points


# Pictures

WIDTH, HEIGHT, LEFT, TOP = 640, 190, 46, 24
SERIES = (("size", "#2563eb", "units"), ("busy", "#16a34a", "busy"), ("backlog", "#dc2626", "waiting"))
SHADES = {Bound.COOLDOWN: "#f1f5f9", Bound.MAXIMUM: "#fee2e2", Bound.QUOTA: "#fef3c7"}


def chart(trace: Trace, points: list[Point], top: int) -> list[str]:
    """One load as SVG elements."""
    most = max(max(getattr(point, name) for point in points) for name, _, _ in SERIES) or 1

    def x(at: float) -> float:
        return round(LEFT + at / trace.until * (WIDTH - LEFT - 10), 1)

    def y(value: float) -> float:
        return round(top + HEIGHT - 26 - value / most * (HEIGHT - 26 - TOP), 1)

    out = [f'<text x="{LEFT}" y="{top + 14}" class="name">{trace.name}</text>']
    start = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i].decision.bound != points[start].decision.bound:
            shade = SHADES.get(points[start].decision.bound)
            if shade:
                left, right = x(points[start].time), x(points[min(i, len(points) - 1)].time)
                out.append(f'<rect x="{left}" y="{y(most)}" width="{right - left:.1f}" height="{y(0) - y(most):.1f}" '
                           f'fill="{shade}"/>')
            start = i
    for value in (0, most):
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:,}</text>')
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(value)}" y2="{y(value)}" stroke="#cbd5e1"/>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        anchor = "end" if share == 1 else "middle"
        out.append(f'<text x="{x(share * trace.until)}" y="{y(0) + 14}" text-anchor="{anchor}">'
                   f'{share * trace.until:.0f} s</text>')
    for name, colour, _ in SERIES:
        values = [(point.time, getattr(point, name)) for point in points[::max(1, len(points) // 320)]]
        kept = [pair for i, pair in enumerate(values) if i in (0, len(values) - 1) or pair[1] != values[i - 1][1]
                or pair[1] != values[i + 1][1]]
        line = " ".join(f"{x(at):g},{y(value):g}" for at, value in kept)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return out


def picture(traces: list[Trace]) -> str:
    """All of them, one below the other."""
    height = HEIGHT * len(traces) + 26
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
           'font-size="10" fill="#334155">', "<style>.name{font-size:13px;font-weight:600}</style>",
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
    legend = [*((colour, label) for _, colour, label in SERIES), ("#e2e8f0", "cooldown"),
              ("#fecaca", "at the maximum"), ("#fde68a", "at the quota")]
    for i, (colour, label) in enumerate(legend):
        out.append(f'<rect x="{LEFT + i * 104}" y="8" width="10" height="8" fill="{colour}"/>'
                   f'<text x="{LEFT + 14 + i * 104}" y="16">{label}</text>')
    for i, trace in enumerate(traces):
        out += chart(trace, simulate(trace), 22 + i * HEIGHT)
    return "\n".join([*out, "</svg>\n"])


def noisy(rate: float, seed: int = 1) -> Callable[[float], float]:
    """A steady load with chance in it."""
    chance = random.Random(seed)
    return lambda _: max(0.0, chance.gauss(rate, rate / 3))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    path = folder / "scaling.svg"
    path.write_text(picture(TRACES))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
