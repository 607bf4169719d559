"""Messages that a worker on its way out has taken and not begun: back to their queues at once, for other workers."""

from typing import Any

from celery.worker import state


def unbegun(consumer: Any) -> list[Any]:
    """The requests that wait: for a slot, for their time, or for a rate limit.

    None with other pools, which may have handed them to their processes.
    """
    line = getattr(consumer.pool, "line", None)
    if line is None:
        return []
    limited = [request for bucket in consumer.task_buckets.values() if bucket for request, _ in bucket.contents]
    found = [*(call.request for call in line), *state.scheduled_requests, *limited]
    return list(dict.fromkeys(request for request in found if request is not None))


def hand_back(requests: list[Any]) -> None:
    """Have them delivered again, in their order."""
    for request in reversed(requests):
        request.reject(requeue=True)
