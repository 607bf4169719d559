"""What this process counts of its outbound calls, for metrics."""

import os
from collections import Counter

_counts: Counter[tuple[str, str, str]] = Counter()


def count(name: str, endpoint: str, detail: str = "", by: int = 1) -> None:
    """Add to a counter; any thread.

    Args:
        name: what is counted, e.g. "retries".
        endpoint: its name.
        detail: e.g. the reason.
        by: how many.
    """
    _counts[name, endpoint, detail] += by


def counts() -> dict[tuple[str, str, str], int]:
    """All counters of this process, by name, endpoint and detail."""
    return dict(_counts)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_counts.clear)
