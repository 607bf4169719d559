"""A boot step: the worker follows the hubs in which agents sit that it keeps warm."""

from collections.abc import Collection
from typing import Any

from celery import bootsteps

from callsheet.resources.loops import on_lasting_loop
from callsheet.settings import get_settings
from callsheet.tasks.stateful import worker_desk
from callsheet.tasks.turns.backlog import Backlog

_EVERY = 5.0  # seconds between two looks whether they are still warm


class FollowHubs(bootsteps.StartStopStep):
    """Follows them over a connection of the process's own, beside Celery's, from the end of an agent's turn on.

    Only where calls run in the worker's process: a prefork worker's agents are warm in its children.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._timer: Any = None
        self._backlog: Any = None

    def include_if(self, c: Any) -> bool:
        """Only on the asyncio pool."""
        return hasattr(c.pool, "attach")

    def start(self, c: Any) -> None:
        """At each (re)connection."""
        desk = worker_desk(get_settings(), c.app)
        self._backlog = desk.backlog
        _on_loop(self._backlog.start)
        self._timer = c.timer.call_repeatedly(_EVERY, _sweep, (self._backlog, desk.warm))

    def stop(self, c: Any) -> None:
        """When the connection is lost or the worker stops."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._backlog is not None:
            _on_loop(self._backlog.stop)


def _sweep(backlog: Backlog, warm: Collection[str]) -> None:
    if backlog.follows:
        _on_loop(lambda: backlog.sweep(warm))


def _on_loop(function: Any) -> None:
    async def run() -> None:
        function()

    on_lasting_loop(run)
