"""Messages that are published together."""

from typing import Any

from kombu.exceptions import BatchPublishError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from callsheet.workers.broker.scripts import PUBLISH
from callsheet.workers.broker.stock import redis as stock


class Batch(stock.PublishBatch):
    """Kombu's, which makes one trip of what it publishes but asks for each message which queues it goes to.

    Here that is asked once for an exchange, and again when this channel binds a queue. A queue that is bound elsewhere
    meanwhile gets what is published after the batch.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self._buffered: int
        self._tables: dict[str, Any] = {}
        self._bound = channel.bound

    def publish(self, message: Any, **options: Any) -> Any:
        """Add a message.

        Raises:
            BatchPublishError: the connection is lost. As kombu tries that again, over another channel, it refuses to.
        """
        if self._bound != self.channel.bound:
            self._bound = self.channel.bound
            self._tables.clear()
        self.channel.tables = self._tables
        try:
            return super().publish(message, **options)
        except RedisConnectionError as exc:
            raise BatchPublishError("The connection was lost within a batch") from exc
        finally:
            self.channel.tables = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._buffered

    def flush(self) -> None:
        """Send; once more where the connection broke or the server forgot the script: what is there is not put again.

        Raises:
            BatchPublishError: it failed; nobody knows how much has arrived.
        """
        commands, count = list(self.pipeline.command_stack), self._buffered
        try:
            super().flush()
        except BatchPublishError as exc:
            once = all(str(args[0]).startswith("EVAL") for args, _ in commands)  # no broadcast
            if not once or not isinstance(exc.__cause__, (RedisConnectionError, NoScriptError)):
                raise
            self._failed, self._buffered = None, count
            for (_, _, *args), options in commands:
                self.pipeline.pipeline_execute_command("EVAL", PUBLISH.text, *args, **options)
            super().flush()
