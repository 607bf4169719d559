"""What one run of a call knows of itself: which job it prints into, and who it is if it has to run again."""

import hashlib
from collections import Counter
from contextvars import ContextVar
from typing import Any
from uuid import uuid4


class Scope:
    """One run of one call.

    Args:
        job: id of the job to whose events it prints.
        call: id of its task.
        path: names the call; the same in each run of it, and in each run of the call that waits for it.
        again: whether it is not the first run of the call, as far as can be told.
    """

    __slots__ = ("_counts", "_run", "again", "call", "job", "path")

    def __init__(self, job: str, call: str, path: str, again: bool) -> None:
        self.job, self.call, self.path, self.again = job, call, path, again
        self._run = ""
        self._counts: Counter[str] | None = None

    @property
    def run(self) -> str:
        """Names this run."""
        if not self._run:
            self._run = uuid4().hex[:12]
        return self._run

    def ordinal(self, what: str) -> str:
        """A short name for the next thing of a kind that this run does; another run gives it the same.

        That holds as far as the runs do alike: a question that only one of them asks moves those behind it.
        """
        if self._counts is None:
            self._counts = Counter()
        self._counts[what] += 1
        text = f"{self.path}\n{what}\n{self._counts[what]}"
        return hashlib.blake2s(text.encode("utf-8", "replace"), digest_size=6).hexdigest()


#: The run of the call that runs here.
current_scope: ContextVar[Scope | None] = ContextVar("callsheet_scope", default=None)


def scope_of(job: str, path: str, request: Any, data: dict[str, Any]) -> Scope:
    """The scope of a call that a worker runs now."""
    again = bool(request.retries or data.get("reruns") or (request.delivery_info or {}).get("redelivered"))
    # The time it was sent first tells it from an earlier job with the same id.
    return Scope(job, request.id or "", path or f"{request.id}@{data.get('first') or data.get('sent', '')}", again)
