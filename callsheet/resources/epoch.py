"""Whether Redis still has what it had, or has come back empty, or as it was some time ago.

A key names this life of the data, and counts the looks at it; where the count went back, it gets another name. Another
name than at the look before means that data were lost; not, that a certain job was among them.
"""

import logging
import os
import threading
import time
from uuid import uuid4

from callsheet.resources.redis import Script, sync_client
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

REMEDY = "Have it keep its data (appendonly yes), and submit again what was lost."

# KEYS: the key. ARGV: a new name; the name and the count at this process's look before. Returns name and count.
_LOOK = Script("""
local looks = redis.call('HINCRBY', KEYS[1], 'looks', 1)
local name = redis.call('HGET', KEYS[1], 'id')
if not name or (name == ARGV[2] and looks <= tonumber(ARGV[3])) then
    name = ARGV[1]
    redis.call('HSET', KEYS[1], 'id', name)
end
return {name, looks}
""")

logger = logging.getLogger(__name__)


class Epoch:
    """What this process knows of the data of one Redis.

    Attributes:
        losses: how often data were lost since the first look.
        noticed: when that was last seen, on the monotonic clock.
        looked: when the last look was, likewise; 0 before the first.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._known: tuple[bytes, int] = b"", 0
        self.losses, self.noticed, self.looked = 0, 0.0, 0.0

    def look(self) -> None:
        """Look now; says in the log if data were lost. Blocks.

        Raises:
            RedisError, OSError: Redis is away, or takes no writes.
        """
        key = Keys(self._settings.key_prefix).epoch()
        with self._lock:
            self.looked, before = time.monotonic(), self._known
            self._known = name, _ = _LOOK.run(sync_client(self._settings), [key], [uuid4().hex, *before])
            if before[0] not in (b"", name):
                self.losses, self.noticed = self.losses + 1, time.monotonic()
                logger.error("The Redis at %s has lost data: it came back empty, or as it was some time ago. Calls that"
                             " waited, parts of pipelines, results, states and hubs may be lost. What runs goes on; "
                             "jobs that nobody has any more end with JobLost. %s", self._settings.redis_address, REMEDY)


_epochs: dict[tuple[int, str, str], Epoch] = {}


def epoch(settings: Settings) -> Epoch:
    """What this process knows of the Redis in its settings."""
    key = os.getpid(), settings.redis_url.get_secret_value(), settings.key_prefix
    return _epochs.get(key) or _epochs.setdefault(key, Epoch(settings))


def looked_at(settings: Settings) -> None:
    """Before the first job of this process is sent, look: later it is known what there was. Blocks.

    Raises:
        RedisError, OSError: as of `Epoch.look`.
    """
    if not epoch(settings).looked:
        epoch(settings).look()
