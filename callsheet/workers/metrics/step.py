"""The boot step with which a worker answers Prometheus."""

from typing import Any

from celery import bootsteps

from callsheet.errors import SettingsError
from callsheet.settings import get_settings


class ServeMetrics(bootsteps.StartStopStep):
    """Answers on the port in the settings.

    The port serves prometheus_client's own registry, so what a user's modules count with prometheus_client is there
    too. Without a port, nothing of this is imported.
    """

    label = "Metrics"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._port: Any = None
        self._relay: Any = None
        self._metrics: Any = None

    def include_if(self, worker: Any) -> bool:
        """Only where the settings name a port."""
        return bool(get_settings().metrics_ports)

    def create(self, worker: Any) -> None:
        """Take the port before anything starts.

        Raises:
            SystemExit: it is not to be had; says why, and the remedy.
        """
        from prometheus_client import REGISTRY

        from callsheet.workers.metrics.broker import Broker
        from callsheet.workers.metrics.collector import Metrics
        from callsheet.workers.metrics.port import MetricsPort
        from callsheet.workers.metrics.relay import Relay

        settings = get_settings()
        try:
            self._port = MetricsPort(REGISTRY, settings.metrics_address, settings.metrics_ports)
        except SettingsError as exc:
            raise SystemExit(str(exc)) from None
        self._relay = None if hasattr(worker.pool_cls, "attach") else Relay()
        self._metrics = Metrics(worker, self._relay, Broker(settings))
        REGISTRY.register(self._metrics)
        if self._relay is not None:
            self._relay.start()  # before the pool forks, whichever of the two steps comes first

    def start(self, worker: Any) -> None:
        """Answer from now on."""
        self._port.start()

    def stop(self, worker: Any) -> None:
        """Answer no more."""
        from prometheus_client import REGISTRY

        self._port.stop()
        if self._relay is not None:
            self._relay.stop()
        REGISTRY.unregister(self._metrics)

    terminate = stop
