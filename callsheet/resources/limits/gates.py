"""The gates of this process."""

import os
from collections.abc import Hashable

from callsheet.resources.limits.gate import Gate
from callsheet.resources.limits.local import LocalStore
from callsheet.resources.limits.messages import Limits, Store
from callsheet.resources.limits.store import RedisStore
from callsheet.settings import Settings

_MOST_KEPT = 1024
_gates: dict[Hashable, Gate] = {}
_stores: dict[Hashable, Store] = {}


def _forget() -> None:
    _gates.clear()
    _stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # the parent's loop, and what runs on it, stay there


def gate_of(name: str, limits: Limits, settings: Settings | None) -> Gate:
    """The process's gate of an endpoint.

    Args:
        name: the endpoint's.
        limits: from its settings.
        settings: where Redis is; None: this process counts for itself.
    """
    redis = (settings.redis_url, settings.key_prefix) if settings is not None else None
    key = (name, limits, redis)
    gate = _gates.get(key)
    if gate is not None and gate.usable:
        return gate
    if len(_gates) >= _MOST_KEPT:
        _forget()
    store = _stores.get(redis)
    if store is None:
        store = _stores[redis] = RedisStore(settings) if settings is not None else LocalStore()
    gate = _gates[key] = Gate(name, limits, store)
    if settings is not None:
        gate.call(gate.attach)  # pauses concern also those who have no limits
    return gate


def waiting() -> dict[str, int]:
    """Calls of this process that wait for their turn, by endpoint; any thread."""
    found: dict[str, int] = {}
    for gate in tuple(_gates.values()):
        found[gate.name] = found.get(gate.name, 0) + gate.waiting
    return found
