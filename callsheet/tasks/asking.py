"""Asking all workers something, for no longer than it takes them to answer."""

from typing import Any

from celery import Celery

from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings

PATIENCE = 2.0
"""Seconds that workers are given to answer."""


def listening(app: Celery, settings: Settings) -> int:
    """How many workers may hear commands: those that are there, and those that were killed; one trip to Redis."""
    with translated(settings):  # where kombu's Redis transport keeps who is bound to an exchange
        return int(sync_client(settings).scard(f"_kombu.binding.{app.control.mailbox.exchange.name}"))


def ask(app: Celery, settings: Settings, command: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
    """What each worker answers to a command, by the worker's name.

    Those that do not know the command answer with {"error": ...}.
    """
    count = listening(app, settings)
    if not count:
        return {}
    with translated(settings):
        answers = app.control.broadcast(command, arguments=arguments, reply=True, timeout=patience, limit=count) or []
    return {str(name): answer for one in answers if isinstance(one, dict) for name, answer in one.items()}
