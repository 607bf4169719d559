"""The Celery apps of the workers, and what they do while `celery worker` reads its command line (`First`)."""

import contextlib
import functools
import importlib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from celery import Celery, _state
from celery.concurrency import get_implementation
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
from celery.utils.dispatch import Signal
from celery.utils.nodenames import nodename, nodesplit
from click.core import ParameterSource

from callsheet.errors import SettingsError
from callsheet.mcp.home import close_all
from callsheet.scaling import Limits
from callsheet.settings import Settings, get_settings
from callsheet.settings.celery import HELD, celery_config, transport
from callsheet.tasks.app import App, make_app, serve_as
from callsheet.tasks.homes import give_up_homes
from callsheet.workers import status  # noqa: F401 - registers its commands
from callsheet.workers.logs import gather_lines

logger = logging.getLogger(__name__)

# By name: what these import of Celery's worker takes its tracer by value, so it comes after the user's modules, which
# may have put another there.
STEPS = ("callsheet.workers.steps:PassTurnsOn", "callsheet.workers.steps:ServeMetrics")
CONSUMER_STEPS = ("callsheet.workers.steps:ReadRevoked",)
IO_CONSUMER_STEPS = ("callsheet.workers.steps:AttachPool", "callsheet.workers.steps:FollowHubs")
AFTER_CONFIGURE, AFTER_FINALIZE = Signal(name="app.on_after_configure"), Signal(name="app.on_after_finalize")


class WorkerApp(App):
    """The app of a kind of workers: not configured or finalized before the user's modules are imported, as their own.

    Attributes:
        modules: the user's, which workers and beat import.
        waits: whether its pool is an asyncio one.
        use: the remedy where another pool is given.
    """

    modules: tuple[str, ...] = ()
    waits = False
    use = ("Leave -P away for Celery's prefork pool; solo and threads can be had too. Calls that wait on the network "
           "run by the thousand on an io worker: celery -A callsheet.workers.io worker.")

    def on_init(self) -> None:
        """Whichever app a module names, both hear what it connects; in here and in `autodiscover_tasks`."""
        self.on_after_configure, self.on_after_finalize = AFTER_CONFIGURE, AFTER_FINALIZE

    def autodiscover_tasks(self, packages: Any = None, related_name: str = "tasks", force: bool = False) -> Any:
        """Celery's."""
        if force:
            return super().autodiscover_tasks(packages, related_name, force)
        return import_modules.connect(lambda **_: self._autodiscover_tasks(packages, related_name), weak=False)

    def import_agents(self, **_: object) -> None:
        """Import the modules, also from the folder where the worker is started, which `celery` alone forgets again.

        Raises:
            SettingsError: one of them cannot be imported.
        """
        with contextlib.suppress(FileNotFoundError):  # the folder is gone
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.insert(0, here)
        for name in self.modules:
            try:
                importlib.import_module(name)
            except ImportError as exc:
                raise SettingsError(
                    f"CALLSHEET_MODULES names {name!r}, which cannot be imported here: {exc}. Correct the name, "
                    "install it, start the worker in the folder that holds it, or put that on PYTHONPATH.") from exc

    def check(self, worker: Any, ours: dict[str, Any]) -> None:
        """Refuse a pool or a configuration that cannot work.

        Raises:
            SystemExit: says what is wrong, and the remedy.
        """
        pool = get_implementation(worker.pool_cls)
        if pool.is_green or hasattr(pool, "attach") is not self.waits:
            raise SystemExit(f"{pool.__module__}:{pool.__name__} is no pool for the workers of {self.main}. {self.use}")
        if wrong := [name for name in HELD if self.conf.get(name) != ours.get(name)]:
            raise SystemExit(f"{', '.join(wrong)}: Callsheet's settings say what this is, and app.conf says otherwise. "
                             "Take it out of what your modules set; broker and results are at CALLSHEET_REDIS_URL, "
                             "and messages are JSON.")


class IOApp(WorkerApp):
    """The app of io workers."""

    waits = True
    use = ("Leave -P away: calls that wait run on the asyncio pool. What computes runs in processes on a cpu worker: "
           "celery -A callsheet.workers.cpu worker.")

    @functools.cached_property
    def Worker(self) -> Any:
        """Celery's worker, with a soft shutdown of our own."""
        return self.subclass_with_self("callsheet.workers.consumer:Worker")


def io_app(settings: Settings | None = None) -> Celery:
    """The app of io workers: the asyncio pool, queue `io`."""
    app = _app(settings, "io", IOApp, "callsheet.workers.pool:AsyncioPool")
    app.steps["consumer"].update(IO_CONSUMER_STEPS)
    after_setup_logger.connect(_gather_lines, weak=False)
    after_setup_task_logger.connect(_gather_lines, weak=False)
    return app


def cpu_app(settings: Settings | None = None) -> Celery:
    """The app of cpu workers: Celery's prefork pool, queue `cpu`."""
    return _app(settings, "cpu", WorkerApp, "callsheet.workers.prefork:TaskPool")


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


def _give_a_name(app: Celery, queue: str) -> None:
    """Without -n workers of both kinds would be celery@host, and tools see one of them."""
    @celeryd_init.connect(weak=False)
    def _name(instance: Any = None, **_: object) -> None:
        context = click.get_current_context(silent=True)
        unnamed = context is not None and context.get_parameter_source("hostname") is ParameterSource.DEFAULT
        if unnamed and instance is not None and instance.app is app:
            instance.hostname = nodename(queue, nodesplit(instance.hostname)[1])


def _app(settings: Settings | None, queue: str, kind: type[WorkerApp], pool: str) -> Any:
    settings = settings or get_settings()
    app: Any = make_app(settings, queue, f"callsheet.workers.{queue}", kind)
    app.modules = settings.modules
    app.conf.update(worker_pool=pool, worker_consumer="callsheet.workers.consumer:Consumer",
                    worker_autoscaler="callsheet.workers.autoscaler:LoadAutoscaler")
    app.events_cls = "callsheet.workers.events:Events"
    app.user_options["worker"].add(First(app.import_agents))
    app.user_options["beat"].add(First(app.import_agents))
    app.steps["worker"].update(STEPS)
    app.steps["consumer"].update(CONSUMER_STEPS)
    if not isinstance(_state.default_app, WorkerApp):  # else a worker's tasks import the app of the other kind
        app.set_current()
        app.set_default()
    _give_a_name(app, queue)
    import_modules.connect(app.import_agents, sender=app, weak=False)

    @worker_init.connect(weak=False)
    def _serve(sender: Any = None, **_: object) -> None:
        if sender is None or sender.app is not app:
            return
        app.check(sender, celery_config(settings))
        serve_as(app)
        # Not before: Flower, which loads this app too, knows brokers by the name of a stock transport.
        if app.conf.broker_transport is None:
            app.conf.broker_transport = transport(settings)

    @worker_ready.connect(weak=False)
    def _say_what_it_builds(sender: Any = None, **_: object) -> None:
        if getattr(sender, "app", None) is app and not settings.modules:
            logger.warning("CALLSHEET_MODULES names no modules: calls of your agents will fail here. Name those that "
                           "define them, e.g. CALLSHEET_MODULES=myproject.agents")

    worker_process_shutdown.connect(_close_sessions, weak=False)

    @celeryd_after_setup.connect(weak=False)
    def _check_queues(instance: Any = None, **_: object) -> None:
        ours = instance is not None and instance.app is app
        if ours and "" in app.amqp.queues.consume_from:
            # Kombu would make up a name that nobody sends to. Celery only logs other exceptions here.
            raise SystemExit("-Q names an empty queue, which nobody can send to. Give names with commas between them "
                             "and nothing else, e.g. -Q io,gpu.")

    return app


class First(click.Option):
    """An option that nobody gives, looked at before all others, and before Celery reads its configuration.

    Args:
        then: done where nothing is wrong with --autoscale.
    """

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__(["--callsheet-first"], hidden=True, is_eager=True, expose_value=False)
        self._then = then

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        """Called while the command line is read.

        Raises:
            click.BadParameter: names what was given, and what is right.
            click.ClickException: a module of CALLSHEET_MODULES cannot be imported.
        """
        given = opts.get("autoscale")
        if given is not None and (wrong := wrong_with(str(given))):
            raise click.BadParameter(wrong, ctx, param_hint="--autoscale")
        try:
            self._then()
        except SettingsError as exc:
            raise click.ClickException(str(exc)) from exc
        return super().handle_parse_result(ctx, opts, args)


def wrong_with(value: str) -> str:
    """What is wrong with a "MAX,MIN" or "MAX", in words; "" if nothing is.

    Celery takes MIN,MAX as well and any numbers, and ends with an AttributeError over two words.
    """
    found = re.fullmatch(r"\s*([+-]?\d+)\s*(?:,\s*([+-]?\d+)\s*)?", value)
    right = "Give MAX,MIN: two whole numbers, the greater first, such as --autoscale=500,20."
    if found is None:
        return f"{value!r} is not MAX,MIN. {right}"
    try:
        Limits(maximum=int(found[1]), minimum=int(found[2] or 0))
    except SettingsError as exc:
        return f"{exc} {right}"
    return ""
