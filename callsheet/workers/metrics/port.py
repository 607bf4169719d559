"""The port on which a worker answers Prometheus."""

import ipaddress
import logging
import os
import re
import socket
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from callsheet.errors import SettingsError

logger = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # there it does not share a port that is listened on

    def server_bind(self) -> None:
        """As a plain server does: asking a name server for this machine's name may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: Prometheus asks every few seconds."""


class MetricsPort:
    """Answers with a registry's numbers, on threads of its own.

    Args:
        registry: the numbers.
        address: to listen on.
        ports: to try in turn; 0 is any free one.

    Raises:
        SettingsError: no port is free, or the address is none of this machine's.
    """

    def __init__(self, registry: CollectorRegistry, address: str, ports: Iterable[int]) -> None:
        server, self._server = _ServerV6 if ":" in address else _Server, None
        tried, app = list(ports), make_wsgi_app(registry)
        if is_loopback(address):
            app = _for_own_names(app)
        for port in tried:
            try:
                self._server = make_server(address, port, app, server, _Silent)
                break
            except OSError as exc:
                why = exc.strerror or str(exc)
        if self._server is None:
            raise SettingsError(_taken(address, tried, why))
        self.port = self._server.server_port
        self._host = f"[{address}]" if ":" in address else address
        os.register_at_fork(after_in_child=self._close)
        self._thread = threading.Thread(target=self._server.serve_forever, name="callsheet-metrics", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()
        logger.info("Metrics for Prometheus on http://%s:%d/metrics", self._host, self.port)

    def stop(self) -> None:
        """Answer no more."""
        if self._thread.is_alive() and self._server is not None:
            self._server.shutdown()
        self._close()

    def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, as a client gave it, is this machine's own and no other's.

    A web site whose name was made to point to this machine has its own name, whatever that resolves to.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _for_own_names(app: Any) -> Any:
    """The application for clients that call this machine by its own names; browsers cannot lie about that."""
    def guarded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        given = environ.get("HTTP_HOST", "localhost")
        if is_loopback(re.sub(r":\d*$", "", given)):
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"These metrics are for their own machine: call it 127.0.0.1 or localhost.\n"]

    return guarded


def _taken(address: str, tried: list[int], why: str) -> str:
    return (f"The metrics cannot be had on {address}, ports {tried[0]} to {tried[-1]} (CALLSHEET_METRICS_PORT): {why}. "
            "Other workers of this machine may have them: give a wider range, such as CALLSHEET_METRICS_PORT="
            f"{tried[0]}-{min(65535, tried[-1] + 10)}, of which each worker takes one, or 0 for any free port.")
