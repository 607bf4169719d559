"""Messages and calls that no worker takes: kept apart in Redis, for a person to look at.

A list, the newest first, of at most MOST letters, each with at most MOST_TEXT bytes of what it was. Whatever comes,
it stays bounded, and what it keeps leaves by itself.
"""

import json
import logging
import time
from typing import Any

from redis.exceptions import RedisError

from callsheet.resources.redis import sync_client
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys

logger = logging.getLogger(__name__)

MOST = 500  # letters
MOST_TEXT = 64 * 1024  # bytes of one
KEPT = 7 * 86_400  # seconds after the last letter came


def add(queue: str, text: bytes | str, reason: str, task_id: str = "", task: str = "", worker: str = "",
        client: Any = None, settings: Settings | None = None) -> bool:
    """Keep a letter. Blocks for one trip to Redis; never raises.

    Args:
        queue: that it came from.
        text: what came, or what the call was given; of more than MOST_TEXT bytes the beginning is kept.
        reason: why it is here, for a person; without secrets.
        task_id: of the call, where it is known.
        task: its name, likewise.
        worker: that put it here.
        client: of redis-py, in place of this process's own.
        settings: in place of the current ones.

    Returns:
        False where Redis did not take it; the log says so.
    """
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    letter = {"time": time.time(), "queue": queue, "reason": reason[:2000], "task_id": task_id[:200],
              "task": task[:200], "worker": worker, "size": len(raw),
              "text": raw[:MOST_TEXT].decode(errors="backslashreplace")}
    try:
        settings = settings or get_settings()
        key = Keys(settings.key_prefix).dead_letters()
        with (client or sync_client(settings)).pipeline() as pipe:
            pipe.lpush(key, json.dumps(letter)).ltrim(key, 0, MOST - 1).expire(key, KEPT).execute()
    except (RedisError, OSError) as exc:
        logger.warning("What came from the queue %r is lost: Redis does not take it as a dead letter (%s): %.200s",
                       queue, exc, letter["text"])
        return False
    return True


def read(settings: Settings | None = None, most: int = MOST) -> list[dict[str, Any]]:
    """The letters, the newest first, each with the keys `time` (unix), `queue`, `reason`, `task_id`, `task`, `worker`,
    `size` (bytes) and `text`.

    Raises:
        RedisError: Redis cannot be asked.
    """
    settings = settings or get_settings()
    texts = sync_client(settings).lrange(Keys(settings.key_prefix).dead_letters(), 0, most - 1)
    return [json.loads(text) for text in texts]
