"""The metrics that every worker has: their names, what they mean, and their labels. Rooms offer more (`offers`)."""

from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from callsheet.resources.accounts import LATENCIES
from callsheet.resources.timings import BOUNDS


class Family(NamedTuple):
    """One metric.

    Attributes:
        help: what it is, with its unit.
        labels: their names.
        kind: "gauge", "counter" or "histogram".
        bounds: of a histogram's classes, in seconds.
    """

    help: str
    labels: tuple[str, ...] = ()
    kind: str = "gauge"
    bounds: tuple[float, ...] = BOUNDS


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
    family, full = FAMILIES[name], f"callsheet_{name}"
    if family.kind == "counter":
        return CounterMetricFamily(full, family.help, labels=family.labels)
    if family.kind == "histogram":
        return HistogramMetricFamily(full, family.help, labels=family.labels)
    return GaugeMetricFamily(full, family.help, labels=family.labels)
