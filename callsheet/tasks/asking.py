"""Asking all workers something, for no longer than it takes them to answer."""

from typing import Any

from celery import Celery

from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings

PATIENCE = 2.0
"""Seconds that workers are given to answer."""


def ask(app: Celery, settings: Settings, command: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
    """What each worker answers to a command, by the worker's name.

    Those that do not know the command answer with {"error": ...}.
    """
    with translated(settings):
        # Where kombu keeps who is bound to an exchange: workers that are there, and those that were killed.
        count = int(sync_client(settings).scard(f"_kombu.binding.{app.control.mailbox.exchange.name}"))
        if not count:
            return {}
        answers = app.control.broadcast(command, arguments=arguments, reply=True, timeout=patience, limit=count) or []
    return {str(name): answer for one in answers if isinstance(one, dict) for name, answer in one.items()}
