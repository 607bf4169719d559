"""The Celery configuration that follows from the settings, and where Celery tasks are routed."""

from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from kombu.entity import Queue

from callsheet.settings.model import Settings
from callsheet.settings.sentinels import SCHEME as SENTINEL

RESULT_BACKEND = "callsheet.tasks.results:ResultBackend"
SENTINEL_BACKEND = "callsheet.tasks.results:SentinelResultBackend"
CONNECT_TIMEOUT = 5.0  # seconds in which Redis accepts a connection
#: Seconds that the parts of a chord wait for the slowest: for a countdown, a person, a queue. They go when it ends.
JOIN_EXPIRES = 30 * 86_400
TIMEOUT = 15.0  # seconds in which it answers a command; one that pauses for ten is slow, and not away

# What messages and results are, and where: a worker whose app.conf says otherwise does not start.
HELD = ("broker_url", "broker_read_url", "broker_write_url", "result_backend", "task_serializer", "result_serializer",
        "accept_content", "result_accept_content")


def celery_config(settings: Settings, queue: str = "io") -> dict[str, Any]:
    """Celery's settings, made from ours; a user's own tasks in the same app live under them too.

    Args:
        settings: ours.
        queue: the default queue of this app, the one that its workers consume without `-Q`.
    """
    url, sentinels = broker_url(settings), settings.sentinels
    through = {"master_name": sentinels.master, "sentinel_kwargs": sentinels.own_options} if sentinels else {}
    return {
        "broker_url": url,
        # Connections are opened as they are needed. With Celery's ten, threads that publish nested groups, and hold one
        # while they wait for another, could wait for each other for ever.
        "broker_pool_limit": 200,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a worker outlasts any outage
        "broker_channel_error_retry": True,  # such as of a Redis that takes no writes for now
        "broker_transport_options": {"visibility_timeout": settings.visibility_timeout, "lease": settings.lease,
                                     "eta_horizon": settings.eta_horizon,
                                     "message_max": 2 * settings.payload_max,
                                     "socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": TIMEOUT, **through},
        "redis_socket_connect_timeout": CONNECT_TIMEOUT,
        "redis_socket_timeout": TIMEOUT,
        "result_backend": _backend_url(url),
        "result_backend_transport_options": through,
        "result_backend_thread_safe": True,
        "result_expires": settings.result_expires,
        "result_chord_expires": max(settings.result_expires, JOIN_EXPIRES),
        "task_serializer": "json", "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_default_queue": queue,
        "task_queues": (Queue(queue),),  # type: ignore[no-untyped-call]
        "task_routes": (route,),
        # The work of a killed worker goes to another one.
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,  # SecondChanceRequest sees to it, and not for ever
        # Once: over a connection that turned out to be broken. After a timeout nobody knows whether it has arrived.
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1},
        "task_store_errors_even_if_ignored": True,
        "task_track_started": settings.track_started,
        "worker_prefetch_multiplier": 1,
        "worker_soft_shutdown_timeout": settings.soft_shutdown,
        # With it on, an autoscaled worker stays at its minimum prefetch after a reconnect.
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "imports": settings.modules,
        "enable_utc": True,
        "timezone": "UTC",
    }


def transport(settings: Settings) -> str | None:
    """Kombu's name of the transport; None for the stock one, which Flower has to be left with."""
    if settings.transport != "batched":
        return None
    return "callsheet.workers.transport:" + ("Transport" if settings.sentinels is None else "SentinelTransport")


def broker_url(settings: Settings) -> str:
    """The Redis address as kombu writes it."""
    if settings.sentinels is not None:
        return settings.sentinels.url()
    url = settings.redis_url.get_secret_value()
    if url.startswith("unix://"):
        parts = urlsplit(url)
        query = {name: quote(value, safe="") for name, value in parse_qsl(parts.query)}
        user, password = parts.username or query.get("username", ""), parts.password or query.get("password", "")
        login = f"{user}:{password}@" if user or password else ""
        return f"redis+socket://{login}{parts.path}?virtual_host={query.get('db') or '0'}"
    if url.startswith("rediss://") and "ssl_cert_reqs" not in url:
        return url + ("&" if "?" in url else "?") + "ssl_cert_reqs=required"
    return url


def _backend_url(url: str) -> str:
    # Celery takes the class from before the "+" and gives it what follows as its address.
    backend = SENTINEL_BACKEND if url.startswith(SENTINEL) else RESULT_BACKEND
    return f"{backend}+{url.replace('redis+socket://', 'socket://')}"


def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> dict[str, str] | None:
    """Celery's router for a user's own tasks: `async def` to `io`, `def` to `cpu`."""
    if task is None or name.startswith(("callsheet.", "celery.")):
        return None
    return {"queue": "io" if getattr(task, "is_async", False) else "cpu"}
