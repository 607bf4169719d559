"""What is noted of one call while it runs, to be stored with its result: no trip to Redis of its own."""

import time
from typing import Any

MOST_CHILDREN = 500
"""Jobs of one call whose ids are kept; of more, their number."""


class CallNotes:
    """Notes of one call; of its own loop and the threads that it waits for.

    Attributes:
        children: ids of the jobs that it made.
        more: how many it made beyond those.
        numbers: what its own outbound calls took, as `Usage.from_numbers` takes it; None where it made none.
        idle: seconds in which it waited for jobs of its own, for its turn at an endpoint, or between two tries.
    """

    __slots__ = ("_away", "_since", "children", "idle", "more", "numbers")

    def __init__(self) -> None:
        self.children: list[str] = []
        self.more = 0
        self.numbers: list[int] | None = None
        self.idle = 0.0
        self._away = 0
        self._since = 0.0

    def made(self, job_id: str) -> None:
        """It made a job."""
        if len(self.children) < MOST_CHILDREN:
            self.children.append(job_id)
        else:
            self.more += 1

    def spent(self, numbers: list[int]) -> None:
        """One of its outbound calls took this."""
        known = self.numbers
        self.numbers = numbers if known is None else [a + b for a, b in zip(known, numbers, strict=True)]

    def leave(self) -> None:
        """A part of it begins to wait."""
        self._away += 1
        if self._away == 1:
            self._since = time.monotonic()

    def come_back(self) -> None:
        """A part of it waits no more."""
        self._away -= 1
        if not self._away:
            self.idle += time.monotonic() - self._since

    def to_data(self) -> dict[str, Any]:
        """What there is to tell, as JSON data."""
        if not self.children and self.numbers is None and not self.idle and not self._away:
            return {}
        idle = self.idle + (time.monotonic() - self._since if self._away else 0.0)
        told = {"children": self.children, "more": self.more, "usage": self.numbers, "idle": round(idle, 6)}
        return {name: value for name, value in told.items() if value}
