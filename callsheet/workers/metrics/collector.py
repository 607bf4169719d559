"""Makes metrics of what a worker's rooms count anyway, when Prometheus asks; calls never touch a metric.

Every worker has those named here. Rooms offer more (`offers`).
"""

import platform
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import celery
from celery.worker import state
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import callsheet
from callsheet.errors import RedisUnavailable
from callsheet.hub.redis import HubLag, hub_lags
from callsheet.resources.accounts import LATENCIES
from callsheet.resources.backlog import UNACKED, backlogs
from callsheet.resources.offers import offers
from callsheet.resources.redis import sync_client, translated
from callsheet.resources.timings import BOUNDS, OTHERS
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.workers.gauges import gauge_of, pool_name, slot_numbers
from callsheet.workers.machine import cpu_seconds, memory_of
from callsheet.workers.metrics.relay import Totals, all_processes

PATIENCE = 2.0
"""Seconds that Redis is given to answer."""

_MOST_TASKS = 200


@dataclass(frozen=True)
class Told:
    """What Redis told."""

    waiting: dict[str, int]  # messages that wait, by queue
    held: int  # messages that workers hold
    hubs: tuple[HubLag, ...]  # those used last


class Broker:
    """Asks Redis, one question at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asking: threading.Thread | None = None
        self._told: Told | None = None

    def look(self, queues: Sequence[str]) -> Told | None:
        """What waits on these queues; None where Redis does not answer, now or since an earlier question."""
        asking = self._asking
        if asking is None or not asking.is_alive():
            self._told = None
            asking = self._asking = threading.Thread(target=self._ask, args=(queues,), daemon=True,
                                                     name="callsheet-metrics-redis")
            asking.start()
        asking.join(PATIENCE)
        return self._told

    def _ask(self, queues: Sequence[str]) -> None:
        try:
            with translated(self._settings):
                client = sync_client(self._settings)
                hubs = hub_lags(client, Keys(self._settings.key_prefix))
                self._told = Told(backlogs(queues, client), int(client.hlen(UNACKED)), tuple(hubs))
        except RedisUnavailable:
            self._told = None


class Family(NamedTuple):
    """One metric."""

    help: str  # what it is, with its unit
    labels: tuple[str, ...] = ()  # their names
    kind: str = "gauge"  # "gauge", "counter" or "histogram"
    bounds: tuple[float, ...] = BOUNDS  # of a histogram's classes, in seconds


KINDS: Mapping[str, Any] = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily,
                            "histogram": HistogramMetricFamily}
_PER_MODEL = ("agent", "endpoint", "model")

FAMILIES: Mapping[str, Family] = {
    # The worker
    "worker_info": Family("1, with what the worker is.", ("worker", "pool", "version", "celery", "python")),
    "slots": Family("Calls that may run at once; on a cpu worker its processes."),
    "slots_used": Family("Calls that run and hold a slot."),
    "slots_waiting": Family("Calls that the worker has taken and that wait for a slot."),
    "parked": Family("Calls that gave their slots back while they wait for jobs of theirs, or for their turn."),
    "parked_most": Family("Calls that may be parked at once (CALLSHEET_MAX_PARKED)."),
    "threads": Family("Threads in which plain code runs on an io worker."),
    "loop_lag_seconds": Family("How late the event loop of an io worker was when it was last looked at; 0 while no "
                               "call runs."),
    "loop_blocked": Family("Times that code blocked the event loop for too long.", kind="counter"),
    "pool_processes": Family("Processes of a cpu worker's pool."),
    "pool_resident_memory_bytes": Family("Memory that the pool's processes have resident, together."),
    "pool_cpu_seconds": Family("CPU time of the pool's processes that live, together; falls when one ends."),
    # Its queues
    "backlog": Family("Messages that wait on a queue that the worker reads; each of its workers tells the same.",
                      ("queue",)),
    "unacknowledged": Family("Messages that all workers of this Redis hold; each worker tells the same."),
    "redis_up": Family("1 where Redis answered within two seconds, else 0."),
    "time_in_queue_seconds": Family("From when a call was sent until it began.", ("queue",), "histogram"),
    "hub_lag_messages": Family("Messages that the member furthest behind has yet to hear, of the 20 hubs used last; "
                               "each worker tells the same."),
    # Calls
    "tasks": Family("Tasks that began; an agent's calls go by the name of its class.", ("task",), "counter"),
    "replies": Family("Tries of agents' calls that ended: ok, failed, retried or cancelled.", ("agent", "outcome"),
                      "counter"),
    "reply_seconds": Family("From when a call began until its reply ended.", ("agent",), "histogram"),
    # Outbound calls
    "model_call_seconds": Family("From an outbound call to the end of its answer, waiting and tries included.",
                                 ("endpoint",), "histogram", LATENCIES),
    "model_calls": Family("Outbound calls, as their callers saw them.", _PER_MODEL, "counter"),
    "model_call_errors": Family("Of these, those without an answer under 400.", _PER_MODEL, "counter"),
    "fallbacks": Family("Calls made because another endpoint or model could not answer.", _PER_MODEL, "counter"),
    "tokens": Family("Tokens that providers reported: input (cached ones included), cached, output.",
                     (*_PER_MODEL, "kind"), "counter"),
    "cost": Family("What these cost by the prices in the settings, in their currency.", _PER_MODEL, "counter"),
    "unpriced_calls": Family("Calls with tokens and no price: the cost lacks them.", _PER_MODEL, "counter"),
    "retries": Family("Requests that were sent again.", ("endpoint", "reason"), "counter"),
    "retries_refused": Family("Retries that a bound forbade.", ("endpoint", "bound"), "counter"),
    "limiter_waiting": Family("Calls that wait for their turn under an endpoint's limits.", ("endpoint",)),
    "limiter_wait_seconds": Family("How long calls waited for their turn.", ("endpoint",), "histogram"),
    "limiter_refused": Family("Calls that could not have had their turn in time.", ("endpoint", "limit"), "counter"),
    "endpoint_pauses": Family("Pauses that an endpoint asked for.", ("endpoint", "status"), "counter"),
    "breaker_open": Family("1 where the endpoint is left alone, 0 where it is called.", ("endpoint",)),
    "breaker_opened": Family("Times that an endpoint came to be left alone.", ("endpoint",), "counter"),
    "breaker_refused": Family("Calls refused because of that.", ("endpoint",), "counter"),
}

COUNTERS: Mapping[str, str] = {
    "retries": "retries", "retries_refused": "retries_refused", "limits_refused": "limiter_refused",
    "limits_paused": "endpoint_pauses", "breaker_opened": "breaker_opened", "breaker_refused": "breaker_refused",
}
"""The process's counters by name, and the metrics that they are."""

SPREADS: Mapping[str, str] = {
    "queue": "time_in_queue_seconds", "reply": "reply_seconds", "turn": "limiter_wait_seconds",
    "model": "model_call_seconds",
}
"""Times by kind, and the metrics that they are."""

USAGE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "calls": ("model_calls", ()), "errors": ("model_call_errors", ()), "fallbacks": ("fallbacks", ()),
    "input_tokens": ("tokens", ("input",)), "output_tokens": ("tokens", ("output",)),
    "cached_tokens": ("tokens", ("cached",)), "unpriced": ("unpriced_calls", ()), "cost": ("cost", ()),
}
"""The attributes of Usage, the metrics that they are, and the labels that they add."""


def empty(name: str) -> Metric:
    """A metric without values yet."""
    family = FAMILIES[name]
    found: Metric = KINDS[family.kind](f"callsheet_{name}", family.help, labels=family.labels)
    return found


class Metrics(Collector):
    """What one worker of Celery's tells."""

    def __init__(self, worker: Any, broker: Broker) -> None:
        self._worker, self._broker = worker, broker

    def describe(self) -> Iterable[Metric]:
        """The metrics without values, so that a registry need not ask for those to know their names."""
        return [empty(name) for name in FAMILIES]

    def collect(self) -> Iterable[Metric]:
        """All metrics; those without values too, so that a dashboard finds them."""
        found: dict[str, Metric] = {name: empty(name) for name in FAMILIES}
        self._of_worker(found)
        self._of_queues(found)
        totals, states = all_processes()
        _put_counts(found, totals)
        _put_spreads(found, totals)
        for (kind, endpoint), value in states.items():
            name = "limiter_waiting" if kind == "waiting" else "breaker_open"
            found[name].add_metric((endpoint,), value)  # type: ignore[attr-defined]
        yield from found.values()
        yield from _offered()

    def _of_worker(self, found: Mapping[str, Any]) -> None:
        worker, pool = self._worker, self._worker.pool
        found["worker_info"].add_metric((worker.hostname, pool_name(pool), callsheet.__version__, celery.__version__,
                                         platform.python_version()), 1)
        names = list(state.total_count.copy().items())  # by shadow names too, which whoever sends a task makes up
        for task, count in names[:_MOST_TASKS]:
            found["tasks"].add_metric((task,), count)
        if len(names) > _MOST_TASKS:
            found["tasks"].add_metric((OTHERS,), sum(count for _, count in names[_MOST_TASKS:]))
        if pool is None:
            return
        for name, value in slot_numbers(pool).items():
            found[name].add_metric((), value)
        if pids := gauge_of(pool).pids()[1:]:
            found["pool_processes"].add_metric((), len(pids))
            found["pool_resident_memory_bytes"].add_metric((), sum(memory_of(pid) or 0 for pid in pids))
            found["pool_cpu_seconds"].add_metric((), sum(cpu_seconds(pid) or 0.0 for pid in pids))

    def _of_queues(self, found: Mapping[str, Any]) -> None:
        told = self._broker.look(list(self._worker.app.amqp.queues.consume_from))
        found["redis_up"].add_metric((), float(told is not None))
        if told is not None:
            for queue, waiting in told.waiting.items():
                found["backlog"].add_metric((queue,), waiting)
            found["unacknowledged"].add_metric((), told.held)
            found["hub_lag_messages"].add_metric((), max((hub.behind for hub in told.hubs), default=0))


def _put_counts(found: Mapping[str, Any], totals: Totals) -> None:
    for key, value in totals.items():
        if key[0] == "counter":
            name = COUNTERS.get(key[1])
            if name is not None:
                found[name].add_metric(key[2:2 + len(FAMILIES[name].labels)], value)
        elif key[0] == "ended":
            found["replies"].add_metric(key[1:], value)
        elif key[0] == "usage" and key[-1] in USAGE:
            name, more = USAGE[key[-1]]
            found[name].add_metric((*key[1:-1], *more), value)


def _put_spreads(found: Mapping[str, Any], totals: Totals) -> None:
    spreads: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for key, value in totals.items():
        if key[0] == "spread":
            spreads[key[1], key[2]][key[3]] = value
    for (kind, label), classes in spreads.items():
        name, buckets, below = SPREADS[kind], [], 0.0
        bounds = FAMILIES[name].bounds
        for number, bound in enumerate((*map(str, bounds), "+Inf")):
            below += classes.get(str(number), 0.0)
            buckets.append((bound, below))
        found[name].add_metric((label,), buckets, classes.get("sum", 0.0))


def _offered() -> Iterable[Metric]:
    for one in offers():
        metric = KINDS[one.kind](f"callsheet_{one.name}", one.help, labels=one.labels)
        for labels, value in one.read().items():
            metric.add_metric(labels, value)
        yield metric
