"""The worker's consumer: Celery's, which a malformed message does not stop."""

from collections.abc import Callable
from typing import Any

from celery.worker.consumer import consumer

#: What Celery's strategies raise over a message whose parts are of other kinds than they should be.
_MALFORMED = (TypeError, ValueError, LookupError, AttributeError)


class Consumer(consumer.Consumer):
    """Celery's consumer.

    A message whose body or headers have another shape than Celery's would end Celery's consumer, go back to its queue
    with the connection, and end the next worker. Here it is logged and dropped.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Celery's handler, with an end for what it does not expect."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            try:
                return handle(message)
            except self.connection_errors:
                raise
            except _MALFORMED as exc:
                return self.on_invalid_task(None, message, exc)

        return on_task_received

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Log and drop it; what cannot be shown is not shown."""
        try:
            super().on_invalid_task(body, message, exc)
        except _MALFORMED:
            consumer.error("Dropped a message that is none of Celery's: %r", exc)
            message.reject_log_error(consumer.logger, self.connection_errors)
