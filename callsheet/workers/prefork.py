"""Celery's prefork pool, which takes away only processes that have nothing to do, and knows what it has handed them."""

import os
from typing import Any

from celery.concurrency import asynpool, prefork

from callsheet.workers.broker import ledger

#: Processes that a command or the autoscaler may make of one worker.
MOST_PROCESSES = max(64, 16 * (os.cpu_count() or 1))


class AsynPool(asynpool.AsynPool):
    """Celery's.

    Billiard takes a process for idle until it has said that it began with a call, and one that was told to end for
    one more that can be told so. So shrinking could kill a call that was just handed over, and counted a process
    twice.
    """

    def grow(self, n: int = 1) -> None:
        """Add `n` processes.

        Raises:
            ValueError: a machine of this size has no use for so many.
        """
        if self._processes + n > MOST_PROCESSES:
            raise ValueError(f"{self._processes} processes and {n} more: this machine runs {MOST_PROCESSES} at most.")
        super().grow(n)

    @property
    def handed(self) -> dict[int, Any]:
        """The jobs that processes were given, by number: each runs, also one that its process has yet to begin."""
        return {number: job for number, job in tuple(self._cache.items()) if job._write_to is not None}

    def flush(self) -> None:
        """Celery's, after a lost connection; it would forget what a process has yet to begin, and have it run twice."""
        handed = self.handed
        super().flush()
        self._cache.update((n, job) for n, job in handed.items() if not job.ready() and job._write_to._is_alive())

    def _worker_active(self, worker: Any) -> bool:
        if getattr(worker, "_controlled_termination", False) or worker.inqW_fd in self._busy_workers:
            return True
        given = any(not job.ready() and worker in (job._write_to, job._scheduled_for) for job in self._cache.values())
        return given or bool(super()._worker_active(worker))


class TaskPool(prefork.TaskPool):
    """Celery's, over that one."""

    Pool = AsynPool

    def on_start(self) -> None:
        """Celery's; tells the ledger which messages run."""
        super().on_start()
        ledger.begun = self._begun

    def _begun(self) -> set[str]:
        requests: list[Any] = [getattr(job._accept_callback, "__self__", None) for job in self._pool.handed.values()]
        return {request.message.delivery_tag for request in requests if hasattr(request, "message")}

    def _get_info(self) -> dict[str, Any]:
        """Celery's, for `inspect stats` and Flower, with the number of processes as it is now."""
        return {**super()._get_info(), "max-concurrency": self.num_processes}
