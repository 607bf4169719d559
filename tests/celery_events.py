"""Celery's events as a monitor hears them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from tests.services import wait_for


@contextmanager
def events(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """The events of tasks, as they arrive."""
    seen: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        try:
            # The first ones prove that the next ones are heard.
            wait_for(lambda: app.control.enable_events() or seen, every=0.2, what="a worker's events")
            yield seen
        finally:
            receiver.should_stop = True
            thread.join(10)
            app.control.disable_events()
