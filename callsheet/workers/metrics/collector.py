"""Makes metrics of what a worker's rooms count anyway, when Prometheus asks; calls never touch a metric."""

import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import celery
from celery.worker import state
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import callsheet
from callsheet.resources.offers import offers
from callsheet.resources.timings import OTHERS
from callsheet.workers.metrics.broker import Broker
from callsheet.workers.metrics.families import COUNTERS, FAMILIES, SPREADS, USAGE, empty
from callsheet.workers.metrics.pools import pool_name, slot_numbers
from callsheet.workers.metrics.processes import processes
from callsheet.workers.metrics.relay import all_processes
from callsheet.workers.metrics.totals import Totals

_MOST_TASKS = 200


class Metrics(Collector):
    """What one worker tells.

    Args:
        worker: Celery's.
        broker: tells of its queues.
    """

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
        numbers = slot_numbers(pool)
        for name, value in numbers.items():
            found[name].add_metric((), value)
        pids = [process.pid for process in getattr(getattr(pool, "_pool", None), "_pool", ())]
        if pids:
            memory, seconds = processes(pids)
            found["pool_processes"].add_metric((), len(pids))
            found["pool_resident_memory_bytes"].add_metric((), memory)
            found["pool_cpu_seconds"].add_metric((), seconds)

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
        kind = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
        metric = kind(f"callsheet_{one.name}", one.help, labels=one.labels)
        for labels, value in one.read().items():
            metric.add_metric(labels, value)
        yield metric
