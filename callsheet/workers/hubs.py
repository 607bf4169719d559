"""A boot step: the worker follows the hubs in which agents sit that it keeps warm."""

from typing import Any

from celery import bootsteps

from callsheet.resources.loops import on_lasting_loop
from callsheet.settings import get_settings
from callsheet.tasks.stateful import worker_desk
from callsheet.tasks.turns.desk import Desk

_EVERY = 5.0  # seconds between two looks whether they are still warm


class FollowHubs(bootsteps.StartStopStep):
    """Follows them over a connection of the process's own, beside Celery's, from the end of an agent's turn on.

    Only where calls run in the worker's process: a prefork worker's agents are warm in its children.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._timer: Any = None

    def include_if(self, c: Any) -> bool:
        """Only on the asyncio pool."""
        return hasattr(c.pool, "attach")

    def start(self, c: Any) -> None:
        """At each (re)connection."""
        desk = self._desk(c)
        _on_loop(desk.start_following)
        self._timer = c.timer.call_repeatedly(_EVERY, _sweep, (desk,))

    def stop(self, c: Any) -> None:
        """When the connection is lost or the worker stops."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _on_loop(self._desk(c).stop_following)

    def _desk(self, c: Any) -> Desk:
        return worker_desk(get_settings(), c.app)


def _sweep(desk: Desk) -> None:
    if desk.follows:
        _on_loop(desk.sweep_followed)


def _on_loop(function: Any) -> None:
    async def run() -> None:
        function()

    on_lasting_loop(run)
