"""The Celery apps of the workers."""

from celery import Celery
from celery.signals import worker_init

from callsheet.settings import Settings, get_settings
from callsheet.tasks.app import make_app, serve_as
from callsheet.workers.steps import AttachPool

POOL = "callsheet.workers.pool:AsyncioPool"


def io_app(settings: Settings | None = None) -> Celery:
    """The app of io workers: the asyncio pool, queue `io`."""
    app = _app(settings, "io")
    app.conf.worker_pool = POOL
    app.steps["consumer"].add(AttachPool)
    return app


def cpu_app(settings: Settings | None = None) -> Celery:
    """The app of cpu workers: Celery's prefork pool, queue `cpu`."""
    return _app(settings, "cpu")


def _app(settings: Settings | None, queue: str) -> Celery:
    app = make_app(settings or get_settings(), queue, f"callsheet.workers.{queue}")
    app.set_current()
    app.set_default()

    @worker_init.connect(weak=False)
    def _serve(sender: object = None, **_: object) -> None:
        if getattr(sender, "app", None) is app:
            serve_as(app)

    return app
