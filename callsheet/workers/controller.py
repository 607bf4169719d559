"""The io worker as such: Celery's, whose soft shutdown lets calls end rather than sleep."""

from typing import Any

from celery.apps import worker
from celery.worker import state
from kombu.common import ignore_errors

from callsheet.resources.trouble import is_trouble
from callsheet.workers.handback import hand_back, unbegun


class Worker(worker.Worker):
    """Celery's worker.

    Celery sleeps through `worker_soft_shutdown_timeout`, and hears only afterwards of the calls that have ended. Here
    they are acknowledged as they end, so that a kill meanwhile repeats none of them; what has not begun goes to other
    workers first; and the worker goes on as soon as nothing runs.
    """

    pool: Any
    consumer: Any

    def _process_task(self, req: Any) -> None:
        """Celery's, also when a place becomes free; a request that cannot be begun is refused, and ends nothing."""
        try:
            super()._process_task(req)
        except Exception as exc:
            if is_trouble(exc):
                raise
            worker.logger.exception("%s cannot be begun", req.id)
            state.task_ready(req)
            getattr(self, "_quick_release", lambda: None)()
            self.consumer.on_invalid_task(None, req.message, exc)

    def wait_for_soft_shutdown(self) -> None:
        """Wait for what runs, for `worker_soft_shutdown_timeout` seconds at most.

        With `worker_enable_soft_shutdown_on_idle` for all of them, whatever runs. In a signal's handler.
        """
        conf = self.app.conf
        seconds, idle = float(conf.worker_soft_shutdown_timeout), bool(conf.worker_enable_soft_shutdown_on_idle)
        if not hasattr(self.pool, "finish_within"):
            super().wait_for_soft_shutdown()
        elif seconds > 0 and (idle or state.active_requests):
            worker.logger.warning("Initiating Soft Shutdown, terminating in %s seconds", seconds)
            if self.consumer.task_consumer:
                ignore_errors(self.consumer, self.consumer.task_consumer.cancel)  # type: ignore[no-untyped-call]
            waiting = unbegun(self.consumer)
            self.pool.drop_line()
            hand_back(waiting)
            self.pool.finish_within(seconds, idle)
