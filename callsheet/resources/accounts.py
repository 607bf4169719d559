"""What outbound calls took: tokens, cost, retries, time; by agent, tenant, endpoint and model.

Kept three times: in this process since it started (`snapshot`), by job, and by day for the whole fleet. This module
counts, `books` writes to Redis and reads.
"""

import logging
import os
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal
from weakref import WeakValueDictionary

from callsheet.errors import UsageError
from callsheet.resources.breaker import left_alone
from callsheet.resources.record import CallRecord, on_finished
from callsheet.resources.timings import counts
from callsheet.settings import get_settings
from callsheet.settings.endpoints import price_of

log = logging.getLogger(__name__)

By = Literal["agent", "tenant", "endpoint", "model"]
LABELS: tuple[By, ...] = ("agent", "tenant", "endpoint", "model")

MOST_ROWS = 10_000
"""Combinations of agent, tenant, endpoint and model that are told apart; more are counted under OTHERS."""

OTHERS = "(others)"

LATENCIES = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds: upper bounds of the classes in which a process counts its calls."""

_NANO, _MICRO = 10**9, 10**6


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What calls took.

    Attributes:
        calls: requests as their callers saw them, tries included.
        errors: of them, those that ended without an answer under 400.
        retries: requests that were sent again.
        fallbacks: calls that were made because another endpoint or model could not answer.
        input_tokens: of prompts, cached ones included, as the providers reported; over all tries.
        output_tokens: of answers.
        cached_tokens: of the input tokens, those that the provider had in its cache.
        unpriced: calls with tokens and no price in the settings: `cost` lacks them.
        cost: by the prices in the settings, in their currency.
        waited: seconds that the calls waited for their turn, or between two tries.
        seconds: from each call to the end of its answer, waiting included.
    """

    calls: int = 0
    errors: int = 0
    retries: int = 0
    fallbacks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unpriced: int = 0
    cost: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    @property
    def latency(self) -> float:
        """Seconds that a call took on average; 0 without calls."""
        return self.seconds / self.calls if self.calls else 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in NAMES})

    @classmethod
    def from_numbers(cls, numbers: Iterable[int]) -> "Usage":
        """Of whole numbers, one for each attribute: cost in billionths, times in millionths."""
        named: dict[str, Any] = dict(zip(NAMES, numbers, strict=True))
        for name, unit in _UNITS.items():
            named[name] /= unit
        return Usage(**named)


NAMES = tuple(field.name for field in fields(Usage))
_UNITS = {"cost": _NANO, "waited": _MICRO, "seconds": _MICRO}

Row = tuple[str, str, str, str]
"""Agent, tenant, endpoint and model."""

Rows = dict[Row, list[int]]


def add_numbers(rows: Rows, row: Row, numbers: list[int]) -> None:
    """Add to a row, or to that of all others where there are too many."""
    if row not in rows and len(rows) >= MOST_ROWS:
        row = others(row)
    known = rows.get(row)
    rows[row] = numbers if known is None else [a + b for a, b in zip(known, numbers, strict=True)]


def others(row: Row) -> Row:
    """The row under which it is counted when there are too many."""
    return (OTHERS, OTHERS if row[1] else "", row[2], OTHERS)


@dataclass(frozen=True, kw_only=True)
class JobUsage(Usage):
    """What a job's calls took, those of the jobs that its agents made included.

    Attributes:
        rows: the parts, by agent, tenant, endpoint and model.
    """

    rows: tuple[tuple[Row, Usage], ...] = ()

    @classmethod
    def of(cls, rows: Rows) -> "JobUsage":
        """The sum of rows."""
        parts = tuple((row, Usage.from_numbers(numbers)) for row, numbers in sorted(rows.items()))
        total = sum((part for _, part in parts), Usage())
        return cls(**{name: getattr(total, name) for name in NAMES}, rows=parts)

    def by(self, what: By) -> dict[str, Usage]:
        """The parts, by "agent", "tenant", "endpoint" or "model"."""
        return grouped(self.rows, what)


def grouped(rows: Iterable[tuple[Row, Usage]], what: By) -> dict[str, Usage]:
    """Rows summed by one of their labels.

    Raises:
        UsageError: there is no such label.
    """
    if what not in LABELS:
        raise UsageError(f"by={what!r}: one of {', '.join(LABELS)} is needed.")
    index, out = LABELS.index(what), dict[str, Usage]()
    for row, usage in rows:
        out[row[index]] = out.get(row[index], Usage()) + usage
    return dict(sorted(out.items()))


class LocalAccount:
    """What the calls of a job that runs in this process took."""

    def __init__(self) -> None:
        self.rows: Rows = {}


_lock = threading.Lock()
_process: Rows = {}
_latencies: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(LATENCIES) + 1))
_local: "WeakValueDictionary[str, LocalAccount]" = WeakValueDictionary()
Poster = Callable[[CallRecord, Row, list[int]], None]
_posters: list[Poster] = []


def on_counted(post: Poster) -> None:
    """Have `post` called with each record that counts, its row and its numbers; `books` does."""
    _posters.append(post)


def local_account(job_id: str) -> LocalAccount:
    """The account of a job that runs inline; kept as long as whoever asked for it keeps it."""
    account = _local.get(job_id)
    if account is None:
        account = _local[job_id] = LocalAccount()
    return account


def numbers_of(record: CallRecord) -> list[int]:
    """What one call took, as `Usage.from_numbers` takes it."""
    answered = record.error is None and record.status is not None and record.status < 400
    end = record.finished if record.finished is not None else record.started
    tokens, out, cached, written, lasting = (number or 0 for number in record.tokens)
    cost, unpriced = 0.0, 0
    if tokens or out:
        settings = get_settings()
        endpoint = settings.endpoints.get(record.endpoint)
        price = price_of(record.model, endpoint.prices if endpoint is not None else {}, settings.prices)
        if price is None:
            unpriced = 1
        else:
            cost = price.of(tokens, out, cached, written, lasting)
    return [1, int(not answered), record.retries, int(bool(record.fallback)), tokens, out, cached, unpriced,
            round(cost * _NANO), round((record.queued + record.paused) * _MICRO),
            max(0, round((end - record.started) * _MICRO))]


def _count(record: CallRecord) -> None:
    numbers, context = numbers_of(record), record.context
    row = (context.agent or "", context.tenant or "", record.endpoint, record.model)
    with _lock:
        add_numbers(_process, row, numbers)
        _latencies[record.endpoint][bisect_left(LATENCIES, numbers[-1] / _MICRO)] += 1
        if context.notes is not None:
            context.notes.spent(numbers)
        if context.local:
            for job in (context.job, *context.parents):
                account = _local.get(job) if job else None
                if account is not None:
                    add_numbers(account.rows, row, numbers)
    if context.job and not context.local:
        for post in _posters:
            post(record, row, numbers)


def _forget() -> None:
    global _lock  # noqa: PLW0603 - a child may have been forked while a thread that tells of the counts held it
    _lock = threading.Lock()
    _process.clear()
    _latencies.clear()


def _count_safely(record: CallRecord) -> None:
    try:
        _count(record)
    except Exception:  # a call is worth more than its count
        log.exception("usage_uncounted endpoint=%s", record.endpoint)


on_finished(_count_safely)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def process_rows() -> Rows:
    """This process's counts since it started."""
    with _lock:
        return dict(_process)


def process_latencies() -> dict[str, list[int]]:
    """This process's calls since it started, by endpoint and class of LATENCIES, the last being open."""
    with _lock:
        return {name: list(classes) for name, classes in _latencies.items()}


def snapshot() -> dict[str, Any]:
    """This process's counts since it started, as JSON data, for an exporter of metrics.

    Returns:
        `usage`: a dictionary for each agent, tenant, endpoint and model, with the numbers of Usage; `latency`: by
        endpoint, calls by their seconds, `bounds` being the classes' upper ones and the last class open; `left_alone`:
        names of endpoints whose breaker is open; `counters`: dictionaries with name, endpoint, detail and value.
    """
    rows, latencies = process_rows(), process_latencies()
    return {
        "usage": [{**dict(zip(LABELS, row, strict=True)), **asdict(Usage.from_numbers(numbers))}
                  for row, numbers in rows.items()],
        "latency": {name: {"bounds": list(LATENCIES), "counts": classes} for name, classes in latencies.items()},
        "left_alone": left_alone(),
        "counters": [{"name": name, "endpoint": endpoint, "detail": detail, "value": value}
                     for (name, endpoint, detail), value in sorted(counts().items())],
    }
