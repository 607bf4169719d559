"""The workers' boot steps: parts that start and stop with a worker, or with each connection of its consumer."""

import logging
from collections.abc import Collection
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker import state
from celery.worker.consumer.mingle import Mingle

from callsheet.errors import SettingsError
from callsheet.resources.loops import on_lasting_loop
from callsheet.settings import get_settings
from callsheet.settings.keys import Keys
from callsheet.tasks.execution import worker_desk
from callsheet.tasks.homes import sweep_homes
from callsheet.tasks.turns.backlog import Backlog
from callsheet.workers.broker.ledger import ledger_of
from callsheet.workers.metrics.relay import Relay

logger = logging.getLogger(__name__)

_EVERY = 5.0  # seconds between two looks whether agents are still warm


# Of a worker

class PassTurnsOn(bootsteps.StartStopStep):
    """Looks a few times a lease for what workers that are gone left, in two trips to Redis.

    Turns that nobody holds any more and for which calls wait pass on; calls for MCP sessions of such workers go to
    others. Every worker does, also one that has met neither: all that have may be gone.
    """

    def start(self, parent: Any) -> None:
        """When the worker starts."""
        settings = get_settings()
        self._keeper = worker_desk(settings, parent.app).keeper
        assert self._keeper is not None
        self._keeper.watch(partial(sweep_homes, settings))

    def stop(self, parent: Any) -> None:
        """When it stops."""
        assert self._keeper is not None
        self._keeper.unwatch()


class ServeMetrics(bootsteps.StartStopStep):
    """Answers Prometheus on the port in the settings, if there is one, and has processes tell what they count.

    The port serves prometheus_client's own registry, so what a user's modules count with prometheus_client is there
    too.
    """

    label = "Metrics"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._port: Any = None
        self._metrics: Any = None
        self._relay: Relay | None = None

    def create(self, worker: Any) -> None:
        """Take the port before anything starts, and have processes tell before any is forked.

        Raises:
            SystemExit: the port is not to be had; says why, and the remedy.
        """
        if get_settings().metrics_ports:
            self._take_port(worker)
        if not hasattr(worker.pool_cls, "attach"):
            self._relay = Relay()
            self._relay.start()

    def _take_port(self, worker: Any) -> None:
        from prometheus_client import REGISTRY

        from callsheet.workers.metrics.collector import Broker, Metrics
        from callsheet.workers.metrics.port import MetricsPort

        settings = get_settings()
        try:
            self._port = MetricsPort(REGISTRY, settings.metrics_address, settings.metrics_ports)
        except SettingsError as exc:
            raise SystemExit(str(exc)) from None
        self._metrics = Metrics(worker, Broker(settings))
        REGISTRY.register(self._metrics)

    def start(self, worker: Any) -> None:
        """Answer from now on."""
        if self._port is not None:
            self._port.start()

    def stop(self, worker: Any) -> None:
        """Answer no more."""
        if self._port is not None:
            from prometheus_client import REGISTRY

            self._port.stop()
            REGISTRY.unregister(self._metrics)
        if self._relay is not None:
            self._relay.stop()

    terminate = stop


# Of a consumer

class ReadRevoked(bootsteps.StartStopStep):
    """Reads at each (re)connection which calls were cancelled; Celery tells only workers that listen at the time.

    It need not come before the consumer of tasks: the first message is delivered when all steps have started.
    """

    requires = (Mingle,)

    def start(self, c: Any) -> None:
        """Merge the cancelled ids into those that this worker drops; a broken connection is the consumer's affair."""
        key = Keys(get_settings().key_prefix).revoked()
        # Not on the channel's own client: its connection is the one that waits for messages.
        channel = c.connection.default_channel
        with channel.conn_or_acquire() as client:
            newest = client.zrange(key, -state.REVOKES_MAX, -1)
        if newest:
            ids = [task_id.decode(errors="replace") for task_id in newest]
            state.merge_revoked(ids)
            if getattr(channel, "may_batch", False):  # it may not consume yet
                ledger_of(channel).later.revoke(ids)
            logger.info("%d cancelled calls are known", len(newest))


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


class FollowHubs(bootsteps.StartStopStep):
    """Follows the hubs in which agents sit that the worker keeps warm, from the end of an agent's turn on.

    Over a connection of the process's own, beside Celery's. Only io workers do: those of a prefork worker are warm in
    its children.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _timer: Any = None
    _backlog: Any = None

    def start(self, c: Any) -> None:
        """At each (re)connection."""
        desk = worker_desk(get_settings(), c.app)
        self._backlog = desk.backlog
        _on_loop(self._backlog.start)
        self._timer = c.timer.call_repeatedly(_EVERY, _sweep, (self._backlog, desk.warm))

    def stop(self, c: Any) -> None:
        """When the connection is lost or the worker stops."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._backlog is not None:
            _on_loop(self._backlog.stop)


def _sweep(backlog: Backlog, warm: Collection[str]) -> None:
    if backlog.follows:
        _on_loop(lambda: backlog.sweep(warm))


def _on_loop(function: Any) -> None:
    async def run() -> None:
        function()

    on_lasting_loop(run)
