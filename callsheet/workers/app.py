"""The Celery apps of the workers."""

import contextlib
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    celeryd_after_setup,
    celeryd_init,
    import_modules,
    worker_init,
    worker_process_shutdown,
    worker_ready,
)
from celery.utils.nodenames import nodename, nodesplit
from click.core import ParameterSource

from callsheet.errors import SettingsError
from callsheet.mcp.home import close_all
from callsheet.settings import Settings, get_settings
from callsheet.tasks.app import make_app, serve_as
from callsheet.tasks.homes import give_up_homes
from callsheet.workers import interrupts, load, status  # noqa: F401 - register their commands
from callsheet.workers.flags import CheckedAutoscale
from callsheet.workers.homes import SweepHomes
from callsheet.workers.hubs import FollowHubs
from callsheet.workers.logs import gather_lines
from callsheet.workers.metrics.step import ServeMetrics
from callsheet.workers.revoked import ReadRevoked
from callsheet.workers.steps import AttachPool
from callsheet.workers.turns import PassTurnsOn

logger = logging.getLogger(__name__)

TRANSPORT = "callsheet.workers.transport:Transport"
WORKER = "callsheet.workers.controller:Worker"
SENTINEL_TRANSPORT = "callsheet.workers.transport:SentinelTransport"
POOL = "callsheet.workers.pool:AsyncioPool"
PREFORK = "callsheet.workers.prefork:TaskPool"
AUTOSCALER = "callsheet.workers.autoscaler:LoadAutoscaler"


def io_app(settings: Settings | None = None) -> Celery:
    """The app of io workers: the asyncio pool, queue `io`."""
    app = _app(settings, "io")
    app.conf.worker_pool = POOL
    app.Worker = app.subclass_with_self(WORKER)
    app.steps["consumer"].add(AttachPool)
    app.steps["consumer"].add(FollowHubs)
    after_setup_logger.connect(_gather_lines, weak=False)
    after_setup_task_logger.connect(_gather_lines, weak=False)
    return app


def _gather_lines(logger: logging.Logger | None = None, **_: object) -> None:
    if logger is not None:
        gather_lines(logger)
    for name in ("httpx", "httpx2"):
        requests = logging.getLogger(name)
        # A line for each request, beside Celery's two for each task. Whoever wants it sets a level.
        if requests.level == logging.NOTSET and logging.getLogger().level > logging.DEBUG:
            requests.setLevel(logging.WARNING)


def _close_sessions(**_: object) -> None:
    give_up_homes()
    close_all()


def cpu_app(settings: Settings | None = None) -> Celery:
    """The app of cpu workers: Celery's prefork pool, queue `cpu`."""
    app = _app(settings, "cpu")
    app.conf.worker_pool = PREFORK
    return app


def _unnamed() -> bool:
    """Whether `celery worker` was given no -n: those of both kinds would be celery@host, and tools see one of them."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source("hostname") is ParameterSource.DEFAULT


def _look_here() -> None:
    """Import from the working directory, as with `callsheet up` and `python -m celery`: `celery` forgets it again."""
    with contextlib.suppress(FileNotFoundError):  # the folder is gone
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)


def _give_a_name(app: Celery, queue: str) -> None:
    @celeryd_init.connect(weak=False)
    def _name(instance: Any = None, **_: object) -> None:
        if instance is not None and instance.app is app and _unnamed():
            instance.hostname = nodename(queue, nodesplit(instance.hostname)[1])


def _import_agents(app: Celery, settings: Settings) -> None:
    @import_modules.connect(sender=app, weak=False)
    def _import(**_: object) -> None:
        _look_here()
        for name in settings.modules:
            try:
                importlib.import_module(name)
            except ImportError as exc:
                raise SettingsError(
                    f"CALLSHEET_MODULES names {name!r}, which cannot be imported here: {exc}. Correct the name, "
                    "install it, start the worker in the folder that holds it, or put that on PYTHONPATH.") from exc

    @worker_ready.connect(weak=False)
    def _say_what_it_builds(sender: Any = None, **_: object) -> None:
        if getattr(sender, "app", None) is app and not settings.modules:
            logger.warning("CALLSHEET_MODULES names no modules: calls of your agents will fail here. Name those that "
                           "define them, e.g. CALLSHEET_MODULES=myproject.agents")


def _app(settings: Settings | None, queue: str) -> Celery:
    settings = settings or get_settings()
    app = make_app(settings, queue, f"callsheet.workers.{queue}")
    app.conf.worker_consumer = "callsheet.workers.consumer:Consumer"
    app.events_cls = "callsheet.workers.events:Events"
    app.conf.worker_autoscaler = AUTOSCALER
    app.user_options["worker"].add(CheckedAutoscale())
    app.steps["consumer"].add(ReadRevoked)
    app.steps["worker"].update((PassTurnsOn, SweepHomes))
    app.steps["worker"].add(ServeMetrics)
    app.set_current()
    app.set_default()
    _give_a_name(app, queue)
    _import_agents(app, settings)

    @worker_init.connect(weak=False)
    def _serve(sender: object = None, **_: object) -> None:
        if getattr(sender, "app", None) is not app:
            return
        serve_as(app)
        # Not before: Flower, which loads this app too, knows brokers by the name of a stock transport.
        if settings.transport == "batched" and app.conf.broker_transport is None:
            app.conf.broker_transport = TRANSPORT if settings.sentinels is None else SENTINEL_TRANSPORT

    worker_process_shutdown.connect(_close_sessions, weak=False)

    @celeryd_after_setup.connect(weak=False)
    def _check_queues(instance: Any = None, **_: object) -> None:
        ours = instance is not None and instance.app is app
        if ours and "" in app.amqp.queues.consume_from:
            # Kombu would make up a name that nobody sends to. Celery only logs other exceptions here.
            raise SystemExit("-Q names an empty queue, which nobody can send to. Give names with commas between them "
                             "and nothing else, e.g. -Q io,gpu.")

    return app
