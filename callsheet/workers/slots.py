"""Who may run: the pool's slots, and the two lines of those that wait for one."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

C = TypeVar("C")


class Slots(Generic[C]):
    """`limit` slots, a line of new calls, and a line of parked calls that come back, which goes first.

    The lock is re-entrant because Celery's signal handlers call into the pool on a thread that may hold it.

    Args:
        limit: slots.
        max_parked: calls that may be parked at once.
        start: called, with the lock held, for a call that gets its slot; must be quick and thread-safe.
    """

    def __init__(self, limit: int, max_parked: int, start: Callable[[C], None]) -> None:
        self.lock = threading.RLock()
        self.limit = limit
        self.max_parked = max_parked
        self.used = 0
        self.parked = 0
        self.waiting: deque[C] = deque()
        self._returning: deque[Callable[[], None]] = deque()
        self._start = start

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let other threads have the lock while a signal's handler waits for them.

        The handler may have interrupted its own thread where that held the lock; no call could end meanwhile.
        """
        lock: Any = self.lock
        held = lock._release_save() if lock._is_owned() else None
        try:
            yield
        finally:
            if held is not None:
                lock._acquire_restore(held)

    def ask(self, call: C) -> None:
        """Start `call` now, or when its turn comes."""
        with self.lock:
            self.waiting.append(call)
            self.admit()

    def free(self) -> None:
        """Give one slot back."""
        with self.lock:
            self.used -= 1
            self.admit()

    def admit(self) -> None:
        """Hand out the slots that are free."""
        with self.lock:
            while self.used < self.limit:
                if self._returning:
                    grant = self._returning.popleft()
                    self.used += 1
                    self.parked -= 1
                    grant()
                elif self.waiting:
                    call = self.waiting.popleft()
                    self.used += 1
                    self._start(call)
                else:
                    break

    @property
    def returning(self) -> int:
        """Parked calls that wait for a slot to go on with."""
        return len(self._returning)

    def withdraw(self, call: C) -> None:
        """Take a call out of the line, if it is in it."""
        with self.lock, suppress(ValueError):
            self.waiting.remove(call)

    def clear(self) -> list[C]:
        """Empty the line of new calls and return it."""
        with self.lock:
            dropped = list(self.waiting)
            self.waiting.clear()
            return dropped

    def leave(self) -> bool:
        """Park: give a slot back for a while; False when too many have done so."""
        with self.lock:
            if self.parked >= self.max_parked:
                return False
            self.parked += 1
            self.used -= 1
            self.admit()
            return True

    def come_back(self, grant: Callable[[], None]) -> None:
        """Call `grant`, with the lock held, once a parked call has its slot again."""
        with self.lock:
            self._returning.append(grant)
            self.admit()

    def stay_away(self, grant: Callable[[], None]) -> None:
        """A parked call has ended: it needs no slot any more, nor its `grant`."""
        with self.lock:
            if grant in self._returning:
                self._returning.remove(grant)
            self.parked -= 1

    def resize(self, by: int) -> None:
        """Add or remove slots.

        Raises:
            ValueError: fewer slots would be left than are in use.
        """
        with self.lock:
            limit = self.limit + by
            if limit < 0 or (by < 0 and limit < self.used):
                raise ValueError(f"{self.used} of {self.limit} slots are in use: {-by} cannot be taken away now.")
            self.limit = limit
            self.admit()
