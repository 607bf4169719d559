"""The Celery app of this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery

from callsheet.settings import Settings, get_settings
from callsheet.settings.celery import celery_config
from callsheet.tasks.control import Clock
from callsheet.tasks.gather import register_gathering
from callsheet.tasks.reply import ReplyTask

_lock = threading.Lock()
#: The producer that code holds, with its app and thread.
_held: ContextVar[tuple[Celery, int, Any] | None] = ContextVar("callsheet_producer", default=None)


class App(Celery):
    """Celery's app. Code that publishes holds one producer at a time, and can publish a canvas in few trips.

    Celery takes another producer for each chord in a group in a chord, and holds the first meanwhile: threads that do
    so at the same time end up waiting for each other's, once all that the broker's pool has are taken.
    """

    one_producer = True
    control_cls = "callsheet.tasks.control:Control"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = Clock()

    @contextmanager
    def together(self) -> Iterator[Any]:
        """Send what is published in the block, by whatever signature, group or chord, in few trips at its end.

        Not for coroutines that await in it. A batch that fails is not sent again: nobody knows how much has arrived.

        Yields:
            kombu's producer.
        """
        with self.producer_pool.acquire(block=True) as producer, producer.batch(), self._holding(producer):
            yield producer

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Celery's; where code holds a producer, that one."""
        held = _held.get()
        if producer is None and held is not None and held[:2] == (self, threading.get_ident()):
            producer = held[2]
        return super().producer_or_acquire(producer) if producer is not None else self._reserved()

    @contextmanager
    def _reserved(self) -> Iterator[Any]:
        with super().producer_or_acquire() as producer, self._holding(producer):
            yield producer

    @contextmanager
    def _holding(self, producer: Any) -> Iterator[None]:
        token = _held.set((self, threading.get_ident(), producer))
        try:
            yield
        finally:
            _held.reset(token)


_worker_app: App | None = None
_client_apps: dict[str, App] = {}


def make_app(settings: Settings, queue: str = "io", name: str = "callsheet") -> App:
    """A Celery app with Callsheet's configuration and tasks.

    Args:
        settings: ours.
        queue: its default queue, the one that its workers consume without `-Q`.
        name: of the app.
    """
    app = App(name, task_cls="callsheet.tasks.base:Task", amqp="callsheet.tasks.patience:PatientAMQP",
              set_as_current=False)
    app.conf.update(celery_config(settings, queue))
    # A class of its own for each app: Celery binds a task's class, not the object, to its app.
    app.register_task(type("ReplyTask", (ReplyTask,), {"__doc__": ReplyTask.__doc__})())
    register_gathering(app)
    return app


def serve_as(app: App) -> None:
    """Say that this process is a worker of `app`: what it submits goes through it."""
    global _worker_app  # noqa: PLW0603 - a process is the worker of one app
    _worker_app = app


def current_app(settings: Settings | None = None) -> App:
    """The app that this process sends with: its worker's, or one made from the settings on first use."""
    if _worker_app is not None:
        return _worker_app
    settings = settings or get_settings()
    key = settings.redis_url.get_secret_value()
    with _lock:
        if key not in _client_apps:
            _client_apps[key] = make_app(settings)
        return _client_apps[key]
