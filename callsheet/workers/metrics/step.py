"""The boot step with which a worker answers Prometheus, and its processes tell it what they count."""

from typing import Any

from celery import bootsteps

from callsheet.errors import SettingsError
from callsheet.settings import get_settings
from callsheet.workers.metrics.relay import Relay


class ServeMetrics(bootsteps.StartStopStep):
    """Answers on the port in the settings, if there is one.

    The port serves prometheus_client's own registry, so what a user's modules count with prometheus_client is there
    too.
    """

    label = "Metrics"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._port: Any = None
        self._relay: Relay | None = None
        self._metrics: Any = None

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

        from callsheet.workers.metrics.broker import Broker
        from callsheet.workers.metrics.collector import Metrics
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
