"""A boot step: the worker sees to it that the turns of processes that died pass on."""

from typing import Any

from celery import bootsteps

from callsheet.settings import get_settings
from callsheet.tasks.stateful import worker_desk
from callsheet.tasks.turns.keeper import Keeper


class PassTurnsOn(bootsteps.StartStopStep):
    """Looks a few times a lease for turns that nobody holds any more and for which calls wait: one trip to Redis.

    Every worker does, also one that has met no agent with state: all that have may be gone.
    """

    def start(self, parent: Any) -> None:
        """When the worker starts."""
        self._keeper(parent).watch()

    def stop(self, parent: Any) -> None:
        """When it stops."""
        self._keeper(parent).unwatch()

    def _keeper(self, parent: Any) -> Keeper:
        keeper = worker_desk(get_settings(), parent.app).keeper
        assert keeper is not None
        return keeper
