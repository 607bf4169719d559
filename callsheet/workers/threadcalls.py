"""One run of a plain function on the asyncio pool, in a thread."""

import contextvars
import logging
import threading
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from callsheet.workers.calls import Call, info_of
from callsheet.workers.threads import Interrupted, raise_in

logger = logging.getLogger(__name__)


class ThreadCall(Call):
    """A task whose body is a plain function: the tracer runs in a thread.

    A thread cannot be killed. Time limits and revocation raise in it when it next runs Python code; one that
    blocks in C is reported when it returns, and holds its slot until then.
    """

    __slots__ = ("_lock", "_thread")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock = threading.Lock()
        self._thread: int | None = None

    def launch(self) -> None:
        """Begin in a thread."""
        self.home.crew.submit(self._run, lambda: self.home.finish(self))

    def _run(self) -> None:
        try:
            self._thread = threading.get_ident()
            self.accepted()
            if self.soft or self.hard:
                self.home.to_loop.post(self.set_timers)
            if self.fate is None:
                contextvars.copy_context().run(self.trace)
        except BaseException as exc:  # raised into this thread between two lines
            self.failure = self.failure or info_of(exc)
        while self._thread is not None:
            try:
                self._out_of_reach()
            except BaseException:
                logger.debug("Task %s was interrupted when it had ended", self.name)

    def _out_of_reach(self) -> None:
        with self._lock:
            raise_in(threading.get_ident(), None)
            self._thread = None

    def _raise(self, error: type[BaseException]) -> None:
        with self._lock:
            if self._thread is not None:
                raise_in(self._thread, error)

    def cancel(self) -> None:
        """Raise Interrupted in the thread."""
        self._raise(Interrupted)
        self.home.to_loop.post(self._check_later)

    def _check_later(self) -> None:
        self._timers.append(self.home.loop.call_later(self.home.cancel_grace, self.check_gone))

    def soften(self, seconds: float) -> None:
        """Raise SoftTimeLimitExceeded in the thread."""
        self._raise(SoftTimeLimitExceeded)
