"""What Redis tells of a worker's queues, or that it does not answer, in a time that Prometheus has."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from callsheet.errors import RedisUnavailable
from callsheet.hub.lag import HubLag, hub_lags
from callsheet.resources.backlog import UNACKED, backlogs
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

PATIENCE = 2.0
"""Seconds that Redis is given to answer."""


@dataclass(frozen=True)
class Told:
    """What Redis told.

    Attributes:
        waiting: messages that wait, by queue.
        held: messages that workers hold.
        hubs: those used last.
    """

    waiting: dict[str, int]
    held: int
    hubs: tuple[HubLag, ...]


class Broker:
    """Asks Redis, one question at a time.

    Args:
        settings: where it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._asking: threading.Thread | None = None
        self._told: Told | None = None

    def look(self, queues: Sequence[str]) -> Told | None:
        """What waits on these queues; None where Redis does not answer, now or since an earlier question."""
        asking = self._asking
        if asking is None or not asking.is_alive():
            self._told = None
            asking = self._asking = threading.Thread(target=self._ask, args=(queues,), daemon=True,
                                                     name="callsheet-metrics-redis")
            asking.start()
        asking.join(PATIENCE)
        return self._told

    def _ask(self, queues: Sequence[str]) -> None:
        try:
            with translated(self._settings):
                client = sync_client(self._settings)
                hubs = hub_lags(client, Keys(self._settings.key_prefix))
                self._told = Told(backlogs(queues, client), int(client.hlen(UNACKED)), tuple(hubs))
        except RedisUnavailable:
            self._told = None
