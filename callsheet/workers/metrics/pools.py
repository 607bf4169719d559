"""What a worker's pool tells of itself, whatever kind it is."""

from typing import Any

from celery.worker import state


def pool_name(pool: Any) -> str:
    """What kind of pool it is, in one word."""
    return "asyncio" if hasattr(pool, "slots") else type(pool).__module__.rpartition(".")[2]


def slot_numbers(pool: Any) -> dict[str, float]:
    """Slots, calls and loop of a pool, by the names of their metrics.

    Args:
        pool: the asyncio pool, or one of Celery's.
    """
    slots = getattr(pool, "slots", None)
    if slots is None:
        used = len(state.active_requests)
        return {"slots": pool.num_processes or 0, "slots_used": used,
                "slots_waiting": max(0, len(state.reserved_requests) - used)}
    with slots.lock:
        numbers = {"slots": slots.limit, "slots_used": slots.used, "slots_waiting": len(slots.waiting),
                   "parked": slots.parked, "parked_most": slots.max_parked}
    return {**numbers, "threads": pool.crew.count, "loop_lag_seconds": pool.lag, "loop_blocked": pool.blocked}
