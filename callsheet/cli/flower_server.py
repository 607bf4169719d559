"""Flower's own command with one page more behind its sign-in; `callsheet flower` becomes this process."""

import atexit
import contextlib
import signal
import sys
from typing import Any

from flower import command
from flower.app import Flower
from flower.urls import settings
from flower.views.monitor import Metrics
from tornado.options import options
from tornado.web import authenticated

from callsheet.cli.flower_access import LOCAL_USER
from callsheet.cli.flower_login import refuse_other_names
from callsheet.workers.io import app


class GuardedMetrics(Metrics):
    """Flower's numbers, which name workers and agents, for who may see its pages; Flower shows them to anybody."""

    @authenticated
    async def get(self) -> None:
        """The numbers."""
        await super().get()


class LocalMetrics(Metrics):
    """The same on loopback, for programs of this machine; no cookie is asked for, as Prometheus keeps none."""

    async def get(self) -> None:
        """The numbers."""
        refuse_other_names(self)
        await super().get()


def main() -> None:
    """Run Flower with the options of the command line and the environment."""
    command.apply_env_options()
    command.apply_options(sys.argv[0], sys.argv[1:])
    command.extract_settings()
    command.setup_logging()
    flower: Any = Flower(capp=app, options=options, **settings)
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    asks = options.basic_auth or (options.auth and options.auth != LOCAL_USER)
    flower.add_handlers(".*", [(rf"{prefix}/metrics", GuardedMetrics if asks else LocalMetrics)])
    atexit.register(flower.stop)
    signal.signal(signal.SIGTERM, command.sigterm_handler)
    port = flower.start_http_server()
    command.print_banner(app, "ssl_options" in settings, port)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        flower.start()


if __name__ == "__main__":
    main()
