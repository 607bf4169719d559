"""Boot steps of the io worker."""

from typing import Any

from celery import bootsteps


class AttachPool(bootsteps.StartStopStep):
    """Hands the consumer to the asyncio pool, which keeps the prefetch count in step with its size.

    Without it a worker with late acknowledgement whose slots are all parked fetches no more messages, and a tree of
    calls that is deeper than its prefetch count waits for ever; and an autoscaled worker fetches for the largest size
    that it may have. Other pools are left alone.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, c: Any) -> bool:
        """Only where the pool wants it."""
        return hasattr(c.pool, "attach")

    def start(self, c: Any) -> None:
        """At each (re)connection, after the consumer has its prefetch count."""
        c.pool.attach(c)

    def stop(self, c: Any) -> None:
        """When the connection is lost or the worker stops."""
        c.pool.detach()
