"""The Celery app of this process."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery
from celery._state import connect_on_app_finalize

from callsheet.errors import UsageError
from callsheet.messages.allow import AllowList
from callsheet.settings import Settings, get_settings
from callsheet.settings.celery import celery_config, transport
from callsheet.tasks.base import mixed
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

    Tasks are the same in all apps of a process, and of `callsheet.tasks.base.Task`, whatever base class they name.
    """

    one_producer = True
    control_cls = "callsheet.tasks.control:Control"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = Clock()

    def _task_from_fun(self, fun: Any, name: str | None = None, base: Any = None, **options: Any) -> Any:
        return super()._task_from_fun(fun, name=name, base=mixed(base or self.Task), **options)

    def register_task(self, task: Any, **options: Any) -> Any:
        """Celery's; apps of ours in this process that are finalized later have the task too, as with `app.task`."""
        task = task() if isinstance(task, type) else task
        given: Any = type(task)
        ours = mixed(given)
        made = super().register_task(task if isinstance(task, ours) else _twin(task, ours), **options)
        task.name = made.name

        @connect_on_app_finalize
        def _register(app: Celery) -> None:
            if isinstance(app, App) and app is not self:
                # A class of its own for each app: Celery binds a task's class, not the object, to its app.
                Celery.register_task(app, _twin(made, type(ours.__name__, (ours,), {"__module__": ours.__module__})),
                                     **options)

        return made

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        """Celery's; a task of a module that the settings name goes to the queue that it goes to when called."""
        if options.get("task_type") is None and name not in self._tasks:
            module = name.rpartition(".")[0]
            if AllowList(tuple(self.conf.imports)).admits(module):
                with contextlib.suppress(ModuleNotFoundError):  # it is not installed here
                    importlib.import_module(module)
            self.finalize(auto=True)
        return super().send_task(name, *args, **options)

    def connection_for_write(self, url: Any = None, **options: Any) -> Any:
        """Celery's; CELERY_BROKER_URL and the like are for other apps."""
        return super().connection_for_write(url or self.conf["broker_url"], **options)

    connection_for_read = connection_for_write

    def config_from_object(self, obj: Any, *args: Any, **options: Any) -> Any:
        """Refused, with a UsageError: it would take the place of what Callsheet's settings say."""
        raise UsageError("This app is configured by Callsheet's settings, which a configuration object would replace: "
                         "pool, queues, broker. Give it Celery's other settings with app.conf.update(...), in a "
                         "module that CALLSHEET_MODULES names.")

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


def _twin(task: Any, cls: Any) -> Any:
    twin = object.__new__(cls)
    twin.__dict__.update(vars(task))
    return twin


_worker_app: App | None = None
_client_apps: dict[str, App] = {}


def make_app(settings: Settings, queue: str = "io", name: str = "callsheet", kind: type[App] = App) -> Any:
    """A Celery app with Callsheet's configuration and tasks."""
    app = kind(name, task_cls="callsheet.tasks.base:Task", amqp="callsheet.tasks.patience:PatientAMQP",
              set_as_current=False)
    app.conf.update(config := celery_config(settings, queue))
    app.backend_cls = config["result_backend"]  # CELERY_RESULT_BACKEND would come before it
    return app


@connect_on_app_finalize
def _add_tasks(app: Celery) -> None:
    """Not before: Celery finalizes and configures an app whose tasks are asked for, and its user may not be done."""
    if isinstance(app, App):
        Celery.register_task(app, type("ReplyTask", (ReplyTask,), {"__doc__": ReplyTask.__doc__})())
        register_gathering(app)


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
            app = _client_apps[key] = make_app(settings)
            app.conf.broker_transport = transport(settings)
            app.conf.broker_transport_options["may_batch"] = False  # it consumes no more than answers
        return _client_apps[key]
