"""A boot step: the worker sees to it that calls for MCP sessions of workers that are gone go to others."""

from typing import Any

from celery import bootsteps

from callsheet.settings import get_settings
from callsheet.tasks.homes import Sweeper


class SweepHomes(bootsteps.StartStopStep):
    """One trip to Redis, twice a lease; every worker does, also one that holds no session."""

    def start(self, parent: Any) -> None:
        """When the worker starts."""
        self.sweeper = Sweeper(get_settings())
        self.sweeper.start()

    def stop(self, parent: Any) -> None:
        """When it stops."""
        self.sweeper.stop()
