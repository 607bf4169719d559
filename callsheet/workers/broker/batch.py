"""Messages that are published together."""

from typing import Any

from callsheet.workers.broker.stock import redis as stock


class Batch(stock.PublishBatch):
    """Kombu's, which makes one trip of what it publishes but asks for each message which queues it goes to.

    Here that is asked once for an exchange, and again when this channel binds a queue. A queue that is bound elsewhere
    meanwhile gets what is published after the batch.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self._tables: dict[str, Any] = {}
        self._bound = channel.bound

    def publish(self, message: Any, **options: Any) -> Any:
        """Add a message."""
        if self._bound != self.channel.bound:
            self._bound = self.channel.bound
            self._tables.clear()
        self.channel.tables = self._tables
        try:
            return super().publish(message, **options)
        finally:
            self.channel.tables = None
