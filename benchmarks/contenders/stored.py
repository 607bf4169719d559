"""Waiting until results are in Redis."""

import os
import time
from collections.abc import Sequence

import redis

SOME = 50


def wait(keys: Sequence[str]) -> None:
    """Until all `keys` exist. The last few are asked for first, so that asking takes little from what is measured."""
    client = redis.Redis.from_url(os.environ["CALLSHEET_REDIS_URL"])
    for asked in (keys[-SOME:], keys):
        while client.exists(*asked) < len(asked):
            time.sleep(0.02)
    client.close()
