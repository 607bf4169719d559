"""What a process has counted since it started, as plain numbers by key: what the relay carries and the exporter reads.

A key is the name of a family and its labels, of a histogram also the class, or "sum".
"""

from collections import defaultdict
from collections.abc import Iterable

from callsheet.resources.accounts import LABELS, NAMES, Usage, process_latencies, process_rows
from callsheet.resources.breaker import breaker_states
from callsheet.resources.counters import counts
from callsheet.resources.limits.gates import waiting
from callsheet.resources.timings import outcomes, spreads, told_apart

Key = tuple[str, ...]
Totals = dict[Key, float]

_AGENT, _ENDPOINT, _MODEL = (LABELS.index(label) for label in ("agent", "endpoint", "model"))


def counted() -> Totals:
    """What only grows."""
    found: defaultdict[Key, float] = defaultdict(float)
    for (name, endpoint, detail), value in counts().items():
        found["counter", name, endpoint, detail] += value
    for (kind, label), (classes, total) in spreads().items():
        for number, value in enumerate(classes):
            if value:
                found["spread", kind, label, str(number)] = value
        found["spread", kind, label, "sum"] = total
    for (agent, outcome), value in outcomes().items():
        found["ended", agent, outcome] = value
    _usage(found)
    return dict(found)


def _usage(found: defaultdict[Key, float]) -> None:
    """Tenants are left out: there may be any number of them."""
    for row, numbers in process_rows().items():
        usage = Usage.from_numbers(numbers)
        agent = told_apart(row[_AGENT]) if row[_AGENT] else ""
        for name in NAMES:
            value = getattr(usage, name)
            if value:
                found["usage", agent, row[_ENDPOINT], row[_MODEL], name] += value
        found["spread", "model", row[_ENDPOINT], "sum"] += usage.seconds
    for endpoint, classes in process_latencies().items():
        for number, value in enumerate(classes):
            if value:
                found["spread", "model", endpoint, str(number)] = value


def together(totals: Totals, states: Iterable[Totals]) -> tuple[Totals, Totals]:
    """The counts of a worker, and what is so in it now: this process's with those of its own processes."""
    all_counts = counted()
    for key, value in totals.items():
        all_counts[key] = all_counts.get(key, 0.0) + value
    now: Totals = {}
    for one in (current(), *states):
        for key, value in one.items():
            known = now.get(key, 0.0)
            now[key] = known + value if key[0] == "waiting" else max(known, value)
    return all_counts, now


def current() -> Totals:
    """What is so now in this process."""
    found: Totals = {("waiting", endpoint): float(number) for endpoint, number in waiting().items()}
    found |= {("left_alone", endpoint): float(alone) for endpoint, alone in breaker_states().items()}
    return found
